//! A restore in place that is killed never looks finished when it is not, and goes on when it is run again;
//! what `--delete` shows is what it does.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

use holdfast_integration::{
    harness::{Options, Process, restored_root},
    scenario::{SOURCE, Scenario},
    seed::{self, Rng},
    tree, wait,
};
use std::{
    collections::BTreeSet,
    ffi::{OsStr, OsString},
    fs::{self, File},
    os::unix::{ffi::OsStrExt as _, fs::FileExt as _, fs::MetadataExt as _},
    path::Path,
    time::Duration,
};

/// Length of the large file: it is rewritten in place, not replaced.
const LARGE: usize = 96 << 20;
/// Longest wait before a kill; a whole restore takes about as long.
const KILL_WITHIN_MILLIS: u64 = 250;

fn scenario(test: &str) -> (Scenario, Rng, String) {
    let seed = seed::of_run(test);
    let mut rng = Rng::new(seed);
    let mut scenario = Scenario::start(Options::default(), seed, 150);
    let mut bytes = vec![0; LARGE];
    rng.fill(&mut bytes);
    fs::write(scenario.root().join("large"), &bytes).unwrap();
    let sparse = File::create(scenario.root().join("sparse")).unwrap();
    sparse.set_len(64 << 20).unwrap();
    sparse.write_all_at(&bytes[..3 << 20], 30 << 20).unwrap();
    scenario.look();
    let id = scenario.backup();
    (scenario, rng, id)
}

fn arguments(id: &str, to: &Path, more: &[&str]) -> Vec<OsString> {
    let what = format!("{SOURCE}@{id}");
    let fixed = [
        OsStr::new("restore"),
        OsStr::new(&what),
        OsStr::new("--to"),
        to.as_os_str(),
    ];
    let more = more.iter().map(OsStr::new);
    fixed.into_iter().chain(more).map(OsStr::to_owned).collect()
}

/// Damages what was restored: bytes of the large files, whole small ones, lengths.
fn scribble(root: &Path, rng: &mut Rng) {
    for name in ["large", "sparse"] {
        let Ok(file) = File::options().write(true).open(root.join(name)) else {
            continue;
        };
        let Ok(len) = file.metadata().map(|meta| meta.len()) else {
            continue;
        };
        for _ in 0..40 {
            let mut bytes = vec![0; 1 + rng.index(10_000)];
            rng.fill(&mut bytes);
            file.write_all_at(&bytes, rng.below(len.max(1))).unwrap();
        }
    }
    let names: Vec<_> = tree::read(root).into_iter().collect();
    for (path, entry) in names {
        if matches!(entry.kind, tree::Kind::File(len, _) if len < 1 << 20) && rng.chance(0.2) {
            let path = tree::join(root, &path);
            if rng.chance(0.5) {
                let _ = fs::remove_file(&path);
            } else {
                let _ = fs::write(&path, b"something else");
            }
        }
    }
}

#[test]
fn a_killed_restore_in_place_goes_on_and_ends_equal() {
    let (scenario, mut rng, id) = scenario("restore_in_place");
    let cluster = &scenario.cluster;
    let to = cluster.dir().join("to");
    let root = restored_root(&to, scenario.root());
    let expected = scenario.expected(&id);
    let mut killed = 0;
    for round in 0..seed::count(8, 60) {
        // The first rounds go on with what an interrupted restore into an empty directory left.
        if round >= 2 && root.exists() {
            scribble(&root, &mut rng);
        }
        let mut command = cluster.command(&cluster.binaries().ctl());
        let first = round == 0;
        command.args(arguments(&id, &to, if first { &[] } else { &["--in-place"] }));
        let process = Process::start("restore", command, None);
        // At a random moment after something is there.
        wait::until("the restore to begin", || {
            (root.exists() || process.exited().is_some()).then_some(())
        });
        wait::pause_for(Duration::from_millis(rng.below(KILL_WITHIN_MILLIS)));
        killed += usize::from(process.exited().is_none());
        process.kill();
        if let (Ok(stat), tree::Kind::File(len, hash)) = (
            fs::symlink_metadata(root.join("large")),
            &expected[&b"large"[..]].kind,
        ) && (stat.mtime(), stat.mtime_nsec()) == expected[&b"large"[..]].mtime
        {
            let now = fs::read(root.join("large")).unwrap();
            assert_eq!(now.len() as u64, *len);
            assert!(
                blake3::hash(&now).as_bytes() == hash,
                "round {round}: a half-written file looks finished"
            );
        }
        if round % 3 == 2 {
            let _ = cluster.ctl(arguments(&id, &to, &["--in-place"])).ok();
            tree::assert_same("resumed", expected, &tree::read(&root));
        }
    }
    assert!(killed > 0, "nothing was killed");
    let report = cluster
        .ctl(arguments(&id, &to, &["--in-place", "-o", "json"]))
        .ok()
        .json();
    tree::assert_same("resumed", expected, &tree::read(&root));
    eprintln!(
        "{killed} restores were killed; the last one found {} bytes",
        report["bytes_kept"]
    );
    // Run once more: everything is there, and nothing is fetched.
    let report = cluster
        .ctl(arguments(&id, &to, &["--in-place", "-o", "json"]))
        .ok()
        .json();
    assert_eq!(report["bytes_kept"], report["bytes"]);
    // A target in use says what helps.
    let refused = cluster.ctl(arguments(&id, &to, &[])).expect_code(11);
    assert!(refused.stderr.contains("--in-place"), "{}", refused.stderr);
}

