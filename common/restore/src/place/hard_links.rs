//! Names of one file: the first that comes is made, the others become links to it.
//!
//! What is linked to is never taken on trust: it is opened below the target, by single names and through no
//! link, and must be the very inode that this restore made. Where linking fails, or the names' entries
//! differ, a name gets a file of its own.

use super::{
    attributes::{Attributes, set_flags},
    dir::Dir,
    target::{Target, open_below},
};
use crate::{Result, path::join_path};
use holdfast_core::ErrorKind;
use holdfast_repo::{Entry, EntryKind, Timestamp};
use parking_lot::{Condvar, Mutex};
use rustix::{
    fs::{self, AtFlags, CWD, Mode, OFlags, Stat},
    io::Errno,
};
use std::{
    collections::HashMap,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    sync::{Arc, Weak, atomic::Ordering::Relaxed},
    time::Duration,
};

/// Files that further names are expected of, at most: some 50 MiB. Names of others get files of their own.
const GROUPS_MAX: usize = 256 * 1024;
/// Names that wait for the first one of their file, at most: each holds its directory open.
const WAITING_MAX: usize = 128;
/// How often a waiting planner looks whether the restore was stopped.
const LOOK_UP: Duration = Duration::from_millis(50);

/// Tells one file of a snapshot from others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct LinkKey {
    device: u64,
    inode: u64,
}

impl LinkKey {
    pub(super) fn of(entry: &Entry) -> Option<Self> {
        let link = entry.attributes.as_ref()?.hard_link?;
        Some(Self {
            device: link.device,
            inode: entry.inode,
        })
    }
}

/// What all names of one file have in common, unless it changed between the looks at them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Likeness {
    kind: std::mem::Discriminant<EntryKind>,
    size: u64,
    mtime: Timestamp,
    ctime: Timestamp,
}

impl Likeness {
    fn of(entry: &Entry) -> Self {
        Self {
            kind: std::mem::discriminant(&entry.kind),
            size: entry.size(),
            mtime: entry.mtime,
            ctime: entry.ctime,
        }
    }
}

/// Files of several names in one restore.
#[derive(Default)]
pub(super) struct HardLinks {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    groups: HashMap<LinkKey, Group>,
    /// Groups whose first name is on its way.
    pending: usize,
    /// Names that wait for theirs.
    waiting: usize,
    /// Names whose first one could not be made or linked to: each is to be made itself.
    again: Vec<(Arc<Dir>, Entry)>,
    is_full: bool,
}

struct Group {
    likeness: Likeness,
    /// Names that have not been seen.
    left: u64,
    place: Place,
}

enum Place {
    Pending(Vec<(Arc<Dir>, Entry)>),
    Made(Arc<Made>),
}

/// Where the first name is, and what is there.
struct Made {
    dir: Weak<Dir>,
    way: Vec<Vec<u8>>,
    name: Vec<u8>,
    device: u64,
    inode: u64,
    flags: u32,
}

impl HardLinks {
    /// Takes a name that is a further one of a file; gives back what is to be made.
    /// Call [`Self::make_room`] before.
    pub(super) fn admit(&self, dir: &Arc<Dir>, entry: Entry) -> Option<Entry> {
        let Some(key) = LinkKey::of(&entry) else {
            return Some(entry);
        };
        let made = {
            let mut state = self.state.lock();
            let state = &mut *state;
            let Some(group) = state.groups.get_mut(&key) else {
                return Some(state.begin(key, dir, entry));
            };
            if group.likeness != Likeness::of(&entry) {
                return Some(alone(entry));
            }
            group.left = group.left.saturating_sub(1);
            match &mut group.place {
                Place::Pending(waiting) => {
                    waiting.push((Arc::clone(dir), entry));
                    state.waiting += 1;
                    return None;
                }
                Place::Made(made) => Arc::clone(made),
            }
        };
        let linked = made.link(dir, &entry).is_ok();
        let mut state = self.state.lock();
        if !linked {
            // What was made is gone, or is too far away: from now on this name is the first.
            let gone = state.groups.remove(&key);
            let first = state.begin(key, dir, entry);
            drop(state);
            if let Some(Group {
                place: Place::Made(made),
                ..
            }) = gone
            {
                made.set_flags(&dir.target);
            }
            return Some(first);
        }
        if state.groups.get(&key).is_some_and(|group| group.left == 0) {
            state.groups.remove(&key);
            drop(state);
            made.set_flags(&dir.target);
        }
        None
    }

