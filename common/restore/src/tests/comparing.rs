//! Differences between snapshots, and how little is read for them.

use crate::{Difference, Snapshot, compare, testing::*};
use holdfast_core::{ErrorKind, HasKind};
use parking_lot::Mutex;
use std::{
    collections::BTreeMap,
    ops::ControlFlow,
    sync::{Arc, atomic::Ordering},
};

/// Kind of change, path, and in what respects, as text.
async fn told(before: &Snapshot, after: &Snapshot) -> Vec<String> {
    let told = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&told);
    compare(before, after, move |difference| {
        sink.lock().push(match difference {
            Difference::Added(entry) => format!("+ {}", crate::shown(&entry.path)),
            Difference::Removed(entry) => format!("- {}", crate::shown(&entry.path)),
            Difference::Changed { path, change, .. } => {
                let all = [
                    (change.kind, "type"),
                    (change.content, "content"),
                    (change.mode, "mode"),
                    (change.owner, "owner"),
                    (change.mtime, "mtime"),
                ];
                let what: Vec<_> = all.iter().filter(|(is, _)| *is).map(|(_, name)| *name).collect();
                format!("~ {} {}", crate::shown(&path), what.join(","))
            }
        });
        ControlFlow::Continue(())
    })
    .await
    .unwrap();
    std::mem::take(&mut *told.lock())
}

#[tokio::test]
async fn every_kind_of_change_is_told() {
    let mut repo = Repo::new();
    let before = dir([
        ("same", dir([("x", file("x"))])),
        ("content", file("old")),
        ("mode", Item::File(0o600, b"m".to_vec())),
        ("gone", dir([("inner", file("1"))])),
        ("type", file("f")),
        ("dir-to-file", dir([("in", file("1"))])),
        ("link", link("a")),
        ("deep", dir([("er", dir([("f", file("1"))]))])),
    ]);
    let after = dir([
        ("same", dir([("x", file("x"))])),
        ("content", file("new")),
        ("mode", Item::File(0o644, b"m".to_vec())),
        ("new", file("n")),
        ("type", link("f")),
        ("dir-to-file", file("now")),
        ("link", link("b")),
        ("deep", dir([("er", dir([("f", file("1")), ("g", file("2"))]))])),
    ]);
    let (a, b, _) = pair(&mut repo, &[("/t", before), ("/old", dir([]))], &[("/t", after)]).await;
    let expected = [
        "- /old",
        "~ /t/content content",
        "- /t/dir-to-file",
        "- /t/dir-to-file/in",
        "+ /t/dir-to-file",
        "- /t/gone",
        "- /t/gone/inner",
        "~ /t/link content",
        "~ /t/mode mode",
        "+ /t/new",
        "~ /t/type type,mode",
        "+ /t/deep/er/g",
    ];
    let mut found = told(&a, &b).await;
    // A directory's own entries come before what is in its directories.
    found.sort_by_key(|line| line.contains("/deep/"));
    assert_eq!(found, expected);
    assert_eq!(told(&a, &a).await, Vec::<String>::new());
}

fn wide(files: usize, changed: &[usize], without: &[usize]) -> Item {
    let items = (0..files).filter(|n| !without.contains(n)).map(|n| {
        let content = if changed.contains(&n) { "changed" } else { "" };
        (format!("f{n:07}").into_bytes(), file(content))
    });
    Item::Dir(0o755, items.collect())
}

/// Files of a large tree: a million of them when HOLDFAST_LONG is set.
fn large_files() -> usize {
    let is_long = std::env::var("HOLDFAST_LONG").is_ok_and(|value| value != "0" && !value.is_empty());
    if is_long { 1_000_000 } else { 50_000 }
}

/// Half of the files in one directory, half in directories of 100.
fn large(changed: &[usize], without: &[usize]) -> Item {
    let mut many = BTreeMap::new();
    for n in 0..large_files() / 200 {
        let item = if n == 100 {
            wide(100, changed, without)
        } else {
            wide(100, &[], &[])
        };
        many.insert(format!("d{n:03}").into_bytes(), item);
    }
    dir([
        ("wide", wide(large_files() / 2, changed, without)),
        ("many", Item::Dir(0o755, many)),
    ])
}

