//! Tests of taking packs in: what is refused, and what a crash at any step leaves.

use super::*;
use crate::data::fixture::{Packer, VAULT, World, tree};
use holdfast_store::{
    Area,
    fault::{Fault, Step},
};

async fn sent(world: &World, session: &Session, announced: Announced, bytes: Vec<u8>) -> Result<bool> {
    let frames: Vec<_> = bytes
        .chunks(1000)
        .map(|frame| Ok(Bytes::copy_from_slice(frame)))
        .collect();
    world
        .ingest
        .receive(session, announced, futures::stream::iter(frames))
        .await
}

async fn stored(world: &World) -> usize {
    let tmp = std::fs::read_dir(world.dir.path().join("store/tmp"))
        .unwrap()
        .count();
    assert_eq!(tmp, 0, "temporary files are removed");
    world.store.list(Area::Packs, None, 100).await.unwrap().len()
}

#[tokio::test]
async fn only_whole_packs_that_are_what_they_say_are_taken() {
    let world = World::new().await;
    let (_, session) = world.open("web1").await;
    let ((id, bytes), ..) = tree("a", 5, 3000);
    let announced = Announced {
        pack: id,
        len: bytes.len() as u64,
    };
    let cut = bytes[..bytes.len() - 1].to_vec();
    let longer = [bytes.clone(), vec![0]].concat();
    let other = Announced {
        pack: PackId([7; 32]),
        ..announced
    };
    let short = Announced { len: 10, ..announced };
    let long = Announced {
        len: limits::PACK_MAX as u64 + 1,
        ..announced
    };
    for (announced, bytes, expected) in [
        (announced, cut, ErrorKind::Invalid),
        (announced, longer, ErrorKind::Invalid),
        (other, bytes.clone(), ErrorKind::Corrupt),
        (short, bytes.clone(), ErrorKind::Invalid),
        (long, bytes.clone(), ErrorKind::Invalid),
        (announced, vec![0; bytes.len()], ErrorKind::Corrupt),
    ] {
        assert_eq!(
            sent(&world, &session, announced, bytes).await.unwrap_err().kind(),
            expected
        );
        assert_eq!(stored(&world).await, 0);
    }
    for at in (0..bytes.len()).step_by(bytes.len() / 40) {
        let mut flipped = bytes.clone();
        flipped[at] ^= 4;
        assert!(
            sent(&world, &session, announced, flipped).await.is_err(),
            "flip at {at}"
        );
    }
    let broken = futures::stream::iter([
        Ok(Bytes::copy_from_slice(&bytes[..5000])),
        Err(Error::Unavailable("the connection broke".into())),
    ]);
    assert_eq!(
        world
            .ingest
            .receive(&session, announced, broken)
            .await
            .unwrap_err()
            .kind(),
        ErrorKind::Unavailable
    );
    assert_eq!(stored(&world).await, 0);
    assert!(!sent(&world, &session, announced, bytes).await.unwrap());
    assert_eq!(stored(&world).await, 1);
}

#[tokio::test]
async fn an_error_of_the_disk_is_never_acknowledged_and_the_pack_can_be_sent_again() {
    for (step, fault) in [
        (Step::Begin, Fault::Fails),
        (Step::Write, Fault::Cut),
        (Step::Write, Fault::NoSpace),
        (Step::Sync, Fault::Fails),
        (Step::Rename, Fault::Fails),
        (Step::Rename, Fault::Unanswered),
        (Step::SyncDir, Fault::NoSpace),
    ] {
        let world = World::new().await;
        let (_, session) = world.open("web1").await;
        let (pack, ..) = tree("a", 5, 3000);
        world.faults.at(step, 1, fault);
        world.send(&session, &pack).await.unwrap_err();
        assert_eq!(world.faults.struck(), 1, "{step:?}");
        assert!(
            world.catalog.view().pack(pack.0).unwrap().is_none(),
            "{step:?}: not registered"
        );
        assert!(!world.index.has_pack(pack.0).unwrap(), "{step:?}: not indexed");
        assert!(!world.send(&session, &pack).await.unwrap(), "{step:?}");
        assert!(world.catalog.view().pack(pack.0).unwrap().is_some());
        assert_eq!(stored(&world).await, 1, "{step:?}");
    }
}

