//! What lies at a file's place already: compared with the snapshot by hashing, so that nothing that is
//! equal is fetched or written.

use super::{
    attributes::Attributes,
    dir::Dir,
    target::{Target, open_below},
};
use holdfast_repo::{Segment, VaultKeys};
use rustix::{
    fs::{self, AtFlags, FileType, Mode, OFlags, SeekFrom, Stat},
    io::Errno,
};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

/// Piece in which places that should hold zeros are read.
const ZERO_PIECE: usize = 1024 * 1024;

/// A regular file that was there before.
pub(super) struct Existing {
    pub(super) file: OwnedFd,
    stat: Stat,
}

impl Existing {
    /// Opens it for reading; `None` for whatever is no regular file or cannot be read.
    pub(super) fn open(dir: &Dir, name: &[u8]) -> Option<Self> {
        Self::open_for(dir, name, OFlags::RDONLY)
    }

    /// Opens it for being rewritten: only if nothing else shares it, and if nobody can read or write it
    /// who may not do that with the restored file.
    pub(super) fn open_to_rewrite(dir: &Dir, name: &[u8], attributes: &Attributes) -> Option<Self> {
        let found = Self::open_for(dir, name, OFlags::RDWR)?;
        found.is_ours(attributes, &dir.target).then_some(found)
    }

    fn open_for(dir: &Dir, name: &[u8], flags: OFlags) -> Option<Self> {
        // Looked at first: opening a device or a pipe has effects. NONBLOCK, should it become one meanwhile.
        let before = fs::statat(dir.fd(), name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        if !is_regular(&before) {
            return None;
        }
        let file = open_below(dir.fd(), name, flags | OFlags::NONBLOCK, Mode::empty()).ok()?;
        let stat = fs::fstat(&file).ok()?;
        let same = (stat.st_dev, stat.st_ino) == (before.st_dev, before.st_ino);
        (same && is_regular(&stat)).then_some(Self { file, stat })
    }

    /// Bytes when it was opened.
    pub(super) fn len(&self) -> u64 {
        u64::try_from(self.stat.st_size).unwrap_or(0)
    }

    /// Whether it may stay as an inode. Another name could change it later, or someone who holds it open.
    fn is_ours(&self, attributes: &Attributes, target: &Target) -> bool {
        self.stat.st_nlink == 1 && attributes.are_as_wide_as(&self.stat, target)
    }

    /// Gives it the attributes that it should have, if it may stay as it is otherwise.
    pub(super) fn settle(&self, attributes: &Attributes, target: &Target) -> bool {
        self.is_ours(attributes, target)
            && (self.has(attributes, target) || matches!(attributes.set(self.file.as_fd(), target), Ok(None)))
    }

    /// Whether its attributes were right when it was opened.
    pub(super) fn has(&self, attributes: &Attributes, target: &Target) -> bool {
        attributes.are_set(self.file.as_fd(), &self.stat, target)
    }

    /// Whether it holds the content of that segment at that place; `raw` then holds it too, unless it is
    /// a hole. What cannot be read differs.
    pub(super) fn holds(&self, offset: u64, segment: &Segment, keys: &VaultKeys, raw: &mut Vec<u8>) -> bool {
        match segment.hash() {
            // A whole chunk's id is the hash of its content, and a segment of parts has the same recorded.
            Some(id) => self.read(offset, segment.len(), raw) && keys.is_content(&id, raw),
            None => self.is_zero(offset, segment.len(), raw),
        }
    }

    fn read(&self, offset: u64, len: u64, raw: &mut Vec<u8>) -> bool {
        raw.clear();
        // Most that differs is found here: nothing is reserved for what cannot be there.
        if offset.checked_add(len).is_none_or(|end| end > self.len()) {
            return false;
        }
        raw.resize(usize::try_from(len).unwrap_or(0), 0);
        let mut done = 0;
        while done < raw.len() {
            match rustix::io::pread(&self.file, &mut raw[done..], offset + done as u64) {
                Err(Errno::INTR) => {}
                Ok(0) | Err(_) => return false,
                Ok(read) => done += read,
            }
        }
        raw.len() as u64 == len
    }

    /// Reads what is stored between two places only, which a hole of any length has little of.
    fn is_zero(&self, offset: u64, len: u64, raw: &mut Vec<u8>) -> bool {
        let end = offset.saturating_add(len).min(self.len());
        let mut at = offset;
        while let Some((start, stop)) = next_data(self.file.as_fd(), at, end) {
            let mut from = start;
            while from < stop {
                let piece = (stop - from).min(ZERO_PIECE as u64);
                if !self.read(from, piece, raw) || raw.iter().any(|byte| *byte != 0) {
                    return false;
                }
                from += piece;
            }
            at = stop;
        }
        true
    }
}

fn is_regular(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
}

/// The next range between `at` and `end` that the file system stores; all of it where that is not told.
pub(super) fn next_data(file: BorrowedFd<'_>, at: u64, end: u64) -> Option<(u64, u64)> {
    if at >= end {
        return None;
    }
    let start = match fs::seek(file, SeekFrom::Data(at)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return None,
        Err(_) => return Some((at, end)),
    };
    if start >= end {
        return None;
    }
    let stop = fs::seek(file, SeekFrom::Hole(start)).unwrap_or(end);
    Some((start.max(at), stop.clamp(start.max(at) + 1, end)))
}
