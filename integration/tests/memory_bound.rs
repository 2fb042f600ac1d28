//! Invariant 12: memory stays within its configured bound, whatever the data.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

use holdfast_integration::{
    dataset::{
        image,
        tree::{Maker, Spec},
    },
    harness::{Cluster, Process},
    seed,
};
use std::fs;

/// What an agent may take. The design's budget is 128 MiB; the bench saw up to 112 MiB, but a directory's
/// entries are held as a whole, so that one of very many files takes more. This bound tells growth with the data.
const AGENT_MAX: u64 = 256 << 20;
/// A controller's with one agent: packs in flight, windows, caches of catalog and index.
const CONTROLLER_MAX: u64 = 384 << 20;

/// The peak of a process, reset by [`reset`].
fn peak(process: &Process) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", process.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_ascii_whitespace()
        .nth(1)
        .unwrap()
        .parse::<u64>()
        .unwrap()
        << 10
}

fn reset(process: &Process) {
    fs::write(format!("/proc/{}/clear_refs", process.pid()), "5").unwrap();
}

#[test]
fn large_files_and_many_files_stay_within_the_bound() {
    let seed = seed::of_run("memory_bound");
    let mut cluster = Cluster::start();
    let root = cluster.dir().join("source");
    fs::create_dir(&root).unwrap();
    let files = seed::count(10_000, 160_000);
    Maker::new(Spec { seed, files }).make(&root.join("tree")).unwrap();
    let pages = (seed::count(512, 4096) << 20) / image::PAGE;
    image::make(
        image::Spec {
            seed,
            pages: pages as u64,
        },
        &root.join("image"),
    )
    .unwrap();
    fs::create_dir(root.join("flat")).unwrap();
    for number in 0..seed::count(20_000, 200_000) {
        fs::write(root.join(format!("flat/{number}")), b"").unwrap();
    }
    cluster.add_agent("host", &[&root]);
    cluster.apply_source("host/all", &root);
    for run in ["first", "unchanged"] {
        reset(cluster.agent_process("host"));
        reset(cluster.controller());
        let _ = cluster.backup("host/all").ok();
        let (agent, controller) = (peak(cluster.agent_process("host")), peak(cluster.controller()));
        println!(
            "{run}: agent {} MiB, controller {} MiB",
            agent >> 20,
            controller >> 20
        );
        assert!(
            agent <= AGENT_MAX,
            "the agent took {} MiB in the {run} run",
            agent >> 20
        );
        assert!(
            controller <= CONTROLLER_MAX,
            "the controller took {} MiB in the {run} run",
            controller >> 20
        );
    }
    reset(cluster.controller());
    let to = cluster.dir().join("restored");
    let _ = cluster.restore("host/all", &to).ok();
    assert!(
        peak(cluster.controller()) <= CONTROLLER_MAX,
        "a restore passed the bound"
    );
}
