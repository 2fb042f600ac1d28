//! Raft through openraft: the log, the state machine, and the node that others propose to.

pub mod catalog;
pub mod files;
pub mod time;
pub mod types;

pub use catalog::Catalog;
