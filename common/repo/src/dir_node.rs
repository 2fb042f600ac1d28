//! Directories as trees of bounded nodes, cut by the names in them, so that one changed entry
//! rewrites one leaf and the path above it, however large the directory is.

use crate::{
    blob::{Kind, Link, Links},
    codec::{Reader, put_bytes, put_varint},
    entry::{Entry, EntryKind, next_link},
    error::{RepoError, malformed},
    keys::VaultKeys,
    node::{INDEX, LEAF, NodeDraft, put_head, read_head},
};
use holdfast_core::{
    ChunkId,
    limits::{ATTRIBUTES_LEN_MAX, FILE_NAME_MAX, NODE_DEPTH_MAX, NODE_LINKS_MAX},
};
use std::ops::Deref;

/// A leaf may be cut from here on …
const LEAF_MIN: usize = 128;
/// … at one name in so many …
const LEAF_CUT_ONE_IN: u64 = 256;
/// … and must be here. With 8 chunks a file, links stay within their bound too.
const LEAF_MAX: usize = 1000;
/// A leaf is cut before its links or its payload pass these.
const LEAF_LINKS_MAX: usize = 1024;
const LEAF_PAYLOAD_MAX: usize = 512 * 1024;

/// A child of an index node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexChild {
    /// The first name in it: a look-up goes to the last child whose first name is not greater.
    pub first_name: Vec<u8>,
    /// Entries in and below it.
    pub entries: u64,
    /// The node.
    pub id: ChunkId,
}

/// A decoded node of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DirNode {
    /// Entries, sorted by name.
    Leaf(Vec<Entry>),
    /// Further nodes, sorted by their first names.
    Index(Vec<IndexChild>),
}

impl DirNode {
    pub(crate) fn decode(links: &Links, payload: &[u8]) -> Result<Self, RepoError> {
        let mut reader = Reader::new("a directory node", payload);
        let (shape, count) = read_head(&mut reader)?;
        let mut links = links.0.iter();
        let node = if shape == LEAF {
            let mut entries: Vec<Entry> = Vec::with_capacity(count);
            for _ in 0..count {
                let entry = Entry::decode(&mut reader, &mut links, false)?;
                if entries.last().is_some_and(|last| last.name >= entry.name) {
                    return Err(reader.bad("its names are not in order"));
                }
                entries.push(entry);
            }
            Self::Leaf(entries)
        } else {
            let mut children: Vec<IndexChild> = Vec::with_capacity(count);
            for _ in 0..count {
                let first_name = reader.bytes(FILE_NAME_MAX)?.to_vec();
                let entries = reader.varint()?;
                if children.last().is_some_and(|last| last.first_name >= first_name) {
                    return Err(reader.bad("its names are not in order"));
                }
                children.push(IndexChild {
                    first_name,
                    entries,
                    id: next_link(&reader, &mut links, true)?,
                });
            }
            if children.is_empty() {
                return Err(reader.bad("an index without children"));
            }
            Self::Index(children)
        };
        reader.end()?;
        if links.next().is_some() {
            return Err(malformed("a directory node", "it has links that it does not use"));
        }
        Ok(node)
    }
}

/// Builds a directory's nodes from its entries, pushed in the order of their names. Keys are borrowed, or
/// shared by builders that outlive the call.
#[derive(Debug)]
pub struct DirBuilder<K> {
    keys: K,
    leaf: Vec<u8>,
    leaf_links: Vec<Link>,
    leaf_entries: usize,
    leaf_first: Vec<u8>,
    last_name: Option<Vec<u8>>,
    leaves: Vec<IndexChild>,
    nodes: Vec<NodeDraft>,
    files: u64,
    bytes: u64,
}

/// A directory that was built.
#[derive(Debug)]
pub struct BuiltDir {
    /// The top node's id.
    pub id: ChunkId,
    /// Regular files in and below it.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Nodes, children before parents; those taken with [`DirBuilder::take_nodes`] are not among them.
    pub nodes: Vec<NodeDraft>,
}

impl<K: Deref<Target = VaultKeys>> DirBuilder<K> {
    /// An empty directory.
    #[must_use]
    pub fn new(keys: K) -> Self {
        Self {
            keys,
            leaf: Vec::new(),
            leaf_links: Vec::new(),
            leaf_entries: 0,
            leaf_first: Vec::new(),
            last_name: None,
            leaves: Vec::new(),
            nodes: Vec::new(),
            files: 0,
            bytes: 0,
        }
    }

