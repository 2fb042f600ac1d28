//! What a restore did, and what it could not do.

use crate::RestoreError;
use holdfast_core::{ErrorKind, HasKind, limits::LISTED_PROBLEMS_MAX};
use holdfast_proto::v1;
use parking_lot::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// One path that could not be brought back, or not wholly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Path in the snapshot; bytes, not UTF-8.
    pub path: Vec<u8>,
    /// The kind of what went wrong.
    pub kind: ErrorKind,
    /// What went wrong.
    pub reason: String,
}

impl From<Problem> for v1::Problem {
    fn from(problem: Problem) -> Self {
        Self {
            path: problem.path.into(),
            reason: problem.reason,
        }
    }
}

/// Problems: their exact number, and the first of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Problems {
    /// At most `limits::LISTED_PROBLEMS_MAX`.
    pub listed: Vec<Problem>,
    /// All of them.
    pub count: u64,
}

/// What a restore did, or in a dry run would do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RestoreReport {
    /// Regular files.
    pub files: u64,
    /// Directories, those of the snapshot only.
    pub dirs: u64,
    /// Symbolic links.
    pub symlinks: u64,
    /// Fifos and devices.
    pub others: u64,
    /// Bytes of content.
    pub bytes: u64,
    /// Those of them that were there already, and were neither fetched nor written.
    pub bytes_kept: u64,
    /// Things that were in the target and not in the snapshot, and were removed.
    pub removed: u64,
    /// Mounted file systems that were met and left alone while removing.
    pub mounts_kept: u64,
    /// Entries whose owner could not be restored, because only root may; no problems otherwise.
    pub owners_kept: u64,
    /// Entries without some of their extended attributes or flags, because only root may set them or the file
    /// system of the target has none; no problems otherwise.
    pub attributes_left: u64,
    /// What could not be restored. Nothing is left under the name of a file that is listed here
    /// for its content, unless it was there before: one that is rewritten in place keeps what was right, is
    /// private, and has a time of 1970.
    pub problems: Problems,
}

impl RestoreReport {
    /// Adds what another part of the same restore did.
    pub(crate) fn add(&mut self, other: Self) {
        let Self {
            files,
            dirs,
            symlinks,
            others,
            bytes,
            bytes_kept,
            removed,
            mounts_kept,
            owners_kept,
            attributes_left,
            problems,
        } = other;
        self.files += files;
        self.dirs += dirs;
        self.symlinks += symlinks;
        self.others += others;
        self.bytes += bytes;
        self.bytes_kept += bytes_kept;
        self.removed += removed;
        self.mounts_kept += mounts_kept;
        self.owners_kept += owners_kept;
        self.attributes_left += attributes_left;
        self.problems.count += problems.count;
        self.problems.listed.extend(problems.listed);
        self.problems.listed.truncate(LISTED_PROBLEMS_MAX);
    }

    /// `Partial` when something could not be restored.
    #[must_use]
    pub fn kind(&self) -> Option<ErrorKind> {
        (self.problems.count > 0).then_some(ErrorKind::Partial)
    }
}

/// Collects problems from several threads.
#[derive(Debug, Default)]
pub(crate) struct ProblemList(Mutex<Problems>);

impl ProblemList {
    /// Notes an error that concerns one path.
    pub(crate) fn add(&self, path: Vec<u8>, error: &RestoreError) {
        let error = error.cause();
        self.add_text(path, error.kind(), error.to_string());
    }

    pub(crate) fn add_text(&self, path: Vec<u8>, kind: ErrorKind, reason: String) {
        let mut problems = self.0.lock();
        problems.count += 1;
        if problems.listed.len() < LISTED_PROBLEMS_MAX {
            problems.listed.push(Problem { path, kind, reason });
        }
    }

    /// What was collected, in the order of paths.
    pub(crate) fn take(&self) -> Problems {
        let mut problems = std::mem::take(&mut *self.0.lock());
        problems.listed.sort_by(|a, b| a.path.cmp(&b.path));
        problems
    }
}

/// Counters of what was placed.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) files: AtomicU64,
    pub(crate) dirs: AtomicU64,
    pub(crate) symlinks: AtomicU64,
    pub(crate) others: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) bytes_kept: AtomicU64,
    pub(crate) owners_kept: AtomicU64,
    pub(crate) removed: AtomicU64,
    pub(crate) mounts_kept: AtomicU64,
    pub(crate) attributes_left: AtomicU64,
}

impl Counts {
    pub(crate) fn report(&self, problems: &ProblemList) -> RestoreReport {
        RestoreReport {
            files: self.files.load(Relaxed),
            dirs: self.dirs.load(Relaxed),
            symlinks: self.symlinks.load(Relaxed),
            others: self.others.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
            bytes_kept: self.bytes_kept.load(Relaxed),
            owners_kept: self.owners_kept.load(Relaxed),
            removed: self.removed.load(Relaxed),
            mounts_kept: self.mounts_kept.load(Relaxed),
            attributes_left: self.attributes_left.load(Relaxed),
            problems: problems.take(),
        }
    }
}
