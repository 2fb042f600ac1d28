//! `delete`: the preview is the effect, and nothing outside is touched.

use crate::{OnRemoval, RestoreOptions, RestoreReport, Snapshot, restore, testing::*};
use holdfast_core::{ErrorKind, HasKind};
use parking_lot::Mutex;
use std::{
    collections::BTreeSet,
    fs,
    os::unix::{ffi::OsStrExt, fs::symlink},
    path::Path,
    sync::Arc,
};

type Told = BTreeSet<(Vec<u8>, bool)>;

async fn run(snapshot: &Snapshot, to: &Path, paths: &[&str], dry_run: bool) -> (RestoreReport, Told) {
    let told = Arc::new(Mutex::new(Told::new()));
    let sink = Arc::clone(&told);
    let options = RestoreOptions {
        paths: paths.iter().map(|path| path.as_bytes().to_vec()).collect(),
        in_place: true,
        delete: true,
        dry_run,
        on_removal: OnRemoval::new(move |path, is_dir| {
            assert!(sink.lock().insert((path.to_vec(), is_dir)), "told twice");
        }),
        ..Default::default()
    };
    let report = restore(snapshot, to, options).await.unwrap();
    let told = std::mem::take(&mut *told.lock());
    assert_eq!(report.removed, told.len() as u64);
    (report, told)
}

/// Everything below a directory: path and whether it is a directory.
fn all(root: &Path) -> Told {
    let mut found = Told::new();
    let mut stack = vec![root.to_path_buf()];
    while let Some(dir) = stack.pop() {
        for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
            let is_dir = entry.file_type().unwrap().is_dir();
            let path = entry.path();
            let below = path.strip_prefix(root).unwrap().as_os_str().as_bytes();
            found.insert(([b"/", below].concat(), is_dir));
            if is_dir {
                stack.push(path);
            }
        }
    }
    found
}

fn tree() -> Item {
    dir([
        ("keep", file("kept")),
        ("a", dir([("b", dir([("c", file("c"))])), ("empty", dir([]))])),
        ("was-dir", file("a file now")),
        ("other", dir([("x", file("x"))])),
    ])
}

/// A target with much that the snapshot does not have.
fn litter(to: &Path, outside: &Path) {
    let root = to.join("t");
    fs::create_dir_all(root.join("a/b/extra/deep/er")).unwrap();
    fs::create_dir_all(root.join("was-dir/full")).unwrap();
    fs::create_dir_all(root.join("other")).unwrap();
    fs::create_dir_all(to.join("beside")).unwrap();
    for path in [
        "t/extra file",
        "t/a/b/extra/deep/er/f",
        "t/a/b/extra/g",
        "t/was-dir/full/h",
        "t/other/y",
        "beside/mine",
    ] {
        fs::write(to.join(path), "extra").unwrap();
    }
    symlink(outside, root.join("link-out")).unwrap();
    symlink(outside, root.join("a/b/extra/link-out")).unwrap();
    // Where the snapshot has a directory.
    symlink(outside, root.join("a/empty")).unwrap();
}

