//! One directory on its way into the snapshot: its names are read, and section by section compared with the
//! parent's entries, handed out and put together.

use super::{
    Shared,
    attributes::{Found, Handle},
    build::{Begun, Build},
    classify::{Classifier, NO_NODE, entry_of, file_kind, pending_dir},
    listing::{Listing, read_names, reusable},
    queue::Task,
    report,
    section::{Section, Tasks},
    stats::add,
    store_chunk::Sink,
};
use crate::{
    error::{AgentError, Result},
    files::open_beneath,
};
use holdfast_core::{ChunkId, Names};
use holdfast_repo::{Entry, EntryKind};
use parking_lot::Mutex;
use rustix::fs::{OFlags, Stat};
use std::{
    ffi::OsStr,
    ops::Range,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::ffi::{OsStrExt as _, OsStringExt as _},
    },
    path::{Path, PathBuf},
    sync::Arc,
};

/// A place in a directory: what the snapshot will hold, perhaps still without its content; `None`
/// for what is left out.
pub(super) type Slot = Option<Entry>;

/// The finished entries of the top: one for each root.
pub(super) type Finished = Vec<Option<Entry>>;

pub(super) struct Directory {
    /// Where its entry stands; only the imaginary top has none.
    pub above: Option<(Arc<Section>, u32)>,
    /// Which root it belongs to.
    pub root: usize,
    /// Relative to the root.
    pub path: PathBuf,
    /// Its node in the parent snapshot.
    pub previous: Option<ChunkId>,
    /// Its device as it was found, to see mounts.
    pub dev: u64,
    pub depth: usize,
    build: Mutex<Build>,
}

impl Directory {
    /// The imaginary directory whose entries are the roots, and a task for each of them.
    pub fn top(shared: &Shared) -> (Arc<Section>, Vec<Task>) {
        let top = Arc::new(Self {
            above: None,
            root: 0,
            path: PathBuf::new(),
            previous: None,
            dev: 0,
            depth: 0,
            build: Mutex::default(),
        });
        let roots = &shared.settings.selection.roots;
        let mut slots = Vec::with_capacity(roots.len());
        let section = Section::of_roots(&top, roots.len());
        let mut tasks = Vec::with_capacity(roots.len());
        for (index, root) in roots.iter().enumerate() {
            let before = shared.settings.parent.iter().find(|tree| tree.path == root.path);
            let before = before.map(|tree| tree.entry.kind.clone());
            let (place, index) = (Arc::clone(&section), index as u32);
            if root.file.is_some() {
                let kind = file_kind(&root.stat, before);
                slots.push(Some(entry_of(Vec::new(), &root.stat, kind)));
                tasks.push(Task::Large(place, index));
            } else {
                let entry = entry_of(b"root".to_vec(), &root.stat, pending_dir(before.as_ref()));
                let found = Found::read(shared, Handle::Open(root.dir.as_fd()), true);
                let of_root = Self::below(&section, index, root.stat.st_dev, &entry);
                slots.push(Some(of_root.with_found(
                    shared,
                    Path::new(""),
                    entry,
                    &root.stat,
                    found,
                )));
                tasks.push(Task::List(place, index, root.stat.st_dev));
            }
        }
        *section.slots.lock() = slots;
        tasks.reverse();
        (section, tasks)
    }

    /// Whether this is the imaginary top, whose files are roots themselves.
    pub fn is_top(&self) -> bool {
        self.above.is_none()
    }

    /// The directory of an entry that waits for it, as [`pending_dir`] has it.
    fn below(section: &Arc<Section>, index: u32, dev: u64, entry: &Entry) -> Arc<Self> {
        let (root, path) = section.locate(index, &entry.name);
        let previous = match entry.kind {
            EntryKind::Dir { node, .. } if node != NO_NODE => Some(node),
            _ => None,
        };
        Arc::new(Self {
            above: Some((Arc::clone(section), index)),
            root,
            path,
            previous,
            dev,
            depth: section.directory.depth + 1,
            build: Mutex::default(),
        })
    }

    /// Opens the directory.
    pub fn open(&self, shared: &Shared) -> rustix::io::Result<OwnedFd> {
        let root = &shared.settings.selection.roots[self.root];
        open_beneath(&root.dir, &self.path, OFlags::RDONLY | OFlags::DIRECTORY)
    }

