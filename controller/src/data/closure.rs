//! The closure check: everything that a new root reaches is stored. The pinned parent's closure was checked when it
//! was committed and is kept, so the walk stops at its nodes and reads only paths that differ.

use super::links::{LinkReader, NODES_AT_ONCE};
use crate::error::Result;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use holdfast_core::{ChunkId, limits};
use holdfast_repo::{Link, Links};
use std::collections::HashSet;

/// Missing ids that are told apart; beyond, the count may include one more than once.
const MISSING_TRACKED: usize = 1 << 20;

/// Queries of one check that run side by side: an agent waits for its end, and with it whoever waits for the backup.
const LOOKUPS_AT_ONCE: usize = 4;

/// Half of an id: sets of these decide only what is walked again, and no two ids of honest origin share it.
type Half = [u8; 16];

fn half(id: &ChunkId) -> Half {
    let mut half = [0; 16];
    half.copy_from_slice(&id.0[..16]);
    half
}

/// What a check found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Missing {
    /// Ids that must be sent again, at most a query's worth.
    pub ids: Vec<ChunkId>,
    /// How many there are.
    pub count: u64,
}

struct Walk<'a> {
    reader: &'a LinkReader,
    /// Nodes that need no (further) walk: of the parent, or walked already. Memory: 16 bytes a node.
    seen: HashSet<Half>,
    /// Nodes of the parent that the new tree holds too: what is below them is shared.
    shared: HashSet<Half>,
    missing: Missing,
    missing_seen: HashSet<Half>,
}

/// Checks the closure of a root's links, given the links of its parent's root.
///
/// # Errors
/// When the index or the store fails as a whole.
pub async fn check(reader: &LinkReader, root: &Links, parent: Option<&Links>) -> Result<Missing> {
    let mut walk = Walk {
        reader,
        seen: HashSet::new(),
        shared: HashSet::new(),
        missing: Missing::default(),
        missing_seen: HashSet::new(),
    };
    let mut old = parent.map(nodes).unwrap_or_default();
    walk.seen.extend(old.iter().map(half));
    let mut level = walk.children(&root.0).await?;
    while !level.is_empty() {
        old.retain(|id| !walk.shared.contains(&half(id)));
        old = walk.parents_next_level(&old).await?;
        level = walk.next_level(&level).await?;
    }
    Ok(walk.missing)
}

fn nodes(links: &Links) -> Vec<ChunkId> {
    links
        .0
        .iter()
        .filter(|link| link.is_node)
        .map(|link| link.id)
        .collect()
}

impl Walk<'_> {
    /// Takes note of the nodes below the parent's differing nodes.
    async fn parents_next_level(&mut self, level: &[ChunkId]) -> Result<Vec<ChunkId>> {
        let mut below = Vec::new();
        for ids in level.chunks(NODES_AT_ONCE) {
            // A node of the parent that cannot be read shortens no walk; that is all.
            for link in self.reader.links(ids).await?.into_iter().flatten().flatten() {
                if link.is_node && self.seen.insert(half(&link.id)) {
                    below.push(link.id);
                }
            }
        }
        Ok(below)
    }

    async fn next_level(&mut self, level: &[ChunkId]) -> Result<Vec<ChunkId>> {
        let mut below = Vec::new();
        for ids in level.chunks(NODES_AT_ONCE) {
            let mut children = Vec::new();
            for (id, links) in ids.iter().zip(self.reader.links(ids).await?) {
                match links {
                    Some(links) => children.extend(links),
                    None => self.miss(*id),
                }
            }
            below.extend(self.children(&children).await?);
        }
        Ok(below)
    }

    /// Checks that these are stored; returns the nodes among them that have to be walked.
    async fn children(&mut self, links: &[Link]) -> Result<Vec<ChunkId>> {
        let mut asked: Vec<Link> = Vec::with_capacity(links.len());
        for link in links {
            if !link.is_node || self.seen.insert(half(&link.id)) {
                asked.push(*link);
            } else {
                self.shared.insert(half(&link.id));
            }
        }
        asked.sort_unstable();
        asked.dedup();
        let (index, vault) = (&self.reader.index, self.reader.vault);
        let answers = (0..asked.len()).step_by(limits::IDS_PER_QUERY).map(|from| {
            let part = asked.iter().skip(from).take(limits::IDS_PER_QUERY);
            let ids: Vec<ChunkId> = part.map(|link| link.id).collect();
            index.blocking(move |index| index.contains(vault, &ids))
        });
        let answers: Vec<Vec<bool>> = stream::iter(answers)
            .buffered(LOOKUPS_AT_ONCE)
            .try_collect()
            .await?;
        let mut below = Vec::new();
        for (link, known) in asked.iter().zip(answers.into_iter().flatten()) {
            if !known {
                self.miss(link.id);
            } else if link.is_node {
                below.push(link.id);
            }
        }
        Ok(below)
    }

    fn miss(&mut self, id: ChunkId) {
        if self.missing_seen.len() < MISSING_TRACKED && !self.missing_seen.insert(half(&id)) {
            return;
        }
        self.missing.count += 1;
        if self.missing.ids.len() < limits::IDS_PER_QUERY {
            self.missing.ids.push(id);
        }
    }
}
