//! One directory on its way into the snapshot: listed, compared with the parent's, its files
//! handed out, and finished by whoever finishes its last part.

use super::{
    Shared,
    attributes::{Found, Handle, take_over},
    queue::Task,
    reader::is_sparse,
    stats::add,
    store_chunk::{Sink, load_directory},
};
use crate::{
    error::{AgentError, Result},
    files::{Descend, open_beneath},
};
use holdfast_core::{ChunkId, limits};
use holdfast_proto::v1::Problem;
use holdfast_repo::{Content, DirBuilder, Entry, EntryKind, Timestamp};
use parking_lot::Mutex;
use rustix::fs::{AtFlags, FileType, OFlags, Stat};
use std::{
    ffi::OsStr,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

/// Small files that one worker takes at a time: enough for one query, little enough to share.
const BATCH_FILES: usize = 256;
/// Their bytes together.
const BATCH_BYTES: u64 = 1 << 20;

/// A place in a directory: what the snapshot will hold, perhaps still without its content; `None`
/// for what is left out.
pub(super) type Slot = Option<Entry>;

/// The finished entries of the top: one for each root.
pub(super) type Finished = Vec<Option<Entry>>;

pub(super) struct Directory {
    parent: Option<(Arc<Directory>, u32)>,
    /// Which root it belongs to.
    pub root: usize,
    /// Relative to the root.
    pub path: PathBuf,
    /// Its node in the parent snapshot.
    previous: Option<ChunkId>,
    /// Device of the directory above, to see mounts.
    parent_dev: u64,
    depth: usize,
    pub slots: Mutex<Vec<Slot>>,
    /// Parts not finished, the listing itself included.
    pending: AtomicUsize,
}

impl Directory {
    /// The imaginary directory whose entries are the roots.
    pub fn top(shared: &Shared) -> Arc<Self> {
        let roots = &shared.settings.selection.roots;
        let slots = roots.iter().map(|_| None).collect();
        Arc::new(Self {
            parent: None,
            root: 0,
            path: PathBuf::new(),
            previous: None,
            parent_dev: 0,
            depth: 0,
            slots: Mutex::new(slots),
            pending: AtomicUsize::new(roots.len()),
        })
    }

    /// A task for every root.
    pub fn first_tasks(self: &Arc<Self>, shared: &Shared) -> Vec<Task> {
        let roots = &shared.settings.selection.roots;
        let tasks = roots.iter().enumerate().rev().map(|(index, root)| {
            let before = shared
                .settings
                .parent
                .iter()
                .find(|tree| tree.path == root.path)
                .map(|tree| &tree.entry);
            if root.file.is_some() {
                let entry = entry_of(Vec::new(), &root.stat, file_kind(&root.stat, before));
                self.slots.lock()[index] = Some(entry);
                return Task::Large(Arc::clone(self), index as u32);
            }
            let previous = match before.map(|entry| &entry.kind) {
                Some(EntryKind::Dir { node, .. }) => Some(*node),
                _ => None,
            };
            let directory = Arc::new(Self {
                parent: Some((Arc::clone(self), index as u32)),
                root: index,
                path: PathBuf::new(),
                previous,
                parent_dev: root.stat.st_dev,
                depth: 1,
                slots: Mutex::default(),
                pending: AtomicUsize::new(1),
            });
            let entry = entry_of(b"root".to_vec(), &root.stat, pending_dir());
            let found = Found::read(shared, Handle::Open(root.dir.as_fd()), true);
            let entry = directory.with_found(shared, Path::new(""), entry, &root.stat, found);
            self.slots.lock()[index] = Some(entry);
            Task::List(directory)
        });
        tasks.collect()
    }

    /// Whether this is the imaginary top, whose files are roots themselves.
    pub fn is_top(&self) -> bool {
        self.parent.is_none()
    }

    /// The top's entries, once everything below is finished.
    pub fn take_finished(&self) -> Option<Finished> {
        if self.pending.load(Ordering::Acquire) != 0 {
            return None;
        }
        Some(std::mem::take(&mut *self.slots.lock()))
    }

    /// The root's index and the path below it for an entry.
    pub fn locate(&self, index: u32, name: &[u8]) -> (usize, PathBuf) {
        if self.is_top() {
            (index as usize, PathBuf::new())
        } else {
            (self.root, self.path.join(OsStr::from_bytes(name)))
        }
    }

    /// Opens the directory.
    pub fn open(&self, shared: &Shared) -> rustix::io::Result<OwnedFd> {
        let root = &shared.settings.selection.roots[self.root];
        open_beneath(&root.dir, &self.path, OFlags::RDONLY | OFlags::DIRECTORY)
    }

    /// Lists it, takes over what did not change, and hands out the rest.
    pub fn list(self: &Arc<Self>, shared: &Shared, sink: &mut Sink) -> Result<()> {
        tracing::debug!(target: "holdfast::phase", phase = "walk", path = %self.path.display());
        let listing = match self.read(shared) {
            Ok(listing) => listing,
            Err(error) => {
                self.report(shared, &self.path, &error.to_string());
                Vec::new()
            }
        };
        let previous = match self.previous {
            Some(node) => load_directory(shared, sink, node)?,
            None => Vec::new(),
        };
        let mut tasks = Tasks::default();
        let mut slots = Vec::with_capacity(listing.len());
        let mut before = previous.iter().peekable();
        for (name, stat) in listing {
            while before.next_if(|entry| entry.name < name).is_some() {}
            let same_name = before.next_if(|entry| entry.name == name);
            let index = slots.len() as u32;
            if let Some(entry) = self.classify(shared, name, &stat, same_name, index, &mut tasks) {
                slots.push(Some(entry));
            }
        }
        drop(previous);
        *self.slots.lock() = slots;
        self.hand_out(shared, tasks);
        self.part_done(shared, sink)
    }

    /// Names and attributes, sorted by name.
    fn read(&self, shared: &Shared) -> rustix::io::Result<Vec<(Vec<u8>, Stat)>> {
        let dir = self.open(shared)?;
        let mut listing = Vec::new();
        for item in rustix::fs::Dir::read_from(&dir)? {
            let item = item?;
            let name = item.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            match rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => listing.push((name.to_bytes().to_vec(), stat)),
                Err(rustix::io::Errno::NOENT) => add(&shared.stats.files_vanished, 1),
                Err(error) => {
                    let path = self.path.join(OsStr::from_bytes(name.to_bytes()));
                    self.report(shared, &path, &error.to_string());
                }
            }
        }
        listing.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        Ok(listing)
    }

    /// What to do with one name: an entry to keep (perhaps still to be filled by a task), or nothing.
    fn classify(
        self: &Arc<Self>,
        shared: &Shared,
        name: Vec<u8>,
        stat: &Stat,
        before: Option<&Entry>,
        index: u32,
        tasks: &mut Tasks,
    ) -> Option<Entry> {
        let kind = FileType::from_raw_mode(stat.st_mode);
        let path = self.path.join(OsStr::from_bytes(&name));
        if shared
            .settings
            .selection
            .is_excluded(self.root, &path, kind.is_dir())
        {
            add(&shared.stats.skipped, 1);
            return None;
        }
        let stats = &shared.stats;
        let entry = match kind {
            FileType::RegularFile => {
                let entry = entry_of(name, stat, file_kind(stat, before));
                if before.is_some_and(|before| is_unchanged(shared, before, &entry)) {
                    let kept = Entry {
                        kind: before?.kind.clone(),
                        changed_while_read: false,
                        ..entry
                    };
                    add(&stats.files, 1);
                    add(&stats.files_unchanged, 1);
                    add(&stats.bytes, kept.size());
                    let kept = take_over(shared, before?, kept, stat);
                    return Some(self.with_owner(shared, kept));
                }
                tasks.file(index, entry.size());
                entry
            }
            FileType::Directory => {
                let dir = match open_beneath(
                    &shared.settings.selection.roots[self.root].dir,
                    &path,
                    OFlags::RDONLY | OFlags::DIRECTORY,
                ) {
                    Ok(dir) => dir,
                    Err(rustix::io::Errno::NOENT) => {
                        add(&stats.files_vanished, 1);
                        return None;
                    }
                    Err(error) => {
                        self.report(shared, &path, &error.to_string());
                        return Some(entry_of(name, stat, empty_dir(shared)));
                    }
                };
                match shared
                    .settings
                    .selection
                    .descend(self.root, stat, self.parent_dev, &dir)
                {
                    Descend::No => {
                        add(&stats.skipped, 1);
                        return None;
                    }
                    Descend::Empty => {
                        add(&stats.skipped, 1);
                        let entry = entry_of(name, stat, empty_dir(shared));
                        return Some(self.with_attributes(shared, &path, entry, stat, before, &dir));
                    }
                    Descend::Yes if self.depth >= limits::DIR_DEPTH_MAX => {
                        self.report(shared, &path, "nested too deeply");
                        return None;
                    }
                    Descend::Yes => {}
                }
                let previous = match before.map(|entry| &entry.kind) {
                    Some(EntryKind::Dir { node, .. }) => Some(*node),
                    _ => None,
                };
                let entry = entry_of(name, stat, pending_dir());
                let entry = self.with_attributes(shared, &path, entry, stat, before, &dir);
                tasks.dirs.push((index, path, previous, stat.st_dev));
                entry
            }
            FileType::Symlink => {
                let target = Vec::new();
                let entry = entry_of(name, stat, EntryKind::Symlink { target });
                let entry = self.special(shared, &path, entry, stat, before)?;
                add(&stats.symlinks, 1);
                entry
            }
            FileType::Fifo | FileType::CharacterDevice | FileType::BlockDevice => {
                let rdev = stat.st_rdev;
                let entry_kind = match kind {
                    FileType::CharacterDevice => EntryKind::CharDevice { rdev },
                    FileType::BlockDevice => EntryKind::BlockDevice { rdev },
                    _ => EntryKind::Fifo,
                };
                let entry = self.special(shared, &path, entry_of(name, stat, entry_kind), stat, before)?;
                add(&stats.others, 1);
                entry
            }
            FileType::Socket | FileType::Unknown => {
                add(&stats.skipped, 1);
                return None;
            }
        };
        Some(self.with_owner(shared, entry))
    }

    /// A directory's attributes: those recorded before, unless it changed since.
    fn with_attributes(
        &self,
        shared: &Shared,
        path: &Path,
        entry: Entry,
        stat: &Stat,
        before: Option<&Entry>,
        dir: &OwnedFd,
    ) -> Entry {
        match before.filter(|before| is_same_inode(before, &entry)) {
            Some(before) if matches!(before.kind, EntryKind::Dir { .. }) => {
                take_over(shared, before, entry, stat)
            }
            _ => {
                let found = Found::read(shared, Handle::Open(dir.as_fd()), false);
                self.with_found(shared, path, entry, stat, found)
            }
        }
    }

    /// Puts what was found into an entry and reports what could not be had.
    pub fn with_found(&self, shared: &Shared, path: &Path, entry: Entry, stat: &Stat, found: Found) -> Entry {
        let (entry, problem) = found.into_entry(shared, entry, stat);
        if let Some(problem) = problem {
            self.report(shared, path, &problem);
        }
        entry
    }

    /// A link, fifo or device, a link still without its target: as it was recorded before, or looked at.
    fn special(
        &self,
        shared: &Shared,
        path: &Path,
        mut entry: Entry,
        stat: &Stat,
        before: Option<&Entry>,
    ) -> Option<Entry> {
        let is_link = matches!(entry.kind, EntryKind::Symlink { .. });
        if let Some(before) = before.filter(|before| is_same_inode(before, &entry)) {
            if is_link && matches!(before.kind, EntryKind::Symlink { .. }) {
                entry.kind = before.kind.clone();
            }
            if entry.kind == before.kind {
                return Some(take_over(shared, before, entry, stat));
            }
        }
        let root = &shared.settings.selection.roots[self.root];
        let looked = open_beneath(&root.dir, path, OFlags::PATH).and_then(|place| {
            if is_link {
                let target = rustix::fs::readlinkat(&place, c"", Vec::new())?.into_bytes();
                entry.kind = EntryKind::Symlink { target };
            }
            Ok(Found::read(shared, Handle::Place(place.as_fd()), false))
        });
        match looked {
            Ok(found) => Some(self.with_found(shared, path, entry, stat, found)),
            Err(rustix::io::Errno::NOENT) => {
                add(&shared.stats.files_vanished, 1);
                None
            }
            Err(error) => {
                self.report(shared, path, &error.to_string());
                None
            }
        }
    }

    fn with_owner(&self, shared: &Shared, entry: Entry) -> Entry {
        let mut owners = shared.owners.lock();
        owners.0.insert(entry.uid);
        owners.1.insert(entry.gid);
        drop(owners);
        entry
    }

    fn hand_out(self: &Arc<Self>, shared: &Shared, tasks: Tasks) {
        let mut out = Vec::new();
        for (index, path, previous, parent_dev) in tasks.dirs.into_iter().rev() {
            out.push(Task::List(Arc::new(Self {
                parent: Some((Arc::clone(self), index)),
                root: self.root,
                path,
                previous,
                parent_dev,
                depth: self.depth + 1,
                slots: Mutex::default(),
                pending: AtomicUsize::new(1),
            })));
        }
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

    /// Fills the place of an entry; `None` leaves it out.
    pub fn fill(&self, index: u32, entry: Option<Entry>) {
        if let Some(slot) = self.slots.lock().get_mut(index as usize) {
            *slot = entry;
        }
    }

    /// One part is finished; with the last, the directory is, and so may be those above it.
    pub fn part_done(self: &Arc<Self>, shared: &Shared, sink: &mut Sink) -> Result<()> {
        let mut directory = Arc::clone(self);
        while directory.pending.fetch_sub(1, Ordering::AcqRel) == 1 {
            let Some((parent, index)) = directory.parent.clone() else {
                return Ok(());
            };
            let kind = directory.build(shared, sink)?;
            if let Some(Some(entry)) = parent.slots.lock().get_mut(index as usize) {
                entry.kind = kind;
            }
            add(&shared.stats.dirs, 1);
            directory = parent;
        }
        Ok(())
    }

    /// Makes the nodes of the finished directory and stores those that are new.
    fn build(&self, shared: &Shared, sink: &mut Sink) -> Result<EntryKind> {
        let mut builder = DirBuilder::new(&*shared.settings.keys);
        for entry in std::mem::take(&mut *self.slots.lock()).iter().flatten() {
            builder.push(entry)?;
            shared.long_held.release(entry);
            for node in builder.take_nodes() {
                sink.store_node(shared, node)?;
            }
        }
        let built = builder.finish()?;
        for node in built.nodes {
            sink.store_node(shared, node)?;
        }
        Ok(EntryKind::Dir {
            node: built.id,
            files: built.files,
            bytes: built.bytes,
        })
    }

    /// Counts something that could not be read, and lists it while the list is short.
    pub fn report(&self, shared: &Shared, path: &Path, reason: &str) {
        add(&shared.stats.unreadable, 1);
        let mut problems = shared.problems.lock();
        if problems.len() < limits::LISTED_PROBLEMS_MAX {
            let root = Path::new(OsStr::from_bytes(
                &shared.settings.selection.roots[self.root].path,
            ));
            let full = if path.as_os_str().is_empty() {
                root.to_owned()
            } else {
                root.join(path)
            };
            let path = full.as_os_str().as_bytes().to_vec().into();
            problems.push(Problem {
                path,
                reason: reason.to_owned(),
            });
        }
    }
}

#[derive(Default)]
struct Tasks {
    files: Vec<(u32, u64)>,
    dirs: Vec<(u32, PathBuf, Option<ChunkId>, u64)>,
}

impl Tasks {
    fn file(&mut self, index: u32, size: u64) {
        self.files.push((index, size));
    }
}

/// Same size, times, inode and kind: not read again, unless the controllers lost some of it.
fn is_unchanged(shared: &Shared, before: &Entry, now: &Entry) -> bool {
    let EntryKind::File { size, content, .. } = &before.kind else {
        return false;
    };
    let missing = &shared.settings.missing;
    *size == now.size()
        && is_same_inode(before, now)
        && !before.changed_while_read
        && (missing.is_empty()
            || match content {
                Content::Inline(chunks) => !chunks.iter().any(|chunk| missing.contains(&chunk.id)),
                Content::Node(_) => false,
            })
}

/// Not changed since, whatever it is.
fn is_same_inode(before: &Entry, now: &Entry) -> bool {
    before.mtime == now.mtime && before.ctime == now.ctime && before.inode == now.inode
}

/// A directory whose node is not known yet; replaced when it is finished.
fn pending_dir() -> EntryKind {
    EntryKind::Dir {
        node: ChunkId([0; 32]),
        files: 0,
        bytes: 0,
    }
}

/// A mount point, or a directory that could not be read: kept, without what is in it.
fn empty_dir(shared: &Shared) -> EntryKind {
    shared.empty_dir.clone()
}

/// A regular file whose content is not known yet: it holds its last version's, which the new one is compared
/// with, and is cut as that was.
fn file_kind(stat: &Stat, before: Option<&Entry>) -> EntryKind {
    let (strategy, content) = match before.map(|entry| &entry.kind) {
        Some(EntryKind::File {
            strategy, content, ..
        }) => (*strategy, content.clone()),
        _ => (
            holdfast_repo::Strategy::ContentDefined,
            Content::Inline(Vec::new()),
        ),
    };
    EntryKind::File {
        size: stat.st_size as u64,
        strategy,
        content,
    }
}

/// Attributes as the file system gave them.
pub(super) fn entry_of(name: Vec<u8>, stat: &Stat, kind: EntryKind) -> Entry {
    Entry {
        name,
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: Timestamp {
            secs: stat.st_mtime,
            nanos: stat.st_mtime_nsec as u32,
        },
        ctime: Timestamp {
            secs: stat.st_ctime,
            nanos: stat.st_ctime_nsec as u32,
        },
        inode: stat.st_ino,
        changed_while_read: false,
        is_sparse: FileType::from_raw_mode(stat.st_mode).is_file() && is_sparse(stat),
        kind,
        attributes: None,
    }
}

impl From<rustix::io::Errno> for AgentError {
    fn from(error: rustix::io::Errno) -> Self {
        Self::Io {
            action: "use",
            path: PathBuf::new(),
            source: error.into(),
        }
    }
}
