//! Where the bench works: its directories, taken exclusively and removed at the end.

use super::run::Plan;
use anyhow::{Context as _, bail};
use std::{
    fs,
    io::Read as _,
    path::{Path, PathBuf},
};

/// The bench's directories.
pub(super) struct Place {
    /// Sources and repositories.
    pub dir: PathBuf,
    /// Restores, in memory.
    pub restores: PathBuf,
    _lock: fs::File,
}

impl Place {
    /// `sources` is the size of all sources in bytes, `largest` that of the largest: five repositories of it,
    /// and one restore, are there at a time.
    pub fn take(plan: &Plan, sources: u64, largest: u64) -> anyhow::Result<Self> {
        fs::create_dir_all(&plan.dir).with_context(|| format!("create {}", plan.dir.display()))?;
        let lock = fs::File::create(plan.dir.join("holdfast-bench.lock"))?;
        lock.try_lock()
            .map_err(|_| anyhow::anyhow!("another bench runs in {}", plan.dir.display()))?;
        let place = Self {
            dir: plan.dir.join("holdfast-bench"),
            restores: plan.restores.join("holdfast-bench"),
            _lock: lock,
        };
        place.clear();
        fs::create_dir_all(&place.dir)?;
        fs::create_dir_all(&place.restores)?;
        enough(&place.dir, sources + largest * 4)?;
        enough(&place.restores, largest + (1 << 30))?;
        Ok(place)
    }

    /// Fills as much memory as a tool will, and lets go of it: pages that a virtual machine never used, or gave
    /// back to its host, cost several times as much, and who comes first would pay for all.
    pub fn warm(&self, bytes: u64) -> anyhow::Result<()> {
        let path = self.restores.join("warm");
        let mut file = fs::File::create(&path)?;
        std::io::copy(&mut std::io::repeat(0x5a).take(bytes), &mut file)?;
        drop(file);
        Ok(fs::remove_file(&path)?)
    }

    fn clear(&self) {
        for dir in [&self.dir, &self.restores] {
            let _ = fs::remove_dir_all(dir);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.clear();
    }
}

fn enough(dir: &Path, bytes: u64) -> anyhow::Result<()> {
    let stat = rustix::fs::statvfs(dir)?;
    let free = stat.f_bavail * stat.f_frsize;
    if free < bytes {
        bail!(
            "{} has {:.1} GB free, the bench needs {:.1} GB: set HOLDFAST_BENCH_DIR, or HOLDFAST_BENCH_SCALE below 1",
            dir.display(),
            free as f64 / 1e9,
            bytes as f64 / 1e9
        );
    }
    Ok(())
}

/// Removes a directory, on all cores: a tree of many files takes longer to remove than some tools to restore.
///
/// # Errors
/// When something of it cannot be removed.
pub(super) fn remove(dir: &Path) -> anyhow::Result<()> {
    let below: Vec<PathBuf> = fs::read_dir(dir)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    if let [only] = below.as_slice()
        && only.symlink_metadata()?.is_dir()
    {
        remove(only)?;
    } else {
        crate::dataset::tree::in_parallel(below.len() as u64, |number, _| {
            let path = &below[number as usize];
            let is_dir = path.symlink_metadata()?.is_dir();
            Ok(if is_dir {
                fs::remove_dir_all(path)
            } else {
                fs::remove_file(path)
            }?)
        })?;
    }
    fs::remove_dir(dir).with_context(|| format!("remove {}", dir.display()))
}
