//! Invariants 1, 2 and 4 for PostgreSQL: agent, controller and server are killed in every phase of a backup, and a restore
//! where it is. Whatever was visible restores, the next backup succeeds, and the server is left as it was.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

use holdfast_integration::{
    harness::{Archiving, Output, Process, Server, Who, archiving::SOURCE, transfers},
    seed::{self, Rng},
    wait,
};
use std::{collections::BTreeMap, fs, path::Path, time::Duration};

/// Who announces a phase of a backup, and its name in the log.
const PHASES: &[(Who, &str)] = &[
    (Who::Agent, "backup-start"),
    (Who::Agent, "upload"),
    (Who::Agent, "backup-stop"),
    (Who::Agent, "commit"),
    (Who::Controller, "upload"),
    (Who::Controller, "register"),
    (Who::Controller, "commit-check"),
    (Who::Controller, "commit"),
];

struct Run {
    archiving: Archiving,
    rng: Rng,
    kills: BTreeMap<String, usize>,
    /// Visible snapshots, and how many transfers were committed before each began.
    visible: BTreeMap<String, i64>,
}

impl Run {
    fn start(name: &str) -> Self {
        let archiving = Archiving::start("");
        transfers::make(&archiving.server, "");
        let mut this = Self {
            archiving,
            rng: Rng::new(seed::of_run(name)),
            kills: BTreeMap::new(),
            visible: BTreeMap::new(),
        };
        this.heal();
        this
    }

    /// Moves some money, so that each backup has something of its own.
    fn change(&self) {
        self.archiving
            .server
            .execute("INSERT INTO transfers (a, b, n) SELECT 1, 1, i FROM generate_series(1, 1000) i");
    }

    /// One kill in a phase of a backup, and everything looked at after it.
    fn kill_in(&mut self, watched: Who, phase: &str, victim: Who) {
        let name = format!("{victim:?} in {watched:?}'s {phase}").to_lowercase();
        for _ in 0..5 {
            self.change();
            let before = transfers::count(&self.archiving.server);
            let delay = Duration::from_micros(if self.rng.chance(0.5) {
                0
            } else {
                self.rng.below(8_000)
            });
            let mark = self.archiving.watched(watched).mark();
            self.archiving.arm(watched, phase, delay, victim);
            let cluster = &self.archiving.cluster;
            let mut command = cluster.command(&cluster.binaries().ctl());
            command.args(["backup", "run", SOURCE, "--wait"]);
            // It waits for the victim to come back, so that it must run beside us.
            let running = std::thread::spawn(move || Output::of(command));
            let sprung = self
                .archiving
                .spring(watched, (phase, mark), victim, || running.is_finished());
            let output = running.join().unwrap();
            eprintln!("{name}: sprung {sprung}, exit code {}", output.code);
            let new = self.adopt(before);
            assert!(
                output.code != 0 || new == 1,
                "{name}: the backup was reported as done, and {new} snapshots are new\n{}",
                output.stderr
            );
            self.heal();
            if sprung {
                *self.kills.entry(name).or_default() += 1;
                return;
            }
        }
        panic!("{name}: the phase was not reached");
    }

    /// Notes new snapshots; how many there are.
    fn adopt(&mut self, committed: i64) -> usize {
        self.archiving.cluster.wait_ready();
        let before = self.visible.len();
        for id in self.archiving.cluster.snapshots(SOURCE) {
            self.visible.entry(id).or_insert(committed);
        }
        self.visible.len() - before
    }

