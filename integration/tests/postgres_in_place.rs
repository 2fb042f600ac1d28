//! A restore over a dead cluster keeps what that cluster alone has: transactions that were committed and archived nowhere.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

use holdfast_integration::{
    harness::{Archiving, Output, Server, archiving::SOURCE},
    wait,
};
use std::{fs, path::PathBuf};

struct World(Archiving);

impl World {
    /// A server whose table has 10 rows in the backup and 10 more in the archive; archiving then stops.
    fn start() -> Self {
        let this = Self(Archiving::start(""));
        this.0.server.execute("CREATE TABLE rows (i int)");
        this.rows(1, 10);
        let _ = this.0.cluster.backup(SOURCE).ok();
        this.rows(11, 20);
        this.0.archive_all();
        this.0
            .server
            .execute("ALTER SYSTEM SET archive_command = '/bin/false'");
        this.0.server.execute("SELECT pg_reload_conf()");
        this
    }

    fn rows(&self, first: i64, last: i64) {
        let insert = format!("INSERT INTO rows SELECT generate_series({first}, {last})");
        self.0.server.execute(&insert);
    }

    /// Ends a segment that nobody archives; its name.
    fn segment(&self) -> String {
        let server = &self.0.server;
        let name = server.query("SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
        server.execute("SELECT pg_switch_wal()");
        wait::until("the segment to be ready", || {
            let ready = format!("archive_status/{name}.ready");
            self.wal().join(ready).exists().then_some(())
        });
        name
    }

    fn wal(&self) -> PathBuf {
        self.0.server.data().join("pg_wal")
    }

    fn restore(&self, more: &[&str]) -> Output {
        let to = self.0.server.data().to_str().unwrap();
        let fixed = [
            "restore",
            SOURCE,
            "--to",
            to,
            "--in-place",
            "--latest",
            "-o",
            "json",
        ];
        self.0.cluster.ctl(fixed.iter().chain(more))
    }

    /// The rows of the server that was started on it.
    fn assert_rows(self, last: i64) {
        let server = Server::at(self.0.server.data(), &self.0.path("again.socket"));
        let mut server = server.adopt();
        assert_eq!(server.number("SELECT count(*) FROM rows"), last);
        assert_eq!(server.number("SELECT coalesce(max(i), 0) FROM rows"), last);
        server.stop();
    }

    fn options(&self) -> String {
        Server::at(self.0.server.data(), &self.0.path("again.socket")).options()
    }
}

fn names(recovery: &serde_json::Value, key: &str) -> Vec<String> {
    let names = recovery[key].as_array().unwrap().iter();
    names.map(|name| name.as_str().unwrap().to_owned()).collect()
}

#[test]
fn what_only_the_dead_server_had_is_recovered() {
    let mut world = World::start();
    world.rows(21, 30);
    let ready = world.segment();
    world.rows(31, 40);
    let tail = world
        .0
        .server
        .query("SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
    world.0.server.kill();
    let (of_ready, of_tail) = (
        fs::read(world.wal().join(&ready)).unwrap(),
        fs::read(world.wal().join(&tail)).unwrap(),
    );

    let options = world.options();
    let done = world.restore(&["--start", "--server-options", &options]).ok();
    let recovery = done.json()["postgres"]["recovery"].clone();
    assert_eq!(names(&recovery, "taken_over"), [format!("{ready} to {tail}")]);
    assert!(names(&recovery, "left_aside").is_empty(), "{recovery}");
    assert!(done.stderr.contains("archived nowhere"), "{}", done.stderr);
    // The old WAL lies aside as it was.
    let aside = done.json()["postgres"]["wal_aside"].as_str().unwrap().to_owned();
    assert!(fs::read(PathBuf::from(&aside).join(&ready)).unwrap() == of_ready);
    assert!(fs::read(PathBuf::from(&aside).join(&tail)).unwrap() == of_tail);
    world.assert_rows(40);
}

#[test]
fn wal_behind_a_gap_is_not_given_up_in_silence() {
    let mut world = World::start();
    world.rows(21, 30);
    let lost = world.segment();
    world.rows(31, 40);
    let behind = world.segment();
    world.0.server.kill();
    fs::remove_file(world.wal().join(&lost)).unwrap();
    let before = fs::read(world.0.server.data().join("global/pg_control")).unwrap();

    let refused = world.restore(&[]).expect_code(11);
    assert!(refused.stderr.contains(&behind), "{}", refused.stderr);
    assert!(refused.stderr.contains("--accept-loss"), "{}", refused.stderr);
    let after = fs::read(world.0.server.data().join("global/pg_control")).unwrap();
    assert!(
        before == after && world.wal().join(&behind).exists(),
        "nothing was touched"
    );

    let options = world.options();
    let done = world
        .restore(&["--accept-loss", "--start", "--server-options", &options])
        .ok();
    let recovery = done.json()["postgres"]["recovery"].clone();
    assert!(names(&recovery, "taken_over").is_empty(), "{recovery}");
    assert!(
        names(&recovery, "left_aside")[0].starts_with(&behind),
        "{recovery}"
    );
    world.assert_rows(20);
}

#[test]
fn what_is_pushed_from_the_dead_server_first_comes_from_the_archive() {
    let mut world = World::start();
    world.rows(21, 30);
    let ready = world.segment();
    world.rows(31, 40);
    let server = &world.0.server;
    let tail = server.query("SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
    world.0.server.kill();
    let _ = world.0.agent(&["wal", "push", &format!("pg_wal/{ready}")]).ok();

    let options = world.options();
    let done = world.restore(&["--start", "--server-options", &options]).ok();
    let recovery = done.json()["postgres"]["recovery"].clone();
    assert_eq!(names(&recovery, "taken_over"), [tail]);
    world.assert_rows(40);
}
