//! What the file system holds now, and what of it a power cut leaves. Pure: no FUSE, no clock.

use crate::seed::Rng;
use rustix::io::Errno;
use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
};

/// Number of the root directory, as FUSE wants it.
pub(super) const ROOT: u64 = 1;
/// Unit in which unsynced writes are kept or lost.
const SECTOR: usize = 4096;

/// What of the unsynced changes survives a cut.
#[derive(Debug, Clone, Copy)]
pub enum Survival {
    /// None of them.
    Nothing,
    /// Some: of each file's writes any sectors, of each directory's changes the first few. Seeded.
    Some(u64),
}

/// Makes the disk acknowledge syncs of some paths without doing them: a missing sync, planted from outside.
#[derive(Debug, Clone)]
pub struct Lie {
    part: String,
}

impl Lie {
    /// About every path that contains `part`.
    #[must_use]
    pub fn about(part: &str) -> Self {
        Self { part: part.into() }
    }
}

/// A change of a file's bytes that is not synced yet.
#[derive(Debug, Clone)]
enum Write {
    Bytes(usize, Vec<u8>),
    Length(usize),
}

/// A change of names that is not synced yet: what each directory's names become. One rename changes two.
#[derive(Debug, Clone)]
struct Naming {
    changes: Vec<(u64, OsString, Option<u64>)>,
}

#[derive(Debug, Clone)]
pub(super) enum Content {
    File {
        now: Vec<u8>,
        durable: Vec<u8>,
        unsynced: Vec<WriteOp>,
    },
    Dir {
        now: BTreeMap<OsString, u64>,
        durable: BTreeMap<OsString, u64>,
    },
    Link(OsString),
}

/// One unsynced change of a file.
#[derive(Debug, Clone)]
pub(super) struct WriteOp(Write);

/// One file, directory or link.
#[derive(Debug, Clone)]
pub(super) struct Inode {
    pub content: Content,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub links: u32,
    /// Nanoseconds since 1970.
    pub mtime_ns: u64,
    /// The last path it was known under, for messages and lies.
    pub path: String,
}

/// The whole file system.
#[derive(Debug, Clone)]
pub struct Model {
    inodes: BTreeMap<u64, Inode>,
    next: u64,
    /// Unsynced changes of names, oldest first.
    names: Vec<Naming>,
    boundaries: u64,
    log: Vec<String>,
    cut_at: Option<u64>,
    cut: bool,
    lies: Vec<Lie>,
}

type Result<T> = std::result::Result<T, Errno>;

impl Default for Model {
    fn default() -> Self {
        Self::new()
    }
}

impl Model {
    /// An empty file system.
    #[must_use]
    pub fn new() -> Self {
        let root = Inode {
            content: Content::Dir {
                now: BTreeMap::new(),
                durable: BTreeMap::new(),
            },
            mode: 0o755,
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            links: 2,
            mtime_ns: 0,
            path: String::new(),
        };
        Self {
            inodes: BTreeMap::from([(ROOT, root)]),
            next: ROOT + 1,
            names: Vec::new(),
            boundaries: 0,
            log: Vec::new(),
            cut_at: None,
            cut: false,
            lies: Vec::new(),
        }
    }

    // --- The experiment -----------------------------------------------------

    /// Syncs so far.
    #[must_use]
    pub fn boundaries(&self) -> u64 {
        self.boundaries
    }

    /// What each sync was about, the first one first.
    #[must_use]
    pub fn log(&self) -> &[String] {
        &self.log
    }

    /// Cuts the power when sync number `boundary` (from 1) is asked for, before it has any effect.
    pub fn cut_at(&mut self, boundary: u64) {
        self.cut_at = Some(boundary);
    }

    /// Cuts the power now.
    pub fn cut_now(&mut self) {
        self.cut = true;
    }

