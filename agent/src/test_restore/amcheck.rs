//! `pg_amcheck` over all databases of a scratch server: run, and what it prints understood.
//!
//! It prints a line per damaged place, naming the relation, and indented below it what is wrong. Its exit code is 0 when all was
//! looked at and nothing found, 2 when something was found, and something else when it could not do its work. Source: its
//! documentation, and what version 15 prints of damaged relations.

use super::{findings::Findings, settings};
use crate::error::{AgentError, Result};
use holdfast_restore::postgres::{Network, RunAs};
use std::{
    io::{BufRead as _, BufReader, Read},
    path::Path,
    process::Stdio,
    thread,
    time::Duration,
};

/// The name of the check.
pub const NAME: &str = "amcheck";
/// Between two looks whether it has ended.
const PAUSE: Duration = Duration::from_millis(100);
/// Longest line that is looked at, in bytes: a name of three parts and a message.
const LINE_MAX: u64 = 16 * 1024;
/// Most of its complaints that are told.
const SAID_MAX: usize = 300;
/// What helps against damage in the cluster itself.
const FIX: &str = "in the cluster: REINDEX an index; a table is restored from a snapshot that has it whole";

/// How to reach the server, and as whom.
#[derive(Debug, Clone)]
pub struct Reach<'a> {
    /// Directory of its socket.
    pub socket: &'a Path,
    /// Its port.
    pub port: u16,
    /// A superuser.
    pub role: &'a str,
}

/// Runs it. On a thread that may wait.
///
/// # Errors
/// When it was cancelled. What keeps it from being run is a check that was not run.
pub fn run(
    program: &Path,
    run_as: RunAs,
    reach: &Reach<'_>,
    works_in: &Path,
    is_cancelled: impl Fn() -> bool,
    findings: &mut Findings,
) -> Result<()> {
    if !program.is_file() {
        findings.not_run(NAME, format!("there is no {} on this machine", program.display()));
        return Ok(());
    }
    let mut command = run_as.command(program, Network::Shared);
    command
        .args(["--all", "--install-missing", "--heapallindexed", "--no-password"])
        .arg("--host")
        .arg(reach.socket)
        .args(["--port", &reach.port.to_string(), "--username", reach.role])
        .env_clear()
        .envs([
            ("PATH", "/usr/bin:/bin"),
            ("LC_ALL", "C"),
            ("PGOPTIONS", settings::SESSION),
        ])
        .current_dir(works_in)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            findings.not_run(NAME, format!("{} cannot be run: {error}", program.display()));
            return Ok(());
        }
    };
    let printed = child
        .stdout
        .take()
        .map(|out| thread::spawn(move || Damage::read(out)));
    let said = child
        .stderr
        .take()
        .map(|out| thread::spawn(move || complaints(out)));
    let ended = loop {
        if let Some(ended) = child.try_wait().map_err(AgentError::io("wait for", program))? {
            break ended;
        }
        if is_cancelled() {
            let _ = child.kill();
            let _ = child.wait();
            return Err(AgentError::Interrupted("the job was cancelled".into()));
        }
        thread::park_timeout(PAUSE);
    };
    let damage = printed.and_then(|thread| thread.join().ok()).unwrap_or_default();
    let said = said.and_then(|thread| thread.join().ok()).unwrap_or_default();
    tell(ended.code(), damage, &said, findings);
    Ok(())
}

/// What its end means.
fn tell(code: Option<i32>, damage: Damage, said: &str, findings: &mut Findings) {
    let before = findings.count;
    let unlisted = damage.count.saturating_sub(damage.listed.len() as u64);
    for (relation, message) in damage.listed {
        findings.add(relation, message, FIX);
    }
    findings.add_unlisted(unlisted);
    match code {
        Some(0) => findings.checked(
            NAME,
            before,
            "all databases, heaps against indexes (--heapallindexed)",
        ),
        // Something was found, and whatever it printed of it counts.
        Some(2) => {
            if findings.count == before {
                findings.add("pg_amcheck", "it found damage, and printed none", FIX);
            }
            findings.checked(
                NAME,
                before,
                "all databases, heaps against indexes (--heapallindexed)",
            );
        }
        code => {
            let how = code.map_or_else(
                || "a signal ended it".into(),
                |code| format!("it ended with {code}"),
            );
            let advice = if said.contains("extension \"amcheck\" is not available") {
                "; install the extension on this machine (Debian: it is part of postgresql-MAJOR), it is made in each database \
                 of the scratch server by itself"
            } else {
                ""
            };
            findings.not_run(NAME, format!("{how}: {said}{advice}"));
        }
    }
}

