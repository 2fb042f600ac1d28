//! A cluster recovers to a time, a transaction, a position, a name and the end: exactly what was committed by then is there.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

use holdfast_integration::{
    harness::{Archiving, Output, Server, archiving::SOURCE, transfers},
    seed::{self, Rng},
    wait,
};
use std::{fs, path::Path};

/// A moment at which nobody was about to commit a transfer.
#[derive(Debug)]
struct Mark {
    number: i64,
    /// Committed by then.
    transfers: i64,
    time: String,
    lsn: String,
    xid: String,
    name: String,
}

/// Ways to name a moment.
const KINDS: [&str; 4] = ["time", "xid", "lsn", "name"];

struct World {
    archiving: Archiving,
    marks: Vec<Mark>,
}

impl World {
    fn start() -> Self {
        let archiving = Archiving::start("");
        transfers::make(&archiving.server, "");
        archiving.server.execute("CREATE TABLE marks (number bigint)");
        Self {
            archiving,
            marks: Vec::new(),
        }
    }

    fn transfers(&self) -> i64 {
        transfers::count(&self.archiving.server)
    }

    /// Waits until so many more transfers are committed.
    fn let_move(&self, count: i64) {
        let before = self.transfers();
        wait::until("money to move", || {
            (self.transfers() >= before + count).then_some(())
        });
    }

    /// Holds all transfers up for a moment, and names that moment in every way.
    fn mark(&mut self) {
        let number = self.marks.len() as i64;
        let name = format!("mark {number}");
        let text = self.archiving.server.query(&format!(
            "BEGIN;
             LOCK TABLE transfers IN SHARE ROW EXCLUSIVE MODE;
             SELECT count(*) FROM transfers;
             SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"');
             SELECT pg_current_wal_insert_lsn();
             INSERT INTO marks VALUES ({number});
             SELECT pg_current_xact_id();
             SELECT pg_create_restore_point('{name}') IS NULL;
             COMMIT;"
        ));
        let lines: Vec<&str> = text.lines().collect();
        let [transfers, time, lsn, xid, _] = lines[..] else {
            panic!("{text:?}");
        };
        self.marks.push(Mark {
            number,
            transfers: transfers.parse().unwrap(),
            time: time.into(),
            lsn: lsn.into(),
            xid: xid.into(),
            name,
        });
    }

    fn restore(&self, to: &Path, what: &str, more: &[&str]) -> Output {
        let to = to.to_str().unwrap();
        let fixed = ["restore", what, "--to", to];
        self.archiving.cluster.ctl(fixed.iter().chain(more))
    }

    /// Restores to a moment, starts the server, and looks whether exactly that is there.
    fn check(&self, to: &Path, mark: &Mark, kind: &str, what: &str) {
        let (option, value) = match kind {
            "time" => ("--at", &mark.time),
            "xid" => ("--xid", &mark.xid),
            "lsn" => ("--lsn", &mark.lsn),
            _ => ("--name", &mark.name),
        };
        eprintln!("recovering {what} by {kind} to {mark:?}");
        let _ = self.restore(to, what, &[option, value]).ok();
        let mut server = self.recovered(to);
        let transfers = transfers::count(&server);
        assert_eq!(transfers, mark.transfers, "by {kind} to {mark:?}");
        // The transaction that made the mark is the target itself only by its number.
        let last = server.number("SELECT coalesce(max(number), -1) FROM marks");
        let expected = if kind == "xid" {
            mark.number
        } else {
            mark.number - 1
        };
        assert_eq!(last, expected, "by {kind} to {mark:?}");
        transfers::check(&server);
        server.stop();
    }

    /// A server on a restored directory, once it takes writes.
    fn recovered(&self, to: &Path) -> Server {
        let mut server = Server::at(to, &self.archiving.path("restored.socket"));
        server.start();
        wait::until("the server to be promoted", || {
            (server.query("SELECT pg_is_in_recovery()") == "f").then_some(())
        });
        server
    }

    fn backup(&self) -> String {
        let known = self.archiving.cluster.snapshots(SOURCE);
        let _ = self.archiving.cluster.backup(SOURCE).ok();
        let mut new = self.archiving.cluster.snapshots(SOURCE);
        new.retain(|id| !known.contains(id));
        new.remove(0)
    }
}

/// How many backups, recoveries of each, and recoveries to the end.
fn counts() -> (usize, usize, usize) {
    if seed::long() { (10, 10, 40) } else { (2, 3, 2) }
}

