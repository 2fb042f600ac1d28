//! Small files that must survive a power cut, and directories that others may not enter.

use crate::error::{NetError, Result};
use std::{
    fs::{self, File, OpenOptions},
    io::{Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::Path,
};

/// Mode of files that hold secrets.
pub const PRIVATE_FILE: u32 = 0o600;

#[expect(
    clippy::disallowed_methods,
    reason = "this is a durable helper: the directory is synced below"
)]
/// Replaces a file so that after any crash it holds either the old or the new bytes, whole: temporary file
/// in the same directory, fdatasync, rename, fsync of the directory.
///
/// # Errors
/// `Io` or `NoSpace`; the old file is then untouched unless the very last directory sync failed.
pub fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let temporary = temporary_beside(path)?;
    let written = (|| {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_data()?;
        fs::rename(&temporary, path)
    })();
    if let Err(error) = written {
        // Best effort: the name is random, so a leftover is only untidy.
        let _ = fs::remove_file(&temporary);
        return Err(NetError::file("write", path)(error));
    }
    sync_parent(path)
}

/// Creates a file that must not exist yet, and syncs it and its directory.
///
/// # Errors
/// `Conflict` when it exists; `Io` or `NoSpace` otherwise, and then nothing is left behind.
pub fn create(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .map_err(NetError::file("create", path))?;
    if let Err(error) = file.write_all(bytes).and_then(|()| file.sync_all()) {
        let _ = fs::remove_file(path);
        return Err(NetError::file("write", path)(error));
    }
    sync_parent(path)
}

/// Creates a directory and its parents, mode 0700, and syncs the parent of the last.
///
/// # Errors
/// `Io` when it cannot be made.
pub fn create_private_dir(path: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(NetError::file("create directory", path))?;
    sync_parent(path)
}

/// Reads a whole file of at most `max` bytes.
///
/// # Errors
/// `NotFound` or `Io`; `TooLarge` when it is longer.
pub fn read(path: &Path, max: usize) -> Result<Vec<u8>> {
    let file = File::open(path).map_err(NetError::file("open", path))?;
    let mut bytes = Vec::new();
    file.take(max as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(NetError::file("read", path))?;
    if bytes.len() > max {
        return Err(NetError::TooLarge(format!(
            "{} is longer than {max} bytes",
            path.display()
        )));
    }
    Ok(bytes)
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

fn sync_parent(path: &Path) -> Result<()> {
    let parent = parent(path);
    File::open(parent)
        .and_then(|dir| dir.sync_all())
        .map_err(NetError::file("sync directory", parent))
}

fn temporary_beside(path: &Path) -> Result<std::path::PathBuf> {
    let name = path
        .file_name()
        .ok_or_else(|| NetError::Invalid(format!("{} does not name a file", path.display())))?;
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(NetError::internal("draw random bytes"))?;
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".{}.tmp", hex::encode(random)));
    Ok(parent(path).join(temporary))
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_core::{ErrorKind, HasKind as _};
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn write_replaces_and_create_refuses() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        write(&path, b"one", PRIVATE_FILE).unwrap();
        write(&path, b"two", PRIVATE_FILE).unwrap();
        assert_eq!(read(&path, 3).unwrap(), b"two");
        assert_eq!(read(&path, 2).unwrap_err().kind(), ErrorKind::TooLarge);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(
            create(&path, b"three", PRIVATE_FILE).unwrap_err().kind(),
            ErrorKind::Conflict
        );
        assert_eq!(
            fs::read_dir(dir.path()).unwrap().count(),
            1,
            "no temporary file is left"
        );
        let missing = dir.path().join("none/file");
        assert_eq!(
            write(&missing, b"", PRIVATE_FILE).unwrap_err().kind(),
            ErrorKind::NotFound
        );
    }
}
