//! The directory of one test restore below the agent's scratch, and what becomes of those that were left behind.
//!
//! What is removed must be ours beyond doubt: a directory whose name we give, that belongs to us, with our mark in it. The
//! mark is locked while a process works there, so that an agent that starts beside another one leaves that one's alone. It goes
//! last: whatever ends the removal, the next start goes on with it.

use super::processes;
use crate::error::{AgentError, Result};
use holdfast_core::JobId;
use rustix::fs::{FlockOperation, flock};
use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{ErrorKind, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

/// How names of such directories begin; the job's id follows.
const PREFIX: &str = "test-";
/// The mark.
const MARK: &str = ".holdfast-test-restore";
/// The server's user passes through, and lists nothing.
const DIR_MODE: u32 = 0o711;
/// Times that a removal is begun anew: a server that was just killed may still make a file.
const REMOVALS: u32 = 20;
/// Between two of them.
const PAUSE: Duration = Duration::from_millis(100);

/// A directory that is ours, until it is removed.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    /// Locked: closed by the end of this process, however it ends.
    mark: File,
}

impl Scratch {
    /// Makes one for a job.
    ///
    /// # Errors
    /// When it cannot be made, or is there.
    pub fn make(root: &Path, job: JobId) -> Result<Self> {
        make_dir(root, true)?;
        let path = root.join(format!("{PREFIX}{job}"));
        make_dir(&path, false)?;
        let at = path.join(MARK);
        let mut mark = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&at)
            .map_err(AgentError::io("make", &at))?;
        flock(&mark, FlockOperation::NonBlockingLockExclusive).map_err(AgentError::io("lock", &at))?;
        let text =
            format!("A test restore of a Holdfast agent, job {job}. The agent removes this directory.\n");
        mark.write_all(text.as_bytes())
            .and_then(|()| mark.sync_all())
            .map_err(AgentError::io("write", &at))?;
        for dir in [&*path, root] {
            File::open(dir)
                .and_then(|dir| dir.sync_all())
                .map_err(AgentError::io("sync", dir))?;
        }
        Ok(Self { path, mark })
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Stops what still runs from there, and removes it. On a thread that may wait.
    ///
    /// # Errors
    /// When something stays; the agent's next start tries again.
    pub fn remove(self) -> Result<()> {
        let removed = remove(&self.path);
        drop(self.mark);
        removed
    }
}

/// A directory that others pass through. `DirBuilder` is held to the umask of this process, which may be stricter.
pub(super) fn make_dir(path: &Path, may_exist: bool) -> Result<()> {
    match DirBuilder::new().mode(DIR_MODE).create(path) {
        Ok(()) => {
            let mode = std::os::unix::fs::PermissionsExt::from_mode(DIR_MODE);
            fs::set_permissions(path, mode).map_err(AgentError::io("set the mode of", path))
        }
        Err(error) if may_exist && error.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(AgentError::io("make", path)(error)),
    }
}

/// Removes what earlier processes left behind, and nothing else. On a thread that may wait.
///
/// # Errors
/// When the directory cannot be listed. What cannot be removed is told, and stays for the next time.
pub fn clear(root: &Path) -> Result<()> {
    let entries = match fs::read_dir(root) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(AgentError::io("list", root)(error)),
    };
    for entry in entries {
        let path = entry.map_err(AgentError::io("list", root))?.path();
        let (seen, lock) = Seen::of(&path);
        match seen.decide() {
            Decision::Remove => match remove(&path) {
                Ok(()) => tracing::info!(path = %path.display(), "removed what a test restore left behind"),
                Err(error) => {
                    tracing::warn!(%error, "what a test restore left behind cannot be removed; trying again at the next start");
                }
            },
            Decision::InUse => {
                tracing::info!(path = %path.display(), "another agent tries a restore there; left alone")
            }
            Decision::NotOurs => {}
        }
        drop(lock);
    }
    Ok(())
}

/// What was seen of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    is_named_so: bool,
    /// A directory, no link to one, and made by whom this process runs as.
    is_our_dir: bool,
    is_empty: bool,
    mark: Mark,
}

/// The mark in a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    Absent,
    /// Nobody holds it.
    Free,
    /// A process works there.
    Held,
}

/// What becomes of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Decision {
    Remove,
    InUse,
    NotOurs,
}

