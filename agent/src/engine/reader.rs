//! Large files: read in windows, cut, and stored by whichever worker has time.

use super::{
    Shared,
    attributes::{Found, Handle},
    classify::{entry_of, entry_read},
    large_file::{Draft, LargeFile},
    linked_files::{LinkKey, Turn, take},
    old_file::OldFile,
    piece::Piece,
    section::Section,
    settled::Look,
    stats::add,
    store_chunk::Sink,
};
use crate::{
    error::{AgentError, Result},
    files::open_beneath,
    postgres::{Checked, RelationPages},
};
use holdfast_core::limits::{CHUNK_MAX, SEGMENT_LEN};
use holdfast_repo::{Content, Entry, EntryKind, Segment, Strategy};
use rustix::{
    fs::{FileType, OFlags, SeekFrom, Stat},
    io::Errno,
};
use std::{
    ffi::OsStr,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
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
/// From this size on signatures of a file are kept: below it a changed file is stored again about as fast.
const SIGNED_MIN: u64 = 1 << 20;
/// How far around its expected place moved content is searched for.
const SEARCH_AROUND: u64 = 1 << 20;

/// Reads the file at an index of a section, and hands its pieces out.
pub(super) fn read_large(shared: &Shared, sink: &mut Sink, section: &Arc<Section>, index: u32) -> Result<()> {
    let Some(known) = section.entry(index) else {
        return Err(AgentError::Internal("a file without an entry".into()));
    };
    let (root, path) = section.locate(index, &known.name);
    let root = &shared.settings.selection.roots[root];
    let path = match &root.file {
        Some(name) if section.directory.is_top() => PathBuf::from(OsStr::from_bytes(name)),
        _ => path,
    };
    let flags = OFlags::RDONLY | OFlags::NONBLOCK;
    let opened = open_beneath(&root.dir, &path, flags).and_then(|fd| Ok((rustix::fs::fstat(&fd)?, fd)));
    let (stat, fd) = match opened {
        Ok((stat, fd)) if FileType::from_raw_mode(stat.st_mode).is_file() => (stat, fd),
        Ok(_) | Err(rustix::io::Errno::NOENT) => {
            add(&shared.stats.files_vanished, 1);
            section.fill(index, None);
            return section.part_done(shared, sink);
        }
        Err(error) => {
            section.directory.report(shared, &path, &error.to_string());
            section.fill(index, None);
            return section.part_done(shared, sink);
        }
    };
    let kind = EntryKind::File {
        size: stat.st_size as u64,
        strategy: Strategy::default(),
        content: Content::Inline(Vec::new()),
    };
    let seen = entry_of(known.name.clone(), &stat, kind);
    let link = match shared.linked_files.turn(shared, &stat, section, index, seen) {
        Turn::Read(link) => link,
        Turn::Wait => return Ok(()),
        Turn::Known(entry) => return take(shared, sink, section, index, entry),
    };
    let relation = root.rules.relation(&path);
    let strategy = match &relation {
        Some(_) => Strategy::Fixed,
        None => strategy_of(&known, &fd, &stat),
    };
    let how = How {
        strategy,
        is_live: root.rules.is_live(),
        relation,
    };
    match read_stable(shared, sink, (section, index, link), &known, &fd, &how) {
        Ok(()) => Ok(()),
        Err(AgentError::Io { source, .. }) => {
            if let Some(key) = link {
                shared.linked_files.end(shared, sink, key, None)?;
            }
            section.directory.report(shared, &path, &source.to_string());
            section.fill(index, None);
            section.part_done(shared, sink)
        }
        Err(error) => Err(error),
    }
}

/// How a file is read.
struct How<'r> {
    strategy: Strategy,
    /// Once, whether it changes meanwhile or not.
    is_live: bool,
    /// Set for files whose pages are known.
    relation: Option<RelationPages<'r>>,
}

