//! A directory below the target, held open while things are put into it.

use super::{
    attributes::Attributes,
    leftovers,
    target::{Target, open_below},
};
use crate::{
    RestoreError, Result,
    path::{PathLink, names, shown},
};
use holdfast_core::ErrorKind;
use holdfast_repo::{Entry, EntryKind};
use rustix::{
    fs::{self, AtFlags, FileType, Mode, OFlags},
    io::Errno,
};
use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, atomic::Ordering::Relaxed},
};

/// Private until its content and then its attributes are there.
const MODE_MEANWHILE: Mode = Mode::RWXU;
/// Mode of directories that only lead to a tree; the snapshot knows nothing of them.
const MODE_PASSAGE: Mode = Mode::RWXU
    .union(Mode::RGRP)
    .union(Mode::XGRP)
    .union(Mode::ROTH)
    .union(Mode::XOTH);

/// The last one to let go of a directory sets its attributes: then nothing is put into it any more,
/// which would change its times.
pub(super) struct Dir {
    handle: OwnedFd,
    pub(super) path: PathLink,
    /// So many names of its path lead to the target, the others from there to it.
    above: usize,
    attributes: Option<Attributes>,
    pub(super) target: Arc<Target>,
}

impl Dir {
    /// The target itself, as the directory of a tree if it takes that one's content.
    pub(super) fn of_target(target: &Arc<Target>, tree: Option<(&Vec<u8>, &Entry)>) -> Result<Arc<Self>> {
        let path = tree.map_or(&b"/"[..], |(path, _)| path);
        let attributes = tree.map(|(_, entry)| Attributes::from(entry));
        if tree.is_some() {
            target.counts.dirs.fetch_add(1, Relaxed);
        }
        let above = names(path).len();
        let path = PathLink::root(path);
        let dir = Self::held(target.handle()?, (path, above), attributes, target);
        Ok(dir.tidied())
    }

    fn held(
        handle: OwnedFd,
        (path, above): (PathLink, usize),
        attributes: Option<Attributes>,
        target: &Arc<Target>,
    ) -> Arc<Self> {
        target.open_dirs.fetch_add(1, Relaxed);
        Arc::new(Self {
            handle,
            path,
            above,
            attributes,
            target: Arc::clone(target),
        })
    }

    /// Without what earlier restores left in it.
    fn tidied(self: Arc<Self>) -> Arc<Self> {
        if self.target.in_place {
            leftovers::remove(&self);
        }
        self
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }

    /// The names that lead from the target to it.
    pub(super) fn way(&self) -> Vec<Vec<u8>> {
        names(&self.path.path()).split_off(self.above)
    }

