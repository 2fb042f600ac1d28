//! Which WAL segments are archived, which a recovery needs, and what is missing between.

use crate::{
    error::PgError,
    history::{Leg, TimelineHistory},
    lsn::{Lsn, TimelineId},
    segment::{Segment, SegmentSize},
};
use holdfast_core::limits::PG_ARCHIVE_RANGES_MAX;
use std::collections::BTreeMap;

/// Consecutive segments of one timeline, by number, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Run {
    /// The timeline.
    pub timeline: TimelineId,
    /// Number of the first.
    pub first: u64,
    /// Number of the last.
    pub last: u64,
}

/// The archived segments of a source, as coalesced runs. They may come in any order and more than once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchivedSegments {
    size: SegmentSize,
    /// First to last number, neither overlapping nor touching.
    timelines: BTreeMap<TimelineId, BTreeMap<u64, u64>>,
    count: usize,
}

impl ArchivedSegments {
    /// None yet, of that size.
    #[must_use]
    pub const fn new(size: SegmentSize) -> Self {
        Self {
            size,
            timelines: BTreeMap::new(),
            count: 0,
        }
    }

    /// Adds a segment.
    ///
    /// # Errors
    /// `Refused` for one of another size; `TooLarge` when more separate runs would be needed than are kept.
    pub fn insert(&mut self, segment: Segment) -> Result<(), PgError> {
        if segment.size() != self.size {
            return Err(PgError::Refused {
                what: "a segment of another size",
                why: "all WAL of a cluster is cut alike; the size changes only with pg_resetwal or a new cluster",
            });
        }
        self.insert_run(Run {
            timeline: segment.timeline(),
            first: segment.number(),
            last: segment.number(),
        })
    }

    /// Adds consecutive segments.
    ///
    /// # Errors
    /// `Refused` when they end before they begin or beyond all positions; `TooLarge`.
    pub fn insert_run(&mut self, run: Run) -> Result<(), PgError> {
        let Run {
            timeline,
            first,
            last,
        } = run;
        if first > last || last > self.size.last_number() {
            return Err(PgError::Refused {
                what: "a run of segments",
                why: "it ends before it begins or beyond the last segment there can be",
            });
        }
        let runs = self.timelines.entry(timeline).or_default();
        // What overlaps or touches becomes part of the new run; numbers are far below 2^64, since segments are large.
        let (mut low, mut high, mut joined) = (first, last, 0);
        if let Some((start, end)) = runs
            .range(..=first)
            .next_back()
            .map(|(start, end)| (*start, *end))
            && end + 1 >= first
        {
            (low, high, joined) = (start, last.max(end), 1);
            runs.remove(&start);
        }
        while let Some((start, end)) = runs
            .range(low..=high + 1)
            .next()
            .map(|(start, end)| (*start, *end))
        {
            runs.remove(&start);
            high = high.max(end);
            joined += 1;
        }
        if joined == 0 && self.count >= PG_ARCHIVE_RANGES_MAX {
            self.timelines.retain(|_, runs| !runs.is_empty());
            return Err(PgError::TooLarge {
                what: "the number of separate runs of archived WAL",
                limit: PG_ARCHIVE_RANGES_MAX,
            });
        }
        runs.insert(low, high);
        self.count = self.count + 1 - joined;
        Ok(())
    }

    /// Adds all of another archive.
    ///
    /// # Errors
    /// As for [`Self::insert_run`]; what was added before stays.
    pub fn merge(&mut self, other: &Self) -> Result<(), PgError> {
        if other.size != self.size && other.count > 0 {
            return Err(PgError::Refused {
                what: "an archive of segments of another size",
                why: "all WAL of a cluster is cut alike",
            });
        }
        other.runs().try_for_each(|run| self.insert_run(run))
    }

    /// Size of its segments.
    #[must_use]
    pub const fn size(&self) -> SegmentSize {
        self.size
    }

