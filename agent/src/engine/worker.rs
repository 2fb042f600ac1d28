//! A worker: takes tasks until there are none, and stops everyone at the first failure.

use super::{
    Shared,
    attributes::{Found, Handle},
    classify::entry_read,
    directory::Directory,
    queue::Task,
    reader::{REREADS, is_changed, read_large},
    section::Section,
    settled::Look,
    stats::add,
    store_chunk::Sink,
};
use crate::{error::Result, files::Rules, postgres::Checked};
use holdfast_core::limits;
use holdfast_repo::{ChunkRef, Content, Entry, EntryKind};
use rustix::fs::{FileType, Mode, OFlags, Stat};
use std::{
    ffi::OsStr,
    ops::Range,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
    sync::Arc,
};

/// Works until the queue is empty or stopped.
pub(super) fn run(shared: &Shared) {
    let _working = shared.settings.limits.enter();
    let mut sink = match Sink::new(shared) {
        Ok(sink) => sink,
        Err(error) => return shared.fail(error),
    };
    while let Some(task) = shared.queue.take() {
        let done = shared.check_cancelled().and_then(|()| match task {
            Task::List(section, index, dev) => Directory::list(shared, &mut sink, &section, index, dev),
            Task::Next(directory) => directory.next(shared, &mut sink),
            Task::Small(section, indexes) => read_small(shared, &mut sink, &section, &indexes),
            Task::Large(section, index) => read_large(shared, &mut sink, &section, index),
            Task::Piece(piece) => piece.store(shared, &mut sink),
        });
        if let Err(error) = done {
            shared.fail(error);
        }
        shared.queue.done();
    }
}

/// A small file that was read: its entry without content, and where its bytes are.
struct ReadFile {
    index: u32,
    entry: Entry,
    bytes: Range<usize>,
}

/// What one file was while it was read.
struct Stable {
    entry: Entry,
    bytes: Range<usize>,
    stat: Stat,
    found: Found,
    /// What is wrong with its bytes.
    problems: Vec<String>,
}

/// Reads a batch of small files of one section, then stores what is new among them.
fn read_small(shared: &Shared, sink: &mut Sink, section: &Arc<Section>, indexes: &[u32]) -> Result<()> {
    let mut arena = std::mem::take(&mut sink.arena);
    arena.clear();
    let mut files = Vec::with_capacity(indexes.len());
    match section.directory.open(shared) {
        Ok(dir) => {
            for index in indexes {
                files.extend(read_one(shared, section, &dir, *index, &mut arena));
            }
        }
        Err(_) => {
            add(&shared.stats.files_vanished, indexes.len() as u64);
            indexes.iter().for_each(|index| section.fill(*index, None));
        }
    }
    let keys = &shared.settings.keys;
    let chunks: Vec<_> = files
        .iter()
        .filter(|file| !file.bytes.is_empty())
        .map(|file| {
            let bytes = &arena[file.bytes.clone()];
            (keys.data_id(bytes), bytes)
        })
        .collect();
    sink.store_chunks(shared, &chunks)?;
    let mut ids = chunks.into_iter();
    for mut file in files {
        let size = file.bytes.len() as u64;
        let chunk = if file.bytes.is_empty() { None } else { ids.next() };
        let chunks = chunk.map(|(id, bytes)| ChunkRef {
            id,
            len: bytes.len() as u32,
        });
        if let EntryKind::File {
            size: place, content, ..
        } = &mut file.entry.kind
        {
            *place = size;
            *content = Content::Inline(chunks.into_iter().collect());
        }
        add(&shared.stats.files, 1);
        add(&shared.stats.bytes, size);
        add(&shared.stats.bytes_read, size);
        section.fill(file.index, Some(file.entry));
    }
    sink.arena = arena;
    section.part_done(shared, sink)
}

