//! Large files are written past the page cache: a restore is far larger than what would be read again soon, the copy
//! into the cache costs as much as all decompression, and what other programs on the host have cached stays there.
//!
//! Only where that is known to be as good as the usual way, in large aligned pieces. Everything else, and what a file
//! system refuses, goes through the cache as ever; the kernel keeps the two ways coherent.

use super::big_file::BigFile;
use crate::Result;
use parking_lot::RwLock;
use rustix::{
    fs::{self, OFlags},
    io::Errno,
};
use std::{
    os::fd::BorrowedFd,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

/// Addresses, offsets and lengths that every disk takes.
const ALIGNMENT: usize = 4096;
/// Bytes of one write: beyond it a disk gets no faster, and each worker holds as much.
const PIECE: usize = 1024 * 1024;
/// Smaller files do not pay for waiting for the disk.
const DIRECT_MIN: u64 = 8 * 1024 * 1024;
/// `f_type` of ext2, ext3 and ext4.
const EXT_MAGIC: u64 = 0xef53;
/// `f_type` of XFS.
const XFS_MAGIC: u64 = 0x5846_5342;

/// How a file is written.
pub(super) struct Writing {
    wanted: AtomicBool,
    /// Whether the open file is in that mode. Who holds this for writing may change it.
    direct: RwLock<bool>,
}

impl Writing {
    /// Of an open file; `is_dense` says that all of it will be written, once.
    pub(super) fn new(file: BorrowedFd<'_>, is_dense: bool, size: u64) -> Self {
        let is_good = || {
            fs::fstatfs(file).is_ok_and(|found| {
                // The field's type is another on each architecture; these values fit all.
                let kind = found.f_type as u64 & 0xffff_ffff;
                kind == EXT_MAGIC || kind == XFS_MAGIC
            })
        };
        Self {
            wanted: AtomicBool::new(is_dense && size >= DIRECT_MIN && is_good()),
            direct: RwLock::new(false),
        }
    }

    pub(super) fn is_direct(&self) -> bool {
        self.wanted.load(Relaxed)
    }

    /// Through the page cache. One at a time: the kernel lets only one into a file, and the others would spin
    /// meanwhile.
    pub(super) fn write(&self, file: BorrowedFd<'_>, offset: u64, bytes: &[u8]) -> rustix::io::Result<()> {
        let mut direct = self.direct.write();
        if *direct {
            set_direct(file, false)?;
            *direct = false;
        }
        write_all(file, offset, bytes).map(|_| ())
    }

    /// Past it, as far as its whole blocks go.
    pub(super) fn write_aligned(
        &self,
        file: BorrowedFd<'_>,
        offset: u64,
        bytes: &[u8],
    ) -> rustix::io::Result<()> {
        let aligned = if offset.is_multiple_of(ALIGNMENT as u64) {
            bytes.len() - bytes.len() % ALIGNMENT
        } else {
            0
        };
        let written = self.write_direct(file, offset, &bytes[..aligned])?;
        if written == bytes.len() {
            return Ok(());
        }
        self.write(file, offset + written as u64, &bytes[written..])
    }

    /// How many bytes were written; fewer where the file system wants no more of it.
    fn write_direct(&self, file: BorrowedFd<'_>, offset: u64, bytes: &[u8]) -> rustix::io::Result<usize> {
        if bytes.is_empty() || !self.is_direct() {
            return Ok(0);
        }
        let mut direct = self.direct.read();
        if !*direct {
            drop(direct);
            let mut exclusive = self.direct.write();
            match set_direct(file, true) {
                Ok(()) => *exclusive = true,
                Err(Errno::INVAL) => {
                    self.wanted.store(false, Relaxed);
                    return Ok(0);
                }
                Err(errno) => return Err(errno),
            }
            direct = parking_lot::RwLockWriteGuard::downgrade(exclusive);
        }
        let mut written = 0;
        while written < bytes.len() {
            match rustix::io::pwrite(file, &bytes[written..], offset + written as u64) {
                Err(Errno::INTR) => {}
                Err(Errno::INVAL) => {
                    self.wanted.store(false, Relaxed);
                    break;
                }
                Ok(0) => return Err(Errno::NOSPC),
                outcome => written += outcome?,
            }
        }
        drop(direct);
        Ok(written)
    }
}

fn set_direct(file: BorrowedFd<'_>, on: bool) -> rustix::io::Result<()> {
    let mut flags = fs::fcntl_getfl(file)?;
    flags.set(OFlags::DIRECT, on);
    fs::fcntl_setfl(file, flags)
}

fn write_all(file: BorrowedFd<'_>, mut offset: u64, mut bytes: &[u8]) -> rustix::io::Result<()> {
    while !bytes.is_empty() {
        let len = match rustix::io::pwrite(file, bytes, offset) {
            Err(Errno::INTR) => continue,
            Ok(0) => return Err(Errno::NOSPC),
            outcome => outcome?,
        };
        offset += len as u64;
        bytes = &bytes[len..];
    }
    Ok(())
}

/// Gathers one worker's consecutive content into large aligned pieces.
#[derive(Default)]
pub(super) struct Staging {
    /// Longer than a piece, so that an aligned one fits in wherever it lies.
    buffer: Vec<u8>,
    len: usize,
    offset: u64,
}

impl Staging {
    /// Writes content at its place, now or with what follows it. Regions do not overlap.
    pub(super) fn write(&mut self, file: &BigFile, offset: u64, mut bytes: &[u8]) -> Result<()> {
        if !file.is_direct() {
            self.flush(file)?;
            return file.write(offset, bytes);
        }
        if self.len > 0 && offset != self.offset + self.len as u64 {
            self.flush(file)?;
        }
        if self.len == 0 {
            self.offset = offset;
        }
        while !bytes.is_empty() {
            let len = self.len;
            let room = &mut self.piece()[len..];
            let taken = room.len().min(bytes.len());
            room[..taken].copy_from_slice(&bytes[..taken]);
            self.len += taken;
            bytes = &bytes[taken..];
            if self.len == PIECE {
                self.flush(file)?;
            }
        }
        Ok(())
    }

    /// Writes what was gathered.
    pub(super) fn flush(&mut self, file: &BigFile) -> Result<()> {
        let len = std::mem::take(&mut self.len);
        if len == 0 {
            return Ok(());
        }
        let offset = self.offset;
        self.offset += len as u64;
        file.write_staged(offset, &self.piece()[..len])
    }

    /// Forgets what was gathered.
    pub(super) fn clear(&mut self) {
        self.len = 0;
    }

    /// The aligned piece of the buffer.
    fn piece(&mut self) -> &mut [u8] {
        self.buffer.resize(PIECE + ALIGNMENT, 0);
        let start = self.buffer.as_ptr().align_offset(ALIGNMENT);
        // Never so for bytes, but documented as possible: then every write is refused, and done the usual way.
        let start = if start > ALIGNMENT { 0 } else { start };
        &mut self.buffer[start..start + PIECE]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{os::fd::AsFd as _, os::unix::fs::FileExt as _};

    const SIZE: usize = 16 * 1024 * 1024;

    /// Content at an address that disks take.
    fn piece(of: u8) -> Staging {
        let mut staging = Staging::default();
        staging.piece().fill(of);
        staging
    }

    #[test]
    fn whole_blocks_tails_and_odd_places_end_up_where_they_belong() {
        let file = tempfile::tempfile().unwrap();
        let writing = Writing::new(file.as_fd(), true, SIZE as u64);
        rustix::fs::ftruncate(&file, SIZE as u64).unwrap();
        let mut expected = vec![0; SIZE];
        let odd = [
            (0, PIECE),
            (3 * PIECE, PIECE - 1),
            (5 * PIECE + 7, 70_000),
            (PIECE, 3 * ALIGNMENT + 9),
            (9 * PIECE, ALIGNMENT),
            (SIZE - 100, 100),
        ];
        for (n, (offset, len)) in odd.into_iter().enumerate() {
            let value = n as u8 + 1;
            let bytes = &piece(value).piece()[..len].to_vec();
            expected[offset..offset + len].fill(value);
            let mut aligned = piece(value);
            // Twice, so that the file is brought back into the other way.
            writing
                .write_aligned(file.as_fd(), offset as u64, &aligned.piece()[..len])
                .unwrap();
            writing.write(file.as_fd(), offset as u64, bytes).unwrap();
        }
        let mut found = vec![0; SIZE];
        file.read_exact_at(&mut found, 0).unwrap();
        assert!(found == expected);
    }

    #[test]
    fn small_files_and_those_with_holes_go_through_the_cache() {
        let file = tempfile::tempfile().unwrap();
        assert!(!Writing::new(file.as_fd(), true, DIRECT_MIN - 1).is_direct());
        assert!(!Writing::new(file.as_fd(), false, DIRECT_MIN).is_direct());
    }

    #[test]
    fn a_piece_is_aligned() {
        let mut staging = Staging::default();
        assert_eq!(staging.piece().as_ptr().align_offset(ALIGNMENT), 0);
        assert_eq!(staging.piece().len(), PIECE);
    }
}