#[tokio::test]
async fn one_change_in_a_large_tree_reads_a_handful_of_nodes() {
    let mut repo = Repo::new();
    let (a, b, counts) = pair(
        &mut repo,
        &[("/t", large(&[], &[]))],
        &[("/t", large(&[50], &[51]))],
    )
    .await;
    let nodes = || counts.nodes.swap(0, Ordering::Relaxed);
    let start = std::time::Instant::now();
    let all = told(&a, &b).await;
    let taken = start.elapsed();
    assert_eq!(
        all,
        [
            "~ /t/many/d100/f0000050 content",
            "- /t/many/d100/f0000051",
            "~ /t/wide/f0000050 content",
            "- /t/wide/f0000051",
        ]
    );
    let read = nodes();
    let files = large_files();
    eprintln!("diff of {files} files with 4 changes: {read} nodes read, {taken:?}");
    assert!(read <= 32, "{read} nodes for one change");
    assert_eq!(told(&b, &b).await, Vec::<String>::new());
    assert_eq!(nodes(), 0);
    // Looking at one file or directory reads the way to it alone.
    assert_eq!(
        b.read_file(b"/t/wide/f0000050", std::io::sink()).await.unwrap(),
        7
    );
    let read = nodes();
    assert!(read <= 4, "cat: {read}");
    let start = std::time::Instant::now();
    assert_eq!(b.list(b"/t/many/d007").await.unwrap().len(), 100);
    let (read, taken) = (nodes(), start.elapsed());
    eprintln!("ls of a directory of 100: {read} nodes read, {taken:?}");
    assert!(read <= 5, "ls: {read}");
    let start = std::time::Instant::now();
    assert_eq!(b.list(b"/t/wide").await.unwrap().len(), files / 2 - 1);
    eprintln!(
        "ls of a directory of {}: {} nodes read, {:?}",
        files / 2 - 1,
        nodes(),
        start.elapsed()
    );
}

#[tokio::test]
async fn differences_of_random_directories_are_those_of_their_names() {
    // Deletions and insertions at places that move the cuts of nodes.
    for seed in 0..12_usize {
        let mut repo = Repo::new();
        let pick = |salt: usize, n: usize| (n.wrapping_mul(2_654_435_761) ^ salt.wrapping_mul(40_503)) >> 7;
        let side = |salt: usize| {
            let names = (0..6000).filter(move |n| pick(salt + seed * 7, *n) % 37 != 0);
            let items = names.map(|n| (format!("n{n:05}").into_bytes(), file("")));
            items.collect::<BTreeMap<_, _>>()
        };
        let (left, right) = (side(1), side(2));
        let mut expected: Vec<String> = Vec::new();
        let all: std::collections::BTreeSet<_> = left.keys().chain(right.keys()).collect();
        for name in all {
            let name_text = crate::shown(name);
            match (left.contains_key(name), right.contains_key(name)) {
                (true, false) => expected.push(format!("- /t/{name_text}")),
                (false, true) => expected.push(format!("+ /t/{name_text}")),
                _ => {}
            }
        }
        assert!(!expected.is_empty());
        let (left, right) = (Item::Dir(0o755, left), Item::Dir(0o755, right));
        let (a, b, _) = pair(&mut repo, &[("/t", left)], &[("/t", right)]).await;
        assert_eq!(told(&a, &b).await, expected, "seed {seed}");
    }
}

#[tokio::test]
async fn snapshots_of_different_vaults_are_refused() {
    let (a, b, _) = pair(&mut Repo::new(), &[("/t", dir([]))], &[("/t", dir([]))]).await;
    let mut root = b.root().clone();
    root.clear.vault = holdfast_core::VaultId([9; 16]);
    let error = compare(&a, &b.with_root(root), |_| ControlFlow::Continue(()))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
}
