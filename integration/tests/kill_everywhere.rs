//! Invariants 1, 2, 4 under kill -9: agent and controller are killed in every phase of a backup and while
//! they start. Whatever was visible stays, whatever is visible restores, and the next backup succeeds.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

use holdfast_integration::{
    harness::{Options, Output, Trap},
    scenario::{AGENT, SOURCE, Scenario},
    seed::{self, Rng},
    wait,
};
use std::{collections::BTreeMap, time::Duration};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Who {
    Agent,
    Controller,
}

/// Who announces a phase, and its name in the log.
const PHASES: &[(Who, &str)] = &[
    (Who::Agent, "walk"),
    (Who::Agent, "upload"),
    (Who::Agent, "commit"),
    (Who::Controller, "upload"),
    (Who::Controller, "register"),
    (Who::Controller, "commit-check"),
    (Who::Controller, "commit"),
    (Who::Controller, "raft-append"),
    (Who::Controller, "raft-snapshot-build"),
];

struct Run {
    scenario: Scenario,
    rng: Rng,
    kills: BTreeMap<String, usize>,
}

impl Run {
    fn new(name: &str) -> Self {
        let seed = seed::of_run(name);
        // Raft snapshots every few entries, so that one falls into every backup.
        let env = vec![("HOLDFAST_SNAPSHOT_LOG_BYTES".to_string(), "512".to_string())];
        let mut scenario = Scenario::start(
            Options {
                env,
                ..Options::default()
            },
            seed,
            300,
        );
        scenario.backup();
        Self {
            scenario,
            rng: Rng::new(seed),
            kills: BTreeMap::new(),
        }
    }

    /// Backs up with a trap set; returns the answer of the command line and whether the trap sprang.
    fn backup_with_trap(&mut self, watched: Who, victim: Who, phase: &str, nth: usize) -> (Output, bool) {
        let cluster = &mut self.scenario.cluster;
        let delay = Duration::from_micros(if self.rng.chance(0.5) {
            0
        } else {
            self.rng.below(8_000)
        });
        let victim_handle = match victim {
            Who::Agent => cluster.agent_process(AGENT).victim(),
            Who::Controller => cluster.controller().victim(),
        };
        let watched_process = match watched {
            Who::Agent => cluster.agent_process(AGENT),
            Who::Controller => cluster.controller(),
        };
        watched_process.arm(Trap {
            phase: phase.into(),
            nth,
            delay,
            victim: Some(victim_handle),
        });
        let mut command = cluster.command(&cluster.binaries().ctl());
        command.args(["backup", "run", SOURCE, "--wait"]);
        // The command line waits for the victim to come back, so that it must run beside us.
        let running = std::thread::spawn(move || Output::of(command));
        let sprung = wait::poll(wait::PATIENCE, || {
            let process = match watched {
                Who::Agent => cluster.agent_process(AGENT),
                Who::Controller => cluster.controller(),
            };
            if process.sprung() {
                Some(true)
            } else if running.is_finished() {
                Some(false)
            } else {
                None
            }
        })
        .expect("the trap to spring or the backup to end");
        match watched {
            Who::Agent => cluster.agent_process(AGENT).disarm(),
            Who::Controller => cluster.controller().disarm(),
        };
        if sprung {
            self.restart(victim);
        }
        (running.join().unwrap(), sprung)
    }

    fn restart(&mut self, victim: Who) {
        let cluster = &mut self.scenario.cluster;
        match victim {
            Who::Agent => cluster.start_agent(AGENT, None),
            Who::Controller => cluster.start_controller(None),
        }
    }

    fn settle(&mut self) {
        self.scenario.cluster.wait_ready();
        self.scenario.cluster.wait_connected(AGENT);
    }

    /// One kill: a changed tree, a backup that dies, and everything checked afterwards.
    fn kill_in(&mut self, watched: Who, victim: Who, phase: &str) {
        let name = format!("{victim:?} in {watched:?}'s {phase}").to_lowercase();
        for attempt in 0.. {
            self.scenario.change();
            let nth = if attempt == 0 { 1 + self.rng.index(3) } else { 1 };
            let start = std::time::Instant::now();
            let (output, sprung) = self.backup_with_trap(watched, victim, phase, nth);
            let told = start.elapsed();
            self.settle();
            eprintln!(
                "{name}: sprung {sprung}, exit code {} after {:.1} s, settled after {:.1} s: {}",
                output.code,
                told.as_secs_f64(),
                start.elapsed().as_secs_f64(),
                output.stderr.lines().last().unwrap_or_default()
            );
            let mut new = self.scenario.adopt();
            // What was acknowledged is there.
            assert!(
                output.code != 0 || new.len() == 1,
                "{name}: the backup was reported as done, and {} snapshots are new\n{}",
                new.len(),
                output.stderr
            );
            // The next run succeeds, and takes nothing away.
            self.finish_backup(&name);
            new.extend(self.scenario.adopt());
            self.scenario.assert_none_lost();
            new.iter().for_each(|id| self.scenario.assert_restores(id));
            if sprung {
                *self.kills.entry(name).or_default() += 1;
                return;
            }
            assert!(
                attempt < 5,
                "{name}: the phase was not reached in {attempt} backups"
            );
        }
    }

    /// A job that outlived its agent or controller may still run: the next one waits for its end.
    fn finish_backup(&self, name: &str) {
        let mut last = None;
        let done = wait::poll(wait::PATIENCE, || {
            let output = self.scenario.cluster.backup(SOURCE);
            let code = output.code;
            last = Some(output);
            (code == 0).then_some(())
        });
        assert!(done.is_some(), "{name}: no backup succeeds any more: {last:?}");
    }

    /// One kill while the victim starts, at a random moment.
    fn kill_at_start(&mut self, victim: Who) {
        let name = format!("{victim:?} in its start").to_lowercase();
        let moment = Duration::from_micros(self.rng.below(250_000));
        match victim {
            Who::Agent => self.scenario.cluster.kill_agent(AGENT),
            Who::Controller => self.scenario.cluster.kill_controller(),
        }
        self.restart(victim);
        wait::pause_for(moment);
        match victim {
            Who::Agent => self.scenario.cluster.kill_agent(AGENT),
            Who::Controller => self.scenario.cluster.kill_controller(),
        }
        self.restart(victim);
        self.settle();
        self.scenario.assert_none_lost();
        *self.kills.entry(name).or_default() += 1;
    }

    fn report(&self) {
        println!("kills by phase:");
        for (name, count) in &self.kills {
            println!("  {count:>3}  {name}");
        }
    }
}

fn kill_everywhere(victim: Who) {
    let per_phase = seed::count(2, 20);
    let mut run = Run::new(&format!("kill_everywhere {victim:?}"));
    for (watched, phase) in PHASES {
        for _ in 0..per_phase {
            run.kill_in(*watched, victim, phase);
        }
    }
    for _ in 0..per_phase {
        run.kill_at_start(victim);
    }
    run.scenario.assert_all_restore();
    let _ = run.scenario.cluster.ctl(["verify", "--read-data"]).ok();
    run.report();
    assert!(run.kills.values().all(|count| *count >= per_phase));
    assert_eq!(run.kills.len(), PHASES.len() + 1);
}

#[test]
fn the_agent_dies_in_every_phase() {
    kill_everywhere(Who::Agent);
}

#[test]
fn the_controller_dies_in_every_phase() {
    kill_everywhere(Who::Controller);
}
