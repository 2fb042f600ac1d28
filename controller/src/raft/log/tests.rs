//! Faults in the log: whatever happens to its files, it gives an error or a clean prefix.

use super::*;
use crate::catalog::{Actor, Command, Proposal};
use openraft::{CommittedLeaderId, EntryPayload};
use proptest::prelude::*;

fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(CommittedLeaderId::new(term, 1), index)
}

fn entry(term: u64, index: u64) -> Entry {
    let proposal = Proposal {
        request: None,
        time: index * 10,
        actor: Actor::System,
        trace: "x".repeat((index % 7) as usize * 9),
        command: Command::GcEnd {
            fence: term * 1000 + index,
        },
    };
    Entry {
        log_id: log_id(term, index),
        payload: EntryPayload::Normal(proposal),
    }
}

fn encoded(entries: &[Entry]) -> Vec<(LogId, Vec<u8>)> {
    entries
        .iter()
        .map(|entry| (entry.log_id, encode_entry(entry).unwrap()))
        .collect()
}

fn read_all(log: &Log) -> Result<Vec<Entry>> {
    log.places(0..u64::MAX)
        .into_iter()
        .map(|(_, place)| place.read())
        .collect()
}

fn same(a: &[Entry], b: &[Entry]) -> bool {
    encoded(a) == encoded(b)
}

/// A log of several frames and segments, with an overruled end; and what it holds.
fn sample(dir: &Path) -> Vec<Entry> {
    let mut log = Log::open_with(dir, 400).unwrap();
    let mut all = Vec::new();
    let append = |log: &mut Log, all: &mut Vec<Entry>, entries: Vec<Entry>| {
        log.append(&encoded(&entries)).unwrap();
        all.extend(entries);
    };
    append(&mut log, &mut all, vec![entry(1, 0), entry(1, 1)]);
    append(&mut log, &mut all, (2..6).map(|i| entry(1, i)).collect());
    append(&mut log, &mut all, vec![entry(1, 6)]);
    log.truncate(4).unwrap();
    all.truncate(4);
    append(&mut log, &mut all, vec![entry(2, 4), entry(2, 5)]);
    append(&mut log, &mut all, vec![entry(2, 6)]);
    assert!(log.segments.len() > 1);
    all
}

#[test]
fn what_was_appended_is_there_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let all = sample(dir.path());
    let log = Log::open_with(dir.path(), 400).unwrap();
    assert!(same(&read_all(&log).unwrap(), &all));
    assert_eq!(log.last(), Some(log_id(2, 6)));
}

#[test]
fn purging_removes_segments_and_survives_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let all = sample(dir.path());
    let before = segment_numbers(dir.path()).unwrap().len();
    let mut log = Log::open_with(dir.path(), 400).unwrap();
    log.purge(log_id(2, 5)).unwrap();
    assert!(segment_numbers(dir.path()).unwrap().len() < before);
    drop(log);
    let mut log = Log::open_with(dir.path(), 400).unwrap();
    assert!(same(&read_all(&log).unwrap(), &all[6..]));
    assert_eq!(
        (log.purged(), log.last()),
        (Some(log_id(2, 5)), Some(log_id(2, 6)))
    );
    // A snapshot from another node may be far ahead.
    log.purge(log_id(3, 100)).unwrap();
    log.append(&encoded(&[entry(3, 101)])).unwrap();
    drop(log);
    let log = Log::open_with(dir.path(), 400).unwrap();
    assert!(same(&read_all(&log).unwrap(), &[entry(3, 101)]));
}

#[test]
fn a_purged_log_that_is_empty_goes_on_behind_the_purge() {
    let dir = tempfile::tempdir().unwrap();
    sample(dir.path());
    let mut log = Log::open_with(dir.path(), 400).unwrap();
    log.purge(log_id(2, 6)).unwrap();
    drop(log);
    let log = Log::open_with(dir.path(), 400).unwrap();
    assert!(read_all(&log).unwrap().is_empty());
    assert_eq!(log.last(), Some(log_id(2, 6)));
}

#[test]
fn a_log_cut_at_any_byte_of_its_last_segment_is_a_clean_prefix() {
    let dir = tempfile::tempdir().unwrap();
    let all = sample(dir.path());
    let last = segment_path(dir.path(), *segment_numbers(dir.path()).unwrap().last().unwrap());
    let whole = std::fs::read(&last).unwrap();
    for cut in 0..whole.len() {
        std::fs::write(&last, &whole[..cut]).unwrap();
        let mut log = Log::open_with(dir.path(), 400).unwrap();
        let found = read_all(&log).unwrap();
        // An overruling frame that is cut brings back what it overruled, which was never acknowledged as gone.
        let is_prefix = found.len() <= all.len() && same(&found, &all[..found.len()]);
        assert!(
            is_prefix || found.iter().all(|e| e.log_id.leader_id.term == 1),
            "cut at {cut}"
        );
        let next = log.last().map_or(0, |id| id.index + 1);
        log.append(&encoded(&[entry(9, next)])).unwrap();
        drop(log);
        let log = Log::open_with(dir.path(), 400).unwrap();
        assert_eq!(log.last(), Some(log_id(9, next)), "cut at {cut}");
        // Back to how it was, for the next cut.
        for number in segment_numbers(dir.path()).unwrap() {
            if segment_path(dir.path(), number) > last {
                std::fs::remove_file(segment_path(dir.path(), number)).unwrap();
            }
        }
    }
}

