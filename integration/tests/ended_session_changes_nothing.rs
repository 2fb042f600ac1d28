//! Invariant 13: a session whose lease ended changes nothing. An agent sleeps through its lease and wakes.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

use holdfast_core::limits::LEASE_TTL;
use holdfast_integration::{
    harness::{Options, Output},
    scenario::{AGENT, SOURCE, Scenario},
    seed, wait,
};
use std::time::Duration;

#[test]
fn an_agent_that_slept_through_its_lease_does_not_commit() {
    let mut scenario = Scenario::start(Options::default(), seed::of_run("ended_session"), 400);
    scenario.backup();
    scenario.change();
    let agent = scenario.cluster.agent_process(AGENT);
    let mark = agent.mark();
    let mut command = scenario.cluster.command(&scenario.cluster.binaries().ctl());
    command.args(["backup", "run", SOURCE, "--wait"]);
    let running = std::thread::spawn(move || Output::of(command));
    agent.wait_for_phase(mark, "walk");
    agent.suspend();
    // The lease is the leader's; it ends on its own clock.
    let controller = scenario.cluster.controller();
    let ended = wait::poll(LEASE_TTL + Duration::from_secs(90), || {
        let jobs = scenario.cluster.ctl(["get", "jobs", "-o", "json"]).ok().rows();
        let live = jobs
            .iter()
            .any(|job| matches!(job["state"].as_str(), Some("running" | "offered")));
        (!live).then_some(())
    });
    assert!(
        ended.is_some(),
        "the session of a sleeping agent never ends\n{}",
        controller.tail(20)
    );
    let after_end = scenario.cluster.snapshots(SOURCE).len();
    agent.resume();
    let output = running.join().unwrap();
    scenario.cluster.wait_connected(AGENT);
    let new = scenario.adopt();
    // A retry may have made a snapshot of its own; the slept run itself must not have.
    assert!(
        output.code != 0 || new.len() == 1,
        "acknowledged without a snapshot: {output:?}"
    );
    assert!(new.len() <= 1 && after_end == 1);
    let done = wait::poll(wait::PATIENCE, || {
        (scenario.cluster.backup(SOURCE).code == 0).then_some(())
    });
    assert!(done.is_some(), "no backup succeeds after it");
    scenario.adopt();
    scenario.assert_all_restore();
}
