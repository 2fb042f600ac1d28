//! Tests of the directory store beyond the contract: marker, lock, leftovers, faults.

use super::*;
use crate::{
    Finished,
    fault::{Fault, Faults, Step},
};
use holdfast_core::{ErrorKind, HasKind, PackId};
use tempfile::TempDir;

const ID: StoreId = StoreId([7; 16]);

fn pack(n: u8) -> ObjectName {
    ObjectName::pack(&PackId([n; 32]))
}

fn faulty() -> (TempDir, DirStore, Faults) {
    let dir = tempfile::tempdir().unwrap();
    drop(DirStore::create(dir.path(), ID).unwrap());
    let faults = Faults::none();
    let store = DirStore::open_with_faults(dir.path(), faults.clone()).unwrap();
    (dir, store, faults)
}

fn leftovers(dir: &TempDir) -> usize {
    std::fs::read_dir(dir.path().join("tmp")).unwrap().count()
}

#[tokio::test]
async fn keeps_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    let store = DirStore::create(&dir.path().join("deep/er"), ID).unwrap();
    assert_eq!(store.id(), ID);
    crate::contract::run(&store).await;
}

#[tokio::test]
async fn is_there_after_reopening_and_only_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = DirStore::create(dir.path(), ID).unwrap();
    store.put(&pack(1), Bytes::from_static(b"x")).await.unwrap();
    assert_eq!(
        DirStore::open(dir.path()).err().unwrap().kind(),
        ErrorKind::Conflict
    );
    let reader = DirStore::open_read_only(dir.path()).unwrap();
    assert_eq!(reader.get(&pack(1), 1).await.unwrap(), "x");
    assert_eq!(
        reader.put(&pack(2), Bytes::new()).await.unwrap_err().kind(),
        ErrorKind::Conflict
    );
    assert_eq!(
        reader.delete(&pack(1)).await.unwrap_err().kind(),
        ErrorKind::Conflict
    );
    drop((store, reader));
    let store = DirStore::open(dir.path()).unwrap();
    assert_eq!((store.id(), store.head(&pack(1)).await.unwrap()), (ID, Some(1)));
    assert_eq!(
        DirStore::create(dir.path(), ID).err().unwrap().kind(),
        ErrorKind::Conflict
    );
}

#[tokio::test]
async fn a_missing_marker_means_offline_and_never_empty() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(
        DirStore::open(dir.path()).err().unwrap().kind(),
        ErrorKind::Unavailable
    );
    let store = DirStore::create(dir.path(), ID).unwrap();
    std::fs::remove_file(dir.path().join(MARKER)).unwrap();
    assert_eq!(
        store.head(&pack(1)).await.unwrap_err().kind(),
        ErrorKind::Unavailable
    );
    assert_eq!(
        store.get(&pack(1), 9).await.unwrap_err().kind(),
        ErrorKind::Unavailable
    );
    assert_eq!(
        store.list(Area::Packs, None, 9).await.unwrap_err().kind(),
        ErrorKind::Unavailable
    );
    assert_eq!(
        store.delete(&pack(1)).await.unwrap_err().kind(),
        ErrorKind::Unavailable
    );
    assert_eq!(
        store.put(&pack(1), Bytes::new()).await.unwrap_err().kind(),
        ErrorKind::Unavailable
    );
}

#[test]
fn a_newer_version_and_a_damaged_marker_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(DirStore::create(dir.path(), ID).unwrap());
    let marker = dir.path().join(MARKER);
    std::fs::write(&marker, format!("version = 2\nid = \"{ID}\"\n")).unwrap();
    assert_eq!(
        DirStore::open(dir.path()).err().unwrap().kind(),
        ErrorKind::Unsupported
    );
    std::fs::write(&marker, "version = ").unwrap();
    assert_eq!(
        DirStore::open(dir.path()).err().unwrap().kind(),
        ErrorKind::Unavailable
    );
}

#[test]
fn a_directory_in_use_does_not_become_a_store() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("letter.txt"), "dear").unwrap();
    assert_eq!(
        DirStore::create(dir.path(), ID).err().unwrap().kind(),
        ErrorKind::Conflict
    );
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn an_interrupted_creation_is_taken_up_again() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("packs")).unwrap();
    std::fs::create_dir(dir.path().join("tmp")).unwrap();
    std::fs::write(dir.path().join("tmp").join(MARKER), "ver").unwrap();
    assert_eq!(DirStore::create(dir.path(), ID).unwrap().id(), ID);
}

#[tokio::test]
async fn leftovers_of_a_dead_process_are_removed_at_open() {
    let dir = tempfile::tempdir().unwrap();
    drop(DirStore::create(dir.path(), ID).unwrap());
    std::fs::write(dir.path().join("tmp/upload-0"), "half").unwrap();
    let store = DirStore::open(dir.path()).unwrap();
    assert_eq!(leftovers(&dir), 0);
    store.put(&pack(1), Bytes::from_static(b"x")).await.unwrap();
}

