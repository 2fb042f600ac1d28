//! Limits of a source hold while its job runs, change with `apply`, and are shown as they were read back. What a
//! rate amounts to in bytes per second is measured by `holdfast-limits`, not here.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

use holdfast_core::limits::{PACK_TARGET, UPLOADS_IN_FLIGHT};
use holdfast_integration::{
    harness::{Cluster, Options, Process, Thread, restored_root, threads},
    seed::{self, Rng},
    tree, wait,
};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

const AGENT: &str = "web1";
const SOURCE: &str = "web1/data";
const WORKERS: usize = 2;
/// Workers, and those that send what they fill.
const THREADS: usize = WORKERS + UPLOADS_IN_FLIGHT;
/// The slowest rate there is: at it, what the tests back up would take hours.
const CRAWL: &str = "1KiB/s";

/// A cluster with a connected agent and a source of some MiB that do not compress.
fn start(test: &str) -> (Cluster, PathBuf) {
    let mut cluster = Cluster::start_with(Options {
        pipeline: vec![("workers".into(), WORKERS as i64)],
        ..Options::default()
    });
    let root = cluster.dir().join("source");
    fs::create_dir_all(root.join("small")).unwrap();
    let mut rng = Rng::new(seed::of_run(test));
    let mut write = |name: &str, len: usize| {
        let mut bytes = vec![0; len];
        rng.fill(&mut bytes);
        fs::write(root.join(name), bytes).unwrap();
    };
    // More than may be under way and filled: workers are there until something was sent.
    write("large", (UPLOADS_IN_FLIGHT + 2) * PACK_TARGET);
    (0..50).for_each(|n| write(&format!("small/{n}"), 10_000));
    cluster.join_agent(AGENT, &[&root]);
    (cluster, root)
}

fn threads_of(pid: u32) -> Vec<Thread> {
    [threads(pid, "backup-"), threads(pid, "send-")].concat()
}

/// What the kernel says of a thread's I/O class, by a tool that is not ours.
fn io_class(thread: &Thread) -> String {
    let output = Command::new("ionice")
        .args(["-p", &thread.id.to_string()])
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).trim().to_string()
}

fn assert_threads(pid: u32, nice: i32, io: &str) {
    let threads = threads_of(pid);
    assert_eq!(threads.len(), THREADS, "{threads:?}");
    for thread in threads {
        assert_eq!(
            (thread.nice, io_class(&thread)),
            (nice, io.to_string()),
            "{thread:?}"
        );
    }
}

fn has_cap_sys_nice() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let caps = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .unwrap();
    u64::from_str_radix(caps.trim(), 16).unwrap() >> 23 & 1 == 1
}

fn warns(job: &Value, of: &str) -> bool {
    let warnings = job["limits"]["warnings"].as_array().unwrap();
    warnings
        .iter()
        .any(|warning| warning.as_str().unwrap().contains(of))
}

/// Lifts all limits: the run ends, and its snapshot is good.
fn lift_and_end(cluster: &Cluster, root: &Path, job: &str) -> Value {
    cluster.apply_source(SOURCE, root);
    let ended = cluster.wait_for_job(job, "succeeded", |job| job["state"] == "succeeded");
    cluster.assert_restores(SOURCE, root, &tree::read(root));
    ended
}

#[test]
fn limits_of_a_running_job_change_with_apply_and_are_read_back() {
    let (mut cluster, root) = start("limits_hold");
    cluster.start_agent(AGENT, None);
    cluster.wait_connected(AGENT);
    cluster.apply_limits(
        SOURCE,
        &root,
        &format!("{{bandwidth: {CRAWL}, cpu_weight: 50, io_class: best-effort, io_priority: 6}}"),
    );
    let pid = cluster.agent_process(AGENT).pid();
    let job = cluster.start_backup(SOURCE);
    let running = cluster.wait_for_job(&job, "at work", |job| job["limits"]["threads"] == THREADS);
    let limits = &running["limits"];
    assert_eq!(
        (&limits["bandwidth"], &limits["read_rate"]),
        (&1024.into(), &Value::Null)
    );
    assert_eq!(
        (&limits["nice"], &limits["io_class"]),
        (&3.into(), &"best-effort".into())
    );
    assert_eq!(limits["warnings"], Value::Array(Vec::new()));
    assert_threads(pid, 3, "best-effort: prio 6");

    cluster.apply_limits(
        SOURCE,
        &root,
        "{bandwidth: 2KiB/s, read_rate: 3KiB/s, cpu_weight: 1, io_class: idle}",
    );
    let changed = cluster.wait_for_job(&job, "slower", |job| job["limits"]["nice"] == 19);
    let limits = &changed["limits"];
    assert_eq!(
        (&limits["bandwidth"], &limits["read_rate"]),
        (&2048.into(), &3072.into())
    );
    assert_threads(pid, 19, "idle");
    assert_eq!(changed["state"], "running");

    cluster.apply_limits(
        SOURCE,
        &root,
        &format!("{{bandwidth: {CRAWL}, cpu_weight: 100, io_class: none}}"),
    );
    let changed = cluster.wait_for_job(&job, "as before", |job| job["limits"]["io_class"] == "none");
    assert_eq!(changed["limits"]["bandwidth"], 1024);
    if has_cap_sys_nice() {
        assert_eq!(
            (&changed["limits"]["nice"], warns(&changed, "")),
            (&0.into(), false)
        );
    } else {
        assert!(changed["limits"]["nice"] == 19 && warns(&changed, "CAP_SYS_NICE"));
    }
    assert_eq!(changed["state"], "running");
    let ended = lift_and_end(&cluster, &root, &job);
    assert_eq!(
        ended["limits"]["bandwidth"],
        Value::Null,
        "shown after the end too"
    );
}

