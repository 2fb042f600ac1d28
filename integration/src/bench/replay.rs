//! Recovery of a PostgreSQL cluster through many segments of WAL: `wal fetch` beside pgBackRest's `archive-get`. The server's
//! own work is the same for all, and part of the time.

use super::{
    measure::{self, Resident},
    pgbackrest::PgBackRest,
    place::Place,
    report::{Report, Row},
    run::Plan,
};
use crate::{
    harness::{Cluster, Options, Output, Server, archiving, as_server},
    wait,
};
use anyhow::bail;
use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

/// Segments that are replayed, at the full scale.
const SEGMENTS: usize = 200;
/// Rows that fill some segments, so many at a time.
const ROWS: u64 = 200_000;
/// As orders are.
const ROW: &str = "i, now() - i * interval '1 second', (random() * 1e6)::numeric(12, 2), md5(i::text) || md5(random()::text), \
    'customer ' || (random() * 1e5)::int || ' asked for delivery by ' || (ARRAY['post','courier','rail'])[1 + (random() * 2)::int]";
/// The tools, ours first. The last one only copies: the server's own work and little else.
const TOOLS: [&str; 4] = ["holdfast", "pgbackrest", "pgbackrest async", "cp"];
/// The point that every recovery goes to.
const POINT: &str = "bench_end";

/// Runs it, and prints a table.
///
/// # Errors
/// A tool is missing or fails, or a recovery does not reach the point.
pub fn run(plan: &Plan) -> anyhow::Result<()> {
    let segments = ((SEGMENTS as f64 * plan.scale) as usize).max(8);
    let mut plan = plan.clone();
    let wanted = plan.tools.take();
    let is_wanted = |tool: &&str| {
        wanted
            .as_ref()
            .is_none_or(|wanted| wanted.iter().any(|name| name == tool))
    };
    let tools: Vec<&str> = TOOLS.into_iter().filter(is_wanted).collect();
    if tools.is_empty() {
        bail!("no tool of {TOOLS:?} is wanted");
    }
    plan.tools = Some(tools.iter().map(ToString::to_string).collect());
    let place = Place::take(&plan, segments as u64 * (24 << 20), segments as u64 * (16 << 20))?;
    let base = place.dir.join("pg");
    Server::make_dir(&base);
    let mut bench = Bench::prepare(&plan, place, base)?;
    bench.fill(segments)?;
    let began = Instant::now();
    for round in 0..plan.rounds {
        if round > 0 && began.elapsed() * (round as u32 + 1) / round as u32 > plan.time {
            println!("time is over");
            break;
        }
        for at in 0..tools.len() {
            let tool = tools[(round + at) % tools.len()];
            bench.replay(tool)?;
        }
        bench.report.rounds_done = round + 1;
        bench.report.save(&plan.json)?;
    }
    println!("\n{}\nJSON: {}", bench.report.table(), plan.json.display());
    bench.server.stop();
    Ok(())
}

struct Bench {
    report: Report,
    cluster: Cluster,
    server: Server,
    /// One segment for each call.
    plain: PgBackRest,
    /// Segments are fetched ahead.
    ahead: PgBackRest,
    base: PathBuf,
    // After what lies in it.
    _place: Place,
}

impl Bench {
    /// A server that archives to both, and a copy of it as it was at the beginning.
    fn prepare(plan: &Plan, place: Place, base: PathBuf) -> anyhow::Result<Self> {
        let mut server = Server::init(&base, "main");
        let mut cluster = Cluster::start_with(Options {
            base: Some(place.dir.clone()),
            log: Some("warn".into()),
            ..Options::default()
        });
        let push = archiving::attach(&mut cluster, &server, &base);
        let mut bench = Self {
            report: Report::new(plan),
            cluster,
            plain: PgBackRest::configure(&base, &server, "pgbackrest", "")?,
            ahead: PgBackRest::configure(&base, &server, "pgbackrest-async", "archive-async=y\n")?,
            base,
            server: Server::at(server.data(), server.data()),
            _place: place,
        };
        let theirs = bench.plain.line("archive-push %p");
        let settings = format!(
            "archive_mode = on\narchive_command = '{push} && {theirs} && cp %p {}/%f'\nwal_level = replica\nautovacuum = off\nmax_wal_size = '4GB'\n\
             shared_buffers = '512MB'\n",
            bench.copies().display()
        );
        Server::make_dir(&bench.copies());
        File::options()
            .append(true)
            .open(server.data().join("postgresql.conf"))?
            .write_all(settings.as_bytes())?;
        server.start();
        bench.plain.create(&server)?;
        server.execute(
            "CREATE TABLE orders (id bigint, at timestamptz, amount numeric, token text, note text)",
        );
        let mut copy = server.client("pg_basebackup");
        copy.args(["--checkpoint=fast", "--wal-method=none", "--pgdata"])
            .arg(bench.base.join("copy"));
        let _ = Output::of(copy).ok();
        bench.server = server;
        Ok(bench)
    }

