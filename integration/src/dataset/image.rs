//! An image of 8 KiB pages, half random and half constant, as a database's file or a disk image mixes
//! them; and its rewrite, page by page, by the same generator.

use super::tree::in_parallel;
use crate::seed::{Rng, mix};
use anyhow::Context as _;
use std::{collections::BTreeSet, fs::File, os::unix::fs::FileExt as _, path::Path};

/// Length of a page.
pub const PAGE: usize = 8192;
/// Pages written at once.
const BATCH: u64 = 512;

/// What an image is made from.
#[derive(Debug, Clone, Copy)]
pub struct Spec {
    /// Decides everything.
    pub seed: u64,
    /// Length in pages.
    pub pages: u64,
}

impl Spec {
    /// The bench's image: 4 GiB.
    #[must_use]
    pub fn large(seed: u64) -> Self {
        Self {
            seed,
            pages: (4 << 30) / PAGE as u64,
        }
    }

    /// Length in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.pages * PAGE as u64
    }
}

/// Content of one page: 4 KiB random, 4 KiB of one byte value that depends on the page.
fn fill_page(spec: Spec, page: u64, version: u64, out: &mut [u8]) {
    let mut rng = Rng::part(spec.seed ^ mix(version), page);
    let (random, constant) = out.split_at_mut(PAGE / 2);
    rng.fill(random);
    constant.fill((mix(page ^ mix(version)) & 0xff) as u8);
}

/// Writes the image to a new file.
///
/// # Errors
/// The file exists or cannot be written.
pub fn make(spec: Spec, path: &Path) -> anyhow::Result<()> {
    let file = File::create_new(path).with_context(|| format!("create {}", path.display()))?;
    file.set_len(spec.bytes())?;
    in_parallel(spec.pages.div_ceil(BATCH), |batch, buffer| {
        let first = batch * BATCH;
        let count = BATCH.min(spec.pages - first);
        buffer.resize(count as usize * PAGE, 0);
        for (offset, page) in buffer.chunks_exact_mut(PAGE).enumerate() {
            fill_page(spec, first + offset as u64, 0, page);
        }
        file.write_all_at(buffer, first * PAGE as u64)
            .with_context(|| format!("write {}", path.display()))
    })
}

/// Rewrites `share` of the pages, scattered, with the content of `version` (not 0). Returns the bytes that
/// were written.
///
/// # Errors
/// The file cannot be written.
pub fn rewrite(spec: Spec, path: &Path, share: f64, version: u64) -> anyhow::Result<u64> {
    let file = File::options()
        .write(true)
        .open(path)
        .with_context(|| format!("open {}", path.display()))?;
    let mut rng = Rng::part(spec.seed ^ 0x7061_6765, version);
    let wanted = ((spec.pages as f64 * share) as usize).max(1);
    let mut pages = BTreeSet::new();
    while pages.len() < wanted {
        pages.insert(rng.below(spec.pages));
    }
    let mut buffer = vec![0; PAGE];
    for page in &pages {
        fill_page(spec, *page, version, &mut buffer);
        file.write_all_at(&buffer, page * PAGE as u64)
            .with_context(|| format!("write {}", path.display()))?;
    }
    Ok((pages.len() * PAGE) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rewrite_changes_exactly_its_share_of_pages_and_half_of_each_compresses() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let spec = Spec {
            seed: 5,
            pages: 1_000,
        };
        make(spec, &path).unwrap();
        let before = std::fs::read(&path).unwrap();
        assert_eq!(before.len() as u64, spec.bytes());
        let packed = zstd::bulk::compress(&before, 3).unwrap().len() as f64 / before.len() as f64;
        assert!((0.49..0.55).contains(&packed), "zstd -3 leaves {packed:.3}");
        assert_eq!(rewrite(spec, &path, 0.01, 1).unwrap(), 10 * PAGE as u64);
        let after = std::fs::read(&path).unwrap();
        let changed = before
            .chunks(PAGE)
            .zip(after.chunks(PAGE))
            .filter(|(a, b)| a != b)
            .count();
        assert_eq!(changed, 10);
    }
}
