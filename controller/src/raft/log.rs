//! The Raft log on disk: segments of frames, appended, synced, and removed from the front.
//!
//! Nothing is ever changed in place: entries that a new leader overrules are voided by a frame of
//! their own, so that no crash can lose entries that stay. Errors of this module are fatal to the
//! node: [`super::storage`] stops the process, because a log that cannot be read may not vote.

use super::{
    files,
    frame::{self, Frame},
    types::{Entry, LogId},
};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    collections::{BTreeMap, VecDeque},
    fs::{File, OpenOptions},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

/// A segment that has reached this length is closed and a new one begun.
pub const SEGMENT_BYTES: usize = 8 << 20;

/// The log of one node. Its methods block; one thread at a time appends.
pub struct Log {
    dir: PathBuf,
    segment_bytes: usize,
    segments: VecDeque<Segment>,
    places: BTreeMap<u64, Place>,
    last: Option<LogId>,
    purged: Option<LogId>,
}

struct Segment {
    number: u64,
    file: Arc<File>,
    end: usize,
    // The highest index that any frame in it names: it can go when that is purged.
    highest: u64,
}

#[derive(Clone)]
struct Place {
    id: LogId,
    file: Arc<File>,
    segment: u64,
    offset: usize,
    len: usize,
}

/// Where to read an entry without holding the log.
pub struct EntryPlace(Place, PathBuf);

impl Log {
    /// Opens the log in `dir`, or makes an empty one. What a crash tore off the end is cut away.
    ///
    /// # Errors
    /// `Corrupt` when anything that was acknowledged is damaged or missing.
    pub fn open(dir: &Path) -> Result<Self> {
        Self::open_with(dir, SEGMENT_BYTES)
    }

    /// As [`Self::open`], with another length of segments.
    ///
    /// # Errors
    /// As there.
    pub fn open_with(dir: &Path, segment_bytes: usize) -> Result<Self> {
        files::create_dir(dir)?;
        let purged = read_small::<Option<LogId>>(&dir.join("purged"))?.flatten();
        let mut log = Self {
            dir: dir.to_owned(),
            segment_bytes,
            segments: VecDeque::new(),
            places: BTreeMap::new(),
            last: purged,
            purged,
        };
        let numbers = segment_numbers(dir)?;
        for (position, number) in numbers.iter().enumerate() {
            if position > 0 && numbers[position - 1] + 1 != *number {
                return Err(Error::corrupt(
                    "the Raft log",
                    format!("segment {} is missing", number - 1),
                ));
            }
            log.load(*number, position + 1 == numbers.len())?;
        }
        if let Some(purged) = purged {
            log.places.retain(|index, _| *index > purged.index);
            if log.last.is_none_or(|last| last.index < purged.index) {
                log.last = Some(purged);
            }
        }
        Ok(log)
    }

    fn load(&mut self, number: u64, is_last: bool) -> Result<()> {
        let path = segment_path(&self.dir, number);
        let bytes = std::fs::read(&path).map_err(|e| Error::io("read", &path, e))?;
        let Some(scan) = frame::scan(&bytes, number, is_last)? else {
            files::remove(&path)?;
            return files::sync_dir(&self.dir);
        };
        let file = open_segment(&path)?;
        if scan.end < bytes.len() {
            tracing::warn!(
                segment = number,
                bytes = bytes.len() - scan.end,
                "cut a torn end off the Raft log"
            );
            file.set_len(scan.end as u64)
                .and_then(|()| file.sync_all())
                .map_err(|e| Error::io("cut", &path, e))?;
        }
        let mut highest = 0;
        for frame in scan.frames {
            match frame {
                Frame::VoidFrom(index) => self.forget_from(index),
                Frame::Entries(records) => {
                    for (offset, len) in records {
                        let entry = decode_entry(&bytes[offset..offset + len])?;
                        self.expect_next(entry.log_id.index)?;
                        highest = highest.max(entry.log_id.index);
                        self.last = Some(entry.log_id);
                        let place = Place {
                            id: entry.log_id,
                            file: file.clone(),
                            segment: number,
                            offset,
                            len,
                        };
                        self.places.insert(entry.log_id.index, place);
                    }
                }
            }
        }
        self.segments.push_back(Segment {
            number,
            file,
            end: scan.end,
            highest,
        });
        Ok(())
    }