    /// WAL of as many segments, all of it archived.
    fn fill(&self, segments: usize) -> anyhow::Result<()> {
        let written = || {
            self.server
                .number("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint")
        };
        let end = written() + i64::try_from(segments)? * (16 << 20);
        while written() < end {
            self.server.execute(&format!(
                "TRUNCATE orders; INSERT INTO orders SELECT {ROW} FROM generate_series(1, {ROWS}) i"
            ));
        }
        self.server
            .execute(&format!("SELECT pg_create_restore_point('{POINT}')"));
        let last = self
            .server
            .query("SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
        self.server.execute("SELECT pg_switch_wal()");
        wait::until("all WAL to be archived", || {
            let done = format!("pg_wal/archive_status/{last}.done");
            self.server.data().join(done).exists().then_some(())
        });
        println!("{segments} segments are archived");
        Ok(())
    }

    fn replay(&mut self, tool: &'static str) -> anyhow::Result<()> {
        let data = self.base.join("replayed");
        let _ = fs::remove_dir_all(&data);
        let mut copy = as_server(&self.server, Path::new("/bin/cp"));
        copy.args(["-a"]).arg(self.base.join("copy")).arg(&data);
        let _ = Output::of(copy).ok();
        let fetch = match tool {
            "holdfast" => format!(
                "{} wal fetch --source main --socket {} %f %p",
                self.base.join("holdfast-agent").display(),
                self.base.join("agent.sock").display()
            ),
            "cp" => format!("cp {}/%f %p", self.copies().display()),
            _ => {
                let peer = if tool == "pgbackrest" {
                    &self.plain
                } else {
                    &self.ahead
                };
                peer.line(&format!("--pg1-path={} archive-get %f %p", data.display()))
            }
        };
        let settings = format!(
            "\nrestore_command = '{fetch}'\nrecovery_target_name = '{POINT}'\nrecovery_target_action = shutdown\narchive_mode = off\n"
        );
        File::options()
            .append(true)
            .open(data.join("postgresql.conf"))?
            .write_all(settings.as_bytes())?;
        let mut signal = as_server(&self.server, Path::new("/bin/touch"));
        signal.arg(data.join("recovery.signal"));
        let _ = Output::of(signal).ok();
        measure::read_all(&self.cluster.store_dir())?;
        measure::read_all(&self.plain.repository())?;
        measure::read_all(&self.copies())?;
        rustix::fs::sync();
        let log = self.base.join("replayed.log");
        let mut command = as_server(&self.server, Path::new("/usr/lib/postgresql/15/bin/postgres"));
        command
            .arg("-D")
            .arg(&data)
            .args(["-c", "listen_addresses=", "-c"])
            // One that the server in production does not use: it cannot be without any.
            .arg(format!("unix_socket_directories={}", data.display()));
        let mut shell = Command::new("bash");
        // Its end is that of a server that was told to stop there.
        shell.args(["-c", "\"$@\" > \"$0\" 2>&1; true"]).arg(&log);
        shell.arg(command.get_program()).args(command.get_args());
        shell.current_dir(self.server.data());
        let cost = measure::run(tool, shell, &self.residents(tool))?;
        let log = fs::read_to_string(&log)?;
        if !log.contains(&format!("recovery stopping at restore point \"{POINT}\"")) {
            bail!("{tool}: the recovery did not reach its point:\n{log}");
        }
        println!("{tool:<18} {:7.2} s  {:7.2} CPU s", cost.wall_s, cost.cpu_s);
        let row = Row {
            data: "replay",
            step: "recovery",
            tool,
        };
        self.report.add(row, cost, None, 0);
        fs::remove_dir_all(&data)?;
        Ok(())
    }

    /// Segments as they are, for who only copies.
    fn copies(&self) -> PathBuf {
        self.base.join("copies")
    }

    fn residents(&self, tool: &str) -> Vec<Resident> {
        if tool != "holdfast" {
            return Vec::new();
        }
        let resident = |name: &str, pid| Resident {
            name: name.to_owned(),
            pid,
        };
        vec![
            resident("controller", self.cluster.controller().pid()),
            resident("agent", self.cluster.agent_process(archiving::AGENT).pid()),
        ]
    }
}
