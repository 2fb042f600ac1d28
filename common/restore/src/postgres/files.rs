//! Small files and names in directories that are held open, each durable when a call returns.

use crate::{RestoreError, Result, path::shown, place::open_below};
use holdfast_core::SnapshotId;
use rustix::{
    fs::{self, AtFlags, FileType, Gid, Mode, OFlags, RenameFlags, Uid},
    io::Errno,
};
use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

/// Whom a cluster belongs to, and who besides may read it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Owner {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Servers start only from 0700 or, where initdb allowed the group, from 0750.
    pub(super) group_reads: bool,
}

impl Owner {
    pub(super) fn dir_mode(self) -> Mode {
        Mode::from_raw_mode(if self.group_reads { 0o750 } else { 0o700 })
    }

    pub(super) fn file_mode(self) -> Mode {
        Mode::from_raw_mode(if self.group_reads { 0o640 } else { 0o600 })
    }

    /// Gives a file or directory to them; only root can.
    pub(super) fn give(self, file: BorrowedFd<'_>, mode: Mode) -> rustix::io::Result<()> {
        if rustix::process::geteuid().is_root() {
            fs::fchown(file, Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)))?;
        }
        fs::fchmod(file, mode)
    }

    /// The same for a link, which has no mode.
    pub(super) fn give_link(self, dir: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<()> {
        if !rustix::process::geteuid().is_root() {
            return Ok(());
        }
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        fs::chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
    }
}

/// An error of one name.
pub(super) fn failed(doing: &'static str, name: &[u8]) -> impl FnOnce(Errno) -> RestoreError {
    let what = shown(name);
    move |errno| RestoreError::io(doing, what, errno)
}

/// Opens a directory by one name, never through a link.
pub(super) fn open_dir(above: impl AsFd, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    open_below(above, name, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())
}

/// The same, made first if it is absent.
pub(super) fn make_dir(above: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd> {
    match fs::mkdirat(above, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(failed("make", name)(errno)),
    }
    open_dir(above, name).map_err(failed("enter", name))
}

/// Replaces a file so that there is either the old or the new one, whole.
pub(super) fn write(dir: BorrowedFd<'_>, name: &[u8], bytes: &[u8], owner: Owner) -> Result<()> {
    // Of the form of all temporary names, so that the next restore removes what this one leaves.
    let temporary = format!(".holdfast-{}-0", SnapshotId::generate()).into_bytes();
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
    let file = open_below(dir, &temporary, flags, Mode::RUSR | Mode::WUSR).map_err(failed("make", name))?;
    let mut file = File::from(file);
    let written = owner
        .give(file.as_fd(), owner.file_mode())
        .map_err(std::io::Error::from)
        .and_then(|()| file.write_all(bytes))
        .and_then(|()| file.sync_all())
        .and_then(|()| Ok(fs::renameat(dir, &temporary[..], dir, name)?))
        .and_then(|()| Ok(fs::fsync(dir)?));
    written.map_err(|source| {
        // Best effort: the name is random, so a leftover is only untidy.
        let _ = fs::unlinkat(dir, &temporary[..], AtFlags::empty());
        RestoreError::Io {
            doing: "write",
            what: shown(name),
            source,
        }
    })
}

/// Reads a regular file of at most `max` bytes; none when there is none, or it is longer.
pub(super) fn read(dir: BorrowedFd<'_>, name: &[u8], max: usize) -> Result<Option<Vec<u8>>> {
    // NONBLOCK: whoever may write to the directory could have put a fifo there.
    let file = match open_below(dir, name, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => return Ok(None),
        Err(errno) => return Err(failed("open", name)(errno)),
    };
    let reading = |source| RestoreError::Io {
        doing: "read",
        what: shown(name),
        source,
    };
    if !file.metadata().map_err(reading)?.is_file() {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    file.take(max as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(reading)?;
    Ok((bytes.len() <= max).then_some(bytes))
}

/// Renames to a name that must be free, and syncs the directory. False when there is nothing to rename, or the name
/// is taken.
pub(super) fn rename_new(dir: BorrowedFd<'_>, from: &[u8], to: &[u8]) -> Result<bool> {
    match fs::renameat_with(dir, from, dir, to, RenameFlags::NOREPLACE) {
        Ok(()) => fs::fsync(dir)
            .map(|()| true)
            .map_err(failed("sync what holds", to)),
        Err(Errno::NOENT | Errno::EXIST) => Ok(false),
        Err(errno) => Err(failed("rename", from)(errno)),
    }
}

/// Removes a file if it is there, and syncs the directory.
pub(super) fn remove(dir: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    match fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) => fs::fsync(dir).map_err(failed("sync what holds", name)),
        Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(failed("remove", name)(errno)),
    }
}

/// The names in a directory, and whether each is a regular file.
pub(super) fn list(dir: BorrowedFd<'_>) -> rustix::io::Result<Vec<(Vec<u8>, bool)>> {
    let mut names = Vec::new();
    for entry in fs::Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if matches!(name, b"." | b"..") {
            continue;
        }
        let is_file = match entry.file_type() {
            FileType::Unknown => {
                let stat = fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
                FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
            }
            kind => kind == FileType::RegularFile,
        };
        names.push((name.to_vec(), is_file));
    }
    Ok(names)
}

/// Whether nothing is in a directory but perhaps that name.
pub(super) fn is_empty_but(dir: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<bool> {
    for entry in fs::Dir::read_from(dir)? {
        let entry = entry?;
        let found = entry.file_name().to_bytes();
        if !matches!(found, b"." | b"..") && found != name {
            return Ok(false);
        }
    }
    Ok(true)
}
