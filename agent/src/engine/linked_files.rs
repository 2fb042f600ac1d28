//! Large files of several names: read by one of them, known by the others.
//!
//! Small ones are read by each name, which costs less than remembering them.

use super::{
    Shared,
    attributes::{LongHeld, hard_link},
    queue::Task,
    section::Section,
    stats::add,
    store_chunk::Sink,
};
use crate::error::Result;
use holdfast_repo::{Entry, HardLink};
use parking_lot::Mutex;
use rustix::fs::Stat;
use std::{collections::HashMap, sync::Arc};

/// Files that further names are expected of, at most: some MiB. Others are read by each name.
const FILES_MAX: usize = 8 * 1024;

/// One file of the host.
pub(super) type LinkKey = (HardLink, u64);

/// What a name of a file is to do.
pub(super) enum Turn {
    /// Read the file; and, if there is a key, say how that ended.
    Read(Option<LinkKey>),
    /// Nothing: whoever reads the file fills its place too.
    Wait,
    /// Take what is known.
    Known(Entry),
}

/// Large files of several names that were met.
#[derive(Default)]
pub(super) struct LinkedFiles(Mutex<HashMap<LinkKey, File>>);

struct File {
    /// Names that have not been met.
    left: u64,
    state: State,
}

enum State {
    /// Bounded by the places of the sections that are open, which stay open until these are filled.
    Reading(Vec<Waiting>),
    Read(Entry),
}

struct Waiting {
    section: Arc<Section>,
    index: u32,
    name: Vec<u8>,
    seen: Entry,
}

impl LinkedFiles {
    /// Asks for the place at an index of a section; `seen` is the entry as `stat` gives it.
    pub fn turn(
        &self,
        shared: &Shared,
        stat: &Stat,
        section: &Arc<Section>,
        index: u32,
        seen: Entry,
    ) -> Turn {
        let Some(link) = hard_link(shared, stat).filter(|_| !section.directory.is_top()) else {
            return Turn::Read(None);
        };
        let key = (link, seen.inode);
        let mut files = self.0.lock();
        let Some(file) = files.get_mut(&key) else {
            if files.len() >= FILES_MAX {
                return Turn::Read(None);
            }
            let left = link.names - 1;
            let state = State::Reading(Vec::new());
            files.insert(key, File { left, state });
            return Turn::Read(Some(key));
        };
        file.left = file.left.saturating_sub(1);
        match &mut file.state {
            State::Reading(waiting) => {
                let (section, name) = (Arc::clone(section), seen.name.clone());
                waiting.push(Waiting {
                    section,
                    index,
                    name,
                    seen,
                });
                Turn::Wait
            }
            State::Read(known) if is_same(known, &seen) => {
                let known = Entry {
                    name: seen.name,
                    ..known.clone()
                };
                if file.left == 0 {
                    files.remove(&key);
                }
                Turn::Known(known)
            }
            State::Read(_) => Turn::Read(None),
        }
    }

    /// The file was read as `entry`, or could not be: fills the places that wait for it.
    pub fn end(&self, shared: &Shared, sink: &mut Sink, key: LinkKey, entry: Option<&Entry>) -> Result<()> {
        let waiting = {
            let mut files = self.0.lock();
            let Some(file) = files.remove(&key) else {
                return Ok(());
            };
            let is_remembered = |entry: &&Entry| file.left > 0 && LongHeld::len(entry) == 0;
            if let Some(entry) = entry.filter(is_remembered) {
                let (left, state) = (file.left, State::Read(entry.clone()));
                files.insert(key, File { left, state });
            }
            match file.state {
                State::Reading(waiting) => waiting,
                State::Read(_) => Vec::new(),
            }
        };
        for Waiting {
            section,
            index,
            name,
            seen,
        } in waiting
        {
            match entry.filter(|entry| is_same(entry, &seen)) {
                Some(entry) => take(
                    shared,
                    sink,
                    &section,
                    index,
                    Entry {
                        name,
                        ..entry.clone()
                    },
                )?,
                // Changed since, or unreadable by that name: this one looks for itself.
                None => shared.queue.push_tasks(vec![Task::Large(section, index)]),
            }
        }
        Ok(())
    }
}

/// Fills a place with what is known of its file by another name.
pub(super) fn take(
    shared: &Shared,
    sink: &mut Sink,
    section: &Arc<Section>,
    index: u32,
    entry: Entry,
) -> Result<()> {
    add(&shared.stats.files, 1);
    add(&shared.stats.bytes, entry.size());
    shared.long_held.add(&entry);
    section.fill(index, Some(entry));
    section.part_done(shared, sink)
}

/// Whether the file is as it was when it was read by another name.
fn is_same(read: &Entry, seen: &Entry) -> bool {
    !read.changed_while_read
        && read.size() == seen.size()
        && read.mtime == seen.mtime
        && read.ctime == seen.ctime
}
