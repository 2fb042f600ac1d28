//! What to do with each name of a section: taken over from the parent snapshot, looked at here, or handed out.

use super::{
    Shared,
    attributes::{Found, Handle, take_over},
    directory::{Directory, Slot},
    old_entries::OldEntries,
    reader::is_sparse,
    section::Tasks,
    stats::add,
    store_chunk::Sink,
};
use crate::{
    error::{AgentError, Result},
    files::{Descend, Fate, open_beneath},
};
use holdfast_core::{ChunkId, Names, limits};
use holdfast_repo::{Content, Entry, EntryKind, Timestamp};
use rustix::fs::{AtFlags, FileType, OFlags, Stat};
use std::{
    ffi::OsStr,
    ops::Range,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Path, PathBuf},
};

/// Stands for the node of a directory that the parent snapshot does not have.
pub(super) const NO_NODE: ChunkId = ChunkId([0; 32]);

/// Goes through some names of one directory.
pub(super) struct Classifier<'c> {
    shared: &'c Shared,
    directory: &'c Directory,
    dir: &'c OwnedFd,
    tasks: Tasks,
    /// Owner and group that were noted last: most entries have those of their neighbour.
    owner: Option<(u32, u32)>,
}

impl<'c> Classifier<'c> {
    pub fn new(shared: &'c Shared, directory: &'c Directory, dir: &'c OwnedFd) -> Self {
        Self {
            shared,
            directory,
            dir,
            tasks: Tasks::default(),
            owner: None,
        }
    }

    /// The entries to keep, perhaps still to be filled by tasks.
    pub fn classify(
        mut self,
        sink: &mut Sink,
        names: &Names,
        range: Range<usize>,
    ) -> Result<(Vec<Slot>, Tasks)> {
        let shared = self.shared;
        let mut before = OldEntries::new(self.directory.previous);
        let mut slots = Vec::with_capacity(range.len());
        for (name, _) in range.filter_map(|at| names.get(at)) {
            let stat = match rustix::fs::statat(self.dir, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(rustix::io::Errno::NOENT) => {
                    add(&shared.stats.files_vanished, 1);
                    continue;
                }
                Err(error) => {
                    let path = self.path_of(name);
                    self.directory.report(shared, &path, &error.to_string());
                    continue;
                }
            };
            let same_name = before.take(shared, sink, name)?;
            if let Some(entry) = self.entry(name, &stat, same_name, slots.len() as u32) {
                slots.push(Some(entry));
            }
        }
        Ok((slots, self.tasks))
    }

    fn path_of(&self, name: &[u8]) -> PathBuf {
        self.directory.path.join(OsStr::from_bytes(name))
    }

    fn fate(&self, name: &[u8], kind: FileType) -> Fate {
        let rules = &self.shared.settings.selection.roots[self.directory.root].rules;
        if rules.is_empty() {
            return Fate::Take;
        }
        rules.fate(&self.path_of(name), kind, self.dir)
    }

    /// What to do with one name: an entry to keep (perhaps still to be filled by a task), or nothing.
    fn entry(&mut self, name: &[u8], stat: &Stat, before: Option<Entry>, index: u32) -> Option<Entry> {
        let kind = FileType::from_raw_mode(stat.st_mode);
        match self.fate(name, kind) {
            Fate::Take => {}
            Fate::Empty => {
                let entry = self.emptied(name, stat);
                self.note_owner(&entry);
                return Some(entry);
            }
            Fate::Leave => {
                add(&self.shared.stats.skipped, 1);
                return None;
            }
        }
        let entry = match kind {
            FileType::RegularFile => self.file(name, stat, before, index),
            FileType::Directory => self.subdirectory(name, stat, before.as_ref(), index)?,
            FileType::Symlink => {
                let target = Vec::new();
                let entry = entry_of(name.to_vec(), stat, EntryKind::Symlink { target });
                let entry = self.special(entry, stat, before.as_ref())?;
                add(&self.shared.stats.symlinks, 1);
                entry
            }
            FileType::Fifo | FileType::CharacterDevice | FileType::BlockDevice => {
                let rdev = stat.st_rdev;
                let entry_kind = match kind {
                    FileType::CharacterDevice => EntryKind::CharDevice { rdev },
                    FileType::BlockDevice => EntryKind::BlockDevice { rdev },
                    _ => EntryKind::Fifo,
                };
                let entry = entry_of(name.to_vec(), stat, entry_kind);
                let entry = self.special(entry, stat, before.as_ref())?;
                add(&self.shared.stats.others, 1);
                entry
            }
            FileType::Socket | FileType::Unknown => {
                add(&self.shared.stats.skipped, 1);
                return None;
            }
        };
        self.note_owner(&entry);
        Some(entry)
    }