    /// Whether that segment is archived.
    #[must_use]
    pub fn contains(&self, timeline: TimelineId, number: u64) -> bool {
        self.run_of(timeline, number).is_some()
    }

    fn run_of(&self, timeline: TimelineId, number: u64) -> Option<Run> {
        let (first, last) = self.timelines.get(&timeline)?.range(..=number).next_back()?;
        (number <= *last).then_some(Run {
            timeline,
            first: *first,
            last: *last,
        })
    }

    /// All runs, by timeline and number: what to keep, and to give to [`Self::insert_run`] again.
    pub fn runs(&self) -> impl Iterator<Item = Run> {
        self.timelines.iter().flat_map(|(timeline, runs)| {
            runs.iter().map(|(first, last)| Run {
                timeline: *timeline,
                first: *first,
                last: *last,
            })
        })
    }

    /// What is missing between the first and the last archived segment of each timeline.
    pub fn gaps(&self) -> impl Iterator<Item = Run> {
        self.timelines.iter().flat_map(|(timeline, runs)| {
            runs.values().zip(runs.keys().skip(1)).map(|(end, start)| Run {
                timeline: *timeline,
                first: end + 1,
                last: start - 1,
            })
        })
    }

    /// The archived segments of a need, up to the first that is missing, and all that are missing.
    #[must_use]
    pub fn coverage(&self, needs: &[Need]) -> Coverage {
        let mut coverage = Coverage {
            missing: Vec::new(),
            reaches: None,
        };
        for need in needs {
            let newest = need.newest();
            let last_archived = || {
                self.timelines
                    .get(&newest)
                    .and_then(|runs| Some(*runs.last_key_value()?.1))
            };
            // To the end of WAL means as far as there is some; its first segment at least.
            let last = need
                .last
                .unwrap_or_else(|| last_archived().unwrap_or(need.first).max(need.first));
            let mut number = need.first;
            while number <= last {
                let held = need
                    .any_of
                    .iter()
                    .find_map(|timeline| self.run_of(*timeline, number));
                let (timeline, until) = match held {
                    Some(run) => (run.timeline, run.last.min(last)),
                    None => (newest, self.next_archived(need, number).min(last + 1) - 1),
                };
                if held.is_none() {
                    coverage.missing.push(Run {
                        timeline,
                        first: number,
                        last: until,
                    });
                } else if coverage.missing.is_empty() {
                    coverage.reaches = Segment::new(timeline, until, self.size);
                }
                number = until + 1;
            }
        }
        coverage
    }

    /// The first archived number from that one on, on any timeline of the need.
    fn next_archived(&self, need: &Need, number: u64) -> u64 {
        let of = |timeline| Some(*self.timelines.get(timeline)?.range(number..).next()?.0);
        need.any_of.iter().filter_map(of).min().unwrap_or(u64::MAX)
    }
}

/// Segments that a recovery reads, one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Need {
    /// The timelines under whose names each of them may be archived, newest first, as the server asks for them. More
    /// than one only for the last segment, when the recovery ends before a switch that lies in it.
    pub any_of: Vec<TimelineId>,
    /// Number of the first.
    pub first: u64,
    /// Number of the last; none where it goes on as far as there is WAL.
    pub last: Option<u64>,
}

impl Need {
    fn newest(&self) -> TimelineId {
        self.any_of.first().copied().unwrap_or(TimelineId::FIRST)
    }
}

/// What of the needed WAL is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Coverage {
    /// What is missing, in the order of replay, under the newest timeline's name.
    pub missing: Vec<Run>,
    /// The last segment before anything is missing; none if the first is.
    pub reaches: Option<Segment>,
}

