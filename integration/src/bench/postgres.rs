//! A PostgreSQL cluster, with pgBackRest and pg_basebackup beside: full backup, one after scattered updates, restore, restore
//! in place over small damage, and the archiving of WAL that has piled up.

use super::{
    measure::{self, Cost, Resident},
    place::Place,
    report::{Report, Row},
    run::Plan,
};
use crate::{
    harness::{Cluster, Options, Server, archiving, as_server},
    wait,
};
use anyhow::{Context as _, bail};
use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    os::unix::fs::FileExt as _,
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
/// Places in the largest files that are overwritten before a restore in place.
const DAMAGES: u64 = 50;
/// The tools, ours first.
const TOOLS: [Tool; 3] = [Tool::Holdfast, Tool::PgBackRest, Tool::BaseBackup];
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
}

impl Tool {
    const fn name(self) -> &'static str {
        match self {
            Self::Holdfast => "holdfast",
            Self::PgBackRest => "pgbackrest",
            Self::BaseBackup => "pg_basebackup",
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
    plan.tools = Some(TOOLS.iter().map(|tool| tool.name().to_owned()).collect());
    let wal = segments as u64 * (32 << 20);
    let place = Place::take(&plan, rows * ROW_BYTES + wal, rows * ROW_BYTES + wal)?;
    let began = Instant::now();
    let base = place.dir.join("pg");
    Server::make_dir(&base);
    let server = server(&base, rows)?;
    let mut bench = Bench {
        report: Report::new(&plan),
        base,
        server,
        rows,
        segments,
        began,
        place,
    };
    let bytes = measure::stored_bytes(bench.server.data());
    bench.report.sources.insert("postgres".into(), bytes);
    bench.say(&format!("the cluster has {} MB", bytes / 1_000_000));
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
        self.base.join(format!("{}-repository", tool.name()))
    }

