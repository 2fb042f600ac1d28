//! Invariant 8 from inside: trees, links and neighbours that try to lead a restore out of its target.

use crate::{RestoreOptions, restore, testing::*};
use holdfast_core::{ErrorKind, HasKind};
use holdfast_repo::{ChunkRef, Content, EntryKind, Strategy};
use std::{
    fs,
    os::unix::fs::symlink,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

#[tokio::test]
async fn names_that_climb_are_refused() {
    let mut repo = Repo::new();
    // The encoding above is right: an honest name passes.
    let honest = repo.crafted(&[(b"honest", Crafted::EmptyFile)]);
    let nodes: Vec<_> = [&b".."[..], b".", b"a/b", b"../x", b"/abs", b"nul\0"]
        .iter()
        .map(|name| repo.crafted(&[(name, Crafted::EmptyFile)]))
        .collect();
    let inner = repo.crafted(&[(b"inner", Crafted::EmptyFile)]);
    let through = repo.crafted(&[(b"..", Crafted::Dir(inner))]);
    let mut items: Vec<(String, Item)> = nodes
        .into_iter()
        .enumerate()
        .map(|(n, node)| (format!("n{n}"), dir_of(node)))
        .collect();
    items.push(("honest".into(), dir_of(honest)));
    items.push(("through".into(), dir_of(through)));
    let tree = Item::Dir(
        0o755,
        items
            .into_iter()
            .map(|(name, item)| (name.into_bytes(), item))
            .collect(),
    );
    let (snapshot, _) = snapshot(&mut repo, &[("/t", tree)]).await;
    let above = tempfile::tempdir().unwrap();
    let to = above.path().join("to");
    let report = restore(&snapshot, &to, RestoreOptions::default()).await.unwrap();
    assert_eq!(report.problems.count, 7, "{:?}", report.problems);
    assert!(
        report
            .problems
            .listed
            .iter()
            .all(|problem| problem.kind == ErrorKind::Corrupt)
    );
    assert!(to.join("t/honest/honest").is_file());
    assert_eq!(report.files, 1);
    assert_eq!(fs::read_dir(above.path()).unwrap().count(), 1);
    assert!(!to.join("t/inner").exists());
}

#[tokio::test]
async fn a_tree_does_not_go_through_another_trees_link() {
    let outside = tempfile::tempdir().unwrap();
    let mut repo = Repo::new();
    let first = dir([("a", link(outside.path().to_str().unwrap()))]);
    let second = dir([("passwd", file("planted"))]);
    let trees = [("/srv", first), ("/srv/a", second.clone()), ("/srv/a/b", second)];
    let (snapshot, _) = snapshot(&mut repo, &trees).await;
    let to = tempfile::tempdir().unwrap();
    let report = restore(&snapshot, to.path(), RestoreOptions::default())
        .await
        .unwrap();
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0, "{report:?}");
}

