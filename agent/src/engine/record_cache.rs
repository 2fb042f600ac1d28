//! Records by chunk id, kept on the agent's disk between runs: nodes of the last snapshot as they were
//! sealed, so that a run over an unchanged tree needs nothing from the network; and signatures of
//! segments, by which changes are found without the old bytes. Losing a cache costs time, never
//! correctness: its readers check every record against the id it was asked for.

use crate::error::{AgentError, Result};
use holdfast_core::ChunkId;
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    fs::{File, OpenOptions},
    io::Write as _,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

/// Begins the file; another version of it is as if it were empty.
const MAGIC: &[u8; 8] = b"HFCACHE\x01";
/// Before each record: its length and its id.
const HEAD_LEN: usize = 4 + ChunkId::LEN;
/// Bytes collected before they are written.
const WRITE_BUFFER: usize = 256 * 1024;
/// Longest record: a node's blob.
const RECORD_MAX: u32 = 4 << 20;
/// Most records: what a table of 2^20 places takes, 25 MiB. Beyond it they are as if they were lost.
const RECORDS_MAX: usize = (1 << 20) / 8 * 7;
/// A cache more than this many times as large as what it is used for is written anew.
const WASTE_MAX: u64 = 3;

/// What survives when the file is written anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// What this run used.
    Used,
    /// That, and the newest of the rest.
    Newest,
}

/// Where a record's content stands in the file.
#[derive(Clone, Copy)]
struct Place {
    offset: u64,
    len: u32,
    used: bool,
}

struct State {
    /// By the first 8 bytes of the id: half of the memory, and the whole id stands in the file.
    places: HashMap<u64, Place>,
    end: u64,
    buffer: Vec<u8>,
}

/// The cache of one source.
pub struct RecordCache {
    path: PathBuf,
    file: File,
    keep: Keep,
    max: u64,
    state: Mutex<State>,
}