/// Reads until the file did not change meanwhile, a bounded number of times.
fn read_stable(
    shared: &Shared,
    sink: &mut Sink,
    (section, index, link): (&Arc<Section>, u32, Option<LinkKey>),
    known: &Entry,
    fd: &OwnedFd,
    how: &How<'_>,
) -> Result<()> {
    let empty = Content::Inline(Vec::new());
    let old = match &known.kind {
        EntryKind::File { content, .. } => content,
        _ => &empty,
    };
    let mut attempt = 0;
    loop {
        let Look {
            stat: before,
            is_settled,
        } = if how.is_live {
            Look::at_once(fd)?
        } else {
            Look::at(fd)?
        };
        let file = LargeFile::new(section, index, link);
        let mut window = std::mem::take(&mut sink.window);
        let mut reading = Reading {
            shared,
            sink: &mut *sink,
            file: &file,
            fd,
            how,
            is_signed: how.relation.is_some() || before.st_size as u64 >= SIGNED_MIN,
            // What is appended to a live file is in its owner's log.
            limit: if how.is_live {
                before.st_size as u64
            } else {
                u64::MAX
            },
            old: OldFile::new(old),
            number: 0,
            at: 0,
            checked: Checked::default(),
        };
        let outcome = reading.read_all(&before, &mut window);
        let (read, checked) = (reading.at, reading.checked);
        window.clear();
        sink.window = window;
        outcome?;
        let found = Found::read(shared, Handle::Open(fd.as_fd()), section.directory.is_top());
        let after = rustix::fs::fstat(fd)?;
        let changed =
            !is_settled || is_changed(&before, &after) || read != before.st_size as u64 || checked.is_torn;
        if changed && !how.is_live && attempt < REREADS {
            // The pieces of this attempt may still be on their way: they finish nothing, since the
            // reader's own part of this attempt is never reported as done.
            attempt += 1;
            continue;
        }
        let kind = EntryKind::File {
            size: read,
            strategy: how.strategy,
            content: empty,
        };
        let entry = entry_read(known.name.clone(), &before, kind, changed, how.is_live);
        if entry.changed_while_read {
            add(&shared.stats.files_changing, 1);
        }
        let path = section.locate(index, &known.name).1;
        for problem in checked.problems {
            section.directory.report(shared, &path, &problem);
        }
        let entry = section.directory.with_found(shared, &path, entry, &before, found);
        return file.finish_reading(shared, sink, entry);
    }
}

/// One pass over a file.
struct Reading<'r> {
    shared: &'r Shared,
    sink: &'r mut Sink,
    file: &'r Arc<LargeFile>,
    fd: &'r OwnedFd,
    how: &'r How<'r>,
    is_signed: bool,
    /// Nothing from here on is read.
    limit: u64,
    old: OldFile,
    /// Of the next piece.
    number: u32,
    /// Where the next piece begins.
    at: u64,
    /// What the look at its pages brought.
    checked: Checked,
}

