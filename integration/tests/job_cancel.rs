//! A cancelled job leaves nothing behind, and the next one works at once.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

use holdfast_integration::{
    harness::{Cluster, Output, entries, restored_root, threads},
    seed::{self, Rng},
    tree, wait,
};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    thread::JoinHandle,
};

const AGENT: &str = "web1";
const SOURCE: &str = "web1/data";
/// At this rate what is backed up here takes minutes: every cancel comes in the middle.
const SLOW: &str = "{bandwidth: 128KiB/s}";

fn start(test: &str) -> (Cluster, PathBuf) {
    let mut cluster = Cluster::start();
    let root = cluster.dir().join("source");
    fs::create_dir_all(root.join("small")).unwrap();
    let mut rng = Rng::new(seed::of_run(test));
    let mut write = |name: &str, len: usize| {
        let mut bytes = vec![0; len];
        rng.fill(&mut bytes);
        fs::write(root.join(name), bytes).unwrap();
    };
    write("large", 40 << 20);
    (0..100).for_each(|n| write(&format!("small/{n}"), 10_000));
    cluster.add_agent(AGENT, &[&root]);
    cluster.apply_source(SOURCE, &root);
    (cluster, root)
}

/// All files below a directory.
fn files(dir: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for path in entries(dir) {
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.insert(path);
        }
    }
    found
}

/// No thread works for a job, and nothing is under way to the store.
fn wait_quiet(cluster: &Cluster) {
    let pid = cluster.agent_process(AGENT).pid();
    wait::until("threads and uploads of the cancelled job to end", || {
        let busy = [threads(pid, "backup-"), threads(pid, "restore-")].concat();
        (busy.is_empty() && cluster.uploads_under_way().is_empty()).then_some(())
    });
}

fn cancel(cluster: &Cluster, job: &str) {
    let said = cluster.ctl(["job", "cancel", job]).ok().text();
    assert_eq!(said.trim(), format!("job {job}: cancelled"));
    assert_eq!(cluster.job(job)["state"], "cancelled");
    assert!(
        cluster.job(job)["error"]
            .as_str()
            .unwrap()
            .contains("cancelled by admin/")
    );
    // Once is enough.
    let again = cluster.ctl(["job", "cancel", job]).expect_code(11);
    assert!(again.stderr.contains("is over: cancelled"), "{}", again.stderr);
}

#[test]
fn a_cancelled_backup_leaves_nothing_and_the_next_one_works() {
    let (cluster, root) = start("job_cancel");
    let _ = cluster.backup(SOURCE).ok();
    let agent_files = files(&cluster.agent(AGENT).state_dir);
    // All of it is new.
    #[expect(clippy::disallowed_methods, reason = "a source's owner syncs nothing")]
    fs::rename(root.join("large"), root.join("other")).unwrap();
    let mut bytes = fs::read(root.join("other")).unwrap();
    bytes.iter_mut().for_each(|byte| *byte ^= 0x5a);
    fs::write(root.join("other"), bytes).unwrap();
    cluster.apply_limits(SOURCE, &root, SLOW);

    let job = cluster.start_backup(SOURCE);
    let watching = cluster.ctl_beside(&["job", "watch", &job]);
    wait::until("a pack to be half sent", || {
        (!cluster.uploads_under_way().is_empty()).then_some(())
    });
    cancel(&cluster, &job);
    let watched = watching.join().unwrap().expect_code(130);
    assert!(watched.stderr.contains("was cancelled"), "{}", watched.stderr);
    wait_quiet(&cluster);
    assert_eq!(files(&cluster.agent(AGENT).state_dir), agent_files);
    let source = cluster
        .ctl(["get", "sources", SOURCE, "-o", "json"])
        .ok()
        .rows()
        .remove(0);
    assert!(source["running_job"].is_null(), "{source:#}");
    // Refused while any session is open.
    let _ = cluster.ctl(["gc"]).ok();
    assert_eq!(cluster.snapshots(SOURCE).len(), 1);

    cluster.apply_source(SOURCE, &root);
    let _ = cluster.backup(SOURCE).ok();
    assert_eq!(cluster.snapshots(SOURCE).len(), 2);
    cluster.assert_restores(SOURCE, &root, &tree::read(&root));
    let _ = cluster.ctl(["verify", "--read-data"]).ok();
}

#[test]
fn the_next_backup_may_begin_while_the_cancelled_one_ends() {
    let (cluster, root) = start("job_cancel_next");
    cluster.apply_limits(SOURCE, &root, SLOW);
    for _ in 0..3 {
        let job = cluster.start_backup(SOURCE);
        wait::until("a pack to be half sent", || {
            (!cluster.uploads_under_way().is_empty()).then_some(())
        });
        cancel(&cluster, &job);
    }
    cluster.apply_source(SOURCE, &root);
    let _ = cluster.backup(SOURCE).ok();
    cluster.assert_restores(SOURCE, &root, &tree::read(&root));
    wait_quiet(&cluster);
}

