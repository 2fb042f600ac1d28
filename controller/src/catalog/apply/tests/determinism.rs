//! Equal entries make equal catalogs, whatever they are and however they are batched.

use super::*;
use crate::catalog::{
    model::PostgresSpec,
    store::{Applied, CatalogStore},
};
use proptest::prelude::*;

fn any_command() -> impl Strategy<Value = Command> {
    let n = 0_u8..4;
    prop_oneof![
        n.clone().prop_map(create_job),
        (n.clone(), 1_u32..3).prop_map(|(n, attempt)| Command::StartJob {
            job: JobId([n; 16]),
            attempt
        }),
        (n.clone(), 1_u32..3).prop_map(|(n, attempt)| open(n, attempt)),
        (n.clone(), 4_u64..40, 0_u8..8).prop_map(|(n, fence, pack)| register(
            SessionId([n; 16]),
            fence,
            pack
        )),
        (n.clone(), 4_u64..40, 0_u64..40).prop_map(|(n, fence, at)| commit(SessionId([n; 16]), fence, at)),
        n.clone()
            .prop_map(|n| finish(JobId([n; 16]), JobState::Succeeded)),
        (n.clone(), 1_u32..3).prop_map(|(n, attempt)| Command::LoseJob {
            job: JobId([n; 16]),
            attempt,
            reason: "lost".into()
        }),
        n.clone().prop_map(|n| Command::CancelJob { job: JobId([n; 16]) }),
        (n.clone(), 4_u64..40).prop_map(|(n, fence)| Command::ExpireSession {
            session: SessionId([n; 16]),
            fence
        }),
        n.clone().prop_map(|n| Command::DeleteSnapshot {
            snapshot: SnapshotId([n; 16]),
            undo_ms: 100
        }),
        n.clone().prop_map(|n| Command::UndeleteSnapshot {
            snapshot: SnapshotId([n; 16])
        }),
        Just(Command::GcBegin),
        (4_u64..40).prop_map(|fence| Command::GcEnd { fence }),
        (4_u64..40, 0_u8..8).prop_map(|(fence, pack)| Command::GcDelete {
            fence,
            packs: vec![PackId([pack; 32])]
        }),
        (n.clone(), any::<bool>(), any::<bool>()).prop_map(|(n, is_postgres, fast_checkpoint)| {
            let cluster = name(&format!("c{n}"));
            Command::PutSource {
                source: source(),
                document: format!("{n}"),
                files: (!is_postgres).then(|| FilesSpec {
                    roots: vec![format!("/{n}")],
                    ..FilesSpec::default()
                }),
                postgres: is_postgres.then_some(PostgresSpec {
                    cluster,
                    fast_checkpoint,
                    members: Vec::new(),
                }),
                limits: HostLimits::default(),
            }
        }),
        (n, any::<bool>()).prop_map(|(n, long)| Command::PutVault {
            vault: VaultId([n; 16]),
            name: name(&format!("v{n}")),
            key_object: vec![n; if long { 9000 } else { 10 }],
        }),
    ]
}

fn any_proposal() -> impl Strategy<Value = Proposal> {
    (
        any_command(),
        0_u64..2_000_000,
        any::<bool>(),
        proptest::option::of(0_u8..6),
    )
        .prop_map(|(command, time, is_admin, request)| Proposal {
            request: request.map(|n| RequestId([n; 16])),
            time,
            actor: if is_admin {
                Actor::Admin(name("alice"))
            } else {
                Actor::System
            },
            trace: String::new(),
            command,
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// In memory one by one, on disk in batches: the same catalog, and never two open sessions of a source.
    #[test]
    fn equal_entries_make_equal_catalogs(
        proposals in proptest::collection::vec(any_proposal(), 1..60),
        batch in 1_usize..9,
    ) {
        let mut world = World::new();
        let dir = tempfile::tempdir().unwrap();
        let store = CatalogStore::open(dir.path()).unwrap();
        let rows = world.kv.0.clone().into_iter().map(Ok);
        store.replace(rows, Applied { hash: world.hash.to_bytes(), ..Applied::default() }).unwrap();
        let mut index = world.index;
        let mut replies = Vec::new();
        for proposal in &proposals {
            world.time = proposal.time;
            replies.push(world.propose(proposal.actor.clone(), proposal.request, proposal.command.clone()));
            prop_assert!(world.kv.open_sessions().unwrap().len() <= 1);
        }
        let mut on_disk = Vec::new();
        for batch in proposals.chunks(batch) {
            let mut txn = Txn::new(&store);
            for proposal in batch {
                index += 1;
                on_disk.push(apply(&mut txn, index, proposal).unwrap());
            }
            let (changes, hash) = txn.finish(store.index_and_hash().1).unwrap();
            store.write(changes, Applied { hash: hash.to_bytes(), ..Applied::default() }).unwrap();
        }
        prop_assert_eq!(replies, on_disk);
        prop_assert_eq!(store.index_and_hash().1, world.hash);
    }
}
