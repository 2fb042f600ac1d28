//! A source's spool: a directory of WAL files that the server was told to be archived and the controllers do not hold yet.
//!
//! **Architecture invariants.** A file is in the index only when it, its name and its directory are synced. It leaves only when
//! the controllers hold it, or into `aside/`, where somebody has to look at it. All of it together stays within its limit.

mod line;

#[cfg(test)]
use super::{cluster_files::Candidate, sealing::Sealing};
use super::{
    cluster_files::Stamp,
    spooled::{self, Spooled, now_millis},
};
use crate::error::{AgentError, Result};
use holdfast_core::{ErrorKind, limits::JOURNAL_NAME_MAX};
use holdfast_repo::VaultKeys;
use parking_lot::Mutex;
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Seek as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::sync::watch;

/// Below a spool: what cannot be sent.
const ASIDE: &str = "aside";
/// Files of this form are not whole yet.
const UNFINISHED: &str = ".unfinished";
/// Most files of one spool, so that what is kept in memory and read at the start stays small: WAL of 128 GiB.
const FILES_MAX: usize = 8192;
/// What is left free of the file system: it is also the state's, and often the server's.
const FREE_MIN: u64 = 64 << 20;
/// Bytes beside content and its share of framing: directories of packs, the note.
const FRAMING: u64 = 64 << 10;

/// A spooled file as the index knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Held {
    /// Tells it from another one under its name.
    pub generation: u64,
    /// Bytes of the file itself.
    pub len: u64,
    /// Bytes in the spool.
    pub disk: u64,
    /// By which it is compared; none when what was written of it is damaged.
    pub content: Option<[u8; 32]>,
    /// The server's file that it was made of, if this process made it.
    pub stamp: Option<Stamp>,
    /// When it was taken in, in milliseconds since 1970.
    pub at: u64,
    /// Found to be damaged: it is not sent.
    pub is_damaged: bool,
}

/// What a spool holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Fill {
    /// Files that wait.
    pub files: u64,
    /// Bytes on the disk of all of it.
    pub bytes: u64,
    /// Most of them; 0 when nothing more is taken in.
    pub limit: u64,
    /// How long the oldest waits.
    pub oldest_ms: u64,
    /// Files that cannot be sent.
    pub aside: u64,
}

#[derive(Default)]
struct Index {
    files: BTreeMap<String, Held>,
    bytes: u64,
    aside: u64,
    aside_bytes: u64,
    generation: u64,
}

/// See the module. One process has it: the agent's state is locked.
pub(super) struct Spool {
    dir: PathBuf,
    keys: Arc<VaultKeys>,
    limit: u64,
    index: Mutex<Index>,
    /// A sync failed: what the system then says of later ones is not believed, and nothing is taken in until a restart.
    is_broken: AtomicBool,
    changes: watch::Sender<u64>,
}

