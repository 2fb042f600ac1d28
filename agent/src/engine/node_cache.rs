//! Nodes of the last snapshot, kept on the agent's disk as they were sealed, so that a run over an
//! unchanged tree needs nothing from the network. Losing it costs time, never correctness: every
//! node is opened and checked against its id, and what is absent is fetched.

use crate::error::{AgentError, Result};
use bytes::Bytes;
use holdfast_core::ChunkId;
use holdfast_repo::{BlobHeader, SealedBlob};
use parking_lot::Mutex;
use std::{
    collections::{HashMap, HashSet},
    fs::{File, OpenOptions},
    io::Write as _,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

/// Bytes collected before they are written.
const WRITE_BUFFER: usize = 256 * 1024;
/// Largest cache that is kept; beyond it the next run begins with an empty one.
const CACHE_MAX: u64 = 1 << 30;
/// A cache more than this many times as large as what it is used for is written anew.
const WASTE_MAX: u64 = 3;

/// Where a node stands in the file: the file is one blob after the other.
#[derive(Clone, Copy)]
struct Place {
    offset: u64,
    len: u32,
}

struct State {
    places: HashMap<ChunkId, Place>,
    used: HashSet<ChunkId>,
    end: u64,
    buffer: Vec<u8>,
}

/// The cache of one source.
pub struct NodeCache {
    path: PathBuf,
    file: File,
    state: Mutex<State>,
}

impl NodeCache {
    /// Opens or makes the cache file. What does not parse at its end is cut off.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn open(path: &Path) -> Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(AgentError::io("open", path))?;
        let len = file.metadata().map_err(AgentError::io("read", path))?.len();
        let (places, end) = if len > CACHE_MAX {
            (HashMap::new(), 0)
        } else {
            scan(&file, len)
        };
        file.set_len(end).map_err(AgentError::io("shorten", path))?;
        let state = State {
            places,
            used: HashSet::new(),
            end,
            buffer: Vec::new(),
        };
        Ok(Self {
            path: path.to_owned(),
            file,
            state: Mutex::new(state),
        })
    }

    /// A node's blob, if it is here.
    pub fn get(&self, id: &ChunkId) -> Option<Bytes> {
        let mut state = self.state.lock();
        let place = *state.places.get(id)?;
        let flushed = state.end - state.buffer.len() as u64;
        state.used.insert(*id);
        if place.offset >= flushed {
            let at = (place.offset - flushed) as usize;
            return Some(Bytes::copy_from_slice(&state.buffer[at..at + place.len as usize]));
        }
        drop(state);
        let mut blob = vec![0; place.len as usize];
        self.file.read_exact_at(&mut blob, place.offset).ok()?;
        Some(blob.into())
    }

    /// Whether a node is here; if so, it counts as used.
    pub fn touch(&self, id: &ChunkId) -> bool {
        let mut state = self.state.lock();
        let here = state.places.contains_key(id);
        if here {
            state.used.insert(*id);
        }
        here
    }

    /// Adds a node that was just sealed.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn insert(&self, blob: &SealedBlob<'_>) -> Result<()> {
        self.append(blob.header.id, &[blob.header_bytes, blob.sealed])
    }

    /// Adds a node that was fetched.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn insert_fetched(&self, id: ChunkId, blob: &[u8]) -> Result<()> {
        self.append(id, &[blob])
    }

    fn append(&self, id: ChunkId, parts: &[&[u8]]) -> Result<()> {
        let mut state = self.state.lock();
        if state.places.contains_key(&id) {
            state.used.insert(id);
            return Ok(());
        }
        let len: usize = parts.iter().map(|part| part.len()).sum();
        let place = Place {
            offset: state.end,
            len: len as u32,
        };
        for part in parts {
            state.buffer.extend_from_slice(part);
        }
        state.end += len as u64;
        state.places.insert(id, place);
        state.used.insert(id);
        if state.buffer.len() >= WRITE_BUFFER {
            self.write_out(&mut state)
        } else {
            Ok(())
        }
    }

    fn write_out(&self, state: &mut State) -> Result<()> {
        let at = state.end - state.buffer.len() as u64;
        self.file
            .write_all_at(&state.buffer, at)
            .map_err(AgentError::io("write", &self.path))?;
        state.buffer.clear();
        Ok(())
    }

    /// Writes what is buffered, and the whole file anew when most of it is no longer used. Nothing
    /// here need survive a power cut, so nothing is synced.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn finish(&self) -> Result<()> {
        let mut state = self.state.lock();
        self.write_out(&mut state)?;
        let live: u64 = state
            .used
            .iter()
            .filter_map(|id| state.places.get(id))
            .map(|p| u64::from(p.len))
            .sum();
        if state.end <= live.saturating_mul(WASTE_MAX) + WRITE_BUFFER as u64 {
            return Ok(());
        }
        let fresh_path = self.path.with_extension("new");
        let mut fresh = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&fresh_path)
            .map_err(AgentError::io("create", &fresh_path))?;
        let mut kept: Vec<Place> = state
            .used
            .iter()
            .filter_map(|id| state.places.get(id).copied())
            .collect();
        kept.sort_by_key(|place| place.offset);
        let mut blob = Vec::new();
        for place in kept {
            blob.resize(place.len as usize, 0);
            self.file
                .read_exact_at(&mut blob, place.offset)
                .map_err(AgentError::io("read", &self.path))?;
            fresh
                .write_all(&blob)
                .map_err(AgentError::io("write", &fresh_path))?;
        }
        replace(&fresh_path, &self.path)
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "a cache that may be lost: the directory need not be synced"
)]
fn replace(from: &Path, to: &Path) -> Result<()> {
    std::fs::rename(from, to).map_err(AgentError::io("replace", to))
}

