//! A cluster is backed up where it is replayed: what comes back is whole, goes on through the primary's archive, and a standby
//! that is promoted meanwhile never makes a snapshot.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

use holdfast_integration::{
    harness::{
        Archiving, Output, Server,
        archiving::{AGENT, SOURCE},
        transfers,
    },
    wait,
};
use std::{fs::File, io::Write as _, path::Path};

/// A primary that archives, its standby, and a source that is backed up from the latter.
struct World {
    archiving: Archiving,
    standby: Server,
}

impl World {
    fn start() -> Self {
        let mut archiving = Archiving::start("");
        let primary = &archiving.server;
        transfers::make(primary, "");
        let mut standby = primary.standby(archiving.base.path(), "standby");
        standby.start();
        let config = &archiving.cluster.agent(AGENT).config;
        let text = std::fs::read_to_string(config).unwrap();
        // The standby's files too.
        let text = text.replacen(
            &format!("{:?}", primary.data()),
            &format!("{:?}, {:?}", primary.data(), standby.data()),
            1,
        );
        std::fs::write(config, text).unwrap();
        let mut file = File::options().append(true).open(config).unwrap();
        let connection = standby.connection();
        write!(file, "\n[postgres.standby]\nconnection = \"{connection}\"\n").unwrap();
        archiving.cluster.kill_agent(AGENT);
        archiving.cluster.start_agent(AGENT, None);
        archiving.cluster.wait_connected(AGENT);
        let world = Self { archiving, standby };
        world.apply(SOURCE);
        world
    }

    fn apply(&self, source: &str) {
        self.archiving.cluster.apply(&format!(
            "kind: Source\nname: {source}\npostgres: {{cluster: standby, fast_checkpoint: true}}\n"
        ));
    }

    fn transfers(&self) -> i64 {
        transfers::count(&self.archiving.server)
    }

    /// Waits until the standby has all that is committed.
    fn catch_up(&self) {
        let lsn = self.archiving.server.query("SELECT pg_current_wal_flush_lsn()");
        wait::until("the standby to replay", || {
            let has = format!("SELECT pg_last_wal_replay_lsn() >= '{lsn}'");
            (self.standby.query(&has) == "t").then_some(())
        });
    }

    /// Backs up; the snapshot, and how many transfers the standby had before.
    fn backup(&self) -> (String, i64) {
        let before = transfers::count(&self.standby);
        let cluster = &self.archiving.cluster;
        let known = cluster.snapshots(SOURCE);
        let _ = cluster.backup(SOURCE).ok();
        let mut new = cluster.snapshots(SOURCE);
        new.retain(|id| !known.contains(id));
        assert_eq!(new.len(), 1);
        (new.remove(0), before)
    }

    fn restore(&self, what: &str, to: &Path, more: &[&str]) -> Output {
        let fixed = ["restore", what, "--to", to.to_str().unwrap()];
        self.archiving.cluster.ctl(fixed.iter().chain(more))
    }

    /// Starts a server on a restored directory, looks at everything that must hold, and ends it; how many transfers it has.
    fn check(&self, to: &Path) -> i64 {
        let mut server = Server::at(to, &self.archiving.path("restored.socket"));
        server.start();
        wait::until("the server to take writes", || {
            (server.query("SELECT pg_is_in_recovery()") == "f").then_some(())
        });
        let count = transfers::count(&server);
        transfers::check(&server);
        server.stop();
        count
    }

    /// No slot and no session of a backup is left on the standby.
    fn assert_untouched(&self) {
        wait::until("the standby to be as before", || {
            let left = self.standby.number(
                "SELECT (SELECT count(*) FROM pg_replication_slots) + \
                        (SELECT count(*) FROM pg_stat_activity WHERE application_name = 'holdfast')",
            );
            (left == 0).then_some(())
        });
    }
}

#[test]
fn a_standbys_backup_is_whole_and_goes_on_through_the_primarys_archive() {
    let mut world = World::start();
    let workload = world.archiving.workload(4, 300);
    let mut backups = Vec::new();
    for _ in 0..2 {
        let moved = world.transfers() + 100;
        wait::until("money to move", || (world.transfers() >= moved).then_some(()));
        backups.push(world.backup());
        world.assert_untouched();
    }
    assert!(workload.exited().is_none(), "{}", workload.tail(20));

    // By itself, before the segment of its end is archived.
    for (id, committed) in &backups {
        let to = world.archiving.path(&format!("end-{id}"));
        let _ = world.restore(&format!("{SOURCE}@{id}"), &to, &[]).ok();
        let found = world.check(&to);
        assert!(found >= *committed, "{found} transfers of {committed}");
    }
    workload.kill();
    world.catch_up();
    let all = world.transfers();
    world.archiving.archive_all();

    // The archived segment counts, not the one that is whole up to the backup's end.
    for (id, _) in &backups {
        let to = world.archiving.path(&format!("all-{id}"));
        let _ = world.restore(&format!("{SOURCE}@{id}"), &to, &["--latest"]).ok();
        assert_eq!(world.check(&to), all);
    }
    let (id, committed) = &backups[1];
    let to = world.archiving.path("immediate");
    let _ = world
        .restore(&format!("{SOURCE}@{id}"), &to, &["--immediate"])
        .ok();
    let found = world.check(&to);
    assert!((*committed..=all).contains(&found), "{found}");
    let _ = world.archiving.cluster.ctl(["verify", "--read-data"]).ok();

    // A second source of the same cluster is not backed up beside the first.
    world.apply("db1/again");
    let agent = world.archiving.cluster.agent_process(AGENT);
    let mark = agent.mark();
    let _ = world.archiving.cluster.ctl(["backup", "run", SOURCE]).ok();
    agent.wait_for_phase(mark, "backup-start");
    agent.suspend();
    let _ = world
        .archiving
        .cluster
        .ctl(["backup", "run", SOURCE])
        .expect_code(11);
    agent.resume();
    world.standby.stop();
    world.archiving.server.stop();
}

#[test]
fn a_standby_that_is_promoted_meanwhile_makes_no_snapshot() {
    let mut world = World::start();
    let (first, _) = world.backup();
    let cluster = &world.archiving.cluster;
    world.archiving.server.execute(
        "CREATE TABLE filler AS SELECT i, md5(random()::text) AS text FROM generate_series(1, 200000) i",
    );
    world.catch_up();
    let agent = cluster.agent_process(AGENT);
    let mark = agent.mark();
    let refused = std::thread::scope(|scope| {
        let backup = scope.spawn(|| cluster.backup(SOURCE));
        agent.wait_for_phase(mark, "upload");
        agent.suspend();
        assert_eq!(world.standby.query("SELECT pg_promote()"), "t");
        agent.resume();
        backup.join().unwrap()
    });
    let refused = refused.expect_code(11);
    assert!(
        refused.stderr.contains("promoted while it was backed up")
            && refused.stderr.contains("run the backup again"),
        "{}",
        refused.stderr
    );
    assert_eq!(cluster.snapshots(SOURCE), [first]);
    world.assert_untouched();

    let (id, _) = world.backup();
    let to = world.archiving.path("promoted");
    let _ = world.restore(&format!("{SOURCE}@{id}"), &to, &[]).ok();
    let _ = world.check(&to);
    let label = cluster
        .ctl([
            "cat",
            &format!("{SOURCE}@{id}"),
            "/postgresql/backup/backup_label",
        ])
        .ok()
        .text();
    assert!(label.contains("START TIMELINE: 2"), "{label}");
    world.standby.stop();
    world.archiving.server.stop();
}
