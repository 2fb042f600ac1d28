//! What a backup costs the server's clients: transactions of pgbench in a second while nothing else runs, and while a backup
//! does, ours with and without limits beside pgBackRest's.

use super::{measure, pgbackrest::PgBackRest, place::Place, run::Plan};
use crate::{
    harness::{Cluster, Options, Output, Process, Server, archiving},
    wait,
};
use std::{
    fs::File,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

/// pgbench's scale: some 15 MB each.
const SCALE: u64 = 100;
/// Clients of pgbench.
const CLIENTS: &str = "8";
/// How long is looked where no backup runs.
const WINDOW: Duration = Duration::from_secs(15);
/// What an operator sets who wants clients to notice nothing.
const LIMITS: &str = "limits: {read_rate: 60MiB, cpu_weight: 1, io_class: idle}\n";

/// Who runs a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Beside {
    Nobody,
    Ours,
    OursLimited,
    PgBackRest,
}

impl Beside {
    const ALL: [Self; 4] = [Self::Nobody, Self::Ours, Self::OursLimited, Self::PgBackRest];

    const fn name(self) -> &'static str {
        match self {
            Self::Nobody => "alone",
            Self::Ours => "holdfast",
            Self::OursLimited => "holdfast, limited",
            Self::PgBackRest => "pgbackrest",
        }
    }
}

/// Runs it, and prints a table.
///
/// # Errors
/// A tool is missing or fails.
pub fn run(plan: &Plan) -> anyhow::Result<()> {
    let scale = ((SCALE as f64 * plan.scale) as u64).max(5);
    let bytes = scale * (16 << 20);
    let place = Place::take(plan, bytes * 2, bytes * 2)?;
    let base = place.dir.join("pg");
    Server::make_dir(&base);
    let server = server(&base, scale)?;
    let bench = Bench { server, base, place };
    println!(
        "pgbench of {} MB, {CLIENTS} clients",
        measure::stored_bytes(bench.server.data()) / 1_000_000
    );
    println!(
        "| round | beside | transactions/s | of those alone | backup s |\n| --- | --- | --- | --- | --- |"
    );
    for round in 1..=plan.rounds {
        let mut alone = 0.0;
        for beside in Beside::ALL {
            let (rate, took) = bench.measure(beside)?;
            if beside == Beside::Nobody {
                alone = rate;
            }
            println!(
                "| {round} | {} | {rate:.0} | {:.2} | {took:.1} |",
                beside.name(),
                rate / alone
            );
        }
    }
    let mut server = bench.server;
    server.stop();
    Ok(())
}

fn server(base: &Path, scale: u64) -> anyhow::Result<Server> {
    let mut server = Server::init(base, "main");
    File::options()
        .append(true)
        .open(server.data().join("postgresql.conf"))?
        .write_all(
            b"shared_buffers = '256MB'\nmax_wal_size = '8GB'\ncheckpoint_timeout = '1h'\nautovacuum = off\n\
              archive_mode = on\narchive_command = '/bin/true'\n",
        )?;
    server.start();
    let mut fill = server.client("pgbench");
    fill.args(["--initialize", "--quiet", "--scale"])
        .arg(scale.to_string());
    let _ = Output::of(fill).ok();
    server.execute("CHECKPOINT");
    Ok(server)
}

struct Bench {
    server: Server,
    base: PathBuf,
    // After the server, which lies in it.
    place: Place,
}

impl Bench {
    /// Transactions in a second, and the seconds that were looked at.
    fn measure(&self, beside: Beside) -> anyhow::Result<(f64, f64)> {
        let backup = match beside {
            Beside::Nobody => None,
            Beside::Ours => Some(self.ours("")),
            Beside::OursLimited => Some(self.ours(LIMITS)),
            Beside::PgBackRest => Some(self.theirs()?),
        };
        rustix::fs::sync();
        let mut command = self.server.client("pgbench");
        command.args([
            "--client",
            CLIENTS,
            "--jobs",
            "2",
            "--time",
            "3600",
            "--no-vacuum",
        ]);
        let load = Process::start("pgbench", command, None);
        let done = || {
            // Each transaction of pgbench takes one number; the statistics come late by up to seconds.
            self.server
                .number("SELECT txid_snapshot_xmax(txid_current_snapshot())")
        };
        let before = done();
        wait::until("transactions", || (done() > before + 1000).then_some(()));
        let (before, began) = (done(), Instant::now());
        match backup {
            None => {
                let _ = wait::poll(WINDOW, || None::<()>);
            }
            Some((command, _cluster)) => {
                measure::run(beside.name(), command, &[])?;
            }
        }
        let took = began.elapsed().as_secs_f64();
        let rate = (done() - before) as f64 / took;
        load.kill();
        Ok((rate, took))
    }

    /// A backup into a new cluster.
    fn ours(&self, limits: &str) -> (Command, Option<Cluster>) {
        let mut cluster = Cluster::start_with(Options {
            base: Some(self.place.dir.clone()),
            log: Some("warn".into()),
            ..Options::default()
        });
        let _push = archiving::attach(&mut cluster, &self.server, &self.base);
        cluster.apply(&format!(
            "kind: Source\nname: {}\npostgres: {{fast_checkpoint: true}}\n{limits}",
            archiving::SOURCE
        ));
        let mut command = cluster.command(&cluster.binaries().ctl());
        command.args(["backup", "run", archiving::SOURCE, "--wait"]);
        (command, Some(cluster))
    }

    /// One into a new repository.
    fn theirs(&self) -> anyhow::Result<(Command, Option<Cluster>)> {
        let peer = PgBackRest::configure(&self.base, &self.server, "pgbackrest", "")?;
        peer.create(&self.server)?;
        Ok((peer.command(&self.server, &["backup"]), None))
    }
}
