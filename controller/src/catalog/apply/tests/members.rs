//! Sources of several agents: who may do what, side by side and one after the other.

use super::*;
use crate::catalog::{
    NewFile, NewPage,
    model::{JournalOutcome, PostgresSpec},
};

const SYSTEM: u64 = 77;
const OTHER_VAULT: VaultId = VaultId([2; 16]);

fn main() -> SourceRef {
    "web1/main".parse().unwrap()
}

fn put(members: &[&str]) -> Command {
    Command::PutSource {
        source: main(),
        document: format!("{members:?}"),
        files: None,
        postgres: Some(PostgresSpec {
            cluster: name("main"),
            fast_checkpoint: true,
            members: members.iter().copied().map(name).collect(),
        }),
        limits: HostLimits::default(),
    }
}

fn join(world: &mut World, agent: &str, vault: VaultId) {
    let auth_hash = [agent.as_bytes()[agent.len() - 1]; 32];
    world.ok(Command::CreateToken {
        auth_hash,
        role: TokenRole::Agent,
        name: name(agent),
        vault: Some(vault),
        wrapped_vault: vec![9],
        ttl_ms: 1000,
        replace: false,
    });
    world.ok(Command::UseToken {
        auth_hash,
        name: name(agent),
        version: "1".into(),
    });
}

/// Agents `web1`, `web2` and `web3` of one vault and `away4` of another; the first two serve one source.
fn world() -> World {
    let mut world = World::new();
    world.ok(Command::PutVault {
        vault: OTHER_VAULT,
        name: name("other"),
        key_object: vec![1],
    });
    join(&mut world, "web2", VAULT);
    join(&mut world, "web3", VAULT);
    join(&mut world, "away4", OTHER_VAULT);
    world.ok(put(&["web2"]));
    world
}

fn job(n: u8, agent: &str) -> Command {
    Command::CreateJob {
        job: JobId([n; 16]),
        work: JobWork::Backup,
        source: main(),
        agent: name(agent),
    }
}

fn start(n: u8) -> Command {
    Command::StartJob {
        job: JobId([n; 16]),
        attempt: 1,
    }
}

fn open(n: u8, agent: &str) -> Command {
    Command::OpenSession {
        session: SessionId([n; 16]),
        snapshot: SnapshotId([n; 16]),
        source: main(),
        agent: name(agent),
        incarnation: 1,
        job: JobId([n; 16]),
        attempt: 1,
        system_id: Some(SYSTEM),
    }
}

fn open_journal(n: u8, agent: &str) -> Command {
    Command::OpenJournal {
        session: SessionId([n; 16]),
        source: main(),
        agent: name(agent),
        incarnation: 1,
        system_id: SYSTEM,
    }
}

fn mark(n: u8, agent: &str, is_open: bool) -> Command {
    Command::MarkTail {
        source: main(),
        agent: name(agent),
        incarnation: 1,
        system_id: SYSTEM,
        mark: [n; 16],
        is_open,
    }
}

/// A journal that was opened, and where it is to go on.
struct Opened {
    session: SessionId,
    fence: u64,
    next: u64,
    last: [u8; 32],
}

fn opened(reply: Reply) -> Opened {
    match reply {
        Reply::Journal {
            session,
            next_page,
            last_root,
        } => Opened {
            session: session.id,
            fence: session.fence,
            next: next_page,
            last: last_root,
        },
        other => panic!("{other:?}"),
    }
}

fn append(world: &World, to: &Opened, root: u8, file: &str) -> Command {
    Command::AppendJournal {
        session: to.session,
        fence: to.fence,
        as_of_index: world.index,
        page: NewPage {
            id: SnapshotId([100 + root; 16]),
            number: to.next,
            root_hash: [root; 32],
            root_len: 10,
            previous: to.last,
            files: vec![NewFile {
                name: file.into(),
                len: 16,
                content: [1; 32],
            }],
        },
    }
}

