//! A file that several workers fill.

use super::{
    attributes::Attributes, dir::Dir, direct::Writing, hard_links::LinkKey, rewrite::Earlier,
    sparse::data_ranges,
};
use crate::{RestoreError, Result, bounds::REWRITE_MIN, path::shown};
use holdfast_repo::Entry;
use parking_lot::Mutex;
use std::{
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::AcqRel, Ordering::Relaxed},
    },
};

/// The last one to let go of it completes it, or removes it unless every byte was written. One that is
/// rewritten in place stays as far as it came.
pub(super) struct BigFile {
    pub(super) file: OwnedFd,
    pub(super) dir: Arc<Dir>,
    pub(super) name: Vec<u8>,
    pub(super) earlier: Earlier,
    /// Whether a file that is rewritten was changed.
    pub(super) begun: Mutex<bool>,
    writing: Writing,
    temporary: Option<Vec<u8>>,
    attributes: Attributes,
    size: u64,
    /// Blocks of zeros are left out: the file was made as long as it will be, and reads as zeros already.
    leaves_zeros_out: bool,
    written: AtomicU64,
    failed: AtomicBool,
}

impl BigFile {
    pub(super) fn create(dir: &Arc<Dir>, entry: &Entry) -> Result<Arc<Self>> {
        // One of several names is made anew with the others.
        if dir.target.rewrite && entry.size() > REWRITE_MIN && LinkKey::of(entry).is_none() {
            Self::create_or_rewrite(dir, entry)
        } else {
            Self::replace(dir, entry, Earlier::None)
        }
    }

    pub(super) fn new(
        dir: &Arc<Dir>,
        entry: &Entry,
        file: OwnedFd,
        temporary: Option<Vec<u8>>,
        earlier: Earlier,
    ) -> Self {
        let attributes = Attributes::from(entry);
        attributes.prepare(file.as_fd());
        let is_fresh = !matches!(earlier, Earlier::Itself(_));
        let leaves_zeros_out = entry.is_sparse && is_fresh;
        Self {
            writing: Writing::new(file.as_fd(), is_fresh && !leaves_zeros_out, entry.size()),
            file,
            dir: Arc::clone(dir),
            name: entry.name.clone(),
            earlier,
            begun: Mutex::new(false),
            temporary,
            attributes,
            size: entry.size(),
            leaves_zeros_out,
            written: AtomicU64::new(0),
            failed: AtomicBool::new(false),
        }
    }

    /// Makes a new file as long as it will be; one that cannot be is removed when it is let go.
    pub(super) fn sized(self) -> Result<Arc<Self>> {
        if let Err(errno) = rustix::fs::ftruncate(&self.file, self.size) {
            self.failed.store(true, Relaxed);
            return Err(self.dir.failed("size", &self.name, errno));
        }
        Ok(Arc::new(self))
    }

    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(Relaxed)
    }

    /// Writes content at its place. Regions do not overlap.
    pub(super) fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        if self.leaves_zeros_out {
            for range in data_ranges(offset, bytes) {
                self.write_at(offset + range.start as u64, &bytes[range])?;
            }
        } else {
            self.write_at(offset, bytes)?;
        }
        self.count(bytes.len());
        Ok(())
    }

    /// Writes a piece from memory that is aligned, as [`super::direct::Staging`] gathers them.
    pub(super) fn write_staged(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.writing
            .write_aligned(self.file.as_fd(), offset, bytes)
            .map_err(|errno| self.dir.failed("write", &self.name, errno))?;
        self.count(bytes.len());
        Ok(())
    }

    /// Whether content should be gathered for [`Self::write_staged`].
    pub(super) fn is_direct(&self) -> bool {
        self.writing.is_direct()
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.writing
            .write(self.file.as_fd(), offset, bytes)
            .map_err(|errno| self.dir.failed("write", &self.name, errno))
    }

    fn count(&self, bytes: usize) {
        let all = bytes as u64;
        self.written.fetch_add(all, AcqRel);
        self.dir.target.counts.bytes.fetch_add(all, Relaxed);
        self.dir.target.progress.add_bytes(all);
    }

    /// Leaves a hole: the file was made as long as it will be, and nothing was written there.
    pub(super) fn skip(&self, len: u64) {
        self.written.fetch_add(len, AcqRel);
        self.dir.target.counts.bytes.fetch_add(len, Relaxed);
        self.dir.target.progress.add_bytes(len);
    }

    /// Notes why it cannot be completed, once; gives the error back when the restore cannot go on.
    pub(super) fn fail(&self, error: RestoreError) -> Result<()> {
        // What ends the whole restore says nothing against this file: it may go on another time.
        if error.is_local() && self.failed.swap(true, AcqRel) {
            return Ok(());
        }
        self.dir.problem(&self.name, error)
    }

    fn complete(&self) -> Result<()> {
        if let Earlier::Itself(existing) = &self.earlier {
            let begun = *self.begun.lock();
            if !begun && existing.has(&self.attributes, &self.dir.target) {
                return Ok(());
            }
            if begun {
                // Times last, and on disk after what they stand for.
                rustix::fs::fdatasync(&self.file)
                    .map_err(|errno| self.dir.failed("sync", &self.name, errno))?;
            }
        }
        self.dir
            .set_attributes(self.file.as_fd(), &self.name, &self.attributes)?;
        self.dir.settle(self.temporary.as_deref(), &self.name)
    }

    /// What becomes of a file that is not whole.
    fn give_up(&self) {
        let shown = shown(&self.dir.path.path_of(&self.name));
        // With what was there before, or resumable: another restore in place finds what is right in it.
        let resumable = self.dir.target.rewrite && self.temporary.is_none() && !self.has_failed();
        if self.is_rewritten() || (resumable && self.size > REWRITE_MIN) {
            tracing::debug!(path = %shown, "an incomplete file stays, to be completed by the next restore in place");
            if !self.is_rewritten() || *self.begun.lock() {
                let _ = self.unfinished();
            }
        } else {
            tracing::debug!(path = %shown, "an incomplete file is removed");
            self.dir.remove(self.temporary.as_deref().unwrap_or(&self.name));
        }
    }
}

impl Drop for BigFile {
    fn drop(&mut self) {
        let target = &self.dir.target;
        let written = *self.written.get_mut();
        if written == self.size && !self.has_failed() {
            match self.complete() {
                Ok(()) => {
                    target.counts.files.fetch_add(1, Relaxed);
                    target.progress.add_files(1);
                    if self.attributes.link.is_some() {
                        let stat = rustix::fs::fstat(&self.file);
                        target.links.made(&self.dir, &self.name, &self.attributes, stat);
                    }
                    return;
                }
                Err(error) => {
                    self.failed.store(true, Relaxed);
                    target.problems.add(self.dir.path.path_of(&self.name), &error);
                }
            }
        }
        target.counts.bytes.fetch_sub(written, Relaxed);
        self.give_up();
        if let Some(key) = self.attributes.link {
            target.links.failed(key);
        }
    }
}
