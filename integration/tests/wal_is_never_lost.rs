//! Invariant 4 for WAL: whatever a server was told to be archived is there, whoever was killed when; and it goes on.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

use holdfast_integration::{
    harness::{Archiving, Output, Server, Who},
    seed::{self, Rng},
};
use std::{collections::BTreeMap, fs, time::Duration};

/// Who announces a phase of a push, and its name in the log.
const PHASES: &[(Who, &str)] = &[
    (Who::Agent, "wal-seal"),
    (Who::Agent, "wal-append"),
    (Who::Agent, "wal-kept"),
    (Who::Controller, "upload"),
    (Who::Controller, "register"),
    (Who::Controller, "journal-check"),
    (Who::Controller, "journal-page"),
    (Who::Controller, "journal-append"),
];

/// The same where the agent spools first.
const SPOOL_PHASES: &[(Who, &str)] = &[
    (Who::Agent, "spool-seal"),
    (Who::Agent, "spool-write"),
    (Who::Agent, "spool-note"),
    (Who::Agent, "spool-sync"),
    (Who::Agent, "spool-rename"),
    (Who::Agent, "spool-kept"),
    (Who::Agent, "drain-send"),
    (Who::Agent, "drain-append"),
    (Who::Agent, "drain-kept"),
    (Who::Controller, "journal-page"),
];

struct Run {
    archiving: Archiving,
    rng: Rng,
    kills: BTreeMap<String, usize>,
    /// What the server was told to be archived, as it was.
    archived: BTreeMap<String, Vec<u8>>,
}

impl Run {
    fn start(name: &str) -> Self {
        Self::of(Archiving::start(""), name)
    }

    fn of(archiving: Archiving, name: &str) -> Self {
        archiving.server.execute("CREATE TABLE rows (i int, text text)");
        Self {
            archiving,
            rng: Rng::new(seed::of_run(name)),
            kills: BTreeMap::new(),
            archived: BTreeMap::new(),
        }
    }

    /// Writes, and ends the segment; its name.
    fn segment(&mut self) -> String {
        let n = self.rng.below(1 << 40);
        let server = &self.archiving.server;
        server.execute(&format!(
            "INSERT INTO rows SELECT i, md5(i::text || '{n}') FROM generate_series(1, 500) i"
        ));
        let name = server.query("SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
        server.execute("SELECT pg_switch_wal()");
        name
    }

    /// One kill in a phase of a push, and everything that was archived checked after it.
    fn kill_in(&mut self, watched: Who, phase: &str, victim: Who) {
        let name = format!("{victim:?} in {watched:?}'s {phase}").to_lowercase();
        let delay = Duration::from_micros(if self.rng.chance(0.5) {
            0
        } else {
            self.rng.below(5_000)
        });
        let mark = self.archiving.watched(watched).mark();
        self.archiving.arm(watched, phase, delay, victim);
        let segment = self.segment();
        let _ = self.archiving.spring(watched, (phase, mark), victim, || false);
        self.archiving.cluster.wait_ready();
        self.archiving.wait_archived(&segment);
        self.note_archived();
        *self.kills.entry(name).or_default() += 1;
    }

    /// What the server believes to be archived, as it is now: it does not change any more.
    fn note_archived(&mut self) {
        let wal = self.archiving.server.data().join("pg_wal");
        for entry in fs::read_dir(wal.join("archive_status")).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let Some(name) = name.strip_suffix(".done") else {
                continue;
            };
            if !self.archived.contains_key(name)
                && let Ok(bytes) = fs::read(wal.join(name))
            {
                self.archived.insert(name.to_owned(), bytes);
            }
        }
    }

    fn assert_none_lost(&self) {
        let dir = self.archiving.path("fetched");
        Server::make_dir(&dir);
        for (name, bytes) in &self.archived {
            let to = dir.join(name);
            let _ = self
                .archiving
                .agent(&["wal", "fetch", name, to.to_str().unwrap()])
                .ok();
            assert!(
                fs::read(&to).unwrap() == *bytes,
                "{name} came back with another content"
            );
            fs::remove_file(&to).unwrap();
        }
    }