#[tokio::test]
async fn the_preview_is_the_effect() {
    let (snapshot, _) = snapshot(&mut Repo::new(), &[("/t", tree())]).await;
    let (to, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::create_dir(outside.path().join("dir")).unwrap();
    fs::write(outside.path().join("dir/precious"), "precious").unwrap();
    litter(to.path(), outside.path());
    let before = all(to.path());
    let (report, preview) = run(&snapshot, to.path(), &[], true).await;
    assert_eq!(report.problems.listed, []);
    assert_eq!(before, all(to.path()), "the preview changed something");
    let (report, effect) = run(&snapshot, to.path(), &[], false).await;
    assert_eq!(report.problems.listed, []);
    assert_eq!(preview, effect);
    let after = all(to.path());
    let mut gone: Told = before.difference(&after).cloned().collect();
    // A link that made way for a directory was replaced.
    assert!(gone.remove(&(b"/t/a/empty".to_vec(), false)));
    assert_eq!(gone, effect);
    assert_same(&to.path().join("t"), &tree());
    assert_eq!(fs::read(to.path().join("beside/mine")).unwrap(), b"extra");
    assert_eq!(
        fs::read(outside.path().join("dir/precious")).unwrap(),
        b"precious"
    );
    let (again, told) = run(&snapshot, to.path(), &[], true).await;
    assert_eq!((again.removed, told.len()), (0, 0));
}

#[tokio::test]
async fn only_restored_directories_are_looked_through() {
    let (snapshot, _) = snapshot(&mut Repo::new(), &[("/t", tree())]).await;
    let (to, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    litter(to.path(), outside.path());
    let (_, told) = run(&snapshot, to.path(), &["/t/a/b", "/t/keep"], false).await;
    assert!(
        told.iter().all(|(path, _)| path.starts_with(b"/t/a/b/extra")),
        "{told:?}"
    );
    assert_eq!(told.len(), 6);
    for path in ["t/extra file", "t/other/y", "t/was-dir/full/h", "beside/mine"] {
        assert!(to.path().join(path).exists(), "{path}");
    }
    // Nothing is there at all.
    let (report, _) = run(&snapshot, &to.path().join("new"), &[], true).await;
    assert_eq!(report.removed, 0);
}

#[tokio::test]
async fn what_is_not_known_is_not_deleted() {
    let mut repo = Repo::new();
    let chunk = repo.chunk(b"no directory");
    let unreadable = Item::Raw(holdfast_repo::EntryKind::Dir {
        node: chunk.id,
        files: 0,
        bytes: 0,
    });
    let tree = dir([("unreadable", unreadable), ("good", dir([("x", file("x"))]))]);
    let (found, _) = snapshot(&mut repo, &[("/t", tree)]).await;
    let to = tempfile::tempdir().unwrap();
    for path in ["t/unreadable/mine", "t/good/extra"] {
        fs::create_dir_all(to.path().join(path).parent().unwrap()).unwrap();
        fs::write(to.path().join(path), "x").unwrap();
    }
    let (report, told) = run(&found, to.path(), &[], false).await;
    assert!(report.problems.count > 0);
    assert_eq!(told, Told::from([(b"/t/good/extra".to_vec(), false)]));
    assert!(to.path().join("t/unreadable/mine").exists());

    // A partial snapshot does not know what it lacks, and without --in-place nothing is there to delete.
    let mut root = found.root().clone();
    root.clear.partial = true;
    let options = RestoreOptions {
        in_place: true,
        delete: true,
        ..Default::default()
    };
    let partial = found.clone().with_root(root);
    for (snapshot, in_place) in [(&partial, true), (&found, false)] {
        let options = RestoreOptions {
            in_place,
            ..options.clone()
        };
        let error = restore(snapshot, to.path(), options).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    }
}

#[tokio::test]
async fn very_deep_directories_are_removed_without_a_deep_stack() {
    let (snapshot, _) = snapshot(&mut Repo::new(), &[("/t", dir([("x", file("x"))]))]).await;
    let to = tempfile::tempdir().unwrap();
    fs::create_dir(to.path().join("t")).unwrap();
    let mut path = to.path().join("t/deep");
    for _ in 0..400 {
        fs::create_dir(&path).unwrap();
        path.push("d");
    }
    let (report, told) = run(&snapshot, to.path(), &[], false).await;
    assert_eq!(report.problems.listed, []);
    assert_eq!(told.len(), 400);
    assert!(!to.path().join("t/deep").exists());
}

#[tokio::test]
async fn very_wide_directories_are_looked_through_in_parts() {
    let names = |range: std::ops::Range<usize>| range.map(|n| format!("d{n:05}"));
    let inner = || dir([("f", file("f"))]);
    let items = names(0..2500).map(|name| (name.into_bytes(), inner()));
    let tree = Item::Dir(0o755, items.collect());
    let (snapshot, _) = snapshot(&mut Repo::new(), &[("/t", tree)]).await;
    let to = tempfile::tempdir().unwrap();
    for name in names(0..2600) {
        let path = to.path().join("t").join(&name);
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("extra"), "x").unwrap();
        fs::write(to.path().join(format!("t/{name}-extra")), "x").unwrap();
    }
    let before = all(to.path());
    let (_, preview) = run(&snapshot, to.path(), &[], true).await;
    let (report, effect) = run(&snapshot, to.path(), &[], false).await;
    assert_eq!(report.problems.listed, []);
    assert_eq!(preview, effect);
    // What is in each, what is beside each, and those that the snapshot does not have.
    assert_eq!(effect.len(), 2600 + 2600 + 100);
    let after = all(to.path());
    assert_eq!(before.difference(&after).cloned().collect::<Told>(), effect);
}
