//! Invariant 1: a visible snapshot restores bit for bit. Real trees, odd trees, every state of a changing
//! tree, and parts of one.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

use holdfast_integration::{
    dataset::tree::{Maker, Spec},
    harness::{Cluster, Options, restored_root},
    scenario::Scenario,
    seed, tree,
};
use std::{
    ffi::{OsStr, OsString},
    fs::{self, File},
    os::unix::{
        ffi::{OsStrExt as _, OsStringExt as _},
        fs::{FileExt as _, PermissionsExt as _, symlink},
    },
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

/// Numbers of a source's newest run.
fn stats(cluster: &Cluster, source: &str) -> serde_json::Value {
    let rows = cluster.ctl(["get", "snapshots", "-o", "json"]).ok().rows();
    rows.iter()
        .find(|row| row["source"] == source)
        .expect("a snapshot")["stats"]
        .clone()
}

#[test]
fn a_real_tree_goes_in_and_comes_back_and_the_second_run_sends_only_changes() {
    let root =
        std::env::var_os("HOLDFAST_REAL_TREE").map_or_else(|| PathBuf::from("/usr/share"), PathBuf::from);
    let mut cluster = Cluster::start();
    cluster.add_agent("host", &[&root]);
    cluster.apply_source("host/real", &root);
    let before = tree::read(&root);
    let _ = cluster.backup("host/real").ok();
    cluster.assert_restores("host/real", &root, &before);
    assert_eq!(before, tree::read(&root), "the backup changed its source");

    let first = stats(&cluster, "host/real");
    let _ = cluster.backup("host/real").ok();
    let second = stats(&cluster, "host/real");
    let number = |stats: &serde_json::Value, key: &str| stats[key].as_u64().expect("a number");
    assert_eq!(number(&second, "files_unchanged"), number(&first, "files"));
    assert_eq!(number(&second, "bytes_read"), 0);
    assert!(
        number(&second, "bytes_stored") < 100_000,
        "nothing changed, and {} bytes were sent",
        number(&second, "bytes_stored")
    );
    cluster.assert_restores("host/real", &root, &before);
}

#[test]
fn a_large_tree_of_source_code_goes_in_and_comes_back() {
    let seed = seed::of_run("a_large_tree_of_source_code");
    let mut cluster = Cluster::start();
    let root = cluster.dir().join("source");
    let files = seed::count(20_000, 160_000);
    let made = Maker::new(Spec { seed, files }).make(&root).unwrap();
    eprintln!("{} files, {} MB", made.files, made.bytes / 1_000_000);
    cluster.add_agent("host", &[&root]);
    cluster.apply_source("host/code", &root);
    let before = tree::read(&root);
    let _ = cluster.backup("host/code").ok();
    cluster.assert_restores("host/code", &root, &before);
}

#[test]
fn every_state_of_a_changing_tree_comes_back() {
    let mut scenario = Scenario::start(Options::default(), seed::of_run("every_state"), 400);
    scenario.backup();
    for _ in 0..4 {
        scenario.change();
        scenario.backup();
    }
    // A restart forgets nothing.
    scenario.cluster.stop_controller();
    scenario.cluster.start_controller(None);
    scenario.cluster.wait_ready();
    scenario.assert_all_restore();
}

/// Names, types, modes, times and sizes that break what is not careful.
fn make_odd_tree(root: &Path) {
    fs::create_dir(root).unwrap();
    let at = |name: &[u8]| root.join(OsStr::from_bytes(name));
    for name in [
        &b"plain"[..],
        b" leading and trailing ",
        b"line\nbreak",
        b"not-utf8-\xff\xfe",
        b"-rf",
        b"quote'\"\\`$(x)",
        "Stra\u{df}e \u{1f30a}".as_bytes(),
        &[b'n'; 255],
    ] {
        fs::write(at(name), name).unwrap();
    }
    for mode in [0o000, 0o400, 0o4755, 0o2711, 0o1777, 0o777] {
        let path = root.join(format!("mode-{mode:o}"));
        fs::write(&path, b"x").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }
    fs::create_dir(root.join("empty-dir")).unwrap();
    fs::set_permissions(root.join("empty-dir"), fs::Permissions::from_mode(0o1777)).unwrap();
    fs::create_dir(root.join("many")).unwrap();
    for number in 0..5_000 {
        fs::write(root.join(format!("many/{number}")), format!("{}", number % 100)).unwrap();
    }
    let mut deep = root.join("deep");
    for level in 0..200 {
        fs::create_dir(&deep).unwrap();
        deep.push(format!("d{level}"));
    }
    fs::write(&deep, b"bottom").unwrap();
    let mut rng = seed::Rng::new(1);
    for size in [
        0,
        1,
        4095,
        4096,
        128 << 10,
        (128 << 10) + 1,
        1 << 20,
        (4 << 20) - 1,
        4 << 20,
        (4 << 20) + 1,
        9 << 20,
    ] {
        let mut bytes = vec![0; size];
        rng.fill(&mut bytes);
        fs::write(root.join(format!("random-{size}")), &bytes).unwrap();
        fs::write(root.join(format!("zero-{size}")), vec![0; size]).unwrap();
    }
    let sparse = File::create(root.join("sparse")).unwrap();
    sparse.set_len(50 << 20).unwrap();
    sparse.write_all_at(b"island", 30 << 20).unwrap();
    symlink("plain", root.join("link")).unwrap();
    symlink("/nonexistent/absolute", root.join("dangling")).unwrap();
    symlink(
        OsString::from_vec(b"target-\xff".to_vec()),
        root.join("link-to-bytes"),
    )
    .unwrap();
    symlink("empty-dir", root.join("link-to-dir")).unwrap();
    symlink("..", root.join("link-up")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        root.join("fifo"),
        rustix::fs::FileType::Fifo,
        0o640.into(),
        0,
    )
    .unwrap();
    for (name, time) in [
        ("past", SystemTime::UNIX_EPOCH - Duration::new(86_400, 5)),
        ("epoch", SystemTime::UNIX_EPOCH),
        (
            "future",
            SystemTime::UNIX_EPOCH + Duration::new(4_102_444_800, 999_999_999),
        ),
    ] {
        fs::write(root.join(name), name).unwrap();
        File::options()
            .write(true)
            .open(root.join(name))
            .unwrap()
            .set_modified(time)
            .unwrap();
    }
    File::open(root.join("many"))
        .unwrap()
        .set_modified(SystemTime::UNIX_EPOCH + Duration::from_nanos(1))
        .unwrap();
}

#[test]
fn an_odd_tree_comes_back_as_it_was() {
    let mut cluster = Cluster::start();
    let root = cluster.dir().join("odd");
    make_odd_tree(&root);
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::lchown(root.join("plain"), Some(12_345), Some(54_321)).unwrap();
        std::os::unix::fs::lchown(root.join("link"), Some(1), Some(2)).unwrap();
    } else {
        // Only root reads a file that nobody may read.
        fs::remove_file(root.join("mode-0")).unwrap();
    }
    cluster.add_agent("host", &[&root]);
    cluster.apply_source("host/odd", &root);
    let before = tree::read(&root);
    let _ = cluster.backup("host/odd").ok();
    cluster.assert_restores("host/odd", &root, &before);
    assert_eq!(before, tree::read(&root), "the backup changed its source");
}

