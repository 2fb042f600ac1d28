//! Files of a running server's `pg_wal`, reached by what a client says and checked for what they are.

use crate::{
    error::{AgentError, Result},
    files::{check_allowed, open_beneath},
};
use holdfast_postgres::{
    CONTROL_FILE_LEN, Cluster, ControlFile, PgError, SegmentSize, TimelineHistory, WAL_HEADER_LEN, WalFile,
    WalHeader,
};
use rustix::fs::{Mode, OFlags};
use std::{
    collections::BTreeSet,
    fs::File,
    io::Read as _,
    os::{
        fd::OwnedFd,
        unix::{ffi::OsStrExt as _, fs::FileExt as _},
    },
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

const CONTROL: &str = "global/pg_control";
const STATUS: &str = "archive_status";
const READY: &str = ".ready";
/// Times that the control file is read while it does not match its checksum.
const TRIES: usize = 20;
/// Between them.
const PAUSE: Duration = Duration::from_millis(20);

/// The data directory that a client named, and its WAL.
pub(super) struct ClusterFiles {
    /// The cluster.
    pub cluster: Cluster,
    /// Bytes of its segments.
    pub size: SegmentSize,
    /// Where the data directory is, as the client said, and whose client that was.
    pub place: (PathBuf, u32),
    wal: OwnedFd,
    wal_path: PathBuf,
    /// Files must belong to this user: nobody has the agent read what it may not read itself.
    owner: Option<u32>,
}

/// A file that may be kept.
pub(super) struct Candidate {
    /// What it is.
    pub name: WalFile,
    /// Open for reading.
    pub file: File,
    /// Bytes.
    pub len: u64,
    stamp: Stamp,
}

/// Tells a file from another one that came under its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    inode: u64,
    len: i64,
    changed: (i64, u64),
}

impl Candidate {
    /// What tells it from other files of its name.
    pub fn stamp(&self) -> Stamp {
        self.stamp
    }

    /// A file at a path, unchecked.
    #[cfg(test)]
    pub fn of(name: WalFile, path: &Path) -> Self {
        let file = File::open(path).unwrap();
        let stat = rustix::fs::fstat(&file).unwrap();
        Self {
            name,
            file,
            len: stat.st_size.cast_unsigned(),
            stamp: stamp(&stat),
        }
    }

    /// Whether it is still as it was when it was opened.
    pub fn is_unchanged(&self) -> bool {
        rustix::fs::fstat(&self.file).is_ok_and(|stat| stamp(&stat) == self.stamp)
    }
}

fn stamp(stat: &rustix::fs::Stat) -> Stamp {
    Stamp {
        inode: stat.st_ino,
        len: stat.st_size,
        changed: (stat.st_mtime, stat.st_mtime_nsec),
    }
}

impl ClusterFiles {
    /// Opens the directories of a cluster for a caller of that user.
    ///
    /// # Errors
    /// `NotAllowed` for directories that `agent.toml` does not allow; `Io`; what is wrong with the control file.
    pub fn open(data: &Path, uid: u32, allow: &[PathBuf]) -> Result<Self> {
        let place = (data.to_owned(), uid);
        let open = |path: &Path| {
            let real = path.canonicalize().map_err(AgentError::io("open", path))?;
            check_allowed(&real, allow)?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let dir = rustix::fs::open(&real, flags, Mode::empty()).map_err(AgentError::io("open", path))?;
            Ok::<_, AgentError>((dir, real))
        };
        let (data_dir, data) = open(data)?;
        let control = control_file(&data_dir, &data)?;
        let (wal, wal_path) = open(&data.join("pg_wal"))?;
        Ok(Self {
            cluster: Cluster {
                system_id: control.system_id,
                version: control.version,
            },
            size: control.wal_segment_size,
            place,
            wal,
            wal_path,
            owner: (uid != 0).then_some(uid),
        })
    }

    /// The name of the file at a path that the server gave: one in `pg_wal`, and of a kind that servers archive.
    ///
    /// # Errors
    /// `Invalid` for anything else.
    pub fn name_of(&self, data: &Path, path: &Path) -> Result<WalFile> {
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        let name = WalFile::parse(name, self.size)?;
        let dir = data.join(path.parent().unwrap_or(Path::new("")));
        let is_ours = dir.canonicalize().is_ok_and(|dir| dir == self.wal_path);
        if !is_ours {
            return Err(AgentError::Invalid(format!(
                "{} is not in {}, where the server's WAL is",
                path.display(),
                self.wal_path.display()
            )));
        }
        Ok(name)
    }