    /// A backup succeeds again, and the server has nothing left of the one that did not.
    fn heal(&mut self) {
        self.archiving.cluster.wait_ready();
        let before = transfers::count(&self.archiving.server);
        let mut last = None;
        let done = wait::poll(wait::PATIENCE, || {
            let output = self.archiving.cluster.backup(SOURCE);
            let code = output.code;
            last = Some(output);
            (code == 0).then_some(())
        });
        assert!(done.is_some(), "no backup succeeds any more: {last:?}");
        self.adopt(before);
        wait::until("the agent to leave the server", || {
            let left = "SELECT (SELECT count(*) FROM pg_replication_slots) + (SELECT count(*) FROM pg_stat_activity \
                        WHERE application_name LIKE 'holdfast%')";
            (self.archiving.server.number(left) == 0).then_some(())
        });
    }

    /// Every visible snapshot, by itself: the end of its backup.
    fn assert_all_restore(&self) {
        for (id, committed) in &self.visible {
            let to = self.archiving.path("restored");
            let _ = self.restore(&to, &format!("{SOURCE}@{id}"), &[]).ok();
            self.check(&to, *committed);
            fs::remove_dir_all(&to).unwrap();
        }
    }

    fn restore(&self, to: &Path, what: &str, more: &[&str]) -> Output {
        let fixed = ["restore", what, "--to", to.to_str().unwrap()];
        self.archiving.cluster.ctl(fixed.iter().chain(more))
    }

    fn check(&self, to: &Path, committed: i64) {
        let mut server = Server::at(to, &self.archiving.path("restored.socket"));
        server.start();
        wait::until("the server to be promoted", || {
            (server.query("SELECT pg_is_in_recovery()") == "f").then_some(())
        });
        let found = transfers::count(&server);
        assert!(found >= committed, "{found} transfers of {committed} came back");
        transfers::check(&server);
        server.stop();
    }

    fn finish(self) {
        self.assert_all_restore();
        let _ = self.archiving.cluster.ctl(["verify", "--read-data"]).ok();
        println!("{} snapshots; kills by phase:", self.visible.len());
        for (name, count) in &self.kills {
            println!("  {count:>3}  {name}");
        }
        assert_eq!(self.kills.len(), PHASES.len());
    }
}

fn in_every_phase(victim: Who) {
    let mut run = Run::start(&format!("postgres_kills {victim:?}"));
    for (watched, phase) in PHASES {
        for _ in 0..seed::count(1, 10) {
            run.kill_in(*watched, phase, victim);
        }
    }
    run.finish();
}

#[test]
fn the_agent_dies_in_every_phase_of_a_backup() {
    in_every_phase(Who::Agent);
}

#[test]
fn the_controller_dies_in_every_phase_of_a_backup() {
    in_every_phase(Who::Controller);
}

#[test]
fn the_server_dies_in_every_phase_of_a_backup() {
    in_every_phase(Who::Server);
}

/// What a killed restore to a moment has left starts no server, and the same command with --in-place completes it.
#[test]
fn a_killed_recovery_never_starts_and_is_completed_in_place() {
    let mut run = Run::start("postgres_kills restore");
    run.change();
    run.archiving.archive_all();
    let committed = transfers::count(&run.archiving.server);
    for round in 0..seed::count(3, 20) {
        let to = run.archiving.path(&format!("killed{round}"));
        let cluster = &run.archiving.cluster;
        let mut command = cluster.command(&cluster.binaries().ctl());
        command.args(["restore", SOURCE, "--to"]).arg(&to);
        let process = Process::start("restore", command, None);
        wait::until("the restore to begin", || {
            (to.join("base").exists() || process.exited().is_some()).then_some(())
        });
        wait::pause_for(Duration::from_millis(run.rng.below(400)));
        process.kill();
        let is_whole = to.join("global/pg_control").exists();
        eprintln!("killed restore {round}: whole {is_whole}");
        if !is_whole {
            let mut server = Server::at(&to, &run.archiving.path("restored.socket"));
            eprintln!("not started: {}", server.fails_to_start());
        }
        let _ = run.restore(&to, SOURCE, &["--in-place"]).ok();
        run.check(&to, committed);
        fs::remove_dir_all(&to).unwrap();
    }
    run.archiving.server.stop();
}
