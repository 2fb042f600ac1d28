//! Starts a server on a restored cluster, and follows it until it has recovered.
//!
//! What it reports is read from the files that servers keep for that: `postmaster.pid`, whose last line is their state,
//! `pg_control`, and the history of the timeline that a promotion begins, which says where and why it began. So no
//! connection is needed, and no name or password. Sources: the documentation of `pg_ctl`, and files of real servers.

use super::{
    PostgresError,
    run_as::{Network, RunAs},
};
use crate::{RestoreError, Result};
use holdfast_core::limits::PG_HISTORY_MAX;
use holdfast_postgres::{Branch, CONTROL_FILE_LEN, ControlFile, DbState, Lsn, TimelineHistory, TimelineId};
use std::{
    env,
    fs::{self, File},
    io::{Read as _, Seek as _, SeekFrom},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    thread,
    time::Duration,
};

/// Where the server's output goes, in the data directory.
const LOG: &str = "holdfast-start.log";
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(200);
/// Most of the log's end that an error quotes.
const TAIL: u64 = 2000;
/// Longest that is waited for: replay may take days, and a server that ended is noticed.
const SECONDS: &str = "8640000";
/// Most of `postmaster.pid`.
const PID_MAX: u64 = 4096;
/// Times that the control file is read while it does not match its checksum: the server may be writing it.
const TRIES: usize = 20;

/// A server to be started.
#[derive(Debug, Clone)]
pub struct Start {
    /// Its data directory.
    pub dir: PathBuf,
    /// Its major version.
    pub major: u32,
    /// Options for it, as `pg_ctl -o` takes them.
    pub options: Option<String>,
    /// What it does in the end.
    pub until: Until,
    /// What it reaches.
    pub network: Network,
}

/// What a server does once it has recovered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// It takes writes.
    Ready,
    /// It answers queries, and waits: for more WAL, or to be told to go on.
    Reading,
    /// It stops.
    Stopped,
}

/// How far a server came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Started {
    /// What it does now.
    pub state: ServerState,
    /// The timeline that it is on.
    pub timeline: TimelineId,
    /// Where recovery ended; of a server that still reads, where it surely came to.
    pub lsn: Lsn,
    /// Why there, as the server says it.
    pub reason: Option<String>,
    /// What it printed.
    pub log: PathBuf,
}

/// What a server does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerState {
    /// It takes writes.
    Ready,
    /// It answers queries, and replays or waits at its target.
    Reading,
    /// It stopped at its target.
    Stopped,
}

/// Starts it; calls `looked` with where replay surely came to, again and again. The server outlives this process. On a thread
/// that may wait.
///
/// # Errors
/// When its programs are not on this machine, or it ended: then with what it printed last; `Interrupted` when `looked` gives
/// false, and the server goes on.
pub fn start(start: &Start, mut looked: impl FnMut(Lsn) -> bool) -> Result<Started> {
    let dir = &start.dir;
    let owner = RunAs::owner_of(dir)?;
    let bin = programs(start.major, owner).ok_or(PostgresError::NoPrograms { major: start.major })?;
    let log = dir.join(LOG);
    let before = newest_history(&dir.join("pg_wal"))?;
    let mut waiter = launch(start, &bin, owner, &log)?;
    let mut failed = false;
    loop {
        let control = control_file(dir)?;
        let reached = control.recovery.min_lsn.max(control.checkpoint.redo);
        let is_waiting = waiter.try_wait().map_err(io("wait for", &bin))?;
        // `pg_ctl` ends when the server answers queries, or has ended.
        failed |= is_waiting.is_some_and(|status| !status.success());
        match (is_waiting.is_some(), state_of(dir)?) {
            // They call themselves ready as soon as they answer queries.
            (true, Some(State::Ready)) if control.state == DbState::InProduction => {
                return ready(dir, &control, before, log);
            }
            (true, Some(State::Ready | State::Standby)) if start.until == Until::Reading => {
                return Ok(Started {
                    state: ServerState::Reading,
                    timeline: control
                        .recovery
                        .min_timeline
                        .unwrap_or(control.checkpoint.timeline),
                    lsn: reached,
                    reason: None,
                    log,
                });
            }
            (true, None) if control.state == DbState::ShutDownInRecovery && start.until == Until::Stopped => {
                return Ok(Started {
                    state: ServerState::Stopped,
                    timeline: control.checkpoint.timeline,
                    lsn: reached,
                    reason: None,
                    log,
                });
            }
            (true, None) => return Err(ended(dir, &log)),
            (true, Some(_)) if failed => return Err(ended(dir, &log)),
            _ => {}
        }
        if !looked(reached) {
            // The waiter is no server: it only looks.
            let _ = waiter.kill();
            let _ = waiter.wait();
            return Err(RestoreError::Interrupted);
        }
        thread::park_timeout(PAUSE);
    }
}

