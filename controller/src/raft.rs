//! Raft through openraft: the log, the state machine, and the node that others propose to.
//!
//! One node now. Everything but [`network`] is written for several: log and vote are durable before
//! they are acknowledged, snapshots are files of one applied index, `apply` is a pure function.

pub mod catalog;
pub mod files;
pub mod frame;
pub mod log;
pub mod machine;
pub mod network;
pub mod node;
pub mod storage;
pub mod time;
pub mod types;

pub use catalog::Catalog;
pub use node::{Node, NodeOptions};
