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
    harness::{Cluster, Options, Process, restored_root},
    seed, wait,
};
use std::{
    fs::{self, File},
    path::Path,
    process::Stdio,
};

/// What an agent may take, whatever it backs up: the design's budget.
const AGENT_MAX: u64 = 128 << 20;
/// A controller's with one agent: packs in flight, windows, caches of catalog and index.
const CONTROLLER_MAX: u64 = 256 << 20;
/// The command line's while it restores: content that is on its way, 64 MiB, and what holds it.
const RESTORE_MAX: u64 = 256 << 20;

/// The peak of a process, reset by [`reset`].
fn peak(process: &Process) -> u64 {
    peak_of(process.pid()).unwrap()
}

fn peak_of(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    Some(line.split_ascii_whitespace().nth(1)?.parse::<u64>().ok()? << 10)
}

fn reset(process: &Process) {
    fs::write(format!("/proc/{}/clear_refs", process.pid()), "5").unwrap();
}

/// Backs up and looks at the peaks meanwhile.
fn back_up(cluster: &Cluster, run: &str) {
    reset(cluster.agent_process("host"));
    reset(cluster.controller());
    let _ = cluster.backup("host/all").ok();
    check(cluster, run);
}

fn check(cluster: &Cluster, run: &str) {
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

/// Restores with further arguments and looks at the peak of the command line, too.
fn restore(cluster: &Cluster, to: &Path, more: &[&str]) {
    reset(cluster.controller());
    let mut command = cluster.command(&cluster.binaries().ctl());
    command.args(["restore", "host/all", "--to"]).arg(to).args(more);
    command.stdout(Stdio::null());
    let mut child = command.spawn().unwrap();
    let mut most = 0;
    // The last look is a little before the end: peaks only grow, so it misses little.
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        most = most.max(peak_of(child.id()).unwrap_or(0));
        wait::pause();
    };
    println!("restore {more:?}: command line {} MiB", most >> 20);
    assert!(status.success());
    assert!(most <= RESTORE_MAX, "the restore took {} MiB", most >> 20);
    check(cluster, "restore");
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
    cluster.add_agent("host", &[&root]);
    cluster.apply_source("host/all", &root);
    for run in ["first", "unchanged"] {
        back_up(&cluster, run);
    }
    restore(&cluster, &cluster.dir().join("restored"), &[]);
}

#[test]
fn very_many_files_stay_within_the_bound() {
    let mut cluster = Cluster::start_with(Options {
        // Not a line for each directory.
        log: Some("info".into()),
        ..Options::default()
    });
    let root = cluster.dir().join("source");
    let flat = root.join("flat");
    fs::create_dir_all(&flat).unwrap();
    let count = seed::count(20_000, 1_000_000);
    (0..count).for_each(|n| drop(File::create(flat.join(n.to_string())).unwrap()));
    for dir in 0..count / 100 {
        let dir = root.join(format!("tree/{}/{dir}", dir % 100));
        fs::create_dir_all(&dir).unwrap();
        (0..100).for_each(|n| drop(File::create(dir.join(n.to_string())).unwrap()));
    }
    cluster.add_agent("host", &[&root]);
    cluster.apply_source("host/all", &root);
    back_up(&cluster, "first");
    back_up(&cluster, "unchanged");
    let to = cluster.dir().join("restored");
    restore(&cluster, &to, &[]);
    for n in (0..count).step_by(97) {
        fs::remove_file(flat.join(n.to_string())).unwrap();
        fs::write(flat.join(format!("{n}-new")), n.to_string()).unwrap();
    }
    back_up(&cluster, "changed");
    restore(&cluster, &to, &["--in-place", "--delete"]);
    let restored = restored_root(&to, &flat);
    assert_eq!(fs::read_dir(restored).unwrap().count(), count);
}
