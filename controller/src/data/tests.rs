//! Tests of the data path on a real node, a real store and a real index.

use super::{
    fixture::{OTHER_VAULT, Packer, VAULT, World, peer, shown, source, tree},
    *,
};
use futures::TryStreamExt;
use holdfast_core::{ChunkId, HasKind, SnapshotId, VaultId};
use holdfast_repo::{BlobHeader, Link, Root};
use holdfast_store::Area;

#[track_caller]
fn kind<T: std::fmt::Debug>(result: Result<T>) -> ErrorKind {
    result.unwrap_err().kind()
}

fn ids(links: &[Link]) -> Bytes {
    links.iter().flat_map(|link| link.id.0).collect::<Vec<_>>().into()
}

async fn known(world: &World, session: &crate::catalog::model::Session, links: &[Link]) -> Vec<bool> {
    let request = pb::QueryRequest {
        session: Some(shown(session)),
        ids: ids(links),
    };
    let bits = world
        .data
        .known(&peer(session.agent.as_str()), request)
        .await
        .unwrap()
        .known;
    (0..links.len())
        .map(|i| bits[i / 8] >> (i % 8) & 1 == 1)
        .collect()
}

async fn fetch(world: &World, request: pb::FetchRequest) -> Result<Vec<pb::FetchedBlob>> {
    let stream = world.data.fetch_blobs(&access::Reader::Admin, request)?;
    let messages: Vec<_> = stream.try_collect().await.map_err(broken_stream)?;
    Ok(messages
        .into_iter()
        .flat_map(|message: pb::FetchResponse| message.blobs)
        .collect())
}

#[tokio::test]
async fn what_goes_in_comes_out_and_the_next_run_builds_on_it() {
    let world = World::new().await;
    let (opened, session) = world.open("web1").await;
    assert!(opened.vault_empty && opened.parent_snapshot.is_empty() && opened.sequence == 1);
    let (pack, top, files) = tree("a", 40, 100_000);
    assert_eq!(known(&world, &session, &files).await, [false; 40]);
    assert!(!world.send(&session, &pack).await.unwrap());
    assert!(
        world.send(&session, &pack).await.unwrap(),
        "a second time it is there already"
    );
    assert_eq!(known(&world, &session, &files).await, [true; 40]);
    let root = world.root(&session, &opened, &[top.id]);
    let committed = world.commit(&session, root.clone()).await.unwrap();
    assert_eq!(
        (committed.snapshot.clone(), committed.missing_count),
        (opened.snapshot.clone(), 0)
    );
    let again = world.commit(&session, root.clone()).await.unwrap();
    assert_eq!(again, committed, "a lost answer is given again");
    world.finish(&session).await;

    let mut wanted = files.clone();
    wanted.reverse();
    wanted.push(top);
    wanted.push(Link {
        id: ChunkId([77; 32]),
        is_node: false,
    });
    let request = pb::FetchRequest {
        vault: Bytes::copy_from_slice(VAULT.as_bytes()),
        ids: ids(&wanted),
        ..pb::FetchRequest::default()
    };
    let blobs = fetch(&world, request.clone()).await.unwrap();
    assert_eq!(blobs.len(), 42);
    for (link, blob) in wanted.iter().zip(&blobs[..41]) {
        let header = BlobHeader::decode(&blob.blob).unwrap();
        assert_eq!(
            (header.id, header.blob_len()),
            (link.id, blob.blob.len()),
            "in the order asked"
        );
        assert_eq!(blob.pack.as_ref(), pack.0.as_bytes());
    }
    assert!(blobs[41].blob.is_empty(), "what is not stored is empty");
    let here = pb::FetchRequest {
        read_here: Bytes::copy_from_slice(world.store.id().as_bytes()),
        ..request.clone()
    };
    let places = fetch(&world, here).await.unwrap();
    for (place, blob) in places.iter().zip(&blobs[..41]) {
        assert!(place.blob.is_empty(), "who reads the store itself is told where");
        let name = holdfast_store::ObjectName::pack(&pack.0);
        let range = world
            .store
            .get_range(&name, place.offset.into(), place.len as usize);
        assert_eq!(
            (range.await.unwrap(), &place.pack),
            (blob.blob.clone(), &blob.pack)
        );
    }
    assert_eq!((places.len(), places[41].len), (42, 0));
    let elsewhere = pb::FetchRequest {
        read_here: Bytes::from_static(b"of another store"),
        ..request.clone()
    };
    assert_eq!(fetch(&world, elsewhere).await.unwrap(), blobs);
    let headers = fetch(
        &world,
        pb::FetchRequest {
            nodes_only_header: true,
            read_here: Bytes::new(),
            ..request
        },
    )
    .await
    .unwrap();
    assert_eq!(
        BlobHeader::decode(&headers[40].blob).unwrap().encoded_len(),
        headers[40].blob.len()
    );

    let (opened, _) = world.open("web1").await;
    assert_eq!(
        (opened.parent_snapshot, opened.parent_root),
        (committed.snapshot, Bytes::from(root))
    );
    assert!(!opened.vault_empty && opened.sequence == 2);
}

