//! Looking names up in a directory in their order: which node must be read next, and which need not be. It reads
//! nothing itself: whoever holds it opens the nodes that it asks for.

use crate::{
    dir_node::DirNode,
    entry::Entry,
    error::{RepoError, malformed},
};
use holdfast_core::{ChunkId, limits::NODE_DEPTH_MAX};
use std::{cmp::Ordering, iter::Peekable, vec};

/// Where a search stands: one leaf at most is held at a time.
#[derive(Debug, Default)]
pub struct DirSearch {
    /// Nodes that were not opened, the next one last.
    rest: Vec<Unopened>,
    /// Level of the node that was asked for last.
    level: usize,
    leaf: Option<Peekable<vec::IntoIter<Entry>>>,
}

#[derive(Debug)]
struct Unopened {
    id: ChunkId,
    /// Nothing in it has a lower name.
    first: Vec<u8>,
    level: usize,
}

/// What a search needs, or found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sought {
    /// The entry, or that there is none of that name. An entry is given out once.
    Entry(Option<Entry>),
    /// This node must be opened and handed to [`DirSearch::opened`] first. Who cannot open it may ask again: it is
    /// then passed over, as if it had been empty.
    Node(ChunkId),
}

impl DirSearch {
    /// Before the first entry of the directory whose top node is `top`; without one, nothing is ever found.
    #[must_use]
    pub fn new(top: Option<ChunkId>) -> Self {
        let top = top.map(|id| Unopened {
            id,
            first: Vec::new(),
            level: 1,
        });
        Self {
            rest: top.into_iter().collect(),
            ..Self::default()
        }
    }

    /// Looks for a name, which must be greater than those looked for before.
    pub fn seek(&mut self, name: &[u8]) -> Sought {
        while let Some(entry) = self.leaf.as_mut().and_then(Peekable::peek) {
            match entry.name[..].cmp(name) {
                Ordering::Less => self.advance(),
                Ordering::Equal => return Sought::Entry(self.leaf.as_mut().and_then(Iterator::next)),
                Ordering::Greater => return Sought::Entry(None),
            }
        }
        // A node ends where the next one begins.
        while let [.., next, _] = &self.rest[..]
            && next.first[..] <= *name
        {
            self.rest.pop();
        }
        match self.rest.pop_if(|node| node.first[..] <= *name) {
            Some(node) => {
                self.level = node.level;
                Sought::Node(node.id)
            }
            None => Sought::Entry(None),
        }
    }

    fn advance(&mut self) {
        let _ = self.leaf.as_mut().and_then(Iterator::next);
    }

    /// The nodes that come after the one asked for last, as far as they are on its level: worth reading with it.
    pub fn coming(&self) -> impl Iterator<Item = ChunkId> {
        let siblings = self.rest.iter().rev().take_while(|node| node.level == self.level);
        siblings.map(|node| node.id)
    }