impl Spool {
    /// Opens or makes a spool; what a crash left unfinished goes.
    ///
    /// # Errors
    /// When its directory cannot be made or read.
    pub fn open(dir: &Path, keys: Arc<VaultKeys>, limit: u64) -> Result<Self> {
        holdfast_net::durable::create_private_dir(&dir.join(ASIDE))?;
        sync(dir)?;
        let mut index = Index::default();
        for (name, path, len) in listed(dir)? {
            if name.ends_with(UNFINISHED) {
                fs::remove_file(&path).map_err(AgentError::io("remove", &path))?;
            } else if is_name(&name) {
                index.generation += 1;
                let held = found(&path, &keys, len, index.generation);
                index.bytes += len;
                index.files.insert(name, held);
            }
        }
        for (_, _, len) in listed(&dir.join(ASIDE))? {
            index.aside += 1;
            index.aside_bytes += len;
        }
        Ok(Self {
            dir: dir.to_owned(),
            keys,
            limit,
            index: Mutex::new(index),
            is_broken: AtomicBool::new(false),
            changes: watch::Sender::new(0),
        })
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What it holds.
    pub fn fill(&self) -> Fill {
        let index = self.index.lock();
        let oldest = index.files.values().map(|held| held.at).min();
        Fill {
            files: index.files.len() as u64,
            bytes: index.bytes + index.aside_bytes,
            limit: self.limit,
            oldest_ms: oldest.map_or(0, |at| now_millis().saturating_sub(at)),
            aside: index.aside,
        }
    }

    /// Whether nothing waits in it, and nothing lies aside.
    pub fn is_empty(&self) -> bool {
        let index = self.index.lock();
        index.files.is_empty() && index.aside == 0
    }

    /// Whether nothing waits in it to be sent.
    pub fn is_drained(&self) -> bool {
        self.index.lock().files.is_empty()
    }

    /// Whether it could ever take a file of that length.
    pub fn could_take(&self, len: u64) -> bool {
        !self.is_broken.load(Ordering::Relaxed) && room_for(len) <= self.limit
    }

    /// Changes when a file came or went.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// The file of that name.
    pub fn held(&self, name: &str) -> Option<Held> {
        self.index.lock().files.get(name).cloned()
    }

    /// Notes of which file of the server it is known to be a copy.
    pub fn note_stamp(&self, name: &str, stamp: Stamp) {
        if let Some(held) = self.index.lock().files.get_mut(name) {
            held.stamp = Some(stamp);
        }
    }

    /// Takes a file in; it is durable when this returns. One at a time; blocks.
    ///
    /// # Errors
    /// `NoSpace` when it, or the disk, is full; when the file cannot be read, or changes meanwhile.
    #[cfg(test)]
    pub fn put(&self, sealing: &Sealing, from: &Candidate, system_id: u64) -> Result<()> {
        let (_, failed) = self.put_all(sealing, std::slice::from_ref(from), system_id, &|| false);
        failed.map_or(Ok(()), Err)
    }

    /// Remembers that a sync failed.
    fn synced<T>(&self, outcome: Result<T>) -> Result<T> {
        if let Err(error @ AgentError::Io { action: "sync", .. }) = &outcome {
            tracing::error!(%error, "the WAL spool takes nothing more until the agent is started again");
            self.is_broken.store(true, Ordering::Relaxed);
        }
        outcome
    }

    /// Refuses after a sync has failed, also what is on its way.
    fn check_intact(&self) -> Result<()> {
        if !self.is_broken.load(Ordering::Relaxed) {
            return Ok(());
        }
        Err(AgentError::Server {
            action: "spool WAL",
            message: format!(
                "a sync of {} failed; it takes nothing until the agent is started again",
                self.dir.display()
            ),
            kind: ErrorKind::NoSpace,
        })
    }

    /// Whether there is room for a file beside `waiting` ones that need `pending` bytes.
    fn check_room(&self, len: u64, waiting: u64, pending: u64) -> Result<()> {
        let fill = self.fill();
        let room = room_for(len).saturating_add(pending);
        let is_full =
            fill.bytes.saturating_add(room) > self.limit || fill.files + waiting >= FILES_MAX as u64;
        let about = rustix::fs::statvfs(&self.dir).map_err(AgentError::io("look at", &self.dir))?;
        let free = about.f_bavail.saturating_mul(about.f_frsize);
        let why = if is_full {
            format!(
                "it holds {} files, {} of {} MiB",
                fill.files,
                fill.bytes >> 20,
                self.limit >> 20
            )
        } else if free < FREE_MIN.saturating_add(room) {
            format!("only {} MiB of its disk are free", free >> 20)
        } else {
            return Ok(());
        };
        Err(AgentError::Server {
            action: "spool WAL",
            message: format!("{} takes no more: {why}", self.dir.display()),
            kind: ErrorKind::NoSpace,
        })
    }

    /// The files that are to be sent first, in the order of timelines and segments: at most `files` and, but for the first,
    /// `bytes`. Names of WAL sort like that, histories before the segments of their timeline.
    pub fn first(&self, files: usize, bytes: u64) -> Vec<(String, Held)> {
        let index = self.index.lock();
        let mut left = bytes;
        let mut first = Vec::new();
        for (name, held) in index.files.iter().take(files) {
            if !first.is_empty() && held.len > left {
                break;
            }
            left = left.saturating_sub(held.len);
            first.push((name.clone(), held.clone()));
        }
        first
    }

    /// Opens a file.
    ///
    /// # Errors
    /// `Corrupt` when it is damaged; `NotFound` when it has been sent meanwhile.
    pub fn read(&self, name: &str) -> Result<Spooled> {
        let spooled = Spooled::open(&self.dir.join(name), &self.keys)?;
        if spooled.note.name != name {
            return Err(AgentError::Server {
                action: "read the WAL spool",
                message: format!("under the name {name} lies {}", spooled.note.name),
                kind: ErrorKind::Corrupt,
            });
        }
        Ok(spooled)
    }

    /// A file as the server had it, checked, from its beginning; it has no name and goes with its last reader. Blocks.
    ///
    /// # Errors
    /// `Corrupt` when it is damaged; `NotFound` when it has been sent meanwhile.
    pub fn copy_out(&self, name: &str, number: u64) -> Result<File> {
        let spooled = self.read(name)?;
        let path = self.dir.join(format!("{number}{UNFINISHED}"));
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)
            .map_err(AgentError::io("make", &path))?;
        let _ = fs::remove_file(&path);
        spooled.copy_to(&mut file)?;
        file.rewind().map_err(AgentError::io("read", &path))?;
        Ok(file)
    }

