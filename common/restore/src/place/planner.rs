//! From the walk over the trees to pieces of work: directories, links and devices are made at once, small
//! files are gathered, large ones are cut.

use super::{big_file::BigFile, dir::Dir, hard_links::LinkKey, target::Target, worker::Task};
use crate::{
    BlobOpener, RestoreError, Result,
    bounds::{
        BATCH_BYTES, BATCH_DIRS, BATCH_FILES, PART_CHUNK, REGION_BYTES, REGION_PART_CHUNKS, REWRITE_MIN,
    },
    file_segments,
    pool::Pool,
    tree::in_memory,
    walk::Visitor,
};
use holdfast_core::{ChunkId, limits::IDS_PER_QUERY};
use holdfast_repo::{Content, Entry, EntryKind, Segment};
use std::{
    collections::HashSet,
    sync::{Arc, atomic::Ordering::Relaxed},
};

pub(super) struct Planner<'p> {
    pool: &'p Pool<'p, Task>,
    target: Arc<Target>,
    batch: Batch,
    dirs_max: usize,
}

#[derive(Default)]
struct Batch {
    files: Vec<(Arc<Dir>, Entry)>,
    bytes: usize,
    chunks: usize,
    dirs: usize,
}

impl<'p> Planner<'p> {
    /// `tasks` may be under way at once, each of which holds the directories of its files.
    pub(super) fn new(pool: &'p Pool<'p, Task>, target: &Arc<Target>, tasks: usize) -> Self {
        let dirs_max = (target.open_dirs_max / tasks.max(1)).clamp(1, BATCH_DIRS);
        Self {
            pool,
            target: Arc::clone(target),
            batch: Batch::default(),
            dirs_max,
        }
    }

    /// Hands out what was gathered.
    pub(super) fn flush(&mut self) -> Result<()> {
        let Batch { files, bytes, .. } = std::mem::take(&mut self.batch);
        if files.is_empty() {
            Ok(())
        } else {
            self.pool.push(Task::Files { files, bytes })
        }
    }

    /// Adds a small file to what is gathered.
    fn gather(&mut self, dir: &Arc<Dir>, entry: Entry, chunks: usize) -> Result<()> {
        let size = entry.size() as usize;
        let is_other_dir = self
            .batch
            .files
            .last()
            .is_none_or(|(last, _)| !Arc::ptr_eq(last, dir));
        let batch = &self.batch;
        if batch.bytes + size > BATCH_BYTES
            || batch.files.len() >= BATCH_FILES
            || batch.chunks + chunks > IDS_PER_QUERY
            || (is_other_dir && batch.dirs >= self.dirs_max)
        {
            self.flush()?;
        }
        let batch = &mut self.batch;
        batch.dirs += usize::from(is_other_dir || batch.files.is_empty());
        batch.bytes += size;
        batch.chunks += chunks;
        batch.files.push((Arc::clone(dir), entry));
        Ok(())
    }

    /// Hands a file out as one piece, to be compared with what is there before anything is made. Whether that
    /// was done: not for one that is large or in very many pieces.
    fn compare(
        &mut self,
        opener: &mut BlobOpener,
        dir: &Arc<Dir>,
        entry: &Entry,
        content: &Content,
    ) -> Result<bool> {
        if !self.target.rewrite || entry.size() > REWRITE_MIN || LinkKey::of(entry).is_some() {
            return Ok(false);
        }
        let mut segments: Vec<Segment> = Vec::new();
        let (mut bytes, mut count) = (0, 0);
        let outcome = file_segments::visit(opener, content, entry.size(), &mut |_, segment: Segment| {
            count += 1;
            if count <= IDS_PER_QUERY {
                bytes += in_memory(&segment);
                segments.push(segment);
            }
            Ok(())
        });
        match outcome {
            Ok(()) if count > IDS_PER_QUERY => return Ok(false),
            Ok(()) => self.pool.push(Task::Replace {
                dir: Arc::clone(dir),
                entry: entry.clone(),
                segments,
                bytes,
            })?,
            Err(error) => dir.problem(&entry.name, error)?,
        }
        Ok(true)
    }

    /// Notes that an entry could not even be begun.
    fn failed(&self, dir: &Dir, entry: &Entry, error: RestoreError) -> Result<()> {
        if let Some(key) = LinkKey::of(entry) {
            self.target.links.failed(key);
        }
        dir.problem(&entry.name, error)
    }

