//! A file's chunks in order, through its tree of nodes where it has one.

use crate::{BlobOpener, RestoreError, Result};
use holdfast_core::{ChunkId, limits::NODE_DEPTH_MAX};
use holdfast_repo::{ChunkRef, Content, FileNode, Node};

/// Nodes that are asked for at once: each lists up to a gibibyte of content, and is held meanwhile.
const NODES_AHEAD: usize = 8;

/// What a visitor of a file's chunks does.
pub(crate) trait ChunkVisitor {
    /// The next chunk and where its content begins in the file.
    fn chunk(&mut self, offset: u64, chunk: ChunkRef) -> Result<()>;

    /// Whether to look into a node; only who does not need offsets may say no.
    fn descend(&mut self, _node: &ChunkId) -> bool {
        true
    }

    /// A node that cannot be read. By default that is the file's end.
    fn damaged(&mut self, _node: ChunkId, error: RestoreError) -> Result<()> {
        Err(error)
    }
}

impl<F: FnMut(u64, ChunkRef) -> Result<()>> ChunkVisitor for F {
    fn chunk(&mut self, offset: u64, chunk: ChunkRef) -> Result<()> {
        self(offset, chunk)
    }
}

/// Visits all chunks in order. `size` is what the file's entry says; content beyond it is an error,
/// and so is less, unless nodes were passed over.
pub(crate) fn visit(
    opener: &mut BlobOpener,
    content: &Content,
    size: u64,
    visitor: &mut impl ChunkVisitor,
) -> Result<()> {
    let mut walk = Walk {
        offset: 0,
        size,
        complete: true,
        visitor,
    };
    match content {
        Content::Inline(chunks) => walk.chunks(chunks)?,
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

impl<V: ChunkVisitor> Walk<'_, V> {
    fn chunks(&mut self, chunks: &[ChunkRef]) -> Result<()> {
        for chunk in chunks {
            self.visitor.chunk(self.offset, *chunk)?;
            self.offset += u64::from(chunk.len);
            if self.offset > self.size {
                return Err(RestoreError::BadTree("a file's chunks are longer than the file"));
            }
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
                    Ok(Node::File(FileNode::Leaf(chunks))) => self.chunks(&chunks)?,
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