/// The directory with the programs of that version: where packages put them, or on the path.
#[must_use]
pub fn programs(major: u32, owner: RunAs) -> Option<PathBuf> {
    let packaged = [
        format!("/usr/lib/postgresql/{major}/bin"),
        format!("/usr/pgsql-{major}/bin"),
    ];
    let path = env::var_os("PATH").unwrap_or_default();
    let places = packaged
        .into_iter()
        .map(PathBuf::from)
        .chain(env::split_paths(&path));
    places
        .filter(|dir| dir.is_absolute())
        .find(|dir| is_of(dir, major, owner))
}

fn is_of(dir: &Path, major: u32, owner: RunAs) -> bool {
    if !dir.join("pg_ctl").is_file() {
        return false;
    }
    let asked = owner
        .command(&dir.join("postgres"), Network::Shared)
        .arg("--version")
        .output();
    asked.is_ok_and(|said| major_in(&String::from_utf8_lossy(&said.stdout)) == Some(major))
}

/// The major version in what `postgres --version` prints.
fn major_in(text: &str) -> Option<u32> {
    let number = text.strip_prefix("postgres (PostgreSQL) ")?;
    let digits = number.find(|c: char| !c.is_ascii_digit()).unwrap_or(number.len());
    number[..digits].parse().ok()
}

fn launch(start: &Start, bin: &Path, owner: RunAs, log: &Path) -> Result<Child> {
    let program = bin.join("pg_ctl");
    let mut command = owner.command(&program, start.network);
    command.args(["start", "--wait", "--silent", "--timeout", SECONDS, "--pgdata"]);
    command.arg(&start.dir).arg("--log").arg(log);
    // Whatever files and options say: it is this directory that is started, and nobody else's.
    let dir = start.dir.display().to_string().replace('\'', r"'\''");
    let options = start.options.as_deref().unwrap_or_default();
    command
        .arg("--options")
        .arg(format!("{options} -c data_directory='{dir}'"));
    // What is typed here does not reach it: interrupted, it would stop the server.
    command.process_group(0);
    // The owner may not be allowed where this process runs.
    command.current_dir(&start.dir);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().map_err(io("run", &program))
}

/// The state in `postmaster.pid`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Starting,
    Standby,
    Ready,
    Stopping,
}

/// None where no server runs; one that was killed leaves its file.
fn state_of(dir: &Path) -> Result<Option<State>> {
    let path = dir.join("postmaster.pid");
    let mut text = String::new();
    match File::open(&path) {
        Ok(file) => file
            .take(PID_MAX)
            .read_to_string(&mut text)
            .map_err(io("read", &path))?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io("open", &path)(error)),
    };
    let pid = text.lines().next().and_then(|line| line.trim().parse().ok());
    let is_gone = pid
        .and_then(rustix::process::Pid::from_raw)
        .is_some_and(|pid| rustix::process::test_kill_process(pid) == Err(rustix::io::Errno::SRCH));
    Ok((!is_gone).then(|| state_in(&text)))
}

/// Its eighth line; it comes last, so that a file without it is of a server that starts.
fn state_in(text: &str) -> State {
    match text.lines().nth(7).map(str::trim) {
        Some("ready") => State::Ready,
        Some("standby") => State::Standby,
        Some("stopping") => State::Stopping,
        _ => State::Starting,
    }
}

fn control_file(dir: &Path) -> Result<ControlFile> {
    let path = dir.join("global/pg_control");
    let mut tries = TRIES;
    loop {
        let mut bytes = Vec::with_capacity(CONTROL_FILE_LEN + 1);
        File::open(&path)
            .and_then(|file| file.take(CONTROL_FILE_LEN as u64 + 1).read_to_end(&mut bytes))
            .map_err(io("read", &path))?;
        match ControlFile::decode(&bytes) {
            Ok(control) => return Ok(control),
            Err(_) if tries > 1 => tries -= 1,
            Err(source) => {
                return Err(PostgresError::File {
                    what: path.display().to_string(),
                    source,
                }
                .into());
            }
        }
        thread::park_timeout(PAUSE / 10);
    }
}