#[test]
fn a_log_cut_in_an_earlier_segment_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    sample(dir.path());
    let first = segment_path(dir.path(), segment_numbers(dir.path()).unwrap()[0]);
    let whole = std::fs::read(&first).unwrap();
    for cut in 0..whole.len() {
        std::fs::write(&first, &whole[..cut]).unwrap();
        // At the very end of its header the segment is only empty: then the entries behind it miss theirs.
        assert!(Log::open_with(dir.path(), 400).is_err(), "cut at {cut}");
    }
    std::fs::remove_file(&first).unwrap();
    assert!(
        Log::open_with(dir.path(), 400).is_err(),
        "without its first segment"
    );
}

#[test]
fn any_flipped_bit_is_an_error_or_leaves_a_clean_prefix() {
    let dir = tempfile::tempdir().unwrap();
    let all = sample(dir.path());
    for number in segment_numbers(dir.path()).unwrap() {
        let path = segment_path(dir.path(), number);
        let whole = std::fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at % 8);
            std::fs::write(&path, &bytes).unwrap();
            if let Ok(log) = Log::open_with(dir.path(), 400) {
                let found = read_all(&log).unwrap();
                assert!(
                    found.len() < all.len() && same(&found, &all[..found.len()]),
                    "byte {at} of segment {number}"
                );
            }
            // Opening may have cut the end off.
            std::fs::write(&path, &whole).unwrap();
        }
    }
}

#[test]
fn damage_while_running_is_noticed_when_it_is_read() {
    let dir = tempfile::tempdir().unwrap();
    sample(dir.path());
    let log = Log::open_with(dir.path(), 400).unwrap();
    let path = segment_path(dir.path(), log.segments.back().unwrap().number);
    let mut bytes = std::fs::read(&path).unwrap();
    let last = bytes.len() - 2;
    bytes[last] ^= 4;
    std::fs::write(&path, &bytes).unwrap();
    assert!(matches!(read_all(&log), Err(Error::Corrupt { .. })));
}

#[test]
fn small_files_are_refused_when_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vote");
    let vote = crate::raft::types::Vote::new(7, 3);
    write_small(&path, &vote).unwrap();
    assert_eq!(read_small::<crate::raft::types::Vote>(&path).unwrap(), Some(vote));
    let whole = std::fs::read(&path).unwrap();
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        match read_small::<crate::raft::types::Vote>(&path) {
            Err(Error::Corrupt { .. }) => {}
            other => panic!("byte {at}: {other:?}"),
        }
        std::fs::write(&path, &whole[..at]).unwrap();
        assert!(
            read_small::<crate::raft::types::Vote>(&path).is_err(),
            "cut at {at}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Random work and restarts, against a plain list.
    #[test]
    fn behaves_like_a_list(steps in proptest::collection::vec((0_u8..5, 1_u64..6), 1..40)) {
        let dir = tempfile::tempdir().unwrap();
        let mut log = Log::open_with(dir.path(), 300).unwrap();
        let mut model: BTreeMap<u64, Entry> = BTreeMap::new();
        let (mut term, mut next, mut purged) = (1, 0, None::<u64>);
        for (step, amount) in steps {
            match step {
                0 | 1 => {
                    let entries: Vec<Entry> = (next..next + amount).map(|i| entry(term, i)).collect();
                    log.append(&encoded(&entries)).unwrap();
                    next += amount;
                    model.extend(entries.into_iter().map(|e| (e.log_id.index, e)));
                }
                2 => {
                    let from = next.saturating_sub(amount).max(purged.map_or(0, |p| p + 1));
                    log.truncate(from).unwrap();
                    model.split_off(&from);
                    next = from;
                    term += 1;
                }
                3 => {
                    if let Some(upto) = model.keys().nth(amount as usize).copied() {
                        log.purge(model[&upto].log_id).unwrap();
                        model = model.split_off(&(upto + 1));
                        purged = Some(upto);
                    }
                }
                _ => {
                    drop(log);
                    log = Log::open_with(dir.path(), 300).unwrap();
                }
            }
            let expected: Vec<Entry> = model.values().cloned().collect();
            prop_assert!(same(&read_all(&log).unwrap(), &expected));
            prop_assert_eq!(log.last().map(|id| id.index), next.checked_sub(1));
        }
    }
}