#[tokio::test]
async fn strays_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let store = DirStore::create(dir.path(), ID).unwrap();
    store.put(&pack(0xab), Bytes::from_static(b"x")).await.unwrap();
    std::fs::write(dir.path().join("packs/ab/notes"), "").unwrap();
    std::fs::create_dir_all(dir.path().join("packs/zz/deep")).unwrap();
    std::fs::write(dir.path().join("readme"), "").unwrap();
    assert_eq!(
        store.strays(10).await.unwrap(),
        ["packs/ab/notes", "packs/zz", "readme"]
    );
    assert_eq!(store.strays(1).await.unwrap().len(), 1);
    assert_eq!(store.list(Area::Packs, None, 10).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_failed_step_before_the_name_leaves_nothing_and_can_be_done_again() {
    for (step, fault) in [
        (Step::Begin, Fault::Fails),
        (Step::Write, Fault::Cut),
        (Step::Write, Fault::NoSpace),
        (Step::Sync, Fault::Fails),
        (Step::Sync, Fault::NoSpace),
        (Step::Rename, Fault::Fails),
    ] {
        let (dir, store, faults) = faulty();
        faults.at(step, 1, fault);
        let error = store
            .put(&pack(1), Bytes::from(vec![1; 3 << 20]))
            .await
            .unwrap_err();
        let kind = if fault == Fault::NoSpace {
            ErrorKind::NoSpace
        } else {
            ErrorKind::Io
        };
        assert_eq!(error.kind(), kind, "{step:?}");
        assert_eq!((faults.struck(), leftovers(&dir)), (1, 0), "{step:?}");
        assert_eq!(store.head(&pack(1)).await.unwrap(), None, "{step:?}");
        let again = store.put(&pack(1), Bytes::from(vec![1; 3 << 20])).await.unwrap();
        assert_eq!(again, Finished::Created, "{step:?}");
    }
}

#[tokio::test]
async fn a_failed_directory_sync_stops_all_writes() {
    let (dir, store, faults) = faulty();
    // The first syncs are those of the new directory's parents.
    store.put(&pack(1), Bytes::from_static(b"x")).await.unwrap();
    store.delete(&pack(1)).await.unwrap();
    faults.at(Step::SyncDir, 1, Fault::Fails);
    assert_eq!(
        store
            .put(&pack(1), Bytes::from_static(b"x"))
            .await
            .unwrap_err()
            .kind(),
        ErrorKind::Io
    );
    for _ in 0..2 {
        let error = store.put(&pack(2), Bytes::from_static(b"x")).await.unwrap_err();
        assert!(matches!(error, StoreError::Poisoned { .. }), "{error}");
    }
    assert!(matches!(
        store.delete(&pack(1)).await,
        Err(StoreError::Poisoned { .. })
    ));
    drop(store);
    let store = DirStore::open(dir.path()).unwrap();
    store.put(&pack(2), Bytes::from_static(b"x")).await.unwrap();
}

#[tokio::test]
async fn no_space_at_the_directory_sync_takes_the_name_back() {
    let (_dir, store, faults) = faulty();
    store.put(&pack(1), Bytes::from_static(b"x")).await.unwrap();
    store.delete(&pack(1)).await.unwrap();
    faults.at(Step::SyncDir, 1, Fault::NoSpace);
    assert_eq!(
        store
            .put(&pack(1), Bytes::from_static(b"x"))
            .await
            .unwrap_err()
            .kind(),
        ErrorKind::NoSpace
    );
    assert_eq!(store.head(&pack(1)).await.unwrap(), None);
    store.put(&pack(1), Bytes::from_static(b"x")).await.unwrap();
}

#[tokio::test]
async fn every_new_name_costs_a_data_sync_and_a_directory_sync() {
    let (_dir, store, faults) = faulty();
    store.put(&pack(1), Bytes::from_static(b"x")).await.unwrap();
    let dirs = faults.count(Step::SyncDir);
    assert_eq!(
        (faults.count(Step::Sync), dirs),
        (1, 3),
        "packs/, the store and packs/01"
    );
    store.put(&pack(1), Bytes::from_static(b"x")).await.unwrap();
    assert_eq!(
        (faults.count(Step::Sync), faults.count(Step::SyncDir)),
        (2, dirs + 1)
    );
    store.delete(&pack(1)).await.unwrap();
    assert_eq!(faults.count(Step::SyncDir), dirs + 2);
}

#[tokio::test]
async fn a_truncated_object_is_told_from_a_missing_one() {
    let dir = tempfile::tempdir().unwrap();
    let store = DirStore::create(dir.path(), ID).unwrap();
    store
        .put(&pack(1), Bytes::from_static(b"0123456789"))
        .await
        .unwrap();
    store.get_range(&pack(1), 0, 10).await.unwrap();
    std::fs::OpenOptions::new()
        .write(true)
        .open(dir.path().join(pack(1).as_str()))
        .unwrap()
        .set_len(4)
        .unwrap();
    assert_eq!(
        store.get_range(&pack(1), 0, 10).await.unwrap_err().kind(),
        ErrorKind::Corrupt
    );
}

#[tokio::test]
async fn many_more_packs_than_descriptors_can_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let store = DirStore::create(dir.path(), ID).unwrap();
    for n in 0..=255 {
        store.put(&pack(n), Bytes::from(vec![n])).await.unwrap();
    }
    for _ in 0..2 {
        for n in 0..=255 {
            assert_eq!(store.get_range(&pack(n), 0, 1).await.unwrap()[0], n);
        }
    }
}
