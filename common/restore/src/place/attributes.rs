//! Owner, extended attributes, mode, times and flags, set last and in this order: giving a file away takes
//! its capabilities, an access control list speaks of the mode, and an immutable file takes nothing any more.

use super::{hard_links::LinkKey, target::Target};
use crate::path::join_path;
use holdfast_repo::{Entry, EntryKind, Timestamp};
use rustix::{
    fs::{AtFlags, Gid, IFlags, Mode, Stat, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags},
    io::Errno,
};
use std::{
    os::fd::{AsRawFd as _, BorrowedFd},
    sync::atomic::Ordering::Relaxed,
};

/// Set-user-id and set-group-id.
const SET_ID_BITS: u32 = 0o6000;
const CAPABILITY: &[u8] = b"security.capability";
const ACL_PREFIX: &[u8] = b"system.posix_acl_";
const ACL_ACCESS: &[u8] = b"system.posix_acl_access";
/// Most bytes of names that Linux lists for one file (XATTR_LIST_MAX).
const XATTR_LIST_MAX: usize = 64 * 1024;

/// Flags that are set; whatever else a snapshot names is how its file system stored the file.
const FLAGS_SET: [IFlags; 8] = [
    IFlags::NODUMP,
    IFlags::SYNC,
    IFlags::DIRSYNC,
    IFlags::NOATIME,
    IFlags::COMPRESSED,
    IFlags::NOCOW,
    IFlags::APPEND,
    IFlags::IMMUTABLE,
];

/// What is set on an entry once its content is there.
#[derive(Debug, Clone)]
pub(super) struct Attributes {
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: Timestamp,
    more: Option<Box<holdfast_repo::Attributes>>,
    /// Of files and directories; nothing else has any, and must not be opened to set them.
    pub(super) flags: u32,
    /// Set for the first of several names of one file.
    pub(super) link: Option<LinkKey>,
}

impl From<&Entry> for Attributes {
    fn from(entry: &Entry) -> Self {
        Self {
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            mtime: entry.mtime,
            flags: match (&entry.kind, &entry.attributes) {
                (EntryKind::File { .. } | EntryKind::Dir { .. }, Some(more)) => more.flags,
                _ => 0,
            },
            more: entry.attributes.clone(),
            link: LinkKey::of(entry),
        }
    }
}

/// How an entry is at hand.
#[derive(Clone, Copy)]
enum Handle<'h> {
    Open(BorrowedFd<'h>),
    /// The entry in /proc of a handle that only points there: it leads to that, be it a link, and nowhere else.
    Way(&'h [u8]),
}

impl Handle<'_> {
    fn set(self, name: &[u8], value: &[u8]) -> rustix::io::Result<()> {
        match self {
            Self::Open(file) => rustix::fs::fsetxattr(file, name, value, XattrFlags::empty()),
            Self::Way(way) => rustix::fs::setxattr(way, name, value, XattrFlags::empty()),
        }
    }

    fn remove(self, name: &[u8]) -> rustix::io::Result<()> {
        match self {
            Self::Open(file) => rustix::fs::fremovexattr(file, name),
            Self::Way(way) => rustix::fs::removexattr(way, name),
        }
    }

    fn names(self) -> Vec<u8> {
        let list = |names: &mut [u8]| match self {
            Self::Open(file) => rustix::fs::flistxattr(file, names),
            Self::Way(way) => rustix::fs::listxattr(way, names),
        };
        let mut few = [0; 512];
        match list(&mut few) {
            Ok(len) => few[..len].to_vec(),
            Err(Errno::RANGE) => {
                let mut names = vec![0; XATTR_LIST_MAX];
                let len = list(&mut names).unwrap_or(0);
                names.truncate(len);
                names
            }
            Err(_) => Vec::new(),
        }
    }

    fn set_mode(self, mode: u32) -> rustix::io::Result<()> {
        match self {
            Self::Open(file) => rustix::fs::fchmod(file, Mode::from_raw_mode(mode)),
            Self::Way(way) => rustix::fs::chmod(way, Mode::from_raw_mode(mode)),
        }
    }
}

