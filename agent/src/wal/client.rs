//! What servers run: pushes a file to the agent on this host, or fetches one from it.
//!
//! Exit codes are what servers make of them. Of `archive_command` everything but 0 means *try again*; above 125 it would end the
//! archiver, so that is never given. Of `restore_command` 1 means *there is no such file*, which ends a recovery, and above 125
//! *stop*: so whatever is not the catalog's own 'no' is 126.

use super::protocol::{Answer, Request, receive, send};
use crate::error::{AgentError, Result};
use holdfast_core::ErrorKind;
use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{io::BufReader, net::UnixStream, time::Instant};

/// Pause between tries to reach an agent that is not there.
const PAUSE: Duration = Duration::from_millis(500);
/// How much longer than the agent itself a client waits for its answer.
const GRACE: Duration = Duration::from_secs(30);
/// Bytes that are taken over at a time.
const BUFFER: usize = 256 << 10;
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
    let (_, answer) = ask(&push.socket, &request).await?;
    match answer {
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
    let (input, answer) = ask(&fetch.socket, &request).await.map_err(lost)?;
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
    let written = write(input, len, &fetch.path);
    if written.is_err() {
        let _ = fs::remove_file(&fetch.path);
    }
    written.map(|()| true).map_err(lost)
}

/// Writes what comes, on this thread: there is nothing else to do.
fn write(input: BufReader<UnixStream>, len: u64, path: &Path) -> Result<()> {
    let failed = |error| AgentError::io("write", path)(error);
    let mut file = File::create(path).map_err(failed)?;
    let begun = input.buffer().to_vec();
    let begun = &begun[..begun.len().min(usize::try_from(len).unwrap_or(usize::MAX))];
    file.write_all(begun).map_err(failed)?;
    let mut input = input.into_inner().into_std().map_err(failed)?;
    input.set_nonblocking(false).map_err(failed)?;
    input.set_read_timeout(Some(GRACE)).map_err(failed)?;
    let mut left = len - begun.len() as u64;
    let mut buffer = vec![0; BUFFER];
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(BUFFER).min(BUFFER);
        match input.read(&mut buffer[..most]).map_err(failed)? {
            0 => return Err(failure("it ended before the file did")),
            read => {
                file.write_all(&buffer[..read]).map_err(failed)?;
                left -= read as u64;
            }
        }
    }
    Ok(())
}

async fn ask(socket: &Path, request: &Request) -> Result<(BufReader<UnixStream>, Answer)> {
    let connection = UnixStream::connect(socket).await.map_err(|error| {
        failure(&format!(
            "{}: {error}; does it run on this host, with this `socket` in its agent.toml?",
            socket.display()
        ))
    })?;
    let mut connection = BufReader::new(connection);
    send(&mut connection, request).await?;
    let answer = receive(&mut connection).await?;
    Ok((connection, answer))
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