impl RecordCache {
    /// Opens or makes the cache file of at most `max` bytes. What does not parse at its end is cut off.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn open(path: &Path, keep: Keep, max: u64) -> Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(AgentError::io("open", path))?;
        let len = file.metadata().map_err(AgentError::io("read", path))?.len();
        let (places, end) = if len > max.saturating_mul(2) {
            (HashMap::new(), 0)
        } else {
            scan(&file, len)
        };
        file.set_len(end).map_err(AgentError::io("shorten", path))?;
        if end == 0 {
            file.write_all_at(MAGIC, 0)
                .map_err(AgentError::io("write", path))?;
        }
        let state = State {
            places,
            end: end.max(MAGIC.len() as u64),
            buffer: Vec::new(),
        };
        Ok(Self {
            path: path.to_owned(),
            file,
            keep,
            max,
            state: Mutex::new(state),
        })
    }

    /// A record, if it is here.
    pub fn get(&self, id: &ChunkId) -> Option<Vec<u8>> {
        let mut state = self.state.lock();
        let flushed = state.end - state.buffer.len() as u64;
        let place = state.places.get_mut(&short(id))?;
        place.used = true;
        let place = *place;
        let mut record = vec![0; ChunkId::LEN + place.len as usize];
        // The id stands right before the content.
        let from = place.offset - ChunkId::LEN as u64;
        if from >= flushed {
            let at = (from - flushed) as usize;
            let end = at + record.len();
            record.copy_from_slice(state.buffer.get(at..end)?);
        } else {
            drop(state);
            self.file.read_exact_at(&mut record, from).ok()?;
        }
        let content = record.split_off(ChunkId::LEN);
        (record == id.as_bytes()).then_some(content)
    }

    /// Whether a record is here; if so, it counts as used.
    pub fn touch(&self, id: &ChunkId) -> bool {
        let mut state = self.state.lock();
        let place = state.places.get_mut(&short(id));
        place.map(|place| place.used = true).is_some()
    }

    /// Adds a record that is made of these parts, unless it is here or the cache is full.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn put(&self, id: &ChunkId, parts: &[&[u8]]) -> Result<()> {
        let mut state = self.state.lock();
        let len: usize = parts.iter().map(|part| part.len()).sum();
        if let Some(place) = state.places.get_mut(&short(id)) {
            place.used = true;
            return Ok(());
        }
        let is_full = state.end + (HEAD_LEN + len) as u64 > self.max || state.places.len() >= RECORDS_MAX;
        if is_full || len > RECORD_MAX as usize {
            return Ok(());
        }
        state.buffer.extend_from_slice(&(len as u32).to_le_bytes());
        state.buffer.extend_from_slice(id.as_bytes());
        parts.iter().for_each(|part| state.buffer.extend_from_slice(part));
        let place = Place {
            offset: state.end + HEAD_LEN as u64,
            len: len as u32,
            used: true,
        };
        state.end += (HEAD_LEN + len) as u64;
        state.places.insert(short(id), place);
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
        let Some(kept) = self.worth_keeping(&state) else {
            return Ok(());
        };
        let fresh_path = self.path.with_extension("new");
        let mut fresh = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&fresh_path)
            .map_err(AgentError::io("create", &fresh_path))?;
        let mut write = |bytes: &[u8]| {
            fresh
                .write_all(bytes)
                .map_err(AgentError::io("write", &fresh_path))
        };
        write(MAGIC)?;
        let mut record = Vec::new();
        for place in kept {
            record.resize(HEAD_LEN + place.len as usize, 0);
            self.file
                .read_exact_at(&mut record, place.offset - HEAD_LEN as u64)
                .map_err(AgentError::io("read", &self.path))?;
            write(&record)?;
        }
        replace(&fresh_path, &self.path)
    }

    /// What a new file would hold, in the order of this one; `None` when none is needed.
    fn worth_keeping(&self, state: &State) -> Option<Vec<Place>> {
        let mut places: Vec<Place> = state.places.values().copied().collect();
        let live: u64 = places.iter().filter(|p| p.used).map(|p| u64::from(p.len)).sum();
        let mut left = match self.keep {
            Keep::Used if state.end <= live.saturating_mul(WASTE_MAX) + WRITE_BUFFER as u64 => return None,
            Keep::Used => 0,
            Keep::Newest if state.end + WRITE_BUFFER as u64 <= self.max => return None,
            Keep::Newest => (self.max / 2).saturating_sub(live),
        };
        places.sort_unstable_by_key(|place| std::cmp::Reverse(place.offset));
        places.retain(|place| {
            let fits = u64::from(place.len) <= left;
            if fits && !place.used {
                left -= u64::from(place.len);
            }
            place.used || fits
        });
        places.reverse();
        Some(places)
    }
}

fn short(id: &ChunkId) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *id.as_bytes();
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

#[allow(
    clippy::disallowed_methods,
    reason = "a cache that may be lost: the directory need not be synced"
)]
fn replace(from: &Path, to: &Path) -> Result<()> {
    std::fs::rename(from, to).map_err(AgentError::io("replace", to))
}

