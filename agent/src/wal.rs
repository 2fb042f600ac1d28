//! The WAL archive: what `archive_command` pushes and `restore_command` fetches.
//!
//! A server runs `holdfast-agent wal push` and `wal fetch`. These are small clients of the running agent, over a socket in the
//! file system (`protocol.rs`). The agent knows who calls by the socket's other end, reads files itself, and says *kept* only
//! when the controllers hold them: their bytes on disk, their names in the catalog. Files of several names go into one page of
//! the source's journal; what the server has ready is taken along.

mod archive;
mod caller;
mod client;
mod cluster_files;
mod fetched;
mod protocol;
mod sealing;
mod server;

pub use client::{Fetch, Push, fetch, push};
pub use server::serve;