#[tokio::test]
async fn a_commit_needs_everything_below_its_root() {
    let world = World::new().await;
    let (opened, session) = world.open("web1").await;
    let mut elsewhere = Packer::new(VAULT);
    let lost: Vec<Link> = (0..3)
        .map(|n| elsewhere.data(&format!("lost {n}"), 100))
        .collect();
    let mut packer = Packer::new(VAULT);
    let kept = packer.data("kept", 100);
    let absent = packer.absent_node(&[kept]);
    let inner = packer.node(&[kept, lost[0], lost[1], lost[0], absent]);
    let top = packer.node(&[inner, kept, lost[2]]);
    world.send(&session, &packer.finish()).await.unwrap();
    let root = world.root(&session, &opened, &[top.id]);
    let answer = world.commit(&session, root.clone()).await.unwrap();
    assert!(answer.snapshot.is_empty());
    let mut missing: Vec<_> = answer.missing.chunks(32).map(<[u8]>::to_vec).collect();
    let mut expected: Vec<_> = lost
        .iter()
        .chain([&absent])
        .map(|link| link.id.0.to_vec())
        .collect();
    missing.sort();
    expected.sort();
    assert_eq!(
        (missing, answer.missing_count),
        (expected, 4),
        "each once, nothing else"
    );
    assert_eq!(
        world.store.list(Area::Roots, None, 1).await.unwrap(),
        [],
        "no root before the check"
    );

    // Only the missing data comes; then the missing node.
    world.send(&session, &elsewhere.finish()).await.unwrap();
    assert_eq!(
        world.commit(&session, root.clone()).await.unwrap().missing_count,
        1
    );
    let mut node = Packer::new(VAULT);
    node.node(&[kept]);
    world.send(&session, &node.finish()).await.unwrap();
    assert_eq!(world.commit(&session, root).await.unwrap().missing_count, 0);
}

#[tokio::test]
async fn many_missing_ids_are_counted_exactly_and_listed_capped() {
    let world = World::new().await;
    let (opened, session) = world.open("web1").await;
    let mut packer = Packer::new(VAULT);
    let far: Vec<Link> = (0..1500_u32)
        .map(|n| Link {
            id: ChunkId(*blake3::hash(&n.to_le_bytes()).as_bytes()),
            is_node: n % 2 == 0,
        })
        .collect();
    let top = packer.node(&far);
    world.send(&session, &packer.finish()).await.unwrap();
    let answer = world
        .commit(&session, world.root(&session, &opened, &[top.id]))
        .await
        .unwrap();
    assert_eq!((answer.missing_count, answer.missing.len()), (1500, 1024 * 32));
}

