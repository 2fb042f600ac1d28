//! A private directory for what a server says during a backup, until it is in the snapshot.

use crate::error::{AgentError, Result};
use holdfast_net::durable;
use std::{
    collections::BTreeSet,
    fs,
    os::unix::ffi::OsStringExt as _,
    path::{Path, PathBuf},
};

const DIR: &str = "staging";

/// A directory below the agent's state that nobody else enters; it goes with the value.
#[derive(Debug)]
pub struct Staging {
    path: PathBuf,
}

impl Drop for Staging {
    fn drop(&mut self) {
        // What is left behind goes when the agent starts next.
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::warn!(%error, path = %self.path.display(), "staged files cannot be removed");
        }
    }
}

impl Staging {
    /// A new one of that name.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn create(state: &Path, name: &str) -> Result<Self> {
        let path = state.join(DIR).join(name);
        remove(&path)?;
        durable::create_private_dir(&path)?;
        Ok(Self { path })
    }

    /// Removes what earlier processes left behind.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn clear(state: &Path) -> Result<()> {
        remove(&state.join(DIR))
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What was put there.
    ///
    /// # Errors
    /// When it cannot be listed.
    pub(super) fn names(&self) -> Result<BTreeSet<Vec<u8>>> {
        let entries = fs::read_dir(&self.path).map_err(AgentError::io("list", &self.path))?;
        let names = entries.map(|entry| entry.map(|entry| entry.file_name().into_vec()));
        names
            .collect::<std::io::Result<_>>()
            .map_err(AgentError::io("list", &self.path))
    }

    /// Puts a file there that only we may read.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn put(&self, name: &str, bytes: &[u8]) -> Result<()> {
        Ok(durable::create(
            &self.path.join(name),
            bytes,
            durable::PRIVATE_FILE,
        )?)
    }
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(AgentError::io("remove", path)(error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn what_is_staged_is_private_and_goes_with_its_owner() {
        let state = tempfile::tempdir().unwrap();
        let staging = Staging::create(state.path(), "run").unwrap();
        staging.put("backup_label", b"x").unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let path = staging.path().to_owned();
        assert_eq!((mode(&path), mode(&path.join("backup_label"))), (0o700, 0o600));
        drop(staging);
        assert!(!path.exists());
        // A process that was killed leaves its directory behind.
        std::mem::forget(Staging::create(state.path(), "run").unwrap());
        assert!(Staging::create(state.path(), "run").is_ok());
        fs::create_dir_all(&path).unwrap();
        Staging::clear(state.path()).unwrap();
        assert!(!path.exists());
        Staging::clear(state.path()).unwrap();
    }
}