/// The segments that a recovery along `history` needs, from a position (a backup's start) to another, or to the end.
///
/// A segment in which timelines switch is read under the newest of their names: the promotion copied what came before
/// into it.
///
/// # Errors
/// `NotInHistory`, or `Refused` when the end is before the start.
pub fn needed_segments(
    history: &TimelineHistory,
    size: SegmentSize,
    timeline: TimelineId,
    from: Lsn,
    to: Option<Lsn>,
) -> Result<Vec<Need>, PgError> {
    // Refuses an end before the start.
    history.legs(timeline, from, to)?;
    let Some(end) = to else {
        return Ok(runs_of(&history.legs(timeline, from, None)?, size, None));
    };
    let Some(last) = end.checked_sub(1).filter(|last| *last >= from) else {
        return Ok(Vec::new());
    };
    let last = size.number_at(last);
    // Timelines that begin behind the end, but in the same segment, are asked for first.
    let legs: Vec<Leg> = history
        .legs(timeline, from, None)?
        .into_iter()
        .filter(|leg| size.number_at(leg.from) <= last)
        .collect();
    let mut needs = runs_of(&legs, size, Some(last));
    let serves = |leg: &&Leg| leg.to.is_none_or(|to| to >= end || size.number_at(to) > last);
    let any_of: Vec<_> = legs.iter().rev().filter(serves).map(|leg| leg.timeline).collect();
    if any_of.len() > 1
        && let Some(tail) = needs.pop()
    {
        if tail.first < last {
            needs.push(Need {
                last: Some(last - 1),
                ..tail
            });
        }
        needs.push(Need {
            any_of,
            first: last,
            last: Some(last),
        });
    }
    Ok(needs)
}

