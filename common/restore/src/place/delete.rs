//! Removing what is in the restored directories and not in the snapshot.
//!
//! One walk, side by side over the snapshot's directories and those of the target, finds what is to be
//! removed; the preview is the same walk without the removing. Only directories that are wanted whole are
//! looked through. What is entered is entered by single names and never through a link or into another
//! mounted file system, and a node of the snapshot that cannot be read keeps what is in its place, and all behind.

use super::{
    RestoreOptions,
    dir::open_dir,
    parts::{Part, Place},
    target::Target,
};
use crate::{
    BlobOpener, RestoreError, RestoreReport, Result,
    path::{PathLink, shown},
    report::ProblemList,
    tree::Search,
    wanted::Wanted,
};
use holdfast_core::{ChunkId, Names, limits::DIR_DEPTH_MAX};
use holdfast_repo::EntryKind;
use rustix::{
    fs::{self, AtFlags, FileType, Mode, OFlags, ResolveFlags, StatxAttributes, StatxFlags},
    io::Errno,
};
use std::{
    fmt,
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

/// Bytes of names in directories of the target that are held together. A directory takes at most half of what is
/// left of it, and reads further names once those are through.
const NAMES_HELD_MAX: usize = 32 * 1024 * 1024;
/// What each may take in any case, to get on.
const NAMES_MIN: usize = 128 * 1024;
/// Subdirectories that are noted before they are entered.
const BELOW_MAX: usize = 1024;
/// Tag of the name of a directory.
const IS_DIR: u8 = 1;

type Tell = dyn Fn(&[u8], bool) + Send + Sync;

/// Who is told of removals.
#[derive(Clone, Default)]
pub struct OnRemoval(Option<Arc<Tell>>);

impl OnRemoval {
    /// Calls `tell` with each path below the target, which begins with a slash, and whether it is a directory;
    /// what is in a directory comes before it.
    #[must_use]
    pub fn new(tell: impl Fn(&[u8], bool) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(tell)))
    }
}

impl OnRemoval {
    /// The same for one of several targets: paths begin with its own.
    pub(crate) fn below(&self, target: &Path) -> Self {
        let Some(tell) = self.0.clone() else {
            return Self(None);
        };
        let target = target.as_os_str().as_bytes().to_vec();
        Self::new(move |path, is_dir| tell(&[&target[..], path].concat(), is_dir))
    }
}

impl fmt::Debug for OnRemoval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OnRemoval").field(&self.0.is_some()).finish()
    }
}

