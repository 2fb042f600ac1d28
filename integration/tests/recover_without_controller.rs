//! Invariant 10: one site and the recovery kit restore all, with no controller. And nothing that was forged
//! is believed.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

use holdfast_integration::{
    harness::{Cluster, Options, Output, restored_root},
    scenario::{AGENT, Scenario},
    seed, tree,
};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// `recover` as on a machine that has nothing but the store and the kit.
fn recover(cluster: &Cluster, store: &Path, kit: &Path, args: &[&str]) -> Output {
    let mut command = cluster.command(&cluster.binaries().ctl());
    command
        .env("HOLDFAST_CONFIG_DIR", cluster.dir().join("nothing-here"))
        .args(["recover", "--from"])
        .arg(format!("file://{}", store.display()))
        .arg("--kit")
        .arg(kit)
        .args(args);
    Output::of(command)
}

/// A scenario with two snapshots, whose controller and agent are gone for good.
fn lost(name: &str) -> (Scenario, Vec<String>) {
    let mut scenario = Scenario::start(Options::default(), seed::of_run(name), 200);
    let first = scenario.backup();
    scenario.change();
    let second = scenario.backup();
    scenario.cluster.kill_agent(AGENT);
    scenario.cluster.kill_controller();
    fs::remove_dir_all(scenario.cluster.controller_dir()).unwrap();
    fs::remove_dir_all(scenario.cluster.config_dir()).unwrap();
    fs::remove_dir_all(&scenario.cluster.agent(AGENT).state_dir).unwrap();
    (scenario, vec![first, second])
}

/// The only files below `dir`, which must exist.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())) {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            found.extend(files(&entry.path()));
        } else {
            found.push(entry.path());
        }
    }
    found.sort();
    found
}

#[test]
fn store_and_kit_alone_bring_every_snapshot_back() {
    let (scenario, ids) = lost("recover");
    let (cluster, store) = (&scenario.cluster, scenario.cluster.store_dir());
    let list = recover(cluster, &store, &cluster.kit(), &["--list", "-o", "json"]).ok();
    for id in &ids {
        assert!(
            list.text().contains(id.as_str()),
            "snapshot {id} is not listed: {}",
            list.text()
        );
    }
    for id in &ids {
        let to = cluster.dir().join(format!("recovered-{id}"));
        let _ = recover(
            cluster,
            &store,
            &cluster.kit(),
            &[id, "--to", to.to_str().unwrap()],
        )
        .ok();
        let root = restored_root(&to, scenario.root());
        tree::assert_same(id, scenario.expected(id), &tree::read(&root));
    }
}

#[test]
fn roots_and_keys_of_another_cluster_are_refused() {
    let (scenario, ids) = lost("forged");
    let (other, other_ids) = lost("forger");
    let store = scenario.cluster.store_dir();
    let kit = scenario.cluster.kit();
    let to = scenario.cluster.dir().join("forged");
    let try_it = |id: &str| {
        let _ = fs::remove_dir_all(&to);
        let output = recover(
            &scenario.cluster,
            &store,
            &kit,
            &[id, "--to", to.to_str().unwrap()],
        );
        assert_ne!(output.code, 0, "something forged was believed: {}", output.text());
        assert!(!output.stderr.trim().is_empty(), "refused without a reason");
        let left = if to.exists() { files(&to) } else { Vec::new() };
        assert!(
            left.is_empty(),
            "refused, and yet {} files were written",
            left.len()
        );
    };

    // A root that another cluster's agent signed, in the place of ours.
    let root_of = |store: &Path, id: &str| {
        files(&store.join("roots"))
            .into_iter()
            .find(|path| path.file_name().unwrap().to_string_lossy().starts_with(id))
            .unwrap_or_else(|| panic!("no root object of snapshot {id}"))
    };
    let ours = root_of(&store, &ids[1]);
    let theirs = fs::read(root_of(&other.cluster.store_dir(), &other_ids[1])).unwrap();
    let good = fs::read(&ours).unwrap();
    replace(&ours, &theirs);
    try_it(&ids[1]);
    // An older root of our own, passed off as a newer one.
    replace(&ours, &fs::read(root_of(&store, &ids[0])).unwrap());
    try_it(&ids[1]);
    // One bit of the signature.
    let mut flipped = good.clone();
    *flipped.last_mut().unwrap() ^= 1;
    replace(&ours, &flipped);
    try_it(&ids[1]);
    replace(&ours, &good);

    // A key object that another cluster's admin signed.
    let our_keys = files(&store.join("keys"));
    let their_key = fs::read(&files(&other.cluster.store_dir().join("keys"))[0]).unwrap();
    let good_keys: Vec<_> = our_keys.iter().map(|path| fs::read(path).unwrap()).collect();
    our_keys.iter().for_each(|path| replace(path, &their_key));
    try_it(&ids[1]);
    our_keys
        .iter()
        .zip(&good_keys)
        .for_each(|(path, good)| replace(path, good));

    // Another cluster's kit opens nothing.
    let output = recover(
        &scenario.cluster,
        &store,
        &other.cluster.kit(),
        &[&ids[1], "--to", to.to_str().unwrap()],
    );
    assert_ne!(output.code, 0, "a foreign kit opened the store");
    // And with everything as it was, it works: the refusals above had the right cause.
    let _ = fs::remove_dir_all(&to);
    let _ = recover(
        &scenario.cluster,
        &store,
        &kit,
        &[&ids[1], "--to", to.to_str().unwrap()],
    )
    .ok();
    tree::assert_same(
        "restored",
        scenario.expected(&ids[1]),
        &tree::read(&restored_root(&to, scenario.root())),
    );
}

fn replace(path: &Path, bytes: &[u8]) {
    fs::remove_file(path).unwrap();
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_store_without_its_marker_is_offline_and_never_empty() {
    let (scenario, _) = lost("marker");
    let store = scenario.cluster.store_dir();
    fs::remove_file(store.join("holdfast-store.toml")).unwrap();
    let output = recover(&scenario.cluster, &store, &scenario.cluster.kit(), &["--list"]);
    assert_ne!(
        output.code, 0,
        "a store without its marker was read as an empty one"
    );
}