impl Reading<'_> {
    /// From the beginning to the end; holes are passed over.
    fn read_all(&mut self, stat: &Stat, window: &mut Vec<u8>) -> Result<()> {
        let is_sparse = is_sparse(stat);
        loop {
            let end = if is_sparse {
                let Some((start, end)) = self.next_data()? else {
                    let size = rustix::fs::fstat(self.fd)?.st_size as u64;
                    return self.hole(size.min(self.limit));
                };
                self.hole(start.min(self.limit))?;
                end.min(self.limit)
            } else {
                self.limit
            };
            let ended = match self.how.strategy {
                Strategy::Fixed => self.read_fixed(end)?,
                Strategy::ContentDefined => self.read_content_defined(end, window)?,
            };
            if ended || self.at >= self.limit {
                return Ok(());
            }
        }
    }

    /// The next range that the file system stores something for; whole segments, where the file is cut so.
    fn next_data(&self) -> Result<Option<(u64, u64)>> {
        let seek = |from: SeekFrom| match rustix::fs::seek(self.fd, from) {
            Ok(at) => Ok(Some(at)),
            Err(Errno::NXIO) => Ok(None),
            Err(error) => Err(AgentError::from(error)),
        };
        let Some(start) = seek(SeekFrom::Data(self.at))? else {
            return Ok(None);
        };
        let Some(end) = seek(SeekFrom::Hole(start))? else {
            return Ok(None);
        };
        Ok(Some(match self.how.strategy {
            Strategy::ContentDefined => (start, end),
            Strategy::Fixed => {
                let len = SEGMENT_LEN as u64;
                (start / len * len, end.div_ceil(len).saturating_mul(len))
            }
        }))
    }

    /// Passes over a hole up to there.
    fn hole(&mut self, to: u64) -> Result<()> {
        if to <= self.at {
            return Ok(());
        }
        let hole = Draft::Done(Segment::Hole(to - self.at));
        self.file.add(self.shared, self.sink, self.number, vec![hole])?;
        self.number += 1;
        self.at = to;
        Ok(())
    }

    /// Reads segments up to `end`; says whether the file ended.
    fn read_fixed(&mut self, end: u64) -> Result<bool> {
        while self.at < end {
            self.shared.check_cancelled()?;
            let mut bytes = self.shared.buffers.take(SEGMENT_LEN);
            let wanted = usize::try_from(self.limit - self.at).unwrap_or(SEGMENT_LEN);
            let ended = self.fill(&mut bytes, 0, wanted.min(SEGMENT_LEN))?;
            if let Some(relation) = &self.how.relation {
                relation.check(self.fd, self.at, &mut bytes, &mut self.checked)?;
            }
            if !bytes.is_empty() {
                let lens = vec![bytes.len() as u32];
                self.hand_out(bytes, lens)?;
            }
            if ended {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Reads and cuts up to `end`; says whether the file ended.
    fn read_content_defined(&mut self, end: u64, window: &mut Vec<u8>) -> Result<bool> {
        window.clear();
        let (mut file_ended, mut ended) = (false, false);
        loop {
            self.shared.check_cancelled()?;
            if !ended {
                // Only as much as there is: most files are smaller than a window.
                let left = usize::try_from(end - self.at).unwrap_or(WINDOW).min(WINDOW);
                let have = window.len() as u64;
                file_ended = self.fill(window, have, left)?;
                ended = file_ended || self.at + window.len() as u64 >= end;
            }
            if window.is_empty() {
                return Ok(file_ended);
            }
            let mut used = 0;
            while used < window.len() && (ended || window.len() - used >= CHUNK_MAX) {
                let (lens, len) = cut_piece(self.shared, &window[used..], ended);
                let mut bytes = self.shared.buffers.take(len);
                bytes.extend_from_slice(&window[used..used + len]);
                used += len;
                self.hand_out(bytes, lens)?;
            }
            window.copy_within(used.., 0);
            window.truncate(window.len() - used);
            if ended && window.is_empty() {
                return Ok(file_ended);
            }
        }
    }

    /// Reads behind what `bytes` holds, which begins at `self.at`, until it is `wanted` long. Says whether
    /// the file ended.
    fn fill(&self, bytes: &mut Vec<u8>, mut have: u64, wanted: usize) -> Result<bool> {
        while bytes.len() < wanted {
            let room = wanted - bytes.len();
            bytes.reserve_exact(room);
            let from = self.at + have;
            let start = bytes.len();
            let piece = self.shared.settings.limits.read.piece(room);
            let read = if piece < room {
                self.shared.check_cancelled()?;
                bytes.resize(start + piece, 0);
                rustix::io::pread(self.fd, &mut bytes[start..], from)?
            } else {
                rustix::io::pread(self.fd, rustix::buffer::spare_capacity(bytes), from)?
            };
            // The buffer may have had more room than was asked for.
            let read = read.min(room);
            bytes.truncate(start + read);
            self.shared.pay_for_reading(read);
            have += read as u64;
            if read == 0 {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Gives a piece to whoever has time, or stores it here.
    fn hand_out(&mut self, bytes: Vec<u8>, lens: Vec<u32>) -> Result<()> {
        let (start, len) = (self.at, bytes.len() as u64);
        let (from, to) = match self.how.strategy {
            Strategy::Fixed => (start, start + len),
            Strategy::ContentDefined => {
                let shift = self.file.shift.load(Ordering::Relaxed);
                let expected = start.saturating_add_signed(shift.saturating_neg());
                (
                    expected.saturating_sub(SEARCH_AROUND),
                    expected.saturating_add(len + SEARCH_AROUND),
                )
            }
        };
        let old = self.old.overlapping(self.shared, self.sink, from, to)?;
        add(&self.shared.stats.bytes_read, len);
        self.file.begin_piece();
        let piece = Piece {
            file: Arc::clone(self.file),
            number: self.number,
            offset: start,
            bytes,
            lens,
            strategy: self.how.strategy,
            old,
            is_signed: self.is_signed,
        };
        self.number += 1;
        self.at += len;
        match self.shared.queue.offer_piece(piece) {
            Some(piece) => piece.store(self.shared, self.sink),
            None => Ok(()),
        }
    }
}

/// Whether the file system stores less than the file's length.
pub(super) fn is_sparse(stat: &Stat) -> bool {
    (stat.st_blocks as u64).saturating_mul(512) < stat.st_size as u64
}

/// Cuts chunks off the front of the window until they fill a piece or more bytes are needed.
fn cut_piece(shared: &Shared, window: &[u8], ended: bool) -> (Vec<u32>, usize) {
    let (mut lens, mut used) = (Vec::new(), 0);
    while used < window.len() && used < PIECE {
        let rest = &window[used..];
        if !ended && rest.len() < CHUNK_MAX {
            break;
        }
        let len = shared.chunker.cut(rest);
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
        Ok(len) if is_image_like(stat.st_size as u64, &head[..len]) => Strategy::Fixed,
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

/// Raw images and tablespaces have no magic of their own, but a length in whole MiB, which what grows by
/// appending nearly never has, and no text at their beginning.
fn is_image_like(len: u64, head: &[u8]) -> bool {
    len.is_multiple_of(1 << 20) && head.iter().any(|byte| matches!(byte, 0..9 | 14..27))
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
        assert!(is_image_like(64 << 20, &[0; 1024]));
        assert!(!is_image_like((64 << 20) + 512, &[0; 1024]));
        assert!(!is_image_like(
            64 << 20,
            "one line of text\n\tand another\r\n".as_bytes()
        ));
    }
}
