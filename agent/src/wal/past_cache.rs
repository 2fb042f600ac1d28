//! A file that is written once, from its beginning, and synced: past the page cache, where its bytes would take the memory of
//! what is read more often, and copying them there a fifth of all the work.

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl, fstatfs};
use std::{
    fs::File,
    io::{self, Write as _},
};

/// Addresses, offsets and lengths that every disk takes.
const ALIGNMENT: usize = 4096;
/// Bytes of one write: beyond it a disk gets no faster.
const PIECE: usize = 1 << 20;
/// `f_type` of ext2, ext3 and ext4, and of XFS: where that is known to be as good as the usual way.
const GOOD: [u64; 2] = [0xef53, 0x5846_5342];

/// See the module. What a file system refuses goes through the cache as ever.
pub(super) struct PastCache {
    file: File,
    is_direct: bool,
    /// Longer than a piece, so that an aligned one fits in wherever it lies.
    buffer: Vec<u8>,
    len: usize,
}

impl PastCache {
    /// Of an empty file.
    pub fn new(file: File) -> Self {
        // The field's type is another on each architecture; these values fit all.
        let kind = fstatfs(&file).map(|found| found.f_type as u64 & 0xffff_ffff);
        let is_direct = kind.is_ok_and(|kind| GOOD.contains(&kind)) && set_direct(&file, true).is_ok();
        Self {
            file,
            is_direct,
            buffer: Vec::new(),
            len: 0,
        }
    }

    /// Appends.
    ///
    /// # Errors
    /// Those of writing.
    pub fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while self.is_direct && !bytes.is_empty() {
            let len = self.len;
            let room = &mut self.piece()[len..];
            let taken = room.len().min(bytes.len());
            room[..taken].copy_from_slice(&bytes[..taken]);
            bytes = &bytes[taken..];
            self.len += taken;
            if self.len == PIECE {
                self.flush()?;
            }
        }
        self.file.write_all(bytes)
    }

    /// The file, all of it written; not synced.
    ///
    /// # Errors
    /// Those of writing.
    pub fn finish(mut self) -> io::Result<File> {
        if self.is_direct {
            // What is left is no whole piece.
            self.go_through_the_cache()?;
        }
        Ok(self.file)
    }

    fn flush(&mut self) -> io::Result<()> {
        let mut file = self.file.try_clone()?;
        match file.write(self.piece()) {
            Ok(PIECE) => self.len = 0,
            // The rest begins wherever it may.
            Ok(written) => {
                self.piece().copy_within(written.., 0);
                self.len -= written;
                self.go_through_the_cache()?;
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => self.go_through_the_cache()?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => self.go_through_the_cache()?,
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn go_through_the_cache(&mut self) -> io::Result<()> {
        set_direct(&self.file, false)?;
        self.is_direct = false;
        let len = std::mem::take(&mut self.len);
        let mut file = self.file.try_clone()?;
        file.write_all(&self.piece()[..len])
    }

    /// The aligned piece of the buffer.
    fn piece(&mut self) -> &mut [u8] {
        self.buffer.resize(PIECE + ALIGNMENT, 0);
        let start = self.buffer.as_ptr().align_offset(ALIGNMENT);
        // Never so for bytes, but documented as possible: then a write is refused, and done the usual way.
        let start = if start > ALIGNMENT { 0 } else { start };
        &mut self.buffer[start..start + PIECE]
    }
}

fn set_direct(file: &File, on: bool) -> rustix::io::Result<()> {
    let mut flags = fcntl_getfl(file)?;
    flags.set(OFlags::DIRECT, on);
    fcntl_setfl(file, flags)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_is_written_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let memory = tempfile::tempdir_in("/dev/shm").unwrap();
        for (dir, parts) in [
            (&dir, vec![0, 1, PIECE - 1, 3 * PIECE + 5, ALIGNMENT, 77]),
            (&dir, vec![2 * PIECE]),
            (&dir, vec![]),
            (&memory, vec![PIECE + 1, 9]),
        ] {
            let path = dir.path().join("file");
            let mut file = PastCache::new(File::create(&path).unwrap());
            let mut expected = Vec::new();
            for (value, len) in parts.into_iter().enumerate() {
                let part: Vec<u8> = (0..len).map(|at| (at / 7 + value) as u8).collect();
                file.write_all(&part).unwrap();
                expected.extend(part);
            }
            file.finish().unwrap().sync_data().unwrap();
            assert!(std::fs::read(&path).unwrap() == expected);
        }
    }
}
