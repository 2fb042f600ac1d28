//! A tree of many small files, as a large source repository has them.

use super::text::Vocabulary;
use crate::seed::{Rng, mix};
use anyhow::Context as _;
use std::{
    fs,
    io::Write as _,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
    time::{Duration, SystemTime},
};

/// Median and spread of the log-normal file sizes; their mean is about 21 KiB.
const SIZE_MEDIAN: f64 = 6_000.0;
const SIZE_SIGMA: f64 = 1.6;
const SIZE_MAX: usize = 8 << 20;
/// Files per directory, on average.
const FILES_PER_DIR: usize = 14;
const DEPTH_MAX: usize = 12;
/// Shares of all files.
const DUPLICATES: f64 = 0.05;
const INCOMPRESSIBLE: f64 = 0.05;
const EMPTY: f64 = 0.005;
const EXECUTABLE: f64 = 0.05;
const SYMLINKS: f64 = 0.01;
/// Times are drawn from the three years after this second (2023-01-01).
const EPOCH_S: u64 = 1_672_531_200;
const EPOCH_SPAN_S: u64 = 3 * 365 * 24 * 3600;
const ENDINGS: &[&str] = &[
    "rs", "c", "h", "py", "js", "go", "md", "json", "toml", "txt", "S", "yaml",
];

/// What a tree is made from; the same specification gives the same tree.
#[derive(Debug, Clone, Copy)]
pub struct Spec {
    /// Decides everything.
    pub seed: u64,
    /// Regular files.
    pub files: usize,
}

impl Spec {
    /// The bench's tree: 160 000 files, about 3.3 GB.
    #[must_use]
    pub fn large(seed: u64) -> Self {
        Self { seed, files: 160_000 }
    }
}

/// What was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Made {
    /// Regular files.
    pub files: u64,
    /// Directories, the root included.
    pub dirs: u64,
    /// Symbolic links.
    pub symlinks: u64,
    /// Bytes in regular files.
    pub bytes: u64,
}

/// The generator of one tree.
#[derive(Debug)]
pub struct Maker {
    spec: Spec,
    words: Vocabulary,
    dirs: Vec<PathBuf>,
}

impl Maker {
    /// Prepares names and directories.
    #[must_use]
    pub fn new(spec: Spec) -> Self {
        let words = Vocabulary::new(spec.seed);
        let mut rng = Rng::part(spec.seed, 0x0064_6972);
        let mut dirs = vec![(PathBuf::new(), 0usize)];
        for number in 1..(spec.files / FILES_PER_DIR).max(1) {
            // The square prefers early, shallow parents: wide near the top, a few deep branches.
            let parent = ((rng.unit() * rng.unit()) * dirs.len() as f64) as usize;
            let parent = if dirs[parent].1 + 1 > DEPTH_MAX { 0 } else { parent };
            let path = dirs[parent].0.join(format!("{}{number}", words.name(&mut rng)));
            dirs.push((path, dirs[parent].1 + 1));
        }
        Self {
            spec,
            words,
            dirs: dirs.into_iter().map(|(path, _)| path).collect(),
        }
    }

    /// Path of file `number` below the root.
    #[must_use]
    pub fn path(&self, number: u64) -> PathBuf {
        let mut rng = Rng::part(self.spec.seed, number * 2);
        let dir = &self.dirs[rng.index(self.dirs.len())];
        dir.join(format!(
            "{}_{number}.{}",
            self.words.name(&mut rng),
            ENDINGS[rng.index(ENDINGS.len())]
        ))
    }

    /// Content of file `number`; `version` 0 is the original.
    pub fn content(&self, number: u64, version: u64, out: &mut Vec<u8>) {
        out.clear();
        let origin = self.origin(number);
        let mut rng = Rng::part(self.spec.seed ^ mix(version), origin * 2 + 1);
        if rng.chance(EMPTY) {
            return;
        }
        let size = (SIZE_MEDIAN.ln() + SIZE_SIGMA * rng.normal()).exp();
        let size = (size as usize).clamp(1, SIZE_MAX);
        if rng.chance(INCOMPRESSIBLE) {
            out.resize(size, 0);
            rng.fill(out);
        } else {
            // Files of one directory share names, as a module's do.
            let place = mix(Rng::part(self.spec.seed, origin * 2).below(self.dirs.len() as u64));
            self.words.write_text(out, size, place, &mut rng);
        }
    }

    /// The file whose content `number` has: its own, or that of an earlier one.
    fn origin(&self, number: u64) -> u64 {
        let draw = mix(self.spec.seed ^ mix(number) ^ 0x6475_7065);
        let is_duplicate = (draw >> 11) as f64 / (1u64 << 53) as f64 <= DUPLICATES;
        if number > 0 && is_duplicate {
            mix(draw) % number
        } else {
            number
        }
    }

    /// Writes file `number`, with its mode and time, replacing what is there.
    pub(super) fn write(
        &self,
        root: &Path,
        number: u64,
        version: u64,
        buffer: &mut Vec<u8>,
    ) -> anyhow::Result<u64> {
        let path = root.join(self.path(number));
        self.content(number, version, buffer);
        let mut rng = Rng::part(self.spec.seed ^ 0x6d65_7461 ^ mix(version), number);
        let mut file = fs::File::create(&path).with_context(|| format!("create {}", path.display()))?;
        file.write_all(buffer)
            .with_context(|| format!("write {}", path.display()))?;
        let mode = if rng.chance(EXECUTABLE) { 0o755 } else { 0o644 };
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.set_modified(past(&mut rng))?;
        Ok(buffer.len() as u64)
    }

