//! Trees go in whole, and again only as far as they changed.

use crate::host::{Host, make_tree, noise, real_tree, spec};
use holdfast_agent::engine;
use holdfast_core::ChunkId;
use holdfast_proto::v1::FilesSpec;
use holdfast_repo::EntryKind;
use std::{
    collections::HashSet,
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

#[test]
fn a_tree_goes_in_whole_and_a_second_run_sends_only_what_changed() {
    let dir = tempfile::tempdir().unwrap();
    make_tree(dir.path());
    let mut host = Host::new();
    let (outcome, stats) = host.back_up(&spec(dir.path()));
    assert_eq!(host.stored_tree(&outcome), real_tree(dir.path()));
    let counts = stats.snapshot();
    assert_eq!((counts.files, counts.symlinks, counts.unreadable), (804, 1, 0));
    assert!(counts.files_unchanged == 0 && counts.bytes > 23_000_000);

    let (again, stats) = host.back_up(&spec(dir.path()));
    let counts = stats.snapshot();
    assert_eq!(again.trees, outcome.trees, "an unchanged tree is the same tree");
    assert_eq!(
        (counts.files_unchanged, counts.bytes_read, counts.packs),
        (804, 0, 0)
    );
    assert_eq!(*host.remote.fetched.lock(), 0, "nodes come from the cache");

    fs::write(dir.path().join("dir-3/sub/f5"), b"changed").unwrap();
    fs::remove_file(dir.path().join("dir-4/sub/f6")).unwrap();
    let (changed, stats) = host.back_up(&spec(dir.path()));
    assert_eq!(host.stored_tree(&changed), real_tree(dir.path()));
    let counts = stats.snapshot();
    assert_eq!(
        (counts.files, counts.files_unchanged, counts.bytes_read),
        (803, 802, 7)
    );
}

#[test]
fn losing_the_cache_costs_fetches_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    make_tree(dir.path());
    let mut host = Host::new();
    let (first, _) = host.back_up(&spec(dir.path()));
    fs::write(host.state.path().join("source.nodes"), noise(1, 5000)).unwrap();
    let (again, stats) = host.back_up(&spec(dir.path()));
    assert_eq!(again.trees, first.trees);
    assert_eq!(stats.snapshot().bytes_read, 0);
    assert!(*host.remote.fetched.lock() > 20);
}

#[test]
fn what_the_other_side_lost_is_sent_again() {
    let dir = tempfile::tempdir().unwrap();
    make_tree(dir.path());
    let mut host = Host::new();
    let (first, _) = host.back_up(&spec(dir.path()));
    let everything: HashSet<ChunkId> = host.remote.blobs.lock().keys().copied().collect();
    let lost: HashSet<ChunkId> = everything.iter().copied().filter(|id| id.0[0] % 3 == 0).collect();
    host.remote.blobs.lock().retain(|id, _| !lost.contains(id));
    let (again, _) = host.back_up_missing(&spec(dir.path()), lost);
    assert_eq!(again.trees, first.trees);
    assert_eq!(host.stored_tree(&again), real_tree(dir.path()));
}

#[test]
fn rules_leave_out_what_they_name_and_own_state_is_never_read() {
    let dir = tempfile::tempdir().unwrap();
    make_tree(dir.path());
    fs::create_dir(dir.path().join("store")).unwrap();
    fs::create_dir(dir.path().join("store/packs")).unwrap();
    fs::write(dir.path().join("store/holdfast-store.toml"), b"x").unwrap();
    let mut host = Host::new();
    let exclude = vec!["large".into(), "/dir-1*/".into()];
    let (outcome, _) = host.back_up(&FilesSpec {
        exclude,
        ..spec(dir.path())
    });
    let tree = host.stored_tree(&outcome);
    assert!(
        !tree
            .keys()
            .any(|path| path.starts_with("large") || path.starts_with("dir-1") || path.starts_with("store"))
    );
    assert!(tree.contains_key(Path::new("dir-2/sub/f1")));
}

#[test]
fn several_roots_and_single_files_are_trees_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    make_tree(dir.path());
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let roots = vec![path("dir-5"), path("large"), path("dir-6")];
    let mut host = Host::new();
    let (outcome, _) = host.back_up(&FilesSpec {
        roots: roots.clone(),
        ..FilesSpec::default()
    });
    let paths: Vec<_> = outcome
        .trees
        .iter()
        .map(|tree| String::from_utf8(tree.path.clone()).unwrap())
        .collect();
    assert_eq!(paths, roots);
    let EntryKind::File { content, .. } = &outcome.trees[1].entry.kind else {
        panic!("not a file")
    };
    assert_eq!(host.content(content), fs::read(dir.path().join("large")).unwrap());
}

#[test]
fn a_file_that_changes_all_the_time_is_stored_and_marked() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("busy");
    fs::write(&path, noise(1, 20 << 20)).unwrap();
    fs::write(dir.path().join("calm"), b"calm").unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let writer = {
        let (path, stop) = (path.clone(), Arc::clone(&stop));
        std::thread::spawn(move || {
            let file = fs::OpenOptions::new().write(true).open(path).unwrap();
            let mut round = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                std::os::unix::fs::FileExt::write_all_at(&file, &round.to_le_bytes(), round * 8 % (20 << 20))
                    .unwrap();
                round += 1;
            }
        })
    };
    let mut host = Host::new();
    let (outcome, stats) = host.back_up(&spec(dir.path()));
    stop.store(true, Ordering::Relaxed);
    writer.join().unwrap();
    let EntryKind::Dir { node, .. } = outcome.trees[0].entry.kind else {
        panic!("not a directory")
    };
    let marks: Vec<_> = host
        .entries(node)
        .iter()
        .map(|entry| entry.changed_while_read)
        .collect();
    assert_eq!(marks, [true, false]);
    assert_eq!(stats.snapshot().files_changing, 1);
    assert_eq!(
        stats.snapshot().unreadable,
        0,
        "a busy file does not make a run partial"
    );
}

#[test]
fn a_cancelled_run_ends_with_an_error() {
    let dir = tempfile::tempdir().unwrap();
    make_tree(dir.path());
    let host = Host::new();
    let cancel = Arc::new(AtomicBool::new(true));
    let settings = host.settings(&spec(dir.path()));
    let outcome = engine::run(
        settings,
        host.remote.clone(),
        host.caches(),
        Arc::default(),
        cancel,
    );
    assert!(outcome.is_err());
}
