//! From segments to their bytes: chunks are opened, segments of parts are put together and checked.

use crate::{BlobOpener, ChunkReader, Fetched, Result, bounds::PARTS_CACHED};
use holdfast_core::ChunkId;
use holdfast_repo::{ChunkRef, Parts, Segment};
use parking_lot::Mutex;
use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

/// The chunks that must be fetched for a segment.
pub(crate) fn chunks_of(segment: &Segment) -> Vec<ChunkId> {
    match segment {
        Segment::Whole(chunk) => vec![chunk.id],
        Segment::Parts(parts) => parts.chunks(),
        Segment::Hole(_) => Vec::new(),
    }
}

/// Opened chunks that segments are put together from. Neighbours share them, so all threads of one
/// restore share this.
#[derive(Default)]
pub(crate) struct PartsCache {
    state: Mutex<Cached>,
}

#[derive(Default)]
struct Cached {
    chunks: HashMap<ChunkId, Arc<Vec<u8>>>,
    order: VecDeque<ChunkId>,
    bytes: usize,
}

impl PartsCache {
    fn get(&self, id: &ChunkId) -> Option<Arc<Vec<u8>>> {
        self.state.lock().chunks.get(id).cloned()
    }

    /// The oldest go first: a patch is used by neighbours, and then no more.
    fn put(&self, id: ChunkId, content: &Arc<Vec<u8>>) {
        let mut state = self.state.lock();
        if state.chunks.insert(id, Arc::clone(content)).is_some() {
            return;
        }
        state.bytes += content.len();
        state.order.push_back(id);
        while state.bytes > PARTS_CACHED {
            let Some(oldest) = state.order.pop_front() else {
                break;
            };
            if let Some(gone) = state.chunks.remove(&oldest) {
                state.bytes -= gone.len();
            }
        }
    }
}

/// Reads segments on one thread.
pub(crate) struct SegmentReader {
    opener: BlobOpener,
    cache: Arc<PartsCache>,
}

impl SegmentReader {
    pub(crate) fn new(reader: &ChunkReader, cache: Arc<PartsCache>) -> Result<Self> {
        Ok(Self {
            opener: reader.opener()?,
            cache,
        })
    }

    pub(crate) fn opener(&mut self) -> &mut BlobOpener {
        &mut self.opener
    }

    /// Fetches what the segments need and is not at hand.
    pub(crate) fn fetch<'s>(
        &self,
        segments: impl IntoIterator<Item = &'s Segment>,
    ) -> Result<HashMap<ChunkId, Fetched>> {
        let ids = segments.into_iter().flat_map(chunks_of);
        self.opener.fetch(ids.filter(|id| self.cache.get(id).is_none()))
    }

    /// The content of a segment that is no hole.
    pub(crate) fn read(
        &mut self,
        segment: &Segment,
        fetched: &HashMap<ChunkId, Fetched>,
        raw: &mut Vec<u8>,
    ) -> Result<()> {
        match segment {
            Segment::Whole(chunk) => self.whole(chunk, fetched, raw),
            Segment::Parts(parts) => self.parts(parts, fetched, raw),
            Segment::Hole(_) => {
                raw.clear();
                Ok(())
            }
        }
    }

    fn whole(
        &mut self,
        chunk: &ChunkRef,
        fetched: &HashMap<ChunkId, Fetched>,
        raw: &mut Vec<u8>,
    ) -> Result<()> {
        self.opener.open_data(chunk, fetched.get(&chunk.id), raw)
    }

    fn parts(&mut self, parts: &Parts, fetched: &HashMap<ChunkId, Fetched>, raw: &mut Vec<u8>) -> Result<()> {
        let mut opened = HashMap::new();
        for id in parts.chunks() {
            let content = match self.cache.get(&id) {
                Some(content) => content,
                None => {
                    let content = Arc::new(self.opener.open_any_data(id, fetched.get(&id))?);
                    self.cache.put(id, &content);
                    content
                }
            };
            opened.insert(id, content);
        }
        let content = |id: &ChunkId| opened.get(id).map(|content| content.as_slice());
        Ok(parts.assemble(self.opener.keys(), content, raw)?)
    }
}
