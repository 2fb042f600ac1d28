//! The fast walk over directories: many nodes are asked for at once, in an order that is nearly that of
//! the tree. What must come in order is walked by `tree`.

use crate::{BlobOpener, RestoreError, Result, bounds::NODES_PER_FETCH, wanted::Wanted};
use holdfast_core::{
    ChunkId,
    limits::{DIR_DEPTH_MAX, NODE_DEPTH_MAX},
};
use holdfast_repo::{DirNode, Entry, EntryKind, IndexChild, Node};

/// Which child of an index node can hold a name.
pub(crate) fn child_of(children: &[IndexChild], name: &[u8]) -> Option<usize> {
    children
        .partition_point(|child| child.first_name[..] <= *name)
        .checked_sub(1)
}

/// What is done with the entries that a walk meets.
pub(crate) trait Visitor {
    /// A directory as the visitor knows it.
    type Dir: Clone;

    /// Whether a directory is looked into at all; asked before anything of it is read.
    fn wants(&mut self, _above: &Self::Dir, _entry: &Entry) -> Result<bool> {
        Ok(true)
    }

    /// A directory below another one; `None` passes it over.
    fn enter(&mut self, above: &Self::Dir, entry: &Entry) -> Result<Option<Self::Dir>>;

    /// Anything else in a directory. Gets the walk's opener, for the nodes of files.
    fn entry(&mut self, opener: &mut BlobOpener, dir: &Self::Dir, entry: Entry) -> Result<()>;

    /// A part of a directory cannot be read.
    fn damaged(&mut self, dir: &Self::Dir, node: ChunkId, error: RestoreError) -> Result<()>;

    /// Whether to look into a node.
    fn descend(&mut self, _node: &ChunkId) -> bool {
        true
    }

    /// Whether too much is open, so that one branch should be finished before others are begun.
    fn is_crowded(&self) -> bool {
        false
    }

    /// An error when the walk should stop.
    fn check(&self) -> Result<()>;
}

struct Job<D> {
    place: Place<D>,
    node: ChunkId,
    wanted: Wanted,
    /// Nodes above it in the same directory, and directories above that.
    level: usize,
    depth: usize,
}

enum Place<D> {
    /// A directory that is yet to be entered.
    Below(D, Entry),
    /// A further node of one that was.
    Within(D),
}

/// Walks what is wanted of the directory `dir`, whose top node is `node`.
pub(crate) fn walk<V: Visitor>(
    opener: &mut BlobOpener,
    dir: V::Dir,
    node: ChunkId,
    wanted: Wanted,
    visitor: &mut V,
) -> Result<()> {
    let mut stack = vec![Job {
        place: Place::Within(dir),
        node,
        wanted,
        level: 1,
        depth: 1,
    }];
    while !stack.is_empty() {
        visitor.check()?;
        let batch = if visitor.is_crowded() { 1 } else { NODES_PER_FETCH };
        let mut jobs = stack.split_off(stack.len().saturating_sub(batch));
        jobs.retain(|job| visitor.descend(&job.node));
        let fetched = opener.fetch(jobs.iter().map(|job| job.node))?;
        // The stack's top is first in the tree.
        let mut found = Vec::new();
        for job in jobs.into_iter().rev() {
            let dir = match job.place {
                Place::Within(dir) => dir,
                Place::Below(above, entry) => match visitor.enter(&above, &entry)? {
                    Some(dir) => dir,
                    None => continue,
                },
            };
            if job.level > NODE_DEPTH_MAX || job.depth > DIR_DEPTH_MAX {
                let error = RestoreError::BadTree("directories are nested too deeply");
                visitor.damaged(&dir, job.node, error)?;
                continue;
            }
            let (wanted, level, depth) = (job.wanted, job.level, job.depth);
            match opener.open_node(job.node, fetched.get(&job.node)) {
                Ok(Node::Dir(DirNode::Leaf(entries))) => {
                    for entry in entries {
                        let Some(wanted) = wanted.below(&entry.name) else {
                            continue;
                        };
                        if let EntryKind::Dir { node, .. } = entry.kind {
                            if !visitor.wants(&dir, &entry)? {
                                continue;
                            }
                            let place = Place::Below(dir.clone(), entry);
                            found.push(Job {
                                place,
                                node,
                                wanted,
                                level: 1,
                                depth: depth + 1,
                            });
                        } else if matches!(wanted, Wanted::All) {
                            visitor.entry(opener, &dir, entry)?;
                        }
                    }
                }
                Ok(Node::Dir(DirNode::Index(children))) => {
                    for node in wanted.children(children) {
                        let place = Place::Within(dir.clone());
                        found.push(Job {
                            place,
                            node,
                            wanted: wanted.clone(),
                            level: level + 1,
                            depth,
                        });
                    }
                }
                Ok(Node::File(_)) => {
                    let error = RestoreError::BadTree("a file's node stands where a directory belongs");
                    visitor.damaged(&dir, job.node, error)?;
                }
                Err(error) if error.is_local() => visitor.damaged(&dir, job.node, error)?,
                Err(error) => return Err(error),
            }
        }
        stack.extend(found.into_iter().rev());
    }
    Ok(())
}
