//! The target of one restore: its handle, who we are, and what was done so far.

use super::{hard_links::HardLinks, leftovers::PREFIX};
use crate::{
    Progress, RestoreError, RestoreReport, Result,
    report::{Counts, ProblemList},
};
use holdfast_core::{ErrorKind, SnapshotId};
use parking_lot::Mutex;
use rustix::{
    fs::{self, Mode, OFlags, ResolveFlags},
    io::Errno,
    process::{Resource, Rlimit, getrlimit, setrlimit},
};
use std::{
    fs::DirBuilder,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::DirBuilderExt as _,
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

/// Most file systems below one target that are synced one by one.
const FILE_SYSTEMS_MAX: usize = 64;
/// Times an open is tried again while someone renames directories above it.
const OPEN_ATTEMPTS: usize = 16;

/// A directory to restore to: by its path, or by a handle that is open already.
pub(crate) struct Destination {
    path: PathBuf,
    handle: Option<OwnedFd>,
}

impl Destination {
    /// What lies at a path, or will. The way to it is the caller's word and may lead through links.
    pub(crate) fn path(path: &Path) -> Self {
        Self {
            path: path.to_path_buf(),
            handle: None,
        }
    }

    /// The directory of a handle; the path is only told.
    pub(crate) fn handle(path: &Path, handle: OwnedFd) -> Self {
        Self {
            path: path.to_path_buf(),
            handle: Some(handle),
        }
    }

    /// Makes the directory if it is absent.
    fn make(&self) -> std::io::Result<()> {
        match self.handle {
            Some(_) => Ok(()),
            None => DirBuilder::new().recursive(true).mode(0o700).create(&self.path),
        }
    }

    /// A handle of our own, with its own place in the directory and its own lock.
    fn open(&self) -> rustix::io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match &self.handle {
            Some(handle) => fs::openat(handle, ".", flags, Mode::empty()),
            None => fs::open(&self.path, flags, Mode::empty()),
        }
    }
}

pub(super) struct Target {
    root: OwnedFd,
    shown: String,
    /// What exists is replaced, under a temporary name first.
    pub(super) replace: bool,
    /// There may be what an earlier restore left.
    pub(super) in_place: bool,
    /// What exists is compared first, and large files are rewritten where they are. Not where two trees of
    /// one snapshot meet: they may be written at the same time.
    pub(super) rewrite: bool,
    /// The target gives what is made in it access control lists of its own.
    pub(super) inherits: bool,
    /// Files of several names.
    pub(super) links: HardLinks,
    /// Only root may give files away and make devices.
    pub(super) is_root: bool,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) problems: ProblemList,
    pub(super) counts: Counts,
    pub(super) progress: Arc<Progress>,
    /// Handles of directories that are open now, and how many may be before the walk narrows.
    pub(super) open_dirs: AtomicUsize,
    pub(super) open_dirs_max: usize,
    temporary: (String, AtomicU64),
    /// One handle for each further file system that was met, by device number.
    file_systems: Mutex<Vec<(u64, OwnedFd)>>,
}

