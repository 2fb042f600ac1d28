//! What each thread does: fetch, open, write.

use super::{
    attributes::Attributes, big_file::BigFile, dir::Dir, direct::Staging, existing::Existing,
    hard_links::LinkKey, rewrite::Earlier, sparse::data_ranges,
};
use crate::{
    ChunkReader, Fetched, RestoreError, Result,
    bounds::CONTENT_IN_FLIGHT,
    content::{PartsCache, SegmentReader},
    pool::Pool,
};
use holdfast_core::ChunkId;
use holdfast_repo::{ChunkRef, Content, Entry, EntryKind, Segment};
use std::{
    collections::HashMap,
    os::fd::{AsFd as _, BorrowedFd},
    sync::{Arc, atomic::Ordering::Relaxed},
};

/// A piece of work.
pub(super) enum Task {
    /// Small files, whole.
    Files {
        files: Vec<(Arc<Dir>, Entry)>,
        bytes: usize,
    },
    /// One that may be there already, and is replaced as a whole if it differs.
    Replace {
        dir: Arc<Dir>,
        entry: Entry,
        segments: Vec<Segment>,
        bytes: usize,
    },
    /// A part of a large one.
    Region {
        file: Arc<BigFile>,
        offset: u64,
        segments: Vec<Segment>,
        bytes: usize,
    },
}

pub(super) struct Worker {
    reader: SegmentReader,
    raw: Vec<u8>,
    /// What was there before.
    there: Vec<u8>,
    staging: Staging,
}

impl Worker {
    pub(super) fn new(reader: &ChunkReader, cache: &Arc<PartsCache>) -> Result<Self> {
        Ok(Self {
            reader: SegmentReader::new(reader, Arc::clone(cache))?,
            raw: Vec::new(),
            there: Vec::new(),
            staging: Staging::default(),
        })
    }

    /// Does one piece. Errors are those that end the restore; others are noted.
    pub(super) fn work(&mut self, task: Task, pool: &Pool<'_, Task>) -> Result<()> {
        match task {
            Task::Files { mut files, bytes } => {
                files.retain(|(dir, entry)| !dir.target.rewrite || !self.is_there(dir, entry, &whole(entry)));
                let _held = pool.hold(bytes, CONTENT_IN_FLIGHT);
                let segments: Vec<Segment> = files.iter().flat_map(|(_, entry)| whole(entry)).collect();
                let fetched = self.reader.fetch(&segments)?;
                for (dir, entry) in files {
                    pool.check()?;
                    if let Err(error) = self.small_file(&dir, &entry, &fetched) {
                        if let Some(key) = LinkKey::of(&entry) {
                            dir.target.links.failed(key);
                        }
                        dir.problem(&entry.name, error)?;
                    }
                }
                Ok(())
            }
            Task::Replace {
                dir,
                entry,
                segments,
                bytes,
            } => {
                if self.is_there(&dir, &entry, &segments) {
                    return Ok(());
                }
                let _held = pool.hold(bytes, CONTENT_IN_FLIGHT);
                let earlier = Existing::open(&dir, &entry.name).map_or(Earlier::None, Earlier::Other);
                match BigFile::replace(&dir, &entry, earlier) {
                    Ok(file) => {
                        let outcome = self.region(&file, 0, &segments);
                        outcome.or_else(|error| file.fail(error))
                    }
                    Err(error) => dir.problem(&entry.name, error),
                }
            }
            Task::Region { file, .. } if file.has_failed() => Ok(()),
            Task::Region {
                file,
                offset,
                segments,
                bytes,
            } => {
                let _held = pool.hold(bytes, CONTENT_IN_FLIGHT);
                let outcome = self.region(&file, offset, &segments);
                outcome.or_else(|error| file.fail(error))
            }
        }
    }

    /// Whether a file is there as it should be; only its attributes may have been put right.
    fn is_there(&mut self, dir: &Dir, entry: &Entry, segments: &[Segment]) -> bool {
        let target = &dir.target;
        // One of several names is made anew with the others.
        if !target.rewrite || LinkKey::of(entry).is_some() {
            return false;
        }
        let Some(existing) = Existing::open(dir, &entry.name).filter(|file| file.len() == entry.size())
        else {
            return false;
        };
        let keys = self.reader.opener().keys();
        let mut offset = 0;
        for segment in segments {
            if !existing.holds(offset, segment, keys, &mut self.there) {
                return false;
            }
            offset += segment.len();
        }
        if offset != entry.size() || !existing.settle(&entry.into(), target) {
            return false;
        }
        target.counts.files.fetch_add(1, Relaxed);
        target.counts.bytes.fetch_add(entry.size(), Relaxed);
        target.counts.bytes_kept.fetch_add(entry.size(), Relaxed);
        target.progress.add_files(1);
        target.progress.add_bytes(entry.size());
        true
    }

