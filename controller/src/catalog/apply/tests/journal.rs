//! Journals: appended in order by one session, each name with one content.

use super::*;
use crate::catalog::{
    NewFile, NewPage,
    model::{JournalOutcome, PostgresSpec},
};
use JournalOutcome::{Divergent, Kept, There};

const SYSTEM: u64 = 77;

/// A world whose source is of PostgreSQL.
fn world() -> World {
    let mut world = World::new();
    world.ok(Command::PutSource {
        source: source(),
        document: "{}".into(),
        files: None,
        postgres: Some(PostgresSpec {
            cluster: name("main"),
            fast_checkpoint: true,
            members: Vec::new(),
        }),
        limits: HostLimits::default(),
    });
    world
}

fn open_journal(n: u8, system_id: u64) -> Command {
    Command::OpenJournal {
        session: SessionId([n; 16]),
        source: source(),
        agent: name("web1"),
        incarnation: 1,
        system_id,
    }
}

fn opened(reply: Reply) -> (SessionId, u64, u64, [u8; 32]) {
    match reply {
        Reply::Journal {
            session,
            next_page,
            last_root,
        } => (session.id, session.fence, next_page, last_root),
        other => panic!("{other:?}"),
    }
}

fn page(number: u64, previous: [u8; 32], files: &[(&str, u8)]) -> NewPage {
    let new = |(name, content): &(&str, u8)| NewFile {
        name: (*name).into(),
        len: 16,
        content: [*content; 32],
    };
    NewPage {
        id: SnapshotId([100 + number as u8; 16]),
        number,
        root_hash: [number as u8; 32],
        root_len: 10,
        previous,
        files: files.iter().map(new).collect(),
    }
}

fn append(session: SessionId, fence: u64, as_of_index: u64, page: NewPage) -> Command {
    Command::AppendJournal {
        session,
        fence,
        as_of_index,
        page,
    }
}

