//! Tests of garbage collection: what goes, what stays, and what a failure or a crash at any step leaves.

use super::*;
use crate::data::fixture::{Packer, VAULT, World, tree};
use holdfast_core::{HasKind, PackId};
use holdfast_repo::Link;
use holdfast_store::{
    Area, ObjectName,
    fault::{Fault, Step},
};
use std::time::Duration;

const ALL: GcOptions = GcOptions {
    dry_run: false,
    ignore_undo: true,
};
const DRY: GcOptions = GcOptions {
    dry_run: true,
    ignore_undo: true,
};

async fn gc(world: &World, options: GcOptions) -> Result<GcReport> {
    world
        .gc
        .run(Actor::Admin("alice".parse().unwrap()), options)
        .await
}

async fn files(world: &World, area: Area) -> usize {
    world.store.list(area, None, 1000).await.unwrap().len()
}

/// Packs: dead alone, sparse (a large dead and a small live file), kept; a snapshot over the live rest,
/// and one, deleted, over all.
struct Garbage {
    world: World,
    dead: PackId,
    sparse: PackId,
    kept: PackId,
    live: Vec<Link>,
}

async fn garbage() -> Garbage {
    let world = World::new().await;
    let mut packer = Packer::new(VAULT);
    let gone = packer.data("dead", 5_000);
    let dead = packer.finish();
    let mut packer = Packer::new(VAULT);
    let large = packer.data("large", 50_000);
    let small = packer.data("small", 3_000);
    let inner = packer.node(&[small]);
    let sparse = packer.finish();
    let mut packer = Packer::new(VAULT);
    let first = packer.node(&[gone, large, inner]);
    let kept = packer.data("kept", 9_000);
    let second = packer.node(&[inner, kept]);
    let keeps = packer.finish();
    let ids = (dead.0, sparse.0, keeps.0);
    let old = world.back_up(&[dead, sparse, keeps], &[first.id]).await;
    world.back_up(&[], &[second.id]).await;
    world.delete(old, 1_000_000).await;
    Garbage {
        world,
        dead: ids.0,
        sparse: ids.1,
        kept: ids.2,
        live: vec![small, inner, kept, second],
    }
}

async fn assert_whole(world: &World, live: &[Link]) {
    let ids: Vec<_> = live.iter().map(|link| link.id).collect();
    assert!(
        world
            .index
            .contains(VAULT, &ids)
            .unwrap()
            .iter()
            .all(|known| *known),
        "everything live is indexed"
    );
    world.assert_clean().await;
}

#[tokio::test]
async fn dead_packs_go_sparse_ones_are_copied_live_ones_stay() {
    let Garbage {
        world,
        dead,
        sparse,
        kept,
        live,
    } = garbage().await;
    let before = (world.pack_ids(), world.catalog.view().hash());
    let planned = gc(&world, DRY).await.unwrap();
    assert_eq!(
        (world.pack_ids(), world.catalog.view().hash()),
        before,
        "a dry run changes nothing"
    );
    let done = gc(&world, ALL).await.unwrap();
    for report in [&planned, &done] {
        assert_eq!((report.snapshots_forgotten, report.packs_deleted), (1, 1));
        assert_eq!((report.packs_rewritten, report.packs_kept), (1, 1));
        assert_eq!((report.chunks_live, report.chunks_dead), (4, 3));
        assert!(
            (50_000..56_000).contains(&report.bytes_freed),
            "{}",
            report.bytes_freed
        );
    }
    assert!(
        done.plans
            .iter()
            .any(|plan| plan.to_string().contains("delete 1 packs, rewrite 1, keep 1"))
    );
    let packs = world.pack_ids();
    assert!(packs.contains(&kept) && !packs.contains(&dead) && !packs.contains(&sparse));
    assert_eq!(
        (
            packs.len(),
            files(&world, Area::Packs).await,
            files(&world, Area::Roots).await
        ),
        (3, 3, 1)
    );
    assert_whole(&world, &live).await;
    let world = world
        .restart(|dir| std::fs::remove_dir_all(dir.join("state/index")).unwrap())
        .await;
    assert_whole(&world, &live).await;
    let again = gc(&world, ALL).await.unwrap();
    assert_eq!(
        (
            again.packs_kept,
            again.packs_deleted,
            again.packs_rewritten,
            again.bytes_freed
        ),
        (3, 0, 0, 0)
    );
    // The deleted pack's id is never accepted again; its content under a new one is.
    let (_, session) = world.open("web1").await;
    let mut packer = Packer::new(VAULT);
    packer.data("dead", 5_000);
    world.send(&session, &packer.finish()).await.unwrap();
}

