//! A file that several workers fill.

use super::{attributes::Attributes, dir::Dir, sparse::data_ranges};
use crate::{RestoreError, Result, path::shown};
use holdfast_repo::Entry;
use std::{
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::AcqRel, Ordering::Relaxed},
    },
};

/// The last one to let go of it completes it, or removes it unless every byte was written.
pub(super) struct BigFile {
    file: OwnedFd,
    dir: Arc<Dir>,
    name: Vec<u8>,
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
        let (file, temporary) = dir.create_file(&entry.name)?;
        if let Err(errno) = rustix::fs::ftruncate(&file, entry.size()) {
            dir.remove(temporary.as_deref().unwrap_or(&entry.name));
            return Err(dir.failed("size", &entry.name, errno));
        }
        let attributes = Attributes::from(entry);
        attributes.prepare(file.as_fd());
        Ok(Arc::new(Self {
            file,
            dir: Arc::clone(dir),
            name: entry.name.clone(),
            temporary,
            attributes,
            size: entry.size(),
            leaves_zeros_out: entry.is_sparse,
            written: AtomicU64::new(0),
            failed: AtomicBool::new(false),
        }))
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
        let all = bytes.len() as u64;
        self.written.fetch_add(all, AcqRel);
        self.dir.target.counts.bytes.fetch_add(all, Relaxed);
        self.dir.target.progress.add_bytes(all);
        Ok(())
    }

    fn write_at(&self, mut offset: u64, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let len = match rustix::io::pwrite(&self.file, bytes, offset) {
                Err(rustix::io::Errno::INTR) => continue,
                Ok(0) => return Err(self.dir.failed("write", &self.name, rustix::io::Errno::NOSPC)),
                outcome => outcome.map_err(|errno| self.dir.failed("write", &self.name, errno))?,
            };
            offset += len as u64;
            bytes = &bytes[len..];
        }
        Ok(())
    }

    /// Leaves a hole: the file was made as long as it will be, and nothing was written there.
    pub(super) fn skip(&self, len: u64) {
        self.written.fetch_add(len, AcqRel);
        self.dir.target.counts.bytes.fetch_add(len, Relaxed);
        self.dir.target.progress.add_bytes(len);
    }

    /// Notes why it cannot be completed, once; gives the error back when the restore cannot go on.
    pub(super) fn fail(&self, error: RestoreError) -> Result<()> {
        if self.failed.swap(true, AcqRel) && error.is_local() {
            return Ok(());
        }
        self.dir.problem(&self.name, error)
    }

    fn complete(&self) -> Result<()> {
        self.dir
            .set_attributes(self.file.as_fd(), &self.name, &self.attributes)?;
        self.dir.settle(self.temporary.as_deref(), &self.name)
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
                Err(error) => target.problems.add(self.dir.path.path_of(&self.name), &error),
            }
        }
        tracing::debug!(path = %shown(&self.dir.path.path_of(&self.name)), "an incomplete file is removed");
        target.counts.bytes.fetch_sub(written, Relaxed);
        self.dir.remove(self.temporary.as_deref().unwrap_or(&self.name));
        if let Some(key) = self.attributes.link {
            target.links.failed(key);
        }
    }
}
