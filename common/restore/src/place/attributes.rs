//! Owner, mode and times, set last.

use super::target::Target;
use crate::path::join_path;
use holdfast_repo::{Entry, Timestamp};
use rustix::{
    fs::{AtFlags, Gid, Mode, Stat, Timespec, Timestamps, UTIME_OMIT, Uid},
    io::Errno,
};
use std::{os::fd::BorrowedFd, sync::atomic::Ordering::Relaxed};

/// Set-user-id and set-group-id.
const SET_ID_BITS: u32 = 0o6000;

/// What is set on an entry once its content is there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attributes {
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: Timestamp,
}

impl From<&Entry> for Attributes {
    fn from(entry: &Entry) -> Self {
        Self {
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            mtime: entry.mtime,
        }
    }
}

impl Attributes {
    /// Sets them on an open file or directory.
    pub(super) fn set(&self, file: BorrowedFd<'_>, target: &Target) -> rustix::io::Result<()> {
        let owned = self.give(target, |uid, gid| rustix::fs::fchown(file, uid, gid))?;
        // Behind the owner, which clears set-id bits; and never set for an owner who is not the one meant.
        let mode = if owned {
            self.mode
        } else {
            self.mode & !SET_ID_BITS
        };
        rustix::fs::fchmod(file, Mode::from_raw_mode(mode))?;
        rustix::fs::futimens(file, &self.times())
    }

    /// Sets them on a name that cannot be opened: a link, a fifo, a device.
    pub(super) fn set_at(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        has_mode: bool,
        target: &Target,
    ) -> rustix::io::Result<()> {
        let no_follow = AtFlags::SYMLINK_NOFOLLOW;
        let owned = self.give(target, |uid, gid| {
            rustix::fs::chownat(dir, name, uid, gid, no_follow)
        })?;
        if has_mode {
            let mode = if owned {
                self.mode
            } else {
                self.mode & !SET_ID_BITS
            };
            set_mode_at(dir, name, mode)?;
        }
        rustix::fs::utimensat(dir, name, &self.times(), no_follow)
    }

    /// Whether a file already has them, as far as this user could set them.
    #[allow(clippy::unnecessary_cast, reason = "times have other types on other machines")]
    pub(super) fn are_set(&self, stat: &Stat, target: &Target) -> bool {
        let (owned, mode) = self.as_settable(target);
        let same_owner = owned.is_none_or(|owner| owner == (stat.st_uid, stat.st_gid));
        let time = Timestamp {
            secs: stat.st_mtime as i64,
            nanos: stat.st_mtime_nsec as u32,
        };
        same_owner && stat.st_mode & 0o7777 == mode && time == self.mtime
    }

    /// Whether nobody can read or write a file who may not do so once they are set. One that an earlier
    /// restore left unfinished is private.
    pub(super) fn are_as_wide_as(&self, stat: &Stat, target: &Target) -> bool {
        let (owned, mode) = self.as_settable(target);
        let others = stat.st_mode & 0o077;
        let is_private = others == 0 && stat.st_uid == target.uid;
        let same_owner = owned.map_or(stat.st_uid == target.uid, |owner| {
            owner == (stat.st_uid, stat.st_gid)
        });
        is_private || (same_owner && others & !mode == 0)
    }

    /// The owner that is set, if any is, and the mode.
    fn as_settable(&self, target: &Target) -> (Option<(u32, u32)>, u32) {
        let valid = self.uid != u32::MAX && self.gid != u32::MAX;
        let owner = (self.uid, self.gid);
        if target.is_root && valid {
            (Some(owner), self.mode)
        } else if !target.is_root && owner == (target.uid, target.gid) {
            (None, self.mode)
        } else {
            (None, self.mode & !SET_ID_BITS)
        }
    }

    /// Whether the entry now has the owner that it should have.
    fn give(
        &self,
        target: &Target,
        chown: impl Fn(Option<Uid>, Option<Gid>) -> rustix::io::Result<()>,
    ) -> rustix::io::Result<bool> {
        // All bits set is no id, but "leave it" in the system call.
        let valid = self.uid != u32::MAX && self.gid != u32::MAX;
        if target.is_root && valid {
            match chown(Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid))) {
                Ok(()) => return Ok(true),
                // Root of a user namespace that does not have this id.
                Err(Errno::PERM | Errno::INVAL) => {}
                Err(errno) => return Err(errno),
            }
        }
        let same = !target.is_root && self.uid == target.uid && self.gid == target.gid;
        if !same {
            target.counts.owners_kept.fetch_add(1, Relaxed);
        }
        Ok(same)
    }

    fn times(&self) -> Timestamps {
        Timestamps {
            last_access: Timespec {
                tv_sec: 0,
                tv_nsec: UTIME_OMIT,
            },
            last_modification: Timespec {
                tv_sec: self.mtime.secs,
                tv_nsec: self.mtime.nanos.into(),
            },
        }
    }
}

/// chmod of a name that is no link and must not be opened, as opening a fifo or a device has effects.
fn set_mode_at(dir: BorrowedFd<'_>, name: &[u8], mode: u32) -> rustix::io::Result<()> {
    use rustix::fs::OFlags;
    use std::os::fd::AsRawFd as _;
    // A handle that only points there cannot be changed itself; its entry in /proc can, and leads
    // nowhere else.
    let handle = super::target::open_below(dir, name, OFlags::PATH, Mode::empty())?;
    let way = join_path(b"/proc/self/fd", handle.as_raw_fd().to_string().as_bytes());
    rustix::fs::chmod(way, Mode::from_raw_mode(mode))
}