    /// Writes the whole tree below `root`, which is created and must not exist.
    pub fn make(&self, root: &Path) -> anyhow::Result<Made> {
        fs::create_dir(root).with_context(|| format!("create {}", root.display()))?;
        for dir in &self.dirs[1..] {
            fs::create_dir(root.join(dir)).with_context(|| format!("create {}", dir.display()))?;
        }
        let bytes = AtomicU64::new(0);
        in_parallel(self.spec.files as u64, |number, buffer| {
            bytes.fetch_add(self.write(root, number, 0, buffer)?, Ordering::Relaxed);
            Ok(())
        })?;
        let symlinks = (self.spec.files as f64 * SYMLINKS) as u64;
        let mut rng = Rng::part(self.spec.seed, 0x006c_696e_6b73);
        for number in 0..symlinks {
            let at = &self.dirs[rng.index(self.dirs.len())];
            let up = "../".repeat(at.components().count());
            // One in twenty points nowhere, as in real trees.
            let target = if rng.chance(0.05) {
                PathBuf::from(format!("{up}gone/{number}"))
            } else {
                Path::new(&up).join(self.path(rng.below(self.spec.files as u64)))
            };
            let link = root.join(at).join(format!("link_{number}"));
            symlink(&target, &link).with_context(|| format!("make the link {}", link.display()))?;
            set_link_time(&link, past(&mut rng))?;
        }
        // Last: everything before changed the directories' times.
        for dir in self.dirs.iter().rev() {
            fs::File::open(root.join(dir))?.set_modified(past(&mut rng))?;
        }
        Ok(Made {
            files: self.spec.files as u64,
            dirs: self.dirs.len() as u64,
            symlinks,
            bytes: bytes.into_inner(),
        })
    }

    /// Number of files of the original.
    #[must_use]
    pub fn files(&self) -> u64 {
        self.spec.files as u64
    }

    /// Seed of the tree.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.spec.seed
    }
}

/// A symbolic link's own time, which the standard library cannot set.
fn set_link_time(link: &Path, time: SystemTime) -> anyhow::Result<()> {
    let since = time.duration_since(SystemTime::UNIX_EPOCH)?;
    let time = rustix::fs::Timespec {
        tv_sec: i64::try_from(since.as_secs())?,
        tv_nsec: i64::from(since.subsec_nanos()),
    };
    let times = rustix::fs::Timestamps {
        last_access: time,
        last_modification: time,
    };
    rustix::fs::utimensat(
        rustix::fs::CWD,
        link,
        &times,
        rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
    )
    .with_context(|| format!("set the time of {}", link.display()))
}

fn past(rng: &mut Rng) -> SystemTime {
    let seconds = EPOCH_S + rng.below(EPOCH_SPAN_S);
    SystemTime::UNIX_EPOCH + Duration::new(seconds, rng.below(1_000_000_000) as u32)
}

/// Calls `work` for every number below `count`, on all cores, each thread with a buffer of its own.
pub(crate) fn in_parallel(
    count: u64,
    work: impl Fn(u64, &mut Vec<u8>) -> anyhow::Result<()> + Sync,
) -> anyhow::Result<()> {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..std::thread::available_parallelism().map_or(2, usize::from))
            .map(|_| {
                scope.spawn(|| {
                    let mut buffer = Vec::new();
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed) as u64;
                        if number >= count {
                            return Ok(());
                        }
                        work(number, &mut buffer)?;
                    }
                })
            })
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().expect("a generator thread"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree;

    #[test]
    fn the_same_seed_makes_the_same_tree_and_another_one_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let make = |name: &str, seed| {
            let root = dir.path().join(name);
            let made = Maker::new(Spec { seed, files: 300 }).make(&root).unwrap();
            (made, tree::read(&root))
        };
        let (made, first) = make("a", 1);
        let (_, again) = make("b", 1);
        let (_, other) = make("c", 2);
        tree::assert_same("same seed", &first, &again);
        assert!(!tree::differences(&first, &other, tree::Strictness::full(), 1).is_empty());
        assert_eq!(first.len() as u64, made.files + made.dirs + made.symlinks);
    }

    #[test]
    fn it_compresses_like_source_code_and_holds_some_duplicates() {
        let maker = Maker::new(Spec {
            seed: 3,
            files: 2_000,
        });
        let (mut raw, mut packed) = (0, 0);
        let mut contents = std::collections::HashSet::new();
        let mut buffer = Vec::new();
        for number in 0..maker.files() {
            maker.content(number, 0, &mut buffer);
            raw += buffer.len();
            packed += zstd::bulk::compress(&buffer, 3).unwrap().len();
            contents.insert(buffer.clone());
        }
        let ratio = packed as f64 / raw as f64;
        assert!((0.25..0.42).contains(&ratio), "zstd -3 leaves {ratio:.3}");
        let duplicates = 1.0 - contents.len() as f64 / maker.files() as f64;
        assert!(
            (0.03..0.08).contains(&duplicates),
            "{duplicates:.3} are duplicates"
        );
        let mean = raw as f64 / maker.files() as f64;
        assert!((15_000.0..30_000.0).contains(&mean), "{mean:.0} bytes on average");
    }
}
