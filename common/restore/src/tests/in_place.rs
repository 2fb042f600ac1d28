//! Restores over what is there: only what differs is fetched and written, and what was interrupted goes on.

use crate::{RestoreOptions, RestoreReport, Snapshot, restore, testing::*};
use holdfast_repo::{Content, EntryKind, Segment, Strategy};
use std::{
    fs,
    os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink},
    path::Path,
    sync::{Arc, atomic::Ordering},
};

const MIB: usize = 1 << 20;

async fn in_place(snapshot: &Snapshot, to: &Path) -> RestoreReport {
    let options = RestoreOptions {
        in_place: true,
        ..Default::default()
    };
    let report = restore(snapshot, to, options).await.unwrap();
    assert_eq!(report.problems.listed, []);
    report
}

fn poke(path: &Path, offset: u64, bytes: &[u8]) {
    let file = fs::File::options().write(true).open(path).unwrap();
    file.write_all_at(bytes, offset).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn only_segments_that_differ_are_fetched_and_written() {
    let tree = dir([("large", file(noise(1, 24 * MIB))), ("small", file("small"))]);
    let (counted, counts) = counted(&mut Repo::new(), &[("/t", tree.clone())]).await;
    let to = tempfile::tempdir().unwrap();
    in_place(&counted, to.path()).await;
    let large = to.path().join("t/large");
    let inode = fs::metadata(&large).unwrap().ino();
    let data = || counts.data.swap(0, Ordering::Relaxed);
    assert_eq!(data(), 25);

    // Nothing differs: nothing is touched.
    let before = fs::metadata(&large).unwrap();
    let report = in_place(&counted, to.path()).await;
    let after = fs::metadata(&large).unwrap();
    assert_eq!(data(), 0);
    assert_eq!(report.bytes_kept, report.bytes);
    assert_eq!(
        (before.ctime(), before.ctime_nsec()),
        (after.ctime(), after.ctime_nsec())
    );

    // Two segments differ, and the file is too long.
    poke(&large, 3 * MIB as u64 + 17, b"changed");
    poke(&large, 20 * MIB as u64, &[0; 5]);
    poke(&large, 24 * MIB as u64, b"more than there should be");
    let report = in_place(&counted, to.path()).await;
    assert_eq!(data(), 2);
    assert_eq!(report.bytes - report.bytes_kept, 2 * MIB as u64);
    assert_eq!(fs::metadata(&large).unwrap().ino(), inode);
    assert_same(&to.path().join("t"), &tree);

    // Half of it is gone.
    fs::File::options()
        .write(true)
        .open(&large)
        .unwrap()
        .set_len(12 * MIB as u64)
        .unwrap();
    in_place(&counted, to.path()).await;
    assert_eq!(data(), 12);
    assert_same(&to.path().join("t"), &tree);

    // Only mode and time differ.
    fs::set_permissions(&large, fs::Permissions::from_mode(0o600)).unwrap();
    poke(&to.path().join("t/small"), 0, b"s");
    in_place(&counted, to.path()).await;
    assert_eq!(data(), 0);
    assert_same(&to.path().join("t"), &tree);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_shared_or_open_to_others_is_never_written_through() {
    let content = noise(2, 9 * MIB);
    let tree = dir([
        ("linked", file(&content)),
        ("symlinked", file(&content)),
        ("open", file(&content)),
        ("small-linked", file("small")),
    ]);
    let (snapshot, counts) = counted(&mut Repo::new(), &[("/t", tree.clone())]).await;
    let to = tempfile::tempdir().unwrap();
    let root = to.path().join("t");
    let outside = tempfile::tempdir_in(to.path().parent().unwrap()).unwrap();
    fs::create_dir(&root).unwrap();
    let mut old = content.clone();
    old[5] ^= 1;
    for name in ["linked", "symlinked", "small-linked"] {
        fs::write(outside.path().join(name), &old).unwrap();
    }
    fs::hard_link(outside.path().join("linked"), root.join("linked")).unwrap();
    fs::hard_link(outside.path().join("small-linked"), root.join("small-linked")).unwrap();
    symlink(outside.path().join("symlinked"), root.join("symlinked")).unwrap();
    fs::write(root.join("open"), &old).unwrap();
    fs::set_permissions(root.join("open"), fs::Permissions::from_mode(0o666)).unwrap();
    let inode = fs::metadata(root.join("open")).unwrap().ino();
    in_place(&snapshot, to.path()).await;
    assert_same(&root, &tree);
    for name in ["linked", "symlinked", "small-linked"] {
        assert!(fs::read(outside.path().join(name)).unwrap() == old, "{name}");
    }
    assert_ne!(fs::metadata(root.join("open")).unwrap().ino(), inode);
    // What could be copied was: 1 segment of each of the two that can be looked at, all 9 of the link's.
    assert!(counts.data.load(Ordering::Relaxed) <= 1 + 9 + 1 + 1);
}

/// A file with parts of chunks and holes, and its content.
fn mixed(repo: &mut Repo) -> (Item, Vec<u8>) {
    use holdfast_repo::{Extent, FileBuilder, Parts};
    let keys = Arc::clone(&repo.keys);
    let (a, b) = (noise(5, MIB), noise(6, MIB));
    let (old, patch) = (repo.chunk(&a), repo.chunk(&b));
    let part = [&a[..1000], &b[77..5077], &a[6000..]].concat();
    let extent = |chunk, offset: usize, len: usize| Extent {
        chunk,
        offset: offset as u32,
        len: len as u32,
    };
    let parts = Parts {
        hash: keys.data_id(&part),
        extents: vec![
            extent(old.id, 0, 1000),
            extent(patch.id, 77, 5000),
            extent(old.id, 6000, MIB - 6000),
        ],
    };
    let hole = 20 * MIB;
    let mut builder = FileBuilder::default();
    for segment in [
        Segment::Whole(old),
        Segment::Parts(parts),
        Segment::Hole(hole as u64),
        Segment::Whole(patch),
    ] {
        builder.push(&keys, segment).unwrap();
    }
    let (content, nodes) = builder.finish(&keys).unwrap();
    nodes.into_iter().for_each(|node| {
        repo.node(node);
    });
    let bytes = [&a[..], &part, &vec![0; hole], &b].concat();
    let item = Item::Raw(EntryKind::File {
        size: bytes.len() as u64,
        strategy: Strategy::Fixed,
        content,
    });
    (item, bytes)
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_and_holes_are_compared_too() {
    let mut repo = Repo::new();
    let (item, bytes) = mixed(&mut repo);
    let (snapshot, counts) = counted(&mut repo, &[("/t", dir([("mixed", item)]))]).await;
    let to = tempfile::tempdir().unwrap();
    in_place(&snapshot, to.path()).await;
    let path = to.path().join("t/mixed");
    assert!(fs::read(&path).unwrap() == bytes);
    let blocks = fs::metadata(&path).unwrap().blocks();
    counts.data.store(0, Ordering::Relaxed);
    in_place(&snapshot, to.path()).await;
    assert_eq!(counts.data.load(Ordering::Relaxed), 0);
    // Something where the hole is, and in the part.
    poke(&path, 7 * MIB as u64 + 3, b"not a hole");
    in_place(&snapshot, to.path()).await;
    assert_eq!(counts.data.load(Ordering::Relaxed), 0);
    assert!(fs::read(&path).unwrap() == bytes);
    assert!(
        fs::metadata(&path).unwrap().blocks() <= blocks,
        "the hole was filled"
    );
    poke(&path, MIB as u64 + 1003, b"!");
    in_place(&snapshot, to.path()).await;
    assert_eq!(counts.data.load(Ordering::Relaxed), 2);
    assert!(fs::read(&path).unwrap() == bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_restore_does_not_look_finished_and_goes_on() {
    let tree = dir([("large", file(noise(3, 60 * MIB)))]);
    let (snapshot, counts) = counted(&mut Repo::new(), &[("/t", tree.clone())]).await;
    let to = tempfile::tempdir().unwrap();
    let large = to.path().join("t/large");
    let options = RestoreOptions {
        in_place: true,
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
    if outcome.is_err() {
        let stat = fs::metadata(&large).unwrap();
        assert_eq!((stat.mtime(), stat.mode() & 0o777), (0, 0o600));
        counts.data.store(0, Ordering::Relaxed);
        let report = in_place(&snapshot, to.path()).await;
        assert!(report.bytes_kept > 0, "it began anew");
        assert!(counts.data.load(Ordering::Relaxed) < 60);
    }
    assert_same(&to.path().join("t"), &tree);
}

#[tokio::test]
async fn what_a_killed_restore_left_is_removed_and_nothing_else() {
    let tree = dir([("file", file("x")), ("dir", dir([("inner", file("y"))]))]);
    let (snapshot, _) = snapshot(&mut Repo::new(), &[("/t", tree)]).await;
    let to = tempfile::tempdir().unwrap();
    in_place(&snapshot, to.path()).await;
    let left = ".holdfast-01ARZ3NDEKTSV4RRFFQ69G5FAV-7";
    for dir in ["", "t", "t/dir"] {
        fs::write(to.path().join(dir).join(left), "half").unwrap();
        fs::write(to.path().join(dir).join(".holdfast-mine"), "mine").unwrap();
    }
    in_place(&snapshot, to.path()).await;
    for dir in ["", "t", "t/dir"] {
        assert!(!to.path().join(dir).join(left).exists(), "{dir}");
        assert!(to.path().join(dir).join(".holdfast-mine").exists(), "{dir}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_whose_content_is_lost_keeps_what_was_there() {
    let mut repo = Repo::new();
    let good = noise(4, 10 * MIB);
    let EntryKind::File {
        content: Content::Node(_),
        ..
    } = repo.entry(b"large", &file(&good)).kind
    else {
        panic!("a node");
    };
    let tree = dir([("large", file(&good))]);
    let (snapshot, store) = snapshot(&mut repo, &[("/t", tree.clone())]).await;
    let to = tempfile::tempdir().unwrap();
    in_place(&snapshot, to.path()).await;
    let large = to.path().join("t/large");
    poke(&large, 4 * MIB as u64, b"changed");
    let lost = repo.keys.data_id(&good[4 * MIB..5 * MIB]);
    let (pack, offset, len) = repo.find(lost);
    let (id, mut bytes) = repo.packs[pack].clone();
    bytes[offset + len / 2] ^= 1;
    damage(&store, &id, bytes);
    let options = RestoreOptions {
        in_place: true,
        ..Default::default()
    };
    let report = restore(&snapshot, to.path(), options).await.unwrap();
    assert_eq!(report.problems.count, 1, "{:?}", report.problems);
    let left = fs::read(&large).unwrap();
    assert_eq!(left.len(), good.len());
    assert!(left[..4 * MIB] == good[..4 * MIB]);
}
