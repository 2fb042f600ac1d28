//! What `stat` does not tell of a file: extended attributes and flags; and which names are one file.
//!
//! Read only of what is new or changed: the time of the inode's last change covers all of it.

use super::Shared;
use crate::files::ROOTS_MAX;
use holdfast_core::limits::{ATTRIBUTES_LEN_MAX, ROOT_ATTRIBUTES_LEN_MAX, XATTR_VALUE_MAX, XATTRS_MAX};
use holdfast_repo::{Attributes, Entry, HardLink, Timestamp};
use rustix::{
    fs::{FileType, IFlags, Stat},
    io::Errno,
};
use std::{
    collections::BTreeMap,
    os::fd::{AsRawFd as _, BorrowedFd},
    sync::atomic::{AtomicUsize, Ordering},
};

/// Flags that say how a file is to be treated. Others say how the file system stores it, which is its own affair.
const FLAGS_KEPT: IFlags = IFlags::IMMUTABLE
    .union(IFlags::APPEND)
    .union(IFlags::NODUMP)
    .union(IFlags::SYNC)
    .union(IFlags::DIRSYNC)
    .union(IFlags::NOATIME)
    .union(IFlags::NOCOW)
    .union(IFlags::COMPRESSED);

/// Most bytes of names that Linux lists for one file (XATTR_LIST_MAX).
const XATTR_LIST_MAX: usize = 64 * 1024;
/// Names or a value that fit here, as nearly all do, cost no allocation.
const USUAL_LEN: usize = 1024;
/// Kept free for hard link and flags.
const OTHERS_LEN: usize = 64;

/// Extended attributes of one entry that are longer count as long …
const LONG: usize = 4 * 1024;
/// … and of long ones so many bytes are held, in all directories that are being read. What is beyond that is reported.
const LONG_HELD_MAX: usize = 16 * 1024 * 1024;

/// How a file is at hand.
#[derive(Clone, Copy)]
pub(super) enum Handle<'f> {
    /// Open for reading: a file or directory.
    Open(BorrowedFd<'f>),
    /// Only pointed at (`O_PATH`): links, and what must not be opened since that has effects.
    Place(BorrowedFd<'f>),
}

/// What was found, and what could not be had.
#[derive(Default)]
pub(super) struct Found {
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    flags: u32,
    problem: Option<String>,
    problems: usize,
}

/// Room for the attributes of the trees' own entries, which stand in the root object.
pub(super) struct RootRoom(parking_lot::Mutex<usize>);

impl Default for RootRoom {
    fn default() -> Self {
        Self(parking_lot::Mutex::new(ROOT_ATTRIBUTES_LEN_MAX))
    }
}

/// Bytes of long extended attributes in directories that are not finished: few file systems keep such, but
/// where one does, a directory of many could be larger than memory.
#[derive(Default)]
pub(super) struct LongHeld(AtomicUsize);

impl LongHeld {
    /// Bytes that count for an entry.
    pub fn len(entry: &Entry) -> usize {
        let len = entry
            .attributes
            .as_ref()
            .map_or(0, |more| more.xattrs.encoded_len());
        if len > LONG { len } else { 0 }
    }

    /// The entry waits for its node.
    pub fn add(&self, entry: &Entry) {
        self.0.fetch_add(Self::len(entry), Ordering::Relaxed);
    }

    /// The entry is in its node.
    pub fn release(&self, entry: &Entry) {
        let len = Self::len(entry);
        if len > 0 {
            let less = |held: usize| Some(held.saturating_sub(len));
            let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        }
    }

    fn room(&self) -> usize {
        if self.0.load(Ordering::Relaxed) < LONG_HELD_MAX {
            ATTRIBUTES_LEN_MAX - OTHERS_LEN
        } else {
            LONG
        }
    }
}

impl Found {
    /// Reads them. `is_tree` says that the entry is a tree's own.
    pub fn read(shared: &Shared, handle: Handle<'_>, is_tree: bool) -> Self {
        let mut found = Self::default();
        if is_tree {
            found.read_xattrs(handle, &mut shared.root_room.0.lock());
        } else {
            found.read_xattrs(handle, &mut shared.long_held.room());
        }
        if let Handle::Open(file) = handle {
            // Most file systems have no flags; those say so in several ways.
            let flags = rustix::fs::ioctl_getflags(file).unwrap_or(IFlags::empty());
            found.flags = flags.intersection(FLAGS_KEPT).bits();
        }
        found
    }

    fn read_xattrs(&mut self, handle: Handle<'_>, room: &mut usize) {
        let way = match handle {
            Handle::Open(_) => String::new(),
            // Its entry in /proc leads to what it points at, be it a link, and nowhere else.
            Handle::Place(place) => format!("/proc/self/fd/{}", place.as_raw_fd()),
        };
        let list = |buffer: &mut [u8]| match handle {
            Handle::Open(file) => rustix::fs::flistxattr(file, buffer),
            Handle::Place(_) => rustix::fs::listxattr(&way, buffer),
        };
        let names = match with_room(XATTR_LIST_MAX, list) {
            Ok(names) => names,
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => return,
            Err(error) => {
                return self.add_problem(format!("its extended attributes cannot be listed: {error}"));
            }
        };
        for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            let get = |buffer: &mut [u8]| match handle {
                Handle::Open(file) => rustix::fs::fgetxattr(file, name, buffer),
                Handle::Place(_) => rustix::fs::getxattr(&way, name, buffer),
            };
            match with_room(XATTR_VALUE_MAX, get) {
                Ok(value) => {
                    let len = Attributes::xattr_len(name, &value);
                    if len > *room || self.xattrs.len() >= XATTRS_MAX {
                        let name = name.escape_ascii();
                        self.add_problem(format!("its extended attribute {name} does not fit any more"));
                        continue;
                    }
                    *room -= len;
                    self.xattrs.insert(name.to_vec(), value);
                }
                // Gone since it was listed, or kept for someone else.
                Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
                Err(error) => {
                    let name = name.escape_ascii();
                    self.add_problem(format!("its extended attribute {name} cannot be read: {error}"));
                }
            }
        }
    }

    fn add_problem(&mut self, problem: String) {
        self.problems += 1;
        self.problem.get_or_insert(problem);
    }

    /// Puts them into the entry; says what could not be had.
    pub fn into_entry(self, shared: &Shared, entry: Entry, stat: &Stat) -> (Entry, Option<String>) {
        let attributes = Attributes {
            xattrs: self.xattrs.into_iter().collect(),
            hard_link: hard_link(shared, stat),
            flags: self.flags,
        };
        let problem = self.problem.map(|first| match self.problems {
            1 => first,
            more => format!("{first} (and {} more)", more - 1),
        });
        let entry = Entry {
            // Not taken for unchanged by the next run, which would then pass over what is missing.
            ctime: if problem.is_some() {
                Timestamp::default()
            } else {
                entry.ctime
            },
            attributes: attributes.boxed(),
            ..entry
        };
        shared.long_held.add(&entry);
        (entry, problem)
    }
}