#[test]
fn a_run_that_may_hardly_read_ends_when_the_limit_is_lifted() {
    let (mut cluster, root) = start("limits_hold_read");
    cluster.start_agent(AGENT, None);
    cluster.wait_connected(AGENT);
    cluster.apply_limits(SOURCE, &root, &format!("{{read_rate: {CRAWL}}}"));
    let job = cluster.start_backup(SOURCE);
    cluster.wait_for_job(&job, "limited", |job| job["limits"]["read_rate"] == 1024);
    assert_eq!(cluster.job(&job)["state"], "running");
    assert_eq!(cluster.pack_bytes(), 0, "not even a pack can be full yet");
    lift_and_end(&cluster, &root, &job);
}

#[test]
fn threads_that_may_not_be_raised_are_reported() {
    let (cluster, root) = start("limits_hold_refused");
    let agent = cluster.binaries().agent();
    let program = if rustix::process::geteuid().is_root() {
        "setpriv".into()
    } else {
        agent.clone()
    };
    let mut command = cluster.command(&program);
    if program != agent {
        command.args(["--bounding-set", "-sys_nice", "--"]).arg(&agent);
    }
    command
        .args(["run", "--config"])
        .arg(&cluster.agent(AGENT).config);
    let process = Process::start(AGENT, command, None);
    cluster.wait_connected(AGENT);

    cluster.apply_limits(SOURCE, &root, &format!("{{bandwidth: {CRAWL}, cpu_weight: 11}}"));
    let job = cluster.start_backup(SOURCE);
    cluster.wait_for_job(&job, "at work", |job| {
        job["limits"]["threads"] == THREADS && job["limits"]["nice"] == 10
    });
    let watching = cluster.ctl_beside(&["job", "watch", &job]);
    cluster.apply_limits(SOURCE, &root, &format!("{{bandwidth: {CRAWL}, cpu_weight: 100}}"));
    let refused = cluster.wait_for_job(&job, "refused", |job| warns(job, "CAP_SYS_NICE"));
    assert_eq!(
        refused["limits"]["nice"], 10,
        "shown as it is, not as it was asked for"
    );
    let ended = lift_and_end(&cluster, &root, &job);
    assert!(warns(&ended, "nice 10"), "{ended:#}");
    let watched = watching.join().unwrap().ok();
    assert!(watched.stderr.contains("warning: limits:"), "{}", watched.stderr);
    assert!(process.exited().is_none());
}

#[test]
fn bad_limits_are_refused_before_anything_changes() {
    let (cluster, root) = start("limits_hold_bad");
    let file = cluster.dir().join("bad.yaml");
    for (limits, why) in [
        ("{bandwidth: 0}", "leave it out"),
        ("{bandwidth: 10Mbit/s}", "not a unit"),
        ("{cpu_weight: 101}", "from 1 to 100"),
        ("{io_class: realtime}", "best-effort"),
        ("{bandwith: 1MiB/s}", "bandwidth"),
    ] {
        let document = holdfast_integration::harness::source_document(SOURCE, &root, &[]);
        fs::write(&file, format!("{document}limits: {limits}\n")).unwrap();
        let output = cluster
            .ctl(["apply", "-f", file.to_str().unwrap()])
            .expect_code(2);
        assert!(output.stderr.contains(why), "{limits}: {}", output.stderr);
    }
    let sources = cluster.ctl(["get", "sources", "-o", "json"]).ok().rows();
    assert!(sources.is_empty());
}

#[test]
fn a_restore_onto_the_agents_host_keeps_to_the_bandwidth_too() {
    let (mut cluster, root) = start("limits_hold_restore");
    cluster.start_agent(AGENT, None);
    cluster.wait_connected(AGENT);
    cluster.apply_source(SOURCE, &root);
    let _ = cluster.backup(SOURCE).ok();
    cluster.apply_limits(SOURCE, &root, &format!("{{bandwidth: {CRAWL}}}"));
    let to = cluster.dir().join("agent-restores/one");
    let restoring = cluster.ctl_beside(&["restore", SOURCE, "--agent", AGENT, "--to", to.to_str().unwrap()]);
    let job = wait::until("the restore to begin", || {
        let jobs = cluster.ctl(["get", "jobs", "-o", "json"]).ok().rows();
        let job = jobs.into_iter().find(|job| job["kind"] == "restore");
        job.map(|job| job["id"].as_str().unwrap().to_string())
    });
    cluster.wait_for_job(&job, "limited", |job| job["limits"]["bandwidth"] == 1024);
    assert_eq!(cluster.job(&job)["state"], "running");
    cluster.apply_source(SOURCE, &root);
    let _ = restoring.join().unwrap().ok();
    tree::assert_same(
        "the restore",
        &tree::read(&root),
        &tree::read(&restored_root(&to, &root)),
    );
}
