//! A directory of the parent snapshot, looked through in the order of names.

use super::{Shared, store_chunk::Sink};
use crate::error::{AgentError, Result};
use holdfast_core::ChunkId;
use holdfast_repo::{DirSearch, Entry, Node, Sought};

/// Where the search stands. The parent is a hint: a node of it that cannot be read is as if it had been empty,
/// and what was in it is read again.
pub(super) struct OldEntries(DirSearch);

impl OldEntries {
    /// Before the first entry; without a directory there is none.
    pub fn new(top: Option<ChunkId>) -> Self {
        Self(DirSearch::new(top))
    }

    /// The entry of that name, which must be greater than those asked for before.
    pub fn take(&mut self, shared: &Shared, sink: &mut Sink, name: &[u8]) -> Result<Option<Entry>> {
        loop {
            match self.0.seek(name) {
                Sought::Entry(entry) => return Ok(entry),
                Sought::Node(id) => self.open(shared, sink, id)?,
            }
        }
    }

    fn open(&mut self, shared: &Shared, sink: &mut Sink, id: ChunkId) -> Result<()> {
        match sink.node(shared, id) {
            Ok(Node::Dir(node)) => self.0.opened(node)?,
            Ok(Node::File(_)) => {
                return Err(AgentError::Internal(
                    "a directory of the parent is not one".into(),
                ));
            }
            Err(error @ (AgentError::Remote(_) | AgentError::Interrupted(_))) => return Err(error),
            Err(error) => {
                tracing::warn!(%error, "a part of a directory of the parent snapshot cannot be read; its files are read again");
            }
        }
        Ok(())
    }
}