#[tokio::test]
async fn a_deleted_snapshot_stays_whole_for_its_undo_period() {
    let Garbage { world, .. } = garbage().await;
    let keep = GcOptions::default();
    let report = gc(&world, keep).await.unwrap();
    assert_eq!(
        (report.snapshots_forgotten, report.packs_kept, report.chunks_dead),
        (0, 3, 0)
    );
    world.clock.advance(Duration::from_secs(1_001));
    // Catalog time moves with entries.
    let report = gc(&world, keep).await.unwrap();
    assert_eq!((report.snapshots_forgotten, report.packs_deleted), (1, 1));
}

#[tokio::test]
async fn nothing_is_collected_while_sessions_are_open_and_none_opens_meanwhile() {
    let Garbage { world, live, .. } = garbage().await;
    let (_, session) = world.open("web1").await;
    assert_eq!(gc(&world, ALL).await.unwrap_err().kind(), ErrorKind::Conflict);
    gc(&world, DRY).await.unwrap();
    world.finish(&session).await;
    world.propose(Command::GcBegin).await;
    assert_eq!(
        world.try_open("web1").await.unwrap_err().kind(),
        ErrorKind::Unavailable
    );
    // That run belongs to nobody here: the next one ends it first.
    gc(&world, ALL).await.unwrap();
    assert_whole(&world, &live).await;
    assert!(world.catalog.view().gc_run().unwrap().is_none());
}

#[tokio::test]
async fn a_vault_that_is_not_whole_is_left_alone() {
    for damage in ["root", "node", "chunk", "index"] {
        let Garbage {
            world, sparse, kept, ..
        } = garbage().await;
        let newest = world.catalog.view().snapshots(None, 1).unwrap().items.remove(0);
        match damage {
            "root" => world
                .store
                .delete(&ObjectName::root(&VAULT, &newest.id))
                .await
                .unwrap(),
            "node" => world.store.delete(&ObjectName::pack(&kept)).await.unwrap(),
            "chunk" => world.index.remove(&[sparse]).unwrap(),
            _ => {
                let (_, session) = world.open("web1").await;
                let (unrelated, ..) = tree("unrelated", 1, 100);
                world.send(&session, &unrelated).await.unwrap();
                world.finish(&session).await;
                world.index.remove(&[unrelated.0]).unwrap();
            }
        }
        let packs = world.pack_ids();
        let error = gc(&world, ALL).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{damage}: {error}");
        assert_eq!(world.pack_ids(), packs, "{damage}: nothing was deleted");
        assert!(
            world.catalog.view().gc_run().unwrap().is_none(),
            "{damage}: the run ended"
        );
        world.open("other").await;
    }
}

