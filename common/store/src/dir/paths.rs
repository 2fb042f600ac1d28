//! Paths, open descriptors and directory syncs of a directory store; everything here blocks.

use super::marker::{MARKER, TMP, sync_dir};
use crate::{Area, Listed, ObjectName, StoreError};
use holdfast_core::StoreId;
use parking_lot::Mutex;
use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

/// Packs kept open for reading: restores come back to the same ones again and again.
const DESCRIPTORS_KEPT: usize = 128;

/// The shared state of one opened store.
pub(super) struct Paths {
    pub(super) root: PathBuf,
    pub(super) id: StoreId,
    pub(super) read_only: bool,
    /// Held for its lock.
    _marker: Option<File>,
    /// Counts temporary files; the lock makes this process the only one that names any.
    pub(super) uploads: AtomicU64,
    /// Directories whose own entry this process has synced. One that was there before may not be durable.
    synced_dirs: Mutex<HashSet<String>>,
    descriptors: Mutex<HashMap<ObjectName, (Arc<File>, u64)>>,
    reads: AtomicU64,
    poisoned: AtomicBool,
    #[cfg(any(test, feature = "testing"))]
    pub(super) faults: crate::fault::Faults,
}

impl Paths {
    pub(super) fn new(root: &Path, id: StoreId, marker: Option<File>, read_only: bool) -> Self {
        Self {
            root: root.to_owned(),
            id,
            read_only,
            _marker: marker,
            uploads: AtomicU64::new(0),
            synced_dirs: Mutex::default(),
            descriptors: Mutex::default(),
            reads: AtomicU64::new(0),
            poisoned: AtomicBool::new(false),
            #[cfg(any(test, feature = "testing"))]
            faults: crate::fault::Faults::none(),
        }
    }

    pub(super) fn file(&self, name: &ObjectName) -> PathBuf {
        self.root.join(name.as_str())
    }

    /// A missing object means nothing while the marker is missing too.
    pub(super) fn check_online(&self) -> Result<(), StoreError> {
        if self.root.join(MARKER).is_file() {
            return Ok(());
        }
        Err(StoreError::Offline {
            path: self.root.clone(),
            reason: format!("its {MARKER} is gone"),
        })
    }

    pub(super) fn check_writable(&self) -> Result<(), StoreError> {
        if self.read_only {
            let reason = "it was opened only for reading".into();
            return Err(StoreError::Conflict {
                path: self.root.clone(),
                reason,
            });
        }
        if self.poisoned.load(Ordering::SeqCst) {
            return Err(StoreError::Poisoned {
                path: self.root.clone(),
            });
        }
        Ok(())
    }

