//! A store in a directory: synced files, a marker that tells an empty store from an unmounted one.

mod marker;
mod paths;
mod upload;

pub use marker::MARKER;

use crate::{Area, Listed, ObjectName, Space, Store, StoreError, Upload};
use async_trait::async_trait;
use bytes::Bytes;
use holdfast_core::StoreId;
use paths::Paths;
use std::{fs::File, io, path::Path, sync::Arc};

/// A store in a directory. Cheap to clone; all blocking work is done off the async threads.
#[derive(Clone)]
pub struct DirStore {
    paths: Arc<Paths>,
}

impl DirStore {
    /// Makes a new store in an empty or missing directory, and opens it.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when something lies there already.
    pub fn create(path: &Path, id: StoreId) -> Result<Self, StoreError> {
        marker::create(path, id)?;
        Self::open(path)
    }

    /// Opens a store to serve it, alone: other processes are kept out, and what earlier uploads left is removed.
    ///
    /// # Errors
    /// [`StoreError::Offline`] without a marker, [`StoreError::Conflict`] when another process serves it.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let (id, marker) = marker::open(path)?;
        marker::lock(path, &marker)?;
        let paths = Paths::new(path, id, Some(marker), false);
        paths.clean_tmp()?;
        Ok(Self {
            paths: Arc::new(paths),
        })
    }

    /// Opens a store only to read it, as recovery does, beside whoever serves it.
    ///
    /// # Errors
    /// [`StoreError::Offline`] without a marker.
    pub fn open_read_only(path: &Path) -> Result<Self, StoreError> {
        let (id, _) = marker::open(path)?;
        Ok(Self {
            paths: Arc::new(Paths::new(path, id, None, true)),
        })
    }

    /// Opens a store whose steps fail as a test plans.
    ///
    /// # Errors
    /// As [`Self::open`].
    #[cfg(any(test, feature = "testing"))]
    pub fn open_with_faults(path: &Path, faults: crate::fault::Faults) -> Result<Self, StoreError> {
        let (id, marker) = marker::open(path)?;
        marker::lock(path, &marker)?;
        let mut paths = Paths::new(path, id, Some(marker), false);
        paths.faults = faults;
        paths.clean_tmp()?;
        Ok(Self {
            paths: Arc::new(paths),
        })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.paths.root
    }

    async fn blocking<T: Send + 'static>(
        &self,
        doing: &'static str,
        work: impl FnOnce(&Paths) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let paths = Arc::clone(&self.paths);
        tokio::task::spawn_blocking(move || work(&paths))
            .await
            .map_err(|_| StoreError::Worker(doing))?
    }
}

#[async_trait]
impl Store for DirStore {
    fn id(&self) -> StoreId {
        self.paths.id
    }

    fn directory(&self) -> Option<&Path> {
        Some(&self.paths.root)
    }

    async fn begin_upload(&self) -> Result<Box<dyn Upload>, StoreError> {
        let paths = Arc::clone(&self.paths);
        let upload = self
            .blocking("beginning an upload", |_| upload::DirUpload::begin(paths))
            .await?;
        Ok(Box::new(upload))
    }

    async fn get_range(&self, name: &ObjectName, offset: u64, len: usize) -> Result<Bytes, StoreError> {
        let name = name.clone();
        self.blocking("reading an object", move |paths| {
            let file = paths.open_object(&name)?;
            let has = paths.len_of(&name, &file)?;
            if offset.checked_add(len as u64).is_none_or(|end| end > has) {
                return Err(StoreError::Short {
                    name,
                    offset,
                    len: len as u64,
                    has,
                });
            }
            paths.read(&name, &file, offset, len)
        })
        .await
    }

    async fn get(&self, name: &ObjectName, max: usize) -> Result<Bytes, StoreError> {
        let name = name.clone();
        self.blocking("reading an object", move |paths| {
            let file = paths.open_object(&name)?;
            let len = paths.len_of(&name, &file)?;
            match usize::try_from(len).ok().filter(|len| *len <= max) {
                Some(len) => paths.read(&name, &file, 0, len),
                None => Err(StoreError::TooLarge {
                    name,
                    len,
                    max: max as u64,
                }),
            }
        })
        .await
    }

    async fn head(&self, name: &ObjectName) -> Result<Option<u64>, StoreError> {
        let name = name.clone();
        self.blocking(
            "looking for an object",
            move |paths| match std::fs::symlink_metadata(paths.file(&name)) {
                Ok(meta) if meta.is_file() => Ok(Some(meta.len())),
                Ok(_) => Ok(None),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    paths.check_online()?;
                    Ok(None)
                }
                Err(error) => Err(StoreError::io("looking for an object", paths.file(&name), error)),
            },
        )
        .await
    }

    async fn list(
        &self,
        area: Area,
        after: Option<&ObjectName>,
        limit: usize,
    ) -> Result<Vec<Listed>, StoreError> {
        let after = after.cloned();
        self.blocking("listing objects", move |paths| {
            paths.list(area, after.as_ref(), limit)
        })
        .await
    }

    async fn strays(&self, limit: usize) -> Result<Vec<String>, StoreError> {
        self.blocking("listing foreign files", move |paths| paths.strays(limit))
            .await
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        let name = name.clone();
        self.blocking("deleting an object", move |paths| paths.delete(&name))
            .await
    }

    async fn space(&self) -> Result<Space, StoreError> {
        self.blocking("asking for free space", |paths| {
            paths.check_online()?;
            let stat = rustix::fs::statvfs(&paths.root)
                .map_err(|e| StoreError::io("asking for free space", &paths.root, e.into()))?;
            Ok(Space {
                total: stat.f_blocks.saturating_mul(stat.f_frsize),
                free: stat.f_bavail.saturating_mul(stat.f_frsize),
            })
        })
        .await
    }
}

impl Paths {
    fn len_of(&self, name: &ObjectName, file: &File) -> Result<u64, StoreError> {
        let meta = file.metadata();
        Ok(meta
            .map_err(|e| StoreError::io("reading an object's length", self.file(name), e))?
            .len())
    }

    fn read(&self, name: &ObjectName, file: &File, offset: u64, len: usize) -> Result<Bytes, StoreError> {
        // Not zeroed first: that would take as long as the reading.
        let mut body = Vec::with_capacity(len);
        self.step_read()
            .and_then(|()| fill(file, offset, len, &mut body))
            .map_err(|e| StoreError::io("reading an object", self.file(name), e))?;
        Ok(Bytes::from(body))
    }
}

/// Reads so many bytes from a place into an empty buffer.
fn fill(file: &File, offset: u64, len: usize, body: &mut Vec<u8>) -> io::Result<()> {
    body.reserve_exact(len);
    while body.len() < len {
        let at = offset + body.len() as u64;
        match rustix::io::pread(file, rustix::buffer::spare_capacity(body), at) {
            Err(rustix::io::Errno::INTR) => {}
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            outcome => {
                outcome?;
            }
        }
    }
    // The buffer may have had more room than was asked for.
    body.truncate(len);
    Ok(())
}

#[cfg(test)]
mod tests;
