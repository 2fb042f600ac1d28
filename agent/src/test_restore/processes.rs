//! Programs of PostgreSQL that run from a directory, and how they are stopped.
//!
//! A number in a `postmaster.pid` may be anybody's by now. So what counts is what the kernel says of a process: which program it
//! is, and that its working directory, which a server's is its data directory, lies in ours. It is asked again through a handle
//! that cannot become another process, and only then is it signalled.

use crate::error::{AgentError, Result};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

/// What a test restore runs: the server, what starts and checks it, and those two before they have become it.
const PROGRAMS: [&str; 5] = ["postgres", "pg_ctl", "pg_amcheck", "unshare", "setpriv"];
/// What the kernel adds to the path of what was removed.
const REMOVED: &[u8] = b" (deleted)";
/// How long a server may take to end by itself, and to be gone once it is killed.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(50);

/// A process as the kernel shows it.
#[derive(Debug)]
struct Seen {
    program: PathBuf,
    works_in: PathBuf,
}

impl Seen {
    fn of(pid: Pid) -> Option<Self> {
        let about = PathBuf::from(format!("/proc/{}", pid.as_raw_nonzero()));
        Some(Self {
            program: fs::read_link(about.join("exe")).ok()?,
            works_in: fs::read_link(about.join("cwd")).ok()?,
        })
    }

    fn is_from(&self, dir: &Path) -> bool {
        let name = self
            .program
            .file_name()
            .map(OsStrExt::as_bytes)
            .unwrap_or_default();
        let name = name.strip_suffix(REMOVED).unwrap_or(name);
        PROGRAMS.iter().any(|program| program.as_bytes() == name) && self.works_in.starts_with(dir)
    }
}

/// Stops everything that runs from a directory: at once, as after a crash, and by force what does not obey. On a thread that may
/// wait.
///
/// # Errors
/// When something still runs.
pub fn stop(dir: &Path) -> Result<()> {
    let dir = match dir.canonicalize() {
        Ok(dir) => dir,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(AgentError::io("resolve", dir)(error)),
    };
    // A server takes this for an immediate stop.
    for signal in [Signal::QUIT, Signal::KILL] {
        let end = Instant::now() + PATIENCE;
        let mut told = BTreeSet::new();
        loop {
            let running = running(&dir)?;
            if running.is_empty() {
                return Ok(());
            }
            if Instant::now() >= end {
                break;
            }
            for pid in running {
                if told.insert(pid.as_raw_nonzero()) {
                    tell(pid, &dir, signal);
                }
            }
            thread::park_timeout(PAUSE);
        }
    }
    Err(AgentError::Io {
        action: "stop the server that runs in",
        path: dir,
        source: io::ErrorKind::TimedOut.into(),
    })
}

/// Who runs from there.
fn running(dir: &Path) -> Result<Vec<Pid>> {
    let proc = Path::new("/proc");
    let entries = fs::read_dir(proc).map_err(AgentError::io("list", proc))?;
    let pids = entries.filter_map(|entry| {
        let name = entry.ok()?.file_name();
        Pid::from_raw(name.to_str()?.parse().ok()?)
    });
    Ok(pids
        .filter(|pid| Seen::of(*pid).is_some_and(|seen| seen.is_from(dir)))
        .collect())
}

fn tell(pid: Pid, dir: &Path, signal: Signal) {
    // One that ended meanwhile needs no signal.
    let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else {
        return;
    };
    if Seen::of(pid).is_some_and(|seen| seen.is_from(dir)) {
        tracing::info!(
            pid = pid.as_raw_nonzero(),
            ?signal,
            "stopping a server of a test restore"
        );
        let _ = pidfd_send_signal(handle, signal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    fn seen(program: &str, works_in: &str) -> Seen {
        Seen {
            program: program.into(),
            works_in: works_in.into(),
        }
    }

    #[test]
    fn only_programs_of_postgresql_in_that_directory_are_ours() {
        let dir = Path::new("/scratch/test-1");
        for (program, works_in, is_ours) in [
            (
                "/usr/lib/postgresql/15/bin/postgres",
                "/scratch/test-1/data",
                true,
            ),
            (
                "/usr/lib/postgresql/15/bin/postgres (deleted)",
                "/scratch/test-1/data",
                true,
            ),
            (
                "/usr/lib/postgresql/15/bin/pg_ctl",
                "/scratch/test-1/data (deleted)",
                true,
            ),
            (
                "/usr/lib/postgresql/15/bin/postgres",
                "/scratch/test-10/data",
                false,
            ),
            ("/usr/lib/postgresql/15/bin/postgres", "/srv/pg/main", false),
            ("/bin/bash", "/scratch/test-1/data", false),
        ] {
            assert_eq!(
                seen(program, works_in).is_from(dir),
                is_ours,
                "{program} {works_in}"
            );
        }
    }

    #[test]
    fn a_foreign_process_in_the_directory_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let mut child = Command::new("sleep")
            .arg("100")
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        stop(dir.path()).unwrap();
        assert!(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
        stop(&dir.path().join("absent")).unwrap();
    }

    #[test]
    fn what_runs_there_is_stopped() {
        let dir = tempfile::tempdir().unwrap();
        // Any program under that name will do.
        let program = dir.path().join("postgres");
        fs::copy("/bin/sleep", &program).unwrap();
        let mut child = Command::new(&program)
            .arg("100")
            .current_dir(dir.path())
            .spawn()
            .unwrap();
        let waiter = thread::spawn(move || child.wait().unwrap());
        stop(dir.path()).unwrap();
        assert!(!waiter.join().unwrap().success());
    }
}