    /// Whether there is room for one more name to wait.
    pub(super) fn has_room(&self) -> bool {
        self.state.lock().waiting < WAITING_MAX
    }

    /// Waits until there is room for one more name to wait. What was begun must be on its way.
    pub(super) fn make_room(&self, check: impl Fn() -> Result<()>) -> Result<()> {
        self.wait(check, |state| state.waiting < WAITING_MAX)
    }

    /// Waits until no name waits any more; gives back those that are to be made themselves.
    pub(super) fn settle(&self, check: impl Fn() -> Result<()>) -> Result<Vec<(Arc<Dir>, Entry)>> {
        self.wait(check, |state| state.pending == 0)?;
        Ok(std::mem::take(&mut self.state.lock().again))
    }

    fn wait(&self, check: impl Fn() -> Result<()>, is_enough: impl Fn(&State) -> bool) -> Result<()> {
        let mut state = self.state.lock();
        while !is_enough(&state) {
            check()?;
            self.changed.wait_for(&mut state, LOOK_UP);
        }
        Ok(())
    }

    /// The first name is there, whole: `stat` is of what was made.
    pub(super) fn made(
        &self,
        dir: &Arc<Dir>,
        name: &[u8],
        attributes: &Attributes,
        stat: rustix::io::Result<Stat>,
    ) {
        let Some(key) = attributes.link else { return };
        let Ok(stat) = stat else {
            return self.failed(key);
        };
        let made = Arc::new(Made {
            dir: Arc::downgrade(dir),
            way: dir.way(),
            name: name.to_vec(),
            device: stat.st_dev,
            inode: stat.st_ino,
            flags: attributes.flags,
        });
        loop {
            let waiting = {
                let mut state = self.state.lock();
                let state = &mut *state;
                let Some(group) = state.groups.get_mut(&key) else {
                    return;
                };
                match &mut group.place {
                    Place::Pending(waiting) if !waiting.is_empty() => std::mem::take(waiting),
                    _ => {
                        group.place = Place::Made(Arc::clone(&made));
                        let is_whole = group.left == 0;
                        if is_whole {
                            state.groups.remove(&key);
                        }
                        state.pending -= 1;
                        self.changed.notify_all();
                        if !is_whole {
                            return;
                        }
                        break;
                    }
                }
            };
            let count = waiting.len();
            let failed: Vec<_> = waiting
                .into_iter()
                .filter(|(dir, entry)| made.link(dir, entry).is_err())
                .collect();
            let mut state = self.state.lock();
            state.waiting -= count;
            state.again.extend(failed);
            self.changed.notify_all();
        }
        made.set_flags(&dir.target);
    }

    /// The first name could not be made: the next that comes is the first.
    pub(super) fn failed(&self, key: LinkKey) {
        let mut state = self.state.lock();
        if let Some(Group {
            place: Place::Pending(waiting),
            ..
        }) = state.groups.remove(&key)
        {
            state.pending -= 1;
            state.waiting -= waiting.len();
            state.again.extend(waiting);
        }
        self.changed.notify_all();
    }

    /// Sets the flags that had to wait for names which never came. Forgets everything.
    pub(super) fn finish(&self, target: &Target) {
        let state = std::mem::take(&mut *self.state.lock());
        for group in state.groups.into_values() {
            if let Place::Made(made) = group.place {
                made.set_flags(target);
            }
        }
    }
}