    /// The first entry, or one behind a hole that a snapshot filled, or the very next.
    fn expect_next(&mut self, index: u64) -> Result<()> {
        let purged = self.purged.map(|id| id.index);
        if self.last.is_some_and(|last| index == last.index + 1) {
            return Ok(());
        }
        let is_bridged = match purged {
            // Entries that are purged but whose segment is still there.
            Some(purged) => index <= purged + 1,
            None => self.last.is_none() && index == 0,
        };
        if is_bridged {
            self.places.clear();
            return Ok(());
        }
        // openraft's first entry is 0 or 1, as the cluster was founded.
        if self.last.is_none() && index <= 1 {
            return Ok(());
        }
        Err(Error::corrupt(
            "the Raft log",
            format!(
                "entry {index} follows {:?}; entries between are missing",
                self.last.map(|id| id.index)
            ),
        ))
    }

    /// The last entry that was ever here; the last purged one when none is left.
    #[must_use]
    pub fn last(&self) -> Option<LogId> {
        self.last
    }

    /// The last entry that was purged.
    #[must_use]
    pub fn purged(&self) -> Option<LogId> {
        self.purged
    }

    /// Bytes in segments.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.end as u64).sum()
    }

    /// Where the entries of these indexes are, in order; those that are not there are left out.
    #[must_use]
    pub fn places(&self, range: std::ops::Range<u64>) -> Vec<(u64, EntryPlace)> {
        if range.start >= range.end {
            return Vec::new();
        }
        self.places
            .range(range)
            .map(|(index, place)| {
                (
                    *index,
                    EntryPlace(place.clone(), segment_path(&self.dir, place.segment)),
                )
            })
            .collect()
    }

    /// Appends encoded entries and makes them durable before it returns.
    ///
    /// # Errors
    /// `NoSpace` leaves the log as it was; anything else is fatal.
    pub fn append(&mut self, entries: &[(LogId, Vec<u8>)]) -> Result<()> {
        let Some((newest, _)) = entries.last() else {
            return Ok(());
        };
        let encoded: Vec<&[u8]> = entries.iter().map(|(_, bytes)| bytes.as_slice()).collect();
        let (bytes, offsets) = frame::encode_entries(&encoded)?;
        let (file, segment, start) = self.write_frame(&bytes, newest.index)?;
        for ((id, bytes), offset) in entries.iter().zip(offsets) {
            let place = Place {
                id: *id,
                file: file.clone(),
                segment,
                offset: start + offset,
                len: bytes.len(),
            };
            self.places.insert(id.index, place);
        }
        self.last = Some(*newest);
        Ok(())
    }

    /// Voids the entry of that index and all later ones, durably.
    ///
    /// # Errors
    /// As [`Self::append`].
    pub fn truncate(&mut self, index: u64) -> Result<()> {
        self.write_frame(&frame::encode_void_from(index), 0)?;
        self.forget_from(index);
        Ok(())
    }

    fn forget_from(&mut self, index: u64) {
        self.places.split_off(&index);
        self.last = self
            .places
            .last_key_value()
            .map(|(_, place)| place.id)
            .or(self.purged);
    }

    /// Forgets entries up to this one, durably; whole segments of such are removed.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn purge(&mut self, upto: LogId) -> Result<()> {
        if self.purged.is_some_and(|purged| purged.index >= upto.index) {
            return Ok(());
        }
        write_small(&self.dir.join("purged"), &Some(upto))?;
        self.purged = Some(upto);
        self.places = self.places.split_off(&(upto.index + 1));
        if self.last.is_none_or(|last| last.index < upto.index) {
            self.last = Some(upto);
        }
        let mut removed = false;
        while self.segments.len() > 1
            && self
                .segments
                .front()
                .is_some_and(|oldest| oldest.highest <= upto.index)
        {
            if let Some(oldest) = self.segments.pop_front() {
                files::remove(&segment_path(&self.dir, oldest.number))?;
                // One by one: after a crash no segment may be missing between others.
                files::sync_dir(&self.dir)?;
                removed = true;
            }
        }
        if removed {
            tracing::debug!(
                upto = upto.index,
                segments = self.segments.len(),
                "purged the Raft log"
            );
        }
        Ok(())
    }

    fn write_frame(&mut self, bytes: &[u8], highest: u64) -> Result<(Arc<File>, u64, usize)> {
        if self
            .segments
            .back()
            .is_none_or(|last| last.end >= self.segment_bytes)
        {
            self.begin_segment()?;
        }
        let dir = self.dir.clone();
        let Some(active) = self.segments.back_mut() else {
            return Err(Error::Internal("the Raft log has no segment".into()));
        };
        let start = active.end;
        let path = segment_path(&dir, active.number);
        if let Err(e) = active.file.write_all_at(bytes, start as u64) {
            let error = Error::io("append to", &path, e);
            // Nothing of it was promised: away with what was written, so that a later frame can follow.
            active
                .file
                .set_len(start as u64)
                .map_err(|e| Error::io("cut", &path, e))?;
            return Err(error);
        }
        // After a failed sync nobody knows what is on disk: never tried again.
        active.file.sync_data().map_err(|e| fatal_sync(&path, e))?;
        active.end = start + bytes.len();
        active.highest = active.highest.max(highest);
        Ok((active.file.clone(), active.number, start))
    }

    fn begin_segment(&mut self) -> Result<()> {
        let number = match self.segments.back() {
            Some(last) => last.number + 1,
            None => segment_numbers(&self.dir)?.last().map_or(1, |last| last + 1),
        };
        let path = segment_path(&self.dir, number);
        let made = File::create(&path).and_then(|file| file.write_all_at(&frame::segment_header(number), 0));
        if let Err(e) = made {
            files::remove(&path)?;
            return Err(Error::io("begin", &path, e));
        }
        let file = open_segment(&path)?;
        file.sync_all().map_err(|e| fatal_sync(&path, e))?;
        files::sync_dir(&self.dir)?;
        self.segments.push_back(Segment {
            number,
            file,
            end: frame::SEGMENT_HEADER_LEN,
            highest: 0,
        });
        Ok(())
    }
}