fn outcomes(reply: Reply) -> Vec<JournalOutcome> {
    match reply {
        Reply::Appended { outcomes, .. } => outcomes,
        other => panic!("{other:?}"),
    }
}

#[test]
fn members_are_agents_of_the_same_vault_each_named_once() {
    let mut world = world();
    world.refused(ErrorKind::NotFound, put(&["web2", "nobody"]));
    world.refused(ErrorKind::Invalid, put(&["web2", "away4"]));
    world.refused(ErrorKind::Invalid, put(&["web2", "web2"]));
    world.refused(ErrorKind::Invalid, put(&["web1"]));
    let many: Vec<String> = (0..=limits::SOURCE_MEMBERS_MAX)
        .map(|n| format!("m{n}"))
        .collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    world.refused(ErrorKind::TooLarge, put(&many));
    let source = world.kv.source(&main()).unwrap().unwrap();
    assert!(source.is_served_by(&name("web1")) && source.is_served_by(&name("web2")));
    assert!(!source.is_served_by(&name("web3")) && !source.is_served_by(&name("away4")));
}

#[test]
fn who_is_no_member_opens_nothing() {
    let mut world = world();
    world.ok(job(1, "web1"));
    world.ok(start(1));
    for agent in ["web3", "away4"] {
        world.refused(ErrorKind::Denied, job(2, agent));
        world.refused(ErrorKind::Denied, open(1, agent));
        world.refused(ErrorKind::Denied, open_journal(2, agent));
        world.refused(ErrorKind::Denied, mark(2, agent, true));
    }
    // A member's session is of its own job, and a member of one source is none of another.
    world.refused(ErrorKind::Denied, open(1, "web2"));
    let elsewhere = Command::CreateJob {
        job: JobId([2; 16]),
        work: JobWork::Backup,
        source: source(),
        agent: name("web2"),
    };
    world.refused(ErrorKind::Denied, elsewhere);
}

#[test]
fn members_back_up_one_after_the_other_and_each_goes_on_from_the_last() {
    let mut world = world();
    world.ok(job(1, "web2"));
    world.refused(ErrorKind::Conflict, job(2, "web1"));
    world.ok(start(1));
    let Reply::Session { session, .. } = world.ok(open(1, "web2")) else {
        panic!("no session");
    };
    world.ok(commit(session.id, session.fence, world.index));
    world.ok(finish(JobId([1; 16]), JobState::Succeeded));

    world.ok(job(2, "web1"));
    world.ok(start(2));
    let Reply::Session { session, parent, .. } = world.ok(open(2, "web1")) else {
        panic!("no session");
    };
    assert_eq!(parent.map(|parent| parent.id), Some(SnapshotId([1; 16])));
    assert_eq!(session.sequence, 2);
}

#[test]
fn members_append_side_by_side_and_no_page_is_lost() {
    let mut world = world();
    let first = opened(world.ok(open_journal(1, "web1")));
    let second = opened(world.ok(open_journal(2, "web2")));
    let page = append(&world, &first, 1, "A");
    assert_eq!(outcomes(world.ok(page)), [JournalOutcome::Kept]);
    // It does not follow the last page any more; opened anew it does, and the other's session stays.
    let late = append(&world, &second, 2, "A");
    world.refused(ErrorKind::Fenced, late);
    let second = opened(world.ok(open_journal(3, "web2")));
    assert_eq!((second.next, second.last), (2, [1; 32]));
    let same = append(&world, &second, 2, "A");
    assert_eq!(outcomes(world.ok(same)), [JournalOutcome::There]);
    assert_eq!(world.kv.open_sessions().unwrap().len(), 2);
    let first = Opened {
        next: 3,
        last: [2; 32],
        ..first
    };
    let page = append(&world, &first, 3, "B");
    assert_eq!(outcomes(world.ok(page)), [JournalOutcome::Kept]);

    // Either may go, and the other's is still known.
    for session in [&first, &second] {
        let journal = world.kv.source(&main()).unwrap().unwrap().journal.unwrap();
        assert!(journal.sessions().any(|open| open == session.session));
        world.ok(Command::CloseSession {
            session: session.session,
            fence: session.fence,
            reason: "done".into(),
        });
    }
    let journal = world.kv.source(&main()).unwrap().unwrap().journal.unwrap();
    assert_eq!(journal.sessions().count(), 0);
    assert!(world.kv.open_sessions().unwrap().is_empty());
}

