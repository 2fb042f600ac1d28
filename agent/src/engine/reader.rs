//! Large files: read in windows, cut, and stored by whichever worker has time.

use super::{
    Shared,
    directory::{Directory, entry_of},
    stats::add,
    store_chunk::Sink,
};
use crate::{
    error::{AgentError, Result},
    files::open_beneath,
};
use holdfast_core::limits::{CHUNK_MAX, SEGMENT_LEN};
use holdfast_repo::{ChunkRef, Entry, EntryKind, FileBuilder, Strategy};
use parking_lot::Mutex;
use rustix::fs::{FileType, OFlags, Stat};
use std::{
    collections::BTreeMap,
    ffi::OsStr,
    os::{fd::OwnedFd, unix::ffi::OsStrExt as _},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

/// Bytes of a window: two largest chunks, so that a cut always sees enough and what is left over
/// needs to be moved but once for as much that is read.
const WINDOW: usize = 2 * CHUNK_MAX;
/// Bytes of chunks that travel to another worker together, at least.
const PIECE: usize = 1 << 20;
/// Times that a file which changes under the reader is read again.
pub(super) const REREADS: usize = 2;
/// From this size on a file's magic number may choose fixed segments.
const FIXED_MIN: u64 = 64 << 20;

/// A large file while it is read.
pub(super) struct LargeFile {
    directory: Arc<Directory>,
    index: u32,
    /// Set by the reader once it is through.
    final_entry: Mutex<Option<Entry>>,
    /// Chunks of each piece, by the piece's number.
    pieces: Mutex<BTreeMap<u32, Vec<ChunkRef>>>,
    /// Pieces not stored yet, and the reader itself.
    pending: AtomicUsize,
}

/// Some consecutive chunks of a large file, in memory.
pub(super) struct Piece {
    file: Arc<LargeFile>,
    number: u32,
    bytes: Vec<u8>,
    lens: Vec<u32>,
}

impl Piece {
    /// Bytes that it holds.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Hashes and stores its chunks; the last piece finishes the file.
    pub fn store(self, shared: &Shared, sink: &mut Sink) -> Result<()> {
        let keys = &shared.settings.keys;
        let mut rest = &self.bytes[..];
        let chunks: Vec<_> = self
            .lens
            .iter()
            .map(|len| {
                let (chunk, tail) = rest.split_at(*len as usize);
                rest = tail;
                (keys.data_id(chunk), chunk)
            })
            .collect();
        sink.store_chunks(shared, &chunks)?;
        let refs = chunks
            .iter()
            .map(|(id, chunk)| ChunkRef {
                id: *id,
                len: chunk.len() as u32,
            })
            .collect();
        self.file.pieces.lock().insert(self.number, refs);
        self.file.part_done(shared, sink)
    }
}

impl LargeFile {
    fn part_done(&self, shared: &Shared, sink: &mut Sink) -> Result<()> {
        if self.pending.fetch_sub(1, Ordering::AcqRel) != 1 {
            return Ok(());
        }
        let keys = &shared.settings.keys;
        let mut builder = FileBuilder::default();
        for chunk in std::mem::take(&mut *self.pieces.lock()).into_values().flatten() {
            builder.push(keys, chunk);
            for node in builder.take_nodes() {
                sink.store_node(shared, node)?;
            }
        }
        let (content, nodes) = builder.finish(keys)?;
        for node in nodes {
            sink.store_node(shared, node)?;
        }
        let mut entry = self
            .final_entry
            .lock()
            .take()
            .ok_or_else(|| AgentError::Internal("a file ended before its reader".into()))?;
        if let EntryKind::File {
            content: place, size, ..
        } = &mut entry.kind
        {
            *place = content;
            add(&shared.stats.bytes, *size);
        }
        add(&shared.stats.files, 1);
        self.directory.fill(self.index, Some(entry));
        self.directory.part_done(shared, sink)
    }
}

/// Reads the file at an index of a directory, and hands its pieces out.
pub(super) fn read_large(
    shared: &Shared,
    sink: &mut Sink,
    directory: &Arc<Directory>,
    index: u32,
) -> Result<()> {
    let Some(known) = directory.slots.lock().get(index as usize).cloned().flatten() else {
        return Err(AgentError::Internal("a file without an entry".into()));
    };
    let (root, path) = directory.locate(index, &known.name);
    let root = &shared.settings.selection.roots[root];
    let path = match &root.file {
        Some(name) if directory.is_top() => PathBuf::from(OsStr::from_bytes(name)),
        _ => path,
    };
    let flags = OFlags::RDONLY | OFlags::NONBLOCK;
    let opened = open_beneath(&root.dir, &path, flags).and_then(|fd| Ok((rustix::fs::fstat(&fd)?, fd)));
    let (stat, fd) = match opened {
        Ok((stat, fd)) if FileType::from_raw_mode(stat.st_mode).is_file() => (stat, fd),
        Ok(_) | Err(rustix::io::Errno::NOENT) => {
            add(&shared.stats.files_vanished, 1);
            directory.fill(index, None);
            return directory.part_done(shared, sink);
        }
        Err(error) => {
            directory.report(shared, &path, &error.to_string());
            directory.fill(index, None);
            return directory.part_done(shared, sink);
        }
    };
    let strategy = strategy_of(&known, &fd, &stat);
    match read_stable(shared, sink, (directory, index), &known, &fd, strategy) {
        Ok(()) => Ok(()),
        Err(AgentError::Io { source, .. }) => {
            directory.report(shared, &path, &source.to_string());
            directory.fill(index, None);
            directory.part_done(shared, sink)
        }
        Err(error) => Err(error),
    }
}

/// Reads until the file did not change meanwhile, a bounded number of times.
fn read_stable(
    shared: &Shared,
    sink: &mut Sink,
    (directory, index): (&Arc<Directory>, u32),
    known: &Entry,
    fd: &OwnedFd,
    strategy: Strategy,
) -> Result<()> {
    let mut attempt = 0;
    loop {
        let before = rustix::fs::fstat(fd)?;
        let file = Arc::new(LargeFile {
            directory: Arc::clone(directory),
            index,
            final_entry: Mutex::default(),
            pieces: Mutex::default(),
            pending: AtomicUsize::new(1),
        });
        let read = read_pieces(shared, sink, &file, fd, strategy)?;
        let after = rustix::fs::fstat(fd)?;
        let changed = is_changed(&before, &after) || read != before.st_size as u64;
        if changed && attempt < REREADS {
            // The pieces of this attempt may still be on their way: they finish nothing, since the
            // reader's own part of this attempt is never reported as done.
            attempt += 1;
            continue;
        }
        if changed {
            add(&shared.stats.files_changing, 1);
        }
        let kind = EntryKind::File {
            size: read,
            strategy,
            content: holdfast_repo::Content::Inline(Vec::new()),
        };
        let entry = Entry {
            changed_while_read: changed,
            ..entry_of(known.name.clone(), &before, kind)
        };
        return finish_reading(shared, sink, file, entry);
    }
}

/// Gives the file its final entry and reports the reader's part as done.
fn finish_reading(shared: &Shared, sink: &mut Sink, file: Arc<LargeFile>, entry: Entry) -> Result<()> {
    *file.final_entry.lock() = Some(entry);
    file.part_done(shared, sink)
}

/// One pass over the file. Returns the bytes read.
fn read_pieces(
    shared: &Shared,
    sink: &mut Sink,
    file: &Arc<LargeFile>,
    fd: &OwnedFd,
    strategy: Strategy,
) -> Result<u64> {
    rustix::fs::seek(fd, rustix::fs::SeekFrom::Start(0))?;
    // One byte more than the file has shows its end without growing.
    let room = usize::try_from(rustix::fs::fstat(fd)?.st_size)
        .unwrap_or(WINDOW)
        .min(WINDOW - 1)
        + 1;
    let mut window: Vec<u8> = Vec::with_capacity(room);
    let (mut number, mut total, mut ended) = (0, 0, false);
    loop {
        shared.check_cancelled()?;
        while !ended && window.len() < WINDOW {
            if window.len() == window.capacity() {
                // The file has grown since.
                window.reserve_exact(WINDOW - window.len());
            }
            let read = rustix::io::read(fd, rustix::buffer::spare_capacity(&mut window))?;
            ended = read == 0;
            total += read as u64;
        }
        if window.is_empty() {
            return Ok(total);
        }
        let mut at = 0;
        while at < window.len() && (ended || window.len() - at >= CHUNK_MAX) {
            let (lens, used) = cut_piece(shared, &window[at..], ended, strategy);
            let bytes = window[at..at + used].to_vec();
            at += used;
            add(&shared.stats.bytes_read, used as u64);
            file.pending.fetch_add(1, Ordering::AcqRel);
            let piece = Piece {
                file: Arc::clone(file),
                number,
                bytes,
                lens,
            };
            number += 1;
            if let Some(piece) = shared.queue.offer_piece(piece) {
                piece.store(shared, sink)?;
            }
        }
        window.copy_within(at.., 0);
        window.truncate(window.len() - at);
    }
}

/// Cuts chunks off the front of the window until they fill a piece or more bytes are needed.
fn cut_piece(shared: &Shared, window: &[u8], ended: bool, strategy: Strategy) -> (Vec<u32>, usize) {
    let (mut lens, mut used) = (Vec::new(), 0);
    while used < window.len() && used < PIECE {
        let rest = &window[used..];
        if !ended && rest.len() < CHUNK_MAX {
            break;
        }
        let len = match strategy {
            Strategy::Fixed => rest.len().min(SEGMENT_LEN),
            Strategy::ContentDefined => shared.chunker.cut(rest),
        };
        lens.push(len as u32);
        used += len;
    }
    (lens, used)
}

/// Whether a file changed between two looks at it.
pub(super) fn is_changed(before: &Stat, after: &Stat) -> bool {
    before.st_size != after.st_size
        || (before.st_mtime, before.st_mtime_nsec) != (after.st_mtime, after.st_mtime_nsec)
        || (before.st_ctime, before.st_ctime_nsec) != (after.st_ctime, after.st_ctime_nsec)
}

/// How to cut: as the last version was; new files by what they are.
fn strategy_of(known: &Entry, fd: &OwnedFd, stat: &Stat) -> Strategy {
    if let EntryKind::File {
        strategy: Strategy::Fixed,
        ..
    } = known.kind
    {
        return Strategy::Fixed;
    }
    if (stat.st_size as u64) < FIXED_MIN {
        return Strategy::ContentDefined;
    }
    let mut head = [0; 1024];
    match rustix::io::pread(fd, &mut head, 0) {
        Ok(len) if is_rewritten_in_place(&head[..len]) => Strategy::Fixed,
        _ => Strategy::ContentDefined,
    }
}

/// Files whose owners rewrite blocks where they are: disk images and embedded databases.
fn is_rewritten_in_place(head: &[u8]) -> bool {
    let at = |offset: usize, magic: &[u8]| head.get(offset..).is_some_and(|rest| rest.starts_with(magic));
    at(0, b"SQLite format 3\0")
        || at(0, b"QFI\xfb") // qcow2
        || at(0, b"KDMV") // VMDK
        || at(0x40, b"\x7f\x10\xda\xbe") // VDI
        || at(0, b"vhdxfile")
        || at(512, b"EFI PART") // raw disk, GPT
        || (at(510, b"\x55\xaa") && head.len() == 1024) // raw disk, MBR
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disk_images_and_databases_are_cut_in_segments() {
        let mut disk = vec![0; 1024];
        disk[510] = 0x55;
        disk[511] = 0xaa;
        assert!(is_rewritten_in_place(&disk));
        assert!(is_rewritten_in_place(b"SQLite format 3\0 and so on"));
        assert!(!is_rewritten_in_place(b"just text"));
        assert!(!is_rewritten_in_place(b""));
    }
}
