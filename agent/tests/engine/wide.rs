//! Directories of many sections: the same snapshot as in one, in bounded memory, whatever happens meanwhile.

use crate::host::{Host, Memory, real_tree, spec};
use bytes::Bytes;
use holdfast_agent::{
    Result,
    engine::{self, Settings, Stats, Width},
    remote::Remote,
};
use holdfast_core::{ChunkId, PackId};
use holdfast_repo::EntryKind;
use parking_lot::Mutex;
use proptest::prelude::*;
use std::{collections::BTreeSet, fs, os::unix::fs::symlink, path::Path, sync::Arc};

/// Sections of few names, and hardly any memory for names.
const NARROW: Width = Width {
    section: 3,
    names_held: 100,
};

fn narrow() -> Host {
    let mut host = Host::new();
    host.width = NARROW;
    host
}

/// One thing under a name; what was there before goes.
fn put(dir: &Path, name: u16, what: u8) {
    let path = dir.join(format!("n{name}"));
    if path.is_dir() && !path.is_symlink() {
        fs::remove_dir_all(&path).unwrap();
    } else if path.symlink_metadata().is_ok() {
        fs::remove_file(&path).unwrap();
    }
    match what % 6 {
        0 => {}
        1 => symlink("elsewhere", &path).unwrap(),
        2 => {
            fs::create_dir(&path).unwrap();
            (0..what / 6).for_each(|n| put(&path, n.into(), n));
        }
        3 => fs::write(&path, vec![what; 200_000]).unwrap(),
        _ => fs::write(&path, [what; 9]).unwrap(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn sections_make_the_same_nodes_as_a_whole(
        runs in proptest::collection::vec(proptest::collection::vec((0..60_u16, any::<u8>()), 0..80), 1..4),
        section in 1..9_usize,
        names_held in 1..2000_usize,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let (mut whole, mut cut) = (Host::new(), Host::new());
        cut.width = Width { section, names_held };
        for run in runs {
            run.into_iter().for_each(|(name, what)| put(dir.path(), name, what));
            let (expected, counted) = whole.back_up(&spec(dir.path()));
            let (found, stats) = cut.back_up(&spec(dir.path()));
            prop_assert_eq!(&found.trees, &expected.trees);
            let (counted, stats) = (counted.snapshot(), stats.snapshot());
            prop_assert_eq!(
                (stats.files, stats.dirs, stats.files_unchanged, stats.bytes_read, stats.files_vanished),
                (counted.files, counted.dirs, counted.files_unchanged, counted.bytes_read, 0)
            );
            prop_assert_eq!((&found.uids, &found.gids), (&expected.uids, &expected.gids));
            prop_assert_eq!(cut.stored_tree(&found), real_tree(dir.path()));
        }
    }
}

#[test]
fn names_that_change_come_and_go_around_borders_are_seen() {
    let dir = tempfile::tempdir().unwrap();
    let path = |n: u32| dir.path().join(format!("f{n:05}"));
    (0..3000).for_each(|n| fs::write(path(n), n.to_le_bytes()).unwrap());
    let mut host = Host::new();
    host.width = Width {
        section: 10,
        names_held: 20_000,
    };
    let (first, _) = host.back_up(&spec(dir.path()));
    assert_eq!(host.stored_tree(&first), real_tree(dir.path()));
    let (again, stats) = host.back_up(&spec(dir.path()));
    assert_eq!(again.trees, first.trees);
    assert_eq!(stats.snapshot().files_unchanged, 3000);
    // The last and first of sections, and whole sections.
    for n in [0, 9, 10, 19, 20, 2999].into_iter().chain(500..520) {
        fs::remove_file(path(n)).unwrap();
    }
    for n in [29, 30, 1000, 1009] {
        fs::write(path(n), b"changed").unwrap();
    }
    for n in [39, 40, 2998] {
        fs::write(path(n).with_extension("new"), b"new").unwrap();
    }
    let (changed, stats) = host.back_up(&spec(dir.path()));
    assert_eq!(host.stored_tree(&changed), real_tree(dir.path()));
    let counts = stats.snapshot();
    assert_eq!((counts.files, counts.files_unchanged), (2977, 2970));
    assert_eq!(counts.bytes_read, 4 * 7 + 3 * 3);
}

#[test]
fn only_leaves_that_are_needed_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = |n: u32| dir.path().join(format!("f{n:05}"));
    (0..20_000).for_each(|n| fs::write(path(n), b"").unwrap());
    let mut host = Host::new();
    let (_, _) = host.back_up(&spec(dir.path()));
    let nodes = host.remote.blobs.lock().len();
    (0..20_000)
        .filter(|n| n % 5000 != 0)
        .for_each(|n| fs::remove_file(path(n)).unwrap());
    fs::write(host.state.path().join("source.nodes"), b"").unwrap();
    let (_, stats) = host.back_up(&spec(dir.path()));
    assert_eq!(stats.snapshot().files_unchanged, 4);
    let fetched = *host.remote.fetched.lock();
    assert!(nodes > 40 && fetched <= 6, "{fetched} of {nodes}");
}

#[test]
fn many_subdirectories_links_and_roots_go_through_sections() {
    let dir = tempfile::tempdir().unwrap();
    for n in 0..40 {
        let sub = dir.path().join(format!("d{n:02}"));
        fs::create_dir(&sub).unwrap();
        for m in 0..n % 9 {
            fs::create_dir_all(sub.join(format!("s{m}/deep"))).unwrap();
            fs::write(sub.join(format!("s{m}/deep/f")), [n; 5]).unwrap();
        }
        // A large file whose names wait for each other across sections.
        let linked = dir.path().join("linked");
        if n == 0 {
            fs::write(&linked, crate::host::noise(5, 3 << 20)).unwrap();
        }
        fs::hard_link(&linked, dir.path().join(format!("x{n:02}"))).unwrap();
    }
    let mut host = narrow();
    let (first, stats) = host.back_up(&spec(dir.path()));
    assert_eq!(host.stored_tree(&first), real_tree(dir.path()));
    assert_eq!(
        stats.snapshot().bytes_read,
        (3 << 20) + 5 * stats.snapshot().files - 5 * 41
    );
    let (again, stats) = host.back_up(&spec(dir.path()));
    assert_eq!(again.trees, first.trees);
    assert_eq!(stats.snapshot().bytes_read, 0);
}

/// A remote side during whose first query something happens.
struct Meanwhile {
    inner: Arc<Memory>,
    event: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl Remote for Meanwhile {
    fn known(&self, ids: &[ChunkId]) -> Result<Vec<bool>> {
        if let Some(event) = self.event.lock().take() {
            event();
        }
        self.inner.known(ids)
    }

    fn fetch(&self, ids: &[ChunkId]) -> Result<Vec<Option<Bytes>>> {
        self.inner.fetch(ids)
    }

    fn upload(&self, pack: PackId, bytes: Bytes) -> Result<()> {
        self.inner.upload(pack, bytes)
    }
}

/// Backs `root` up with one worker, while `event` happens after some of it was read.
fn back_up_while(
    host: &Host,
    root: &Path,
    width: Width,
    event: impl FnOnce() + Send + 'static,
) -> (engine::Outcome, Arc<Stats>) {
    let settings = Settings {
        workers: 1,
        width,
        ..host.settings(&spec(root))
    };
    let remote = Meanwhile {
        inner: Arc::clone(&host.remote),
        event: Mutex::new(Some(Box::new(event))),
    };
    let stats = Arc::new(Stats::default());
    let outcome = engine::run(
        settings,
        Arc::new(remote),
        host.caches(),
        Arc::clone(&stats),
        Arc::default(),
    )
    .unwrap();
    (outcome, stats)
}

fn names(host: &Host, outcome: &engine::Outcome, below: Option<&str>) -> BTreeSet<String> {
    let mut node = outcome.trees[0].entry.kind.clone();
    if let (Some(below), EntryKind::Dir { node: top, .. }) = (below, &node) {
        let entries = host.entries(*top);
        let entry = entries.iter().find(|entry| entry.name == below.as_bytes());
        node = entry.unwrap().kind.clone();
    }
    let EntryKind::Dir { node, .. } = node else {
        panic!("not a directory")
    };
    let entries = host.entries(node);
    entries
        .into_iter()
        .map(|entry| String::from_utf8(entry.name).unwrap())
        .collect()
}

#[test]
fn a_directory_that_is_replaced_meanwhile_is_what_was_found_of_both() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    for (parent, range) in [("root/wide", 0..100), ("other", 50..150)] {
        let parent = dir.path().join(parent);
        fs::create_dir_all(&parent).unwrap();
        range.for_each(|n: u32| fs::write(parent.join(format!("f{n:03}")), n.to_le_bytes()).unwrap());
    }
    let (wide, other, away) = (
        root.join("wide"),
        dir.path().join("other"),
        dir.path().join("away"),
    );
    let host = narrow();
    let (outcome, stats) = back_up_while(&host, &root, NARROW, move || {
        rename(&wide, away).unwrap();
        rename(other, wide).unwrap();
    });
    // Whatever was listed and is there by that name when its turn comes; nothing twice, and no other failure.
    let found = names(&host, &outcome, Some("wide"));
    assert!(!found.contains("f049") && found.contains("f099"), "{found:?}");
    let counts = stats.snapshot();
    assert_eq!(counts.unreadable, 0);
    assert!(counts.files_vanished > 0);
    assert_eq!(counts.files, found.len() as u64);
}

#[test]
fn a_directory_that_goes_away_meanwhile_has_vanished() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    fs::create_dir_all(root.join("wide")).unwrap();
    (0..100_u32).for_each(|n| fs::write(root.join(format!("wide/f{n:03}")), n.to_le_bytes()).unwrap());
    let host = Host::new();
    let (wide, away) = (root.join("wide"), dir.path().join("away"));
    let width = Width {
        section: 3,
        ..Width::default()
    };
    let (outcome, stats) = back_up_while(&host, &root, width, move || rename(&wide, away).unwrap());
    let kept = names(&host, &outcome, Some("wide")).len() as u64;
    let counts = stats.snapshot();
    assert!(kept < 100 && counts.unreadable == 0);
    assert_eq!(counts.files_vanished + kept, 100);
}

#[expect(clippy::disallowed_methods, reason = "a source's owner syncs nothing")]
fn rename(from: impl AsRef<std::path::Path>, to: impl AsRef<std::path::Path>) -> std::io::Result<()> {
    fs::rename(from, to)
}