#[test]
fn each_member_has_a_tail_of_its_own() {
    let mut world = world();
    let tails = |world: &World| -> Vec<String> {
        let journal = world.kv.source(&main()).unwrap().unwrap().journal.unwrap();
        journal.tails.iter().map(|tail| tail.agent.to_string()).collect()
    };
    world.ok(mark(1, "web1", true));
    world.ok(mark(2, "web2", true));
    assert_eq!(tails(&world), ["web1", "web2"]);
    // A mark is taken back by whose it is.
    world.ok(mark(1, "web2", false));
    assert_eq!(tails(&world), ["web1", "web2"]);
    world.ok(mark(1, "web1", false));
    assert_eq!(tails(&world), ["web2"]);
    // Who is no member any more may still have WAL that was called archived, and say when that is not so.
    world.ok(put(&[]));
    assert_eq!(tails(&world), ["web2"]);
    world.refused(ErrorKind::Denied, mark(3, "web2", true));
    world.ok(mark(2, "web2", false));
    assert!(tails(&world).is_empty());
}

#[test]
fn who_was_a_member_is_stopped_at_once() {
    let mut world = world();
    let owner = opened(world.ok(open_journal(1, "web1")));
    let member = opened(world.ok(open_journal(2, "web2")));
    world.ok(job(3, "web2"));
    world.ok(start(3));
    let Reply::Session { session, .. } = world.ok(open(3, "web2")) else {
        panic!("no session");
    };
    // What changes nothing ends nothing.
    world.ok(put(&["web2"]));
    assert_eq!(world.kv.open_sessions().unwrap().len(), 3);
    world.ok(put(&["web3"]));
    let left = world.kv.open_sessions().unwrap();
    assert_eq!(
        left.iter().map(|left| left.id).collect::<Vec<_>>(),
        [owner.session]
    );
    let page = append(&world, &member, 1, "A");
    world.refused(ErrorKind::Fenced, page);
    let late = commit(session.id, session.fence, world.index);
    world.refused(ErrorKind::Fenced, late);
    world.refused(ErrorKind::Denied, open_journal(4, "web2"));
    world.ok(finish(JobId([3; 16]), JobState::Failed));
    world.refused(ErrorKind::Denied, job(4, "web2"));
    world.ok(job(4, "web3"));
    let page = append(&world, &owner, 1, "A");
    world.ok(page);
}

/// The settings as versions wrote them that knew no members.
#[derive(serde::Serialize)]
struct Earlier {
    cluster: Name,
    fast_checkpoint: bool,
}

#[test]
fn settings_of_an_earlier_version_have_no_members() {
    let earlier = Earlier {
        cluster: name("main"),
        fast_checkpoint: true,
    };
    let bytes = crate::catalog::kv::encode(&earlier).unwrap();
    let now: PostgresSpec = crate::catalog::kv::decode(&bytes).unwrap();
    assert_eq!(now.members, Vec::<Name>::new());
    assert_eq!(crate::catalog::kv::encode(&now).unwrap(), bytes);
}

#[test]
fn a_retry_acts_once_also_when_another_member_is_connected_by_then() {
    let mut world = world();
    let request = Some(RequestId([7; 16]));
    let Reply::Job(first) = world.propose(Actor::System, request, job(1, "web1")) else {
        panic!("no job");
    };
    let Reply::Job(again) = world.propose(Actor::System, request, job(2, "web2")) else {
        panic!("not the same request");
    };
    assert_eq!((again.id, &again.agent), (first.id, &first.agent));
}