    /// A file turned out to be damaged.
    pub fn note_damage(&self, name: &str, generation: u64) {
        let mut index = self.index.lock();
        if let Some(held) = index.files.get_mut(name)
            && held.generation == generation
        {
            held.is_damaged = true;
        }
    }

    /// The controllers hold it: it goes. If its name comes back after a power cut it is sent again, which changes nothing.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove(&self, name: &str, generation: u64) -> Result<()> {
        self.take(name, generation, false, |path| {
            fs::remove_file(path).map_err(AgentError::io("remove", path))
        })
    }

    /// It cannot be sent, and must not be lost: it is kept where somebody finds it.
    ///
    /// # Errors
    /// When it cannot be moved.
    pub fn set_aside(&self, name: &str, generation: u64) -> Result<()> {
        let aside = self.dir.join(ASIDE);
        let to = aside.join(format!("{name}.{}", now_millis()));
        let moved = self.take(name, generation, true, |path| {
            rustix::fs::rename(path, &to).map_err(AgentError::io("rename", path))?;
            sync(&aside)?;
            sync(&self.dir)
        });
        // Also after half of it: it is counted where it lies.
        self.look_aside().and(moved)
    }

    fn take(
        &self,
        name: &str,
        generation: u64,
        is_aside: bool,
        take: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<()> {
        {
            let mut index = self.index.lock();
            let held = index.files.get(name).map(|held| (held.generation, held.disk));
            let Some((_, disk)) = held.filter(|(held, _)| *held == generation) else {
                return Ok(());
            };
            match take(&self.dir.join(name)) {
                Err(AgentError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
                other => other?,
            }
            index.files.remove(name);
            index.bytes = index.bytes.saturating_sub(disk);
            if is_aside {
                index.aside += 1;
                index.aside_bytes += disk;
            }
        }
        self.changes.send_modify(|count| *count += 1);
        Ok(())
    }

    /// Counts what lies aside; somebody may have taken it away.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn look_aside(&self) -> Result<()> {
        // Under the lock: what is being moved there is never in neither place.
        let mut index = self.index.lock();
        let files = listed(&self.dir.join(ASIDE))?;
        let before = std::mem::replace(&mut index.aside, files.len() as u64);
        index.aside_bytes = files.iter().map(|(_, _, len)| len).sum();
        let is_other = index.aside != before;
        drop(index);
        if is_other {
            self.changes.send_modify(|count| *count += 1);
        }
        Ok(())
    }
}

/// What a file may take at most: content that cannot be compressed, and what is around it.
fn room_for(len: u64) -> u64 {
    len.saturating_add(len / 256).saturating_add(FRAMING)
}

fn is_name(name: &str) -> bool {
    name.len() <= JOURNAL_NAME_MAX
        && name.starts_with(|c: char| c.is_ascii_hexdigit())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'.')
        && !name.ends_with(".json")
}

fn found(path: &Path, keys: &Arc<VaultKeys>, disk: u64, generation: u64) -> Held {
    let note = match Spooled::open(path, keys) {
        Ok(spooled) => Some(spooled.note),
        Err(error) => {
            tracing::error!(%error, "a spooled file of WAL cannot be read");
            None
        }
    };
    Held {
        generation,
        len: note.as_ref().map_or(disk, |note| note.len),
        disk,
        content: note.as_ref().map(|note| note.content),
        stamp: None,
        at: note.as_ref().map_or_else(now_millis, |note| note.spooled_at),
        is_damaged: note.is_none(),
    }
}

/// Files of a directory: name, path, bytes.
fn listed(dir: &Path) -> Result<Vec<(String, PathBuf, u64)>> {
    let failed = || AgentError::io("list", dir);
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed())? {
        let entry = entry.map_err(failed())?;
        let about = entry.metadata().map_err(failed())?;
        if about.is_file() {
            let name = entry.file_name().to_string_lossy().into_owned();
            files.push((name, entry.path(), about.len()));
        }
    }
    Ok(files)
}

fn sync(dir: &Path) -> Result<()> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(AgentError::io("sync", dir))
}

#[cfg(test)]
mod tests;