/// What could not be set although the entry is usable without it.
#[derive(Default)]
struct Left {
    /// Not allowed to this user, or not known to the file system.
    some: bool,
    /// Anything else: reported.
    problem: Option<String>,
}

impl Left {
    fn note(&mut self, name: &[u8], errno: Errno) {
        match errno {
            Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP | Errno::NOSYS => self.some = true,
            _ => {
                let name = name.escape_ascii();
                let problem = || format!("its extended attribute {name} cannot be set: {errno}");
                self.problem.get_or_insert_with(problem);
            }
        }
    }

    fn count(self, target: &Target) -> Option<String> {
        if self.some {
            target.counts.attributes_left.fetch_add(1, Relaxed);
        }
        self.problem
    }
}

impl Attributes {
    /// Before there is content: what a file system takes only then.
    pub(super) fn prepare(&self, file: BorrowedFd<'_>) {
        let no_cow = IFlags::from_bits_retain(self.flags).intersection(IFlags::NOCOW);
        if !no_cow.is_empty()
            && let Ok(flags) = rustix::fs::ioctl_getflags(file)
        {
            // If it fails, it fails again in the end, and is counted.
            let _ = rustix::fs::ioctl_setflags(file, flags | no_cow);
        }
    }

    /// Sets them on an open file or directory. Says what could not be set and is worth a word, although
    /// the entry is usable without it.
    pub(super) fn set(&self, file: BorrowedFd<'_>, target: &Target) -> rustix::io::Result<Option<String>> {
        let owned = self.give(target, |uid, gid| rustix::fs::fchown(file, uid, gid))?;
        let mut left = Left::default();
        self.set_mode(Handle::Open(file), owned, target, &mut left)?;
        rustix::fs::futimens(file, &self.times())?;
        // Nothing can be linked to an immutable file: those of several names get their flags behind the last.
        if self.link.is_none() && !set_flags(file, self.flags) {
            left.some = true;
        }
        Ok(left.count(target))
    }

    /// Sets them on a name that cannot be opened: a link, a fifo, a device.
    pub(super) fn set_at(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        is_link: bool,
        target: &Target,
    ) -> rustix::io::Result<Option<String>> {
        let no_follow = AtFlags::SYMLINK_NOFOLLOW;
        let owned = self.give(target, |uid, gid| {
            rustix::fs::chownat(dir, name, uid, gid, no_follow)
        })?;
        let mut left = Left::default();
        if !is_link || self.more.as_ref().is_some_and(|more| !more.xattrs.is_empty()) {
            // Opening a fifo or a device has effects; pointing at it has none.
            use rustix::fs::OFlags;
            let handle = super::target::open_below(dir, name, OFlags::PATH, Mode::empty())?;
            let way = join_path(b"/proc/self/fd", handle.as_raw_fd().to_string().as_bytes());
            if is_link {
                self.set_xattrs(Handle::Way(&way), owned, target, &mut left, |_| true);
            } else {
                self.set_mode(Handle::Way(&way), owned, target, &mut left)?;
            }
        }
        rustix::fs::utimensat(dir, name, &self.times(), no_follow)?;
        Ok(left.count(target))
    }

    /// Mode and extended attributes.
    fn set_mode(
        &self,
        handle: Handle<'_>,
        owned: bool,
        target: &Target,
        left: &mut Left,
    ) -> rustix::io::Result<()> {
        if target.replace || target.inherits {
            self.remove_others(handle);
        }
        // As long as its owner may write it: afterwards the mode may forbid that.
        self.set_xattrs(handle, owned, target, left, |name| !name.starts_with(ACL_PREFIX));
        // Behind the owner, which clears set-id bits; and never set for an owner who is not the one meant.
        let mode = if owned {
            self.mode
        } else {
            self.mode & !SET_ID_BITS
        };
        handle.set_mode(mode)?;
        let lists_left = !self.set_xattrs(handle, owned, target, left, |name| name.starts_with(ACL_PREFIX));
        if lists_left && let Some(bits) = self.group_bits() {
            // Where there is a list, the mode shows as the group's what is the most for anyone named in it.
            handle.set_mode(mode & !0o070 | bits << 3 & mode)?;
        }
        Ok(())
    }

