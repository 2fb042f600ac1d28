//! Files that survive a power cut: written aside, synced, renamed, directory synced.

use crate::error::{Error, Result};
use std::{fs, fs::File, io::Write, path::Path};

/// Syncs a directory, so that names made or removed in it stay so.
pub fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir)
        .and_then(|file| file.sync_all())
        .map_err(|e| Error::io("sync the directory", dir, e))
}

/// Makes a directory and syncs its parent.
pub fn create_dir(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).map_err(|e| Error::io("create the directory", dir, e))?;
    parent(dir).map_or(Ok(()), sync_dir)
}

#[expect(
    clippy::disallowed_methods,
    reason = "the directory is synced right behind it"
)]
/// Renames within one file system, durably.
pub fn rename_durably(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(|e| Error::io("rename", from, e))?;
    parent(to).map_or(Ok(()), sync_dir)
}

/// Replaces the file at `path` by `bytes`: either the old or the new content is there after a crash.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let aside = path.with_extension("tmp");
    let mut file = File::create(&aside).map_err(|e| Error::io("create", &aside, e))?;
    file.write_all(bytes).map_err(|e| Error::io("write", &aside, e))?;
    file.sync_data().map_err(|e| Error::io("sync", &aside, e))?;
    rename_durably(&aside, path)
}

/// The file's bytes; none when there is no such file.
pub fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("read", path, e)),
    }
}

/// Removes a file if it is there; its directory is not synced.
pub fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path, e)),
        _ => Ok(()),
    }
}

fn parent(path: &Path) -> Option<&Path> {
    path.parent().filter(|parent| !parent.as_os_str().is_empty())
}
