//! Invariant 10 from inside: a store and the kit, and nothing forged is believed.

use crate::{Recovery, RestoreOptions, restore, testing::*};
use bytes::Bytes;
use holdfast_core::{ClusterId, ErrorKind, HasKind, SnapshotId, StoreId, VaultId};
use holdfast_net::{
    keys::{SealingKey, SigningKey},
    kit::RecoveryKit,
    pki::RootCa,
    sealed::{self, SealedHeader, SealedKind},
};
use holdfast_repo::VaultKeys;
use holdfast_store::{MemStore, ObjectName, Store};
use std::{sync::Arc, time::SystemTime};

struct Cluster {
    kit: RecoveryKit,
    admin: SigningKey,
}

impl Cluster {
    fn new() -> Self {
        let (cluster, admin) = (ClusterId::generate(), SigningKey::generate().unwrap());
        let kit = RecoveryKit {
            cluster,
            cluster_name: "prod".parse().unwrap(),
            recovery_key: SealingKey::generate(),
            admin_keys: vec![admin.public()],
            root: RootCa::generate(cluster, SystemTime::now()).unwrap(),
        };
        Self { kit, admin }
    }

    fn key_object(&self, keys: &VaultKeys, vault: VaultId, number: u32) -> Bytes {
        let header = SealedHeader {
            kind: SealedKind::VaultKeys,
            vault,
            number,
        };
        let recipients = [self.kit.recovery_key.recipient()];
        sealed::seal_and_sign(&keys.encode(), &recipients, &self.admin, header)
            .unwrap()
            .into()
    }
}

const ID: SnapshotId = SnapshotId([3; 16]);

async fn stored(cluster: &Cluster) -> (Repo, MemStore, Vec<u8>) {
    let mut repo = Repo::new();
    let root = repo.root(ID, &[("/t", dir([("f", file("content"))]))]);
    let store = MemStore::new(StoreId([1; 16]), 1 << 30);
    repo.put_packs(&store).await;
    store
        .put(&ObjectName::root(&VAULT, &ID), Bytes::from(root.clone()))
        .await
        .unwrap();
    let key = cluster.key_object(&repo.keys, VAULT, 1);
    store.put(&ObjectName::key(&VAULT, 1), key).await.unwrap();
    (repo, store, root)
}

async fn recovery(store: &MemStore, kit: &RecoveryKit) -> Recovery {
    Recovery::open(Arc::new(store.clone()), kit).await.unwrap()
}

#[tokio::test]
async fn store_and_kit_bring_everything_back() {
    let cluster = Cluster::new();
    let (_, store, _) = stored(&cluster).await;
    let found = recovery(&store, &cluster.kit).await;
    assert_eq!(found.refused(), []);
    let snapshots = found.snapshots();
    assert_eq!(snapshots.len(), 1);
    assert_eq!(
        (snapshots[0].id, snapshots[0].files, snapshots[0].bytes),
        (ID, 1, 7)
    );
    let to = tempfile::tempdir().unwrap();
    let snapshot = found.snapshot(ID).await.unwrap();
    restore(&snapshot, to.path(), RestoreOptions::default())
        .await
        .unwrap();
    assert_same(&to.path().join("t"), &dir([("f", file("content"))]));
    let error = found.snapshot(SnapshotId([9; 16])).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn forged_roots_are_refused_and_reported() {
    let cluster = Cluster::new();
    let (repo, store, root) = stored(&cluster).await;
    let name = ObjectName::root(&VAULT, &ID);
    let mut flipped = root.clone();
    *flipped.last_mut().unwrap() ^= 1;
    // Signed by an agent, but made without the vault's key.
    let stranger = VaultKeys::from_secrets(VAULT, [8; 32], [9; 32]);
    let opened = crate::open_root(&root, &repo.keys).unwrap();
    let without_key = opened.encode(&stranger, &repo.signer).unwrap();
    // Genuine, but of another snapshot.
    let mut other = opened.clone();
    other.clear.snapshot = SnapshotId([4; 16]);
    let renamed = other.encode(&repo.keys, &repo.signer).unwrap();
    for forged in [flipped, without_key, renamed, Vec::new(), vec![0; 300 << 10]] {
        store.damage(&name, forged.into());
        let found = recovery(&store, &cluster.kit).await;
        assert_eq!(found.snapshots(), []);
        assert_eq!(found.refused().len(), 1);
        let error = found.snapshot(ID).await.err().unwrap();
        assert_ne!(error.kind(), ErrorKind::NotFound, "{error}");
        assert!(error.to_string().contains("was refused"), "{error}");
    }
    store.damage(&name, root.into());
    assert_eq!(recovery(&store, &cluster.kit).await.snapshots().len(), 1);
}

#[tokio::test]
async fn forged_keys_are_refused_and_the_newest_genuine_one_is_used() {
    let (cluster, forger) = (Cluster::new(), Cluster::new());
    let (repo, store, _) = stored(&cluster).await;
    let wrong = VaultKeys::from_secrets(VAULT, [8; 32], [9; 32]);
    // The forger seals to the right recipient, for anyone can.
    let header = SealedHeader {
        kind: SealedKind::VaultKeys,
        vault: VAULT,
        number: 2,
    };
    let to = [cluster.kit.recovery_key.recipient()];
    let forged = sealed::seal_and_sign(&wrong.encode(), &to, &forger.admin, header).unwrap();
    store
        .put(&ObjectName::key(&VAULT, 2), forged.into())
        .await
        .unwrap();
    // The admin's own object of another vault, in this one's place.
    let elsewhere = VaultId([8; 16]);
    let moved = cluster.key_object(
        &VaultKeys::from_secrets(elsewhere, [8; 32], [9; 32]),
        elsewhere,
        3,
    );
    store.put(&ObjectName::key(&VAULT, 3), moved).await.unwrap();
    let found = recovery(&store, &cluster.kit).await;
    assert_eq!(found.refused().len(), 2, "{:?}", found.refused());
    assert_eq!(found.snapshots().len(), 1);

    // Only forged keys: no snapshot is believed.
    store.damage(&ObjectName::key(&VAULT, 1), forger.key_object(&wrong, VAULT, 1));
    let found = recovery(&store, &cluster.kit).await;
    assert_eq!(found.snapshots(), []);
    assert!(found.snapshot(ID).await.is_err());
    // A foreign kit opens nothing.
    store.damage(
        &ObjectName::key(&VAULT, 1),
        cluster.key_object(&repo.keys, VAULT, 1),
    );
    assert_eq!(recovery(&store, &forger.kit).await.snapshots(), []);
}
