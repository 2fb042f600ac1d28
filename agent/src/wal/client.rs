//! What servers run: pushes a file to the agent on this host, or fetches one from it.
//!
//! Exit codes are what servers make of them. Of `archive_command` everything but 0 means *try again*; above 125 it would end the
//! archiver, so that is never given. Of `restore_command` 1 means *there is no such file*, which ends a recovery, and above 125
//! *stop*: so whatever is not the catalog's own 'no' is 126.

use super::protocol::{Answer, HANDLES_MAX, Request, receive, send};
use crate::error::{AgentError, Result};
use holdfast_core::ErrorKind;
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::{
        fd::{AsFd as _, AsRawFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{net::UnixStream, time::Instant};

/// Pause between tries to reach an agent that is not there.
const PAUSE: Duration = Duration::from_millis(500);
/// How much longer than the agent itself a client waits for its answer.
const GRACE: Duration = Duration::from_secs(30);
/// Longest wait for the answer to a push.
const PUSH_PATIENCE: Duration = Duration::from_secs(180);

/// A file to push.
#[derive(Debug)]
pub struct Push {
    /// The agent's socket.
    pub socket: PathBuf,
    /// Name of the source.
    pub source: String,
    /// The file, as the server names it: `%p`.
    pub path: PathBuf,
}

/// A file to fetch.
#[derive(Debug)]
pub struct Fetch {
    /// The agent's socket.
    pub socket: PathBuf,
    /// Name of the source.
    pub source: String,
    /// The file's name: `%f`.
    pub name: String,
    /// Where it goes: `%p`.
    pub path: PathBuf,
    /// How long to try.
    pub patience: Duration,
    /// A standby asks again by itself: what cannot be had now is as if it were absent.
    pub standby: bool,
    /// What may wait in a spool that nobody can ask counts as absent.
    pub accept_loss: bool,
}

/// Pushes; gives the exit code.
pub async fn push(push: Push) -> u8 {
    match tokio::time::timeout(PUSH_PATIENCE, pushed(&push)).await {
        Ok(Ok(())) => 0,
        Ok(Err(error)) => told(&error, 1),
        Err(_) => told(&failure("it did not answer in time; the server tries again"), 1),
    }
}

async fn pushed(push: &Push) -> Result<()> {
    let data = std::env::current_dir().map_err(AgentError::io("find", Path::new(".")))?;
    let request = Request::Push {
        source: push.source.clone(),
        data,
        path: push.path.clone(),
    };
    match ask(&push.socket, &request, &[]).await?.0 {
        Answer::Kept => Ok(()),
        Answer::Failed { why } => Err(failure(&why)),
        Answer::File { .. } | Answer::Absent => Err(failure("it answered something else; update it")),
    }
}

/// Fetches; gives the exit code.
pub async fn fetch(fetch: Fetch) -> u8 {
    let deadline = Instant::now() + fetch.patience;
    let give_up = if fetch.standby { 1 } else { 126 };
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let error = match tokio::time::timeout(left + GRACE, fetched(&fetch, left)).await {
            Ok(Ok(true)) => return 0,
            Ok(Ok(false)) => return 1,
            Ok(Err(Failed { error, again: true })) if Instant::now() + PAUSE < deadline => {
                // The agent is not there: started again, or not yet.
                tokio::time::sleep(PAUSE).await;
                tracing::debug!(%error, "trying again");
                continue;
            }
            Ok(Err(Failed { error, .. })) => error,
            Err(_) => failure("it did not answer in time"),
        };
        return told(&error, give_up);
    }
}

struct Failed {
    error: AgentError,
    again: bool,
}

/// Whether there was such a file; then it is in its place.
async fn fetched(fetch: &Fetch, patience: Duration) -> std::result::Result<bool, Failed> {
    let request = Request::Fetch {
        source: fetch.source.clone(),
        name: fetch.name.clone(),
        patience_ms: u64::try_from(patience.as_millis()).unwrap_or(u64::MAX),
        accept_loss: fetch.accept_loss,
    };
    let lost = |error| Failed { error, again: true };
    let blanks = blanks(&fetch.path);
    let (answer, mut handles) = ask(&fetch.socket, &request, &blanks).await.map_err(lost)?;
    let len = match answer {
        Answer::File { len } => len,
        Answer::Absent => return Ok(false),
        // It has tried for all that time itself.
        Answer::Failed { why } => {
            return Err(Failed {
                error: failure(&why),
                again: false,
            });
        }
        Answer::Kept => {
            return Err(Failed {
                error: failure("it answered something else; update it"),
                again: false,
            });
        }
    };
    let placed = match handles.pop() {
        Some(handle) => place(File::from(handle), len, &fetch.path),
        None => Err(failure("it gave no file; restart it")),
    };
    placed.map(|()| true).map_err(lost)
}

/// Empty files without names, in the directory of that path: for the file and those that will be asked for next. None where the
/// file system has no such files.
fn blanks(path: &Path) -> Vec<OwnedFd> {
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    // As any new file: the server's mask says who else may read it.
    let mode = Mode::from_raw_mode(0o666);
    let make = |_| rustix::fs::open(dir, flags, mode).ok();
    (0..HANDLES_MAX).map_while(make).collect()
}

/// Gives a file its name, or copies it where that cannot be.
fn place(mut file: File, len: u64, path: &Path) -> Result<()> {
    let about = file.metadata().map_err(AgentError::io("look at", path))?;
    if about.len() != len {
        return Err(failure("it gave a file of another length than it said"));
    }
    // Only one of ours: a server reuses its segments.
    let is_blank = about.nlink() == 0 && about.uid() == rustix::process::geteuid().as_raw();
    if is_blank && named(&file, path).is_ok() {
        return Ok(());
    }
    let written = File::create(path).and_then(|mut out| io::copy(&mut file, &mut out));
    match written {
        Ok(written) if written == len => Ok(()),
        written => {
            let _ = fs::remove_file(path);
            written.map_err(AgentError::io("write", path))?;
            Err(failure("its file ended too early"))
        }
    }
}

/// Fails where there is a file already.
fn named(file: &File, path: &Path) -> rustix::io::Result<()> {
    let open = format!("/proc/self/fd/{}", file.as_raw_fd());
    rustix::fs::linkat(CWD, open, CWD, path, AtFlags::SYMLINK_FOLLOW)
}

async fn ask(socket: &Path, request: &Request, blanks: &[OwnedFd]) -> Result<(Answer, Vec<OwnedFd>)> {
    let connection = UnixStream::connect(socket).await.map_err(|error| {
        failure(&format!(
            "{}: {error}; does it run on this host, with this `socket` in its agent.toml?",
            socket.display()
        ))
    })?;
    let blanks: Vec<_> = blanks.iter().map(|blank| blank.as_fd()).collect();
    send(&connection, request, &blanks).await?;
    receive(&connection).await
}

fn failure(why: &str) -> AgentError {
    AgentError::Server {
        action: "ask the Holdfast agent",
        message: why.to_owned(),
        kind: ErrorKind::Unavailable,
    }
}

/// Says on standard error, which servers write to their logs, what is wrong.
fn told(error: &AgentError, code: u8) -> u8 {
    // Where nobody can be told, the code still counts.
    let _ = writeln!(std::io::stderr(), "holdfast-agent: {error}");
    code
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Seek as _;

    fn filled(mut file: File) -> File {
        file.write_all(b"segment").unwrap();
        file.rewind().unwrap();
        file
    }

    #[test]
    fn a_file_of_ours_only_gets_its_name_and_any_other_is_copied() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("RECOVERYXLOG");
        let mut all = blanks(&path);
        assert_eq!(all.len(), HANDLES_MAX);
        let blank = filled(File::from(all.pop().unwrap()));
        let inode = blank.metadata().unwrap().ino();
        place(blank, 7, &path).unwrap();
        let about = fs::metadata(&path).unwrap();
        assert_eq!((about.ino(), about.nlink()), (inode, 1));

        // In the place of a longer one.
        fs::write(&path, b"what was there before").unwrap();
        place(filled(File::from(all.pop().unwrap())), 7, &path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"segment");

        // A file that has a name keeps it, and another file system's goes over whole.
        let named = filled(
            File::options()
                .read(true)
                .write(true)
                .create_new(true)
                .open(dir.path().join("named"))
                .unwrap(),
        );
        for (number, other) in [named, filled(tempfile::tempfile_in("/dev/shm").unwrap())]
            .into_iter()
            .enumerate()
        {
            let path = dir.path().join(number.to_string());
            let inode = other.metadata().unwrap().ino();
            place(other, 7, &path).unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"segment");
            assert_ne!(fs::metadata(&path).unwrap().ino(), inode);
        }
        assert!(dir.path().join("named").exists());
    }

    #[test]
    fn a_file_of_another_length_than_was_said_is_not_placed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("RECOVERYXLOG");
        let blank = filled(File::from(blanks(&path).pop().unwrap()));
        assert!(place(blank, 8, &path).is_err());
        assert!(!path.exists());
    }
}
