//! The previous version of a large file, read alongside the new one: only the segments near the place
//! that is being read are in memory.

use super::{Shared, store_chunk::Sink};
use crate::error::{AgentError, Result};
use holdfast_core::{ChunkId, limits};
use holdfast_repo::{Content, FileNode, Node, Segment};
use std::{collections::VecDeque, sync::Arc};

/// Segments behind the place that is read which are kept, as content may have moved.
const KEPT_BEHIND: usize = 16;

/// A segment of the previous version and where it stood.
#[derive(Debug, Clone)]
pub(super) struct Placed {
    pub offset: u64,
    pub segment: Arc<Segment>,
}

impl Placed {
    fn end(&self) -> u64 {
        self.offset.saturating_add(self.segment.len())
    }
}

/// Walks the previous version forwards.
pub(super) struct OldFile {
    /// Nodes not opened yet, the next on top, with their depth.
    nodes: Vec<(ChunkId, usize)>,
    near: VecDeque<Placed>,
    loaded: u64,
}

impl OldFile {
    /// From where the previous version's content is.
    pub fn new(content: &Content) -> Self {
        let mut old = Self {
            nodes: Vec::new(),
            near: VecDeque::new(),
            loaded: 0,
        };
        match content {
            Content::Inline(chunks) => chunks.iter().for_each(|chunk| old.add(Segment::Whole(*chunk))),
            Content::Node(top) => old.nodes.push((*top, 0)),
        }
        old
    }

    fn add(&mut self, segment: Segment) {
        let offset = self.loaded;
        self.loaded = offset.saturating_add(segment.len());
        let segment = Arc::new(segment);
        self.near.push_back(Placed { offset, segment });
    }

    /// The segments that hold something from `from` up to `to`. Places are asked for in about the order
    /// of the file; what lies far behind is forgotten.
    ///
    /// # Errors
    /// When the controllers cannot be asked. A node that cannot be read ends the old version there: it
    /// is a help, not a need.
    pub fn overlapping(
        &mut self,
        shared: &Shared,
        sink: &mut Sink,
        from: u64,
        to: u64,
    ) -> Result<Vec<Placed>> {
        while self.loaded < to && !self.nodes.is_empty() {
            self.load(shared, sink)?;
        }
        let behind = self.near.partition_point(|placed| placed.end() <= from);
        self.near.drain(..behind.saturating_sub(KEPT_BEHIND));
        let near = self.near.iter().filter(|placed| placed.end() > from);
        Ok(near.take_while(|placed| placed.offset < to).cloned().collect())
    }

    fn load(&mut self, shared: &Shared, sink: &mut Sink) -> Result<()> {
        let Some((id, depth)) = self.nodes.pop() else {
            return Ok(());
        };
        match sink.node(shared, id) {
            Ok(Node::File(FileNode::Leaf(segments))) => {
                segments.into_iter().for_each(|segment| self.add(segment))
            }
            Ok(Node::File(FileNode::Index(children))) if depth < limits::NODE_DEPTH_MAX => {
                let children = children.iter().rev();
                self.nodes.extend(children.map(|(child, _)| (*child, depth + 1)));
            }
            Err(error @ (AgentError::Remote(_) | AgentError::Interrupted(_))) => return Err(error),
            _ => {
                tracing::warn!(node = %id, "a part of a file's previous version cannot be read; what follows is compared with nothing");
                self.nodes.clear();
            }
        }
        Ok(())
    }
}
