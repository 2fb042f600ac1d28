//! Restores come back as they were.

use crate::{Layout, Progress, RestoreError, RestoreOptions, RestoreReport, Snapshot, restore, testing::*};
use holdfast_core::{ErrorKind, HasKind};
use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::Path,
    sync::{Arc, atomic::Ordering},
};

async fn whole(snapshot: &Snapshot, to: &Path) -> RestoreReport {
    let report = restore(snapshot, to, RestoreOptions::default()).await.unwrap();
    assert_eq!(report.problems.listed, [], "{}", report.problems.count);
    report
}

/// Everything that a tree can hold, but devices.
fn odd_tree() -> Item {
    let Item::Dir(_, mut items) = dir([
        ("empty", file("")),
        ("small", file("content")),
        ("secret", Item::File(0o600, b"x".to_vec())),
        ("set-id", Item::File(0o4755, b"program".to_vec())),
        ("read-only", Item::File(0o444, b"y".to_vec())),
        ("link", link("small")),
        ("dangling", link("/nowhere/at/all")),
        ("pipe", Item::Fifo(0o640)),
        ("eight chunks", file(noise(1, 8 * 1000))),
        ("nine chunks", file(noise(2, 9 * 1000 - 1))),
        ("large", file(noise(3, 700_000))),
        ("zeros", file(vec![0; 300_000])),
        ("hollow", dir([])),
        (
            "deep",
            dir([("deeper", dir([("deepest", dir([("leaf", file("leaf"))]))]))]),
        ),
        (
            "closed",
            Item::Dir(0o500, BTreeMap::from([(b"inside".to_vec(), file("inside"))])),
        ),
        ("sticky", Item::Dir(0o1777, BTreeMap::new())),
    ]) else {
        panic!("a directory");
    };
    items.insert(b"\xff\xfe not utf-8 \n".to_vec(), file("named in bytes"));
    Item::Dir(0o750, items)
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_comes_back_as_it_was() {
    let mut repo = Repo::new();
    repo.chunk_len = 1000;
    let (snapshot, _) = snapshot(&mut repo, &[("/srv/data", odd_tree())]).await;
    let to = tempfile::tempdir().unwrap();
    let progress = Arc::new(Progress::default());
    let options = RestoreOptions {
        progress: Arc::clone(&progress),
        ..Default::default()
    };
    let report = restore(&snapshot, &to.path().join("new/target"), options)
        .await
        .unwrap();
    assert_eq!(report.problems.listed, []);
    assert_same(&to.path().join("new/target/srv/data"), &odd_tree());
    assert_eq!(
        (report.files, report.dirs, report.symlinks, report.others),
        (12, 7, 2, 1)
    );
    assert_eq!(
        report.bytes,
        8000 + 8999 + 700_000 + 300_000 + 7 + 1 + 7 + 1 + 4 + 6 + 14
    );
    assert_eq!(progress.files(), (12, 12));
    assert_eq!(progress.bytes(), (report.bytes, report.bytes));
    assert_eq!(report.kind(), None);
}

#[tokio::test]
async fn a_dry_run_counts_the_same_and_writes_nothing() {
    let mut repo = Repo::new();
    let (snapshot, _) = snapshot(&mut repo, &[("/srv/data", odd_tree())]).await;
    let to = tempfile::tempdir().unwrap();
    let options = RestoreOptions {
        dry_run: true,
        ..Default::default()
    };
    let dry = restore(&snapshot, &to.path().join("absent"), options)
        .await
        .unwrap();
    assert!(!to.path().join("absent").exists());
    assert_eq!(dry, whole(&snapshot, to.path()).await);
}

#[tokio::test]
async fn a_wide_directory_and_many_directories_come_back() {
    let files = (0..5000)
        .map(|n| (format!("file-{n}").into_bytes(), file(n.to_string())))
        .collect();
    let dirs = (0..700)
        .map(|n| {
            (
                format!("dir-{n}").into_bytes(),
                dir([("f", file(n.to_string())), ("d", dir([]))]),
            )
        })
        .collect();
    let tree = dir([
        ("wide", Item::Dir(0o755, files)),
        ("many", Item::Dir(0o755, dirs)),
    ]);
    let mut repo = Repo::new();
    let (snapshot, _) = snapshot(&mut repo, &[("/t", tree.clone())]).await;
    let to = tempfile::tempdir().unwrap();
    let report = whole(&snapshot, to.path()).await;
    assert_eq!(report.files, 5700);
    assert_same(&to.path().join("t"), &tree);
}

#[tokio::test]
async fn a_very_deep_tree_comes_back() {
    let mut tree = dir([("leaf", file("leaf"))]);
    for _ in 0..1500 {
        tree = dir([("d", tree)]);
    }
    let mut repo = Repo::new();
    let (snapshot, _) = snapshot(&mut repo, &[("/t", tree)]).await;
    let to = tempfile::tempdir().unwrap();
    assert_eq!(whole(&snapshot, to.path()).await.dirs, 1501);
}

#[tokio::test]
async fn several_trees_keep_their_paths_and_one_may_go_straight_in() {
    let mut repo = Repo::new();
    let trees = [
        ("/etc/app", dir([("a", file("1"))])),
        ("/srv", dir([("b", file("2"))])),
        ("/one-file", file("3")),
    ];
    let (several, _) = snapshot(&mut repo, &trees).await;
    let to = tempfile::tempdir().unwrap();
    whole(&several, to.path()).await;
    for (path, item) in &trees {
        assert_same(&to.path().join(&path[1..]), item);
    }
    let content = RestoreOptions {
        layout: Layout::Content,
        ..Default::default()
    };
    let other = tempfile::tempdir().unwrap();
    let error = restore(&several, other.path(), content.clone())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);

    let (one, _) = snapshot(&mut Repo::new(), &[("/srv/x", dir([("b", file("2"))]))]).await;
    restore(&one, other.path(), content).await.unwrap();
    assert_eq!(fs::read(other.path().join("b")).unwrap(), b"2");
    let (top, _) = snapshot(&mut Repo::new(), &[("/", dir([("b", file("2"))]))]).await;
    let third = tempfile::tempdir().unwrap();
    whole(&top, third.path()).await;
    assert_eq!(fs::metadata(third.path()).unwrap().mtime(), mtime(b"").secs);
}