    fn region(&mut self, file: &BigFile, offset: u64, segments: &[Segment]) -> Result<()> {
        // What an earlier region left behind when it failed.
        self.staging.clear();
        self.fill_region(file, offset, segments)?;
        self.staging.flush(file)?;
        file.end_region()
    }

    fn fill_region(&mut self, file: &BigFile, mut offset: u64, segments: &[Segment]) -> Result<()> {
        let mut wanted = Vec::with_capacity(segments.len());
        for segment in segments {
            let keys = self.reader.opener().keys();
            if !file.keep(offset, segment, keys, &mut self.there)? {
                wanted.push((offset, segment));
            }
            offset = offset.saturating_add(segment.len());
        }
        let fetched = self.reader.fetch(wanted.iter().map(|(_, segment)| *segment))?;
        let mut last: Option<&Segment> = None;
        for (offset, segment) in wanted {
            if let Segment::Hole(len) = segment {
                if file.is_rewritten() {
                    file.clear(offset, *len)?;
                } else {
                    file.skip(*len);
                }
                continue;
            }
            // Runs of the same content, as in images that were filled with zeros, are opened once.
            if last != Some(segment) {
                self.reader.read(segment, &fetched, &mut self.raw)?;
                last = Some(segment);
            }
            if file.is_rewritten() {
                file.overwrite(offset, &self.raw)?;
            } else {
                self.staging.write(file, offset, &self.raw)?;
            }
        }
        Ok(())
    }

    fn small_file(
        &mut self,
        dir: &Arc<Dir>,
        entry: &Entry,
        fetched: &HashMap<ChunkId, Fetched>,
    ) -> Result<()> {
        let chunks = inline(entry);
        // Before the file is made: one whose only chunk is damaged leaves no trace.
        if let [first, ..] = chunks {
            self.reader
                .opener()
                .open_data(first, fetched.get(&first.id), &mut self.raw)?;
        }
        let (file, temporary) = dir.create_file(&entry.name)?;
        let attributes = Attributes::from(entry);
        attributes.prepare(file.as_fd());
        let mut fill = || {
            let mut offset = 0;
            if entry.is_sparse {
                rustix::fs::ftruncate(&file, entry.size())
                    .map_err(|errno| dir.failed("size", &entry.name, errno))?;
            }
            for (n, chunk) in chunks.iter().enumerate() {
                if n > 0 {
                    self.reader
                        .opener()
                        .open_data(chunk, fetched.get(&chunk.id), &mut self.raw)?;
                }
                write_all(file.as_fd(), offset, &self.raw, entry.is_sparse)
                    .map_err(|errno| dir.failed("write", &entry.name, errno))?;
                offset += self.raw.len() as u64;
            }
            dir.set_attributes(file.as_fd(), &entry.name, &attributes)?;
            dir.settle(temporary.as_deref(), &entry.name)
        };
        let filled: Result<(), RestoreError> = fill();
        filled.inspect_err(|_| dir.remove(temporary.as_deref().unwrap_or(&entry.name)))?;
        dir.target.counts.files.fetch_add(1, Relaxed);
        dir.target.counts.bytes.fetch_add(entry.size(), Relaxed);
        dir.target.progress.add_files(1);
        dir.target.progress.add_bytes(entry.size());
        if attributes.link.is_some() {
            let stat = rustix::fs::fstat(&file);
            dir.target.links.made(dir, &entry.name, &attributes, stat);
        }
        Ok(())
    }
}

/// The same as segments.
fn whole(entry: &Entry) -> Vec<Segment> {
    inline(entry).iter().copied().map(Segment::Whole).collect()
}

/// The chunks of a file that stand in its entry.
fn inline(entry: &Entry) -> &[ChunkRef] {
    match &entry.kind {
        EntryKind::File {
            content: Content::Inline(chunks),
            ..
        } => chunks,
        _ => &[],
    }
}

/// Writes content at its place; into a file that is as long as it will be, only what is not zeros.
fn write_all(
    file: BorrowedFd<'_>,
    offset: u64,
    content: &[u8],
    leaves_zeros_out: bool,
) -> rustix::io::Result<()> {
    if leaves_zeros_out {
        return data_ranges(offset, content)
            .try_for_each(|range| write_at(file, offset + range.start as u64, &content[range]));
    }
    write_at(file, offset, content)
}

fn write_at(file: BorrowedFd<'_>, mut offset: u64, mut bytes: &[u8]) -> rustix::io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::pwrite(file, bytes, offset) {
            Err(rustix::io::Errno::INTR) => {}
            Ok(0) => return Err(rustix::io::Errno::NOSPC),
            outcome => {
                let len = outcome?;
                offset += len as u64;
                bytes = &bytes[len..];
            }
        }
    }
    Ok(())
}