#[tokio::test]
async fn packs_of_an_interrupted_run_wait_for_the_next_one() {
    let world = World::new().await;
    let interrupt = async |seed: &str| {
        let (_, session) = world.open("web1").await;
        let (pack, ..) = tree(seed, 2, 1000);
        world.send(&session, &pack).await.unwrap();
        world.finish(&session).await;
        pack.0
    };
    let first = interrupt("first").await;
    let report = gc(&world, ALL).await.unwrap();
    assert_eq!((report.packs_kept, report.packs_deleted), (1, 0));
    assert_eq!(report.plans[0].waiting + report.plans[1].waiting, 1);
    world.clock.advance(limits::ORPHAN_PACKS_KEPT);
    assert_eq!(gc(&world, ALL).await.unwrap().packs_deleted, 1, "not for ever");
    assert!(!world.pack_ids().contains(&first));

    let second = interrupt("second").await;
    world.clock.advance(Duration::from_secs(1));
    let (pack, top, files) = tree("third", 2, 1000);
    world.back_up(&[pack], &[top.id]).await;
    assert_eq!(
        gc(&world, ALL).await.unwrap().packs_deleted,
        1,
        "its source has a newer snapshot"
    );
    assert!(!world.pack_ids().contains(&second));
    assert_whole(&world, &files).await;
}

#[tokio::test]
async fn a_failure_of_any_step_loses_nothing_and_the_next_run_does_the_rest() {
    let mut struck = 0;
    for step in [
        Step::Begin,
        Step::Write,
        Step::Sync,
        Step::Rename,
        Step::SyncDir,
        Step::Delete,
        Step::Read,
    ] {
        for fault in [Fault::Fails, Fault::Unanswered] {
            for nth in [1, 2, 4, 7] {
                let Garbage { world, live, .. } = garbage().await;
                world.faults.at(step, nth, fault);
                let _ = gc(&world, ALL).await;
                struck += world.faults.struck();
                world.faults.clear();
                // A failed directory sync needs a restart; anything else may have one.
                let world = world.restart(|_| {}).await;
                world.gc.resume().await.unwrap();
                assert_settles(&world, &live, &format!("{step:?} {nth} {fault:?}")).await;
            }
        }
    }
    assert!(struck > 20, "only {struck} faults struck");
}

#[tokio::test]
async fn a_run_whose_end_failed_is_ended_later_and_no_other_one_is() {
    let world = World::new().await;
    let Reply::Gc { fence } = world.propose(Command::GcBegin).await else {
        panic!("no run")
    };
    let held = || world.gc.running.clone().lock_owned();
    world.gc.clone().end_later(fence + 1, held().await).await;
    assert!(world.catalog.view().gc_run().unwrap().is_some());
    world.gc.clone().end_later(fence, held().await).await;
    assert!(world.catalog.view().gc_run().unwrap().is_none());
    gc(&world, ALL).await.unwrap();
}

#[tokio::test]
async fn a_crash_between_any_two_steps_is_taken_up_at_the_start() {
    for crash in 0..8 {
        let Garbage { world, live, .. } = garbage().await;
        crash_after(&world, crash).await;
        assert!(world.catalog.view().gc_run().unwrap().is_some());
        let world = world.restart(|_| {}).await;
        world.gc.resume().await.unwrap();
        assert!(world.catalog.view().gc_run().unwrap().is_none());
        assert_settles(&world, &live, &format!("crash {crash}")).await;
    }
}

