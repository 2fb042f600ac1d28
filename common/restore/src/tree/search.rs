//! A directory looked through in the order of names: some nodes are fetched together, and leaves in which nothing
//! is looked for are not read.

use crate::{BlobOpener, Fetched, RestoreError, Result};
use holdfast_core::ChunkId;
use holdfast_repo::{DirSearch, Entry, Node, Sought};
use std::collections::HashMap;

/// Nodes that are asked for together.
const AHEAD: usize = 32;

/// Where the search stands.
pub(crate) struct Search {
    names: DirSearch,
    ahead: HashMap<ChunkId, Fetched>,
}

impl Search {
    /// Before the first entry of the directory whose top node is `top`.
    pub(crate) fn new(top: ChunkId) -> Self {
        Self {
            names: DirSearch::new(Some(top)),
            ahead: HashMap::new(),
        }
    }

    /// The entry of that name, which must be greater than those looked for before.
    pub(crate) fn take(&mut self, opener: &mut BlobOpener, name: &[u8]) -> Result<Option<Entry>> {
        loop {
            match self.names.seek(name) {
                Sought::Entry(entry) => return Ok(entry),
                Sought::Node(id) => self.open(opener, id)?,
            }
        }
    }

    fn open(&mut self, opener: &mut BlobOpener, id: ChunkId) -> Result<()> {
        if !self.ahead.contains_key(&id) {
            let siblings = self.names.coming().take(AHEAD - 1);
            self.ahead = opener.fetch(std::iter::once(id).chain(siblings))?;
        }
        match opener.open_node(id, self.ahead.get(&id))? {
            Node::Dir(node) => Ok(self.names.opened(node)?),
            Node::File(_) => Err(RestoreError::BadTree(
                "a file's node stands where a directory belongs",
            )),
        }
    }
}