impl State {
    fn begin(&mut self, key: LinkKey, dir: &Dir, entry: Entry) -> Entry {
        if self.groups.len() >= GROUPS_MAX {
            if !std::mem::replace(&mut self.is_full, true) {
                let reason = "it and others that follow have more names than can be remembered, and come back as files of their own";
                let path = dir.path.path_of(&entry.name);
                dir.target.add_problem(path, ErrorKind::TooLarge, reason);
            }
            return alone(entry);
        }
        let names = entry.attributes.as_ref().and_then(|more| more.hard_link);
        let group = Group {
            likeness: Likeness::of(&entry),
            left: names.map_or(0, |link| link.names.saturating_sub(1)),
            place: Place::Pending(Vec::new()),
        };
        self.groups.insert(key, group);
        self.pending += 1;
        entry
    }
}

/// The entry as one of a file with a single name.
fn alone(mut entry: Entry) -> Entry {
    if let Some(mut attributes) = entry.attributes.take() {
        attributes.hard_link = None;
        entry.attributes = attributes.boxed();
    }
    entry
}

impl Made {
    /// Opens what was made, and nothing else that may be there meanwhile.
    fn open(&self, target: &Target, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let file = if let Some(dir) = self.dir.upgrade() {
            open_below(dir.fd(), &self.name, flags, Mode::empty())?
        } else {
            let mut above: Option<OwnedFd> = None;
            for name in &self.way {
                let from = above.as_ref().map_or_else(|| target.root(), |dir| dir.as_fd());
                above = Some(open_below(
                    from,
                    name,
                    OFlags::PATH | OFlags::DIRECTORY,
                    Mode::empty(),
                )?);
            }
            let from = above.as_ref().map_or_else(|| target.root(), |dir| dir.as_fd());
            open_below(from, &self.name, flags, Mode::empty())?
        };
        let stat = fs::fstat(&file)?;
        if (stat.st_dev, stat.st_ino) == (self.device, self.inode) {
            Ok(file)
        } else {
            Err(Errno::STALE)
        }
    }

    /// Gives what was made a further name.
    fn link(&self, dir: &Dir, entry: &Entry) -> rustix::io::Result<()> {
        let target = &dir.target;
        let made = self.open(target, OFlags::PATH)?;
        let temporary = target.replace.then(|| target.temporary_name());
        let now = temporary.as_deref().unwrap_or(&entry.name);
        // By the handle: a name could lead elsewhere by now. Only root may without the way over /proc.
        fs::linkat(&made, c"", dir.fd(), now, AtFlags::EMPTY_PATH).or_else(|_| {
            let way = join_path(b"/proc/self/fd", made.as_raw_fd().to_string().as_bytes());
            fs::linkat(CWD, way, dir.fd(), now, AtFlags::SYMLINK_FOLLOW)
        })?;
        if let Some(temporary) = &temporary {
            let renamed = fs::renameat(dir.fd(), &temporary[..], dir.fd(), &entry.name[..]);
            // Renaming to another name of the same file succeeds and does nothing.
            let _ = fs::unlinkat(dir.fd(), &temporary[..], AtFlags::empty());
            renamed?;
        }
        let counts = &target.counts;
        match entry.kind {
            EntryKind::File { size, .. } => {
                counts.files.fetch_add(1, Relaxed);
                counts.bytes.fetch_add(size, Relaxed);
                target.progress.add_files(1);
                target.progress.add_bytes(size);
            }
            EntryKind::Symlink { .. } => {
                counts.symlinks.fetch_add(1, Relaxed);
            }
            _ => {
                counts.others.fetch_add(1, Relaxed);
            }
        }
        Ok(())
    }

    /// Sets the flags, now that no further name is to come.
    fn set_flags(&self, target: &Target) {
        if self.flags == 0 {
            return;
        }
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let is_set = self
            .open(target, flags)
            .is_ok_and(|file| set_flags(file.as_fd(), self.flags));
        if !is_set {
            target.counts.attributes_left.fetch_add(1, Relaxed);
        }
    }
}
