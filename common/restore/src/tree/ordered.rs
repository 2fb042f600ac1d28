//! The walk in the order of names, a little ahead of itself among siblings.

use super::TreeEntry;
use crate::{BlobOpener, Fetched, RestoreError, Result, path::join_path};
use holdfast_core::{
    ChunkId,
    limits::{DIR_DEPTH_MAX, NODE_DEPTH_MAX},
};
use holdfast_repo::{DirNode, Entry, EntryKind, Node};
use std::{collections::HashMap, ops::ControlFlow, vec};

/// Siblings whose nodes are asked for together.
const AHEAD: usize = 32;

/// Calls `each` for the entries of one directory, in order.
pub(crate) fn entries(
    opener: &mut BlobOpener,
    node: ChunkId,
    level: usize,
    each: &mut dyn FnMut(Entry),
) -> Result<()> {
    if level > NODE_DEPTH_MAX {
        return Err(RestoreError::BadTree("a directory's nodes are nested too deeply"));
    }
    let fetched = opener.fetch([node])?;
    match opener.open_node(node, fetched.get(&node))? {
        Node::Dir(DirNode::Leaf(found)) => found.into_iter().for_each(each),
        Node::Dir(DirNode::Index(children)) => {
            for child in children {
                entries(opener, child.id, level + 1, each)?;
            }
        }
        Node::File(_) => {
            return Err(RestoreError::BadTree(
                "a file's node stands where a directory belongs",
            ));
        }
    }
    Ok(())
}

/// What is left to visit of one node.
struct Frame {
    path: Vec<u8>,
    rest: Rest,
    /// Nodes of the next siblings.
    ahead: HashMap<ChunkId, Fetched>,
    level: usize,
    depth: usize,
}

enum Rest {
    Entries(vec::IntoIter<Entry>),
    Nodes(vec::IntoIter<ChunkId>),
}

/// Visits `start` and everything below it.
pub(super) fn walk(
    opener: &mut BlobOpener,
    start: TreeEntry,
    visit: &mut dyn FnMut(TreeEntry) -> ControlFlow<()>,
) -> Result<ControlFlow<()>> {
    let (path, kind) = (start.path.clone(), start.entry.kind.clone());
    if visit(start).is_break() {
        return Ok(ControlFlow::Break(()));
    }
    let EntryKind::Dir { node, .. } = kind else {
        return Ok(ControlFlow::Continue(()));
    };
    let only = Rest::Nodes(vec![node].into_iter());
    let mut stack = vec![Frame {
        path,
        rest: only,
        ahead: HashMap::new(),
        level: 0,
        depth: 0,
    }];
    while let Some(frame) = stack.last_mut() {
        let (path, node, level, depth) = match &mut frame.rest {
            Rest::Entries(rest) => {
                let Some(entry) = rest.next() else {
                    stack.pop();
                    continue;
                };
                let path = join_path(&frame.path, &entry.name);
                let node = node_of(&entry);
                if let Some(node) = node.filter(|node| !frame.ahead.contains_key(node)) {
                    let siblings = rest.as_slice().iter().filter_map(node_of).take(AHEAD - 1);
                    frame.ahead = opener.fetch(std::iter::once(node).chain(siblings))?;
                }
                let depth = frame.depth + 1;
                if visit(TreeEntry {
                    path: path.clone(),
                    entry,
                })
                .is_break()
                {
                    return Ok(ControlFlow::Break(()));
                }
                match node {
                    Some(node) => (path, node, 1, depth),
                    None => continue,
                }
            }
            Rest::Nodes(rest) => {
                let Some(node) = rest.next() else {
                    stack.pop();
                    continue;
                };
                if !frame.ahead.contains_key(&node) {
                    let siblings = rest.as_slice().iter().copied().take(AHEAD - 1);
                    frame.ahead = opener.fetch(std::iter::once(node).chain(siblings))?;
                }
                (frame.path.clone(), node, frame.level + 1, frame.depth)
            }
        };
        if level > NODE_DEPTH_MAX || depth > DIR_DEPTH_MAX {
            return Err(RestoreError::BadTree("directories are nested too deeply").at(&path));
        }
        // Kept when the same node is still to come: equal directories share theirs.
        let fetched = frame.ahead.get(&node).cloned();
        let opened = opener
            .open_node(node, fetched.as_ref())
            .map_err(|error| error.at(&path))?;
        let rest = match opened {
            Node::Dir(DirNode::Leaf(entries)) => Rest::Entries(entries.into_iter()),
            Node::Dir(DirNode::Index(children)) => Rest::Nodes(
                children
                    .into_iter()
                    .map(|child| child.id)
                    .collect::<Vec<_>>()
                    .into_iter(),
            ),
            Node::File(_) => {
                return Err(
                    RestoreError::BadTree("a file's node stands where a directory belongs").at(&path),
                );
            }
        };
        stack.push(Frame {
            path,
            rest,
            ahead: HashMap::new(),
            level,
            depth,
        });
    }
    Ok(ControlFlow::Continue(()))
}

fn node_of(entry: &Entry) -> Option<ChunkId> {
    match entry.kind {
        EntryKind::Dir { node, .. } => Some(node),
        _ => None,
    }
}