/// Reads record after record; stops at the first that does not fit. 0 for a file that is none of ours.
fn scan(file: &File, len: u64) -> (HashMap<u64, Place>, u64) {
    let mut places = HashMap::new();
    let mut magic = [0; MAGIC.len()];
    if file.read_exact_at(&mut magic, 0).is_err() || &magic != MAGIC {
        return (places, 0);
    }
    let mut at = MAGIC.len() as u64;
    let mut head = [0; HEAD_LEN];
    while at + HEAD_LEN as u64 <= len && file.read_exact_at(&mut head, at).is_ok() {
        let [a, b, c, d, id @ ..] = head;
        let record_len = u32::from_le_bytes([a, b, c, d]);
        let offset = at + HEAD_LEN as u64;
        let is_torn = record_len > RECORD_MAX || offset + u64::from(record_len) > len;
        if is_torn || places.len() >= RECORDS_MAX {
            break;
        }
        let place = Place {
            offset,
            len: record_len,
            used: false,
        };
        places.insert(short(&ChunkId(id)), place);
        at = offset + u64::from(record_len);
    }
    (places, at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(n: u32) -> (ChunkId, Vec<u8>) {
        let content = n.to_le_bytes().repeat(1 + n as usize % 300);
        let mut id = [0; 32];
        id[..4].copy_from_slice(&n.to_le_bytes());
        id[20..24].copy_from_slice(&n.to_be_bytes());
        (ChunkId(id), content)
    }

    fn put(cache: &RecordCache, n: u32) {
        let (id, content) = record(n);
        cache.put(&id, &[&content[..2], &content[2..]]).unwrap();
    }

    fn holds(cache: &RecordCache, n: u32) -> bool {
        let (id, content) = record(n);
        let found = cache.get(&id);
        assert!(found.as_ref().is_none_or(|found| *found == content));
        found.is_some()
    }

    #[test]
    fn what_was_put_in_is_there_after_reopening_and_a_torn_end_is_cut() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nodes");
        let cache = RecordCache::open(&path, Keep::Used, 1 << 30).unwrap();
        (0..3000).for_each(|n| put(&cache, n));
        assert!(holds(&cache, 2999), "still in the buffer");
        cache.finish().unwrap();
        drop(cache);
        let file = OpenOptions::new().append(true).open(&path).unwrap();
        (&file).write_all(&[9, 9, 0, 0, 1, 2, 3]).unwrap();
        let cache = RecordCache::open(&path, Keep::Used, 1 << 30).unwrap();
        assert!((0..3000).all(|n| holds(&cache, n)));
        assert!(!holds(&cache, 3000));
    }

    #[test]
    fn what_is_no_longer_used_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nodes");
        let cache = RecordCache::open(&path, Keep::Used, 1 << 30).unwrap();
        (0..20_000).for_each(|n| put(&cache, n));
        cache.finish().unwrap();
        let before = std::fs::metadata(&path).unwrap().len();
        let cache = RecordCache::open(&path, Keep::Used, 1 << 30).unwrap();
        assert!(cache.touch(&record(7).0));
        cache.finish().unwrap();
        assert!(std::fs::metadata(&path).unwrap().len() < before / 20);
        let cache = RecordCache::open(&path, Keep::Used, 1 << 30).unwrap();
        assert!(holds(&cache, 7) && !holds(&cache, 8));
    }

    #[test]
    fn a_full_cache_keeps_what_was_used_and_the_newest() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("signatures");
        let max = 2 << 20;
        let cache = RecordCache::open(&path, Keep::Newest, max).unwrap();
        (0..10_000).for_each(|n| put(&cache, n));
        cache.finish().unwrap();
        let len = std::fs::metadata(&path).unwrap().len();
        assert!(len <= max, "{len}");
        let cache = RecordCache::open(&path, Keep::Newest, max).unwrap();
        assert!(holds(&cache, 3));
        let last = (0..10_000).rfind(|n| cache.state.lock().places.contains_key(&short(&record(*n).0)));
        cache.finish().unwrap();
        let cache = RecordCache::open(&path, Keep::Newest, max).unwrap();
        assert!(holds(&cache, 3) && holds(&cache, last.unwrap()));
        assert!(std::fs::metadata(&path).unwrap().len() < max * 2 / 3);
    }

    #[test]
    fn a_file_of_another_kind_is_as_if_it_were_empty() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nodes");
        std::fs::write(&path, b"HFB1 something of an older version").unwrap();
        let cache = RecordCache::open(&path, Keep::Used, 1 << 20).unwrap();
        put(&cache, 1);
        cache.finish().unwrap();
        assert!(holds(&RecordCache::open(&path, Keep::Used, 1 << 20).unwrap(), 1));
    }
}
