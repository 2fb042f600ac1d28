//! A directory looked through in the order of names: a few leaves are held at a time, and leaves in which nothing
//! is looked for are not read.

use crate::{BlobOpener, Fetched, RestoreError, Result};
use holdfast_core::{ChunkId, limits::NODE_DEPTH_MAX};
use holdfast_repo::{DirNode, Entry, Node};
use std::{cmp::Ordering, collections::HashMap, iter::Peekable, vec};

/// Nodes that are asked for together.
const AHEAD: usize = 32;

/// Where the search stands.
pub(crate) struct Search {
    /// Nodes that were not opened, the next one last.
    rest: Vec<Unopened>,
    leaf: Peekable<vec::IntoIter<Entry>>,
    ahead: HashMap<ChunkId, Fetched>,
}

struct Unopened {
    id: ChunkId,
    /// Nothing in it has a lower name.
    first: Vec<u8>,
    level: usize,
}

impl Search {
    /// Before the first entry of the directory whose top node is `top`.
    pub(crate) fn new(top: ChunkId) -> Self {
        Self {
            rest: vec![Unopened {
                id: top,
                first: Vec::new(),
                level: 1,
            }],
            leaf: Vec::new().into_iter().peekable(),
            ahead: HashMap::new(),
        }
    }

    /// The entry of that name, which must be greater than those looked for before.
    pub(crate) fn take(&mut self, opener: &mut BlobOpener, name: &[u8]) -> Result<Option<Entry>> {
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
                Some(node) if node.first[..] <= *name => self.open(opener, &node)?,
                Some(node) => {
                    self.rest.push(node);
                    return Ok(None);
                }
                None => return Ok(None),
            }
        }
    }

    fn open(&mut self, opener: &mut BlobOpener, node: &Unopened) -> Result<()> {
        if node.level > NODE_DEPTH_MAX {
            return Err(RestoreError::BadTree("a directory's nodes are nested too deeply"));
        }
        if !self.ahead.contains_key(&node.id) {
            let siblings = self
                .rest
                .iter()
                .rev()
                .take_while(|later| later.level == node.level);
            let siblings = siblings.map(|later| later.id).take(AHEAD - 1);
            self.ahead = opener.fetch(std::iter::once(node.id).chain(siblings))?;
        }
        match opener.open_node(node.id, self.ahead.get(&node.id))? {
            Node::Dir(DirNode::Leaf(entries)) => self.leaf = entries.into_iter().peekable(),
            Node::Dir(DirNode::Index(children)) => {
                let children = children.into_iter().rev().map(|child| Unopened {
                    id: child.id,
                    first: child.first_name,
                    level: node.level + 1,
                });
                self.rest.extend(children);
            }
            Node::File(_) => {
                return Err(RestoreError::BadTree(
                    "a file's node stands where a directory belongs",
                ));
            }
        }
        Ok(())
    }
}
