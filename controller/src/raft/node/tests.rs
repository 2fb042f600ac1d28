//! A whole node on disk: founding, restarting, purging, retrying.

use super::*;
use crate::catalog::{Reply, model::FilesSpec};
use holdfast_core::{ClusterId, ErrorKind, HasKind as _, ManualClock, RequestId, VaultId};
use std::sync::Arc;

const WAIT: Duration = Duration::from_secs(30);

fn meta() -> Meta {
    Meta {
        cluster: ClusterId([5; 16]),
        name: "test".into(),
        generation: 1,
        recovery_recipient: "age1…".into(),
        admin_keys: Vec::new(),
        root_ca_fingerprint: vec![1; 32],
        founded_at: 0,
    }
}

async fn start(dir: &Path, snapshot_log_bytes: u64, wall: u64) -> Node {
    let clock = Arc::new(ManualClock::new(wall));
    let options = NodeOptions {
        id: 1,
        address: "127.0.0.1:1".into(),
        snapshot_log_bytes,
        clock,
    };
    Node::start(dir, options, Some(meta())).await.unwrap()
}

fn alice() -> Actor {
    Actor::Admin("alice".parse().unwrap())
}

fn put_vault(n: u64) -> Command {
    let mut id = [0; 16];
    id[8..].copy_from_slice(&n.to_be_bytes());
    Command::PutVault {
        vault: VaultId(id),
        name: format!("v{n}").parse().unwrap(),
        key_object: vec![7; 3000],
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn founds_restarts_and_remembers() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path(), SNAPSHOT_LOG_BYTES, 1_000_000).await;
    let request = RequestId::generate();
    let first = node
        .catalog()
        .propose(alice(), Some(request), put_vault(1))
        .await
        .unwrap();
    assert_eq!(
        first,
        Reply::Put {
            created: true,
            changed: true
        }
    );
    let hash = node.catalog().read().await.unwrap().hash();
    let now = node.catalog().now();
    node.shutdown().await;

    // The wall clock was set back meanwhile.
    let node = start(dir.path(), SNAPSHOT_LOG_BYTES, 5).await;
    assert!(node.catalog().now() >= now, "catalog time went back");
    let view = node.catalog().read().await.unwrap();
    assert_eq!(view.vaults().unwrap().len(), 1);
    assert_eq!(view.hash().1, hash.1);
    // The answer was lost; the retry gets it and acts no second time.
    let again = node
        .catalog()
        .propose(alice(), Some(request), put_vault(1))
        .await
        .unwrap();
    assert_eq!(again, first);
    let other = node
        .catalog()
        .propose(alice(), Some(request), put_vault(2))
        .await
        .unwrap_err();
    assert_eq!(other.kind(), ErrorKind::Conflict);
    assert_eq!(
        node.catalog().view().audit(None, 10).unwrap().items.len(),
        2,
        "founding and the vault, once"
    );
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_clusters_seed_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    start(dir.path(), SNAPSHOT_LOG_BYTES, 0).await.shutdown().await;
    let options = NodeOptions {
        id: 1,
        address: "127.0.0.1:1".into(),
        snapshot_log_bytes: SNAPSHOT_LOG_BYTES,
        clock: Arc::new(ManualClock::new(0)),
    };
    let other = Meta {
        cluster: ClusterId([6; 16]),
        ..meta()
    };
    let refused = Node::start(dir.path(), options, Some(other)).await.err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::Conflict);
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_follow_the_bytes_of_the_log_and_purge_it_and_state_survives() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path(), 100_000, 0).await;
    for n in 0..600 {
        node.catalog()
            .propose(Actor::System, None, put_vault(n))
            .await
            .unwrap();
    }
    node.catalog()
        .raft()
        .wait(Some(WAIT))
        .metrics(|metrics| metrics.purged.is_some(), "the log is purged")
        .await
        .unwrap();
    assert!(node.machine().snapshot_index().unwrap().is_some());
    let view = node.catalog().read().await.unwrap();
    let (_, hash) = view.hash();
    drop(view);
    node.shutdown().await;
    // Without sled, all comes back from snapshot and log.
    std::fs::remove_dir_all(dir.path().join("catalog")).unwrap();
    let node = start(dir.path(), 100_000, 0).await;
    let view = node.catalog().read().await.unwrap();
    assert_eq!(view.vaults().unwrap().len(), 600);
    assert_eq!(view.hash().1, hash);
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_come_back_as_errors_and_waiters_see_applied_entries() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path(), SNAPSHOT_LOG_BYTES, 0).await;
    let command = Command::PutSource {
        source: "web1/data".parse().unwrap(),
        document: "{}".into(),
        files: Some(FilesSpec {
            roots: vec!["/srv".into()],
            ..FilesSpec::default()
        }),
        postgres: None,
        limits: holdfast_core::HostLimits::default(),
    };
    let refused = node.catalog().propose(alice(), None, command).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NotFound);
    let mut changes = node.catalog().subscribe();
    changes.mark_unchanged();
    let (index, _) = node
        .catalog()
        .propose_indexed(alice(), None, put_vault(1))
        .await
        .unwrap();
    node.catalog().wait_applied(index, WAIT).await.unwrap();
    tokio::time::timeout(WAIT, changes.changed())
        .await
        .unwrap()
        .unwrap();
    assert!(node.catalog().view().applied_index() >= index);
    // Proposals side by side share syncs and all come through.
    let many: Vec<_> = (10..60)
        .map(|n| {
            let catalog = node.catalog().clone();
            tokio::spawn(async move { catalog.propose(alice(), None, put_vault(n)).await })
        })
        .collect();
    for one in many {
        one.await.unwrap().unwrap();
    }
    assert_eq!(node.catalog().read().await.unwrap().vaults().unwrap().len(), 51);
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_garbage_collection_that_was_cut_off_does_not_stop_backups() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path(), SNAPSHOT_LOG_BYTES, 0).await;
    let begun = node
        .catalog()
        .propose(alice(), None, Command::GcBegin)
        .await
        .unwrap();
    let Reply::Gc { fence } = begun else {
        panic!("{begun:?}")
    };
    node.shutdown().await;
    let node = start(dir.path(), SNAPSHOT_LOG_BYTES, 0).await;
    assert!(node.catalog().view().gc_run().unwrap().is_none());
    let late = Command::GcDelete {
        fence,
        packs: Vec::new(),
    };
    assert_eq!(
        node.catalog()
            .propose(alice(), None, late)
            .await
            .unwrap_err()
            .kind(),
        ErrorKind::Fenced
    );
    node.shutdown().await;
}
