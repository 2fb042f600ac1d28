//! Real processes on this machine: a cluster of their own in a temporary directory, watched and killed
//! by the test that started them, and gone when it ends.

pub mod archiving;
mod binaries;
mod cluster;
mod ctl;
mod jobs;
mod kills;
mod postgres;
mod process;
pub mod transfers;

pub use archiving::Archiving;
pub use binaries::Binaries;
pub use cluster::{Agent, Cluster, Options, free_port, restored_root, source_document};
pub use ctl::Output;
pub use jobs::{Thread, entries, threads};
pub use kills::Who;
pub use postgres::{Server, as_server};
pub use process::{Process, Trap, Victim};