/// Reads blob after blob; stops at the first that does not parse.
fn scan(file: &File, len: u64) -> (HashMap<ChunkId, Place>, u64) {
    let mut places = HashMap::new();
    let mut offset = 0;
    let mut window = Vec::new();
    let mut window_at = 0_u64;
    while offset < len {
        let have = (window_at + window.len() as u64).saturating_sub(offset);
        let at = (offset - window_at) as usize;
        let parsed = window.get(at..).and_then(|rest| BlobHeader::decode(rest).ok());
        let Some(header) = parsed else {
            // Perhaps only the window ended: a header with all its links fits a quarter of it.
            let want = (len - offset).min(4 * WRITE_BUFFER as u64);
            if have >= want {
                break;
            }
            window.resize(want as usize, 0);
            window_at = offset;
            if file.read_exact_at(&mut window, offset).is_err() {
                break;
            }
            continue;
        };
        let blob_len = header.blob_len() as u64;
        if offset + blob_len > len {
            break;
        }
        places.insert(
            header.id,
            Place {
                offset,
                len: blob_len as u32,
            },
        );
        offset += blob_len;
        if offset > window_at + window.len() as u64 {
            window.clear();
            window_at = offset;
        }
    }
    (places, offset)
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_core::VaultId;
    use holdfast_repo::{Sealer, VaultKeys};
    use std::sync::Arc;

    #[test]
    fn what_was_put_in_is_there_after_reopening_and_a_torn_end_is_cut() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nodes");
        let keys = Arc::new(VaultKeys::from_secrets(VaultId([1; 16]), [2; 32], [3; 32]));
        let mut sealer = Sealer::new(keys.clone(), 3).unwrap();
        let contents: Vec<Vec<u8>> = (0..3000_u32)
            .map(|i| i.to_le_bytes().repeat(1 + i as usize % 300))
            .collect();
        let cache = NodeCache::open(&path).unwrap();
        for content in &contents {
            cache
                .insert(&sealer.seal_data(keys.data_id(content), content).unwrap())
                .unwrap();
        }
        assert!(
            cache.get(&keys.data_id(&contents[2999])).is_some(),
            "still in the buffer"
        );
        cache.finish().unwrap();
        drop(cache);
        let file = OpenOptions::new().append(true).open(&path).unwrap();
        (&file).write_all(b"HFB1 torn").unwrap();
        let cache = NodeCache::open(&path).unwrap();
        let mut opener = holdfast_repo::Opener::new(keys.clone()).unwrap();
        let mut raw = Vec::new();
        for content in &contents {
            let id = keys.data_id(content);
            opener.open(id, &cache.get(&id).unwrap(), &mut raw).unwrap();
            assert_eq!(&raw, content);
        }
        assert!(cache.get(&keys.data_id(b"absent")).is_none());
    }

    #[test]
    fn what_is_no_longer_used_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nodes");
        let keys = Arc::new(VaultKeys::from_secrets(VaultId([1; 16]), [2; 32], [3; 32]));
        let mut sealer = Sealer::new(keys.clone(), 3).unwrap();
        let noise = |seed: u32| {
            let mut out = vec![0; 100_000];
            blake3_noise(seed, &mut out);
            out
        };
        let cache = NodeCache::open(&path).unwrap();
        for i in 0..30 {
            let content = noise(i);
            cache
                .insert(&sealer.seal_data(keys.data_id(&content), &content).unwrap())
                .unwrap();
        }
        cache.finish().unwrap();
        let before = std::fs::metadata(&path).unwrap().len();
        let cache = NodeCache::open(&path).unwrap();
        assert!(cache.touch(&keys.data_id(&noise(7))));
        cache.finish().unwrap();
        assert!(std::fs::metadata(&path).unwrap().len() < before / 20);
        let cache = NodeCache::open(&path).unwrap();
        assert!(cache.touch(&keys.data_id(&noise(7))) && !cache.touch(&keys.data_id(&noise(8))));
    }

    /// xorshift: incompressible enough.
    fn blake3_noise(seed: u32, out: &mut [u8]) {
        let mut state = u64::from(seed) * 2 + 0x9e37_79b9_7f4a_7c15;
        for byte in out {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            *byte = state as u8;
        }
    }
}