    /// Whether the power was cut.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        self.cut
    }

    /// Tells a lie from now on.
    pub fn lie(&mut self, lie: Lie) {
        self.lies.push(lie);
    }

    /// The file system as it is found when the power comes back; lies and counts start anew.
    #[must_use]
    pub fn after(&self, survival: Survival) -> Self {
        let mut inodes = self.inodes.clone();
        let mut rng = match survival {
            Survival::Nothing => None,
            Survival::Some(seed) => Some(Rng::new(seed)),
        };
        if let Some(rng) = &mut rng {
            keep_some_names(&mut inodes, &self.names, rng);
        }
        for inode in inodes.values_mut() {
            match &mut inode.content {
                Content::File {
                    now,
                    durable,
                    unsynced,
                } => {
                    if let Some(rng) = &mut rng {
                        keep_some_writes(durable, unsynced, rng);
                    }
                    unsynced.clear();
                    now.clone_from(durable);
                }
                Content::Dir { now, durable } => now.clone_from(durable),
                Content::Link(_) => {}
            }
        }
        let mut after = Self {
            inodes,
            next: self.next,
            ..Self::new()
        };
        after.forget_unreachable();
        after
    }

    /// Counts links anew and drops what no name leads to.
    fn forget_unreachable(&mut self) {
        let mut links: BTreeMap<u64, u32> = BTreeMap::from([(ROOT, 1)]);
        let mut pending = vec![ROOT];
        while let Some(number) = pending.pop() {
            if let Some(Inode {
                content: Content::Dir { now, .. },
                ..
            }) = self.inodes.get(&number)
            {
                for child in now.values() {
                    let count = links.entry(*child).or_default();
                    *count += 1;
                    if *count == 1 {
                        pending.push(*child);
                    }
                }
            }
        }
        self.inodes.retain(|number, _| links.contains_key(number));
        for (number, inode) in &mut self.inodes {
            inode.links = links[number] + u32::from(matches!(inode.content, Content::Dir { .. }));
        }
    }

    // --- Operations ---------------------------------------------------------

    /// Fails every operation once the power is gone.
    pub(super) fn powered(&self) -> Result<()> {
        if self.cut { Err(Errno::IO) } else { Ok(()) }
    }

    pub(super) fn get(&self, number: u64) -> Result<&Inode> {
        self.inodes.get(&number).ok_or(Errno::NOENT)
    }

    pub(super) fn get_mut(&mut self, number: u64) -> Result<&mut Inode> {
        self.inodes.get_mut(&number).ok_or(Errno::NOENT)
    }

    fn dir(&self, number: u64) -> Result<&BTreeMap<OsString, u64>> {
        match &self.get(number)?.content {
            Content::Dir { now, .. } => Ok(now),
            _ => Err(Errno::NOTDIR),
        }
    }

    pub(super) fn entries(&self, dir: u64) -> Result<Vec<(OsString, u64)>> {
        Ok(self
            .dir(dir)?
            .iter()
            .map(|(name, number)| (name.clone(), *number))
            .collect())
    }

    pub(super) fn lookup(&self, dir: u64, name: &OsStr) -> Result<u64> {
        self.dir(dir)?.get(name).copied().ok_or(Errno::NOENT)
    }

    /// A new file, directory or link under a new name.
    pub(super) fn create(
        &mut self,
        dir: u64,
        name: &OsStr,
        content: Content,
        mode: u32,
        owner: (u32, u32),
    ) -> Result<u64> {
        if self.dir(dir)?.contains_key(name) {
            return Err(Errno::EXIST);
        }
        let links = if matches!(content, Content::Dir { .. }) {
            2
        } else {
            1
        };
        let number = self.next;
        self.next += 1;
        let inode = Inode {
            content,
            mode,
            uid: owner.0,
            gid: owner.1,
            links,
            mtime_ns: 0,
            path: String::new(),
        };
        self.inodes.insert(number, inode);
        self.name(vec![(dir, name.to_os_string(), Some(number))])?;
        Ok(number)
    }

    pub(super) fn link(&mut self, number: u64, dir: u64, name: &OsStr) -> Result<()> {
        if self.dir(dir)?.contains_key(name) {
            return Err(Errno::EXIST);
        }
        self.get_mut(number)?.links += 1;
        self.name(vec![(dir, name.to_os_string(), Some(number))])
    }

    /// Removes a name; `directory` says which kind is meant.
    pub(super) fn remove(&mut self, dir: u64, name: &OsStr, directory: bool) -> Result<()> {
        let number = self.lookup(dir, name)?;
        match (&self.get(number)?.content, directory) {
            (Content::Dir { now, .. }, true) if !now.is_empty() => return Err(Errno::NOTEMPTY),
            (Content::Dir { .. }, false) => return Err(Errno::ISDIR),
            (Content::File { .. } | Content::Link(_), true) => return Err(Errno::NOTDIR),
            _ => {}
        }
        self.get_mut(number)?.links -= 1;
        self.name(vec![(dir, name.to_os_string(), None)])
    }

    pub(super) fn rename(&mut self, from: (u64, &OsStr), to: (u64, &OsStr), no_replace: bool) -> Result<()> {
        let number = self.lookup(from.0, from.1)?;
        if let Ok(replaced) = self.lookup(to.0, to.1) {
            if no_replace {
                return Err(Errno::EXIST);
            }
            if replaced == number {
                return Ok(());
            }
            if let Content::Dir { now, .. } = &self.get(replaced)?.content
                && !now.is_empty()
            {
                return Err(Errno::NOTEMPTY);
            }
            self.get_mut(replaced)?.links -= 1;
        }
        self.name(vec![
            (from.0, from.1.to_os_string(), None),
            (to.0, to.1.to_os_string(), Some(number)),
        ])
    }

    fn name(&mut self, changes: Vec<(u64, OsString, Option<u64>)>) -> Result<()> {
        for (dir, name, target) in &changes {
            let parent = self.get(*dir)?.path.clone();
            if let Some(target) = target {
                self.get_mut(*target)?.path = format!("{parent}/{}", name.to_string_lossy());
            }
            match &mut self.get_mut(*dir)?.content {
                Content::Dir { now, .. } => apply_name(now, name, *target),
                _ => return Err(Errno::NOTDIR),
            }
        }
        self.names.push(Naming { changes });
        Ok(())
    }

    pub(super) fn read(&self, number: u64, offset: usize, len: usize) -> Result<&[u8]> {
        match &self.get(number)?.content {
            Content::File { now, .. } => {
                let start = offset.min(now.len());
                Ok(&now[start..(start + len).min(now.len())])
            }
            _ => Err(Errno::ISDIR),
        }
    }

    pub(super) fn write(&mut self, number: u64, offset: usize, bytes: &[u8]) -> Result<()> {
        self.change(number, Write::Bytes(offset, bytes.to_vec()))
    }

    pub(super) fn set_len(&mut self, number: u64, len: usize) -> Result<()> {
        self.change(number, Write::Length(len))
    }

    fn change(&mut self, number: u64, write: Write) -> Result<()> {
        match &mut self.get_mut(number)?.content {
            Content::File { now, unsynced, .. } => {
                apply_write(now, &write);
                unsynced.push(WriteOp(write));
                Ok(())
            }
            _ => Err(Errno::ISDIR),
        }
    }

    /// fsync or fdatasync of a file, fsync of a directory: one boundary.
    pub(super) fn sync(&mut self, number: u64) -> Result<()> {
        self.powered()?;
        let path = self.get(number)?.path.clone();
        self.boundaries += 1;
        self.log
            .push(if path.is_empty() { "/".into() } else { path.clone() });
        if self.cut_at == Some(self.boundaries) {
            self.cut = true;
            return Err(Errno::IO);
        }
        if self.lies.iter().any(|lie| path.contains(&lie.part)) {
            return Ok(());
        }
        match &mut self.get_mut(number)?.content {
            Content::File {
                now,
                durable,
                unsynced,
            } => {
                durable.clone_from(now);
                unsynced.clear();
            }
            Content::Dir { .. } => self.sync_names(number),
            Content::Link(_) => {}
        }
        Ok(())
    }

    /// Every change that touches this directory becomes durable, whole: a rename between two directories is
    /// never half of one.
    fn sync_names(&mut self, dir: u64) {
        let (durable, kept) = std::mem::take(&mut self.names)
            .into_iter()
            .partition(|naming: &Naming| naming.changes.iter().any(|change| change.0 == dir));
        self.names = kept;
        for naming in durable {
            make_durable(&mut self.inodes, &naming);
        }
    }
}

