//! Tests of verification: every kind of damage is named, and nothing else.

use crate::{
    catalog::Queries as _,
    data::fixture::{Packer, VAULT, World, tree},
};
use holdfast_core::{PackId, SnapshotId};
use holdfast_store::{Area, ObjectName};

/// Two snapshots: both reach the first pack, only the second one the other.
async fn world() -> (World, [PackId; 2], [SnapshotId; 2]) {
    let world = World::new().await;
    let (one, top, files) = tree("one", 20, 2_000);
    let mut packer = Packer::new(VAULT);
    let more = packer.data("more", 2_000);
    let second = packer.node(&[top, more, files[0]]);
    let two = packer.finish();
    let packs = [one.0, two.0];
    let first = world.back_up(&[one], &[top.id]).await;
    let second = world.back_up(&[two], &[second.id]).await;
    (world, packs, [first, second])
}

fn flip(path: &std::path::Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    let at = at % bytes.len();
    bytes[at] ^= 1 << (at % 8);
    std::fs::write(path, bytes).unwrap();
}

#[tokio::test]
async fn a_store_in_order_has_no_findings() {
    let (world, ..) = world().await;
    assert_eq!(world.findings(false).await, []);
    assert_eq!(world.findings(true).await, []);
}

#[tokio::test]
async fn every_flipped_bit_and_cut_of_a_pack_is_found_with_the_snapshots_it_affects() {
    let (world, packs, snapshots) = world().await;
    let path = world.pack_file(&packs[1]);
    let good = std::fs::read(&path).unwrap();
    for at in (0..good.len()).step_by(good.len() / 25).chain([good.len() - 1]) {
        flip(&path, at);
        let findings = world.findings(true).await;
        assert_eq!(findings.len(), 1, "flip at {at}: {findings:?}");
        assert_eq!(findings[0].object, ObjectName::pack(&packs[1]).as_str());
        let affected: Vec<_> = findings[0].snapshots.iter().map(|id| id.to_vec()).collect();
        assert!(
            affected.is_empty() || affected == [snapshots[1].0.to_vec()],
            "flip at {at}"
        );
        std::fs::write(&path, &good).unwrap();
        std::fs::write(&path, &good[..at]).unwrap();
        assert_eq!(
            world.findings(false).await.len(),
            1,
            "cut at {at} is found without reading all"
        );
        std::fs::write(&path, &good).unwrap();
    }
    assert_eq!(world.findings(true).await, []);
}

#[tokio::test]
async fn a_lost_pack_names_all_snapshots_that_need_it() {
    let (world, packs, snapshots) = world().await;
    std::fs::remove_file(world.pack_file(&packs[0])).unwrap();
    let world = world.restart(|_| {}).await;
    for read_data in [false, true] {
        let findings = world.findings(read_data).await;
        assert_eq!(findings.len(), 1, "{findings:?}");
        let mut affected: Vec<_> = findings[0].snapshots.iter().map(|id| id.to_vec()).collect();
        affected.sort();
        let mut expected = snapshots.map(|id| id.0.to_vec()).to_vec();
        expected.sort();
        assert_eq!(affected, expected);
    }
}

#[tokio::test]
async fn damage_of_which_there_is_another_copy_affects_no_snapshot() {
    let (world, packs, _) = world().await;
    let (_, session) = world.open("web1").await;
    let (again, ..) = tree("one", 20, 2_000);
    world.send(&session, &again).await.unwrap();
    flip(&world.pack_file(&packs[0]), 3_000);
    let findings = world.findings(true).await;
    assert_eq!(findings.len(), 1);
    assert!(findings[0].snapshots.is_empty(), "{findings:?}");
}

#[tokio::test]
async fn damaged_lost_and_foreign_roots_are_found() {
    let (world, _, snapshots) = world().await;
    let name = ObjectName::root(&VAULT, &snapshots[0]);
    let path = world.dir.path().join("store").join(name.as_str());
    let good = std::fs::read(&path).unwrap();
    for at in (0..good.len()).step_by(good.len() / 20) {
        flip(&path, at);
        let findings = world.findings(false).await;
        assert_eq!((findings.len(), findings[0].object.as_str()), (1, name.as_str()));
        assert_eq!(findings[0].snapshots, [snapshots[0].0.to_vec()]);
        std::fs::write(&path, &good).unwrap();
    }
    std::fs::remove_file(&path).unwrap();
    assert_eq!(world.findings(false).await.len(), 1);
    std::fs::write(&path, &good).unwrap();
    let foreign = ObjectName::root(&VAULT, &SnapshotId([3; 16]));
    world.store.put(&foreign, good.into()).await.unwrap();
    let findings = world.findings(false).await;
    assert_eq!(
        (findings.len(), findings[0].object.as_str()),
        (1, foreign.as_str())
    );
}

#[tokio::test]
async fn damaged_and_lost_key_objects_are_found() {
    let (world, ..) = world().await;
    let name = ObjectName::key(&VAULT, 0);
    let path = world.dir.path().join("store").join(name.as_str());
    let good = std::fs::read(&path).unwrap();
    for at in (0..good.len()).step_by(good.len() / 10) {
        flip(&path, at);
        let findings = world.findings(false).await;
        assert!(
            !findings.is_empty() && findings.iter().all(|f| f.object == name.as_str()),
            "{findings:?}"
        );
        std::fs::write(&path, &good).unwrap();
    }
    std::fs::remove_file(&path).unwrap();
    assert_eq!(world.findings(false).await.len(), 1);
    assert_eq!(world.catalog.view().key_objects(VAULT).unwrap(), [good]);
}

#[tokio::test]
async fn damaged_catalog_copies_and_what_nobody_knows_are_found() {
    let (world, ..) = world().await;
    let copy = ObjectName::catalog([5; 16]);
    let mut body = crate::copies::MAGIC.to_vec();
    body.extend_from_slice(b"sealed");
    body.extend_from_slice(blake3::hash(&body).as_bytes());
    world.store.put(&copy, body.into()).await.unwrap();
    assert_eq!(world.findings(false).await, []);
    flip(&world.dir.path().join("store").join(copy.as_str()), 10);
    let (unknown, ..) = tree("unknown", 1, 100);
    let unknown = ObjectName::pack(&{
        world
            .store
            .put(&ObjectName::pack(&unknown.0), unknown.1.into())
            .await
            .unwrap();
        unknown.0
    });
    std::fs::write(world.dir.path().join("store/notes.txt"), "mine").unwrap();
    let objects: Vec<_> = world
        .findings(false)
        .await
        .into_iter()
        .map(|finding| finding.object)
        .collect();
    assert_eq!(objects, [copy.as_str(), unknown.as_str(), "notes.txt"]);
    assert_eq!(world.store.list(Area::Packs, None, 9).await.unwrap().len(), 3);
}