impl Seen {
    /// Looks, and holds the mark, so that nobody begins there meanwhile.
    fn of(path: &Path) -> (Self, Option<File>) {
        let name = path.file_name().and_then(|name| name.to_str());
        let is_named_so = name
            .and_then(|name| name.strip_prefix(PREFIX))
            .is_some_and(|id| id.parse::<JobId>().is_ok());
        let ours = rustix::process::geteuid().as_raw();
        let is_our_dir = fs::symlink_metadata(path).is_ok_and(|about| about.is_dir() && about.uid() == ours);
        let mut seen = Self {
            is_named_so,
            is_our_dir,
            is_empty: false,
            mark: Mark::Absent,
        };
        if !(is_named_so && is_our_dir) {
            return (seen, None);
        }
        seen.is_empty = fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none());
        let mark = OpenOptions::new()
            .read(true)
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
            .open(path.join(MARK));
        let Ok(mark) = mark else { return (seen, None) };
        seen.mark = match flock(&mark, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Mark::Free,
            Err(_) => Mark::Held,
        };
        (seen, Some(mark))
    }

    fn decide(self) -> Decision {
        match self {
            Self {
                is_named_so: false, ..
            }
            | Self {
                is_our_dir: false, ..
            } => Decision::NotOurs,
            Self { mark: Mark::Held, .. } => Decision::InUse,
            Self { mark: Mark::Free, .. } => Decision::Remove,
            // A process ended between making the directory and marking it, or between removing the mark and the directory.
            Self { is_empty: true, .. } => Decision::Remove,
            Self { is_empty: false, .. } => Decision::NotOurs,
        }
    }
}

/// Stops what runs from a directory of ours, and removes it, its mark last. Links are removed, not followed.
fn remove(path: &Path) -> Result<()> {
    processes::stop(path)?;
    let mut left = REMOVALS;
    loop {
        match remove_once(path) {
            Ok(()) => return Ok(()),
            Err(error) if left == 0 => return Err(error),
            Err(_) => left -= 1,
        }
        thread::park_timeout(PAUSE);
        processes::stop(path)?;
    }
}

fn remove_once(path: &Path) -> Result<()> {
    for entry in fs::read_dir(path).map_err(AgentError::io("list", path))? {
        let entry = entry.map_err(AgentError::io("list", path))?;
        if entry.file_name() == MARK {
            continue;
        }
        let at = entry.path();
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let removed = if is_dir {
            fs::remove_dir_all(&at)
        } else {
            fs::remove_file(&at)
        };
        removed.map_err(AgentError::io("remove", &at))?;
    }
    let mark = path.join(MARK);
    match fs::remove_file(&mark) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(AgentError::io("remove", &mark)(error));
        }
        _ => {}
    }
    fs::remove_dir(path).map_err(AgentError::io("remove", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_ours_beyond_doubt_is_removed() {
        let ours = Seen {
            is_named_so: true,
            is_our_dir: true,
            is_empty: false,
            mark: Mark::Free,
        };
        assert_eq!(ours.decide(), Decision::Remove);
        for (seen, decision) in [
            (
                Seen {
                    mark: Mark::Held,
                    ..ours
                },
                Decision::InUse,
            ),
            (
                Seen {
                    mark: Mark::Absent,
                    ..ours
                },
                Decision::NotOurs,
            ),
            (
                Seen {
                    mark: Mark::Absent,
                    is_empty: true,
                    ..ours
                },
                Decision::Remove,
            ),
            (
                Seen {
                    is_named_so: false,
                    ..ours
                },
                Decision::NotOurs,
            ),
            (
                Seen {
                    is_our_dir: false,
                    ..ours
                },
                Decision::NotOurs,
            ),
            (
                Seen {
                    is_our_dir: false,
                    is_empty: true,
                    mark: Mark::Absent,
                    ..ours
                },
                Decision::NotOurs,
            ),
        ] {
            assert_eq!(seen.decide(), decision, "{seen:?}");
        }
    }

    #[test]
    fn what_was_left_behind_goes_and_all_else_stays() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("scratch");
        clear(&root).unwrap();
        let scratch = Scratch::make(&root, JobId::generate()).unwrap();
        let left = scratch.path().to_owned();
        fs::create_dir_all(left.join("data/base")).unwrap();
        let outside = dir.path().join("outside");
        fs::create_dir_all(&outside).unwrap();
        fs::write(outside.join("file"), "x").unwrap();
        std::os::unix::fs::symlink(&outside, left.join("data/link")).unwrap();

        let others = [
            root.join("test-restore"),
            root.join(format!("test-{}", JobId::generate())),
            root.join("data"),
        ];
        for other in &others {
            fs::create_dir_all(other.join("kept")).unwrap();
        }
        let link = root.join(format!("test-{}", JobId::generate()));
        std::os::unix::fs::symlink(&outside, &link).unwrap();
        let begun = root.join(format!("test-{}", JobId::generate()));
        fs::create_dir(&begun).unwrap();

        clear(&root).unwrap();
        assert!(left.exists(), "someone works there");
        drop(scratch);
        clear(&root).unwrap();
        assert!(!left.exists() && !begun.exists());
        assert!(outside.join("file").exists() && link.symlink_metadata().is_ok());
        assert!(others.iter().all(|other| other.join("kept").exists()));
    }

    #[test]
    fn a_job_has_one_directory_and_removes_it() {
        let dir = tempfile::tempdir().unwrap();
        let job = JobId::generate();
        let scratch = Scratch::make(dir.path(), job).unwrap();
        assert!(Scratch::make(dir.path(), job).is_err());
        let path = scratch.path().to_owned();
        fs::write(path.join("file"), "x").unwrap();
        scratch.remove().unwrap();
        assert!(!path.exists() && dir.path().exists());
    }
}
