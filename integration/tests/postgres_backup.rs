//! A PostgreSQL cluster that is backed up while it is written to comes back as one that starts, is consistent, and has
//! everything that was committed before; and never starts half restored.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

use holdfast_integration::{
    harness::{Cluster, Output, Process, Server},
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
/// Accounts, each with as much money as there are accounts of at first.
const ACCOUNTS: i64 = 1000;
const BALANCE: i64 = 1000;
/// Rows that do not change, so that a second backup has something to leave alone: some 60 MB.
const FILLER: i64 = 400_000;
/// Files beyond this are rewritten where they are.
const LARGE: u64 = 8 << 20;
/// What moves money; whenever it is looked at, all of it is there.
const TRANSFER: &str = "\\set a random(1, 1000)
\\set b random(1, 1000)
\\set n random(1, 100)
BEGIN;
UPDATE accounts SET balance = balance - :n WHERE id = :a;
UPDATE accounts SET balance = balance + :n WHERE id = :b;
INSERT INTO transfers (a, b, n) VALUES (:a, :b, :n);
COMMIT;
";

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
        server.execute(&format!(
            "CREATE TABLE accounts (id int PRIMARY KEY, balance bigint NOT NULL);
             INSERT INTO accounts SELECT i, {BALANCE} FROM generate_series(1, {ACCOUNTS}) i;
             CREATE TABLE transfers (id bigserial PRIMARY KEY, a int, b int, n int) TABLESPACE fast;
             CREATE TABLE filler AS SELECT i, md5(i::text) || md5((i + 1)::text) AS text
                 FROM generate_series(1, {FILLER}) i;
             CREATE UNLOGGED TABLE scratch AS SELECT i FROM generate_series(1, 10000) i;"
        ));
        // Otherwise whoever reads the rows first marks them as committed, and so changes every page.
        server.execute("VACUUM FREEZE");
        // Not in force before a restart, but in the restored settings.
        server.execute("ALTER SYSTEM SET archive_mode = 'on'");
        let mut cluster = Cluster::start();
        cluster.join_agent(AGENT, &[server.data(), &tablespace]);
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
        let script = self.path("transfer.sql");
        fs::write(&script, TRANSFER).unwrap();
        let mut command = self.server.client("pgbench");
        command
            .args(["--no-vacuum", "--client=1", "--rate=200", "--time=3600", "--file"])
            .arg(&script);
        let process = Process::start("pgbench", command, None);
        let before = self.transfers();
        wait::until("money to move", || (self.transfers() > before).then_some(()));
        process
    }

    fn transfers(&self) -> i64 {
        self.server.number("SELECT count(*) FROM transfers")
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
        let sum = server.number("SELECT sum(balance) FROM accounts");
        assert_eq!(sum, ACCOUNTS * BALANCE, "{}", to.display());
        let transfers = server.number("SELECT count(*) FROM transfers");
        assert!(
            transfers >= committed,
            "{transfers} transfers of {committed} came back"
        );
        assert_eq!(server.number("SELECT count(*) FROM filler"), FILLER);
        assert_eq!(server.number("SELECT count(*) FROM scratch"), 0);
        let place =
            server.query("SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'fast'");
        assert_eq!(place, format!("{}.tablespace", to.display()));
        // It must not archive where its origin does.
        assert_eq!(server.query("SHOW archive_mode"), "off");
        let mut amcheck = server.client("pg_amcheck");
        amcheck.args(["--all", "--install-missing", "--heapallindexed"]);
        let _ = Output::of(amcheck).ok();
        // It takes writes.
        server.execute("UPDATE accounts SET balance = balance + 0; CHECKPOINT");
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