    /// Removes what uploads of an earlier process left.
    pub(super) fn clean_tmp(&self) -> Result<(), StoreError> {
        let tmp = self.root.join(TMP);
        let failed = |e| StoreError::io("removing old temporary files", &tmp, e);
        match fs::create_dir(&tmp) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(failed(e)),
            _ => {}
        }
        for entry in fs::read_dir(&tmp).map_err(failed)? {
            fs::remove_file(entry.map_err(failed)?.path()).map_err(failed)?;
        }
        Ok(())
    }

    /// Makes an object's directory, and durable before anything in it counts.
    pub(super) fn ensure_dir(&self, name: &ObjectName) -> Result<(), StoreError> {
        let parent = name.parent();
        if self.synced_dirs.lock().contains(parent) {
            return Ok(());
        }
        let path = self.root.join(parent);
        let failed = |e| StoreError::io("making a directory", &path, e);
        if !path.is_dir() {
            self.check_online()?;
        }
        fs::create_dir_all(&path).map_err(failed)?;
        for dir in path.ancestors().skip(1) {
            self.sync(dir)?;
            if dir == self.root {
                break;
            }
        }
        self.synced_dirs.lock().insert(parent.to_owned());
        Ok(())
    }

    /// Syncs a directory. After a failure nobody knows what is on disk, so the store takes no more writes.
    pub(super) fn sync(&self, dir: &Path) -> Result<(), StoreError> {
        self.step_sync_dir(|| sync_dir(dir)).map_err(|error| {
            let error = StoreError::io("syncing a directory", dir, error);
            if !matches!(error, StoreError::NoSpace { .. }) {
                self.poisoned.store(true, Ordering::SeqCst);
            }
            error
        })
    }

    pub(super) fn open_object(&self, name: &ObjectName) -> Result<Arc<File>, StoreError> {
        let tick = self.reads.fetch_add(1, Ordering::Relaxed);
        if let Some((file, used)) = self.descriptors.lock().get_mut(name) {
            *used = tick;
            return Ok(Arc::clone(file));
        }
        let file = match File::open(self.file(name)) {
            Ok(file) => Arc::new(file),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                self.check_online()?;
                return Err(StoreError::NotFound(name.clone()));
            }
            Err(e) => return Err(StoreError::io("opening an object", self.file(name), e)),
        };
        if name.area() == Area::Packs {
            let mut kept = self.descriptors.lock();
            if kept.len() >= DESCRIPTORS_KEPT {
                let oldest = kept
                    .iter()
                    .min_by_key(|(_, (_, used))| *used)
                    .map(|(name, _)| name.clone());
                oldest.and_then(|name| kept.remove(&name));
            }
            kept.insert(name.clone(), (Arc::clone(&file), tick));
        }
        Ok(file)
    }

    pub(super) fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        self.check_writable()?;
        let path = self.file(name);
        let removed = self.step_delete(|| fs::remove_file(&path));
        self.descriptors.lock().remove(name);
        match removed {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                self.check_online()?;
                if !self.root.join(name.parent()).is_dir() {
                    return Ok(());
                }
            }
            Err(e) => return Err(StoreError::io("deleting an object", path, e)),
        }
        // Also when it was gone already: an earlier deletion may have ended before its sync.
        self.sync(&self.root.join(name.parent()))
    }

    pub(super) fn list(
        &self,
        area: Area,
        after: Option<&ObjectName>,
        limit: usize,
    ) -> Result<Vec<Listed>, StoreError> {
        self.check_online()?;
        let dirs = if area.is_nested() {
            let from = after.map_or("", ObjectName::parent);
            let all = self
                .entries(area.dir())?
                .into_iter()
                .map(|name| format!("{}/{name}", area.dir()));
            all.filter(|dir| dir.as_str() >= from).collect()
        } else {
            vec![area.dir().to_owned()]
        };
        let mut listed = Vec::new();
        for dir in dirs {
            for leaf in self.entries(&dir)? {
                let Ok(name) = format!("{dir}/{leaf}").parse::<ObjectName>() else {
                    continue;
                };
                if after.is_some_and(|after| name <= *after) {
                    continue;
                }
                match fs::symlink_metadata(self.file(&name)) {
                    Ok(meta) if meta.is_file() => listed.push(Listed {
                        name,
                        len: meta.len(),
                    }),
                    // Deleted between the two calls, or a stray.
                    Ok(_) => {}
                    Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                    Err(e) => return Err(StoreError::io("listing objects", self.file(&name), e)),
                }
                if listed.len() == limit {
                    return Ok(listed);
                }
            }
        }
        Ok(listed)
    }

    pub(super) fn strays(&self, limit: usize) -> Result<Vec<String>, StoreError> {
        self.check_online()?;
        let mut strays = Vec::new();
        let mut dirs = vec![String::new()];
        while let Some(dir) = dirs.pop() {
            for leaf in self.entries(&dir)? {
                let path = if dir.is_empty() {
                    leaf
                } else {
                    format!("{dir}/{leaf}")
                };
                let is_dir = self
                    .root
                    .join(&path)
                    .symlink_metadata()
                    .is_ok_and(|meta| meta.is_dir());
                let known_file = path == MARKER || path.parse::<ObjectName>().is_ok();
                if path == TMP || path == "lost+found" || (!is_dir && known_file) {
                    continue;
                }
                if is_dir && is_layout_dir(&path) {
                    dirs.push(path);
                } else if strays.len() < limit {
                    strays.push(path);
                }
            }
        }
        strays.sort();
        Ok(strays)
    }

    /// Sorted names in one directory; a directory that is not there is empty.
    fn entries(&self, dir: &str) -> Result<Vec<String>, StoreError> {
        let path = self.root.join(dir);
        let failed = |e| StoreError::io("listing a directory", &path, e);
        let mut names = Vec::new();
        match fs::read_dir(&path) {
            Ok(entries) => {
                for entry in entries {
                    names.push(entry.map_err(failed)?.file_name().to_string_lossy().into_owned());
                }
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
            Err(e) => return Err(failed(e)),
        }
        names.sort_unstable();
        Ok(names)
    }
}