    /// Adds the next entry.
    ///
    /// # Errors
    /// `Malformed` when names are not strictly ascending or not safe, or when the entry itself is one that
    /// no reader would accept (a file's size that is not the sum of its inline chunks, a mode beyond
    /// permissions).
    pub fn push(&mut self, entry: &Entry) -> Result<(), RepoError> {
        if !Entry::is_safe_name(&entry.name)
            || self.last_name.as_ref().is_some_and(|last| *last >= entry.name)
        {
            return Err(malformed("a directory", "names are not in order or not safe"));
        }
        entry.check()?;
        if self.leaf_entries >= LEAF_MAX
            || self.leaf_links.len() + crate::entry::INLINE_CHUNKS_MAX > LEAF_LINKS_MAX
            || (self.leaf_entries >= LEAF_MIN && is_cut_name(&entry.name))
        {
            self.end_leaf();
        }
        if self.leaf_entries == 0 {
            self.leaf_first.clone_from(&entry.name);
        }
        let (at, links_at) = (self.leaf.len(), self.leaf_links.len());
        entry.encode_into(&mut self.leaf, &mut self.leaf_links);
        if self.leaf_entries > 0 && self.leaf.len() > LEAF_PAYLOAD_MAX {
            // Extended attributes can be long: the entry begins a leaf of its own.
            let (entry_bytes, entry_links) = (self.leaf.split_off(at), self.leaf_links.split_off(links_at));
            self.end_leaf();
            (self.leaf, self.leaf_links) = (entry_bytes, entry_links);
            self.leaf_first.clone_from(&entry.name);
        }
        self.leaf_entries += 1;
        match &entry.kind {
            EntryKind::File { size, .. } => {
                self.files = self.files.saturating_add(1);
                // Sparse files can claim more than all disks hold.
                self.bytes = self.bytes.saturating_add(*size);
            }
            EntryKind::Dir { files, bytes, .. } => {
                self.files = self.files.saturating_add(*files);
                self.bytes = self.bytes.saturating_add(*bytes);
            }
            _ => {}
        }
        match &mut self.last_name {
            Some(last) => last.clone_from(&entry.name),
            None => self.last_name = Some(entry.name.clone()),
        }
        Ok(())
    }

    /// Nodes that are finished already, so that a huge directory need not be held whole.
    pub fn take_nodes(&mut self) -> Vec<NodeDraft> {
        std::mem::take(&mut self.nodes)
    }

    /// Ends the directory.
    ///
    /// # Errors
    /// `TooLarge` beyond the depth bound.
    pub fn finish(mut self) -> Result<BuiltDir, RepoError> {
        if self.leaf_entries > 0 || self.leaves.is_empty() {
            self.end_leaf();
        }
        let mut level = std::mem::take(&mut self.leaves);
        for _ in 0..NODE_DEPTH_MAX {
            if let [top] = level.as_slice() {
                let id = top.id;
                return Ok(BuiltDir {
                    id,
                    files: self.files,
                    bytes: self.bytes,
                    nodes: self.nodes,
                });
            }
            level = self.index_level(&level);
        }
        Err(RepoError::TooLarge {
            what: "a directory",
            limit: NODE_DEPTH_MAX,
        })
    }

    fn end_leaf(&mut self) {
        let mut payload = Vec::with_capacity(self.leaf.len() + 8);
        put_head(&mut payload, LEAF, self.leaf_entries);
        payload.append(&mut self.leaf);
        let links = Links(std::mem::take(&mut self.leaf_links));
        let draft = NodeDraft::new(&self.keys, Kind::Dir, links, payload);
        self.leaves.push(IndexChild {
            first_name: std::mem::take(&mut self.leaf_first),
            entries: self.leaf_entries as u64,
            id: draft.id,
        });
        self.leaf_entries = 0;
        self.nodes.push(draft);
    }

    /// One level of index nodes over `children`, cut like leaves are.
    fn index_level(&mut self, children: &[IndexChild]) -> Vec<IndexChild> {
        let mut level = Vec::new();
        let mut start = 0;
        for at in 1..=children.len() {
            let len = at - start;
            let ends = at == children.len()
                || len >= LEAF_MAX
                || (len >= LEAF_MIN && is_cut_name(&children[at].first_name));
            if ends {
                level.push(self.index_node(&children[start..at]));
                start = at;
            }
        }
        level
    }

    fn index_node(&mut self, children: &[IndexChild]) -> IndexChild {
        let mut payload = Vec::new();
        put_head(&mut payload, INDEX, children.len());
        for child in children {
            put_bytes(&mut payload, &child.first_name);
            put_varint(&mut payload, child.entries);
        }
        let links = children
            .iter()
            .map(|child| Link {
                id: child.id,
                is_node: true,
            })
            .collect();
        let draft = NodeDraft::new(&self.keys, Kind::Dir, Links(links), payload);
        let parent = IndexChild {
            first_name: children[0].first_name.clone(),
            entries: children.iter().map(|child| child.entries).sum(),
            id: draft.id,
        };
        self.nodes.push(draft);
        parent
    }
}

const _: () = assert!(LEAF_PAYLOAD_MAX >= ATTRIBUTES_LEN_MAX + 16 * 1024);
const _: () = assert!(LEAF_LINKS_MAX <= NODE_LINKS_MAX && LEAF_MAX <= NODE_LINKS_MAX);