#[tokio::test]
async fn the_walk_of_a_changed_tree_reads_differing_paths_only() {
    use holdfast_store::fault::Step;
    let world = World::new().await;
    let mut packer = Packer::new(VAULT);
    let dirs: Vec<Link> = (0..600)
        .map(|n| {
            let file = packer.data(&format!("file {n}"), 10);
            packer.node(&[file])
        })
        .collect();
    let top = packer.node(&dirs);
    world.back_up(&[packer.finish()], &[top.id]).await;

    let (opened, session) = world.open("web1").await;
    let mut packer = Packer::new(VAULT);
    let file = packer.data("file 7 changed", 10);
    let mut changed = dirs.clone();
    changed[7] = packer.node(&[file]);
    let top = packer.node(&changed);
    world.send(&session, &packer.finish()).await.unwrap();
    let before = world.faults.count(Step::Read);
    let answer = world
        .commit(&session, world.root(&session, &opened, &[top.id]))
        .await
        .unwrap();
    assert_eq!(answer.missing_count, 0);
    let reads = world.faults.count(Step::Read) - before;
    // The parent's root; both top nodes; both versions of one directory.
    assert!(reads <= 5, "{reads} reads");
}

#[tokio::test]
async fn roots_that_are_not_the_sessions_are_refused() {
    let world = World::new().await;
    let (pack, top, _) = tree("a", 3, 100);
    world.back_up(&[pack], &[top.id]).await;
    let (opened, session) = world.open("web1").await;
    let previous = Root::hash(&opened.parent_root);
    let changes: [fn(&mut holdfast_repo::RootClear); 7] = [
        |clear| clear.previous = [0; 32],
        |clear| clear.previous[0] ^= 1,
        |clear| clear.sequence += 1,
        |clear| clear.snapshot = SnapshotId([1; 16]),
        |clear| clear.source = "web1/other".parse().unwrap(),
        |clear| clear.vault = OTHER_VAULT,
        |clear| clear.partial = true,
    ];
    for (at, change) in changes.into_iter().enumerate() {
        let root = world.root_with(&session, &[top.id], |clear| {
            clear.previous = previous;
            change(clear);
        });
        assert_eq!(
            kind(world.commit(&session, root).await),
            ErrorKind::Denied,
            "change {at}"
        );
    }
    let mut root = world.root(&session, &opened, &[top.id]);
    root[200] ^= 1;
    assert!(world.commit(&session, root).await.is_err(), "a changed root");
    // Another world signs with a key that this catalog does not know.
    let forged = World::new().await.root(&session, &opened, &[top.id]);
    assert_eq!(
        kind(world.commit(&session, forged).await),
        ErrorKind::Denied,
        "another signer"
    );
    assert_eq!(
        world.store.list(Area::Roots, None, 9).await.unwrap().len(),
        1,
        "none of them was stored"
    );
    let good = world.root(&session, &opened, &[top.id]);
    assert!(!world.commit(&session, good).await.unwrap().snapshot.is_empty());
}

#[tokio::test]
async fn sessions_are_the_callers_open_and_fenced() {
    let world = World::new().await;
    let (_, session) = world.open("web1").await;
    assert_eq!(
        kind(world.try_open("web1").await),
        ErrorKind::Conflict,
        "one at a time"
    );
    let (pack, _, files) = tree("a", 3, 100);
    let query = |reference| pb::QueryRequest {
        session: Some(reference),
        ids: ids(&files),
    };
    for wrong in [
        pb::SessionRef {
            fence: session.fence + 1,
            ..shown(&session)
        },
        pb::SessionRef {
            fence: u64::MAX,
            ..shown(&session)
        },
        pb::SessionRef {
            session: Bytes::from_static(&[7; 16]),
            ..shown(&session)
        },
    ] {
        assert_eq!(
            kind(world.data.known(&peer("web1"), query(wrong)).await),
            ErrorKind::Fenced
        );
    }
    let foreign = world.data.known(&peer("other"), query(shown(&session))).await;
    assert_eq!(kind(foreign), ErrorKind::Fenced, "another agent");
    let rebuilt = access::Agent {
        incarnation: 2,
        ..peer("web1")
    };
    assert_eq!(
        kind(world.data.known(&rebuilt, query(shown(&session))).await),
        ErrorKind::Fenced
    );

    world.clock.advance(limits::LEASE_TTL + Duration::from_secs(1));
    let slept = world.data.known(&peer("web1"), query(shown(&session))).await;
    assert_eq!(
        kind(slept),
        ErrorKind::Fenced,
        "its lease is over although nobody noted it"
    );
    world
        .propose(Command::ExpireSession {
            session: session.id,
            fence: session.fence,
        })
        .await;
    assert_eq!(kind(world.send(&session, &pack).await), ErrorKind::Fenced);
    assert_eq!(
        world.store.list(Area::Packs, None, 9).await.unwrap(),
        [],
        "what was refused does not stay"
    );
    assert_eq!(kind(world.commit(&session, Vec::new()).await), ErrorKind::Fenced);
}

