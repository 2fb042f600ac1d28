//! An upload into a directory store: temporary file, data sync, name, directory sync.

use super::{marker::TMP, paths::Paths};
use crate::{Finished, ObjectName, StoreError, Upload};
use async_trait::async_trait;
use bytes::Bytes;
use rustix::fs::{CWD, RenameFlags};
use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
};

/// Pieces gathered before a write, so that a blocking thread is not woken for every small frame.
const GATHER: usize = 1024 * 1024;
const DOING: &str = "writing an object";

/// The blocking half; it removes its file unless that got its name.
struct Temporary {
    paths: Arc<Paths>,
    path: PathBuf,
    file: File,
    named: bool,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.named {
            // Best effort: what stays is removed at the next start.
            let _ = fs::remove_file(&self.path);
        }
    }
}

pub(super) struct DirUpload {
    /// `None` after an error: such a file is never written or synced again.
    temporary: Option<Temporary>,
    gathered: Vec<Bytes>,
    gathered_len: usize,
    root: PathBuf,
}

impl DirUpload {
    pub(super) fn begin(paths: Arc<Paths>) -> Result<Self, StoreError> {
        paths.check_writable()?;
        let number = paths.uploads.fetch_add(1, Ordering::Relaxed);
        let path = paths.root.join(TMP).join(format!("upload-{number}"));
        let file = paths
            .step_begin(|| {
                OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .mode(0o640)
                    .open(&path)
            })
            .map_err(|e| match e.kind() {
                io::ErrorKind::NotFound => StoreError::Offline {
                    path: paths.root.clone(),
                    reason: format!("its {TMP} directory is gone"),
                },
                _ => StoreError::io(DOING, &path, e),
            })?;
        let root = paths.root.clone();
        let temporary = Temporary {
            paths,
            path,
            file,
            named: false,
        };
        Ok(Self {
            temporary: Some(temporary),
            gathered: Vec::new(),
            gathered_len: 0,
            root,
        })
    }

    /// Runs blocking work on the file; whatever goes wrong, the file is gone afterwards.
    async fn on_file<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Temporary) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let poisoned = StoreError::Poisoned {
            path: self.root.clone(),
        };
        let mut temporary = self.temporary.take().ok_or(poisoned)?;
        let task = tokio::task::spawn_blocking(move || work(&mut temporary).map(|done| (temporary, done)));
        let (temporary, done) = task.await.map_err(|_| StoreError::Worker(DOING))??;
        self.temporary = Some(temporary);
        Ok(done)
    }
}

#[async_trait]
impl Upload for DirUpload {
    async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        self.gathered_len += bytes.len();
        self.gathered.push(bytes);
        if self.gathered_len < GATHER {
            return Ok(());
        }
        let pieces = std::mem::take(&mut self.gathered);
        self.gathered_len = 0;
        self.on_file(move |temporary| temporary.write(&pieces)).await
    }

    async fn finish(mut self: Box<Self>, name: &ObjectName) -> Result<Finished, StoreError> {
        let pieces = std::mem::take(&mut self.gathered);
        let name = name.clone();
        self.on_file(move |temporary| {
            temporary.write(&pieces)?;
            temporary.finish(&name)
        })
        .await
    }

    async fn abort(mut self: Box<Self>) {
        if let Some(temporary) = self.temporary.take() {
            // Dropping it is the removal; a failure is mended at the next start.
            let _ = tokio::task::spawn_blocking(move || drop(temporary)).await;
        }
    }
}

impl Temporary {
    fn write(&mut self, pieces: &[Bytes]) -> Result<(), StoreError> {
        for piece in pieces {
            self.paths
                .step_write(&mut self.file, piece)
                .map_err(|e| StoreError::io(DOING, &self.path, e))?;
        }
        Ok(())
    }

    fn finish(&mut self, name: &ObjectName) -> Result<Finished, StoreError> {
        self.paths
            .step_sync(|| self.file.sync_data())
            .map_err(|e| StoreError::io("syncing an object", &self.path, e))?;
        self.paths.ensure_dir(name)?;
        self.paths.check_writable()?;
        let target = self.paths.file(name);
        let created = self
            .paths
            .step_rename(|| rename_new(&self.path, &target))
            .map_err(|e| StoreError::io("naming an object", &target, e))?;
        self.named = created;
        // Also for an object that was there: whoever wrote it may have died before this sync.
        let synced = self.paths.sync(&self.paths.root.join(name.parent()));
        if let (Err(StoreError::NoSpace { .. }), true) = (&synced, created) {
            // Nothing was promised yet, and there is no room: take the name back.
            let _ = fs::remove_file(&target);
        }
        synced?;
        Ok(if created {
            Finished::Created
        } else {
            Finished::AlreadyThere
        })
    }
}

/// Gives the file its name unless that is taken; says whether it did.
fn rename_new(from: &Path, to: &Path) -> io::Result<bool> {
    use rustix::io::Errno;
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(true),
        Err(Errno::EXIST) => Ok(false),
        // Network and FUSE file systems may not know the flag. The store's lock makes us the only
        // writer, and objects of one name have one content, so looking first is enough.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            if to.symlink_metadata().is_ok() {
                return Ok(false);
            }
            rustix::fs::rename(from, to)?;
            Ok(true)
        }
        Err(e) => Err(e.into()),
    }
}
