//! Invariant 6 from inside: damaged bytes become another copy or an error, never wrong content.

use crate::{RestoreOptions, Snapshot, Verifier, VerifyReport, restore, testing::*};
use holdfast_core::{ErrorKind, HasKind, SnapshotId, StoreId};
use holdfast_store::{DirStore, MemStore, ObjectName, Store};
use std::{fs, sync::Arc};

fn tree() -> Item {
    dir([
        (
            "a",
            dir([("one", file(noise(1, 5000))), ("two", file(noise(2, 100)))]),
        ),
        ("large", file(noise(3, 40_000))),
    ])
}

async fn verify(snapshot: &Snapshot) -> VerifyReport {
    Verifier::new(true, Arc::default(), Arc::default())
        .verify(snapshot)
        .await
        .unwrap()
}

/// Every path of the tree that is restored is right; returns how many files are.
fn right_files(to: &std::path::Path) -> usize {
    let expected = [
        ("a/one", noise(1, 5000)),
        ("a/two", noise(2, 100)),
        ("large", noise(3, 40_000)),
    ];
    expected
        .iter()
        .filter(|(path, content)| match fs::read(to.join("t").join(path)) {
            Ok(found) => {
                assert!(found == *content, "{path}: wrong bytes were restored");
                true
            }
            Err(_) => false,
        })
        .count()
}

#[tokio::test]
async fn flipped_bits_are_found_and_never_restored() {
    let mut repo = Repo::new();
    repo.chunk_len = 4096;
    let root = repo.root(SnapshotId([3; 16]), &[("/t", tree())]);
    let store = MemStore::new(StoreId([1; 16]), 1 << 30);
    repo.put_packs(&store).await;
    let clean = verify(&open(&repo, &root, &store).await).await;
    assert_eq!(clean.findings.count, 0);
    assert_eq!((clean.bytes, clean.nodes), (45_100, 3));
    for (pack, bytes) in &repo.packs {
        let mut at = 33;
        while at < bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << (at % 8);
            damage(&store, pack, flipped);
            let snapshot = open(&repo, &root, &store).await;
            let found = verify(&snapshot).await.findings.count;
            let to = tempfile::tempdir().unwrap();
            let report = restore(&snapshot, to.path(), RestoreOptions::default())
                .await
                .unwrap();
            let right = right_files(to.path());
            assert_eq!(right as u64, report.files);
            // Damage in a pack's own directory is read past; any other costs something, and is said.
            assert_eq!(report.problems.count > 0, right < 3, "byte {at}");
            assert_eq!(found > 0, right < 3, "byte {at}");
            at += bytes.len() / 40 + 1;
        }
        damage(&store, pack, bytes.clone());
    }
}

#[tokio::test]
async fn flips_in_blobs_are_all_found_and_name_path_and_chunk() {
    let mut repo = Repo::new();
    let (_, store) = snapshot(&mut repo, &[("/t", tree())]).await;
    let id = repo.keys.data_id(&noise(2, 100));
    let (pack, offset, len) = repo.find(id);
    let root = repo.root(SnapshotId([3; 16]), &[("/t", tree())]);
    for byte in [0, 20, 57, len / 2, len - 1] {
        let (pack_id, bytes) = &repo.packs[pack];
        let mut flipped = bytes.clone();
        flipped[offset + byte] ^= 4;
        damage(&store, pack_id, flipped);
        let snapshot = open(&repo, &root, &store).await;
        let report = verify(&snapshot).await;
        assert_eq!(report.findings.count, 1, "byte {byte}");
        let finding = &report.findings.listed[0];
        assert_eq!(finding.path, b"/t/a/two");
        assert!(finding.reason.contains(&id.to_string()), "{}", finding.reason);
        let error = snapshot
            .read_file(b"/t/a/two", std::io::sink())
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        let text = error.to_string();
        assert!(
            text.contains("/t/a/two") && text.contains(&id.to_string()),
            "{text}"
        );
        let to = tempfile::tempdir().unwrap();
        let report = restore(&snapshot, to.path(), RestoreOptions::default())
            .await
            .unwrap();
        assert_eq!(report.problems.count, 1);
        assert_eq!(right_files(to.path()), 2);
    }
}