/// A server that takes writes: if it was promoted, its timeline's history says where.
fn ready(dir: &Path, control: &ControlFile, before: Option<TimelineId>, log: PathBuf) -> Result<Started> {
    let wal = dir.join("pg_wal");
    // A promoted server makes its first checkpoint a little later; what lay there before is of others.
    let new = newest_history(&wal)?.filter(|timeline| Some(*timeline) > before);
    let (timeline, left) = match new {
        Some(timeline) => (timeline, history(&wal, timeline)?),
        None => (control.checkpoint.timeline, None),
    };
    Ok(Started {
        state: ServerState::Ready,
        timeline,
        lsn: left.as_ref().map_or(control.checkpoint.redo, |left| left.left_at),
        reason: left.map(|left| left.reason).filter(|reason| !reason.is_empty()),
        log,
    })
}

/// The newest timeline of which there is a history.
fn newest_history(wal: &Path) -> Result<Option<TimelineId>> {
    let mut newest = None;
    for entry in fs::read_dir(wal).map_err(io("list", wal))? {
        let entry = entry.map_err(io("list", wal))?;
        let name = entry.file_name();
        let timeline = name
            .to_str()
            .and_then(|name| name.strip_suffix(".history"))
            .filter(|digits| digits.len() == 8)
            .and_then(|digits| u32::from_str_radix(digits, 16).ok())
            .and_then(TimelineId::new);
        newest = newest.max(timeline);
    }
    Ok(newest)
}

/// Where a timeline left the one before it.
fn history(wal: &Path, timeline: TimelineId) -> Result<Option<Branch>> {
    let path = wal.join(format!("{:08X}.history", timeline.get()));
    let mut bytes = Vec::new();
    File::open(&path)
        .and_then(|file| file.take(PG_HISTORY_MAX as u64 + 1).read_to_end(&mut bytes))
        .map_err(io("read", &path))?;
    let history = TimelineHistory::parse(timeline, &bytes).map_err(|source| PostgresError::File {
        what: path.display().to_string(),
        source,
    })?;
    Ok(history.branches().last().cloned())
}

fn ended(dir: &Path, log: &Path) -> RestoreError {
    let mut tail = Vec::new();
    let read = File::open(log).and_then(|mut file| {
        let len = file.metadata()?.len();
        file.seek(SeekFrom::Start(len.saturating_sub(TAIL)))?;
        file.take(TAIL).read_to_end(&mut tail)
    });
    let said = match read {
        Ok(_) => String::from_utf8_lossy(&tail).trim().to_owned(),
        Err(error) => format!("(its log cannot be read: {error})"),
    };
    PostgresError::NotRecovered {
        dir: dir.display().to_string(),
        said,
    }
    .into()
}

fn io(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> RestoreError {
    let what = path.display().to_string();
    move |source| RestoreError::Io { doing, what, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_told_apart() {
        for (text, major) in [
            ("postgres (PostgreSQL) 15.13 (Debian 15.13-0+deb12u1)\n", Some(15)),
            ("postgres (PostgreSQL) 17\n", Some(17)),
            ("postgres (PostgreSQL) 18beta1\n", Some(18)),
            ("postgres (EnterpriseDB) 15.1\n", None),
            ("", None),
        ] {
            assert_eq!(major_in(text), major, "{text:?}");
        }
    }

    #[test]
    fn a_server_without_its_last_line_starts() {
        let lines = "42\n/srv/pg\n1764288000\n5432\n/tmp\n\n  5432001         3\n";
        assert_eq!(state_in(lines), State::Starting);
        for (word, state) in [
            ("starting", State::Starting),
            ("standby ", State::Standby),
            ("ready   ", State::Ready),
            ("stopping", State::Stopping),
        ] {
            assert_eq!(state_in(&format!("{lines}{word}\n")), state);
        }
    }

    #[test]
    fn the_newest_history_says_where_its_timeline_began() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        let timeline = |number| TimelineId::new(number).unwrap();
        assert_eq!(newest_history(dir.path()).unwrap(), None);
        write("00000002.history", "1\t0/3000000\tno recovery target specified\n");
        write(
            "0000000A.history",
            "1\t0/3000000\tx\n2\t0/5000148\tbefore 2026-11-27\n",
        );
        write("x.history", "");
        assert_eq!(newest_history(dir.path()).unwrap(), Some(timeline(10)));
        let left = history(dir.path(), timeline(10)).unwrap().unwrap();
        assert_eq!(left.reason, "before 2026-11-27");
        assert_eq!(left.left_at.to_string(), "0/5000148");
    }
}
