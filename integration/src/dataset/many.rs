//! Very many files with next to nothing in them: what a backup keeps in memory for each file shows.

use super::tree::in_parallel;
use crate::seed::{Rng, mix};
use anyhow::Context as _;
use std::{fs, path::Path};

/// Files of a usual directory.
const PER_DIR: u64 = 1_000;
/// One in so many files is in one large directory.
const LARGE_ONE_IN: u64 = 10;
/// Longest content, bytes; half of the files have none.
const CONTENT_MAX: u64 = 64;

/// What the tree is made from.
#[derive(Debug, Clone, Copy)]
pub struct Spec {
    /// Decides everything.
    pub seed: u64,
    /// Regular files.
    pub files: u64,
}

impl Spec {
    /// The bench's tree: two million files, 200 000 of them in one directory.
    #[must_use]
    pub fn large(seed: u64) -> Self {
        Self {
            seed,
            files: 2_000_000,
        }
    }
}

/// Writes the tree below `root`, which must not exist. Returns the bytes in its files.
///
/// # Errors
/// Something cannot be written.
pub fn make(spec: Spec, root: &Path) -> anyhow::Result<u64> {
    let large = spec.files / LARGE_ONE_IN;
    let small = spec.files - large;
    fs::create_dir(root).with_context(|| format!("create {}", root.display()))?;
    fs::create_dir(root.join("large"))?;
    let bytes = std::sync::atomic::AtomicU64::new(0);
    let write = |dir: &Path, number: u64| -> anyhow::Result<()> {
        let mut rng = Rng::part(spec.seed, number);
        let path = dir.join(format!("{:08x}-{number}", mix(number) >> 32));
        let mut content = vec![0; 1 + rng.index(CONTENT_MAX as usize)];
        rng.fill(&mut content);
        if rng.chance(0.5) {
            content.clear();
        }
        bytes.fetch_add(content.len() as u64, std::sync::atomic::Ordering::Relaxed);
        fs::write(&path, content).with_context(|| format!("write {}", path.display()))
    };
    in_parallel(small.div_ceil(PER_DIR), |number, _| {
        let dir = root
            .join(format!("{:02}", number % 100))
            .join(format!("{number}"));
        fs::create_dir_all(&dir)?;
        let first = number * PER_DIR;
        (first..small.min(first + PER_DIR)).try_for_each(|file| write(&dir, file))
    })?;
    in_parallel(large.div_ceil(PER_DIR), |number, _| {
        let first = small + number * PER_DIR;
        let end = spec.files.min(first + PER_DIR);
        (first..end).try_for_each(|file| write(&root.join("large"), file))
    })?;
    Ok(bytes.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_has_its_files_and_its_large_directory() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("many");
        let bytes = make(
            Spec {
                seed: 1,
                files: 5_000,
            },
            &root,
        )
        .unwrap();
        let tree = crate::tree::read(&root);
        let sizes: Vec<u64> = tree
            .values()
            .filter_map(|entry| match entry.kind {
                crate::tree::Kind::File(len, _) => Some(len),
                _ => None,
            })
            .collect();
        assert_eq!(sizes.len(), 5_000);
        assert_eq!(sizes.iter().sum::<u64>(), bytes);
        let empty = sizes.iter().filter(|len| **len == 0).count();
        assert!((2_000..3_000).contains(&empty), "{empty}");
        assert_eq!(fs::read_dir(root.join("large")).unwrap().count(), 500);
    }
}