/// Damaged places, the first ones with what is wrong.
#[derive(Debug, Default, PartialEq, Eq)]
struct Damage {
    count: u64,
    listed: Vec<(String, String)>,
}

impl Damage {
    /// More are counted alone.
    const LISTED_MAX: usize = 16;

    fn read(from: impl Read) -> Self {
        let mut this = Self::default();
        let mut from = BufReader::new(from);
        let mut line = Vec::new();
        loop {
            line.clear();
            match from.by_ref().take(LINE_MAX).read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => return this,
                Ok(_) => this.line(&String::from_utf8_lossy(&line)),
            }
        }
    }

    fn line(&mut self, line: &str) {
        let text = line.trim();
        if text.is_empty() {
            return;
        }
        let is_message = line.starts_with([' ', '\t']);
        if !is_message {
            self.count += 1;
            if self.listed.len() < Self::LISTED_MAX {
                let place = text.strip_suffix(':').unwrap_or(text);
                self.listed.push((place.to_owned(), String::new()));
            }
        } else if self.count <= Self::LISTED_MAX as u64
            && let Some((_, message)) = self.listed.last_mut()
        {
            if !message.is_empty() {
                message.push_str("; ");
            }
            message.push_str(text);
        }
    }
}

/// What it says of its own troubles; all is read, so that it never waits.
fn complaints(mut from: impl Read) -> String {
    let mut bytes = Vec::new();
    let _ = from.by_ref().take(LINE_MAX).read_to_end(&mut bytes);
    let _ = std::io::copy(&mut from, &mut std::io::sink());
    let text = String::from_utf8_lossy(&bytes);
    let told = text.lines().filter(|line| !line.starts_with("NOTICE:"));
    told.collect::<Vec<_>>()
        .join(" ")
        .chars()
        .take(SAID_MAX)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What version 15 printed.
    const PRINTED: &str = "btree index \"odd name.s.T t_pkey\":\n    ERROR:  invalid leaf page level 1337 for block 1 in index \"T t_pkey\"\n\
        heap table \"postgres.public.h\", block 0, offset 1:\n    line pointer redirection to item at offset 32767 exceeds maximum offset 93\n";

    #[test]
    fn damaged_places_are_told_with_what_is_wrong() {
        let damage = Damage::read(PRINTED.as_bytes());
        assert_eq!(damage.count, 2);
        assert_eq!(damage.listed[0].0, "btree index \"odd name.s.T t_pkey\"");
        assert!(
            damage.listed[0].1.starts_with("ERROR:  invalid leaf page"),
            "{damage:?}"
        );
        assert_eq!(
            damage.listed[1].0,
            "heap table \"postgres.public.h\", block 0, offset 1"
        );
        assert_eq!(Damage::read(b"".as_slice()), Damage::default());
        let many = Damage::read(PRINTED.repeat(1000).as_bytes());
        assert_eq!((many.count, many.listed.len()), (2000, Damage::LISTED_MAX));
        assert!(many.listed.iter().all(|(_, message)| !message.contains(';')));
    }

    fn ended(code: Option<i32>, printed: &str, said: &str) -> Findings {
        let mut findings = Findings::default();
        tell(code, Damage::read(printed.as_bytes()), said, &mut findings);
        findings
    }

    #[test]
    fn a_check_that_was_not_run_is_never_one_that_found_nothing() {
        let state = |findings: &Findings| findings.checks[0].state.clone();
        assert_eq!(state(&ended(Some(0), "", "")), "ok");
        let found = ended(Some(2), PRINTED, "");
        assert_eq!((state(&found).as_str(), found.count), ("findings", 2));
        assert_eq!(ended(Some(2), "", "").count, 1);
        let lacking = ended(
            Some(1),
            "",
            "pg_amcheck: error: query failed: ERROR:  extension \"amcheck\" is not available",
        );
        assert_eq!((state(&lacking).as_str(), lacking.count), ("not-run", 0));
        assert!(lacking.checks[0].detail.contains("install the extension"));
        // It broke off, and what it had found still counts.
        let broken = ended(None, PRINTED, "");
        assert_eq!((state(&broken).as_str(), broken.count), ("not-run", 2));
    }

    #[test]
    fn without_the_program_nothing_was_checked() {
        let dir = tempfile::tempdir().unwrap();
        let run_as = RunAs::owner_of(dir.path()).unwrap();
        let reach = Reach {
            socket: dir.path(),
            port: 5432,
            role: "postgres",
        };
        let mut findings = Findings::default();
        let program = dir.path().join("pg_amcheck");
        run(&program, run_as, &reach, dir.path(), || false, &mut findings).unwrap();
        assert_eq!(findings.checks[0].state, "not-run");
    }
}