#[test]
fn exactly_what_was_committed_by_the_target_is_there() {
    let mut rng = Rng::new(seed::of_run("postgres_recovery"));
    let (backups, recoveries, to_the_end) = counts();
    let mut world = World::start();
    let workload = world.archiving.workload(8, 400);
    let mut begun = Vec::new();
    for _ in 0..backups {
        world.let_move(50);
        let id = world.backup();
        begun.push((id, world.marks.len()));
        for _ in 0..recoveries {
            world.let_move(1 + rng.below(200) as i64);
            world.mark();
        }
    }
    world.let_move(50);
    assert!(workload.exited().is_none(), "{}", workload.tail(20));
    workload.kill();
    wait::until("the last client to leave", || {
        let clients = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgbench'";
        (world.archiving.server.number(clients) == 0).then_some(())
    });
    let all = world.transfers();
    world.archiving.archive_all();

    for (id, first) in &begun {
        for _ in 0..recoveries {
            let mark = &world.marks[first + rng.index(world.marks.len() - first)];
            let kind = KINDS[rng.index(KINDS.len())];
            let to = world.archiving.path("restored");
            // A backup may be named; of times and positions, the right one is found.
            let what = if rng.chance(0.5) && kind != "name" {
                SOURCE.to_owned()
            } else {
                format!("{SOURCE}@{id}")
            };
            world.check(&to, mark, kind, &what);
            fs::remove_dir_all(&to).unwrap();
        }
    }
    for _ in 0..to_the_end {
        let to = world.archiving.path("restored");
        let _ = world.restore(&to, SOURCE, &[]).ok();
        let mut server = world.recovered(&to);
        assert_eq!(transfers::count(&server), all);
        transfers::check(&server);
        server.stop();
        fs::remove_dir_all(&to).unwrap();
    }

    // Started, it is followed to where it was sent.
    let to = world.archiving.path("started");
    let mark = &world.marks[world.marks.len() - 1];
    for (action, state) in [
        ("promote", "ready"),
        ("pause", "reading"),
        ("shutdown", "stopped"),
    ] {
        let server = Server::at(&to, &world.archiving.path("restored.socket"));
        let options = server.options();
        let more = [
            "--lsn",
            &mark.lsn,
            "--action",
            action,
            "--start",
            "--server-options",
            &options,
            "-o",
            "json",
        ];
        let done = world.restore(&to, SOURCE, &more).ok().json();
        let found = &done["postgres"]["server"];
        assert_eq!(found["state"], state, "{done}");
        if action != "shutdown" {
            let mut server = server.adopt();
            let timeline = if action == "promote" { 2 } else { 1 };
            assert_eq!(found["timeline"], timeline, "{done}");
            if action == "pause" {
                wait::until("the server to wait at its target", || {
                    (server.query("SELECT pg_get_wal_replay_pause_state()") == "paused").then_some(())
                });
            }
            assert_eq!(transfers::count(&server), mark.transfers, "{action}");
            server.stop();
        }
        fs::remove_dir_all(&to).unwrap();
    }
    let more = ["--start", "--server-options", "-c no_such_setting=1"];
    let failed = world.restore(&to, SOURCE, &more);
    assert_ne!(failed.code, 0);
    assert!(failed.stderr.contains("no_such_setting"), "{}", failed.stderr);

    // What cannot be reached is said before anything is written.
    let to = world.archiving.path("never");
    for (options, code) in [
        (["--at", "2999-01-01T00:00:00Z"], 10),
        (["--lsn", "FFFFFFFF/0"], 10),
        (["--lsn", "0/100"], 10),
        (["--at", "2999-01-01 00:00"], 2),
        (["--timeline", "7"], 2),
    ] {
        let refused = world.restore(&to, SOURCE, &options);
        assert_eq!(refused.code, code, "{options:?}: {}", refused.stderr);
        assert!(!to.exists(), "{options:?}");
    }
    world.archiving.server.stop();
}