/// Whether a node begins at this name. Depends on the name alone: entries that change, come or go
/// leave the other boundaries where they are.
fn is_cut_name(name: &[u8]) -> bool {
    // FNV-1a, then mixed: cheap, and nothing secret hangs on it (the name is inside the sealed part).
    let hash = name.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    (hash ^ (hash >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32 & (LEAF_CUT_ONE_IN - 1) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attributes::Attributes;
    use crate::entry::{ChunkRef, Content, Strategy, Timestamp};
    use holdfast_core::VaultId;
    use std::collections::HashMap;

    fn keys() -> VaultKeys {
        VaultKeys::from_secrets(VaultId([1; 16]), [2; 32], [3; 32])
    }

    fn file(i: u32) -> Entry {
        Entry {
            name: format!("file-{i:07}").into_bytes(),
            mode: 0o644,
            uid: 1000,
            gid: 100,
            mtime: Timestamp { secs: -5, nanos: i },
            ctime: Timestamp {
                secs: 1_700_000_000,
                nanos: 0,
            },
            inode: 77 + u64::from(i),
            changed_while_read: i.is_multiple_of(7),
            is_sparse: false,
            attributes: None,
            kind: EntryKind::File {
                size: 10,
                strategy: Strategy::ContentDefined,
                content: Content::Inline(vec![ChunkRef {
                    id: ChunkId([i as u8; 32]),
                    len: 10,
                }]),
            },
        }
    }

    fn build(entries: &[Entry]) -> BuiltDir {
        let keys = keys();
        let mut builder = DirBuilder::new(&keys);
        for entry in entries {
            builder.push(entry).unwrap();
        }
        builder.finish().unwrap()
    }

    fn collect(nodes: &HashMap<ChunkId, NodeDraft>, id: ChunkId, out: &mut Vec<Entry>) {
        let draft = &nodes[&id];
        match DirNode::decode(&draft.links, &draft.payload).unwrap() {
            DirNode::Leaf(entries) => out.extend(entries),
            DirNode::Index(children) => children.iter().for_each(|child| collect(nodes, child.id, out)),
        }
    }

    #[test]
    fn any_number_of_entries_comes_back() {
        for count in [0, 1, 127, 128, 1000, 30_000] {
            let entries: Vec<_> = (0..count).map(file).collect();
            let built = build(&entries);
            assert_eq!(built.files, u64::from(count));
            assert_eq!(built.bytes, u64::from(count) * 10);
            let nodes = built.nodes.into_iter().map(|node| (node.id, node)).collect();
            let mut back = Vec::new();
            collect(&nodes, built.id, &mut back);
            assert_eq!(back, entries);
        }
    }

    #[test]
    fn one_change_in_a_large_directory_rewrites_a_handful_of_nodes() {
        let mut entries: Vec<_> = (0..50_000).map(file).collect();
        let before: HashMap<_, _> = build(&entries)
            .nodes
            .into_iter()
            .map(|node| (node.id, node))
            .collect();
        entries[25_000].mtime.secs = 9;
        entries.remove(40_000);
        let after = build(&entries).nodes;
        let new = after.iter().filter(|node| !before.contains_key(&node.id)).count();
        assert!(new <= 6, "{new} of {}", after.len());
    }

    #[test]
    fn long_attributes_leave_every_leaf_within_its_bound() {
        let with_attributes = |i: u32| {
            let value = vec![i as u8; (i as usize * 7919) % 64_000];
            let xattrs = (0..i % 4).map(|n| (format!("user.{n}").into_bytes(), value.clone()));
            let attributes = Attributes {
                xattrs: xattrs.collect(),
                ..Attributes::default()
            };
            Entry {
                attributes: attributes.boxed(),
                ..file(i)
            }
        };
        let entries: Vec<_> = (0..300).map(with_attributes).collect();
        let built = build(&entries);
        assert!(built.nodes.len() > 20);
        assert!(
            built
                .nodes
                .iter()
                .all(|node| node.payload.len() <= LEAF_PAYLOAD_MAX + 16)
        );
        let nodes = built.nodes.into_iter().map(|node| (node.id, node)).collect();
        let mut back = Vec::new();
        collect(&nodes, built.id, &mut back);
        assert_eq!(back, entries);
    }

    #[test]
    fn damaged_payloads_are_errors() {
        let built = build(&(0..3).map(file).collect::<Vec<_>>());
        let draft = &built.nodes[0];
        for len in 0..draft.payload.len() {
            assert!(
                DirNode::decode(&draft.links, &draft.payload[..len]).is_err(),
                "{len}"
            );
        }
        assert!(DirNode::decode(&Links(draft.links.0[1..].to_vec()), &draft.payload).is_err());
        let mut more = draft.links.clone();
        more.0.push(more.0[0]);
        assert!(DirNode::decode(&more, &draft.payload).is_err());
    }

    #[test]
    fn unsafe_names_are_refused_both_ways() {
        for name in [&b"."[..], b"..", b"a/b", b"", b"a\0b", &[b'x'; 256]] {
            let entry = Entry {
                name: name.to_vec(),
                ..file(1)
            };
            assert!(DirBuilder::new(&keys()).push(&entry).is_err());
            let (mut payload, mut links) = (Vec::new(), Vec::new());
            put_head(&mut payload, LEAF, 1);
            entry.encode_into(&mut payload, &mut links);
            assert!(DirNode::decode(&Links(links), &payload).is_err(), "{name:?}");
        }
    }
}
