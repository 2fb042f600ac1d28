//! A working day in a tree: about one file in a hundred is changed, added, removed or renamed.

use super::tree::Maker;
use crate::seed::Rng;
use anyhow::{Context as _, ensure};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Shares of all files.
const CHANGED: f64 = 0.006;
const ADDED: f64 = 0.002;
const REMOVED: f64 = 0.001;
const RENAMED: f64 = 0.001;
/// Numbers of added files start here, one million per version, so that no version meets another's.
const ADDED_FROM: u64 = 1 << 40;

/// What an edit did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Edited {
    /// Files with other content.
    pub changed: u64,
    /// New files.
    pub added: u64,
    /// Files gone.
    pub removed: u64,
    /// Files under another name.
    pub renamed: u64,
    /// Bytes that differ: replaced lines of changed files and all of new ones.
    pub bytes: u64,
}

/// Edits the tree that `maker` made at `root`, as it is by now. `version` (from 1, rising) decides what happens.
///
/// # Errors
/// A file cannot be read or written, or none is left.
pub fn edit(maker: &Maker, root: &Path, version: u64) -> anyhow::Result<Edited> {
    let mut rng = Rng::part(maker.seed() ^ 0x6564_6974, version);
    let mut done = Edited::default();
    let part = |share: f64| ((maker.files() as f64 * share) as u64).max(1);
    let mut files = Vec::new();
    list(root, &mut files)?;
    files.sort_unstable();
    for _ in 0..part(CHANGED) {
        let path = &files[rng.index(files.len())];
        let mut content = fs::read(path).with_context(|| format!("read {}", path.display()))?;
        done.bytes += change(&mut content, version, &mut rng);
        fs::write(path, &content).with_context(|| format!("write {}", path.display()))?;
        done.changed += 1;
    }
    for _ in 0..part(REMOVED) {
        let path = files.swap_remove(rng.index(files.len()));
        fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
        done.removed += 1;
        ensure!(!files.is_empty(), "{} has no files left", root.display());
    }
    for _ in 0..part(RENAMED) {
        let from = files.swap_remove(rng.index(files.len()));
        // The old name stays in the new one, so that no two files of a version meet.
        let mut to = from.clone().into_os_string();
        to.push(format!(".v{version}"));
        rename(&from, Path::new(&to))?;
        done.renamed += 1;
        ensure!(!files.is_empty(), "{} has no files left", root.display());
    }
    let mut buffer = Vec::new();
    for number in 0..part(ADDED) {
        done.bytes += maker.write(
            root,
            ADDED_FROM + version * 1_000_000 + number,
            version,
            &mut buffer,
        )?;
        done.added += 1;
    }
    Ok(done)
}

/// All regular files below a directory.
fn list(dir: &Path, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    let entries = fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))?;
    for entry in entries {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            list(&entry.path(), files)?;
        } else if kind.is_file() {
            files.push(entry.path());
        }
    }
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "a data set needs no durability")]
fn rename(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::rename(from, to).with_context(|| format!("rename {}", from.display()))
}

/// Replaces a line or two somewhere, and sometimes appends some. Returns the bytes that differ.
fn change(content: &mut Vec<u8>, version: u64, rng: &mut Rng) -> u64 {
    let mut bytes = 0;
    for _ in 0..1 + rng.index(3) {
        let line = format!("changed in version {version}: {:x}\n", rng.bits());
        let at = rng.index(content.len() + 1);
        let end = content[at..]
            .iter()
            .take(200)
            .position(|byte| *byte == b'\n')
            .map_or(at, |len| at + len);
        content.splice(at..end, line.bytes());
        bytes += line.len() as u64;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{dataset::tree::Spec, tree};

    #[test]
    fn an_edit_is_repeatable_and_touches_what_it_says() {
        let dir = tempfile::tempdir().unwrap();
        let maker = Maker::new(Spec {
            seed: 9,
            files: 1_000,
        });
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        maker.make(&a).unwrap();
        maker.make(&b).unwrap();
        let before = tree::read(&a);
        for version in 1..4 {
            let first = edit(&maker, &a, version).unwrap();
            assert_eq!(first, edit(&maker, &b, version).unwrap());
            assert_eq!(
                (first.changed, first.added, first.removed, first.renamed),
                (6, 2, 1, 1)
            );
        }
        let after = tree::read(&a);
        let names = |tree: &tree::Tree| tree.keys().cloned().collect::<std::collections::BTreeSet<_>>();
        assert_eq!(names(&after), names(&tree::read(&b)));
        // Each removed or renamed one, unless it was new itself.
        assert!(names(&before).difference(&names(&after)).count() <= 6);
    }

    #[test]
    fn a_small_tree_can_be_edited_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let maker = Maker::new(Spec { seed: 4, files: 10 });
        let root = dir.path().join("tree");
        maker.make(&root).unwrap();
        for version in 1..100 {
            edit(&maker, &root, version).unwrap();
        }
    }
}