#[tokio::test]
async fn vaults_are_kept_apart() {
    let world = World::new().await;
    let (pack, top, files) = tree("a", 3, 100);
    let snapshot = world.back_up(std::slice::from_ref(&pack), &[top.id]).await;
    let (_, session) = world.open("other").await;
    assert_eq!(known(&world, &session, &files).await, [false; 3]);
    assert_eq!(
        kind(world.send(&session, &pack).await),
        ErrorKind::Denied,
        "a registered pack of another vault"
    );
    let (fresh, ..) = tree("b", 3, 100);
    assert_eq!(
        kind(world.send(&session, &fresh).await),
        ErrorKind::Denied,
        "a new pack of another vault"
    );
    let other = access::Reader::Agent(peer("other"));
    let request = pb::FetchRequest {
        vault: Bytes::copy_from_slice(VAULT.as_bytes()),
        ids: ids(&files),
        ..pb::FetchRequest::default()
    };
    assert_eq!(
        kind(world.data.fetch_blobs(&other, request).map(|_| ())),
        ErrorKind::Denied
    );
    let request = pb::GetRootRequest {
        snapshot: Bytes::copy_from_slice(snapshot.as_bytes()),
    };
    assert_eq!(
        kind(world.data.root(&other, request.clone()).await),
        ErrorKind::NotFound
    );
    for reader in [access::Reader::Agent(peer("web1")), access::Reader::Admin] {
        let answer = world.data.root(&reader, request.clone()).await.unwrap();
        assert_eq!(
            Root::hash(&answer.root).as_slice(),
            answer.snapshot.unwrap().root_hash.as_ref()
        );
    }
}

#[tokio::test]
async fn a_damaged_blob_is_replaced_by_another_and_avoided_ones_are_not_given() {
    let world = World::new().await;
    let (opened, session) = world.open("web1").await;
    let (one, top, files) = tree("a", 2, 1000);
    let (two, ..) = tree("a", 2, 1000);
    assert_ne!(one.0, two.0, "nonces differ, so do the packs");
    world.send(&session, &one).await.unwrap();
    world.send(&session, &two).await.unwrap();
    world
        .commit(&session, world.root(&session, &opened, &[top.id]))
        .await
        .unwrap();
    let request = pb::FetchRequest {
        vault: Bytes::copy_from_slice(VAULT.as_bytes()),
        ids: ids(&files),
        ..pb::FetchRequest::default()
    };
    let packs = |blobs: Vec<pb::FetchedBlob>| blobs.into_iter().map(|blob| blob.pack).collect::<Vec<_>>();
    let (first, second) = (
        Bytes::copy_from_slice(one.0.as_bytes()),
        Bytes::copy_from_slice(two.0.as_bytes()),
    );
    assert_eq!(
        packs(fetch(&world, request.clone()).await.unwrap()),
        [first.clone(), first.clone()]
    );
    let avoid = [files[0].id.0, one.0.0].concat();
    let avoiding = pb::FetchRequest {
        avoid: avoid.into(),
        ..request.clone()
    };
    assert_eq!(
        packs(fetch(&world, avoiding).await.unwrap()),
        [second.clone(), first.clone()]
    );

    let mut bytes = one.1.clone();
    bytes[40] ^= 1;
    std::fs::write(world.pack_file(&one.0), bytes).unwrap();
    assert_eq!(
        packs(fetch(&world, request.clone()).await.unwrap()),
        [second.clone(), first]
    );
    std::fs::remove_file(world.pack_file(&one.0)).unwrap();
    let world = world.restart(|_| {}).await;
    assert_eq!(
        packs(fetch(&world, request).await.unwrap()),
        [second.clone(), second]
    );
}