#[tokio::test]
async fn another_copy_is_taken_where_there_is_one() {
    let mut repo = Repo::new();
    repo.twice = true;
    repo.chunk_len = 4096;
    let root = repo.root(SnapshotId([3; 16]), &[("/t", tree())]);
    let store = MemStore::new(StoreId([1; 16]), 1 << 30);
    repo.put_packs(&store).await;
    assert_eq!(repo.packs.len(), 4);
    // Half of the packs is damaged in every blob.
    for (at, (pack, bytes)) in repo.packs.iter().enumerate().filter(|(at, _)| at % 2 == 0) {
        let directory = holdfast_repo::PackDirectory::verify(bytes, *pack, VAULT).unwrap();
        let mut flipped = bytes.clone();
        for entry in &directory.entries {
            let byte = if at == 0 { entry.len as usize - 1 } else { 60 };
            flipped[entry.offset as usize + byte] ^= 1;
        }
        damage(&store, pack, flipped);
    }
    let snapshot = open(&repo, &root, &store).await;
    assert_eq!(verify(&snapshot).await.findings.count, 0);
    let to = tempfile::tempdir().unwrap();
    let report = restore(&snapshot, to.path(), RestoreOptions::default())
        .await
        .unwrap();
    assert_eq!(report.problems.listed, []);
    assert_same(&to.path().join("t"), &tree());
}

#[tokio::test]
async fn a_lost_pack_costs_what_was_in_it_and_no_more() {
    let mut repo = Repo::new();
    let tree = dir([("good", file("good")), ("gone", missing_file())]);
    let (snapshot, _) = snapshot(&mut repo, &[("/t", tree)]).await;
    let report = verify(&snapshot).await;
    assert_eq!(report.findings.count, 1);
    let to = tempfile::tempdir().unwrap();
    let report = restore(&snapshot, to.path(), RestoreOptions::default())
        .await
        .unwrap();
    assert_eq!((report.files, report.problems.count), (1, 1));
    assert!(report.problems.listed[0].reason.contains("not stored"));
    assert!(!to.path().join("t/gone").exists());
}

#[tokio::test]
async fn shared_content_is_verified_once() {
    let mut repo = Repo::new();
    let (snapshot, _) = snapshot(&mut repo, &[("/t", tree()), ("/u", tree())]).await;
    let verifier = Verifier::new(true, Arc::default(), Arc::default());
    let first = verifier.verify(&snapshot).await.unwrap();
    assert_eq!((first.chunks, first.bytes), (3, 45_100));
    let second = verifier.verify(&snapshot).await.unwrap();
    assert_eq!((second.nodes, second.chunks), (0, 0));
    let nodes_only = Verifier::new(false, Arc::default(), Arc::default())
        .verify(&snapshot)
        .await
        .unwrap();
    assert_eq!((nodes_only.nodes, nodes_only.chunks), (first.nodes, 0));
}

#[tokio::test]
async fn a_directory_store_is_read_past_a_damaged_pack_directory() {
    let mut repo = Repo::new();
    let root = repo.root(SnapshotId([3; 16]), &[("/t", tree())]);
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("store");
    let store = DirStore::create(&path, StoreId([1; 16])).unwrap();
    repo.put_packs(&store).await;
    drop(store);
    for (pack, bytes) in &repo.packs {
        let file = path.join(ObjectName::pack(pack).as_str());
        let mut cut = bytes.clone();
        cut.truncate(bytes.len() - 60);
        fs::remove_file(&file).unwrap();
        fs::write(&file, cut).unwrap();
    }
    let store: Arc<dyn Store> = Arc::new(DirStore::open_read_only(&path).unwrap());
    let source = crate::StoreSource::open(store, VAULT).await.unwrap();
    assert_eq!(source.damaged_packs(), 2);
    let snapshot = Snapshot::open(&root, Arc::new(source), Arc::clone(&repo.keys)).unwrap();
    let to = tempfile::tempdir().unwrap();
    let report = restore(&snapshot, to.path(), RestoreOptions::default())
        .await
        .unwrap();
    assert_eq!(report.problems.listed, []);
    assert_same(&to.path().join("t"), &tree());
}
