//! A test restore tells the truth of a snapshot, and leaves nothing behind, whatever happens to it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

use holdfast_integration::{
    harness::{
        Archiving, Output, Server, Trap, archiving::AGENT, archiving::SOURCE, as_server, entries, transfers,
    },
    wait,
};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

struct World {
    archiving: Archiving,
    scratch: PathBuf,
}

impl World {
    /// A server that archives, with a tablespace and databases, and an agent that may try restores.
    fn start() -> Self {
        let archiving = Archiving::start("");
        let (scratch, space) = (archiving.path("scratch"), archiving.path("space"));
        Server::make_dir(&space);
        let mut this = Self { archiving, scratch };
        this.configure(|config, this| {
            config.insert("scratch".into(), this.scratch.to_str().unwrap().into());
            let base = this.archiving.base.path().to_str().unwrap();
            config.insert("allow".into(), vec![base].into());
        });
        let server = &this.archiving.server;
        server.execute(&format!("CREATE TABLESPACE space LOCATION '{}'", space.display()));
        server.execute("CREATE DATABASE shop");
        // Settings that come with the cluster, and would end every session or check.
        server.execute(
            "ALTER DATABASE shop SET default_transaction_read_only = on;
             ALTER DATABASE shop SET statement_timeout = 1",
        );
        server.execute("ALTER DATABASE shop SET session_preload_libraries = 'nowhere'");
        transfers::make(server, "TABLESPACE space");
        server.execute("INSERT INTO transfers (a, b, n) SELECT 1, 1, 0 FROM generate_series(1, 1000)");
        this
    }

    /// Changes the agent's configuration, and starts it anew.
    fn configure(&mut self, change: impl FnOnce(&mut toml::Table, &Self)) {
        let path = self.archiving.cluster.agent(AGENT).config.clone();
        let mut config: toml::Table = fs::read_to_string(&path).unwrap().parse().unwrap();
        change(&mut config, self);
        fs::write(&path, toml::to_string(&config).unwrap()).unwrap();
        self.restart_agent();
    }

    fn restart_agent(&mut self) {
        self.archiving.cluster.kill_agent(AGENT);
        self.archiving.cluster.start_agent(AGENT, None);
        self.archiving.cluster.wait_connected(AGENT);
    }

    fn backup(&self) -> String {
        let known = self.archiving.cluster.snapshots(SOURCE);
        let _ = self.archiving.cluster.backup(SOURCE).ok();
        let mut new = self.archiving.cluster.snapshots(SOURCE);
        new.retain(|id| !known.contains(id));
        new.remove(0)
    }

    fn try_restore(&self, what: &str) -> Output {
        self.archiving
            .cluster
            .ctl(["verify", what, "--test-restore", "--wait", "-o", "json"])
    }

    fn begin(&self) -> String {
        let started = self.archiving.cluster.ctl(["verify", SOURCE, "--test-restore"]);
        started.ok().text().trim().to_owned()
    }

    /// Processes that work in the scratch directory.
    fn processes(&self) -> Vec<PathBuf> {
        let works_in = |process: &PathBuf| fs::read_link(process.join("cwd")).ok();
        let mut all = entries(Path::new("/proc"));
        all.retain(|process| works_in(process).is_some_and(|dir| dir.starts_with(&self.scratch)));
        all
    }

    fn wait_for_nothing_left(&self) {
        wait::until("nothing to be left of the test restore", || {
            (entries(&self.scratch).is_empty() && self.processes().is_empty()).then_some(())
        });
    }

    fn described(&self, kind: &str, name: &str) -> Value {
        let described = ["describe", kind, name, "-o", "json"];
        self.archiving.cluster.ctl(described).ok().rows().remove(0)
    }
}

fn state_of<'a>(test: &'a Value, check: &str) -> &'a Value {
    let checks = test["checks"].as_array().unwrap();
    let found = checks.iter().find(|found| found["name"] == check);
    &found.unwrap_or_else(|| panic!("no {check} in {test:#}"))["state"]
}

