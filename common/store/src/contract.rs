//! What every store must do; run on each implementation.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "a contract is tested by panicking"
)]

use crate::{Area, Finished, ObjectName, Store, StoreError};
use bytes::Bytes;
use holdfast_core::{ErrorKind, HasKind, PackId, SnapshotId, VaultId};

/// Checks the whole contract on an empty store of at least 16 MiB, and leaves it empty.
pub async fn run(store: &dyn Store) {
    absent(store).await;
    written_once(store).await;
    uploads(store).await;
    bounds(store).await;
    listing(store).await;
    deletion(store).await;
    let space = store.space().await.unwrap();
    assert!(space.free <= space.total && space.total > 0);
    assert_eq!(store.strays(10).await.unwrap(), Vec::<String>::new());
}

/// Checks that a store of less than 1 MiB says so, and works again with small objects.
pub async fn full(store: &dyn Store) {
    let name = ObjectName::pack(&PackId([1; 32]));
    let error = store
        .put(&name, Bytes::from(vec![7; 1 << 20]))
        .await
        .expect_err("there is no room for it");
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    assert_eq!(store.head(&name).await.unwrap(), None);
    store.put(&name, Bytes::from_static(b"small")).await.unwrap();
    store.delete(&name).await.unwrap();
}

fn pack(n: u8) -> ObjectName {
    ObjectName::pack(&PackId([n; 32]))
}

async fn absent(store: &dyn Store) {
    assert_eq!(store.head(&pack(1)).await.unwrap(), None);
    assert!(matches!(
        store.get(&pack(1), 10).await,
        Err(StoreError::NotFound(_))
    ));
    assert!(matches!(
        store.get_range(&pack(1), 0, 0).await,
        Err(StoreError::NotFound(_))
    ));
    store
        .delete(&pack(1))
        .await
        .expect("deleting what is not there is no error");
    for area in Area::ALL {
        assert_eq!(store.list(area, None, 10).await.unwrap(), []);
    }
}

async fn written_once(store: &dyn Store) {
    let name = pack(2);
    assert_eq!(
        store.put(&name, Bytes::from_static(b"first")).await.unwrap(),
        Finished::Created
    );
    assert_eq!(
        store.put(&name, Bytes::from_static(b"second")).await.unwrap(),
        Finished::AlreadyThere
    );
    assert_eq!(
        store.get(&name, 100).await.unwrap(),
        "first",
        "an object is never changed"
    );
    assert_eq!(store.head(&name).await.unwrap(), Some(5));
    store.delete(&name).await.unwrap();
}

async fn uploads(store: &dyn Store) {
    let mut upload = store.begin_upload().await.unwrap();
    let mut all = Vec::new();
    for n in 0..40_u8 {
        let piece = vec![n; 100_000 + usize::from(n)];
        all.extend_from_slice(&piece);
        upload.write(Bytes::from(piece)).await.unwrap();
        assert_eq!(
            store.head(&pack(3)).await.unwrap(),
            None,
            "nothing is seen before the end"
        );
    }
    assert_eq!(upload.finish(&pack(3)).await.unwrap(), Finished::Created);
    assert_eq!(store.get(&pack(3), 8 << 20).await.unwrap(), all);

    let mut given_up = store.begin_upload().await.unwrap();
    given_up.write(Bytes::from_static(b"x")).await.unwrap();
    given_up.abort().await;
    let mut dropped = store.begin_upload().await.unwrap();
    dropped.write(Bytes::from_static(b"x")).await.unwrap();
    drop(dropped);
    assert_eq!(store.list(Area::Packs, None, 10).await.unwrap().len(), 1);
    store.delete(&pack(3)).await.unwrap();
}

async fn bounds(store: &dyn Store) {
    let name = pack(4);
    store.put(&name, Bytes::from_static(b"0123456789")).await.unwrap();
    assert_eq!(store.get_range(&name, 3, 4).await.unwrap(), "3456");
    assert_eq!(store.get_range(&name, 0, 10).await.unwrap(), "0123456789");
    assert_eq!(store.get_range(&name, 10, 0).await.unwrap(), "");
    for (offset, len) in [(8, 3), (11, 1), (u64::MAX, 1), (u64::MAX - 1, 4)] {
        let error = store.get_range(&name, offset, len).await.unwrap_err();
        assert!(
            matches!(error, StoreError::Short { has: 10, .. }),
            "{offset} {len}: {error}"
        );
    }
    assert!(matches!(
        store.get(&name, 9).await,
        Err(StoreError::TooLarge { len: 10, .. })
    ));
    assert_eq!(store.get(&name, 10).await.unwrap().len(), 10);
    store.delete(&name).await.unwrap();
    store.put(&name, Bytes::new()).await.unwrap();
    assert_eq!(store.get(&name, 0).await.unwrap(), "");
    store.delete(&name).await.unwrap();
}

async fn listing(store: &dyn Store) {
    let vaults = [VaultId([1; 16]), VaultId([2; 16])];
    let mut names: Vec<ObjectName> = (0..30_u8).map(|n| pack(n.wrapping_mul(37))).collect();
    for vault in &vaults {
        names.extend((0..5_u8).map(|n| ObjectName::root(vault, &SnapshotId([n; 16]))));
        names.extend((0..12).map(|n| ObjectName::key(vault, n)));
    }
    names.extend((0..3_u8).map(|n| ObjectName::catalog([n; 16])));
    for name in &names {
        store
            .put(name, Bytes::copy_from_slice(name.as_str().as_bytes()))
            .await
            .unwrap();
    }
    names.sort();
    let mut listed = Vec::new();
    for area in Area::ALL {
        for page in [1, 7, 1000] {
            let mut names = Vec::new();
            loop {
                let rows = store.list(area, names.last(), page).await.unwrap();
                assert!(rows.len() <= page);
                assert!(rows.iter().all(|row| row.len == row.name.as_str().len() as u64));
                if rows.is_empty() {
                    break;
                }
                names.extend(rows.into_iter().map(|row| row.name));
            }
            if page == 1000 {
                listed.extend(names);
            } else {
                assert!(names.is_sorted());
            }
        }
    }
    assert_eq!(listed, names);
    for name in &names {
        store.delete(name).await.unwrap();
    }
}

async fn deletion(store: &dyn Store) {
    let name = pack(5);
    store.put(&name, Bytes::from_static(b"old")).await.unwrap();
    assert_eq!(store.get_range(&name, 0, 3).await.unwrap(), "old");
    store.delete(&name).await.unwrap();
    store.delete(&name).await.unwrap();
    assert_eq!(store.head(&name).await.unwrap(), None);
    assert!(
        store.get_range(&name, 0, 3).await.is_err(),
        "a kept descriptor must not answer for it"
    );
    assert_eq!(
        store.put(&name, Bytes::from_static(b"new")).await.unwrap(),
        Finished::Created
    );
    assert_eq!(store.get(&name, 3).await.unwrap(), "new");
    store.delete(&name).await.unwrap();
}