impl Target {
    /// Opens the target, and makes it first if it is absent.
    pub(super) fn open(
        destination: &Destination,
        in_place: bool,
        overlap: bool,
        progress: Arc<Progress>,
    ) -> Result<Arc<Self>> {
        let shown = destination.path.display().to_string();
        let failed = |doing, source| RestoreError::Io {
            doing,
            what: shown.clone(),
            source,
        };
        destination.make().map_err(|source| match source.kind() {
            std::io::ErrorKind::AlreadyExists | std::io::ErrorKind::NotADirectory => RestoreError::Target {
                target: shown.clone(),
                reason: "it is not a directory",
            },
            _ => failed("make the target", source),
        })?;
        let root = destination
            .open()
            .map_err(|e| failed("open the target", e.into()))?;
        if in_place {
            // Two of them would take each other's files for left over.
            let locked = fs::flock(&root, fs::FlockOperation::NonBlockingLockExclusive);
            // Any other error: some network file systems have no locks.
            if locked == Err(Errno::WOULDBLOCK) {
                return Err(RestoreError::Target {
                    target: shown,
                    reason: "another restore is working in it; wait for its end",
                });
            }
        } else {
            let entries = fs::Dir::read_from(&root).map_err(|e| failed("list the target", e.into()))?;
            for entry in entries {
                let entry = entry.map_err(|e| failed("list the target", e.into()))?;
                if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                    return Err(RestoreError::Target {
                        target: shown,
                        reason: "it is not empty; give another directory, or --in-place to restore over what is there, which also \
                                 completes a restore that was interrupted",
                    });
                }
            }
        }
        let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
        let device = fs::fstat(&root)
            .map_err(|e| failed("look at the target", e.into()))?
            .st_dev;
        let inherits = fs::fgetxattr(&root, "system.posix_acl_default", &mut [0_u8; 0]).is_ok();
        let synced = root.try_clone().map_err(|e| failed("open the target", e))?;
        Ok(Arc::new(Self {
            root,
            shown,
            replace: in_place || overlap,
            in_place,
            rewrite: in_place && !overlap,
            inherits,
            links: HardLinks::default(),
            is_root: uid.is_root(),
            uid: uid.as_raw(),
            gid: gid.as_raw(),
            problems: ProblemList::default(),
            counts: Counts::default(),
            progress,
            open_dirs: AtomicUsize::new(0),
            open_dirs_max: crate::bounds::OPEN_DIRS.min(raise_file_limit() / 4),
            // Unlike any name that a snapshot has: nothing of ours is taken for something restored.
            temporary: (format!("{PREFIX}{}", SnapshotId::generate()), AtomicU64::new(0)),
            file_systems: Mutex::new(vec![(device, synced)]),
        }))
    }

    /// The target's handle if it exists, for a look at it alone.
    pub(super) fn look(destination: &Destination) -> Result<Option<OwnedFd>> {
        match destination.open() {
            Ok(handle) => Ok(Some(handle)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(RestoreError::io(
                "open the target",
                destination.path.display().to_string(),
                errno,
            )),
        }
    }

    pub(super) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    pub(super) fn handle(&self) -> Result<OwnedFd> {
        self.root.try_clone().map_err(|source| RestoreError::Io {
            doing: "open the target",
            what: self.shown.clone(),
            source,
        })
    }

    /// How the temporary names of this restore begin.
    pub(super) fn temporary_prefix(&self) -> String {
        self.temporary.0.clone()
    }

    pub(super) fn temporary_name(&self) -> Vec<u8> {
        let n = self.temporary.1.fetch_add(1, Relaxed);
        format!("{}-{n}", self.temporary.0).into_bytes()
    }

    /// Remembers the file system of a directory that existed before, to be synced in the end.
    pub(super) fn note_file_system(&self, dir: BorrowedFd<'_>) {
        let Ok(stat) = fs::fstat(dir) else { return };
        let mut known = self.file_systems.lock();
        let is_new = known.iter().all(|(device, _)| *device != stat.st_dev);
        if is_new && known.len() < FILE_SYSTEMS_MAX {
            known.extend(dir.try_clone_to_owned().ok().map(|handle| (stat.st_dev, handle)));
        }
    }

    /// Everything that was written is on disk after this.
    pub(super) fn sync(&self) -> Result<()> {
        for (_, handle) in self.file_systems.lock().iter() {
            fs::syncfs(handle).map_err(|errno| RestoreError::io("sync the target", &self.shown, errno))?;
        }
        Ok(())
    }

    pub(super) fn report(&self) -> RestoreReport {
        if self.counts.owners_kept.load(Relaxed) > 0 {
            tracing::info!("owners were not restored: only root may");
        }
        let left = self.counts.attributes_left.load(Relaxed);
        if left > 0 {
            tracing::warn!(
                entries = left,
                "extended attributes or flags were not restored: only root may, or the target's file system has none"
            );
        }
        self.counts.report(&self.problems)
    }

    pub(super) fn add_problem(&self, path: Vec<u8>, kind: ErrorKind, reason: impl Into<String>) {
        self.problems.add_text(path, kind, reason.into());
    }
}

/// Opens one name in a directory: never through a link, never above the directory.
pub(crate) fn open_below(
    dir: impl AsFd,
    name: &[u8],
    flags: OFlags,
    mode: Mode,
) -> rustix::io::Result<OwnedFd> {
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    for _ in 0..OPEN_ATTEMPTS {
        match fs::openat2(&dir, name, flags, mode, resolve) {
            Err(Errno::AGAIN) => {}
            // Not in this kernel, or forbidden by a container. For one name without a slash, as all
            // names of snapshots are, NOFOLLOW alone promises the same.
            Err(Errno::NOSYS | Errno::PERM) => return fs::openat(&dir, name, flags, mode),
            outcome => return outcome,
        }
    }
    Err(Errno::AGAIN)
}

/// Lets this process open as many files as it may: every directory in work is held open.
fn raise_file_limit() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    );
    let now = getrlimit(Resource::Nofile).current;
    now.map_or(usize::MAX, |now| usize::try_from(now).unwrap_or(usize::MAX))
}
