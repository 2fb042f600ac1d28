//! Removing what is in the restored directories and not in the snapshot.
//!
//! One walk, side by side over the snapshot's directories and those of the target, finds what is to be
//! removed; the preview is the same walk without the removing. Only directories that are wanted whole are
//! looked through. What is entered is entered by single names and never through a link or into another
//! mounted file system, and a directory of the snapshot that cannot be read keeps everything in its place.

use super::{Layout, Part, RestoreOptions, dir::open_dir, target::Target};
use crate::{
    BlobOpener, RestoreError, RestoreReport, Result,
    path::{PathLink, names, shown},
    report::ProblemList,
    tree,
    wanted::Wanted,
};
use holdfast_core::{ChunkId, limits::DIR_DEPTH_MAX};
use holdfast_repo::EntryKind;
use rustix::{
    fs::{self, AtFlags, FileType, Mode, OFlags, ResolveFlags, StatxAttributes, StatxFlags},
    io::Errno,
};
use std::{
    collections::VecDeque,
    fmt,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

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
    layout: Layout,
    act: bool,
    removed: u64,
    mounts: u64,
}

/// A directory that is both in the snapshot and in the target.
struct Both {
    above: Arc<OwnedFd>,
    name: Vec<u8>,
    path: PathLink,
    node: ChunkId,
    wanted: Wanted,
    depth: usize,
}

/// Something in a directory of the target.
struct Found {
    name: Vec<u8>,
    is_dir: bool,
}

/// A directory that is being emptied.
struct Emptied {
    handle: OwnedFd,
    rest: VecDeque<Found>,
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
            layout: options.layout,
            act,
            removed: 0,
            mounts: 0,
        }
    }

    fn clean(&mut self, parts: &[Part<'_>], target: &OwnedFd) -> Result<()> {
        for part in parts {
            let mut above = names(&part.tree.path);
            let last = above.pop();
            let is_dir = matches!(part.tree.entry.kind, EntryKind::Dir { .. });
            let into_target = is_dir && (self.layout == Layout::Content || last.is_none());
            if self.layout == Layout::Content {
                above.clear();
            }
            // The way to a tree is the operator's, and may lead over mounts; where it ends there is nothing.
            let (mut dir, mut path) = (target.try_clone().map_err(opening)?, PathLink::root(b"/"));
            let mut is_there = true;
            for name in above.iter().chain(last.iter().filter(|_| is_dir && !into_target)) {
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
                (_, Some(name)) => self.make_way(dir.as_fd(), &name, &path)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn tree(&mut self, dir: OwnedFd, path: PathLink, node: ChunkId, wanted: Wanted) -> Result<()> {
        let mut stack = Vec::new();
        self.directory(Arc::new(dir), &path, node, &wanted, 1, &mut stack)?;
        while let Some(both) = stack.pop() {
            let Both {
                above,
                name,
                path,
                node,
                wanted,
                depth,
            } = both;
            match enter(above.as_fd(), &name) {
                Ok(dir) => self.directory(Arc::new(dir), &path, node, &wanted, depth, &mut stack)?,
                Err(Errno::XDEV) => self.mounts += 1,
                // A link or a file is in its place: that one is replaced, and what is behind it is not ours.
                Err(Errno::LOOP | Errno::NOTDIR | Errno::NOENT) => {}
                Err(errno) => self.problem(&path, "enter", errno),
            }
        }
        Ok(())
    }

    /// Removes what is not in the snapshot from one directory, and notes the directories that are in both.
    fn directory(
        &mut self,
        dir: Arc<OwnedFd>,
        path: &PathLink,
        node: ChunkId,
        wanted: &Wanted,
        depth: usize,
        stack: &mut Vec<Both>,
    ) -> Result<()> {
        self.check()?;
        if depth > DIR_DEPTH_MAX {
            return Ok(());
        }
        // Names in order, and the nodes of those that are directories.
        let mut known: Vec<Box<[u8]>> = Vec::new();
        let mut nodes: Vec<(usize, ChunkId)> = Vec::new();
        let read = tree::entries(self.opener, node, 1, &mut |entry| {
            if let EntryKind::Dir { node, .. } = entry.kind {
                nodes.push((known.len(), node));
            }
            known.push(entry.name.into());
        });
        match read {
            Ok(()) => {}
            Err(error) if error.is_local() => {
                self.problems.add(path.path(), &error);
                return Ok(());
            }
            Err(error) => return Err(error),
        }
        let there = match list(dir.as_fd()) {
            Ok(there) => there,
            Err(errno) => {
                self.problem(path, "list", errno);
                return Ok(());
            }
        };
        for found in there {
            let at = known.binary_search_by(|name| name[..].cmp(&found.name[..])).ok();
            let below = wanted.below(&found.name);
            let Some(at) = at else {
                if matches!(wanted, Wanted::All) {
                    self.remove(dir.as_fd(), found, path)?;
                }
                continue;
            };
            let Some(below) = below.filter(|_| found.is_dir) else {
                continue;
            };
            match nodes.binary_search_by_key(&at, |(at, _)| *at) {
                Ok(node) => stack.push(Both {
                    above: Arc::clone(&dir),
                    path: path.below(&found.name),
                    name: found.name,
                    node: nodes[node].1,
                    wanted: below,
                    depth: depth + 1,
                }),
                // The snapshot has something else there, which finds no place while there is a directory.
                Err(_) if matches!(below, Wanted::All) => self.remove(dir.as_fd(), found, path)?,
                Err(_) => {}
            }
        }
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
            if let Some(found) = top.rest.pop_front() {
                match self.take(top.handle.as_fd(), found, &top.path) {
                    Taken::Gone => {}
                    Taken::Kept => top.kept = true,
                    Taken::Entered(_) if is_deep => top.kept = true,
                    Taken::Entered(entered) => stack.push(entered),
                }
                continue;
            }
            let Some(done) = stack.pop() else { break };
            let Emptied {
                handle,
                name,
                path,
                kept,
                ..
            } = done;
            drop(handle);
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
        let entered = enter(dir, &name).and_then(|handle| Ok((list(handle.as_fd())?, handle)));
        match entered {
            Ok((rest, handle)) => Taken::Entered(Emptied {
                handle,
                rest: rest.into(),
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

/// What is in a directory, in the order of names.
fn list(dir: BorrowedFd<'_>) -> rustix::io::Result<Vec<Found>> {
    let mut all = Vec::new();
    for entry in fs::Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if matches!(name, b"." | b"..") {
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
        all.push(Found {
            name: name.to_vec(),
            is_dir: kind == FileType::Directory,
        });
    }
    all.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(all)
}