#[test]
fn a_snapshot_is_tried_with_its_wal_and_what_is_wrong_is_found() {
    let mut world = World::start();
    let good = world.backup();
    world
        .archiving
        .server
        .execute("INSERT INTO transfers (a, b, n) SELECT 1, 1, 0 FROM generate_series(1, 234)");
    world.archiving.archive_all();
    let rows = world
        .archiving
        .server
        .number("SELECT (SELECT count(*) FROM transfers) + (SELECT count(*) FROM accounts)");

    let done = world.try_restore(SOURCE).ok().json();
    let test = &done["test"];
    assert_eq!(test["verdict"], "ok", "{done:#}");
    for check in [
        "recovery",
        "checksums",
        "amcheck",
        "constraints",
        "indexes",
        "rows",
    ] {
        assert_eq!(*state_of(test, check), "ok", "{check}: {done:#}");
    }
    // What came behind the backup is there; the unlogged table is empty after recovery.
    assert_eq!(test["rows"], rows, "{done:#}");
    assert_eq!(
        (&test["databases"], &test["tables"]),
        (&4.into(), &3.into()),
        "{done:#}"
    );
    assert_eq!(test["recovered"]["timeline"], 2, "{done:#}");
    assert!(test["recovered"]["last_commit_at"].is_string(), "{done:#}");
    world.wait_for_nothing_left();

    // For people.
    let told = world
        .archiving
        .cluster
        .ctl(["verify", SOURCE, "--test-restore", "--wait"])
        .ok();
    eprintln!("{}{}", told.text(), told.stderr);
    for part in [
        ": ok\n",
        "on timeline 2",
        "4 databases, 3 tables of users",
        "amcheck      ok",
    ] {
        assert!(told.text().contains(part), "{part}: {}", told.text());
    }

    // The end of the backup alone.
    let done = world.try_restore(&format!("{SOURCE}@{good}")).ok().json();
    assert_eq!(done["test"]["recovered"]["timeline"], 1, "{done:#}");
    assert_eq!(done["test"]["rows"], rows - 234, "{done:#}");

    // It is remembered, also by a controller that was started anew.
    world.archiving.cluster.stop_controller();
    world.archiving.cluster.start_controller(None);
    world.archiving.cluster.wait_ready();
    world.archiving.cluster.wait_connected(AGENT);
    for (kind, name) in [("snapshots", good.as_str()), ("sources", SOURCE)] {
        let test = &world.described(kind, name)["last_test"];
        assert_eq!(
            (&test["verdict"], &test["snapshot"]),
            (&"ok".into(), &good.as_str().into()),
            "{test:#}"
        );
        assert_eq!(test["job"], done["id"], "{test:#}");
    }
    let wide = world
        .archiving
        .cluster
        .ctl(["get", "snapshots", "-o", "wide"])
        .ok()
        .text();
    assert!(wide.contains("TESTED") && wide.contains("ok 20"), "{wide}");

    // Things that are wrong in the cluster itself, one of them a damaged page of an index.
    let server = &mut world.archiving.server;
    server.execute(
        "ALTER TABLE accounts ADD CONSTRAINT positive CHECK (balance > -1000000) NOT VALID;
         CREATE INDEX never_ready ON transfers (n);
         UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'never_ready'::regclass;
         CHECKPOINT",
    );
    let index = server.query("SELECT pg_relation_filepath('accounts_pkey')");
    server.stop();
    let mut disable = as_server(server, Path::new("/usr/lib/postgresql/15/bin/pg_checksums"));
    disable.args(["--disable", "--no-sync", "-D"]).arg(server.data());
    let _ = Output::of(disable).ok();
    let path = server.data().join(index);
    let mut bytes = fs::read(&path).unwrap();
    // The level of the first page behind the meta page, in its last 16 bytes: a leaf is at level 0.
    bytes[2 * 8192 - 8] = 77;
    fs::write(&path, bytes).unwrap();
    server.start();
    let bad = world.backup();
    let found = world
        .try_restore(&format!("{SOURCE}@{bad}"))
        .expect_code(4)
        .json();
    let test = &found["test"];
    assert_eq!(
        (&test["verdict"], &found["state"]),
        (&"findings".into(), &"succeeded".into())
    );
    assert_eq!(test["findings"], 3, "{found:#}");
    let findings = found["findings"].as_array().unwrap();
    for what in ["postgres.public.accounts_pkey", "positive", "never_ready"] {
        let is_named = |finding: &Value| finding["what"].as_str().unwrap().contains(what);
        assert!(findings.iter().any(is_named), "{what}: {found:#}");
    }
    for check in ["amcheck", "constraints", "indexes"] {
        assert_eq!(*state_of(test, check), "findings", "{found:#}");
    }
    assert_eq!(*state_of(test, "checksums"), "not-run", "{found:#}");
    let described = world.archiving.cluster.ctl(["describe", "snapshots", &bad]).ok();
    eprintln!("{}", described.text());
    let jobs = world.archiving.cluster.ctl(["get", "jobs"]).ok().text();
    assert!(jobs.contains("3 findings"), "{jobs}");
    world.wait_for_nothing_left();
    world.archiving.server.stop();
}