fn is_layout_dir(path: &str) -> bool {
    let mut parts = path.split('/');
    let area = parts
        .next()
        .and_then(|top| Area::ALL.into_iter().find(|area| area.dir() == top));
    match (area, parts.next(), parts.next()) {
        (Some(_), None, _) => true,
        (Some(Area::Packs), Some(two), None) => {
            two.len() == 2
                && two
                    .bytes()
                    .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        }
        (Some(Area::Roots | Area::Keys), Some(vault), None) => vault
            .parse::<holdfast_core::VaultId>()
            .is_ok_and(|id| id.to_string() == vault),
        _ => false,
    }
}

/// The places where a test's plan may strike; without one they are the bare calls.
#[cfg(any(test, feature = "testing"))]
impl Paths {
    pub(super) fn step_sync_dir(&self, action: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        self.faults.run(crate::fault::Step::SyncDir, action)
    }

    pub(super) fn step_delete(&self, action: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        self.faults.run(crate::fault::Step::Delete, action)
    }

    pub(super) fn step_begin(&self, action: impl FnOnce() -> io::Result<File>) -> io::Result<File> {
        self.faults.run(crate::fault::Step::Begin, action)
    }

    pub(super) fn step_sync(&self, action: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        self.faults.run(crate::fault::Step::Sync, action)
    }

    pub(super) fn step_rename(&self, action: impl FnOnce() -> io::Result<bool>) -> io::Result<bool> {
        self.faults.run(crate::fault::Step::Rename, action)
    }

    pub(super) fn step_read(&self) -> io::Result<()> {
        self.faults.run(crate::fault::Step::Read, || Ok(()))
    }

    pub(super) fn step_write(&self, file: &mut File, bytes: &[u8]) -> io::Result<()> {
        use crate::fault::{Fault, Step};
        use std::io::Write as _;
        match self.faults.take(Step::Write) {
            None => file.write_all(bytes),
            Some(fault) => {
                let kept = match fault {
                    Fault::Cut => bytes.len() / 2,
                    Fault::Unanswered => bytes.len(),
                    _ => 0,
                };
                file.write_all(&bytes[..kept])?;
                Err(fault.error())
            }
        }
    }
}

/// The places where a test's plan may strike; without one they are the bare calls.
#[cfg(not(any(test, feature = "testing")))]
impl Paths {
    pub(super) fn step_sync_dir(&self, action: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        action()
    }

    pub(super) fn step_delete(&self, action: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        action()
    }

    pub(super) fn step_begin(&self, action: impl FnOnce() -> io::Result<File>) -> io::Result<File> {
        action()
    }

    pub(super) fn step_sync(&self, action: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        action()
    }

    pub(super) fn step_rename(&self, action: impl FnOnce() -> io::Result<bool>) -> io::Result<bool> {
        action()
    }

    pub(super) fn step_read(&self) -> io::Result<()> {
        Ok(())
    }

    pub(super) fn step_write(&self, file: &mut File, bytes: &[u8]) -> io::Result<()> {
        io::Write::write_all(file, bytes)
    }
}