    /// Reads the names of the directory at that place, takes over what did not change, and hands out the rest.
    pub fn list(shared: &Shared, sink: &mut Sink, above: &Arc<Section>, index: u32, dev: u64) -> Result<()> {
        let entry = above.entry(index);
        let entry = entry.ok_or_else(|| AgentError::Internal("a directory without an entry".into()))?;
        let directory = Self::below(above, index, dev, &entry);
        tracing::debug!(target: "holdfast::phase", phase = "walk", path = %directory.path.display());
        let mut names = std::mem::take(&mut sink.names);
        let dir = directory.open(shared).and_then(|dir| {
            read_names(shared, &directory, &dir, None, &mut names)?;
            Ok(dir)
        });
        let dir = match dir {
            Ok(dir) => Some(dir),
            Err(error) => {
                // A root that is gone is no empty directory: the run is not complete then.
                let is_root = directory.path.as_os_str().is_empty();
                if error == rustix::io::Errno::NOENT && !is_root {
                    add(&shared.stats.files_vanished, 1);
                } else {
                    directory.report(shared, &directory.path, &error.to_string());
                }
                names.begin(0);
                None
            }
        };
        if names.is_cut() || names.len() > shared.settings.width.section {
            directory.build.lock().begin(Listing::keep(shared, names));
            return directory.next(shared, sink);
        }
        directory.build.lock().begin_only();
        let all = 0..names.len();
        directory.section(shared, sink, 0, dir.as_ref(), &names, all)?;
        sink.names = reusable(names);
        Ok(())
    }

    /// The next section of a wide directory. There is one task for this at a time.
    pub fn next(self: &Arc<Self>, shared: &Shared, sink: &mut Sink) -> Result<()> {
        let read_up_to = self.build.lock().read_up_to();
        if let Some(after) = read_up_to {
            let mut names = Names::default();
            let read = |names: &mut Names| read_names(shared, self, &self.open(shared)?, Some(&after), names);
            if let Err(error) = read(&mut names) {
                names.begin(0);
                if error != rustix::io::Errno::NOENT {
                    self.report(shared, &self.path, &error.to_string());
                }
            }
            self.build.lock().begin(Listing::keep(shared, names));
        }
        let begun = self.build.lock().next(shared.settings.width.section);
        let begun = begun.ok_or_else(|| AgentError::Internal("a directory without further names".into()))?;
        let Begun {
            number,
            listing,
            range,
            has_next,
        } = begun;
        if has_next {
            shared.queue.push_tasks(vec![Task::Next(Arc::clone(self))]);
        }
        let dir = match self.open(shared) {
            Ok(dir) => Some(dir),
            Err(rustix::io::Errno::NOENT) => {
                add(&shared.stats.files_vanished, range.len() as u64);
                None
            }
            Err(error) => {
                self.report(shared, &self.path, &error.to_string());
                None
            }
        };
        self.section(shared, sink, number, dir.as_ref(), &listing.names, range)
    }

    /// Classifies some names, if the directory could be opened, and hands out what they need.
    fn section(
        self: &Arc<Self>,
        shared: &Shared,
        sink: &mut Sink,
        number: usize,
        dir: Option<&OwnedFd>,
        names: &Names,
        range: Range<usize>,
    ) -> Result<()> {
        let section = Section::new(self, number);
        let (slots, tasks) = match dir {
            Some(dir) => Classifier::new(shared, self, dir).classify(sink, names, range)?,
            None => (Vec::new(), Tasks::default()),
        };
        section.begin(shared, sink, slots, tasks)
    }

    /// A section is finished; gives the directory, if that was the last of it.
    pub fn end_section(
        self: &Arc<Self>,
        shared: &Shared,
        sink: &mut Sink,
        number: usize,
        slots: Vec<Slot>,
    ) -> Result<Option<EntryKind>> {
        let ended = self.build.lock().end(shared, number, slots)?;
        // Stored without the lock: a full pack may wait for the network.
        for node in ended.nodes {
            sink.store_node(shared, node)?;
        }
        if ended.resumes {
            shared.queue.push_tasks(vec![Task::Next(Arc::clone(self))]);
        }
        Ok(ended.kind)
    }

    /// Puts what was found into an entry and reports what could not be had.
    pub fn with_found(&self, shared: &Shared, path: &Path, entry: Entry, stat: &Stat, found: Found) -> Entry {
        let (entry, problem) = found.into_entry(shared, entry, stat);
        if let Some(problem) = problem {
            self.report(shared, path, &problem);
        }
        entry
    }

    /// Counts something that could not be read, and lists it while the list is short.
    pub fn report(&self, shared: &Shared, path: &Path, reason: &str) {
        let root = Path::new(OsStr::from_bytes(
            &shared.settings.selection.roots[self.root].path,
        ));
        let full = if path.as_os_str().is_empty() {
            root.to_owned()
        } else {
            root.join(path)
        };
        let full = full.into_os_string().into_vec();
        report(&shared.stats, &mut shared.problems.lock(), full, reason);
    }
}