#[test]
fn what_cannot_be_tried_here_is_refused_and_says_nothing_of_the_snapshot() {
    let mut world = World::start();
    let id = world.backup();

    // Replaying this would write where the server itself has its tablespace.
    let late = world.archiving.path("late");
    Server::make_dir(&late);
    let server = &world.archiving.server;
    server.execute(&format!("CREATE TABLESPACE late LOCATION '{}'", late.display()));
    server.execute("CREATE TABLE in_late TABLESPACE late AS SELECT generate_series(1, 100) AS i");
    world.archiving.archive_all();
    let refused = world.try_restore(SOURCE).expect_code(1);
    assert!(refused.stderr.contains("makes tablespace"), "{}", refused.stderr);
    assert!(
        refused.stderr.contains(late.to_str().unwrap()),
        "{}",
        refused.stderr
    );
    assert_eq!(world.archiving.server.number("SELECT count(*) FROM in_late"), 100);
    world.wait_for_nothing_left();

    // Too little space; named so: it mounts a tmpfs and needs root.
    if rustix::process::geteuid().is_root() {
        let small = world.archiving.path("small");
        fs::create_dir_all(&small).unwrap();
        let mut mount = Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", "size=24m,mode=711", "holdfast-test"])
            .arg(&small);
        let _ = Output::of(mount).ok();
        let mut command = Command::new("umount");
        command.arg("-l").arg(&small);
        let what = format!("{SOURCE}@{id}");
        world.configure(|config, _| {
            config.insert("scratch".into(), small.to_str().unwrap().into());
        });
        let refused = world.try_restore(&what);
        let left = entries(&small);
        let _ = Output::of(command).ok();
        assert_eq!(refused.code, 1, "{}", refused.stderr);
        assert!(
            refused.stderr.contains("nothing was written"),
            "{}",
            refused.stderr
        );
        assert_eq!(left, Vec::<PathBuf>::new());
    }

    // Where the server's user may not go.
    if rustix::process::geteuid().is_root() {
        let closed = world.archiving.path("closed");
        fs::create_dir_all(&closed).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        fs::set_permissions(&closed, mode).unwrap();
        world.configure(|config, _| {
            config.insert("scratch".into(), closed.join("scratch").to_str().unwrap().into());
        });
        let refused = world.try_restore(&format!("{SOURCE}@{id}")).expect_code(12);
        assert!(refused.stderr.contains("may not enter"), "{}", refused.stderr);
    }

    world.configure(|config, _| {
        config.remove("scratch");
    });
    let refused = world.try_restore(SOURCE).expect_code(12);
    assert!(refused.stderr.contains("scratch ="), "{}", refused.stderr);
    for (kind, name) in [("snapshots", id.as_str()), ("sources", SOURCE)] {
        let test = &world.described(kind, name)["last_test"];
        assert!(test.is_null(), "{test:#}");
    }
    let _ = world
        .archiving
        .cluster
        .ctl(["verify", "--test-restore"])
        .expect_code(2);
    world.archiving.server.stop();
}

#[test]
fn killed_or_cancelled_it_leaves_nothing() {
    let mut world = World::start();
    let _ = world.backup();
    // Somebody else's things in the same place stay.
    let foreign = world.scratch.join("test-of-somebody");
    for phase in ["test-restore", "test-recover", "test-check", "test-clean"] {
        world.archiving.cluster.agent_process(AGENT).arm(Trap::at(phase));
        let job = world.begin();
        wait::until("the agent to be killed", || {
            world
                .archiving
                .cluster
                .agent_process(AGENT)
                .sprung()
                .then_some(())
        });
        let left = entries(&world.scratch);
        assert!(left.len() <= 1, "{phase}: {left:?}");
        if phase == "test-check" {
            assert!(!world.processes().is_empty(), "the server runs on");
        }
        world.restart_agent();
        world.wait_for_nothing_left();
        let ended = world
            .archiving
            .cluster
            .wait_for_job(&job, "over", |job| job["state"] == "interrupted");
        assert!(ended["test"].is_null(), "{ended:#}");
    }

    fs::create_dir_all(foreign.join("data")).unwrap();
    for phase in ["test-restore", "test-recover", "test-check"] {
        let agent = world.archiving.cluster.agent_process(AGENT);
        let mark = agent.mark();
        let job = world.begin();
        agent.wait_for_phase(mark, phase);
        let _ = world.archiving.cluster.ctl(["job", "cancel", &job]).ok();
        wait::until("only what is somebody else's to be left", || {
            (entries(&world.scratch) == [foreign.clone()] && world.processes().is_empty()).then_some(())
        });
        assert_eq!(world.archiving.cluster.job(&job)["state"], "cancelled");
    }
    // And after all that one comes to its end.
    let done = world.try_restore(SOURCE).ok().json();
    assert_eq!(done["test"]["verdict"], "ok", "{done:#}");
    assert_eq!(entries(&world.scratch), [foreign]);
    world.archiving.server.stop();
}