impl EntryPlace {
    /// Reads and checks the entry.
    ///
    /// # Errors
    /// `Corrupt` when its sum is wrong.
    pub fn read(&self) -> Result<Entry> {
        decode_entry(&self.read_bytes()?)
    }

    fn read_bytes(&self) -> Result<Vec<u8>> {
        let Self(place, path) = self;
        let mut bytes = vec![0; place.len + 8];
        place
            .file
            .read_exact_at(&mut bytes, place.offset as u64 - 8)
            .map_err(|e| Error::io("read", path, e))?;
        let entry = bytes.split_off(8);
        if frame::record_header(&entry)[..] != bytes[..] {
            return Err(Error::corrupt(
                "the Raft log",
                "an entry is not what was written; restore the node from its peers or a backup",
            ));
        }
        Ok(entry)
    }
}

/// An entry as bytes.
///
/// # Errors
/// Only for defects of ours.
pub fn encode_entry(entry: &Entry) -> Result<Vec<u8>> {
    crate::catalog::kv::encode(entry)
}

fn decode_entry(bytes: &[u8]) -> Result<Entry> {
    crate::catalog::kv::decode(bytes)
}

fn fatal_sync(path: &Path, source: std::io::Error) -> Error {
    Error::corrupt(
        path.display().to_string(),
        format!("it could not be synced ({source}), so what is on disk is unknown"),
    )
}

fn open_segment(path: &Path) -> Result<Arc<File>> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map(Arc::new)
        .map_err(|e| Error::io("open", path, e))
}

fn segment_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:020}.seg"))
}

fn segment_numbers(dir: &Path) -> Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for item in std::fs::read_dir(dir).map_err(|e| Error::io("list", dir, e))? {
        let item = item.map_err(|e| Error::io("list", dir, e))?;
        let name = item.file_name();
        if let Some(number) = name
            .to_str()
            .and_then(|name| name.strip_suffix(".seg"))
            .and_then(|n| n.parse().ok())
        {
            numbers.push(number);
        }
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// A small file's content under a sum.
#[derive(Serialize, Deserialize)]
struct Small {
    #[serde(with = "serde_bytes")]
    content: Vec<u8>,
    crc32c: u32,
}

/// Writes a small record durably, all or nothing.
///
/// # Errors
/// When the disk refuses.
pub fn write_small<T: Serialize>(path: &Path, record: &T) -> Result<()> {
    files::replace(path, &small_bytes(record)?)
}

/// The bytes of a small record's file.
///
/// # Errors
/// Only for defects of ours.
pub fn small_bytes<T: Serialize>(record: &T) -> Result<Vec<u8>> {
    let content = crate::catalog::kv::encode(record)?;
    let crc32c = crc32c::crc32c(&content);
    crate::catalog::kv::encode(&Small { content, crc32c })
}

/// The record at `path`; none when there is no file.
///
/// # Errors
/// `Corrupt` when it is not what was written.
pub fn read_small<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let Some(bytes) = files::read(path)? else {
        return Ok(None);
    };
    let damaged = |why: String| {
        Error::corrupt(
            path.display().to_string(),
            format!("{why}; restore the node from its peers or a backup"),
        )
    };
    let small: Small = crate::catalog::kv::decode(&bytes).map_err(|e| damaged(e.to_string()))?;
    if crc32c::crc32c(&small.content) != small.crc32c {
        return Err(damaged("its checksum is wrong".into()));
    }
    crate::catalog::kv::decode(&small.content)
        .map(Some)
        .map_err(|e| damaged(e.to_string()))
}

#[cfg(test)]
mod tests;
