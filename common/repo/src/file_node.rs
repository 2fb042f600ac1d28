//! Files of many chunks as trees of bounded nodes, cut by the chunks in them.

use crate::{
    blob::{Kind, Link, Links},
    codec::{Reader, put_varint},
    entry::{ChunkRef, Content, INLINE_CHUNKS_MAX, next_link},
    error::{RepoError, malformed},
    keys::VaultKeys,
    node::{INDEX, LEAF, NodeDraft, put_head, read_head},
    segment::{self, Encoder, Segment},
};
use holdfast_core::{ChunkId, limits::NODE_DEPTH_MAX};

/// As for directories: where a node may, and must, be cut.
const NODE_MIN: usize = 256;
const NODE_CUT_ONE_IN: u32 = 512;
const NODE_MAX: usize = 1024;
/// Longest payload of a leaf that a writer makes.
const LEAF_BYTES_MAX: usize = 512 * 1024;

/// The only kind of entry in an index node.
const CHILD: u8 = 0;

/// A decoded node of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileNode {
    /// Segments in the order of the file.
    Leaf(Vec<Segment>),
    /// Further nodes, each with the bytes of content below it.
    Index(Vec<(ChunkId, u64)>),
}

impl FileNode {
    pub(crate) fn decode(links: &Links, payload: &[u8]) -> Result<Self, RepoError> {
        let mut reader = Reader::new("a file node", payload);
        let (shape, count) = read_head(&mut reader)?;
        let mut links = links.0.iter();
        let node = if shape == LEAF {
            let (mut segments, mut used) = (Vec::with_capacity(count), Vec::new());
            for _ in 0..count {
                segments.push(segment::decode(&mut reader, &mut links, &mut used)?);
            }
            Self::Leaf(segments)
        } else {
            let mut children = Vec::with_capacity(count);
            for _ in 0..count {
                if reader.u8()? != CHILD {
                    return Err(reader.bad("an index holds something else than nodes"));
                }
                let bytes = reader.varint()?;
                children.push((next_link(&reader, &mut links, true)?, bytes));
            }
            Self::Index(children)
        };
        reader.end()?;
        if links.next().is_some() || count == 0 {
            return Err(malformed("a file node", "its links do not fit its entries"));
        }
        Ok(node)
    }
}

/// Collects a file's segments in order and makes its content reference.
#[derive(Debug, Default)]
pub struct FileBuilder {
    leaf: Leaf,
    /// The chunks, as long as they could stand in the directory entry.
    inline: Vec<ChunkRef>,
    needs_node: bool,
    children: Vec<(ChunkId, u64)>,
    nodes: Vec<NodeDraft>,
}

#[derive(Debug, Default)]
struct Leaf {
    encoder: Encoder,
    count: usize,
    bytes: u64,
}

impl FileBuilder {
    /// Adds the next segment.
    ///
    /// # Errors
    /// `Malformed` for a segment that no reader would take.
    pub fn push(&mut self, keys: &VaultKeys, segment: impl Into<Segment>) -> Result<(), RepoError> {
        let segment = segment.into();
        if self.is_full_for(&segment) {
            self.end_leaf(keys);
        }
        match &segment {
            Segment::Whole(chunk) if !self.needs_node && self.inline.len() < INLINE_CHUNKS_MAX => {
                self.inline.push(*chunk);
            }
            _ => self.needs_node = true,
        }
        self.leaf.encoder.push(&segment)?;
        self.leaf.count += 1;
        self.leaf.bytes = self.leaf.bytes.saturating_add(segment.len());
        Ok(())
    }

    fn is_full_for(&self, segment: &Segment) -> bool {
        let Leaf { encoder, count, .. } = &self.leaf;
        *count >= NODE_MAX
            || (*count >= NODE_MIN && segment.hash().is_some_and(|hash| is_cut(&hash)))
            || *count > 0 && encoder.links.len() + encoder.links_for(segment) > NODE_MAX
            || encoder.body.len() > LEAF_BYTES_MAX
    }

    /// Nodes that are finished already.
    pub fn take_nodes(&mut self) -> Vec<NodeDraft> {
        std::mem::take(&mut self.nodes)
    }

