//! openraft's own suite, and what must hold beyond it: rebuilding, installing, refusing damage.

use super::*;
use crate::{
    catalog::{Actor, Command, Proposal, model::Meta},
    raft::{storage::LogStore, types::StorageError},
};
use holdfast_core::ClusterId;
use openraft::{
    CommittedLeaderId,
    testing::{StoreBuilder, Suite},
};
use tempfile::TempDir;

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, Machine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, Machine), StorageError> {
        let dir = tempfile::tempdir().unwrap();
        let log = LogStore::open(&dir.path().join("raft")).unwrap();
        let machine = open(&dir);
        Ok((dir, log, machine))
    }
}

fn open(dir: &TempDir) -> Machine {
    Machine::open(&dir.path().join("catalog"), &dir.path().join("snapshots")).unwrap()
}

#[test]
fn passes_the_suite_of_openraft() {
    Suite::test_all(Builder).unwrap();
}

fn entry(index: u64, command: Command) -> Entry {
    let proposal = Proposal {
        request: None,
        time: index * 1000,
        actor: Actor::Admin("alice".parse().unwrap()),
        trace: String::new(),
        command,
    };
    Entry {
        log_id: LogId::new(CommittedLeaderId::new(1, 1), index),
        payload: EntryPayload::Normal(proposal),
    }
}

fn meta_record() -> Meta {
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

/// Entries 1..=n: founding, then vaults with long key objects.
fn entries(n: u64) -> Vec<Entry> {
    (1..=n)
        .map(|index| match index {
            1 => entry(1, Command::Init { meta: meta_record() }),
            _ => {
                let command = Command::PutVault {
                    vault: holdfast_core::VaultId([index as u8; 16]),
                    name: format!("vault{index}").parse().unwrap(),
                    key_object: vec![index as u8; 10_000],
                };
                entry(index, command)
            }
        })
        .collect()
}

#[tokio::test]
async fn a_catalog_that_is_gone_or_damaged_is_rebuilt_from_its_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let (expected, at_snapshot) = {
        let mut machine = open(&dir);
        machine.apply(entries(8)).await.unwrap();
        let at_snapshot = machine.store.index_and_hash();
        machine
            .get_snapshot_builder()
            .await
            .build_snapshot()
            .await
            .unwrap();
        machine.apply(vec![entry(9, Command::GcBegin)]).await.unwrap();
        (machine.store.index_and_hash(), at_snapshot)
    };
    // Well: nothing is rebuilt.
    assert_eq!(open(&dir).store.index_and_hash(), expected);
    // Gone.
    std::fs::remove_dir_all(dir.path().join("catalog")).unwrap();
    {
        let mut machine = open(&dir);
        assert_eq!(machine.store.index_and_hash(), at_snapshot);
        // The log gives the rest.
        machine.apply(vec![entry(9, Command::GcBegin)]).await.unwrap();
        assert_eq!(machine.store.index_and_hash(), expected);
    }
    // Damaged: every file of it.
    for item in std::fs::read_dir(dir.path().join("catalog")).unwrap() {
        let path = item.unwrap().path();
        if path.is_file() {
            let mut bytes = std::fs::read(&path).unwrap();
            for at in (64..bytes.len()).step_by(97) {
                bytes[at] ^= 0x55;
            }
            std::fs::write(&path, bytes).unwrap();
        }
    }
    let mut machine = open(&dir);
    if machine.store.applied_index() < 9 {
        assert_eq!(machine.store.index_and_hash(), at_snapshot);
        machine.apply(vec![entry(9, Command::GcBegin)]).await.unwrap();
    }
    assert_eq!(machine.store.index_and_hash(), expected);
}

#[tokio::test]
async fn a_snapshot_makes_another_node_equal() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut leader = open(&from);
    leader.apply(entries(20)).await.unwrap();
    let snapshot = leader.build_snapshot().await.unwrap();
    let mut follower = open(&to);
    follower.apply(entries(3)).await.unwrap();
    follower
        .install_snapshot(&snapshot.meta, snapshot.snapshot)
        .await
        .unwrap();
    assert_eq!(follower.store.index_and_hash(), leader.store.index_and_hash());
    assert_eq!(*follower.applied().borrow(), 20);
    assert_eq!(follower.store.vaults().unwrap(), leader.store.vaults().unwrap());
    drop(follower);
    assert_eq!(open(&to).store.index_and_hash(), leader.store.index_and_hash());
}

#[tokio::test]
async fn a_damaged_snapshot_is_refused_and_leaves_the_catalog_alone() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut leader = open(&from);
    leader.apply(entries(4)).await.unwrap();
    let snapshot = leader.build_snapshot().await.unwrap();
    let whole = std::fs::read(&snapshot.snapshot.path).unwrap();
    let mut follower = open(&to);
    follower.apply(entries(3)).await.unwrap();
    let before = follower.store.index_and_hash();
    let path = to.path().join("received");
    for at in (0..whole.len()).step_by(61).chain(whole.len() - 40..whole.len()) {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        std::fs::write(&path, &bytes).unwrap();
        let received = Box::new(SnapshotFile { path: path.clone() });
        assert!(
            follower.install_snapshot(&snapshot.meta, received).await.is_err(),
            "byte {at}"
        );
        std::fs::write(&path, &whole[..at]).unwrap();
        let received = Box::new(SnapshotFile { path: path.clone() });
        assert!(
            follower.install_snapshot(&snapshot.meta, received).await.is_err(),
            "cut at {at}"
        );
        assert_eq!(follower.store.index_and_hash(), before);
    }
    assert!(follower.get_current_snapshot().await.unwrap().is_none());
}