    /// An empty directory in the place of whatever is there; of a link's permissions it takes its root's.
    fn emptied(&self, name: &[u8], stat: &Stat) -> Entry {
        add(&self.shared.stats.dirs, 1);
        let entry = entry_of(name.to_vec(), stat, empty_dir(self.shared));
        let root = &self.shared.settings.selection.roots[self.directory.root];
        let of = if FileType::from_raw_mode(stat.st_mode).is_dir() {
            stat
        } else {
            &root.stat
        };
        Entry {
            mode: of.st_mode & 0o7777,
            ..entry
        }
    }

    /// A regular file: as it was recorded before, or to be read.
    fn file(&mut self, name: &[u8], stat: &Stat, before: Option<Entry>, index: u32) -> Entry {
        let shared = self.shared;
        let is_kept = before
            .as_ref()
            .is_some_and(|before| is_unchanged(shared, before, stat));
        let (name, kind, recorded) = match before {
            Some(before) => (before.name, Some(before.kind), before.attributes),
            None => (name.to_vec(), None, None),
        };
        let entry = entry_of(name, stat, file_kind(stat, kind));
        if !is_kept {
            self.tasks.files.push((index, entry.size()));
            return entry;
        }
        add(&shared.stats.files, 1);
        add(&shared.stats.files_unchanged, 1);
        add(&shared.stats.bytes, entry.size());
        take_over(shared, recorded.as_deref(), entry, stat)
    }

    /// A directory: to be listed, or kept without what is in it.
    fn subdirectory(
        &mut self,
        name: &[u8],
        stat: &Stat,
        before: Option<&Entry>,
        index: u32,
    ) -> Option<Entry> {
        let (shared, directory) = (self.shared, self.directory);
        let path = self.path_of(name);
        let selection = &shared.settings.selection;
        let root = &selection.roots[directory.root];
        let dir = match open_beneath(&root.dir, &path, OFlags::RDONLY | OFlags::DIRECTORY) {
            Ok(dir) => dir,
            Err(rustix::io::Errno::NOENT) => {
                add(&shared.stats.files_vanished, 1);
                return None;
            }
            Err(error) => {
                directory.report(shared, &path, &error.to_string());
                return Some(entry_of(name.to_vec(), stat, empty_dir(shared)));
            }
        };
        let kind = match selection.descend(directory.root, stat, directory.dev, &dir) {
            Descend::No => {
                add(&shared.stats.skipped, 1);
                return None;
            }
            Descend::Empty => {
                add(&shared.stats.skipped, 1);
                empty_dir(shared)
            }
            Descend::Yes if directory.depth >= limits::DIR_DEPTH_MAX => {
                directory.report(shared, &path, "nested too deeply");
                return None;
            }
            Descend::Yes => {
                self.tasks.dirs.push((index, stat.st_dev));
                pending_dir(before.map(|before| &before.kind))
            }
        };
        let entry = entry_of(name.to_vec(), stat, kind);
        Some(self.with_attributes(&path, entry, stat, before, &dir))
    }

    /// A directory's attributes: those recorded before, unless it changed since.
    fn with_attributes(
        &self,
        path: &Path,
        entry: Entry,
        stat: &Stat,
        before: Option<&Entry>,
        dir: &OwnedFd,
    ) -> Entry {
        match before.filter(|before| is_same_inode(self.shared, before, stat)) {
            Some(before) if matches!(before.kind, EntryKind::Dir { .. }) => {
                take_over(self.shared, before.attributes.as_deref(), entry, stat)
            }
            _ => {
                let found = Found::read(self.shared, Handle::Open(dir.as_fd()), false);
                self.directory.with_found(self.shared, path, entry, stat, found)
            }
        }
    }