    /// Sets some of the extended attributes; says whether all of those are set now.
    fn set_xattrs(
        &self,
        handle: Handle<'_>,
        owned: bool,
        target: &Target,
        left: &mut Left,
        chosen: impl Fn(&[u8]) -> bool,
    ) -> bool {
        let mut all = true;
        let xattrs = self.more.iter().flat_map(|more| more.xattrs.iter());
        for (name, value) in xattrs.filter(|(name, _)| chosen(name)) {
            let may = if target.is_root {
                // As with set-id: not for an owner who is not the one meant.
                owned || name != CAPABILITY
            } else {
                name.starts_with(b"user.") || owned && name.starts_with(ACL_PREFIX)
            };
            let outcome = if may {
                handle.set(name, value)
            } else {
                Err(Errno::PERM)
            };
            if let Err(errno) = outcome {
                left.note(name, errno);
                all = false;
            }
        }
        all
    }

    /// Removes what the entry had before or got from its directory. Labels that the system gives stay.
    fn remove_others(&self, handle: Handle<'_>) {
        for name in handle.names().split(|byte| *byte == 0) {
            let is_wanted = self
                .more
                .as_ref()
                .is_some_and(|more| more.xattrs.get(name).is_some());
            if is_restored(name)
                && !is_wanted
                && let Err(errno) = handle.remove(name)
            {
                tracing::debug!(name = %name.escape_ascii(), error = %errno, "an extended attribute stays");
            }
        }
    }

    /// What the access control list gives the group itself: `struct posix_acl_xattr_header`, a version, and
    /// entries of tag, rights and id.
    fn group_bits(&self) -> Option<u32> {
        const GROUP_OBJ: u16 = 0x04;
        let list = self.more.as_ref()?.xattrs.get(ACL_ACCESS)?;
        let entries = list.strip_prefix(&2_u32.to_le_bytes())?;
        entries.chunks_exact(8).find_map(|entry| {
            let word = |at: usize| u16::from_le_bytes([entry[at], entry[at + 1]]);
            (word(0) == GROUP_OBJ).then(|| u32::from(word(2)) & 0o7)
        })
    }

    /// Whether a file already has them, as far as this user could set them.
    #[allow(clippy::unnecessary_cast, reason = "times have other types on other machines")]
    pub(super) fn are_set(&self, file: BorrowedFd<'_>, stat: &Stat, target: &Target) -> bool {
        // Extended attributes and flags are not compared: where there are or were any, they are set again.
        let names = Handle::Open(file).names();
        if self.more.is_some() || names.split(|byte| *byte == 0).any(is_restored) {
            return false;
        }
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

/// Sets a file's flags; says whether it has all of them now.
pub(super) fn set_flags(file: BorrowedFd<'_>, flags: u32) -> bool {
    let wanted = IFlags::from_bits_retain(flags);
    let wanted = FLAGS_SET.into_iter().filter(|flag| wanted.contains(*flag));
    let all = wanted.clone().fold(IFlags::empty(), IFlags::union);
    if all.is_empty() {
        return true;
    }
    let Ok(now) = rustix::fs::ioctl_getflags(file) else {
        return false;
    };
    if now.contains(all) || rustix::fs::ioctl_setflags(file, now | all).is_ok() {
        return true;
    }
    // A file system that does not know one refuses all: those that it knows, one by one, what forbids
    // further changes last.
    let mut now = now;
    for flag in wanted {
        if rustix::fs::ioctl_setflags(file, now | flag).is_ok() {
            now |= flag;
        }
    }
    now.contains(all)
}

/// Extended attributes that a restore sets and removes; others are labels that the system gives.
fn is_restored(name: &[u8]) -> bool {
    name.starts_with(b"user.")
        || name.starts_with(b"trusted.")
        || name.starts_with(ACL_PREFIX)
        || name == CAPABILITY
}
