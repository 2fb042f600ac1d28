//! What a server archives is kept before it says so, comes back byte for byte, and one name never has two contents.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

use holdfast_integration::harness::{Archiving, Output, Server, archiving::SOURCE};
use std::{
    fs::{self, File},
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

/// What the tests here do with a server that archives.
struct World(Archiving);

impl std::ops::Deref for World {
    type Target = Archiving;
    fn deref(&self) -> &Archiving {
        &self.0
    }
}

impl std::ops::DerefMut for World {
    fn deref_mut(&mut self) -> &mut Archiving {
        &mut self.0
    }
}

impl World {
    fn start() -> Self {
        let world = Archiving::start("");
        world.server.execute("CREATE TABLE rows (i int, text text)");
        Self(world)
    }

    /// Writes, and ends the segment; its name.
    fn segment(&self, n: i64) -> String {
        self.server.execute(&format!(
            "INSERT INTO rows SELECT i, md5(i::text || '{n}') FROM generate_series(1, 2000) i"
        ));
        let name = self
            .server
            .query("SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
        self.server.execute("SELECT pg_switch_wal()");
        name
    }

    fn push(&self, name: &str) -> Output {
        self.agent(&["wal", "push", &format!("pg_wal/{name}")])
    }

    fn fetch(&self, name: &str, more: &[&str]) -> (Output, PathBuf) {
        let dir = self.path("fetched");
        Server::make_dir(&dir);
        let to = dir.join(name);
        let _ = fs::remove_file(&to);
        let path = to.to_str().unwrap();
        let mut args = vec!["wal", "fetch"];
        args.extend(more);
        args.extend([name, path]);
        (self.agent(&args), to)
    }

    fn assert_fetched(&self, name: &str, expected: &[u8]) {
        let (output, to) = self.fetch(name, &[]);
        let _ = output.ok();
        assert!(
            fs::read(to).unwrap() == expected,
            "{name} came back with another content"
        );
    }

    fn in_pg_wal(&self, name: &str) -> Vec<u8> {
        fs::read(self.server.data().join("pg_wal").join(name)).unwrap()
    }
}

#[test]
fn what_is_archived_is_kept_and_comes_back() {
    let mut world = World::start();
    let names: Vec<String> = (0..6).map(|n| world.segment(n)).collect();
    for name in &names {
        world.wait_archived(name);
    }
    let kept = world.kept();
    for name in &names {
        assert!(kept.contains(name), "{name} of {kept:?}");
        world.assert_fetched(name, &world.in_pg_wal(name));
    }
    let rows = world.cluster.ctl(["get", "sources", "-o", "json"]).ok().rows();
    assert_eq!(rows[0]["journal"]["divergent"], 0);
    let timelines = world
        .cluster
        .ctl(["describe", "journal", SOURCE, "-o", "json"])
        .ok()
        .rows();
    assert_eq!(timelines[0]["missing"], serde_json::json!([]));
    assert_eq!(timelines[0]["last"], names[5].as_str());
    let system_id = world
        .server
        .query("SELECT system_identifier FROM pg_control_system()");
    assert_eq!(rows[0]["journal"]["system_id"], system_id.as_str());

    // What is not there is absent, and only then.
    let (absent, _) = world.fetch("00000009.history", &[]);
    assert_eq!(absent.code, 1, "{}", absent.stderr);

    // A backup beside it, garbage collection after it, and everything still there.
    let _ = world.cluster.backup(SOURCE).ok();
    let _ = world.cluster.ctl(["gc"]).ok();
    let after = world.segment(7);
    world.wait_archived(&after);
    world.assert_fetched(&names[0], &world.in_pg_wal(&names[0]));
    world.assert_fetched(&after, &world.in_pg_wal(&after));
    let _ = world.cluster.ctl(["verify", "--read-data"]).ok();

    // With no controller there, nothing is called kept or absent.
    world.cluster.stop_controller();
    let waiting = world.segment(8);
    let (away, _) = world.fetch("00000009.history", &["--fetch-timeout", "1"]);
    assert_eq!(away.code, 126, "{}", away.stderr);
    let (away, _) = world.fetch("00000009.history", &["--fetch-timeout", "1", "--standby"]);
    assert_eq!(away.code, 1, "{}", away.stderr);
    assert_eq!(world.push(&waiting).code, 1);
    world.cluster.start_controller(None);
    world.cluster.wait_ready();
    world.wait_archived(&waiting);
    world.assert_fetched(&waiting, &world.in_pg_wal(&waiting));
    world.server.stop();
}

#[test]
fn one_name_has_one_content() {
    let mut world = World::start();
    let name = world.segment(1);
    world.wait_archived(&name);
    let original = world.in_pg_wal(&name);
    world.server.stop();
    assert_eq!(world.push(&name).ok().code, 0);

    let file = File::options()
        .write(true)
        .open(world.server.data().join("pg_wal").join(&name))
        .unwrap();
    file.write_all_at(b"scribbled", original.len() as u64 / 2)
        .unwrap();
    for _ in 0..2 {
        let refused = world.push(&name);
        assert_eq!(refused.code, 1);
        assert!(refused.stderr.contains("another content"), "{}", refused.stderr);
    }
    world.assert_fetched(&name, &original);
    let rows = world.cluster.ctl(["get", "sources", "-o", "json"]).ok().rows();
    assert_eq!(rows[0]["journal"]["divergent"], 1);
    let status = world.cluster.ctl(["status"]).ok().text();
    assert!(status.contains("another content than is kept"), "{status}");

    let verified = world.cluster.ctl(["verify", SOURCE, "-o", "json"]).ok().json();
    assert!(verified["pages"].as_u64().unwrap() >= 1, "{verified}");

    // Not what another cluster archived, nor what is none of its files, nor for whom it is not.
    let other = Server::init(world.base.path(), "other");
    let foreign = other.data().join("pg_wal").join("000000010000000000000001");
    let planted = world.server.data().join("pg_wal/0000000100000000000000F1");
    fs::copy(&foreign, &planted).unwrap();
    let owner = fs::metadata(world.server.data()).unwrap();
    std::os::unix::fs::chown(&planted, Some(owner.uid()), Some(owner.gid())).unwrap();
    let refused = world.push("0000000100000000000000F1");
    assert_eq!(refused.code, 1);
    assert!(
        refused.stderr.contains("is not what it is said to be"),
        "{}",
        refused.stderr
    );
    for (path, said) in [
        ("global/pg_control", "not the name"),
        ("../other/pg_wal/000000010000000000000001", "is not in"),
        ("pg_wal/000000010000000000000FFF", "not the name"),
    ] {
        let refused = world.agent(&["wal", "push", path]);
        assert_eq!(refused.code, 1, "{path}");
        assert!(refused.stderr.contains(said), "{path}: {}", refused.stderr);
    }
    let (refused, _) = world.fetch(&name, &["--no-such-option"]);
    assert_eq!(refused.code, 126, "{}", refused.stderr);
    if rustix::process::geteuid().is_root() {
        let mut command = std::process::Command::new("setpriv");
        command
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(world.path("holdfast-agent"))
            .args(["wal", "fetch", "--source", "main", "--socket"])
            .arg(world.path("agent.sock"))
            .args([&name, "/dev/null"])
            .current_dir(Path::new("/"));
        let refused = Output::of(command);
        assert_eq!(refused.code, 126);
        assert!(
            refused.stderr.contains("may not push or fetch"),
            "{}",
            refused.stderr
        );
    }
}

#[test]
fn wal_that_was_lost_is_found_by_verify() {
    let mut world = World::start();
    let name = world.segment(1);
    world.wait_archived(&name);
    world.server.stop();
    let verify = || world.cluster.ctl(["verify", SOURCE, "--read-data"]);
    let _ = verify().ok();
    let mut pending = vec![world.cluster.store_dir().join("packs")];
    let mut spoilt = 0;
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                pending.push(path);
                continue;
            }
            let file = File::options().read(true).write(true).open(&path).unwrap();
            let middle = file.metadata().unwrap().len() / 2;
            let mut byte = [0];
            file.read_exact_at(&mut byte, middle).unwrap();
            file.write_all_at(&[!byte[0]], middle).unwrap();
            spoilt += 1;
        }
    }
    assert!(spoilt > 0);
    let found = verify().expect_code(4);
    assert!(found.stderr.contains("WAL of db1/main"), "{}", found.stderr);
    let (fetched, _) = world.fetch(&name, &["--fetch-timeout", "1"]);
    assert_eq!(fetched.code, 126, "{}", fetched.stderr);
}
