//! A PostgreSQL cluster, with pgBackRest and pg_basebackup beside, and `zstd` over the same files: full backup, one after
//! scattered updates, restore to memory and to disk, restore in place over small damage, and the archiving of WAL that has
//! piled up.

mod archive;
mod restore;

use super::{
    measure::{self, Cost, Resident},
    pgbackrest::PgBackRest,
    place::Place,
    report::{Report, Row},
    run::Plan,
};
use crate::harness::{Cluster, Options, Server, archiving};
use anyhow::Context as _;
use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

/// Rows of the full data: some 2.4 GB with their indexes.
const ROWS: u64 = 9_000_000;
/// Bytes that a row takes with its share of the indexes, for the room that is asked for.
const ROW_BYTES: u64 = 270;
/// Rows that are updated between two backups, all over the table.
const UPDATED: u64 = 5_000;
/// Segments of WAL that wait to be archived, at the full scale.
const SEGMENTS: usize = 64;
/// The tools, ours first.
const TOOLS: [Tool; 4] = [Tool::Holdfast, Tool::PgBackRest, Tool::BaseBackup, Tool::Zstd];
/// As orders are: numbers, times, names that recur, and text that hardly compresses.
const ROW: &str = "i, 1 + i % 99991, now() - i * interval '1 second', (random() * 1e6)::numeric(12, 2), \
    (ARRAY['new','paid','packed','shipped','returned'])[1 + (random() * 4)::int], md5(i::text) || md5(random()::text), \
    'customer ' || (random() * 1e5)::int || ' asked for delivery by ' || (ARRAY['post','courier','rail'])[1 + (random() * 2)::int]";
/// What the server needs for that.
const SETTINGS: &str = "shared_buffers = '512MB'\nmax_wal_size = '32GB'\ncheckpoint_timeout = '1h'\nautovacuum = off\n\
    archive_mode = on\narchive_command = ''\nwal_level = replica\n";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tool {
    Holdfast,
    PgBackRest,
    BaseBackup,
    /// What the machine can do: the same files in one stream through its compressor.
    Zstd,
}

impl Tool {
    const fn name(self) -> &'static str {
        match self {
            Self::Holdfast => "holdfast",
            Self::PgBackRest => "pgbackrest",
            Self::BaseBackup => "pg_basebackup",
            Self::Zstd => "zstd -2 -T2",
        }
    }
}

/// Runs it, and prints a table.
///
/// # Errors
/// A tool is missing or fails, or a restored cluster lacks rows.
pub fn run(plan: &Plan) -> anyhow::Result<()> {
    let rows = ((ROWS as f64 * plan.scale) as u64).max(10_000);
    let segments = ((SEGMENTS as f64 * plan.scale) as usize).max(4);
    let mut plan = plan.clone();
    let names = TOOLS.iter().map(|tool| tool.name());
    plan.tools = Some(names.chain(archive::MORE).map(str::to_owned).collect());
    let wal = segments as u64 * (32 << 20);
    let place = Place::take(&plan, rows * ROW_BYTES + wal, rows * ROW_BYTES + wal)?;
    let began = Instant::now();
    let base = place.dir.join("pg");
    Server::make_dir(&base);
    let server = server(&base, rows)?;
    let mut bench = Bench {
        theirs: PgBackRest::configure(&base, &server, "pgbackrest", "")?,
        report: Report::new(&plan),
        base,
        server,
        rows,
        segments,
        began,
        place,
    };
    let wal = measure::stored_bytes(&bench.server.data().join("pg_wal"));
    let bytes = measure::stored_bytes(bench.server.data()) - wal;
    bench.report.sources.insert("postgres".into(), bytes);
    bench.say(&format!(
        "a full backup reads the cluster's {} MB; beside them there are {} MB of WAL",
        bytes / 1_000_000,
        wal / 1_000_000
    ));
    for round in 0..plan.rounds {
        if round > 0 && bench.began.elapsed() * (round as u32 + 1) / round as u32 > plan.time {
            bench.say("time is over");
            break;
        }
        bench
            .round(round)
            .with_context(|| format!("round {}", round + 1))?;
        bench.report.rounds_done = round + 1;
        bench.report.save(&plan.json)?;
    }
    println!("\n{}\nJSON: {}", bench.report.table(), plan.json.display());
    bench.server.stop();
    Ok(())
}

/// A started server with the data.
fn server(base: &Path, rows: u64) -> anyhow::Result<Server> {
    let mut server = Server::init(base, "main");
    let path = server.data().join("postgresql.conf");
    File::options()
        .append(true)
        .open(path)?
        .write_all(SETTINGS.as_bytes())?;
    server.start();
    server.execute(
        "CREATE TABLE orders (id bigint, customer int, at timestamptz, amount numeric, state text, token text, note text)",
    );
    server.execute(&format!(
        "INSERT INTO orders SELECT {ROW} FROM generate_series(1, {rows}) i"
    ));
    for statement in [
        "ALTER TABLE orders ADD PRIMARY KEY (id)",
        "CREATE INDEX ON orders (customer, at)",
        "CREATE INDEX ON orders (token)",
        "VACUUM FREEZE ANALYZE orders",
        "CHECKPOINT",
    ] {
        server.execute(statement);
    }
    Ok(server)
}