    fn finish(mut self) {
        self.note_archived();
        self.assert_none_lost();
        // Not only in the spool, where there is one.
        self.archiving.wait_drained();
        let kept = self.archiving.kept();
        for name in self.archived.keys() {
            assert!(kept.contains(name), "{name} did not come to the journal");
        }
        println!("{} files archived; kills by phase:", self.archived.len());
        for (name, count) in &self.kills {
            println!("  {count:>3}  {name}");
        }
        let rows = self
            .archiving
            .cluster
            .ctl(["get", "sources", "-o", "json"])
            .ok()
            .rows();
        assert_eq!(rows[0]["journal"]["divergent"], 0);
        let _ = self.archiving.cluster.ctl(["verify", "--read-data"]).ok();
        self.archiving.server.stop();
    }
}

fn in_every_phase(victim: Who) {
    let mut run = Run::start(&format!("wal_is_never_lost {victim:?}"));
    for (watched, phase) in PHASES {
        for _ in 0..seed::count(1, 10) {
            run.kill_in(*watched, phase, victim);
        }
    }
    run.finish();
}

#[test]
fn the_agent_dies_in_every_phase_of_a_push() {
    in_every_phase(Who::Agent);
}

#[test]
fn the_controller_dies_in_every_phase_of_a_push() {
    in_every_phase(Who::Controller);
}

#[test]
fn the_server_dies_in_every_phase_of_a_push() {
    in_every_phase(Who::Server);
}

fn in_every_phase_with_a_spool(victim: Who) {
    let archiving = Archiving::start_spooling("1GiB");
    let mut run = Run::of(archiving, &format!("wal_is_never_lost spool {victim:?}"));
    for (watched, phase) in SPOOL_PHASES {
        for _ in 0..seed::count(1, 10) {
            run.kill_in(*watched, phase, victim);
        }
    }
    run.finish();
}

#[test]
fn the_agent_dies_in_every_phase_of_spooling_and_draining() {
    in_every_phase_with_a_spool(Who::Agent);
}

#[test]
fn the_controller_dies_while_the_spool_is_drained() {
    in_every_phase_with_a_spool(Who::Controller);
}

#[test]
fn the_server_dies_while_its_wal_is_spooled() {
    in_every_phase_with_a_spool(Who::Server);
}

/// A recovering server asks, and whoever dies meanwhile: it gets the file, and never hears that there is none.
#[test]
fn whoever_dies_in_a_fetch_the_file_comes() {
    let mut run = Run::start("wal_is_never_lost fetch");
    for _ in 0..seed::count(6, 12) {
        let name = run.segment();
        run.archiving.wait_archived(&name);
    }
    run.note_archived();
    let dir = run.archiving.path("fetched");
    Server::make_dir(&dir);
    // Backwards, so that none was fetched ahead.
    let names: Vec<String> = run.archived.keys().rev().cloned().collect();
    let kills = seed::count(4, 20);
    for (round, name) in (0..kills).zip(names.iter().cycle()) {
        let victim = [Who::Agent, Who::Controller][round % 2];
        let delay = Duration::from_micros(run.rng.below(20_000));
        let to = dir.join(name);
        let mark = run.archiving.watched(Who::Agent).mark();
        run.archiving.arm(Who::Agent, "wal-fetch", delay, victim);
        let command = run
            .archiving
            .agent_command(&["wal", "fetch", name, to.to_str().unwrap()]);
        let running = std::thread::spawn(move || Output::of(command));
        let sprung = run
            .archiving
            .spring(Who::Agent, ("wal-fetch", mark), victim, || running.is_finished());
        let output = running.join().unwrap();
        assert_eq!(output.code, 0, "{victim:?} killed: {}", output.stderr);
        assert!(
            fs::read(&to).unwrap() == run.archived[name],
            "{name} came back with another content"
        );
        run.archiving.cluster.wait_ready();
        *run.kills
            .entry(format!("{victim:?} in a fetch: {sprung}"))
            .or_default() += 1;
    }
    run.finish();
}
