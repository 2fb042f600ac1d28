//! A file's segments in order, through its tree of nodes where it has one.

use crate::{BlobOpener, RestoreError, Result};
use holdfast_core::{ChunkId, limits::NODE_DEPTH_MAX};
use holdfast_repo::{Content, FileNode, Node, Segment};

/// Nodes that are asked for at once: each lists up to a gibibyte of content, and is held meanwhile.
const NODES_AHEAD: usize = 8;

/// What a visitor of a file's segments does.
pub(crate) trait SegmentVisitor {
    /// The next segment and where its content begins in the file.
    fn segment(&mut self, offset: u64, segment: Segment) -> Result<()>;

    /// Whether to look into a node; only who does not need offsets may say no.
    fn descend(&mut self, _node: &ChunkId) -> bool {
        true
    }

    /// A node that cannot be read. By default that is the file's end.
    fn damaged(&mut self, _node: ChunkId, error: RestoreError) -> Result<()> {
        Err(error)
    }
}

impl<F: FnMut(u64, Segment) -> Result<()>> SegmentVisitor for F {
    fn segment(&mut self, offset: u64, segment: Segment) -> Result<()> {
        self(offset, segment)
    }
}

/// Visits all segments in order. `size` is what the file's entry says; content beyond it is an error,
/// and so is less, unless nodes were passed over.
pub(crate) fn visit(
    opener: &mut BlobOpener,
    content: &Content,
    size: u64,
    visitor: &mut impl SegmentVisitor,
) -> Result<()> {
    let mut walk = Walk {
        offset: 0,
        size,
        complete: true,
        visitor,
    };
    match content {
        Content::Inline(chunks) => walk.segments(chunks.iter().copied().map(Segment::Whole))?,
        Content::Node(top) => walk.nodes(opener, &[*top], 1)?,
    }
    if walk.complete && walk.offset != size {
        return Err(RestoreError::BadTree(
            "a file's chunks are not as long as the file",
        ));
    }
    Ok(())
}

struct Walk<'v, V> {
    offset: u64,
    size: u64,
    complete: bool,
    visitor: &'v mut V,
}

impl<V: SegmentVisitor> Walk<'_, V> {
    fn segments(&mut self, segments: impl IntoIterator<Item = Segment>) -> Result<()> {
        for segment in segments {
            let end = self.offset.saturating_add(segment.len());
            if end > self.size {
                return Err(RestoreError::BadTree("a file's chunks are longer than the file"));
            }
            self.visitor.segment(self.offset, segment)?;
            self.offset = end;
        }
        Ok(())
    }

    fn nodes(&mut self, opener: &mut BlobOpener, ids: &[ChunkId], depth: usize) -> Result<()> {
        if depth > NODE_DEPTH_MAX {
            return Err(RestoreError::BadTree("a file's nodes are nested too deeply"));
        }
        for group in ids.chunks(NODES_AHEAD) {
            let wanted: Vec<ChunkId> = group
                .iter()
                .copied()
                .filter(|id| self.visitor.descend(id))
                .collect();
            self.complete &= wanted.len() == group.len();
            let fetched = opener.fetch(wanted.iter().copied())?;
            for id in wanted {
                match opener.open_node(id, fetched.get(&id)) {
                    Ok(Node::File(FileNode::Leaf(segments))) => self.segments(segments)?,
                    Ok(Node::File(FileNode::Index(children))) => {
                        let ids: Vec<ChunkId> = children.into_iter().map(|(id, _)| id).collect();
                        self.nodes(opener, &ids, depth + 1)?;
                    }
                    Ok(Node::Dir(_)) => {
                        return Err(RestoreError::BadTree(
                            "a directory stands where a file's node belongs",
                        ));
                    }
                    Err(error) if error.is_local() => {
                        self.complete = false;
                        self.visitor.damaged(id, error)?;
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }
}
