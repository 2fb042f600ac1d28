//! Invariant 8: a restore never writes outside its target, whatever lies in its way.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

use holdfast_integration::{
    harness::{Options, restored_root},
    scenario::{SOURCE, Scenario},
    seed, tree,
};
use std::{ffi::OsStr, fs, os::unix::fs::symlink};

#[test]
fn links_in_the_way_are_not_followed() {
    let mut scenario = Scenario::start(Options::default(), seed::of_run("restore_stays_inside"), 20);
    fs::create_dir_all(scenario.root().join("dir/inner")).unwrap();
    fs::write(scenario.root().join("dir/inner/file"), b"of the snapshot").unwrap();
    fs::write(scenario.root().join("plain"), b"of the snapshot").unwrap();
    scenario.look();
    let id = scenario.backup();

    let outside = scenario.cluster.dir().join("outside");
    fs::create_dir_all(outside.join("inner")).unwrap();
    fs::write(outside.join("inner/file"), b"precious").unwrap();
    fs::write(outside.join("target"), b"precious").unwrap();
    let before = tree::read(&outside);

    // Where the snapshot has a directory and a file, the target has links that lead out.
    let to = scenario.cluster.dir().join("to");
    let root = restored_root(&to, scenario.root());
    fs::create_dir_all(&root).unwrap();
    symlink(&outside, root.join("dir")).unwrap();
    symlink(outside.join("target"), root.join("plain")).unwrap();
    let output = scenario.cluster.ctl([
        OsStr::new("restore"),
        OsStr::new(&format!("{SOURCE}@{id}")),
        OsStr::new("--to"),
        to.as_os_str(),
        OsStr::new("--in-place"),
    ]);
    assert_eq!(
        before,
        tree::read(&outside),
        "the restore wrote outside its target"
    );
    if output.code == 0 {
        tree::assert_same("in place", scenario.expected(&id), &tree::read(&root));
    }
}

#[test]
fn an_agent_restores_only_where_its_own_file_allows() {
    let mut scenario = Scenario::start(Options::default(), seed::of_run("restore_allowed"), 20);
    let id = scenario.backup();
    let forbidden = scenario.cluster.dir().join("forbidden");
    let what = format!("{SOURCE}@{id}");
    let restore = |to: &std::path::Path| {
        scenario.cluster.ctl([
            OsStr::new("restore"),
            OsStr::new(&what),
            OsStr::new("--to"),
            to.as_os_str(),
            OsStr::new("--agent"),
            OsStr::new("web1"),
        ])
    };
    assert_ne!(
        restore(&forbidden).code,
        0,
        "the agent restored where agent.toml does not allow it"
    );
    assert!(!forbidden.exists());
    let climbing = scenario.cluster.dir().join("agent-restores/../forbidden");
    assert_ne!(restore(&climbing).code, 0, "the agent restored through `..`");
    assert!(!forbidden.exists());
    let allowed = scenario.cluster.dir().join("agent-restores/one");
    fs::create_dir_all(allowed.parent().unwrap()).unwrap();
    let _ = restore(&allowed).ok();
    let restored = tree::read(&restored_root(&allowed, scenario.root()));
    tree::assert_same("on the agent", scenario.expected(&id), &restored);
}