#[test]
fn a_queued_job_is_cancelled_and_never_begins() {
    let (mut cluster, root) = start("job_cancel_queued");
    cluster.kill_agent(AGENT);
    wait::until("the controller to miss the agent", || {
        (!cluster.is_connected(AGENT)).then_some(())
    });
    let job = cluster.start_backup(SOURCE);
    assert_eq!(cluster.job(&job)["state"], "queued");
    cancel(&cluster, &job);
    let _ = cluster.ctl(["job", "watch", &job]).expect_code(130);
    cluster.start_agent(AGENT, None);
    cluster.wait_connected(AGENT);
    let _ = cluster.backup(SOURCE).ok();
    assert_eq!(cluster.snapshots(SOURCE).len(), 1);
    assert_eq!(cluster.job(&job)["state"], "cancelled");
    assert!(cluster.job(&job)["started_at"].is_null());
    cluster.assert_restores(SOURCE, &root, &tree::read(&root));
}

/// A restore that has begun its large file, slow enough to be met in its middle; its job.
fn begin_restore(cluster: &Cluster, root: &Path, to: &Path) -> (JoinHandle<Output>, String) {
    let _ = cluster.backup(SOURCE).ok();
    cluster.apply_limits(SOURCE, root, "{bandwidth: 1MiB/s}");
    let restoring = cluster.ctl_beside(&["restore", SOURCE, "--agent", AGENT, "--to", to.to_str().unwrap()]);
    let large = restored_root(to, root).join("large");
    wait::until("the large file to be begun", || large.exists().then_some(()));
    let jobs = cluster.ctl(["get", "jobs", "-o", "json"]).ok().rows();
    let job = jobs.iter().find(|job| job["kind"] == "restore").unwrap();
    (restoring, job["id"].as_str().unwrap().to_string())
}

/// Whatever is there is whole, and the large file, which cannot be, is not there.
fn assert_no_half_file(root: &Path, to: &Path) {
    let restored = restored_root(to, root);
    for path in files(to) {
        let original = root.join(path.strip_prefix(&restored).unwrap());
        assert!(
            original.is_file() && fs::read(&path).unwrap() == fs::read(&original).unwrap(),
            "{} is not as it was",
            path.display()
        );
    }
    assert!(!restored.join("large").exists());
}

#[test]
fn a_cancelled_restore_leaves_no_half_written_file() {
    let (cluster, root) = start("job_cancel_restore");
    let to = cluster.dir().join("agent-restores/one");
    let (restoring, job) = begin_restore(&cluster, &root, &to);
    cancel(&cluster, &job);
    let _ = restoring.join().unwrap().expect_code(130);
    wait_quiet(&cluster);
    assert_no_half_file(&root, &to);

    cluster.apply_source(SOURCE, &root);
    let to = cluster.dir().join("agent-restores/two");
    let _ = cluster
        .ctl(["restore", SOURCE, "--agent", AGENT, "--to", to.to_str().unwrap()])
        .ok();
    tree::assert_same(
        "restore",
        &tree::read(&root),
        &tree::read(&restored_root(&to, &root)),
    );
}

#[test]
fn an_agent_that_did_not_hear_of_the_cancel_hears_of_it_later() {
    let (mut cluster, root) = start("job_cancel_away");
    let to = cluster.dir().join("agent-restores/one");
    let (restoring, job) = begin_restore(&cluster, &root, &to);
    cluster.agent_process(AGENT).suspend();
    cancel(&cluster, &job);
    let _ = restoring.join().unwrap().expect_code(130);
    // What the controller had to say goes with its process.
    cluster.kill_controller();
    cluster.start_controller(None);
    cluster.wait_ready();
    cluster.agent_process(AGENT).resume();
    wait_quiet(&cluster);
    assert_no_half_file(&root, &to);
    cluster.wait_connected(AGENT);
    assert_eq!(cluster.job(&job)["state"], "cancelled");
}

#[test]
fn jobs_that_are_over_or_unknown_are_told_apart() {
    let (cluster, _) = start("job_cancel_over");
    let job = cluster.start_backup(SOURCE);
    cluster.wait_for_job(&job, "succeeded", |job| job["state"] == "succeeded");
    let over = cluster.ctl(["job", "cancel", &job]).expect_code(11);
    assert!(over.stderr.contains("is over: succeeded"), "{}", over.stderr);
    let unknown = "01ARZ3NDEKTSV4RRFFQ69G5FAV";
    let _ = cluster.ctl(["job", "cancel", unknown]).expect_code(10);
    let _ = cluster.ctl(["job", "cancel", "nonsense"]).expect_code(2);
    assert_eq!(cluster.snapshots(SOURCE).len(), 1);
}