    /// A directory that only leads to a tree. One that is there is used as it is; a link is refused.
    pub(super) fn passage(&self, name: &[u8]) -> Result<Arc<Self>> {
        match fs::mkdirat(self.fd(), name, MODE_PASSAGE) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(self.failed("make", name, errno)),
        }
        let handle = open_dir(self.fd(), name).map_err(|errno| self.failed("enter", name, errno))?;
        self.target.note_file_system(handle.as_fd());
        let path = (self.path.below(name), self.above);
        Ok(Self::held(handle, path, None, &self.target).tidied())
    }

    /// A directory of the snapshot, made, or merged with one that is there.
    pub(super) fn enter(&self, entry: &Entry, path: PathLink) -> Result<Arc<Self>> {
        let name = &entry.name;
        let mut made = fs::mkdirat(self.fd(), name, MODE_MEANWHILE);
        if made == Err(Errno::EXIST) && self.target.replace && !self.holds_dir(name) {
            // A file or a link where the snapshot has a directory.
            fs::unlinkat(self.fd(), name, AtFlags::empty()).map_err(|e| self.failed("replace", name, e))?;
            made = fs::mkdirat(self.fd(), name, MODE_MEANWHILE);
        }
        match made {
            Ok(()) => {}
            Err(Errno::EXIST) if self.target.replace => {}
            Err(errno) => return Err(self.failed("make", name, errno)),
        }
        let handle = open_dir(self.fd(), name).map_err(|errno| self.failed("enter", name, errno))?;
        if made.is_err() {
            self.target.note_file_system(handle.as_fd());
        }
        self.target.counts.dirs.fetch_add(1, Relaxed);
        let dir = Self::held(handle, (path, self.above), Some(entry.into()), &self.target);
        Ok(if made.is_err() { dir.tidied() } else { dir })
    }

    fn holds_dir(&self, name: &[u8]) -> bool {
        fs::statat(self.fd(), name, AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
    }

    /// A new file for content, and the temporary name that it has where it will replace something.
    pub(super) fn create_file(&self, name: &[u8]) -> Result<(OwnedFd, Option<Vec<u8>>)> {
        let temporary = self.target.replace.then(|| self.target.temporary_name());
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        let now = temporary.as_deref().unwrap_or(name);
        let file = open_below(self.fd(), now, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|errno| self.failed("make", name, errno))?;
        Ok((file, temporary))
    }

    /// A new file under its final name, where nothing is.
    pub(super) fn create_new(&self, name: &[u8]) -> rustix::io::Result<OwnedFd> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        open_below(self.fd(), name, flags, Mode::RUSR | Mode::WUSR)
    }

    /// Gives something its final name.
    pub(super) fn settle(&self, temporary: Option<&[u8]>, name: &[u8]) -> Result<()> {
        match temporary {
            Some(temporary) => fs::renameat(self.fd(), temporary, self.fd(), name)
                .map_err(|errno| self.failed("replace", name, errno)),
            None => Ok(()),
        }
    }

    pub(super) fn remove(&self, name: &[u8]) {
        if let Err(errno) = fs::unlinkat(self.fd(), name, AtFlags::empty()) {
            tracing::warn!(path = %shown(&self.path.path_of(name)), error = %errno, "an incomplete file cannot be removed");
        }
    }

    /// A link, fifo or device.
    pub(super) fn make_special(self: &Arc<Self>, entry: &Entry) -> Result<()> {
        let temporary = self.target.replace.then(|| self.target.temporary_name());
        let now = temporary.as_deref().unwrap_or(&entry.name);
        let mode = Mode::RUSR | Mode::WUSR;
        let node = |kind, device| fs::mknodat(self.fd(), now, kind, mode, device);
        let made = match &entry.kind {
            EntryKind::Symlink { target } => fs::symlinkat(&target[..], self.fd(), now),
            EntryKind::Fifo => node(FileType::Fifo, 0),
            EntryKind::CharDevice { rdev } => node(FileType::CharacterDevice, *rdev),
            EntryKind::BlockDevice { rdev } => node(FileType::BlockDevice, *rdev),
            EntryKind::File { .. } | EntryKind::Dir { .. } => Err(Errno::INVAL),
        };
        made.map_err(|errno| self.failed("make", &entry.name, errno))?;
        let is_link = matches!(entry.kind, EntryKind::Symlink { .. });
        let attributes = Attributes::from(entry);
        attributes
            .set_at(self.fd(), now, is_link, &self.target)
            .map(|left| self.note_left(&entry.name, left))
            .map_err(|errno| self.failed("set the attributes of", &entry.name, errno))
            .and_then(|()| self.settle(temporary.as_deref(), &entry.name))
            .inspect_err(|_| self.remove(now))?;
        let count = if is_link {
            &self.target.counts.symlinks
        } else {
            &self.target.counts.others
        };
        count.fetch_add(1, Relaxed);
        if attributes.link.is_some() {
            let stat = fs::statat(self.fd(), &entry.name[..], AtFlags::SYMLINK_NOFOLLOW);
            self.target.links.made(self, &entry.name, &attributes, stat);
        }
        Ok(())
    }

    /// Sets what an entry has besides its content.
    pub(super) fn set_attributes(
        &self,
        file: BorrowedFd<'_>,
        name: &[u8],
        attributes: &Attributes,
    ) -> Result<()> {
        let left = attributes.set(file, &self.target);
        let left = left.map_err(|errno| self.failed("set the attributes of", name, errno))?;
        self.note_left(name, left);
        Ok(())
    }

    fn note_left(&self, name: &[u8], left: Option<String>) {
        if let Some(reason) = left {
            self.target
                .add_problem(self.path.path_of(name), ErrorKind::Io, reason);
        }
    }

    pub(super) fn failed(&self, doing: &'static str, name: &[u8], errno: Errno) -> RestoreError {
        RestoreError::io(doing, shown(&self.path.path_of(name)), errno)
    }

    /// Notes an error of one entry and goes on, or gives it back when going on makes no sense.
    pub(super) fn problem(&self, name: &[u8], error: RestoreError) -> Result<()> {
        if error.is_local() {
            self.target.problems.add(self.path.path_of(name), &error);
            Ok(())
        } else {
            Err(error)
        }
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        self.target.open_dirs.fetch_sub(1, Relaxed);
        let Some(attributes) = &self.attributes else {
            return;
        };
        let left = attributes.set(self.handle.as_fd(), &self.target);
        let reason =
            left.unwrap_or_else(|errno| Some(format!("its owner, mode or times cannot be set: {errno}")));
        if let Some(reason) = reason {
            self.target.add_problem(self.path.path(), ErrorKind::Io, reason);
        }
    }
}

pub(super) fn open_dir(above: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    open_below(above, name, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())
}