struct Bench {
    theirs: PgBackRest,
    report: Report,
    base: PathBuf,
    server: Server,
    rows: u64,
    segments: usize,
    began: Instant,
    // After the server, which lies in it.
    place: Place,
}

/// The repositories of one round.
struct Round {
    cluster: Cluster,
    /// What the server calls to archive by us.
    push: String,
    number: usize,
}

impl Bench {
    fn say(&self, text: &str) {
        let seconds = self.began.elapsed().as_secs();
        println!("[{:3}:{:02}] {text}", seconds / 60, seconds % 60);
    }

    fn repository(&self, tool: Tool) -> PathBuf {
        match tool {
            Tool::Holdfast | Tool::PgBackRest => self.theirs.repository(),
            Tool::BaseBackup => self.base.join("base-backup"),
            Tool::Zstd => self.base.join("zstd"),
        }
    }

    fn round(&mut self, number: usize) -> anyhow::Result<()> {
        for tool in [Tool::BaseBackup, Tool::Zstd] {
            let dir = self.repository(tool);
            let _ = fs::remove_dir_all(&dir);
            Server::make_dir(&dir);
        }
        self.theirs.create(&self.server)?;
        let mut cluster = Cluster::start_with(Options {
            base: Some(self.place.dir.clone()),
            log: Some("warn".into()),
            ..Options::default()
        });
        let push = archiving::attach(&mut cluster, &self.server, &self.base);
        let mut round = Round {
            cluster,
            push,
            number,
        };
        let mut tools = TOOLS;
        tools.rotate_left(number % TOOLS.len());
        for tool in tools {
            let command = self.full(tool, &round);
            self.backup("full", tool, &round, command)?;
        }
        let rows = self.rows;
        self.server.execute(&format!(
            "UPDATE orders SET amount = amount + 1 WHERE id IN (SELECT 1 + (random() * {rows})::bigint FROM generate_series(1, {UPDATED}))"
        ));
        self.server.execute("CHECKPOINT");
        for tool in tools {
            let command = match tool {
                Tool::Holdfast => self.full(tool, &round),
                Tool::PgBackRest => self.theirs.command(&self.server, &["--type=incr", "backup"]),
                Tool::BaseBackup | Tool::Zstd => continue,
            };
            self.backup("increment", tool, &round, command)?;
        }
        for tool in tools {
            self.restores(tool, &round)?;
        }
        for tool in tools {
            self.archive(tool, &mut round)?;
        }
        Ok(())
    }

    fn full(&self, tool: Tool, round: &Round) -> Command {
        match tool {
            Tool::Holdfast => {
                let mut command = round.cluster.command(&round.cluster.binaries().ctl());
                command.args(["backup", "run", archiving::SOURCE, "--wait"]);
                command
            }
            Tool::PgBackRest => self.theirs.command(&self.server, &["--type=full", "backup"]),
            Tool::BaseBackup => {
                let mut command = self.server.client("pg_basebackup");
                command.args(["--format=tar", "--compress=server-zstd:3", "--checkpoint=fast"]);
                command
                    .args(["--wal-method=fetch", "--pgdata"])
                    .arg(self.repository(tool).join("backup"));
                command
            }
            Tool::Zstd => {
                let mut command = Command::new("bash");
                command.args([
                    "-c",
                    "set -o pipefail; tar -C \"$0\" --exclude=./pg_wal -cf - . | zstd -2 -T2 -q -o \"$1\" && sync \"$1\"",
                ]);
                command
                    .arg(self.server.data())
                    .arg(self.repository(tool).join("cluster.tar.zst"));
                command
            }
        }
    }

    fn backup(
        &mut self,
        step: &'static str,
        tool: Tool,
        round: &Round,
        command: Command,
    ) -> anyhow::Result<()> {
        rustix::fs::sync();
        measure::read_all(self.server.data())?;
        self.place.warm(self.report.sources["postgres"] / 2)?;
        let before = self.stored(tool, round);
        let cost = measure::run(tool.name(), command, &residents(tool, &round.cluster, true))?;
        let stored = self.stored(tool, round) - before;
        self.note(step, tool.name(), cost, Some(stored));
        Ok(())
    }

    fn stored(&self, tool: Tool, round: &Round) -> u64 {
        match tool {
            Tool::Holdfast => measure::stored_bytes(&round.cluster.store_dir()),
            other => measure::stored_bytes(&self.repository(other)),
        }
    }

    fn note(&mut self, step: &'static str, tool: &'static str, cost: Cost, stored: Option<u64>) {
        self.say(&format!(
            "{step:<17} {tool:<16} {:7.2} s  {:7.2} CPU s  {}",
            cost.wall_s,
            cost.cpu_s,
            stored.map_or_else(String::new, |bytes| format!(
                "{:8.1} MB stored",
                bytes as f64 / 1e6
            ))
        ));
        let row = Row {
            data: "postgres",
            step,
            tool,
        };
        self.report.add(row, cost, stored, 0);
    }
}

fn residents(tool: Tool, cluster: &Cluster, with_agent: bool) -> Vec<Resident> {
    if tool != Tool::Holdfast {
        return Vec::new();
    }
    let mut residents = vec![Resident {
        name: "controller".into(),
        pid: cluster.controller().pid(),
    }];
    if with_agent {
        residents.push(Resident {
            name: "agent".into(),
            pid: cluster.agent_process(archiving::AGENT).pid(),
        });
    }
    residents
}