#[tokio::test]
async fn parts_come_back_alone() {
    let mut repo = Repo::new();
    let wide = (0..3000)
        .map(|n| (format!("f{n:05}").into_bytes(), file("x")))
        .collect();
    let tree = dir([
        (
            "a",
            dir([("b", dir([("c", file("c")), ("d", file("d"))])), ("e", file("e"))]),
        ),
        ("other", file("o")),
        ("wide", Item::Dir(0o700, wide)),
    ]);
    let (snapshot, _) = snapshot(&mut repo, &[("/srv/t", tree), ("/etc", dir([("z", file("z"))]))]).await;
    let part = |paths: &[&str]| {
        let paths = paths.iter().map(|path| path.as_bytes().to_vec()).collect();
        RestoreOptions {
            paths,
            ..Default::default()
        }
    };
    let names = |to: &Path| {
        let mut out = Vec::new();
        let mut stack = vec![to.to_path_buf()];
        while let Some(dir) = stack.pop() {
            for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
                if entry.file_type().unwrap().is_dir() {
                    stack.push(entry.path());
                } else {
                    out.push(
                        entry
                            .path()
                            .strip_prefix(to)
                            .unwrap()
                            .to_str()
                            .unwrap()
                            .to_owned(),
                    );
                }
            }
        }
        out.sort();
        out
    };
    for (paths, expected) in [
        (&["/srv/t/a/b"][..], &["srv/t/a/b/c", "srv/t/a/b/d"][..]),
        (&["srv/t/a/b/c"], &["srv/t/a/b/c"]),
        (
            &["a/b/c", "a/e", "a/b"],
            &["srv/t/a/b/c", "srv/t/a/b/d", "srv/t/a/e"],
        ),
        (&["wide/f02999", "/etc"], &["etc/z", "srv/t/wide/f02999"]),
        (&["/etc/z"], &["etc/z"]),
    ] {
        let to = tempfile::tempdir().unwrap();
        let options = part(paths);
        let progress = Arc::clone(&options.progress);
        let report = restore(&snapshot, to.path(), options).await.unwrap();
        assert_eq!(names(to.path()), expected);
        assert_eq!(report.files, expected.len() as u64);
        assert_eq!(progress.files(), (report.files, report.files));
    }
    let to = tempfile::tempdir().unwrap();
    for bad in ["/nowhere", "a/b/x", "other/below", "../etc", "wide/f99999"] {
        let error = restore(&snapshot, &to.path().join("none"), part(&[bad]))
            .await
            .unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::NotFound), "{bad}: {error}");
        assert!(!to.path().join("none").exists());
    }
    // Directories on the way have their attributes.
    let report = restore(&snapshot, to.path(), part(&["a/b/c"])).await.unwrap();
    assert_eq!(report.dirs, 3);
    assert_eq!(
        fs::metadata(to.path().join("srv/t/a")).unwrap().mtime(),
        mtime(b"a").secs
    );
}