/// A run that ends without a word after so many of its steps.
async fn crash_after(world: &World, steps: usize) {
    let Reply::Gc { fence } = world.propose(Command::GcBegin).await else {
        panic!("no run")
    };
    let view = world.catalog.view();
    if steps == 0 {
        return;
    }
    let snapshots = forgettable(&view, world.catalog.now(), true).unwrap();
    world
        .propose(Command::ForgetSnapshots {
            fence,
            snapshots,
            ignore_undo: true,
        })
        .await;
    let live = world.gc.mark(&view, VAULT, &HashSet::new()).await.unwrap();
    let plan = world
        .gc
        .plan(&view, VAULT, &live, world.catalog.now())
        .await
        .unwrap();
    match steps {
        1 => {}
        // Deleted in the catalog, still in the index and on disk.
        2 => {
            let packs = plan.delete.iter().map(|pack| pack.id).collect();
            world.propose(Command::GcDelete { fence, packs }).await;
        }
        // In the index no more, still on disk.
        3 => {
            let packs: Vec<_> = plan.delete.iter().map(|pack| pack.id).collect();
            world
                .propose(Command::GcDelete {
                    fence,
                    packs: packs.clone(),
                })
                .await;
            world.index.remove(&packs).unwrap();
        }
        // A copy on disk that was never registered; one that was registered; both there.
        4 => {
            world.faults.at(Step::SyncDir, 1, Fault::Fails);
            world
                .gc
                .execute(
                    fence,
                    &Plan {
                        delete: Vec::new(),
                        ..plan
                    },
                    &live,
                )
                .await
                .unwrap_err();
        }
        5 | 6 => {
            let nth = u64::try_from(steps).unwrap() - 4;
            world.faults.at(Step::Delete, nth, Fault::Fails);
            world.gc.execute(fence, &plan, &live).await.unwrap_err();
        }
        _ => {
            world.gc.execute(fence, &plan, &live).await.unwrap();
        }
    }
    world.faults.clear();
}

async fn assert_settles(world: &World, live: &[Link], what: &str) {
    let (_, session) = world.open("web1").await;
    world.finish(&session).await;
    gc(world, ALL)
        .await
        .unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_whole(world, live).await;
    let report = gc(world, ALL).await.unwrap();
    assert_eq!(
        (report.packs_deleted, report.packs_rewritten),
        (0, 0),
        "{what}: nothing is left to do"
    );
    assert_eq!(
        (report.chunks_live, report.chunks_dead),
        (4, 1),
        "{what}: each live chunk once"
    );
}

#[tokio::test]
async fn what_the_catalog_never_knew_is_removed_unless_the_store_knows_more() {
    let Garbage { world, live, .. } = garbage().await;
    let (upload, top, _) = tree("broken off", 2, 1000);
    world
        .store
        .put(&ObjectName::pack(&upload.0), upload.1.clone().into())
        .await
        .unwrap();
    // A root as an interrupted commit leaves it.
    let (opened, session) = world.open("web1").await;
    let root = world.root(&session, &opened, &[top.id]);
    let name = ObjectName::root(&VAULT, &session.snapshot);
    world.store.put(&name, root.into()).await.unwrap();
    world.finish(&session).await;
    // One that only a later catalog can know, as after a return to an older catalog.
    let newer = holdfast_core::SnapshotId([8; 16]);
    let later = world.root_with(&session, &[top.id], |clear| {
        clear.sequence = 99;
        clear.snapshot = newer;
    });
    let unknown = ObjectName::root(&VAULT, &newer);
    world.store.put(&unknown, later.into()).await.unwrap();

    gc(&world, ALL).await.unwrap();
    assert!(
        world
            .store
            .head(&ObjectName::pack(&upload.0))
            .await
            .unwrap()
            .is_some(),
        "it may be the newer run's"
    );
    assert!(world.store.head(&name).await.unwrap().is_some());
    world.store.delete(&unknown).await.unwrap();
    gc(&world, ALL).await.unwrap();
    assert_eq!(
        world.store.head(&ObjectName::pack(&upload.0)).await.unwrap(),
        None
    );
    assert_eq!(world.store.head(&name).await.unwrap(), None);
    assert_whole(&world, &live).await;
}

#[tokio::test]
async fn without_room_for_copies_dead_packs_still_go() {
    let Garbage {
        world,
        dead,
        sparse,
        live,
        ..
    } = garbage().await;
    world.faults.at(Step::Write, 1, Fault::NoSpace);
    let report = gc(&world, ALL).await.unwrap();
    assert_eq!(report.snapshots_forgotten, 1);
    let packs = world.pack_ids();
    assert!(!packs.contains(&dead) && packs.contains(&sparse));
    assert_whole(&world, &live).await;
}