fn outcomes(reply: Reply) -> Vec<JournalOutcome> {
    match reply {
        Reply::Appended { outcomes, .. } => outcomes,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_name_has_one_content_and_another_one_is_kept_beside_it() {
    let mut world = world();
    let (session, fence, next, last) = opened(world.ok(open_journal(1, SYSTEM)));
    assert_eq!((next, last), (1, [0; 32]));
    let first = page(
        1,
        last,
        &[("00000001000000000000000A", 1), ("00000002.history", 2)],
    );
    let index = world.index;
    assert_eq!(
        outcomes(world.ok(append(session, fence, index, first.clone()))),
        [Kept, Kept]
    );
    // Its answer was lost: the same page acts once.
    let before = world.without_clock();
    assert_eq!(
        outcomes(world.ok(append(session, fence, index, first))),
        [Kept, Kept]
    );
    assert!(world.without_clock() == before);
    let second = page(
        2,
        [1; 32],
        &[("00000001000000000000000A", 1), ("00000002.history", 3)],
    );
    let index = world.index;
    assert_eq!(
        outcomes(world.ok(append(session, fence, index, second))),
        [There, Divergent]
    );
    let file = world
        .kv
        .journal_file(&source(), "00000002.history")
        .unwrap()
        .unwrap();
    assert_eq!((file.content, file.page), ([2; 32], SnapshotId([101; 16])));
    assert_eq!(file.divergent.len(), 1);
    let journal = world.kv.source(&source()).unwrap().unwrap().journal.unwrap();
    assert_eq!((journal.files, journal.bytes, journal.divergent), (2, 32, 1));
    assert_eq!((journal.next_page, journal.last_root), (3, [2; 32]));
    let files = world.kv.journal_files(&source(), None, 10).unwrap().items;
    let names: Vec<_> = files.into_iter().map(|file| file.name).collect();
    assert_eq!(names, ["00000001000000000000000A", "00000002.history"]);
}

#[test]
fn pages_follow_each_other_and_are_of_one_cluster() {
    let mut world = world();
    let (session, fence, ..) = opened(world.ok(open_journal(1, SYSTEM)));
    let index = world.index;
    for bad in [page(2, [0; 32], &[("A", 1)]), page(1, [9; 32], &[("A", 1)])] {
        world.refused(ErrorKind::Fenced, append(session, fence, index, bad));
    }
    for bad in [
        page(1, [0; 32], &[]),
        page(1, [0; 32], &[("A", 1), ("A", 1)]),
        page(1, [0; 32], &[("", 1)]),
        page(1, [0; 32], &[("../A", 1)]),
        page(1, [0; 32], &[(".A", 1)]),
        page(1, [0; 32], &[(&"A".repeat(65), 1)]),
    ] {
        world.refused(ErrorKind::Invalid, append(session, fence, index, bad));
    }
    let later = index + 100;
    world.refused(
        ErrorKind::Invalid,
        append(session, fence, later, page(1, [0; 32], &[("A", 1)])),
    );
    // Nothing is in it yet, so that a mistaken first try binds it to no cluster.
    let _ = opened(world.ok(open_journal(2, SYSTEM + 1)));
    // The same agent opens it anew, as after a restart: what had it open before is over.
    let (new, new_fence, ..) = opened(world.ok(open_journal(3, SYSTEM)));
    let index = world.index;
    world.refused(
        ErrorKind::Fenced,
        append(session, fence, index, page(1, [0; 32], &[("A", 1)])),
    );
    world.ok(append(new, new_fence, index, page(1, [0; 32], &[("A", 1)])));
    world.refused(ErrorKind::Conflict, open_journal(4, SYSTEM + 1));
    // And a source with a journal is not forgotten.
    world.refused(ErrorKind::Conflict, Command::DeleteSource { source: source() });
}

#[test]
fn a_backup_and_a_journal_of_one_source_go_on_side_by_side() {
    let mut world = world();
    let (journal, journal_fence, ..) = opened(world.ok(open_journal(9, SYSTEM)));
    let (backup, backup_fence, _) = world.session(1);
    let index = world.index;
    world.refused(
        ErrorKind::Invalid,
        append(backup, backup_fence, index, page(1, [0; 32], &[("A", 1)])),
    );
    world.ok(append(
        journal,
        journal_fence,
        index,
        page(1, [0; 32], &[("A", 1)]),
    ));
    world.ok(commit(backup, backup_fence, index));
    let left = world.kv.source(&source()).unwrap().unwrap();
    assert_eq!(left.journal.unwrap().open_session, Some(journal));
}

#[test]
fn garbage_collection_ends_journals_and_none_opens_meanwhile() {
    let mut world = world();
    let (session, fence, ..) = opened(world.ok(open_journal(1, SYSTEM)));
    let Reply::Gc { fence: gc } = world.ok(Command::GcBegin) else {
        panic!("it did not begin");
    };
    let index = world.index;
    world.refused(
        ErrorKind::Fenced,
        append(session, fence, index, page(1, [0; 32], &[("A", 1)])),
    );
    world.refused(ErrorKind::Unavailable, open_journal(2, SYSTEM));
    world.ok(Command::GcEnd { fence: gc });
    world.ok(open_journal(2, SYSTEM));
}

#[test]
fn a_page_that_was_checked_before_a_deletion_is_checked_again() {
    let mut world = world();
    let (session, fence, job) = world.session(1);
    world.ok(register(session, fence, 1));
    world.ok(Command::CancelJob { job });
    let checked = world.index;
    let Reply::Gc { fence: gc } = world.ok(Command::GcBegin) else {
        panic!("it did not begin");
    };
    world.ok(Command::GcDelete {
        fence: gc,
        packs: vec![PackId([1; 32])],
    });
    world.ok(Command::GcEnd { fence: gc });
    let (session, fence, ..) = opened(world.ok(open_journal(2, SYSTEM)));
    world.refused(
        ErrorKind::Conflict,
        append(session, fence, checked, page(1, [0; 32], &[("A", 1)])),
    );
    let index = world.index;
    world.ok(append(session, fence, index, page(1, [0; 32], &[("A", 1)])));
}

fn mark(n: u8, system_id: u64, is_open: bool) -> Command {
    Command::MarkTail {
        source: source(),
        agent: name("web1"),
        incarnation: 1,
        system_id,
        mark: [n; 16],
        is_open,
    }
}

#[test]
fn a_tail_is_open_until_that_very_mark_is_taken_back() {
    let mut world = world();
    let marks = |world: &World| -> Vec<u8> {
        let journal = world.kv.source(&source()).unwrap().unwrap().journal.unwrap();
        journal.tails.iter().map(|tail| tail.mark[0]).collect()
    };
    world.ok(mark(1, SYSTEM, true));
    assert_eq!(marks(&world), [1]);
    // Bound to the cluster, which only the one who may have its WAL can change while nothing is kept.
    world.refused(ErrorKind::Conflict, open_journal(1, SYSTEM + 1));
    world.refused(ErrorKind::Conflict, Command::DeleteSource { source: source() });
    world.ok(mark(2, SYSTEM, true));
    assert_eq!(marks(&world), [2]);
    // A late one changes nothing.
    world.ok(mark(1, SYSTEM, false));
    assert_eq!(marks(&world), [2]);
    world.ok(mark(2, SYSTEM, false));
    assert_eq!(marks(&world), Vec::<u8>::new());
    world.ok(mark(3, SYSTEM, true));
    let (session, fence, next, last) = opened(world.ok(open_journal(1, SYSTEM)));
    let index = world.index;
    world.ok(append(session, fence, index, page(next, last, &[("a", 1)])));
    world.refused(ErrorKind::Conflict, mark(4, SYSTEM + 1, true));
    assert_eq!(marks(&world), [3]);
}