/// The segments of each leg but those that the next one's name covers as well.
fn runs_of(legs: &[Leg], size: SegmentSize, last: Option<u64>) -> Vec<Need> {
    let firsts = legs.iter().map(|leg| size.number_at(leg.from));
    let ends = firsts
        .clone()
        .skip(1)
        .map(Some)
        .chain([last.map(|last| last + 1)]);
    legs.iter()
        .zip(firsts.zip(ends))
        .filter(|(_, (first, end))| end.is_none_or(|end| *first < end))
        .map(|(leg, (first, end))| Need {
            any_of: vec![leg.timeline],
            first,
            last: end.map(|end| end - 1),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const SIZE: SegmentSize = SegmentSize::MIN;
    const MIB: u64 = 1 << 20;

    fn timeline(number: u32) -> TimelineId {
        TimelineId::new(number).unwrap()
    }

    fn run(number: u32, first: u64, last: u64) -> Run {
        Run {
            timeline: timeline(number),
            first,
            last,
        }
    }

    fn archive(runs: &[(u32, u64, u64)]) -> ArchivedSegments {
        let mut archive = ArchivedSegments::new(SIZE);
        for (number, first, last) in runs {
            archive.insert_run(run(*number, *first, *last)).unwrap();
        }
        archive
    }

    fn need(any_of: &[u32], first: u64, last: impl Into<Option<u64>>) -> Need {
        Need {
            any_of: any_of.iter().copied().map(timeline).collect(),
            first,
            last: last.into(),
        }
    }

    /// Timeline 1 left in the middle of segment 10, timeline 2 at the beginning of segment 20, and 3.
    fn history() -> TimelineHistory {
        TimelineHistory::root(timeline(1))
            .branch_off(timeline(2), Lsn(10 * MIB + 500), "")
            .unwrap()
            .branch_off(timeline(3), Lsn(20 * MIB), "")
            .unwrap()
    }

    fn needs(from: u64, to: Option<u64>) -> Vec<Need> {
        needed_segments(&history(), SIZE, timeline(1), Lsn(from), to.map(Lsn)).unwrap()
    }

    proptest! {
        #[test]
        fn in_whatever_order_they_come_runs_hold_what_was_inserted(
            inserted in proptest::collection::vec((1..3_u32, 0..60_u64, 0..5_u64), 0..60),
        ) {
            let mut archive = ArchivedSegments::new(SIZE);
            let mut set = BTreeSet::new();
            for (number, first, more) in inserted {
                archive.insert_run(run(number, first, first + more)).unwrap();
                set.extend((first..=first + more).map(|segment| (number, segment)));
            }
            for number in 1..3 {
                for segment in 0..80 {
                    prop_assert_eq!(archive.contains(timeline(number), segment), set.contains(&(number, segment)));
                }
            }
            let runs: Vec<Run> = archive.runs().collect();
            prop_assert_eq!(runs.len(), archive.count);
            // Runs neither overlap nor touch, and gaps are what lies between them.
            let between: Vec<Run> = runs
                .windows(2)
                .filter(|pair| pair[0].timeline == pair[1].timeline)
                .map(|pair| Run { timeline: pair[0].timeline, first: pair[0].last + 1, last: pair[1].first - 1 })
                .collect();
            prop_assert!(between.iter().all(|gap| gap.first <= gap.last));
            prop_assert_eq!(archive.gaps().collect::<Vec<_>>(), between);
            let mut again = ArchivedSegments::new(SIZE);
            runs.iter().rev().for_each(|run| again.insert_run(*run).unwrap());
            again.merge(&archive).unwrap();
            prop_assert_eq!(again, archive);
        }

        #[test]
        fn what_is_not_missing_is_archived_and_the_other_way_round(
            archived in proptest::collection::vec((1..4_u32, 0..30_u64, 0..6_u64), 0..12),
            from in 0..10 * MIB, len in 1..25 * MIB, open: bool,
        ) {
            let mut archive = ArchivedSegments::new(SIZE);
            for (number, first, more) in archived {
                archive.insert_run(run(number, first, first + more)).unwrap();
            }
            let needs = needs(from, Some(from + len).filter(|_| !open));
            let coverage = archive.coverage(&needs);
            let is_missing = |timeline, number: u64| {
                coverage.missing.iter().any(|run| run.timeline == timeline && (run.first..=run.last).contains(&number))
            };
            let mut next = SIZE.number_at(Lsn(from));
            let mut reaches = None;
            for need in &needs {
                // Needs follow each other without gap.
                prop_assert_eq!(need.first, next);
                let end = need.last.unwrap_or(40);
                next = end + 1;
                for number in need.first..=end {
                    let holder = need.any_of.iter().find(|timeline| archive.contains(**timeline, number));
                    let beyond = need.last.is_none() && number > need.first
                        && !(number..60).any(|later| archive.contains(need.newest(), later));
                    prop_assert_eq!(is_missing(need.newest(), number), holder.is_none() && !beyond);
                    if let Some(holder) = holder.filter(|_| coverage.missing.iter().all(|run| number < run.first)) {
                        reaches = Segment::new(*holder, number, SIZE);
                    }
                }
            }
            prop_assert_eq!(coverage.reaches, reaches);
        }
    }

    #[test]
    fn a_switch_in_a_segment_is_read_under_the_new_name_and_one_between_two_needs_both() {
        let expected = [need(&[1], 3, 9), need(&[2], 10, 19), need(&[3], 20, None)];
        assert_eq!(needs(3 * MIB, None), expected);
        assert_eq!(needs(3 * MIB, Some(20 * MIB)), expected[..2]);
        assert_eq!(needs(3 * MIB, Some(20 * MIB + 1))[2], need(&[3], 20, 20));
        // The backup began in the very segment of the switch.
        assert_eq!(needs(10 * MIB + 10, Some(12 * MIB)), [need(&[2], 10, 11)]);
    }

    #[test]
    fn a_target_before_a_switch_in_its_segment_takes_either_name() {
        assert_eq!(
            needs(3 * MIB, Some(10 * MIB + 400)),
            [need(&[1], 3, 9), need(&[2, 1], 10, 10)]
        );
        assert_eq!(
            needs(3 * MIB, Some(10 * MIB + 500)),
            [need(&[1], 3, 9), need(&[2, 1], 10, 10)]
        );
        assert_eq!(
            needs(3 * MIB, Some(10 * MIB + 501)),
            [need(&[1], 3, 9), need(&[2], 10, 10)]
        );
        assert_eq!(needs(10 * MIB, Some(10 * MIB + 400)), [need(&[2, 1], 10, 10)]);
        // A whole segment before the switch is never archived under the new name.
        assert_eq!(needs(3 * MIB, Some(10 * MIB)), [need(&[1], 3, 9)]);
        let needs = needs(3 * MIB, Some(10 * MIB + 400));
        for name in [1, 2] {
            let coverage = archive(&[(1, 3, 9), (name, 10, 10)]).coverage(&needs);
            assert_eq!(coverage.missing, []);
            assert_eq!(coverage.reaches.unwrap().timeline(), timeline(name));
        }
        assert_eq!(archive(&[(1, 3, 9)]).coverage(&needs).missing, [run(2, 10, 10)]);
    }

    #[test]
    fn an_empty_way_needs_nothing_and_a_wrong_one_is_refused() {
        assert_eq!(needs(5, Some(5)), []);
        assert_eq!(needs(0, Some(0)), []);
        assert!(needed_segments(&history(), SIZE, timeline(1), Lsn(5), Some(Lsn(4))).is_err());
        assert!(needed_segments(&history(), SIZE, timeline(1), Lsn(11 * MIB), None).is_err());
    }

    #[test]
    fn to_the_end_means_as_far_as_there_is_wal_without_holes() {
        let open = needs(8 * MIB, None);
        let full = archive(&[(1, 0, 9), (2, 10, 19), (3, 20, 25)]).coverage(&open);
        assert_eq!((full.missing.len(), full.reaches.unwrap().number()), (0, 25));
        let hole = archive(&[(1, 0, 9), (2, 10, 19), (3, 20, 22), (3, 24, 25)]).coverage(&open);
        assert_eq!(
            (hole.missing, hole.reaches.unwrap().number()),
            (vec![run(3, 23, 23)], 22)
        );
        // Nothing of the newest timeline: at least its first segment is missing.
        let none = archive(&[(1, 0, 9), (2, 10, 17)]).coverage(&open);
        assert_eq!(none.missing, [run(2, 18, 19), run(3, 20, 20)]);
        assert_eq!(archive(&[]).coverage(&open).reaches, None);
    }

    #[test]
    fn the_number_of_runs_is_bounded_and_joining_is_always_possible() {
        let mut archive = ArchivedSegments::new(SIZE);
        for number in 0..PG_ARCHIVE_RANGES_MAX as u64 {
            archive.insert_run(run(1, number * 2, number * 2)).unwrap();
        }
        let more = run(2, 0, 0);
        assert!(matches!(archive.insert_run(more), Err(PgError::TooLarge { .. })));
        assert_eq!(archive.runs().count(), PG_ARCHIVE_RANGES_MAX);
        archive.insert_run(run(1, 1, 1)).unwrap();
        archive.insert_run(more).unwrap();
    }

    #[test]
    fn segments_of_another_size_and_impossible_runs_are_refused() {
        let mut archive = ArchivedSegments::new(SIZE);
        let larger = SegmentSize::MAX.segment_at(timeline(1), Lsn(0));
        assert!(archive.insert(larger).is_err());
        assert!(archive.insert_run(run(1, 5, 4)).is_err());
        assert!(archive.insert_run(run(1, 5, u64::MAX)).is_err());
        archive
            .insert(SIZE.segment_at(timeline(1), Lsn(u64::MAX)))
            .unwrap();
        archive.insert(SIZE.segment_at(timeline(1), Lsn(0))).unwrap();
        assert_eq!(
            archive.gaps().collect::<Vec<_>>(),
            [run(1, 1, SIZE.last_number() - 1)]
        );
        let mut other = ArchivedSegments::new(SegmentSize::MAX);
        other.insert(larger).unwrap();
        assert!(archive.merge(&other).is_err());
    }
}
