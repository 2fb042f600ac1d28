//! A directory of the parent snapshot, looked through in the order of names: one leaf is held at a time, and
//! leaves in which nothing is looked for are not read.

use super::{Shared, store_chunk::Sink};
use crate::error::{AgentError, Result};
use holdfast_core::{ChunkId, limits};
use holdfast_repo::{DirNode, Entry, Node};
use std::{cmp::Ordering, iter::Peekable, vec};

/// Where the search stands. The parent is a hint: a node of it that cannot be read is as if it had been empty,
/// and what was in it is read again.
pub(super) struct OldEntries {
    /// Nodes that were not opened, the next one last.
    rest: Vec<Unopened>,
    leaf: Peekable<vec::IntoIter<Entry>>,
}

struct Unopened {
    id: ChunkId,
    /// Nothing in it has a lower name.
    first: Vec<u8>,
    depth: usize,
}

impl OldEntries {
    /// Before the first entry; without a directory there is none.
    pub fn new(top: Option<ChunkId>) -> Self {
        let top = top.map(|id| Unopened {
            id,
            first: Vec::new(),
            depth: 0,
        });
        Self {
            rest: top.into_iter().collect(),
            leaf: Vec::new().into_iter().peekable(),
        }
    }

    /// The entry of that name, which must be greater than those asked for before.
    pub fn take(&mut self, shared: &Shared, sink: &mut Sink, name: &[u8]) -> Result<Option<Entry>> {
        loop {
            while let Some(entry) = self.leaf.peek() {
                match entry.name[..].cmp(name) {
                    Ordering::Less => drop(self.leaf.next()),
                    Ordering::Equal => return Ok(self.leaf.next()),
                    Ordering::Greater => return Ok(None),
                }
            }
            while let [.., later, _] = &self.rest[..]
                && later.first[..] <= *name
            {
                self.rest.pop();
            }
            match self.rest.pop() {
                Some(node) if node.first[..] <= *name => self.open(shared, sink, &node)?,
                Some(node) => {
                    self.rest.push(node);
                    return Ok(None);
                }
                None => return Ok(None),
            }
        }
    }

    fn open(&mut self, shared: &Shared, sink: &mut Sink, node: &Unopened) -> Result<()> {
        match sink.node(shared, node.id) {
            Ok(Node::Dir(DirNode::Leaf(entries))) => self.leaf = entries.into_iter().peekable(),
            Ok(Node::Dir(DirNode::Index(children))) if node.depth < limits::NODE_DEPTH_MAX => {
                let children = children.into_iter().rev().map(|child| Unopened {
                    id: child.id,
                    first: child.first_name,
                    depth: node.depth + 1,
                });
                self.rest.extend(children);
            }
            Ok(_) => {
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
