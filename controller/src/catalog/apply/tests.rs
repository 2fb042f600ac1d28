//! What the catalog allows and refuses; equal entries make equal catalogs.

use super::*;
use crate::catalog::{
    NewSnapshot, PackOutcome, PackRegistration, RewrittenPack,
    kv::{CatalogHash, MemoryKv},
    model::{
        FilesSpec, JobOutcome, JobState, JobWork, Meta, RunStats, SessionState, SnapshotState, TokenRole,
    },
};
use holdfast_core::{
    ClusterId, HostLimits, JobId, Name, PackId, RequestId, SessionId, SnapshotId, SourceRef, VaultId, limits,
};

mod clusters;
mod determinism;
mod host_limits;
mod journal;
mod members;
mod postgres_sources;
mod restores;
mod test_restores;

const VAULT: VaultId = VaultId([1; 16]);

struct World {
    kv: MemoryKv,
    hash: CatalogHash,
    index: u64,
    time: u64,
}

impl World {
    /// A cluster with agent web1 and its source web1/data.
    fn new() -> Self {
        let mut world = Self {
            kv: MemoryKv::default(),
            hash: CatalogHash::default(),
            index: 0,
            time: 1_000_000,
        };
        let meta = Meta {
            cluster: ClusterId([5; 16]),
            name: "test".into(),
            generation: 1,
            recovery_recipient: String::new(),
            admin_keys: Vec::new(),
            root_ca_fingerprint: Vec::new(),
            founded_at: 0,
        };
        world.ok(Command::Init { meta });
        world.ok(Command::PutVault {
            vault: VAULT,
            name: name("web"),
            key_object: vec![1],
        });
        world.join(1, false);
        let files = FilesSpec {
            roots: vec!["/srv".into()],
            ..FilesSpec::default()
        };
        world.ok(Command::PutSource {
            source: source(),
            document: "{}".into(),
            files: Some(files),
            postgres: None,
            limits: HostLimits::default(),
        });
        world
    }

    fn propose(&mut self, actor: Actor, request: Option<RequestId>, command: Command) -> Reply {
        self.index += 1;
        let proposal = Proposal {
            request,
            time: self.time,
            actor,
            trace: String::new(),
            command,
        };
        let mut txn = Txn::new(&self.kv);
        let reply = apply(&mut txn, self.index, &proposal).unwrap();
        let (changes, hash) = txn.finish(self.hash).unwrap();
        self.kv.write(changes);
        self.hash = hash;
        let mut anew = CatalogHash::default();
        self.kv.0.iter().for_each(|(key, value)| anew.add(key, value));
        assert_eq!(anew, hash, "the running hash is the hash of what is there");
        reply
    }

    fn system(&mut self, command: Command) -> Reply {
        self.propose(Actor::System, None, command)
    }

    #[track_caller]
    fn ok(&mut self, command: Command) -> Reply {
        match self.system(command) {
            Reply::Refused(refusal) => panic!("{refusal}"),
            reply => reply,
        }
    }

    #[track_caller]
    fn refused(&mut self, kind: ErrorKind, command: Command) {
        let before = self.without_clock();
        match self.system(command) {
            Reply::Refused(refusal) => assert_eq!(refusal.kind, kind, "{refusal}"),
            reply => panic!("not refused: {reply:?}"),
        }
        assert!(
            self.without_clock() == before,
            "a refused command changes nothing"
        );
    }

    fn without_clock(&self) -> std::collections::BTreeMap<Vec<u8>, Vec<u8>> {
        let mut rows = self.kv.0.clone();
        rows.remove(&[keys::CLOCK][..]);
        rows
    }

