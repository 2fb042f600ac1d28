//! A worker's own tools, and the way of one chunk or node into a pack.

use super::{Shared, stats::add};
use crate::error::{AgentError, Result};
use holdfast_core::{ChunkId, Names};
use holdfast_repo::{Node, NodeDraft, Opener, Sealer};
use parking_lot::Mutex;
use std::{collections::HashSet, sync::Arc};

/// Parts that the set of seen ids is split into, so that workers rarely wait for each other.
const SEEN_PARTS: usize = 16;
/// Most ids that a run remembers to have stored in each part: what a table of 2^17 places takes, 1.1 MiB. All
/// together 1.8 million ids in 18 MiB; beyond it the controllers are asked.
const SEEN_PART_MAX: usize = (1 << 17) / 8 * 7;

/// Chunks stored in this run, by the first 8 bytes of their ids. Two ids with the same 8 bytes
/// would make the second be left out: the commit check finds that, and the next pass sends it.
#[derive(Default)]
pub(super) struct Seen {
    parts: [Mutex<HashSet<u64>>; SEEN_PARTS],
}

impl Seen {
    /// Whether this is the first time; remembers it.
    fn first(&self, id: &ChunkId) -> bool {
        let [a, b, c, d, e, f, g, h, part, ..] = *id.as_bytes();
        let mut part = self.parts[usize::from(part) % SEEN_PARTS].lock();
        let short = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
        if part.len() >= SEEN_PART_MAX {
            !part.contains(&short)
        } else {
            part.insert(short)
        }
    }
}

/// What each worker owns.
pub(super) struct Sink {
    sealer: Sealer,
    opener: Opener,
    raw: Vec<u8>,
    /// Contents of a batch of small files, one after the other.
    pub arena: Vec<u8>,
    /// What of a large file is read and not cut yet.
    pub window: Vec<u8>,
    /// Names of a directory that is being listed.
    pub names: Names,
}

impl Sink {
    pub fn new(shared: &Shared) -> Result<Self> {
        let keys = &shared.settings.keys;
        Ok(Self {
            sealer: Sealer::new(Arc::clone(keys), shared.settings.levels.content)?,
            opener: Opener::new(Arc::clone(keys))?,
            raw: Vec::new(),
            arena: Vec::new(),
            window: Vec::new(),
            names: Names::default(),
        })
    }

    /// Stores those of the chunks that are not stored yet.
    pub fn store_chunks(&mut self, shared: &Shared, chunks: &[(ChunkId, &[u8])]) -> Result<()> {
        self.store_at(shared, shared.settings.levels.content, chunks)
    }

    /// The same for whole segments of a file that is rewritten in place.
    pub fn store_segments(&mut self, shared: &Shared, chunks: &[(ChunkId, &[u8])]) -> Result<()> {
        self.store_at(shared, shared.settings.levels.segments, chunks)
    }

    fn store_at(&mut self, shared: &Shared, level: i32, chunks: &[(ChunkId, &[u8])]) -> Result<()> {
        let first: Vec<_> = chunks.iter().filter(|(id, _)| shared.seen.first(id)).collect();
        if first.is_empty() {
            return Ok(());
        }
        let ids: Vec<ChunkId> = first.iter().map(|(id, _)| *id).collect();
        let known = shared.remote.known(&ids)?;
        for ((id, raw), known) in first.into_iter().zip(known) {
            if known && !shared.settings.missing.contains(id) {
                continue;
            }
            shared.check_cancelled()?;
            self.sealer.set_level(level)?;
            let blob = self.sealer.seal_data(*id, raw)?;
            shared.packer.push(&blob);
            add(&shared.stats.chunks_new, 1);
            add(&shared.stats.bytes_new, raw.len() as u64);
        }
        Ok(())
    }

    /// Stores a node unless it is stored already, which the cache of the last run tells.
    pub fn store_node(&mut self, shared: &Shared, node: NodeDraft) -> Result<()> {
        let id = node.id;
        let kept = shared.nodes.touch(&id) && !shared.settings.missing.contains(&id);
        if kept && !shared.distrust_cache || !shared.seen.first(&id) {
            return Ok(());
        }
        self.sealer.set_level(shared.settings.levels.content)?;
        let blob = self.sealer.seal_node(node)?;
        shared.nodes.put(&id, &[blob.header_bytes, blob.sealed])?;
        shared.packer.push(&blob);
        Ok(())
    }

    /// Opens a node of the parent snapshot, from the cache or from the controllers. A cached blob
    /// that does not open is as if it were absent.
    pub fn node(&mut self, shared: &Shared, id: ChunkId) -> Result<Node> {
        if let Some(blob) = shared.nodes.get(&id)
            && let Ok(header) = self.opener.open(id, &blob, &mut self.raw)
        {
            return Ok(Node::decode(header.kind, &header.links, &self.raw)?);
        }
        let blob = shared.remote.fetch(&[id])?.pop().flatten();
        let blob =
            blob.ok_or_else(|| AgentError::Internal(format!("node {id} of the parent is not stored")))?;
        let header = self.opener.open(id, &blob, &mut self.raw)?;
        shared.nodes.put(&id, &[&blob])?;
        Ok(Node::decode(header.kind, &header.links, &self.raw)?)
    }
}