#[test]
fn a_part_of_a_snapshot_comes_back_alone() {
    let mut scenario = Scenario::start(Options::default(), seed::of_run("a_part"), 200);
    fs::create_dir_all(scenario.root().join("wanted/inner")).unwrap();
    fs::write(scenario.root().join("wanted/inner/file"), b"this one").unwrap();
    scenario.look();
    let id = scenario.backup();
    let cluster = &scenario.cluster;
    let to = cluster.dir().join("part");
    let part = scenario
        .root()
        .join("wanted")
        .strip_prefix("/")
        .unwrap()
        .to_path_buf();
    let _ = cluster
        .ctl([
            OsStr::new("restore"),
            OsStr::new(&format!("web1/data@{id}")),
            OsStr::new("--to"),
            to.as_os_str(),
            OsStr::new("--path"),
            part.as_os_str(),
        ])
        .ok();
    let restored = tree::read(&restored_root(&to, scenario.root()));
    let names: Vec<_> = restored.keys().filter(|name| !name.is_empty()).cloned().collect();
    assert_eq!(
        names,
        [
            b"wanted".to_vec(),
            b"wanted/inner".to_vec(),
            b"wanted/inner/file".to_vec()
        ]
    );
    let expected = scenario.expected(&id);
    for name in names {
        assert_eq!(restored[&name], expected[&name]);
    }
}

#[test]
fn a_target_that_holds_something_is_left_alone_unless_asked() {
    let mut scenario = Scenario::start(Options::default(), seed::of_run("a_target"), 50);
    scenario.backup();
    let to = scenario.cluster.dir().join("occupied");
    fs::create_dir(&to).unwrap();
    fs::write(to.join("mine"), b"precious").unwrap();
    let output = scenario.cluster.restore("web1/data", &to);
    assert_ne!(
        output.code, 0,
        "a restore went into a directory that was not empty"
    );
    assert_eq!(fs::read_dir(&to).unwrap().count(), 1);
    assert_eq!(fs::read(to.join("mine")).unwrap(), b"precious");
}