    fn join(&mut self, token: u8, replace: bool) -> u32 {
        let auth_hash = [token; 32];
        self.ok(Command::CreateToken {
            auth_hash,
            role: TokenRole::Agent,
            name: name("web1"),
            vault: Some(VAULT),
            wrapped_vault: vec![9],
            ttl_ms: 1000,
            replace,
        });
        match self.ok(use_token(token)) {
            Reply::Joined { incarnation, token } => {
                assert_eq!(token.wrapped_vault, [9]);
                incarnation
            }
            other => panic!("{other:?}"),
        }
    }

    /// A running backup job's open session: its id, fence and job.
    fn session(&mut self, n: u8) -> (SessionId, u64, JobId) {
        let job = JobId([n; 16]);
        self.ok(create_job(n));
        self.ok(Command::StartJob { job, attempt: 1 });
        match self.ok(open(n, 1)) {
            Reply::Session { session, .. } => (session.id, session.fence, job),
            other => panic!("{other:?}"),
        }
    }

    fn commit(&mut self, n: u8) -> SnapshotId {
        let (session, fence, job) = self.session(n);
        self.ok(register(session, fence, n));
        let id = match self.ok(commit(session, fence, self.index)) {
            Reply::Snapshot(snapshot) => snapshot.id,
            other => panic!("{other:?}"),
        };
        self.ok(finish(job, JobState::Succeeded));
        id
    }
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn source() -> SourceRef {
    "web1/data".parse().unwrap()
}

fn use_token(token: u8) -> Command {
    Command::UseToken {
        auth_hash: [token; 32],
        name: name("web1"),
        version: "1".into(),
    }
}

fn create_job(n: u8) -> Command {
    Command::CreateJob {
        job: JobId([n; 16]),
        work: JobWork::Backup,
        source: source(),
        agent: name("web1"),
    }
}

fn open(n: u8, attempt: u32) -> Command {
    Command::OpenSession {
        session: SessionId([n; 16]),
        snapshot: SnapshotId([n; 16]),
        source: source(),
        agent: name("web1"),
        incarnation: 1,
        job: JobId([n; 16]),
        attempt,
        system_id: None,
    }
}

fn register(session: SessionId, fence: u64, pack: u8) -> Command {
    let pack = PackRegistration {
        session,
        fence,
        pack: PackId([pack; 32]),
        vault: VAULT,
        len: 100,
    };
    Command::RegisterPacks { packs: vec![pack] }
}

fn commit(session: SessionId, fence: u64, as_of_index: u64) -> Command {
    let snapshot = NewSnapshot {
        root_hash: [session.0[0]; 32],
        root_len: 10,
        prev_root_hash: None,
        stats: RunStats::default(),
        partial: false,
        problems: Vec::new(),
    };
    Command::CommitSnapshot {
        session,
        fence,
        as_of_index,
        snapshot,
    }
}

fn finish(job: JobId, state: JobState) -> Command {
    let outcome = JobOutcome {
        state,
        error_kind: None,
        error: String::new(),
        snapshot: None,
        stats: RunStats::default(),
        limits: None,
        findings: Vec::new(),
        test: None,
    };
    Command::FinishJob {
        job,
        attempt: 1,
        outcome,
    }
}

fn outcome_of(reply: Reply) -> PackOutcome {
    match reply {
        Reply::Packs(mut outcomes) if outcomes.len() == 1 => outcomes.remove(0),
        other => panic!("{other:?}"),
    }
}

fn is_fenced(outcome: &PackOutcome) -> bool {
    matches!(outcome, PackOutcome::Refused(refusal) if refusal.kind == ErrorKind::Fenced)
}

#[test]
fn tokens_are_used_once_in_time_and_a_rebuilt_host_gets_the_next_incarnation() {
    let mut world = World::new();
    world.refused(ErrorKind::Unauthenticated, use_token(1));
    world.refused(ErrorKind::Unauthenticated, use_token(77));
    let create = |token: u8, replace| Command::CreateToken {
        auth_hash: [token; 32],
        role: TokenRole::Agent,
        name: name("web1"),
        vault: Some(VAULT),
        wrapped_vault: vec![9],
        ttl_ms: 1000,
        replace,
    };
    world.refused(ErrorKind::Conflict, create(2, false));
    world.ok(create(3, true));
    world.time += 1000;
    world.refused(ErrorKind::Unauthenticated, use_token(3));
    let (session, fence, _) = world.session(1);
    assert_eq!(world.join(4, true), 2);
    // What the old host had open is over.
    assert_eq!(
        world.kv.session(session).unwrap().unwrap().state,
        SessionState::Expired
    );
    assert!(is_fenced(&outcome_of(world.ok(register(session, fence, 1)))));
    assert!(
        world
            .kv
            .token(&[4; 32])
            .unwrap()
            .unwrap()
            .wrapped_vault
            .is_empty(),
        "handed out once"
    );
    world.refused(ErrorKind::Denied, open(1, 1));
}

#[test]
fn a_session_whose_lease_ended_changes_nothing() {
    let mut world = World::new();
    let (session, fence, _) = world.session(1);
    assert_eq!(
        outcome_of(world.ok(register(session, fence, 1))),
        PackOutcome::Registered
    );
    assert_eq!(
        outcome_of(world.ok(register(session, fence, 1))),
        PackOutcome::AlreadyThere
    );
    assert!(
        is_fenced(&outcome_of(world.system(register(session, fence + 1, 2)))),
        "another fence"
    );
    world.ok(Command::ExpireSession { session, fence });
    let before = world.hash;
    assert!(is_fenced(&outcome_of(world.system(register(session, fence, 2)))));
    world.refused(ErrorKind::Fenced, commit(session, fence, world.index));
    world.refused(
        ErrorKind::Fenced,
        Command::CloseSession {
            session,
            fence,
            reason: String::new(),
        },
    );
    world.refused(ErrorKind::Fenced, Command::ExpireSession { session, fence });
    assert_eq!(world.hash, before);
    assert!(world.kv.open_sessions().unwrap().is_empty());
    // Its packs stay findable for the next run.
    let closed = world.kv.session(session).unwrap().unwrap();
    assert_eq!(world.kv.packs_of_session(&closed).unwrap().len(), 1);
}

#[test]
fn one_session_per_source_and_the_same_attempt_gets_its_own_again() {
    let mut world = World::new();
    world.ok(create_job(1));
    world.refused(ErrorKind::Conflict, create_job(2));
    world.refused(ErrorKind::Fenced, open(1, 1));
    world.ok(Command::StartJob {
        job: JobId([1; 16]),
        attempt: 1,
    });
    world.refused(
        ErrorKind::Conflict,
        Command::StartJob {
            job: JobId([1; 16]),
            attempt: 1,
        },
    );
    let first = world.ok(open(1, 1));
    assert_eq!(world.ok(open(1, 1)), first);
    world.refused(ErrorKind::Fenced, open(1, 2));
    world.refused(ErrorKind::Conflict, Command::DeleteSource { source: source() });
}

#[test]
fn commits_are_refused_after_a_deletion_and_repeat_themselves() {
    let mut world = World::new();
    let first = world.commit(1);
    let as_of = world.index;
    let Reply::Gc { fence: gc } = world.ok(Command::GcBegin) else {
        panic!("no gc")
    };
    world.refused(ErrorKind::Conflict, Command::GcBegin);
    world.ok(create_job(2));
    world.ok(Command::StartJob {
        job: JobId([2; 16]),
        attempt: 1,
    });
    world.refused(ErrorKind::Unavailable, open(2, 1));
    assert_eq!(
        world.ok(Command::GcDelete {
            fence: gc,
            packs: vec![PackId([1; 32])]
        }),
        Reply::Count(1)
    );
    world.ok(Command::GcEnd { fence: gc });
    world.refused(
        ErrorKind::Fenced,
        Command::GcDelete {
            fence: gc,
            packs: vec![PackId([1; 32])],
        },
    );
    let Reply::Session {
        session,
        parent,
        vault_empty,
    } = world.ok(open(2, 1))
    else {
        panic!("no session")
    };
    assert_eq!((parent.unwrap().id, vault_empty), (first, true));
    let (session, fence) = (session.id, session.fence);
    world.refused(ErrorKind::Conflict, Command::GcBegin);
    let outcome = outcome_of(world.ok(register(session, fence, 1)));
    assert!(
        matches!(outcome, PackOutcome::Refused(r) if r.kind == ErrorKind::Conflict),
        "deleted for ever"
    );
    world.refused(ErrorKind::Conflict, commit(session, fence, as_of));
    let done = world.ok(commit(session, fence, world.index));
    assert_eq!(world.ok(commit(session, fence, world.index)), done);
    let Reply::Snapshot(snapshot) = done else {
        panic!("no snapshot")
    };
    assert_eq!(snapshot.sequence, 2);
    assert_eq!(
        world.kv.source(&source()).unwrap().unwrap().latest,
        Some(snapshot.id)
    );
    assert!(
        is_fenced(&outcome_of(world.system(register(session, fence, 9)))),
        "nothing is added after the commit"
    );
}

#[test]
fn what_the_catalog_holds_decides_how_a_backup_ended() {
    let mut world = World::new();
    let job = |world: &World, n: u8| world.kv.job(JobId([n; 16])).unwrap().unwrap();
    // Claims success, committed nothing.
    world.session(1);
    world.ok(finish(JobId([1; 16]), JobState::Succeeded));
    assert_eq!(job(&world, 1).state, JobState::Failed);
    assert!(world.kv.open_sessions().unwrap().is_empty());
    // Committed, then lost: it is not run again.
    let (session, fence, id) = world.session(2);
    world.ok(commit(session, fence, world.index));
    world.ok(Command::LoseJob {
        job: id,
        attempt: 1,
        reason: "gone".into(),
    });
    assert_eq!(job(&world, 2).state, JobState::Succeeded);
    // Lost before: queued again, three times at most.
    let (_, _, id) = world.session(3);
    for attempt in 1..=3 {
        if attempt > 1 {
            world.ok(Command::StartJob { job: id, attempt });
        }
        world.ok(Command::LoseJob {
            job: id,
            attempt,
            reason: "gone".into(),
        });
    }
    assert_eq!(job(&world, 3).state, JobState::Failed);
    assert!(world.kv.active_jobs(None).unwrap().is_empty());
    // A restore does not begin again by itself.
    let spec = crate::catalog::model::RestoreSpec {
        snapshot: SnapshotId([2; 16]),
        target: "/srv/back".into(),
        paths: Vec::new(),
        in_place: false,
    };
    let id = JobId([4; 16]);
    world.ok(Command::CreateJob {
        job: id,
        work: JobWork::Restore(spec),
        source: source(),
        agent: name("web1"),
    });
    world.ok(Command::OfferJob { job: id, attempt: 1 });
    world.ok(Command::LoseJob {
        job: id,
        attempt: 1,
        reason: "gone".into(),
    });
    assert_eq!(
        job(&world, 4).state,
        JobState::Queued,
        "an offer has no effect yet"
    );
    world.ok(Command::StartJob { job: id, attempt: 1 });
    world.ok(Command::LoseJob {
        job: id,
        attempt: 1,
        reason: "gone".into(),
    });
    assert_eq!(job(&world, 4).state, JobState::Interrupted);
    world.refused(ErrorKind::Conflict, Command::CancelJob { job: id });
}

#[test]
fn snapshots_are_deleted_softly_and_forgotten_in_time() {
    let mut world = World::new();
    let (first, second) = (world.commit(1), world.commit(2));
    let latest = |world: &World| world.kv.source(&source()).unwrap().unwrap().latest;
    let Reply::Deleted { undo_until } = world.ok(Command::DeleteSnapshot {
        snapshot: second,
        undo_ms: 500,
    }) else {
        panic!("not deleted")
    };
    assert_eq!(latest(&world), Some(first));
    world.ok(Command::UndeleteSnapshot { snapshot: second });
    assert_eq!(latest(&world), Some(second));
    world.ok(Command::DeleteSnapshot {
        snapshot: second,
        undo_ms: 500,
    });
    let Reply::Gc { fence } = world.ok(Command::GcBegin) else {
        panic!("no gc")
    };
    let forget = |snapshots: Vec<SnapshotId>, ignore_undo| Command::ForgetSnapshots {
        fence,
        snapshots,
        ignore_undo,
    };
    world.refused(ErrorKind::Conflict, forget(vec![second], false));
    world.refused(ErrorKind::Conflict, forget(vec![first], true));
    world.time = undo_until;
    assert_eq!(world.ok(forget(vec![second], false)), Reply::Count(1));
    assert_eq!(world.ok(forget(vec![second], false)), Reply::Count(0));
    world.ok(Command::GcRegister {
        fence,
        packs: vec![RewrittenPack {
            pack: PackId([50; 32]),
            vault: VAULT,
            len: 5,
        }],
    });
    world.ok(Command::GcEnd { fence });
    assert!(world.kv.snapshot(second).unwrap().is_none());
    assert_eq!(world.kv.snapshots_of(&source(), None, 10).unwrap().items.len(), 1);
    assert_eq!(
        world.kv.snapshot(first).unwrap().unwrap().state,
        SnapshotState::Visible
    );
    world.refused(ErrorKind::Conflict, Command::DeleteSource { source: source() });
}

#[test]
fn requests_act_once_and_are_forgotten_after_a_day() {
    let mut world = World::new();
    let alice = Actor::Admin(name("alice"));
    let request = Some(RequestId([1; 16]));
    let command = || create_job(9);
    let first = world.propose(alice.clone(), request, command());
    // The node that serves the retry draws another job id.
    let again = world.propose(alice.clone(), request, create_job(10));
    assert_eq!(first, again);
    let bob = world.propose(Actor::Admin(name("bob")), request, command());
    assert!(matches!(bob, Reply::Refused(r) if r.kind == ErrorKind::Conflict));
    world.time += u64::try_from(limits::REQUEST_MEMORY.as_millis()).unwrap() + 1;
    world.propose(
        alice.clone(),
        Some(RequestId([2; 16])),
        Command::CancelJob { job: JobId([9; 16]) },
    );
    let anew = world.propose(alice, request, command());
    assert!(
        matches!(anew, Reply::Refused(_)),
        "job 9 exists: it was asked anew, not remembered"
    );
}

#[test]
fn what_operators_do_is_audited_in_a_chain_refusals_too() {
    let mut world = World::new();
    let alice = Actor::Admin(name("alice"));
    world.propose(alice.clone(), None, create_job(1));
    world.propose(alice, None, create_job(2));
    let mut records = world.kv.audit(None, 100).unwrap().items;
    assert!(records[0].outcome.starts_with("conflict:"), "{:?}", records[0]);
    assert_eq!(
        (records[1].actor.as_str(), records[1].outcome.as_str()),
        ("admin/alice", "ok")
    );
    records.reverse();
    let mut before = [0; 32];
    for (sequence, record) in (1..).zip(&records) {
        assert_eq!(record.sequence, sequence);
        assert_eq!(audit::chain(&before, record), record.hash);
        before = record.hash;
    }
}

#[test]
fn catalog_time_never_goes_back() {
    let mut world = World::new();
    let before = world.kv.catalog_time().unwrap();
    world.time = 5;
    world.ok(create_job(1));
    assert_eq!(world.kv.catalog_time().unwrap(), before);
    assert_eq!(world.kv.job(JobId([1; 16])).unwrap().unwrap().created_at, before);
}