    /// Takes the node that was asked for last.
    ///
    /// # Errors
    /// `Malformed` when nodes are nested more deeply than any that are written.
    pub fn opened(&mut self, node: DirNode) -> Result<(), RepoError> {
        match node {
            DirNode::Leaf(entries) => self.leaf = Some(entries.into_iter().peekable()),
            DirNode::Index(_) if self.level >= NODE_DEPTH_MAX => {
                return Err(malformed("a directory", "its nodes are nested too deeply"));
            }
            DirNode::Index(children) => {
                let level = self.level + 1;
                let children = children.into_iter().rev().map(|child| Unopened {
                    id: child.id,
                    first: child.first_name,
                    level,
                });
                self.rest.extend(children);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        VaultKeys,
        dir_node::{DirBuilder, IndexChild},
        entry::{EntryKind, Timestamp},
    };
    use holdfast_core::VaultId;
    use proptest::prelude::*;
    use std::collections::{BTreeSet, HashMap};

    fn entry(name: u32) -> Entry {
        Entry {
            name: format!("{name:08}").into_bytes(),
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: Timestamp::default(),
            ctime: Timestamp::default(),
            inode: u64::from(name),
            changed_while_read: false,
            is_sparse: false,
            attributes: None,
            kind: EntryKind::Fifo,
        }
    }

    /// A directory of these names: its top, and its nodes.
    fn directory(names: &BTreeSet<u32>) -> (ChunkId, HashMap<ChunkId, DirNode>) {
        let keys = VaultKeys::from_secrets(VaultId([1; 16]), [2; 32], [3; 32]);
        let mut builder = DirBuilder::new(&keys);
        for name in names {
            builder.push(&entry(*name)).unwrap();
        }
        let built = builder.finish().unwrap();
        let nodes = built.nodes.iter().map(|node| {
            let decoded = DirNode::decode(&node.links, &node.payload).unwrap();
            (node.id, decoded)
        });
        (built.id, nodes.collect())
    }

    /// Looks all names up; what was found, and how many nodes were opened.
    fn find(
        names: &[u32],
        top: ChunkId,
        nodes: &HashMap<ChunkId, DirNode>,
        lost: Option<ChunkId>,
    ) -> (Vec<u32>, usize) {
        let mut search = DirSearch::new(Some(top));
        let (mut found, mut opened) = (Vec::new(), BTreeSet::new());
        for name in names {
            loop {
                match search.seek(&entry(*name).name) {
                    Sought::Entry(Some(there)) => {
                        assert_eq!(there, entry(*name));
                        found.push(*name);
                        break;
                    }
                    Sought::Entry(None) => break,
                    Sought::Node(id) => {
                        assert!(opened.insert(id), "no node is opened twice");
                        if lost != Some(id) {
                            search.opened(nodes[&id].clone()).unwrap();
                        }
                    }
                }
            }
        }
        (found, opened.len())
    }

    proptest! {
        #[test]
        fn finds_just_what_is_there(
            names in proptest::collection::btree_set(0_u32..6000, 0..3000),
            wanted in proptest::collection::btree_set(0_u32..6000, 0..50),
        ) {
            let (top, nodes) = directory(&names);
            let wanted: Vec<u32> = wanted.into_iter().collect();
            let (found, opened) = find(&wanted, top, &nodes, None);
            let there: Vec<u32> = wanted.iter().copied().filter(|name| names.contains(name)).collect();
            prop_assert_eq!(found, there);
            // The path to each, at most; a tree of so few has two levels.
            prop_assert!(opened <= 1 + wanted.len());
        }
    }

    #[test]
    fn one_name_among_many_takes_one_path() {
        let names = (0..30_000).collect();
        let (top, nodes) = directory(&names);
        let (found, opened) = find(&[17_345], top, &nodes, None);
        assert_eq!(found, [17_345]);
        assert!(opened <= 3, "{opened} of {}", nodes.len());
    }

    #[test]
    fn what_was_in_a_lost_node_is_not_found_and_the_rest_is() {
        let names: BTreeSet<u32> = (0..5000).collect();
        let (top, nodes) = directory(&names);
        let is_leaf = |node: &DirNode| matches!(node, DirNode::Leaf(_));
        let (lost, _) = nodes.iter().find(|(_, node)| is_leaf(node)).unwrap();
        let DirNode::Leaf(gone) = &nodes[lost] else {
            panic!("a leaf")
        };
        let all: Vec<u32> = names.iter().copied().collect();
        let (found, _) = find(&all, top, &nodes, Some(*lost));
        assert_eq!(found.len() + gone.len(), all.len());
    }

    #[test]
    fn no_directory_has_no_entries() {
        assert_eq!(DirSearch::new(None).seek(b"a"), Sought::Entry(None));
    }

    #[test]
    fn nodes_without_end_are_refused() {
        let id = ChunkId([1; 32]);
        let child = IndexChild {
            first_name: Vec::new(),
            entries: 1,
            id,
        };
        let mut search = DirSearch::new(Some(id));
        for level in 1..=NODE_DEPTH_MAX {
            assert_eq!(search.seek(b"a"), Sought::Node(id));
            let opened = search.opened(DirNode::Index(vec![child.clone()]));
            assert_eq!(opened.is_ok(), level < NODE_DEPTH_MAX, "level {level}");
        }
    }
}