    /// Ends: hands out what was gathered, and makes the names whose first one could not be made.
    pub(super) fn finish(&mut self, opener: &mut BlobOpener) -> Result<()> {
        loop {
            self.flush()?;
            let again = self.target.links.settle(|| self.pool.check())?;
            if again.is_empty() {
                return Ok(());
            }
            for (dir, entry) in again {
                self.entry(opener, &dir, entry)?;
            }
        }
    }

    /// Cuts a large file into regions.
    fn cut(
        &mut self,
        opener: &mut BlobOpener,
        dir: &Arc<Dir>,
        entry: &Entry,
        content: &Content,
    ) -> Result<()> {
        if self.compare(opener, dir, entry, content)? {
            return Ok(());
        }
        let file = match BigFile::create(dir, entry) {
            Ok(file) => file,
            Err(error) => return self.failed(dir, entry, error),
        };
        let mut region = Region::default();
        let pool = self.pool;
        let push = |region: &mut Region| {
            let Region {
                segments,
                start,
                bytes,
                parts,
            } = std::mem::take(region);
            pool.push(Task::Region {
                file: Arc::clone(&file),
                offset: start,
                segments,
                bytes: bytes + parts.len() * PART_CHUNK,
            })
        };
        let outcome = file_segments::visit(opener, content, entry.size(), &mut |offset, segment: Segment| {
            if !region.has_room(&segment) {
                push(&mut region)?;
            }
            region.add(offset, segment);
            Ok(())
        });
        match outcome {
            Ok(()) if region.segments.is_empty() => Ok(()),
            Ok(()) => push(&mut region),
            Err(error) => file.fail(error),
        }
    }
}

/// Consecutive segments that one worker fetches and writes.
#[derive(Default)]
struct Region {
    segments: Vec<Segment>,
    start: u64,
    bytes: usize,
    /// Chunks of which segments take parts.
    parts: HashSet<ChunkId>,
}

impl Region {
    fn has_room(&self, segment: &Segment) -> bool {
        let parts = parts_of(segment).filter(|id| !self.parts.contains(id)).count();
        self.segments.is_empty()
            || (self.bytes + in_memory(segment) <= REGION_BYTES
                && self.segments.len() < IDS_PER_QUERY
                && self.parts.len() + parts <= REGION_PART_CHUNKS)
    }

    fn add(&mut self, offset: u64, segment: Segment) {
        if self.segments.is_empty() {
            self.start = offset;
        }
        self.bytes += in_memory(&segment);
        self.parts.extend(parts_of(&segment));
        self.segments.push(segment);
    }
}

fn parts_of(segment: &Segment) -> impl Iterator<Item = ChunkId> {
    let parts = match segment {
        Segment::Parts(parts) => parts.chunks(),
        Segment::Whole(_) | Segment::Hole(_) => Vec::new(),
    };
    parts.into_iter()
}

impl Visitor for Planner<'_> {
    type Dir = Arc<Dir>;

    fn enter(&mut self, above: &Arc<Dir>, entry: &Entry) -> Result<Option<Arc<Dir>>> {
        match above.enter(entry, above.path.below(&entry.name)) {
            Ok(dir) => Ok(Some(dir)),
            Err(error) => above.problem(&entry.name, error).map(|()| None),
        }
    }

    fn entry(&mut self, opener: &mut BlobOpener, dir: &Arc<Dir>, entry: Entry) -> Result<()> {
        if LinkKey::of(&entry).is_some() && !self.target.links.has_room() {
            self.flush()?;
            self.target.links.make_room(|| self.pool.check())?;
        }
        let Some(entry) = self.target.links.admit(dir, entry) else {
            return Ok(());
        };
        match &entry.kind {
            EntryKind::File {
                size,
                content: Content::Inline(chunks),
                ..
            } if *size <= BATCH_BYTES as u64 => {
                let chunks = chunks.len();
                self.gather(dir, entry, chunks)
            }
            EntryKind::File { content, .. } => {
                let content = content.clone();
                self.cut(opener, dir, &entry, &content)
            }
            _ => match dir.make_special(&entry) {
                Ok(()) => Ok(()),
                Err(error) => self.failed(dir, &entry, error),
            },
        }
    }

    fn damaged(&mut self, dir: &Arc<Dir>, _node: ChunkId, error: RestoreError) -> Result<()> {
        self.target.problems.add(dir.path.path(), &error);
        Ok(())
    }

    fn is_crowded(&self) -> bool {
        self.target.open_dirs.load(Relaxed) > self.target.open_dirs_max
    }

    fn check(&self) -> Result<()> {
        self.pool.check()
    }
}
