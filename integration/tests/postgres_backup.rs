//! A PostgreSQL cluster that is backed up while it is written to comes back as one that starts, is consistent, and has
//! everything that was committed before; and never starts half restored.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

use holdfast_integration::{
    harness::{Cluster, Output, Process, Server, transfers},
    seed::{self, Rng},
    wait,
};
use std::{
    ffi::{OsStr, OsString},
    fs::{self, File},
    io::Write as _,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

const AGENT: &str = "db1";
const SOURCE: &str = "db1/main";
/// Rows that do not change, so that a second backup has something to leave alone: some 60 MB.
const FILLER: i64 = 400_000;
/// Files beyond this are rewritten where they are.
const LARGE: u64 = 8 << 20;
/// Directory of a tablespace that comes later.
const EXTRA: &str = "extra";

/// A server that is backed up.
struct World {
    // Before what they lie in, so that processes end before their files go.
    cluster: Cluster,
    server: Server,
    base: tempfile::TempDir,
}

impl World {
    fn start() -> Self {
        let base = Server::base();
        let mut server = Server::init(base.path(), "main");
        let tablespace = base.path().join("tablespace");
        Server::make_dir(&tablespace);
        server.start();
        server.execute(&format!(
            "CREATE TABLESPACE fast LOCATION '{}'",
            tablespace.display()
        ));
        transfers::make(&server, "TABLESPACE fast");
        server.execute(&format!(
            "CREATE TABLE filler AS SELECT i, md5(i::text) || md5((i + 1)::text) AS text
                 FROM generate_series(1, {FILLER}) i"
        ));
        // Otherwise whoever reads the rows first marks them as committed, and so changes every page.
        server.execute("VACUUM FREEZE");
        // Not in force before a restart, but in the restored settings.
        server.execute("ALTER SYSTEM SET archive_mode = 'on'");
        let mut cluster = Cluster::start();
        let extra = base.path().join(EXTRA);
        Server::make_dir(&extra);
        cluster.join_agent(AGENT, &[server.data(), &tablespace, &extra]);
        let config = &cluster.agent(AGENT).config;
        let mut file = File::options().append(true).open(config).unwrap();
        writeln!(
            file,
            "\n[postgres.main]\nconnection = \"{}\"",
            server.connection()
        )
        .unwrap();
        cluster.start_agent(AGENT, None);
        cluster.wait_connected(AGENT);
        cluster.apply(&format!(
            "kind: Source\nname: {SOURCE}\npostgres: {{fast_checkpoint: true}}\n"
        ));
        Self {
            cluster,
            server,
            base,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.base.path().join(name)
    }

    /// Money moves until the process is stopped.
    fn workload(&self) -> Process {
        transfers::begin(&self.server, &self.path("transfer.sql"), 1, 200)
    }

    fn transfers(&self) -> i64 {
        transfers::count(&self.server)
    }

    /// Backs up; the snapshot, and how many transfers were committed before it began.
    fn backup(&self) -> (String, i64) {
        let before = self.transfers();
        let known = self.cluster.snapshots(SOURCE);
        let _ = self.cluster.backup(SOURCE).ok();
        let mut new = self.cluster.snapshots(SOURCE);
        new.retain(|id| !known.contains(id));
        assert_eq!(new.len(), 1, "one backup made {} snapshots", new.len());
        (new.remove(0), before)
    }

    fn arguments(&self, id: &str, to: &Path, more: &[&str]) -> Vec<OsString> {
        let what = format!("{SOURCE}@{id}");
        let mapping = format!("fast={}.tablespace", to.display());
        let fixed = ["restore", &what, "--tablespace", &mapping, "--to"];
        let fixed = fixed.into_iter().map(OsString::from);
        let more = more.iter().map(OsString::from);
        fixed.chain([to.as_os_str().to_owned()]).chain(more).collect()
    }

    fn restore(&self, id: &str, to: &Path, more: &[&str]) -> Output {
        self.cluster.ctl(self.arguments(id, to, more))
    }

    /// A server on a restored directory, not started.
    fn server_at(&self, to: &Path) -> Server {
        Server::at(to, &self.path("restored.socket"))
    }

    /// Starts a server on a restored directory, looks at everything that must hold, and ends it.
    fn check(&self, to: &Path, committed: i64) {
        assert!(!to.join(".holdfast-restore").exists());
        let mut server = self.server_at(to);
        server.start();
        let transfers = transfers::count(&server);
        assert!(
            transfers >= committed,
            "{transfers} transfers of {committed} came back"
        );
        assert_eq!(server.number("SELECT count(*) FROM filler"), FILLER);
        let place =
            server.query("SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'fast'");
        assert_eq!(place, format!("{}.tablespace", to.display()));
        transfers::check(&server);
        server.stop();
    }

    fn stored(&self, id: &str) -> u64 {
        let rows = self
            .cluster
            .ctl(["get", "snapshots", id, "-o", "json"])
            .ok()
            .rows();
        rows[0]["stats"]["bytes_stored"].as_u64().unwrap()
    }
}

#[test]
fn a_cluster_that_is_written_to_comes_back_whole() {
    let mut world = World::start();
    let workload = world.workload();
    let backups = [world.backup(), world.backup()];
    assert!(workload.exited().is_none(), "{}", workload.tail(20));
    workload.kill();
    let [first, second] = backups.each_ref().map(|(id, _)| world.stored(id));
    eprintln!("stored: {first} bytes, then {second}");
    assert!(
        second * 2 < first,
        "the second backup stored {second} bytes, the first {first}"
    );
    for (at, (id, committed)) in backups.iter().enumerate() {
        let to = world.path(&format!("restored{at}"));
        let done = world.restore(id, &to, &["-o", "json"]).ok().json();
        assert_eq!(done["postgres"]["complete"], true);
        world.check(&to, *committed);
    }

    // A source of its kind, whose files can be looked at like any other's.
    let cluster = &world.cluster;
    let rows = cluster.ctl(["get", "sources", "-o", "json"]).ok().rows();
    assert_eq!(rows[0]["kind"], "postgres");
    let what = format!("{SOURCE}@{}", backups[0].0);
    let listed = cluster.ctl(["ls", &what, "/postgresql/backup"]).ok().text();
    assert!(listed.contains("backup_label"), "{listed}");
    let label = cluster
        .ctl(["cat", &what, "/postgresql/backup/backup_label"])
        .ok()
        .text();
    assert!(label.contains("START WAL LOCATION"), "{label}");
    let raw = world.path("raw");
    let _ = cluster
        .ctl(
            [
                OsStr::new("restore"),
                OsStr::new(&what),
                OsStr::new("--layout"),
                OsStr::new("files"),
            ]
            .into_iter()
            .chain([OsStr::new("--to"), raw.as_os_str()]),
        )
        .ok();
    assert!(raw.join("postgresql/data/PG_VERSION").exists());
    assert!(!raw.join("postgresql/data/global/pg_control").exists());
    let there = cluster.ctl(["restore", &what, "--to", "/x", "--agent", AGENT]);
    assert_ne!(there.code, 0);
    assert!(there.stderr.contains("PostgreSQL"), "{}", there.stderr);
    let _ = cluster.ctl(["verify", "--read-data"]).ok();

    // With no controller left, the same.
    let (store, kit, to) = (cluster.store_dir(), cluster.kit(), world.path("recovered"));
    let (id, committed) = &backups[1];
    world.cluster.kill_agent(AGENT);
    world.cluster.kill_controller();
    let mapping = format!("fast={}.tablespace", to.display());
    let mut recover = world.cluster.command(&world.cluster.binaries().ctl());
    recover
        .args(["recover", "--from"])
        .arg(store)
        .arg("--kit")
        .arg(kit);
    recover.arg(id).args(["--tablespace", &mapping, "--to"]).arg(&to);
    let _ = Output::of(recover).ok();
    world.check(&to, *committed);
    world.server.stop();
}

#[test]
fn what_changes_under_a_backup_is_right_in_it() {
    let mut world = World::start();
    for table in ["truncated", "dropped", "vacuumed"] {
        world.server.execute(&format!(
            "CREATE TABLE {table} AS SELECT i FROM generate_series(1, 100000) i"
        ));
    }
    world.server.execute("DELETE FROM vacuumed WHERE i % 2 = 0");
    world.server.execute("CREATE TABLE grown AS SELECT 1 AS i");
    let _ = world.backup();

    // A tablespace that the backup before did not know.
    world.server.execute(&format!(
        "CREATE TABLESPACE extra LOCATION '{}'",
        world.path(EXTRA).display()
    ));
    world
        .server
        .execute("CREATE TABLE added TABLESPACE extra AS SELECT i FROM generate_series(1, 1000) i");
    world.server.execute("INSERT INTO filler SELECT i, md5(random()::text) || md5(random()::text) FROM generate_series(1, 400000) i");
    world.server.execute("CHECKPOINT");
    // The agent is held up with some files read and others not.
    let agent = world.cluster.agent_process(AGENT);
    let mark = agent.mark();
    let (id, _) = std::thread::scope(|scope| {
        let backup = scope.spawn(|| world.backup());
        agent.wait_for_phase(mark, "upload");
        agent.suspend();
        for statement in [
            "TRUNCATE truncated",
            "INSERT INTO truncated SELECT i FROM generate_series(1, 7) i",
            "DROP TABLE dropped",
            "INSERT INTO grown SELECT i FROM generate_series(2, 100000) i",
            "VACUUM FULL vacuumed",
            "CREATE TABLE created AS SELECT i FROM generate_series(1, 1000) i",
            "CREATE TABLE created_elsewhere TABLESPACE extra AS SELECT i FROM generate_series(1, 1000) i",
            "DELETE FROM filler WHERE i > 399990",
            "CREATE DATABASE made",
            "CREATE DATABASE copied STRATEGY file_copy",
            "CHECKPOINT",
        ] {
            world.server.execute(statement);
        }
        agent.resume();
        backup.join().unwrap()
    });
    let to = world.path("restored");
    let extra = format!("extra={}.extra", to.display());
    let _ = world.restore(&id, &to, &["--tablespace", &extra]).ok();
    let mut server = world.server_at(&to);
    server.start();
    for (table, rows) in [
        ("truncated", 7),
        ("grown", 100_000),
        ("vacuumed", 50_000),
        ("created", 1000),
        ("added", 1000),
        ("created_elsewhere", 1000),
        ("filler", 2 * (FILLER - 10)),
    ] {
        let found = server.number(&format!("SELECT count(*) FROM {table}"));
        assert_eq!(found, rows, "{table}");
    }
    assert_eq!(server.query("SELECT to_regclass('dropped') IS NULL"), "t");
    let databases = "SELECT count(*) FROM pg_database WHERE datname IN ('made', 'copied')";
    assert_eq!(server.number(databases), 2);
    let place = server.query("SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'extra'");
    assert_eq!(place, format!("{}.extra", to.display()));
    // The new databases too.
    transfers::check(&server);
    server.stop();
    world.server.stop();
}

#[test]
fn half_a_cluster_never_starts_and_is_completed_in_place() {
    let mut world = World::start();
    let mut rng = Rng::new(seed::of_run("postgres_in_place"));
    let workload = world.workload();
    let (id, committed) = world.backup();
    workload.kill();

    // Killed somewhere in the middle.
    let mut round = 0;
    let to = loop {
        round += 1;
        assert!(round <= 20, "no restore could be killed in its middle");
        let to = world.path(&format!("half{round}"));
        let mut command = world.cluster.command(&world.cluster.binaries().ctl());
        command.args(world.arguments(&id, &to, &[]));
        let process = Process::start("restore", command, None);
        wait::until("the restore to begin", || {
            (to.join("base").exists() || process.exited().is_some()).then_some(())
        });
        wait::pause_for(Duration::from_millis(rng.below(100)));
        process.kill();
        if !to.join("global/pg_control").exists() {
            break to;
        }
    };
    // What it misses first depends on how far the restore came; that it runs here once it is whole shows below.
    eprintln!("not started: {}", world.server_at(&to).fails_to_start());
    let refused = world.restore(&id, &to, &[]).expect_code(11);
    assert!(refused.stderr.contains("--in-place"), "{}", refused.stderr);
    let _ = world.restore(&id, &to, &["--in-place"]).ok();
    world.check(&to, committed);

    // Not under a server that runs.
    let mut running = world.server_at(&to);
    running.start();
    let refused = world.restore(&id, &to, &["--in-place"]).expect_code(11);
    assert!(refused.stderr.contains("server runs"), "{}", refused.stderr);
    running.stop();

    // Over a damaged copy, which has gone its own way since.
    scribble(&to.join("base"), &mut rng);
    scribble(&world.path(&format!("half{round}.tablespace")), &mut rng);
    fs::write(to.join("base/1/99999"), "of nobody").unwrap();
    let done = world.restore(&id, &to, &["--in-place", "-o", "json"]).ok().json();
    assert!(to.join("pg_wal.before-restore-1").exists());
    assert!(!to.join("base/1/99999").exists());
    let (bytes, kept) = (
        done["bytes"].as_u64().unwrap(),
        done["bytes_kept"].as_u64().unwrap(),
    );
    eprintln!("in place: {kept} of {bytes} bytes were there");
    assert!(kept * 2 > bytes);
    world.check(&to, committed);

    // Another cluster's directory is not touched.
    let other = Server::init(world.base.path(), "other");
    let before = fs::read(other.data().join("global/pg_control")).unwrap();
    let refused = world.restore(&id, other.data(), &["--in-place"]).expect_code(11);
    assert!(refused.stderr.contains("belongs to"), "{}", refused.stderr);
    assert_eq!(fs::read(other.data().join("global/pg_control")).unwrap(), before);
    world.server.stop();
}

/// Damages files in many ways: bytes, lengths, and files that are gone.
fn scribble(dir: &Path, rng: &mut Rng) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            scribble(&path, rng);
            continue;
        }
        if !rng.chance(0.3) {
            continue;
        }
        let file = File::options().write(true).open(&path).unwrap();
        let len = file.metadata().unwrap().len();
        match rng.index(3) {
            // Most of a large file stays as it was, and need not be fetched again.
            _ if len > LARGE => file.write_all_at(b"scribbled", rng.below(len)).unwrap(),
            0 => file.write_all_at(b"scribbled", rng.below(len.max(1))).unwrap(),
            1 => file.set_len(len / 2).unwrap(),
            _ => fs::remove_file(&path).unwrap(),
        }
    }
}