fn apply_name(names: &mut BTreeMap<OsString, u64>, name: &OsStr, target: Option<u64>) {
    match target {
        Some(target) => names.insert(name.to_os_string(), target),
        None => names.remove(name),
    };
}

fn make_durable(inodes: &mut BTreeMap<u64, Inode>, naming: &Naming) {
    for (dir, name, target) in &naming.changes {
        if let Some(Inode {
            content: Content::Dir { durable, .. },
            ..
        }) = inodes.get_mut(dir)
        {
            apply_name(durable, name, *target);
        }
    }
}

fn apply_write(bytes: &mut Vec<u8>, write: &Write) {
    match write {
        Write::Length(len) => bytes.resize(*len, 0),
        Write::Bytes(offset, new) => {
            if bytes.len() < offset + new.len() {
                bytes.resize(offset + new.len(), 0);
            }
            bytes[*offset..offset + new.len()].copy_from_slice(new);
        }
    }
}

/// Of each directory's unsynced changes the first few survive, as a journal keeps their order.
fn keep_some_names(inodes: &mut BTreeMap<u64, Inode>, names: &[Naming], rng: &mut Rng) {
    let mut ended = std::collections::BTreeSet::new();
    for naming in names {
        let dirs = naming.changes.iter().map(|change| change.0);
        if dirs.clone().any(|dir| ended.contains(&dir)) || rng.chance(0.4) {
            ended.extend(dirs);
        } else {
            make_durable(inodes, naming);
        }
    }
}

/// Of a file's unsynced writes any sectors survive, in any combination, as a disk reorders them.
fn keep_some_writes(durable: &mut Vec<u8>, unsynced: &[WriteOp], rng: &mut Rng) {
    for WriteOp(write) in unsynced {
        match write {
            Write::Length(_) if rng.chance(0.5) => apply_write(durable, write),
            Write::Length(_) => {}
            Write::Bytes(offset, bytes) => {
                let mut at = 0;
                while at < bytes.len() {
                    // A piece ends where a sector of the disk does.
                    let end = (at + SECTOR - (offset + at) % SECTOR).min(bytes.len());
                    if rng.chance(0.5) {
                        apply_write(durable, &Write::Bytes(offset + at, bytes[at..end].to_vec()));
                    }
                    at = end;
                }
            }
        }
    }
}