/// The entry of something unchanged, with the attributes that were recorded before.
pub(super) fn take_over(shared: &Shared, recorded: Option<&Attributes>, entry: Entry, stat: &Stat) -> Entry {
    let hard_link = hard_link(shared, stat);
    if hard_link.is_none() && recorded.is_none() {
        return entry;
    }
    let recorded = recorded.cloned().unwrap_or_default();
    let entry = Entry {
        attributes: Attributes {
            hard_link,
            ..recorded
        }
        .boxed(),
        ..entry
    };
    shared.long_held.add(&entry);
    entry
}

/// Set for one of several names of a file.
pub(super) fn hard_link(shared: &Shared, stat: &Stat) -> Option<HardLink> {
    let is_one_of_several = stat.st_nlink > 1 && !FileType::from_raw_mode(stat.st_mode).is_dir();
    is_one_of_several.then(|| HardLink {
        device: device_number(shared, stat.st_dev),
        names: stat.st_nlink,
    })
}

/// The same in every run for the file systems of the roots, although the kernel may number them anew at
/// every boot: otherwise all nodes that name hard links would be new.
fn device_number(shared: &Shared, device: u64) -> u64 {
    let roots = &shared.settings.selection.roots;
    let of_root = roots.iter().position(|root| root.stat.st_dev == device);
    of_root.map_or_else(|| device.saturating_add(ROOTS_MAX as u64), |at| at as u64)
}

/// Calls with a small buffer, and again with the largest that can be needed.
fn with_room(
    max: usize,
    call: impl Fn(&mut [u8]) -> rustix::io::Result<usize>,
) -> rustix::io::Result<Vec<u8>> {
    let mut usual = [0; USUAL_LEN];
    match call(&mut usual) {
        Ok(len) => Ok(usual[..len].to_vec()),
        Err(Errno::RANGE) => {
            let mut buffer = vec![0; max];
            let len = call(&mut buffer)?;
            buffer.truncate(len);
            Ok(buffer)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_repo::EntryKind;

    fn entry(len: usize) -> Entry {
        let attributes = Attributes {
            xattrs: [(b"user.a".to_vec(), vec![1; len])].into(),
            ..Attributes::default()
        };
        Entry {
            name: b"a".to_vec(),
            mode: 0,
            uid: 0,
            gid: 0,
            mtime: Timestamp::default(),
            ctime: Timestamp::default(),
            inode: 1,
            changed_while_read: false,
            is_sparse: false,
            kind: EntryKind::Fifo,
            attributes: attributes.boxed(),
        }
    }

    #[test]
    fn long_attributes_are_held_up_to_a_bound() {
        let held = LongHeld::default();
        let (short, long) = (entry(200), entry(64_000));
        (0..100_000).for_each(|_| held.add(&short));
        assert_eq!(held.room(), ATTRIBUTES_LEN_MAX - OTHERS_LEN);
        (0..300).for_each(|_| held.add(&long));
        assert_eq!(held.room(), LONG);
        (0..400).for_each(|_| held.release(&long));
        assert_eq!(held.room(), ATTRIBUTES_LEN_MAX - OTHERS_LEN);
    }
}