    /// A link, fifo or device, a link still without its target: as it was recorded before, or looked at.
    fn special(&self, mut entry: Entry, stat: &Stat, before: Option<&Entry>) -> Option<Entry> {
        let (shared, directory) = (self.shared, self.directory);
        let is_link = matches!(entry.kind, EntryKind::Symlink { .. });
        if let Some(before) = before.filter(|before| is_same_inode(shared, before, stat)) {
            if is_link && matches!(before.kind, EntryKind::Symlink { .. }) {
                entry.kind = before.kind.clone();
            }
            if entry.kind == before.kind {
                return Some(take_over(shared, before.attributes.as_deref(), entry, stat));
            }
        }
        let path = self.path_of(&entry.name);
        let root = &shared.settings.selection.roots[directory.root];
        let looked = open_beneath(&root.dir, &path, OFlags::PATH).and_then(|place| {
            if is_link {
                let target = rustix::fs::readlinkat(&place, c"", Vec::new())?.into_bytes();
                entry.kind = EntryKind::Symlink { target };
            }
            Ok(Found::read(shared, Handle::Place(place.as_fd()), false))
        });
        match looked {
            Ok(found) => Some(directory.with_found(shared, &path, entry, stat, found)),
            Err(rustix::io::Errno::NOENT) => {
                add(&shared.stats.files_vanished, 1);
                None
            }
            Err(error) => {
                directory.report(shared, &path, &error.to_string());
                None
            }
        }
    }

    fn note_owner(&mut self, entry: &Entry) {
        let owner = (entry.uid, entry.gid);
        if self.owner.replace(owner) != Some(owner) {
            let mut owners = self.shared.owners.lock();
            owners.0.insert(entry.uid);
            owners.1.insert(entry.gid);
        }
    }
}

/// Same size, times, inode and kind: not read again, unless the controllers lost some of it.
fn is_unchanged(shared: &Shared, before: &Entry, now: &Stat) -> bool {
    let EntryKind::File { size, content, .. } = &before.kind else {
        return false;
    };
    let missing = &shared.settings.missing;
    *size == now.st_size as u64
        && is_same_inode(shared, before, now)
        && !before.changed_while_read
        && (missing.is_empty()
            || match content {
                Content::Inline(chunks) => !chunks.iter().any(|chunk| missing.contains(&chunk.id)),
                Content::Node(_) => false,
            })
}

/// Not changed since, whatever it is.
fn is_same_inode(shared: &Shared, before: &Entry, now: &Stat) -> bool {
    shared.settings.is_parent_of_here
        && before.mtime == mtime(now)
        && before.ctime == ctime(now)
        && before.inode == now.st_ino
}

/// A directory whose node is not known yet; until it is finished it holds its last version's, if there was one.
pub(super) fn pending_dir(before: Option<&EntryKind>) -> EntryKind {
    let node = match before {
        Some(EntryKind::Dir { node, .. }) => *node,
        _ => NO_NODE,
    };
    EntryKind::Dir {
        node,
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
pub(super) fn file_kind(stat: &Stat, before: Option<EntryKind>) -> EntryKind {
    let (strategy, content) = match before {
        Some(EntryKind::File {
            strategy, content, ..
        }) => (strategy, content),
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

fn mtime(stat: &Stat) -> Timestamp {
    Timestamp {
        secs: stat.st_mtime,
        nanos: stat.st_mtime_nsec as u32,
    }
}

fn ctime(stat: &Stat) -> Timestamp {
    Timestamp {
        secs: stat.st_ctime,
        nanos: stat.st_ctime_nsec as u32,
    }
}

/// The entry of a file that was read. One that changed meanwhile is marked; of a live root it is only kept from being
/// taken for unchanged by the next run.
pub(super) fn entry_read(name: Vec<u8>, stat: &Stat, kind: EntryKind, changed: bool, is_live: bool) -> Entry {
    let entry = entry_of(name, stat, kind);
    Entry {
        changed_while_read: changed && !is_live,
        ctime: if changed && is_live {
            Timestamp::default()
        } else {
            entry.ctime
        },
        ..entry
    }
}

/// Attributes as the file system gave them.
pub(super) fn entry_of(name: Vec<u8>, stat: &Stat, kind: EntryKind) -> Entry {
    Entry {
        name,
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: mtime(stat),
        ctime: ctime(stat),
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
