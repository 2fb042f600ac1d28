//! From segments to their bytes: chunks are opened, segments of parts are put together and checked.

use crate::{
    BlobOpener, ChunkReader, Fetched, Result,
    bounds::{BLOB_OVERHEAD, CONTENT_IN_FLIGHT, PART_CHUNK, PARTS_CACHED},
};
use holdfast_core::ChunkId;
use holdfast_repo::{ChunkRef, Parts, RepoError, Segment};
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

    /// Fetches what the segments need and is not at hand. What turns out longer than their references let
    /// expect is fetched one by one when it is read.
    pub(crate) fn fetch<'s>(
        &self,
        segments: impl IntoIterator<Item = &'s Segment>,
    ) -> Result<HashMap<ChunkId, Fetched>> {
        let mut expected = 0;
        let mut ids = Vec::new();
        for segment in segments {
            if let Segment::Whole(chunk) = segment {
                expected += chunk.len as usize + BLOB_OVERHEAD;
                ids.push(chunk.id);
                continue;
            }
            for id in chunks_of(segment) {
                if self.cache.get(&id).is_none() {
                    expected += PART_CHUNK + BLOB_OVERHEAD;
                    ids.push(id);
                }
            }
        }
        self.opener.fetch_within(ids, expected.min(CONTENT_IN_FLIGHT))
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
        raw.clear();
        raw.resize(parts.len() as usize, 0);
        // One after the other: all of them together may be many times as long as the segment.
        for id in parts.chunks() {
            let content = match self.cache.get(&id) {
                Some(content) => content,
                None => {
                    let content = self.opener.open_any_data(id, fetched.get(&id));
                    let content = Arc::new(content.inspect_err(|_| raw.clear())?);
                    self.cache.put(id, &content);
                    content
                }
            };
            if !place_parts(parts, id, &content, raw) {
                raw.clear();
                return Err(RepoError::WrongContent(id).into());
            }
        }
        if self.opener.keys().is_content(&parts.hash, raw) {
            return Ok(());
        }
        raw.clear();
        Err(RepoError::WrongContent(parts.hash).into())
    }
}

/// Copies what a segment takes of one chunk to its places; false when the chunk is too short for it.
fn place_parts(parts: &Parts, chunk: ChunkId, content: &[u8], segment: &mut [u8]) -> bool {
    let mut at = 0;
    for extent in &parts.extents {
        let (from, len) = (extent.offset as usize, extent.len as usize);
        if extent.chunk == chunk {
            match (content.get(from..from + len), segment.get_mut(at..at + len)) {
                (Some(part), Some(place)) => place.copy_from_slice(part),
                _ => return false,
            }
        }
        at += len;
    }
    true
}