#[tokio::test]
async fn a_target_in_use_is_refused_unless_in_place() {
    let tree = dir([
        ("file", file("of the snapshot")),
        ("dir", dir([("inner", file("of the snapshot"))])),
        ("link", link("file")),
        ("was-dir", file("f")),
    ]);
    let mut repo = Repo::new();
    let (snapshot, _) = snapshot(&mut repo, &[("/t", tree)]).await;
    let to = tempfile::tempdir().unwrap();
    let root = to.path().join("t");
    fs::create_dir_all(root.join("was-dir/full")).unwrap();
    fs::create_dir(root.join("dir")).unwrap();
    fs::write(root.join("file"), "old").unwrap();
    fs::write(root.join("dir/mine"), "kept").unwrap();
    fs::write(root.join("link"), "a file").unwrap();
    let error = restore(&snapshot, to.path(), RestoreOptions::default())
        .await
        .unwrap_err();
    assert!(matches!(error, RestoreError::Target { .. }), "{error}");
    assert_eq!(fs::read(root.join("file")).unwrap(), b"old");

    let options = RestoreOptions {
        in_place: true,
        ..Default::default()
    };
    let report = restore(&snapshot, to.path(), options).await.unwrap();
    assert_eq!(fs::read(root.join("file")).unwrap(), b"of the snapshot");
    assert_eq!(fs::read(root.join("dir/inner")).unwrap(), b"of the snapshot");
    assert_eq!(fs::read(root.join("dir/mine")).unwrap(), b"kept");
    assert_eq!(fs::read_link(root.join("link")).unwrap(), Path::new("file"));
    // A directory is never removed to make room.
    assert_eq!(report.problems.count, 1);
    assert_eq!(report.problems.listed[0].path, b"/t/was-dir");
    assert_eq!(report.kind(), Some(ErrorKind::Partial));
    assert!(root.join("was-dir/full").is_dir());
    let names: Vec<_> = fs::read_dir(&root)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names.len(), 4, "temporary files are left: {names:?}");
}

#[tokio::test]
async fn a_target_that_is_no_directory_is_refused() {
    let (snapshot, _) = snapshot(&mut Repo::new(), &[("/t", dir([]))]).await;
    let to = tempfile::tempdir().unwrap();
    let plain = to.path().join("plain");
    fs::write(&plain, "x").unwrap();
    let error = restore(&snapshot, &plain, RestoreOptions::default())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    // The way to the target is the caller's word, and may be a link.
    symlink(to.path(), to.path().join("way")).unwrap();
    whole(&snapshot, &to.path().join("way/target")).await;
}

#[tokio::test]
async fn owners_come_back_for_root_and_are_counted_otherwise() {
    let mut repo = Repo::new();
    let foreign = |repo: &mut Repo, item| {
        let entry = repo.entry(b"", &item);
        holdfast_repo::Entry {
            uid: 12345,
            gid: 23456,
            ..entry
        }
    };
    let entry = foreign(&mut repo, Item::File(0o4755, b"x".to_vec()));
    let (mut snapshot_of, _) = snapshot(&mut repo, &[("/f", file("x"))]).await;
    let mut root = snapshot_of.root().clone();
    root.sealed.trees[0].entry = entry;
    snapshot_of = snapshot_of.with_root(root);
    let to = tempfile::tempdir().unwrap();
    let report = whole(&snapshot_of, to.path()).await;
    let stat = fs::metadata(to.path().join("f")).unwrap();
    if rustix::process::geteuid().is_root() && report.owners_kept == 0 {
        assert_eq!(
            (stat.uid(), stat.gid(), stat.mode() & 0o7777),
            (12345, 23456, 0o4755)
        );
    } else {
        assert_eq!(report.owners_kept, 1);
        assert_eq!(
            stat.permissions().mode() & 0o7777,
            0o755,
            "set-id for another owner than the one meant"
        );
    }
}

#[tokio::test]
async fn stopping_leaves_no_incomplete_file() {
    let mut repo = Repo::new();
    let tree = dir([("large", file(noise(1, 30 << 20)))]);
    let (snapshot, _) = snapshot(&mut repo, &[("/t", tree)]).await;
    let to = tempfile::tempdir().unwrap();
    let options = RestoreOptions {
        workers: Some(1),
        ..Default::default()
    };
    let (cancel, progress) = (Arc::clone(&options.cancel), Arc::clone(&options.progress));
    let watcher = std::thread::spawn(move || {
        while progress.bytes().0 == 0 && !cancel.load(Ordering::Relaxed) {
            std::thread::yield_now();
        }
        cancel.store(true, Ordering::Relaxed);
    });
    let outcome = restore(&snapshot, to.path(), options).await;
    watcher.join().unwrap();
    let left = to.path().join("t/large");
    match outcome {
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Interrupted);
            assert!(!left.exists());
        }
        Ok(_) => assert_eq!(fs::metadata(left).unwrap().len(), 30 << 20),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn large_files_of_any_length_come_back() {
    let mut repo = Repo::new();
    // Segments begin and end anywhere, whatever the blocks of the disk are.
    repo.chunk_len = 300_001;
    let lengths = [8 << 20, (8 << 20) + 1, (33 << 20) - 4095, (12 << 20) + 4096];
    let names = ["even", "one more", "nearly", "a block more"];
    let files = std::array::from_fn::<_, 4, _>(|n| (names[n], file(noise(n as u8, lengths[n]))));
    let tree = dir(files);
    let (snapshot, _) = snapshot(&mut repo, &[("/srv/data", tree.clone())]).await;
    let to = tempfile::tempdir().unwrap();
    whole(&snapshot, to.path()).await;
    assert_same(&to.path().join("srv/data"), &tree);
}
