//! Large files that are there already: segments that are equal stay, the others are written over.
//!
//! While that goes on the file is private and its time is that of 1970 or of the last write, never that of
//! the snapshot: it does not look finished. Nothing else keeps track of how far it came, because a restore
//! that is run again finds that out by comparing.

use super::{
    big_file::BigFile,
    dir::Dir,
    existing::{Existing, next_data},
};
use crate::Result;
use holdfast_repo::{Entry, Segment, VaultKeys};
use rustix::{
    fs::{self, FallocateFlags, Mode, Timespec, Timestamps, UTIME_OMIT},
    io::Errno,
};
use std::{
    os::fd::AsFd as _,
    sync::{Arc, atomic::Ordering::Relaxed},
};

/// Zeros that are written at once where a file system cannot make holes.
const ZEROS: &[u8] = &[0; 64 * 1024];

/// What of an earlier version can be kept.
#[derive(Default)]
pub(super) enum Earlier {
    /// Nothing is there, or nothing that may be looked at.
    #[default]
    None,
    /// Another file will be replaced; its content is copied where it is right.
    Other(Existing),
    /// The file itself is rewritten.
    Itself(Existing),
}

impl Earlier {
    pub(super) fn file(&self) -> Option<&Existing> {
        match self {
            Self::None => None,
            Self::Other(existing) | Self::Itself(existing) => Some(existing),
        }
    }
}

impl BigFile {
    /// A file beyond `bounds::REWRITE_MIN` in a target that may hold something.
    pub(super) fn create_or_rewrite(dir: &Arc<Dir>, entry: &Entry) -> Result<Arc<Self>> {
        if let Some(existing) = Existing::open_to_rewrite(dir, &entry.name, &entry.into())
            && let Ok(file) = existing.file.try_clone()
        {
            let resized = existing.len() != entry.size();
            let rewritten = Self::new(dir, entry, file, None, Earlier::Itself(existing));
            if resized {
                rewritten.begin()?;
                fs::ftruncate(&rewritten.file, entry.size())
                    .map_err(|errno| dir.failed("size", &entry.name, errno))?;
            }
            return Ok(Arc::new(rewritten));
        }
        // Where there is nothing yet it gets its name at once, so that the next restore goes on with it.
        match dir.create_new(&entry.name) {
            Ok(file) => Self::sized(Self::new(dir, entry, file, None, Earlier::None)),
            Err(Errno::EXIST) => {
                let earlier = Existing::open(dir, &entry.name).map_or(Earlier::None, Earlier::Other);
                Self::replace(dir, entry, earlier)
            }
            Err(errno) => Err(dir.failed("make", &entry.name, errno)),
        }
    }

    /// A file that gets its name once it is whole.
    pub(super) fn replace(dir: &Arc<Dir>, entry: &Entry, earlier: Earlier) -> Result<Arc<Self>> {
        let (file, temporary) = dir.create_file(&entry.name)?;
        Self::sized(Self::new(dir, entry, file, temporary, earlier))
    }

    /// Whether the content of that segment needed nothing but what was there. `raw` is a buffer.
    pub(super) fn keep(
        &self,
        offset: u64,
        segment: &Segment,
        keys: &VaultKeys,
        raw: &mut Vec<u8>,
    ) -> Result<bool> {
        let Some(existing) = self.earlier.file() else {
            return Ok(false);
        };
        if !existing.holds(offset, segment, keys, raw) {
            return Ok(false);
        }
        match (&self.earlier, segment) {
            (Earlier::Itself(_), _) | (_, Segment::Hole(_)) => self.skip(segment.len()),
            _ => self.write(offset, raw)?,
        }
        self.dir
            .target
            .counts
            .bytes_kept
            .fetch_add(segment.len(), Relaxed);
        Ok(true)
    }

    /// Writes over what is there, zeros too.
    pub(super) fn overwrite(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.begin()?;
        self.write(offset, bytes)
    }

    /// Makes a hole where something else is.
    pub(super) fn clear(&self, offset: u64, len: u64) -> Result<()> {
        self.begin()?;
        let failed = |errno| self.dir.failed("make a hole in", &self.name, errno);
        let end = offset
            .saturating_add(len)
            .min(self.earlier.file().map_or(0, Existing::len));
        let mut at = offset;
        while let Some((start, stop)) = next_data(self.file.as_fd(), at, end) {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            match fs::fallocate(&self.file, flags, start, stop - start) {
                Ok(()) => {}
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => self.write_zeros(start, stop).map_err(failed)?,
                Err(errno) => return Err(failed(errno)),
            }
            at = stop;
        }
        self.skip(len);
        Ok(())
    }

    fn write_zeros(&self, mut at: u64, end: u64) -> rustix::io::Result<()> {
        while at < end {
            let piece = &ZEROS[..ZEROS.len().min(usize::try_from(end - at).unwrap_or(usize::MAX))];
            match rustix::io::pwrite(&self.file, piece, at) {
                Err(Errno::INTR) => {}
                Ok(0) => return Err(Errno::NOSPC),
                outcome => at += outcome? as u64,
            }
        }
        Ok(())
    }

    /// Before the first change: from here on, whatever happens, the file does not look finished and is
    /// nobody else's to read.
    fn begin(&self) -> Result<()> {
        let mut begun = self.begun.lock();
        if *begun || !self.is_rewritten() {
            return Ok(());
        }
        // The mode also keeps a half-written program from being run.
        fs::fchmod(&self.file, Mode::RUSR | Mode::WUSR)
            .and_then(|()| self.unfinished())
            // On disk before any of the content is: a power cut leaves no old time on new content either.
            .and_then(|()| fs::fsync(&self.file))
            .map_err(|errno| self.dir.failed("begin to rewrite", &self.name, errno))?;
        *begun = true;
        Ok(())
    }

    /// Sets the time of what is not finished. Writing moves it again, to a time that is not the
    /// snapshot's either.
    pub(super) fn unfinished(&self) -> rustix::io::Result<()> {
        let time = |tv_nsec| Timespec { tv_sec: 0, tv_nsec };
        let times = Timestamps {
            last_access: time(UTIME_OMIT),
            last_modification: time(0),
        };
        fs::futimens(&self.file, &times)
    }

    /// After a piece of it was written.
    pub(super) fn end_region(&self) -> Result<()> {
        if self.is_rewritten() && !*self.begun.lock() {
            return Ok(());
        }
        self.unfinished()
            .map_err(|errno| self.dir.failed("set the time of", &self.name, errno))
    }

    /// Whether the file was there before and is written over.
    pub(super) fn is_rewritten(&self) -> bool {
        matches!(self.earlier, Earlier::Itself(_))
    }
}