    /// Ends the file: its content, and the nodes not taken yet, children first.
    ///
    /// # Errors
    /// `TooLarge` beyond the depth bound.
    pub fn finish(mut self, keys: &VaultKeys) -> Result<(Content, Vec<NodeDraft>), RepoError> {
        if !self.needs_node {
            return Ok((Content::Inline(self.inline), self.nodes));
        }
        if self.leaf.count > 0 {
            self.end_leaf(keys);
        }
        for _ in 0..NODE_DEPTH_MAX {
            if let [(top, _)] = self.children.as_slice() {
                return Ok((Content::Node(*top), self.nodes));
            }
            let level = std::mem::take(&mut self.children);
            self.index_level(keys, &level);
        }
        Err(RepoError::TooLarge {
            what: "a file",
            limit: NODE_DEPTH_MAX,
        })
    }

    fn end_leaf(&mut self, keys: &VaultKeys) {
        let Leaf {
            encoder,
            count,
            bytes,
        } = std::mem::take(&mut self.leaf);
        let mut payload = Vec::with_capacity(encoder.body.len() + 8);
        put_head(&mut payload, LEAF, count);
        payload.extend_from_slice(&encoder.body);
        let draft = NodeDraft::new(keys, Kind::File, Links(encoder.links), payload);
        self.children.push((draft.id, bytes));
        self.nodes.push(draft);
    }

    fn index_level(&mut self, keys: &VaultKeys, level: &[(ChunkId, u64)]) {
        let mut start = 0;
        for at in 1..=level.len() {
            let len = at - start;
            if at < level.len() && len < NODE_MAX && !(len >= NODE_MIN && is_cut(&level[at].0)) {
                continue;
            }
            let group = &level[start..at];
            let mut payload = Vec::new();
            put_head(&mut payload, INDEX, group.len());
            for (_, bytes) in group {
                payload.push(CHILD);
                put_varint(&mut payload, *bytes);
            }
            let links = group
                .iter()
                .map(|(id, _)| Link {
                    id: *id,
                    is_node: true,
                })
                .collect();
            let draft = NodeDraft::new(keys, Kind::File, Links(links), payload);
            let bytes = group
                .iter()
                .fold(0_u64, |sum, (_, bytes)| sum.saturating_add(*bytes));
            self.children.push((draft.id, bytes));
            self.nodes.push(draft);
            start = at;
        }
    }
}

/// Whether a node begins at this chunk; ids are hashes, so their bits serve as they are.
fn is_cut(id: &ChunkId) -> bool {
    let [a, b, c, d, ..] = *id.as_bytes();
    u32::from_le_bytes([a, b, c, d]).is_multiple_of(NODE_CUT_ONE_IN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_core::VaultId;
    use std::collections::HashMap;

    fn keys() -> VaultKeys {
        VaultKeys::from_secrets(VaultId([1; 16]), [2; 32], [3; 32])
    }

    fn chunk(i: u32) -> ChunkRef {
        ChunkRef {
            id: ChunkId(*blake3::hash(&i.to_le_bytes()).as_bytes()),
            len: 1 + i % 1000,
        }
    }

    fn build(count: u32, first: u32) -> (Content, HashMap<ChunkId, NodeDraft>) {
        let keys = keys();
        let mut builder = FileBuilder::default();
        let mut nodes = Vec::new();
        builder.push(&keys, chunk(first)).unwrap();
        for i in 1..count {
            builder.push(&keys, chunk(i)).unwrap();
            nodes.extend(builder.take_nodes());
        }
        let (content, rest) = builder.finish(&keys).unwrap();
        nodes.extend(rest);
        (content, nodes.into_iter().map(|node| (node.id, node)).collect())
    }

    fn collect(nodes: &HashMap<ChunkId, NodeDraft>, id: ChunkId, out: &mut Vec<Segment>) {
        let draft = &nodes[&id];
        match FileNode::decode(&draft.links, &draft.payload).unwrap() {
            FileNode::Leaf(chunks) => out.extend(chunks),
            FileNode::Index(children) => children.iter().for_each(|(child, _)| collect(nodes, *child, out)),
        }
    }

    #[test]
    fn few_chunks_stand_inline_and_many_come_back() {
        assert!(matches!(build(8, 0).0, Content::Inline(chunks) if chunks.len() == 8));
        for count in [9, 256, 5000, 600_000] {
            let (Content::Node(top), nodes) = build(count, 0) else {
                panic!("inline")
            };
            let mut back = Vec::new();
            collect(&nodes, top, &mut back);
            assert_eq!(
                back,
                (0..count).map(|i| Segment::Whole(chunk(i))).collect::<Vec<_>>()
            );
        }
    }

    #[test]
    fn one_changed_chunk_rewrites_one_path() {
        let (_, before) = build(100_000, 0);
        let (_, after) = build(100_000, 123_456_789);
        let new = after.keys().filter(|id| !before.contains_key(id)).count();
        assert!(new <= 3, "{new}");
    }
}