    /// Opens a file and looks whether it is what its name says, of this cluster.
    ///
    /// # Errors
    /// `Io`, `NotAllowed` for files of other users, and what is wrong with it.
    pub fn candidate(&self, name: WalFile) -> Result<Candidate> {
        let text = name.to_string();
        let shown = self.wal_path.join(&text);
        let file = open_beneath(&self.wal, Path::new(&text), OFlags::RDONLY | OFlags::NONBLOCK)
            .map_err(AgentError::io("open", &shown))?;
        let stat = rustix::fs::fstat(&file).map_err(AgentError::io("look at", &shown))?;
        if !rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file() {
            return Err(AgentError::Invalid(format!("{} is no file", shown.display())));
        }
        if self.owner.is_some_and(|owner| owner != stat.st_uid) {
            return Err(AgentError::NotAllowed(format!(
                "{} belongs to another user than the one who asks",
                shown.display()
            )));
        }
        let len = stat.st_size.cast_unsigned();
        if len > name.len_max() as u64 {
            return Err(PgError::TooLarge {
                what: "a file to archive",
                limit: name.len_max(),
            }
            .into());
        }
        let candidate = Candidate {
            name,
            file: File::from(file),
            len,
            stamp: stamp(&stat),
        };
        self.check(&candidate).map_err(|error| match error {
            AgentError::Io { .. } => error,
            error => AgentError::Server {
                action: "archive WAL",
                message: format!("{}: {error}", shown.display()),
                kind: holdfast_core::HasKind::kind(&error),
            },
        })?;
        Ok(candidate)
    }

    fn check(&self, candidate: &Candidate) -> Result<()> {
        let shown = || self.wal_path.join(candidate.name.to_string());
        match candidate.name {
            WalFile::Segment(segment) | WalFile::Partial(segment) => {
                let mut head = [0; WAL_HEADER_LEN];
                let read = candidate
                    .file
                    .read_at(&mut head, 0)
                    .map_err(AgentError::io("read", &shown()))?;
                let header = WalHeader::decode(head.get(..read).unwrap_or_default())?;
                Ok(header.check(segment, candidate.len, &self.cluster)?)
            }
            WalFile::History(timeline) => {
                let mut bytes = vec![0; usize::try_from(candidate.len).unwrap_or(0)];
                candidate
                    .file
                    .read_exact_at(&mut bytes, 0)
                    .map_err(AgentError::io("read", &shown()))?;
                TimelineHistory::parse(timeline, &bytes)?;
                Ok(())
            }
            // A note for people, which may be empty after a crash of the server: kept as it is.
            WalFile::Backup { .. } => Ok(()),
        }
    }

    /// How many files the server has ready for its archive.
    pub fn ready_count(&self) -> u64 {
        let Ok(dir) = open_beneath(&self.wal, Path::new(STATUS), OFlags::RDONLY | OFlags::DIRECTORY) else {
            return 0;
        };
        let entries = rustix::fs::Dir::read_from(&dir).into_iter().flatten().flatten();
        let is_ready =
            |entry: &rustix::fs::DirEntry| entry.file_name().to_bytes().ends_with(READY.as_bytes());
        entries.filter(is_ready).count() as u64
    }

    /// What the server has ready beside that file, in the order in which it archives: at most `most`, histories first.
    pub fn ready(&self, but: WalFile, most: usize) -> Vec<WalFile> {
        let Ok(dir) = open_beneath(&self.wal, Path::new(STATUS), OFlags::RDONLY | OFlags::DIRECTORY) else {
            return Vec::new();
        };
        let Ok(entries) = rustix::fs::Dir::read_from(&dir) else {
            return Vec::new();
        };
        // The first names only, whatever lies there: after a long outage these are very many.
        let mut first: BTreeSet<(bool, String)> = BTreeSet::new();
        for entry in entries.flatten() {
            let name = Path::new(std::ffi::OsStr::from_bytes(entry.file_name().to_bytes()));
            let Some(name) = name.to_str().and_then(|name| name.strip_suffix(READY)) else {
                continue;
            };
            first.insert((!name.ends_with(".history"), name.to_owned()));
            if first.len() > most + 1 {
                first.pop_last();
            }
        }
        let names = first
            .into_iter()
            .filter_map(|(_, name)| WalFile::parse(&name, self.size).ok());
        names.filter(|name| *name != but).take(most).collect()
    }
}

fn control_file(data: &OwnedFd, shown: &Path) -> Result<ControlFile> {
    let shown = shown.join(CONTROL);
    let mut tries = TRIES;
    loop {
        // It may be anything that its owner put there: neither is it waited for, nor read if it is no file.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let file = open_beneath(data, Path::new(CONTROL), flags).map_err(AgentError::io("open", &shown))?;
        let about = rustix::fs::fstat(&file).map_err(AgentError::io("look at", &shown))?;
        if !rustix::fs::FileType::from_raw_mode(about.st_mode).is_file() {
            return Err(AgentError::Invalid(format!("{} is no file", shown.display())));
        }
        let mut bytes = Vec::with_capacity(CONTROL_FILE_LEN + 1);
        File::from(file)
            .take(CONTROL_FILE_LEN as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(AgentError::io("read", &shown))?;
        match ControlFile::decode(&bytes) {
            Ok(control) => return Ok(control),
            Err(PgError::ChecksumWrong { .. }) if tries > 1 => {}
            Err(error) => return Err(error.into()),
        }
        tries -= 1;
        thread::park_timeout(PAUSE);
    }
}