/// Removes.
pub(super) fn remove(
    opener: &mut BlobOpener,
    parts: &[Part<'_>],
    target: &Target,
    options: &RestoreOptions,
) -> Result<()> {
    let mut cleaner = Cleaner::new(opener, &target.problems, options, true);
    cleaner.clean(parts, &target.handle()?)?;
    target.counts.removed.store(cleaner.removed, Relaxed);
    target.counts.mounts_kept.store(cleaner.mounts, Relaxed);
    Ok(())
}

/// Finds what [`remove`] would remove.
pub(super) fn preview(
    opener: &mut BlobOpener,
    parts: &[Part<'_>],
    target: OwnedFd,
    options: &RestoreOptions,
    mut counted: RestoreReport,
) -> Result<RestoreReport> {
    let problems = ProblemList::default();
    let mut cleaner = Cleaner::new(opener, &problems, options, false);
    cleaner.clean(parts, &target)?;
    counted.removed = cleaner.removed;
    counted.mounts_kept = cleaner.mounts;
    let found = problems.take();
    counted.problems.count += found.count;
    counted.problems.listed.extend(found.listed);
    Ok(counted)
}

struct Cleaner<'c> {
    opener: &'c mut BlobOpener,
    problems: &'c ProblemList,
    tell: &'c OnRemoval,
    cancel: &'c AtomicBool,
    act: bool,
    removed: u64,
    mounts: u64,
    /// Bytes of names.
    held: usize,
}

/// A directory that is both in the snapshot and in the target, while it is looked through.
struct Both {
    handle: OwnedFd,
    path: PathLink,
    node: ChunkId,
    wanted: Wanted,
    depth: usize,
    there: There,
    /// Directories in both that are yet to be entered, the first one last.
    below: Vec<Below>,
    is_over: bool,
}

/// A directory in both, which is yet to be entered.
struct Below {
    name: Vec<u8>,
    node: ChunkId,
    wanted: Wanted,
}

/// What is in a directory of the target, in the order of names: of very wide ones a part at a time.
struct There {
    names: Names,
    at: usize,
    /// Bytes counted for the names.
    held: usize,
}

/// Something in a directory of the target.
struct Found {
    name: Vec<u8>,
    is_dir: bool,
}

/// A directory that is being emptied.
struct Emptied {
    handle: OwnedFd,
    there: There,
    name: Vec<u8>,
    path: PathLink,
    /// Something in it stays.
    kept: bool,
}

/// What became of something that is to be removed.
enum Taken {
    Gone,
    Kept,
    /// A directory, which has to be emptied first.
    Entered(Emptied),
}

impl<'c> Cleaner<'c> {
    fn new(
        opener: &'c mut BlobOpener,
        problems: &'c ProblemList,
        options: &'c RestoreOptions,
        act: bool,
    ) -> Self {
        Self {
            opener,
            problems,
            tell: &options.on_removal,
            cancel: &options.cancel,
            act,
            removed: 0,
            mounts: 0,
            held: 0,
        }
    }

    fn clean(&mut self, parts: &[Part<'_>], target: &OwnedFd) -> Result<()> {
        for part in parts {
            let is_dir = matches!(part.tree.entry.kind, EntryKind::Dir { .. });
            let last = match &part.place {
                Place::Under(name) => Some(name),
                Place::Target | Place::Within => None,
            };
            // The way to a tree is the operator's, and may lead over mounts; where it ends there is nothing.
            let (mut dir, mut path) = (target.try_clone().map_err(opening)?, PathLink::root(b"/"));
            let mut is_there = true;
            for name in part.way.iter().chain(last.filter(|_| is_dir)) {
                match open_dir(dir.as_fd(), name) {
                    Ok(next) => (dir, path) = (next, path.below(name)),
                    Err(_) => {
                        is_there = false;
                        break;
                    }
                }
            }
            match (&part.tree.entry.kind, last) {
                _ if !is_there => {}
                (EntryKind::Dir { node, .. }, _) => self.tree(dir, path, *node, part.wanted.clone())?,
                (_, Some(name)) => self.make_way(dir.as_fd(), name, &path)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn tree(&mut self, dir: OwnedFd, path: PathLink, node: ChunkId, wanted: Wanted) -> Result<()> {
        let mut stack = Vec::new();
        self.begin(dir, path, node, wanted, 1, &mut stack);
        while let Some(both) = stack.last_mut() {
            self.check()?;
            let Some(Below { name, node, wanted }) = both.below.pop() else {
                if both.is_over {
                    self.end(stack.pop().map(|both| both.there));
                } else {
                    self.look(both)?;
                }
                continue;
            };
            let (path, depth) = (both.path.below(&name), both.depth + 1);
            let entered = enter(both.handle.as_fd(), &name);
            if both.is_over && both.below.is_empty() {
                // Not held any longer than needed: directories may be nested deeper than files may be open.
                self.end(stack.pop().map(|both| both.there));
            }
            match entered {
                Ok(dir) => self.begin(dir, path, node, wanted, depth, &mut stack),
                Err(Errno::XDEV) => self.mounts += 1,
                // A link or a file is in its place: that one is replaced, and what is behind it is not ours.
                Err(Errno::LOOP | Errno::NOTDIR | Errno::NOENT) => {}
                Err(errno) => self.problem(&path, "enter", errno),
            }
        }
        Ok(())
    }

    /// Begins to look through a directory that is in both.
    fn begin(
        &mut self,
        handle: OwnedFd,
        path: PathLink,
        node: ChunkId,
        wanted: Wanted,
        depth: usize,
        stack: &mut Vec<Both>,
    ) {
        if depth > DIR_DEPTH_MAX {
            return;
        }
        match self.list(handle.as_fd()) {
            Ok(there) => stack.push(Both {
                handle,
                path,
                node,
                wanted,
                depth,
                there,
                below: Vec::new(),
                is_over: false,
            }),
            Err(errno) => self.problem(&path, "list", errno),
        }
    }

    /// Removes what is not in the snapshot from a directory, and notes the directories that are in both, until
    /// there are enough of those.
    fn look(&mut self, both: &mut Both) -> Result<()> {
        let mut known = Search::new(both.node);
        while both.below.len() < BELOW_MAX {
            self.check()?;
            let found = match self.next(&mut both.there, both.handle.as_fd()) {
                Ok(Some(found)) => found,
                Ok(None) => {
                    both.is_over = true;
                    break;
                }
                Err(errno) => {
                    self.problem(&both.path, "list", errno);
                    both.is_over = true;
                    break;
                }
            };
            let entry = match known.take(self.opener, &found.name) {
                Ok(entry) => entry,
                // What else is there stays: the snapshot may have it.
                Err(error) if error.is_local() => {
                    self.problems.add(both.path.path(), &error);
                    both.is_over = true;
                    break;
                }
                Err(error) => return Err(error),
            };
            let wanted = both.wanted.below(&found.name);
            let dir = both.handle.as_fd();
            match (entry.map(|entry| entry.kind), wanted) {
                (None, Some(Wanted::All)) if both.wanted.is_whole() => self.remove(dir, found, &both.path)?,
                (None, _) => {}
                (Some(EntryKind::Dir { node, .. }), Some(wanted)) if found.is_dir => {
                    let name = found.name;
                    both.below.push(Below { name, node, wanted });
                }
                // The snapshot has something else there, which finds no place while there is a directory.
                (Some(_), Some(Wanted::All)) if found.is_dir => self.remove(dir, found, &both.path)?,
                _ => {}
            }
        }
        both.below.reverse();
        Ok(())
    }

    /// Removes a directory where a tree has something else.
    fn make_way(&mut self, dir: BorrowedFd<'_>, name: &[u8], path: &PathLink) -> Result<()> {
        let stat = fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW);
        let is_dir = stat.is_ok_and(|s| FileType::from_raw_mode(s.st_mode) == FileType::Directory);
        let name = name.to_vec();
        if is_dir {
            self.remove(dir, Found { name, is_dir }, path)?;
        }
        Ok(())
    }

    /// Removes one thing with everything in it, deepest first, but nothing that is mounted in it.
    fn remove(&mut self, dir: BorrowedFd<'_>, found: Found, path: &PathLink) -> Result<()> {
        let mut stack: Vec<Emptied> = Vec::new();
        if let Taken::Entered(entered) = self.take(dir, found, path) {
            stack.push(entered);
        }
        loop {
            self.check()?;
            let is_deep = stack.len() >= DIR_DEPTH_MAX;
            let Some(top) = stack.last_mut() else { break };
            match self.next(&mut top.there, top.handle.as_fd()) {
                Ok(Some(found)) => {
                    match self.take(top.handle.as_fd(), found, &top.path) {
                        Taken::Gone => {}
                        Taken::Kept => top.kept = true,
                        Taken::Entered(entered) if is_deep => {
                            top.kept = true;
                            self.end(Some(entered.there));
                        }
                        Taken::Entered(entered) => stack.push(entered),
                    }
                    continue;
                }
                Ok(None) => {}
                Err(errno) => {
                    self.problem(&top.path, "list", errno);
                    top.kept = true;
                }
            }
            let Some(done) = stack.pop() else { break };
            let Emptied {
                handle,
                there,
                name,
                path,
                kept,
            } = done;
            drop(handle);
            self.end(Some(there));
            let above = stack.last().map_or(dir, |above| above.handle.as_fd());
            let removed = !kept && self.unlink(above, &name, &path, true);
            if !removed && let Some(above) = stack.last_mut() {
                above.kept = true;
            }
        }
        Ok(())
    }

    /// Removes something that is no directory, or enters one to be emptied.
    fn take(&mut self, dir: BorrowedFd<'_>, found: Found, above: &PathLink) -> Taken {
        let Found { name, is_dir } = found;
        let path = above.below(&name);
        if is_mount(dir, &name) {
            self.mounts += 1;
            return Taken::Kept;
        }
        if !is_dir {
            let gone = self.unlink(dir, &name, &path, false);
            return if gone { Taken::Gone } else { Taken::Kept };
        }
        let entered = enter(dir, &name).and_then(|handle| Ok((self.list(handle.as_fd())?, handle)));
        match entered {
            Ok((there, handle)) => Taken::Entered(Emptied {
                handle,
                there,
                name,
                path,
                kept: false,
            }),
            Err(Errno::XDEV) => {
                self.mounts += 1;
                Taken::Kept
            }
            Err(errno) => {
                self.problem(&path, "enter", errno);
                Taken::Kept
            }
        }
    }

    /// Reads what is in a directory, or begins to.
    fn list(&mut self, dir: BorrowedFd<'_>) -> rustix::io::Result<There> {
        let mut there = There {
            names: Names::default(),
            at: 0,
            held: 0,
        };
        self.read(&mut there, dir, None)?;
        Ok(there)
    }

    /// What comes next in a directory.
    fn next(&mut self, there: &mut There, dir: BorrowedFd<'_>) -> rustix::io::Result<Option<Found>> {
        if there.at >= there.names.len() && there.names.is_cut() {
            let after = there.names.last().unwrap_or_default().to_vec();
            self.read(there, dir, Some(&after))?;
        }
        let Some((name, tag)) = there.names.get(there.at) else {
            return Ok(None);
        };
        there.at += 1;
        Ok(Some(Found {
            name: name.to_vec(),
            is_dir: tag == IS_DIR,
        }))
    }

    fn read(
        &mut self,
        there: &mut There,
        dir: BorrowedFd<'_>,
        after: Option<&[u8]>,
    ) -> rustix::io::Result<()> {
        self.held -= std::mem::take(&mut there.held);
        let left = NAMES_HELD_MAX.saturating_sub(self.held);
        there.at = 0;
        there.names.begin((left / 2).max(NAMES_MIN));
        read_names(dir, after, &mut there.names)?;
        there.names.shrink();
        there.held = there.names.capacity();
        self.held += there.held;
        Ok(())
    }

    /// The names of a directory are not needed any more.
    fn end(&mut self, there: Option<There>) {
        self.held -= there.map_or(0, |there| there.held);
    }

    /// Whether it is gone, or would be.
    fn unlink(&mut self, dir: BorrowedFd<'_>, name: &[u8], path: &PathLink, is_dir: bool) -> bool {
        if self.act {
            let flags = if is_dir {
                AtFlags::REMOVEDIR
            } else {
                AtFlags::empty()
            };
            match fs::unlinkat(dir, name, flags) {
                Ok(()) => {}
                Err(Errno::NOENT) => return true,
                Err(errno) => {
                    self.problem(path, "remove", errno);
                    return false;
                }
            }
        }
        self.removed += 1;
        if let Some(tell) = &self.tell.0 {
            tell(&path.path(), is_dir);
        }
        true
    }

    fn problem(&self, path: &PathLink, doing: &'static str, errno: Errno) {
        let path = path.path();
        let error = RestoreError::io(doing, shown(&path), errno);
        self.problems.add(path, &error);
    }

    fn check(&self) -> Result<()> {
        if self.cancel.load(Relaxed) {
            Err(RestoreError::Interrupted)
        } else {
            Ok(())
        }
    }
}

fn opening(source: std::io::Error) -> RestoreError {
    RestoreError::Io {
        doing: "open",
        what: "the target".into(),
        source,
    }
}

/// Opens a directory by one name, on the same mounted file system only.
fn enter(above: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_XDEV;
    match fs::openat2(above, name, flags, Mode::empty(), resolve) {
        // Not in this kernel, or forbidden by a container: at least other devices are told apart.
        Err(Errno::NOSYS | Errno::PERM) => {
            let handle = fs::openat(above, name, flags, Mode::empty())?;
            if fs::fstat(&handle)?.st_dev == fs::fstat(above)?.st_dev {
                Ok(handle)
            } else {
                Err(Errno::XDEV)
            }
        }
        outcome => outcome,
    }
}

/// Whether something is mounted under that name, which the preview must know as well as the effect.
fn is_mount(dir: BorrowedFd<'_>, name: &[u8]) -> bool {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    fs::statx(dir, name, flags, StatxFlags::TYPE)
        .is_ok_and(|stat| stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// Reads the names behind `after`, each with whether it is a directory.
fn read_names(dir: BorrowedFd<'_>, after: Option<&[u8]>, names: &mut Names) -> rustix::io::Result<()> {
    for entry in fs::Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if matches!(name, b"." | b"..") || after.is_some_and(|after| name <= after) {
            continue;
        }
        let kind = match entry.file_type() {
            FileType::Unknown => match fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => FileType::from_raw_mode(stat.st_mode),
                Err(Errno::NOENT) => continue,
                Err(errno) => return Err(errno),
            },
            kind => kind,
        };
        let tag = if kind == FileType::Directory { IS_DIR } else { 0 };
        if !names.push(name, tag) {
            return Err(Errno::NAMETOOLONG);
        }
    }
    names.finish();
    Ok(())
}