#[test]
fn a_standby_is_built_from_a_backup_follows_and_takes_over() {
    let mut world = World::start();
    let _ = world.backup();
    let workload = world.archiving.workload(2, 200);
    world.let_move(50);
    world.archiving.archive_all();

    let to = world.archiving.path("standby");
    let standby = Server::at(&to, &world.archiving.path("standby.socket"));
    let (primary, options) = (world.archiving.server.connection(), standby.options());
    // What streaming does not bring, the archive does.
    let command = format!(
        "{} wal fetch --standby --source main --socket {} %f %p",
        world.archiving.path("holdfast-agent").display(),
        world.archiving.path("agent.sock").display()
    );
    let more = [
        "--standby",
        "--primary",
        &primary,
        "--restore-command",
        &command,
        "--start",
        "--server-options",
        &options,
        "-o",
        "json",
    ];
    let done = world.restore(&to, SOURCE, &more).ok().json();
    assert_eq!(done["postgres"]["server"]["state"], "reading", "{done}");
    let mut standby = standby.adopt();
    wait::until("the standby to stream", || {
        let streams = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'";
        (world.archiving.server.number(streams) == 1).then_some(())
    });
    world.let_move(50);
    workload.kill();
    wait::until("the last client to leave", || {
        let clients = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgbench'";
        (world.archiving.server.number(clients) == 0).then_some(())
    });
    let end = world.archiving.server.query("SELECT pg_current_wal_lsn()");
    wait::until("the standby to catch up", || {
        let lag = format!("SELECT greatest(pg_wal_lsn_diff('{end}', pg_last_wal_replay_lsn()), 0)::int8");
        (standby.number(&lag) == 0).then_some(())
    });
    let all = world.transfers();
    world.archiving.server.stop();
    assert_eq!(standby.query("SELECT pg_promote()"), "t");
    assert_eq!(transfers::count(&standby), all);
    transfers::check(&standby);
    standby.stop();
}

#[test]
fn a_promotion_begins_a_timeline_that_is_followed_or_not() {
    let mut world = World::start();
    let workload = world.archiving.workload(2, 200);
    world.let_move(50);
    let id = world.backup();
    world.let_move(50);
    world.mark();
    world.let_move(50);
    // It lies on what is left behind below.
    let late = world.backup();
    world.let_move(50);
    workload.kill();
    world.archiving.archive_all();
    let before = world.transfers();

    // The server itself goes back to the mark, in place, and archives on: another history from there on.
    world.archiving.server.stop();
    let data = world.archiving.server.data().to_owned();
    let mark = world.marks[0].lsn.clone();
    let _ = world
        .restore(&data, &format!("{SOURCE}@{id}"), &["--lsn", &mark, "--in-place"])
        .ok();
    let auto = data.join("postgresql.auto.conf");
    let text = fs::read_to_string(&auto).unwrap();
    fs::write(&auto, text.replace("archive_mode", "#archive_mode")).unwrap();
    world.archiving.server.start();
    wait::until("the server to be promoted", || {
        (world.archiving.server.query("SELECT pg_is_in_recovery()") == "f").then_some(())
    });
    assert_eq!(world.transfers(), world.marks[0].transfers);
    world
        .archiving
        .server
        .execute("INSERT INTO transfers (a, b, n) SELECT 1, 1, 0 FROM generate_series(1, 7)");
    let after = world.transfers();
    world.archiving.archive_all();
    assert!(world.archiving.kept().contains(&"00000002.history".to_owned()));
    let is_partial = |name: &String| name.starts_with("00000001") && name.ends_with(".partial");
    assert!(world.archiving.kept().iter().any(is_partial));
    let described = ["describe", "journal", SOURCE, "-o", "json"];
    let timelines = world.archiving.cluster.ctl(described).ok().rows();
    assert_eq!(timelines.len(), 2, "{timelines:?}");
    for (timeline, has_history) in timelines.iter().zip([false, true]) {
        assert_eq!(timeline["missing"], serde_json::json!([]));
        assert_eq!(timeline["history"], has_history);
    }

    let to = world.archiving.path("never");
    let refused = world.restore(&to, &format!("{SOURCE}@{late}"), &["--latest"]);
    assert_ne!(refused.code, 0);
    assert!(refused.stderr.contains("earlier snapshot"), "{}", refused.stderr);
    assert!(!to.exists());
    for (timeline, expected) in [("latest", after), ("2", after), ("current", before)] {
        let to = world.archiving.path("restored");
        let _ = world
            .restore(
                &to,
                SOURCE,
                &["--timeline", timeline, "--at", "2999-01-01T00:00:00Z"],
            )
            .expect_code(10);
        let _ = world.restore(&to, SOURCE, &["--timeline", timeline]).ok();
        let mut server = world.recovered(&to);
        let found = transfers::count(&server);
        assert_eq!(found, expected, "along {timeline}");
        transfers::check(&server);
        server.stop();
        fs::remove_dir_all(&to).unwrap();
    }
    world.archiving.server.stop();
}
