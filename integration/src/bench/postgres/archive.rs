//! WAL that has piled up while nothing was archived: until the server is told of the last segment that it is.

use super::{Bench, ROW, Round, Tool, archiving, measure, residents};
use crate::{bench::pgbackrest::PgBackRest, wait};
use anyhow::Context as _;
use std::{fs, io::Write as _, path::PathBuf, process::Command};

/// Ways of archiving beside those that bear their tools' names.
pub(super) const MORE: [&str; 2] = [SPOOL, ASYNC];
/// Durable in a local spool, which goes to the controllers by itself.
const SPOOL: &str = "holdfast spool";
/// Pushed by a process in the background that takes along what is ready.
const ASYNC: &str = "pgbackrest async";
/// Larger than all that piles up.
const SPOOL_SIZE: &str = "4GiB";

impl Bench {
    pub(super) fn archive(&mut self, tool: Tool, round: &mut Round) -> anyhow::Result<()> {
        match tool {
            Tool::Holdfast => {
                let push = round.push.clone();
                self.archive_by(tool, tool.name(), &push, round)?;
                with_spool(round)?;
                self.archive_by(tool, SPOOL, &push, round)?;
            }
            Tool::PgBackRest => {
                let push = self.theirs.line("archive-push %p");
                self.archive_by(tool, tool.name(), &push, round)?;
                let ahead =
                    PgBackRest::configure(&self.base, &self.server, "pgbackrest-async", "archive-async=y\n")?;
                self.archive_by(tool, ASYNC, &ahead.line("archive-push %p"), round)?;
            }
            Tool::BaseBackup | Tool::Zstd => {}
        }
        Ok(())
    }

    fn archive_by(
        &mut self,
        tool: Tool,
        name: &'static str,
        command: &str,
        round: &Round,
    ) -> anyhow::Result<()> {
        self.pile_up()?;
        rustix::fs::sync();
        let before = self.stored(tool, round);
        self.set_archive(command);
        let mut waiting = Command::new("bash");
        waiting.args([
            "-c",
            "while compgen -G \"$0/*.ready\" >/dev/null; do sleep 0.02; done",
        ]);
        waiting.arg(self.status_dir());
        let cost = measure::run(name, waiting, &residents(tool, &round.cluster, true))?;
        if name == SPOOL {
            wait::until("the spool to be drained", || {
                spooled(round).is_ok_and(|count| count == 0).then_some(())
            });
        }
        let stored = self.stored(tool, round) - before;
        self.set_archive("");
        self.note("archive WAL", name, cost, Some(stored));
        Ok(())
    }

    fn status_dir(&self) -> PathBuf {
        self.server.data().join("pg_wal/archive_status")
    }

    fn pile_up(&self) -> anyhow::Result<()> {
        let waiting = || -> anyhow::Result<usize> {
            let names = fs::read_dir(self.status_dir())?;
            let ready = names
                .flatten()
                .filter(|entry| entry.file_name().to_string_lossy().ends_with(".ready"));
            Ok(ready.count())
        };
        // What waited before goes nowhere, so that each tool gets as much.
        self.set_archive("/bin/true");
        wait::until("the archive to be empty", || {
            waiting().is_ok_and(|count| count == 0).then_some(())
        });
        self.set_archive("");
        while waiting()? < self.segments {
            self.server.execute("CREATE TABLE load (LIKE orders)");
            self.server.execute(&format!(
                "INSERT INTO load SELECT {ROW} FROM generate_series(1, 200000) i"
            ));
            self.server.execute("DROP TABLE load");
        }
        Ok(())
    }

    fn set_archive(&self, command: &str) {
        self.server
            .execute(&format!("ALTER SYSTEM SET archive_command = '{command}'"));
        self.server.execute("SELECT pg_reload_conf()");
    }
}

/// The same agent again, which spools from now on.
fn with_spool(round: &mut Round) -> anyhow::Result<()> {
    let config = round.cluster.agent(archiving::AGENT).config.clone();
    round.cluster.kill_agent(archiving::AGENT);
    // The cluster's section is the last one.
    writeln!(
        fs::File::options().append(true).open(config)?,
        "spool = \"{SPOOL_SIZE}\""
    )?;
    round.cluster.start_agent(archiving::AGENT, None);
    round.cluster.wait_connected(archiving::AGENT);
    Ok(())
}

/// Files of WAL that wait for the controllers.
fn spooled(round: &Round) -> anyhow::Result<usize> {
    let dir = round.cluster.agent(archiving::AGENT).state_dir.join("spool/main");
    let names = fs::read_dir(dir).context("look into the spool")?.flatten();
    Ok(names
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("0000"))
        .count())
}