#[tokio::test]
async fn malformed_calls_are_refused() {
    let world = World::new().await;
    let (_, session) = world.open("web1").await;
    for (ids, expected) in [
        (vec![0; 31], ErrorKind::Invalid),
        (vec![0; 32 * 1025], ErrorKind::TooLarge),
    ] {
        let request = pb::QueryRequest {
            session: Some(shown(&session)),
            ids: ids.clone().into(),
        };
        assert_eq!(kind(world.data.known(&peer("web1"), request).await), expected);
        let request = pb::FetchRequest {
            vault: Bytes::copy_from_slice(VAULT.as_bytes()),
            ids: ids.into(),
            ..pb::FetchRequest::default()
        };
        assert_eq!(kind(fetch(&world, request).await), expected);
    }
    assert_eq!(
        kind(world.data.known(&peer("web1"), pb::QueryRequest::default()).await),
        ErrorKind::Invalid
    );
    let request = pb::FetchRequest {
        vault: Bytes::from_static(&[9; 16]),
        ..pb::FetchRequest::default()
    };
    assert_eq!(kind(fetch(&world, request).await), ErrorKind::NotFound);
    let request = pb::OpenSessionRequest {
        source: Some(pb::SourceRef {
            agent: "web1".into(),
            source: "data".into(),
        }),
        ..pb::OpenSessionRequest::default()
    };
    assert_eq!(
        kind(world.data.open(&peer("web1"), request.clone()).await),
        ErrorKind::Invalid,
        "no job"
    );
    let request = pb::OpenSessionRequest {
        job: Bytes::from_static(&[7; 16]),
        attempt: 1,
        ..request
    };
    assert_eq!(
        kind(world.data.open(&peer("other"), request).await),
        ErrorKind::Denied,
        "another's source"
    );
}

#[tokio::test]
async fn a_full_disk_refuses_packs_and_nothing_else() {
    let world = World::with_reserve(Some(0)).await;
    let (opened, session) = world.open("web1").await;
    let (pack, top, _) = tree("a", 3, 1000);
    world.send(&session, &pack).await.unwrap();
    let starved = Ingest::new(
        world.store.clone(),
        world.index.clone(),
        &world.catalog,
        Some(u64::MAX / 2),
    );
    let (next, ..) = tree("b", 3, 1000);
    let announced = Announced {
        pack: next.0,
        len: next.1.len() as u64,
    };
    let frames = futures::stream::iter([Ok(Bytes::from(next.1.clone()))]);
    let error = starved.receive(&session, announced, frames).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    assert!(error.to_string().contains("gc"), "it says what to do: {error}");
    world.faults.at(
        holdfast_store::fault::Step::Write,
        1,
        holdfast_store::fault::Fault::NoSpace,
    );
    assert_eq!(kind(world.send(&session, &next).await), ErrorKind::NoSpace);
    assert!(
        !world
            .commit(&session, world.root(&session, &opened, &[top.id]))
            .await
            .unwrap()
            .snapshot
            .is_empty()
    );
    assert_eq!(
        std::fs::read_dir(world.dir.path().join("store/tmp"))
            .unwrap()
            .count(),
        0
    );
}

#[tokio::test]
async fn everything_is_there_after_a_restart_without_the_index() {
    let world = World::new().await;
    let (pack, top, files) = tree("a", 30, 1000);
    world.back_up(&[pack], &[top.id]).await;
    let world = world
        .restart(|dir| std::fs::remove_dir_all(dir.join("state/index")).unwrap())
        .await;
    let (_, session) = world.open("web1").await;
    assert_eq!(known(&world, &session, &files).await, [true; 30]);
    assert_eq!(session.source, source());
    assert_eq!(
        world.index.locate(VaultId([3; 16]), &[files[0].id]).unwrap(),
        [vec![]]
    );
}