#[tokio::test]
async fn a_pack_lost_or_damaged_on_disk_is_healed_by_sending_it_again() {
    let world = World::new().await;
    let (_, session) = world.open("web1").await;
    let (pack, ..) = tree("a", 5, 3000);
    world.send(&session, &pack).await.unwrap();
    std::fs::remove_file(world.pack_file(&pack.0)).unwrap();
    assert!(world.send(&session, &pack).await.unwrap(), "registered already");
    assert_eq!(std::fs::read(world.pack_file(&pack.0)).unwrap(), pack.1);

    std::fs::write(world.pack_file(&pack.0), &pack.1[..100]).unwrap();
    assert_eq!(
        world.send(&session, &pack).await.unwrap_err().kind(),
        ErrorKind::Unavailable
    );
    world.send(&session, &pack).await.unwrap();
    assert_eq!(std::fs::read(world.pack_file(&pack.0)).unwrap(), pack.1);
}

#[tokio::test]
async fn a_registered_pack_that_is_not_indexed_is_indexed_when_it_is_sent_again() {
    let world = World::new().await;
    let (_, session) = world.open("web1").await;
    let (pack, top, _) = tree("a", 5, 3000);
    world.send(&session, &pack).await.unwrap();
    world.index.remove(&[pack.0]).unwrap();
    assert!(world.send(&session, &pack).await.unwrap());
    assert_eq!(world.index.contains(VAULT, &[top.id]).unwrap(), [true]);
}

#[tokio::test]
async fn many_packs_at_once_share_entries() {
    let world = World::new().await;
    let (_, session) = world.open("web1").await;
    let packs: Vec<_> = (0..60)
        .map(|n| {
            let mut packer = Packer::new(VAULT);
            packer.data(&n.to_string(), 500);
            packer.finish()
        })
        .collect();
    let before = world.catalog.view().applied_index();
    let all = futures::future::join_all(packs.iter().map(|pack| world.send(&session, pack))).await;
    assert!(all.into_iter().all(|sent| !sent.unwrap()));
    let entries = world.catalog.view().applied_index() - before;
    assert!(entries < 60, "{entries} entries for 60 packs");
    assert_eq!(
        world.catalog.view().session(session.id).unwrap().unwrap().packs,
        60
    );
}

#[tokio::test]
async fn wal_may_use_half_of_the_reserve_and_data_none_of_it() {
    let world = World::new().await;
    let (_, data) = world.open("web1").await;
    let wal = Session {
        is_journal: true,
        ..data.clone()
    };
    // Far from both limits, since other programs use that file system too.
    let free = world.store.space().await.unwrap().free;
    for (at, (reserve, taken)) in [
        (free / 2, [true, true]),
        (free / 2 * 3, [false, true]),
        (free.saturating_mul(3), [false, false]),
    ]
    .into_iter()
    .enumerate()
    {
        let ingest = Ingest::new(
            world.store.clone(),
            world.index.clone(),
            &world.catalog,
            Some(reserve),
        );
        for (session, taken) in [&data, &wal].into_iter().zip(taken) {
            let (pack, ..) = tree(&format!("{at}{}", session.is_journal), 3, 1000);
            let announced = Announced {
                pack: pack.0,
                len: pack.1.len() as u64,
            };
            let frames = futures::stream::iter([Ok(Bytes::from(pack.1))]);
            let received = ingest.receive(session, announced, frames).await;
            assert_eq!(
                received.map_err(|error| error.kind()),
                if taken { Ok(false) } else { Err(ErrorKind::NoSpace) },
                "{reserve} of {free}, journal: {}",
                session.is_journal
            );
        }
    }
}

#[test]
fn what_is_kept_free_is_exact() {
    assert_eq!(kept_free(10, false), 10);
    assert_eq!(kept_free(10, true), 5);
    assert_eq!(kept_free(0, true), 0);
    assert_eq!(kept_free(u64::MAX, true), u64::MAX / 2);
}