#[test]
fn the_preview_of_delete_is_its_effect() {
    let (scenario, _, id) = scenario("restore_delete");
    let cluster = &scenario.cluster;
    let to = cluster.dir().join("to");
    let _ = cluster.ctl(arguments(&id, &to, &[])).ok();
    let root = restored_root(&to, scenario.root());
    let outside = cluster.dir().join("outside");
    fs::create_dir_all(&outside).unwrap();
    fs::write(outside.join("precious"), "precious").unwrap();
    fs::create_dir_all(root.join("extra/deep")).unwrap();
    fs::write(root.join("extra/deep/file"), "extra").unwrap();
    fs::write(root.join("extra file"), "extra").unwrap();
    std::os::unix::fs::symlink(&outside, root.join("extra/link")).unwrap();
    fs::write(to.join("beside"), "not restored").unwrap();
    let paths = |tree: &tree::Tree| tree.keys().cloned().collect::<BTreeSet<_>>();
    let before = paths(&tree::read(&to));
    let told = |more: &[&str]| {
        let all: Vec<&str> = ["--in-place", "--delete", "-o", "json"]
            .iter()
            .chain(more)
            .copied()
            .collect();
        let json = cluster.ctl(arguments(&id, &to, &all)).ok().json();
        let paths = json["removed_paths"].as_array().unwrap().iter();
        let paths: BTreeSet<Vec<u8>> = paths
            .map(|path| path.as_str().unwrap().trim_matches('/').as_bytes().to_vec())
            .collect();
        assert_eq!(json["removed"], paths.len());
        paths
    };
    let preview = told(&["--dry-run"]);
    assert_eq!(preview.len(), 5);
    assert_eq!(before, paths(&tree::read(&to)), "the preview changed something");
    let effect = told(&[]);
    assert_eq!(preview, effect);
    let after = paths(&tree::read(&to));
    let gone: BTreeSet<Vec<u8>> = before.difference(&after).cloned().collect();
    assert_eq!(gone, effect);
    tree::assert_same("with --delete", scenario.expected(&id), &tree::read(&root));
    assert!(outside.join("precious").exists() && to.join("beside").exists());
    // Neither by accident nor on another host.
    let _ = cluster.ctl(arguments(&id, &to, &["--delete"])).expect_code(2);
    let there = arguments(&id, &to, &["--delete", "--in-place", "--agent", "web1"]);
    assert_ne!(cluster.ctl(there).code, 0);
}

#[test]
fn snapshots_are_compared_and_patterns_restored() {
    let (mut scenario, _, first) = scenario("diff_and_patterns");
    fs::write(scenario.root().join("new.conf"), "new").unwrap();
    fs::remove_file(scenario.root().join("sparse")).unwrap();
    let large = File::options()
        .write(true)
        .open(scenario.root().join("large"))
        .unwrap();
    large.write_all_at(b"changed", 50 << 20).unwrap();
    drop(large);
    scenario.look();
    let second = scenario.backup();
    let cluster = &scenario.cluster;
    let (a, b) = (format!("{SOURCE}@{first}"), format!("{SOURCE}@{second}"));
    let rows = cluster.ctl(["diff", &a, &b, "-o", "json"]).expect_code(4).rows();
    let told: BTreeSet<(String, String)> = rows
        .iter()
        .map(|row| {
            let path = row["path"].as_str().unwrap();
            let name = Path::new(path).strip_prefix(scenario.root()).unwrap().as_os_str();
            (
                row["change"].as_str().unwrap().to_owned(),
                String::from_utf8_lossy(name.as_bytes()).into_owned(),
            )
        })
        .collect();
    let expected = [
        ("added", "new.conf"),
        ("removed", "sparse"),
        ("changed", "large"),
        ("changed", ""),
    ];
    assert_eq!(
        told,
        expected
            .map(|(change, name)| (change.to_owned(), name.to_owned()))
            .into()
    );
    assert!(cluster.ctl(["diff", &a, &a]).ok().text().starts_with("CHANGE"));

    let to = cluster.dir().join("pattern");
    let _ = cluster.ctl(arguments(&second, &to, &["--path", "*.conf"])).ok();
    let restored = tree::read(&restored_root(&to, scenario.root()));
    let files: Vec<_> = restored.keys().filter(|name| name.ends_with(b".conf")).collect();
    assert!(files.contains(&&b"new.conf".to_vec()));
    assert!(
        restored
            .keys()
            .all(|name| name.is_empty() || name.ends_with(b".conf"))
    );
    let nothing = cluster
        .ctl(arguments(&second, &to, &["--path", "*.nothing"]))
        .expect_code(10);
    assert!(nothing.stderr.contains("pattern"), "{}", nothing.stderr);
}
