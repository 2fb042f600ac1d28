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
use std::os::fd::{AsRawFd as _, BorrowedFd};

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
    attributes: Attributes,
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

impl Found {
    /// Reads them. `is_tree` says that the entry is a tree's own.
    pub fn read(shared: &Shared, handle: Handle<'_>, is_tree: bool) -> Self {
        let mut found = Self::default();
        if is_tree {
            found.xattrs(handle, &mut shared.root_room.0.lock());
        } else {
            found.xattrs(handle, &mut (ATTRIBUTES_LEN_MAX - OTHERS_LEN));
        }
        if let Handle::Open(file) = handle {
            // Most file systems have no flags; those say so in several ways.
            let flags = rustix::fs::ioctl_getflags(file).unwrap_or(IFlags::empty());
            found.attributes.flags = flags.intersection(FLAGS_KEPT).bits();
        }
        found
    }

    fn xattrs(&mut self, handle: Handle<'_>, room: &mut usize) {
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
                    if len > *room || self.attributes.xattrs.len() >= XATTRS_MAX {
                        let name = name.escape_ascii();
                        self.add_problem(format!("its extended attribute {name} does not fit any more"));
                        continue;
                    }
                    *room -= len;
                    self.attributes.xattrs.insert(name.to_vec(), value);
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
            hard_link: hard_link(shared, stat),
            ..self.attributes
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
        (entry, problem)
    }
}

/// The entry of something unchanged, with the attributes that were recorded before.
pub(super) fn take_over(shared: &Shared, before: &Entry, entry: Entry, stat: &Stat) -> Entry {
    let hard_link = hard_link(shared, stat);
    if hard_link.is_none() && before.attributes.is_none() {
        return entry;
    }
    let recorded = before.attributes.as_deref().cloned().unwrap_or_default();
    Entry {
        attributes: Attributes {
            hard_link,
            ..recorded
        }
        .boxed(),
        ..entry
    }
}

/// Set for one of several names of a file.
pub(super) fn hard_link(shared: &Shared, stat: &Stat) -> Option<HardLink> {
    let is_one_of_several = stat.st_nlink > 1 && !FileType::from_raw_mode(stat.st_mode).is_dir();
    is_one_of_several.then(|| HardLink {
        device: device_number(shared, stat.st_dev),
        names: stat.st_nlink as u64,
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