#[tokio::test]
async fn links_in_the_way_are_replaced_and_never_followed() {
    let outside = tempfile::tempdir().unwrap();
    fs::create_dir(outside.path().join("inner")).unwrap();
    fs::write(outside.path().join("precious"), "precious").unwrap();
    let tree = dir([
        (
            "dir",
            dir([("file", file("new")), ("inner", dir([("x", file("x"))]))]),
        ),
        ("plain", file("new")),
    ]);
    let mut repo = Repo::new();
    let (snapshot, _) = snapshot(&mut repo, &[("/a/t", tree.clone())]).await;
    let to = tempfile::tempdir().unwrap();
    fs::create_dir_all(to.path().join("a/t")).unwrap();
    symlink(outside.path(), to.path().join("a/t/dir")).unwrap();
    symlink(outside.path().join("precious"), to.path().join("a/t/plain")).unwrap();
    let options = RestoreOptions {
        in_place: true,
        ..Default::default()
    };
    let report = restore(&snapshot, to.path(), options.clone()).await.unwrap();
    assert_eq!(report.problems.listed, []);
    assert_same(&to.path().join("a/t"), &tree);
    assert_eq!(fs::read(outside.path().join("precious")).unwrap(), b"precious");
    assert_eq!(fs::read_dir(outside.path().join("inner")).unwrap().count(), 0);

    // On the way to a tree nothing is replaced: a link there may be meant, and is refused.
    rustix::fs::rename(to.path().join("a"), to.path().join("b")).unwrap();
    symlink(outside.path(), to.path().join("a")).unwrap();
    let report = restore(&snapshot, to.path(), options).await.unwrap();
    assert_eq!(report.problems.count, 1);
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn links_swapped_in_meanwhile_lead_nowhere() {
    let outside = tempfile::tempdir().unwrap();
    let dirs = (0..60_u32)
        .map(|n| {
            let files = (0..20_u32)
                .map(|f| (format!("f{f}").into_bytes(), file("x")))
                .collect();
            (format!("d{n}").into_bytes(), Item::Dir(0o755, files))
        })
        .collect();
    let (snapshot, _) = snapshot(&mut Repo::new(), &[("/t", Item::Dir(0o755, dirs))]).await;
    let to = tempfile::tempdir().unwrap();
    let (stop, root, out) = (
        Arc::new(AtomicBool::new(false)),
        to.path().join("t"),
        outside.path().to_path_buf(),
    );
    let stopped = Arc::clone(&stop);
    let swapper = std::thread::spawn(move || {
        let mut swaps = 0_u64;
        while !stopped.load(Ordering::Relaxed) {
            for n in 0..60 {
                let path = root.join(format!("d{n}"));
                if rustix::fs::rename(&path, root.join(format!("moved{n}-{swaps}"))).is_ok() {
                    swaps += 1;
                    let _ = symlink(&out, &path);
                }
            }
        }
        swaps
    });
    for _ in 0..5 {
        let options = RestoreOptions {
            in_place: true,
            ..Default::default()
        };
        let _ = restore(&snapshot, to.path(), options).await.unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    assert!(swapper.join().unwrap() > 0, "nothing was swapped");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn a_tree_that_contradicts_itself_is_a_problem_and_leaves_nothing() {
    let mut repo = Repo::new();
    let chunk = repo.chunk(b"five!");
    let lie = |content, size| {
        Item::Raw(EntryKind::File {
            size,
            strategy: Strategy::ContentDefined,
            content,
        })
    };
    let wrong_len = lie(Content::Inline(vec![ChunkRef { len: 6, ..chunk }]), 6);
    let data_as_node = lie(Content::Node(chunk.id), 5);
    let data_as_dir = Item::Raw(EntryKind::Dir {
        node: chunk.id,
        files: 0,
        bytes: 0,
    });
    let repo_chunk = repo.chunk_len;
    repo.chunk_len = 100;
    let EntryKind::File { content: tree, .. } = repo.entry(b"x", &file(noise(9, 2000))).kind else {
        panic!("a file")
    };
    repo.chunk_len = repo_chunk;
    let items = dir([
        ("wrong-len", wrong_len),
        ("data-as-node", data_as_node),
        ("data-as-dir", data_as_dir),
        ("too-short", lie(tree.clone(), 2001)),
        ("too-long", lie(tree, 1999)),
        ("good", file("good")),
    ]);
    let (snapshot, _) = snapshot(&mut repo, &[("/t", items)]).await;
    let to = tempfile::tempdir().unwrap();
    let report = restore(&snapshot, to.path(), RestoreOptions::default())
        .await
        .unwrap();
    assert_eq!(report.problems.count, 5, "{:?}", report.problems);
    assert_eq!((report.files, report.bytes), (1, 4));
    for name in ["wrong-len", "data-as-node", "too-short", "too-long"] {
        assert!(!to.path().join("t").join(name).exists(), "{name}");
    }
    for path in ["/t/wrong-len", "/t/too-short"] {
        let error = snapshot
            .read_file(path.as_bytes(), std::io::sink())
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    }
}