    fn round(&mut self, number: usize) -> anyhow::Result<()> {
        for tool in [Tool::PgBackRest, Tool::BaseBackup] {
            let dir = self.repository(tool);
            let _ = fs::remove_dir_all(&dir);
            Server::make_dir(&dir);
        }
        let mut cluster = Cluster::start_with(Options {
            base: Some(self.place.dir.clone()),
            log: Some("warn".into()),
            ..Options::default()
        });
        let push = archiving::attach(&mut cluster, &self.server, &self.base);
        let round = Round {
            cluster,
            push,
            number,
        };
        let mut tools = TOOLS;
        tools.rotate_left(number % TOOLS.len());
        self.write_config()?;
        measure::run("pgbackrest", self.pgbackrest(&["stanza-create"]), &[])?;
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
                Tool::PgBackRest => self.pgbackrest(&["--type=incr", "backup"]),
                Tool::BaseBackup => continue,
            };
            self.backup("increment", tool, &round, command)?;
        }
        for tool in tools {
            self.restores(tool, &round)?;
        }
        for tool in tools {
            self.archive(tool, &round)?;
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
            Tool::PgBackRest => self.pgbackrest(&["--type=full", "backup"]),
            Tool::BaseBackup => {
                let mut command = self.server.client("pg_basebackup");
                command.args(["--format=tar", "--compress=server-zstd:3", "--checkpoint=fast"]);
                command
                    .args(["--wal-method=fetch", "--pgdata"])
                    .arg(self.repository(tool).join("backup"));
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
        let before = self.stored(tool, round);
        let cost = measure::run(tool.name(), command, &residents(tool, &round.cluster, true))?;
        let stored = self.stored(tool, round) - before;
        self.note(step, tool, cost, Some(stored));
        Ok(())
    }

    fn stored(&self, tool: Tool, round: &Round) -> u64 {
        match tool {
            Tool::Holdfast => measure::stored_bytes(&round.cluster.store_dir()),
            other => measure::stored_bytes(&self.repository(other)),
        }
    }

    /// Restores to memory, then again over small damage.
    fn restores(&mut self, tool: Tool, round: &Round) -> anyhow::Result<()> {
        let to = self.place.restores.join("to");
        for step in ["restore", "restore in place"] {
            let in_place = step == "restore in place";
            if in_place {
                damage(&to)?;
            } else {
                Server::make_dir(&to);
                self.place.warm(self.report.sources["postgres"])?;
            }
            rustix::fs::sync();
            let mut command;
            match tool {
                Tool::Holdfast => {
                    command = round.cluster.command(&round.cluster.binaries().ctl());
                    let what = format!("{}@latest", archiving::SOURCE);
                    command.args(["restore", &what, "--to"]).arg(&to);
                    if in_place {
                        command.arg("--in-place");
                    }
                }
                Tool::PgBackRest => {
                    let path = format!("--pg1-path={}", to.display());
                    let delta = if in_place { "--delta" } else { "--no-delta" };
                    command = self.pgbackrest(&[&path, delta, "restore"]);
                }
                Tool::BaseBackup if in_place => continue,
                Tool::BaseBackup => {
                    command = as_server(&self.server, Path::new("/bin/tar"));
                    command.args(["-I", "zstd -T2", "-xf"]);
                    command
                        .arg(self.repository(tool).join("backup/base.tar.zst"))
                        .arg("-C")
                        .arg(&to);
                }
            }
            let cost = measure::run(tool.name(), command, &residents(tool, &round.cluster, false))?;
            self.note(step, tool, cost, None);
        }
        if tool == Tool::Holdfast && round.number == 0 {
            let mut restored = Server::at(&to, &self.base.join("restored.socket"));
            restored.start();
            let found = restored.number("SELECT count(*) FROM orders");
            restored.stop();
            if found != i64::try_from(self.rows)? {
                bail!("{found} rows of {} came back", self.rows);
            }
        }
        fs::remove_dir_all(&to)?;
        Ok(())
    }

    /// Lets WAL pile up, then lets the server archive it.
    fn archive(&mut self, tool: Tool, round: &Round) -> anyhow::Result<()> {
        let command = match tool {
            Tool::Holdfast => round.push.clone(),
            Tool::PgBackRest => format!(
                "pgbackrest --config={} --stanza=main archive-push %p",
                self.config().display()
            ),
            Tool::BaseBackup => return Ok(()),
        };
        self.pile_up()?;
        rustix::fs::sync();
        let before = self.stored(tool, round);
        self.set_archive(&command);
        let mut waiting = Command::new("bash");
        waiting.args([
            "-c",
            "while compgen -G \"$0/*.ready\" >/dev/null; do sleep 0.02; done",
        ]);
        waiting.arg(self.status_dir());
        let cost = measure::run(tool.name(), waiting, &residents(tool, &round.cluster, true))?;
        let stored = self.stored(tool, round) - before;
        self.set_archive("");
        self.note("archive WAL", tool, cost, Some(stored));
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

    fn note(&mut self, step: &'static str, tool: Tool, cost: Cost, stored: Option<u64>) {
        self.say(&format!(
            "{step:<17} {:<14} {:7.2} s  {:7.2} CPU s  {}",
            tool.name(),
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
            tool: tool.name(),
        };
        self.report.add(row, cost, stored, 0);
    }

    fn config(&self) -> PathBuf {
        self.base.join("pgbackrest.conf")
    }

    /// As its users set it: encrypted, zstd at its level 3, small files bundled, both cores.
    fn write_config(&self) -> anyhow::Result<()> {
        let dir = self.base.join("pgbackrest-work");
        Server::make_dir(&dir);
        let connection = self.server.connection();
        let value = |key: &str| {
            let found = connection
                .split(' ')
                .find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
            found.unwrap_or_default().to_owned()
        };
        let text = format!(
            "[global]\nrepo1-path={repository}\nrepo1-cipher-type=aes-256-cbc\nrepo1-cipher-pass=bench\nrepo1-bundle=y\n\
             repo1-retention-full=9\ncompress-type=zst\ncompress-level=3\nprocess-max=2\nlog-level-console=warn\n\
             log-level-file=off\nlock-path={dir}/lock\nspool-path={dir}/spool\nstart-fast=y\narchive-check=n\n\n\
             [main]\npg1-path={data}\npg1-port={port}\npg1-socket-path={host}\npg1-user={user}\n",
            repository = self.repository(Tool::PgBackRest).display(),
            dir = dir.display(),
            data = self.server.data().display(),
            port = value("port"),
            host = value("host"),
            user = value("user"),
        );
        Ok(fs::write(self.config(), text)?)
    }

    fn pgbackrest(&self, args: &[&str]) -> Command {
        let mut command = as_server(&self.server, Path::new("/usr/bin/pgbackrest"));
        command.arg(format!("--config={}", self.config().display()));
        command.arg("--stanza=main").args(args);
        command
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

/// Overwrites pages all over the largest files of a restored cluster.
fn damage(dir: &Path) -> anyhow::Result<()> {
    let mut files = Vec::new();
    let mut pending = vec![dir.join("base")];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let about = entry.metadata()?;
            if about.is_dir() {
                pending.push(entry.path());
            } else if about.len() > 64 << 20 {
                files.push((entry.path(), about.len()));
            }
        }
    }
    let mut noise = [0; 8192];
    File::open("/dev/urandom")?.read_exact(&mut noise)?;
    for (path, len) in &files {
        let file = File::options().write(true).open(path)?;
        let each = DAMAGES.div_ceil(files.len() as u64);
        for at in 0..each {
            file.write_all_at(&noise, (len / each * at) / 8192 * 8192)?;
        }
    }
    Ok(())
}
