//! The types that openraft is used with.

use crate::catalog::{Proposal, Reply};
use std::path::PathBuf;

openraft::declare_raft_types!(
    /// Proposals go in, replies come out, snapshots are files.
    pub TypeConfig:
        D = Proposal,
        R = Reply,
        NodeId = u64,
        Node = openraft::BasicNode,
        Entry = openraft::Entry<TypeConfig>,
        SnapshotData = SnapshotFile,
);

/// Position of an entry.
pub type LogId = openraft::LogId<u64>;
/// Members, and the entry that said so.
pub type Membership = openraft::StoredMembership<u64, openraft::BasicNode>;
/// One entry.
pub type Entry = openraft::Entry<TypeConfig>;
/// A vote.
pub type Vote = openraft::Vote<u64>;
/// Errors of storage, fatal to the node.
pub type StorageError = openraft::StorageError<u64>;
/// The running node.
pub type Raft = openraft::Raft<TypeConfig>;

/// A snapshot: a whole file, checked when it is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotFile {
    /// Where it is.
    pub path: PathBuf,
}
