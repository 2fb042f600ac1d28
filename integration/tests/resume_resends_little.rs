//! An interrupted run sends little again: what it stored counts, and the next run sends the rest.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

use holdfast_core::limits::{CHUNK_MAX, PACK_TARGET, UPLOADS_IN_FLIGHT};
use holdfast_integration::{
    harness::{Cluster, Options, Trap},
    seed::{self, Rng},
    tree, wait,
};
use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

const AGENT: &str = "web1";
const SOURCE: &str = "web1/data";
const WORKERS: usize = 2;
/// Packs that an uninterrupted run sends, about.
const PACKS: usize = 10;

/// Files of several sizes, small and large, that do not compress: what is sent is what is read.
fn make(root: &Path, seed: u64) {
    fs::create_dir_all(root.join("small")).unwrap();
    let mut rng = Rng::new(seed);
    let mut write = |name: PathBuf, len: usize| {
        let mut file = fs::File::create(root.join(name)).unwrap();
        let mut bytes = vec![0; 1 << 20];
        for at in (0..len).step_by(bytes.len()) {
            rng.fill(&mut bytes);
            file.write_all(&bytes[..bytes.len().min(len - at)]).unwrap();
        }
    };
    write("large".into(), (PACKS - 4) * PACK_TARGET);
    (0..4).for_each(|n| write(format!("medium-{n}").into(), PACK_TARGET / 2));
    (0..2000).for_each(|n| write(format!("small/{n}").into(), PACK_TARGET / 1000));
}

fn start(root: &Path) -> Cluster {
    let mut cluster = Cluster::start_with(Options {
        pipeline: vec![("workers".into(), WORKERS as i64)],
        ..Options::default()
    });
    cluster.add_agent(AGENT, &[root]);
    cluster.apply_source(SOURCE, root);
    cluster
}

/// Bytes that the last attempt of a job sent, by its own count.
fn sent_by(cluster: &Cluster, job: &str) -> u64 {
    let ended = cluster.wait_for_job(job, "succeeded", |job| job["state"] == "succeeded");
    ended["stats"]["bytes_stored"].as_u64().unwrap()
}

#[test]
fn a_killed_run_is_taken_up_where_it_was() {
    let seed = seed::of_run("resume_resends_little");
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("source");
    make(&root, seed);

    let uninterrupted = {
        let cluster = start(&root);
        let job = cluster.start_backup(SOURCE);
        sent_by(&cluster, &job)
    };
    assert!(
        uninterrupted > ((PACKS - 2) * PACK_TARGET) as u64,
        "{uninterrupted}"
    );

    let mut cluster = start(&root);
    // Killed when it begins to send a pack in the middle of the run.
    let nth = PACKS / 2 + Rng::new(seed).index(3);
    cluster.agent_process(AGENT).arm(Trap {
        nth,
        ..Trap::at("upload")
    });
    let job = cluster.start_backup(SOURCE);
    wait::until("the agent to be killed", || cluster.agent_process(AGENT).exited());
    assert!(cluster.agent_process(AGENT).sprung());
    // What is on its way into the store when its sender dies is given up.
    wait::until("the half-sent pack to be removed", || {
        cluster.uploads_under_way().is_empty().then_some(())
    });
    let kept = cluster.pack_bytes();
    cluster.start_agent(AGENT, None);
    let second = sent_by(&cluster, &job);
    assert_eq!(cluster.job(&job)["attempt"], 2);

    let pack = (PACK_TARGET + CHUNK_MAX) as u64;
    // The first attempt sent what was kept and, at most, the packs that were under way.
    let first = kept + UPLOADS_IN_FLIGHT as u64 * pack;
    let again = (first + second).saturating_sub(uninterrupted);
    println!(
        "uninterrupted {uninterrupted}, kept of the first attempt {kept}, second attempt {second}: sent again at most {again}"
    );
    assert!(kept > 0, "the kill came before anything was stored");
    assert!(
        again <= 2 * WORKERS as u64 * pack,
        "{again} bytes were sent again, more than two packs for each of {WORKERS} workers"
    );
    // And what was stored before the kill was not stored twice.
    assert!(
        second < uninterrupted - kept / 2,
        "{second} of {uninterrupted}, {kept} kept"
    );
    cluster.assert_restores(SOURCE, &root, &tree::read(&root));
}