/// Reads one file to the end of the arena; `None` when it is left out, which is then counted.
fn read_one(
    shared: &Shared,
    section: &Section,
    dir: &OwnedFd,
    index: u32,
    arena: &mut Vec<u8>,
) -> Option<ReadFile> {
    let directory = &section.directory;
    let known = section.entry(index)?;
    let path = directory.path.join(OsStr::from_bytes(&known.name));
    let rules = &shared.settings.selection.roots[directory.root].rules;
    match read_until_stable(shared, dir, &known, arena, rules, &path) {
        Ok(Some(stable)) => {
            let Stable {
                entry,
                bytes,
                stat,
                found,
                problems,
            } = stable;
            if entry.changed_while_read {
                add(&shared.stats.files_changing, 1);
            }
            for problem in problems {
                directory.report(shared, &path, &problem);
            }
            let entry = directory.with_found(shared, &path, entry, &stat, found);
            Some(ReadFile { index, entry, bytes })
        }
        Ok(None) => {
            add(&shared.stats.files_vanished, 1);
            section.fill(index, None);
            None
        }
        Err(error) => {
            directory.report(shared, &path, &error.to_string());
            section.fill(index, None);
            None
        }
    }
}

/// Reads a file again while it changes, a bounded number of times; one of a live root only once. `None` when it is
/// gone, or is no longer a regular file.
fn read_until_stable(
    shared: &Shared,
    dir: &OwnedFd,
    known: &Entry,
    arena: &mut Vec<u8>,
    rules: &Rules,
    path: &Path,
) -> rustix::io::Result<Option<Stable>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let fd = match rustix::fs::openat(dir, known.name.as_slice(), flags, Mode::empty()) {
        Ok(fd) => fd,
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::LOOP) => return Ok(None),
        Err(error) => return Err(error),
    };
    let (start, is_live) = (arena.len(), rules.is_live());
    for attempt in 0..=REREADS {
        arena.truncate(start);
        let Look {
            stat: before,
            is_settled,
        } = if is_live {
            Look::at_once(&fd)?
        } else {
            Look::at(&fd)?
        };
        if !FileType::from_raw_mode(before.st_mode).is_file() {
            return Ok(None);
        }
        let read = read_whole(&fd, before.st_size as usize, arena)?;
        shared.pay_for_reading(read);
        let mut checked = Checked::default();
        if is_live {
            // What was appended meanwhile may be half a page.
            arena.truncate(arena.len().min(start + before.st_size as usize));
            if let Some(relation) = rules.relation(path) {
                relation.check(&fd, 0, &mut arena[start..], &mut checked)?;
            }
        }
        let found = Found::read(shared, Handle::Open(fd.as_fd()), false);
        let after = rustix::fs::fstat(&fd)?;
        let changed =
            !is_settled || is_changed(&before, &after) || read as i64 != before.st_size || checked.is_torn;
        if !changed || is_live || attempt == REREADS {
            let kind = known.kind.clone();
            return Ok(Some(Stable {
                entry: entry_read(known.name.clone(), &before, kind, changed, is_live),
                bytes: start..arena.len(),
                stat: before,
                found,
                problems: checked.problems,
            }));
        }
    }
    Ok(None)
}

/// Reads from the start, at most one chunk: a file that has grown beyond that is stored up to there
/// and marked as changed.
fn read_whole(fd: &OwnedFd, size: usize, arena: &mut Vec<u8>) -> rustix::io::Result<usize> {
    let start = arena.len();
    arena.reserve(size.min(limits::CHUNK_MAX) + 1);
    loop {
        let have = arena.len() - start;
        let room = limits::CHUNK_MAX - have;
        if room == 0 {
            return Ok(have);
        }
        if arena.capacity() == arena.len() {
            arena.reserve(room.min(64 * 1024));
        }
        let read = rustix::io::pread(fd, rustix::buffer::spare_capacity(arena), have as u64)?;
        if arena.len() - start > limits::CHUNK_MAX {
            arena.truncate(start + limits::CHUNK_MAX);
        }
        // The attributes are looked at again afterwards: they tell of what was appended meanwhile.
        if read == 0 || arena.len() - start == size {
            return Ok(arena.len() - start);
        }
    }
}
