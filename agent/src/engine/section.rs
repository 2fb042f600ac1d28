//! Some consecutive names of a directory: classified by one worker, their files and subdirectories handed out,
//! and finished by whoever finishes the last part of them.
//!
//! Memory hangs on sections, not on directories: of each directory on the way down a few are open, and only
//! their entries and tasks are held.

use super::{
    Shared,
    directory::{Directory, Slot},
    queue::Task,
    stats::add,
    store_chunk::Sink,
};
use crate::error::Result;
use holdfast_core::limits;
use holdfast_repo::Entry;
use parking_lot::Mutex;
use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt as _,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

/// Small files that one worker takes at a time: enough for one query, little enough to share.
const BATCH_FILES: usize = 256;
/// Their bytes together.
const BATCH_BYTES: u64 = 1 << 20;

pub(super) struct Section {
    pub directory: Arc<Directory>,
    /// Among the sections of the directory.
    number: usize,
    pub slots: Mutex<Vec<Slot>>,
    /// Parts not finished, the classifying itself included.
    pending: AtomicUsize,
}

/// What is to be done in a section.
#[derive(Default)]
pub(super) struct Tasks {
    /// Places of files, and their sizes.
    pub files: Vec<(u32, u64)>,
    /// Places of directories, and their devices.
    pub dirs: Vec<(u32, u64)>,
}

impl Section {
    /// A section whose entries come with [`Self::begin`].
    pub fn new(directory: &Arc<Directory>, number: usize) -> Arc<Self> {
        Arc::new(Self {
            directory: Arc::clone(directory),
            number,
            slots: Mutex::default(),
            pending: AtomicUsize::new(1),
        })
    }

    /// The imaginary section whose entries are the roots, each of which is a part.
    pub fn of_roots(top: &Arc<Directory>, roots: usize) -> Arc<Self> {
        Arc::new(Self {
            directory: Arc::clone(top),
            number: 0,
            slots: Mutex::default(),
            pending: AtomicUsize::new(roots),
        })
    }

    /// Takes its entries over and hands out what they still need.
    pub fn begin(
        self: &Arc<Self>,
        shared: &Shared,
        sink: &mut Sink,
        slots: Vec<Slot>,
        tasks: Tasks,
    ) -> Result<()> {
        *self.slots.lock() = slots;
        self.hand_out(shared, tasks);
        self.part_done(shared, sink)
    }

    /// The root's index and the path below it for an entry.
    pub fn locate(&self, index: u32, name: &[u8]) -> (usize, PathBuf) {
        if self.directory.is_top() {
            (index as usize, PathBuf::new())
        } else {
            let path = self.directory.path.join(OsStr::from_bytes(name));
            (self.directory.root, path)
        }
    }

    /// What is known of an entry.
    pub fn entry(&self, index: u32) -> Slot {
        self.slots.lock().get(index as usize).cloned().flatten()
    }

    /// Fills the place of an entry; `None` leaves it out.
    pub fn fill(&self, index: u32, entry: Option<Entry>) {
        if let Some(slot) = self.slots.lock().get_mut(index as usize) {
            *slot = entry;
        }
    }

    /// One part is finished; with the last one the section is, and so may be its directory and what is above it.
    pub fn part_done(self: &Arc<Self>, shared: &Shared, sink: &mut Sink) -> Result<()> {
        let mut section = Arc::clone(self);
        while section.pending.fetch_sub(1, Ordering::AcqRel) == 1 {
            let directory = &section.directory;
            let Some((above, index)) = directory.above.clone() else {
                return Ok(());
            };
            let slots = std::mem::take(&mut *section.slots.lock());
            let Some(kind) = directory.end_section(shared, sink, section.number, slots)? else {
                return Ok(());
            };
            if let Some(Some(entry)) = above.slots.lock().get_mut(index as usize) {
                entry.kind = kind;
            }
            add(&shared.stats.dirs, 1);
            section = above;
        }
        Ok(())
    }

    /// The entries, once nothing of it is left to do.
    pub fn take_finished(&self) -> Option<Vec<Slot>> {
        if self.pending.load(Ordering::Acquire) != 0 {
            return None;
        }
        Some(std::mem::take(&mut *self.slots.lock()))
    }

    fn hand_out(self: &Arc<Self>, shared: &Shared, tasks: Tasks) {
        let dirs = tasks.dirs.into_iter().rev();
        let mut out: Vec<Task> = dirs
            .map(|(index, dev)| Task::List(Arc::clone(self), index, dev))
            .collect();
        let mut batch = Vec::new();
        let mut batch_bytes = 0;
        for (index, size) in tasks.files {
            if size > limits::CHUNK_MIN as u64 {
                out.push(Task::Large(Arc::clone(self), index));
                continue;
            }
            if batch.len() == BATCH_FILES || (batch_bytes + size > BATCH_BYTES && !batch.is_empty()) {
                out.push(Task::Small(Arc::clone(self), std::mem::take(&mut batch)));
                batch_bytes = 0;
            }
            batch.push(index);
            batch_bytes += size;
        }
        if !batch.is_empty() {
            out.push(Task::Small(Arc::clone(self), batch));
        }
        self.pending.fetch_add(out.len(), Ordering::AcqRel);
        shared.queue.push_tasks(out);
    }
}
