//! Whether the WAL for a recovery is there, found out before anything is restored.
//!
//! A server only finds out while it replays, hours later, and some ends it mistakes for the end of all WAL. Here the way from
//! a backup to the target is laid over what is archived: which timeline leads there, which segments it takes, and what of
//! them is missing. Source: the documentation, "Timelines", and how servers choose them (`tests/real_server`).

use crate::{
    error::PgError,
    gaps::{ArchivedSegments, Coverage, Need, Run, needed_segments},
    history::TimelineHistory,
    lsn::{Lsn, TimelineId},
    recovery::{RecoveryTarget, TargetTimeline},
    segment::Segment,
};
use std::collections::BTreeMap;

/// What a recovery begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackupRange {
    /// The timeline that it was taken on.
    pub timeline: TimelineId,
    /// Where replay begins.
    pub start: Lsn,
    /// Where its files are consistent.
    pub stop: Lsn,
}

/// What is archived of a source, with the WAL of the backup itself.
#[derive(Debug, Clone, Copy)]
pub struct Archive<'a> {
    /// Segments.
    pub segments: &'a ArchivedSegments,
    /// Histories of timelines.
    pub histories: &'a BTreeMap<TimelineId, TimelineHistory>,
}

/// The way to a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalPlan {
    /// The timeline that the server must be told, by number.
    pub timeline: TimelineId,
    /// Segments that it reads, one after the other.
    pub needs: Vec<Need>,
    /// The last one before something is missing, or before the end.
    pub reaches: Option<Segment>,
    /// What is missing on the way, in the order of replay. Behind it nothing can be reached.
    pub missing: Vec<Run>,
}

impl WalPlan {
    /// Whether all of the way is there.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.missing.is_empty()
    }

    /// Where the WAL that can be replayed ends at the latest.
    #[must_use]
    pub fn end(&self) -> Option<Lsn> {
        self.reaches.and_then(Segment::end)
    }
}

/// Lays the way from a backup to a target.
///
/// Where the target is a time, a transaction or a name, nobody knows before in which segment it is: the way then goes as far
/// as there is WAL.
///
/// # Errors
/// `NotInHistory` when the timeline cannot be reached from the backup, `Refused` when its history is not archived or the
/// target is before the end of the backup.
pub fn plan_wal(
    backup: BackupRange,
    archive: Archive<'_>,
    target: &RecoveryTarget,
    timeline: TargetTimeline,
) -> Result<WalPlan, PgError> {
    let history = match timeline {
        TargetTimeline::Current => history_of(archive, backup.timeline)?,
        TargetTimeline::Is(timeline) => history_of(archive, timeline)?,
        TargetTimeline::Latest => latest(backup, archive)?,
    };
    let to = match target {
        RecoveryTarget::Immediate => Some(backup.stop),
        RecoveryTarget::Lsn(lsn) if *lsn < backup.stop => {
            return Err(PgError::Refused {
                what: "the position to recover to",
                why: "it is before the end of the backup: choose an earlier snapshot",
            });
        }
        // The byte there; the record that begins there may end later, which is the server's to see.
        RecoveryTarget::Lsn(lsn) => lsn.checked_add(1),
        RecoveryTarget::Latest
        | RecoveryTarget::Time(_)
        | RecoveryTarget::Xid(_)
        | RecoveryTarget::Name(_) => None,
    };
    // A backup whose last byte is not on the way cannot become consistent.
    let last = backup.stop.checked_sub(1).unwrap_or(Lsn::ZERO);
    history.legs(backup.timeline, last, None)?;
    let needs = needed_segments(
        &history,
        archive.segments.size(),
        backup.timeline,
        backup.start,
        to,
    )?;
    let Coverage { missing, reaches } = archive.segments.coverage(&needs);
    Ok(WalPlan {
        timeline: history.timeline(),
        needs,
        reaches,
        missing,
    })
}

fn history_of(archive: Archive<'_>, timeline: TimelineId) -> Result<TimelineHistory, PgError> {
    match archive.histories.get(&timeline) {
        Some(history) => Ok(history.clone()),
        None if timeline == TimelineId::FIRST => Ok(TimelineHistory::root(timeline)),
        None => Err(PgError::Refused {
            what: "that timeline",
            why: "its history is not archived: choose one of those that are, or `current`",
        }),
    }
}

/// The newest timeline of all, as servers choose it. Where it left the others before the backup ended, nothing is passed over in
/// silence: what was abandoned by it would come back.
fn latest(backup: BackupRange, archive: Archive<'_>) -> Result<TimelineHistory, PgError> {
    let newest = archive.histories.range(backup.timeline..).next_back();
    match newest {
        Some((_, history)) if history.holds_until(backup.timeline, backup.stop) => Ok(history.clone()),
        Some(_) => Err(PgError::Refused {
            what: "the newest timeline",
            why: "it left the backup's before the backup ended: choose an earlier snapshot, or the timeline `current` or its number",
        }),
        // Without its own history nothing before the backup is known, and nothing before it is needed.
        None => Ok(TimelineHistory::root(backup.timeline)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segment::SegmentSize;

    const SIZE: SegmentSize = SegmentSize::MIN;
    const MIB: u64 = 1 << 20;

    fn timeline(number: u32) -> TimelineId {
        TimelineId::new(number).unwrap()
    }

    fn archive(runs: &[(u32, u64, u64)]) -> ArchivedSegments {
        let mut archive = ArchivedSegments::new(SIZE);
        for (number, first, last) in runs {
            archive
                .insert_run(Run {
                    timeline: timeline(*number),
                    first: *first,
                    last: *last,
                })
                .unwrap();
        }
        archive
    }

    /// Timeline 2 left 1 in segment 20; timeline 3 left 1 as well, earlier, in segment 10.
    fn histories() -> BTreeMap<TimelineId, TimelineHistory> {
        let root = TimelineHistory::root(timeline(1));
        let two = root.branch_off(timeline(2), Lsn(20 * MIB + 7), "").unwrap();
        let three = root.branch_off(timeline(3), Lsn(10 * MIB + 7), "").unwrap();
        [(timeline(2), two), (timeline(3), three)].into()
    }

    fn backup(number: u32, first: u64, last: u64) -> BackupRange {
        BackupRange {
            timeline: timeline(number),
            start: Lsn(first * MIB + 40),
            stop: Lsn(last * MIB + 100),
        }
    }

    fn plan(
        runs: &[(u32, u64, u64)],
        backup: BackupRange,
        target: RecoveryTarget,
        to: TargetTimeline,
    ) -> Result<WalPlan, PgError> {
        let (segments, histories) = (archive(runs), histories());
        let archive = Archive {
            segments: &segments,
            histories: &histories,
        };
        plan_wal(backup, archive, &target, to)
    }

    #[test]
    fn the_latest_timeline_is_the_newest_and_nothing_else_in_silence() {
        let all = [(1, 1, 20), (2, 20, 30), (3, 10, 12)];
        let latest = |backup| plan(&all, backup, RecoveryTarget::Latest, TargetTimeline::Latest);
        let early = latest(backup(1, 5, 6)).unwrap();
        assert_eq!((early.timeline, early.end()), (timeline(3), Some(Lsn(13 * MIB))));
        // Timeline 3 is newer, but left before this backup was taken.
        assert!(matches!(latest(backup(1, 15, 16)), Err(PgError::Refused { .. })));
        assert!(matches!(latest(backup(2, 25, 26)), Err(PgError::Refused { .. })));
        assert!(early.is_whole());
        // No history beyond its own.
        let last = latest(backup(3, 11, 12)).unwrap();
        assert_eq!((last.timeline, last.end()), (timeline(3), Some(Lsn(13 * MIB))));
    }

    #[test]
    fn a_timeline_that_is_asked_for_must_be_reachable() {
        let all = [(1, 1, 20), (2, 20, 30), (3, 10, 12)];
        let to = |backup, number| {
            plan(
                &all,
                backup,
                RecoveryTarget::Latest,
                TargetTimeline::Is(timeline(number)),
            )
        };
        assert_eq!(to(backup(1, 15, 16), 2).unwrap().timeline, timeline(2));
        assert!(matches!(
            to(backup(1, 15, 16), 3),
            Err(PgError::NotInHistory { .. })
        ));
        assert!(matches!(to(backup(1, 5, 6), 4), Err(PgError::Refused { .. })));
        let current = plan(
            &all,
            backup(1, 5, 6),
            RecoveryTarget::Latest,
            TargetTimeline::Current,
        );
        assert_eq!(current.unwrap().end(), Some(Lsn(21 * MIB)));
    }

    #[test]
    fn what_is_missing_on_the_way_is_named_and_what_is_off_it_is_not() {
        let gap = [(1, 1, 7), (1, 9, 20)];
        let lsn = |mib: u64| RecoveryTarget::Lsn(Lsn(mib * MIB + 5));
        let to = |target| plan(&gap, backup(1, 5, 6), target, TargetTimeline::Current).unwrap();
        let latest = to(RecoveryTarget::Latest);
        assert!(!latest.is_whole());
        assert_eq!(
            latest.missing,
            [Run {
                timeline: timeline(1),
                first: 8,
                last: 8
            }]
        );
        assert_eq!(latest.end(), Some(Lsn(8 * MIB)));
        assert!(to(lsn(7)).is_whole());
        assert!(!to(lsn(8)).is_whole());
        assert!(to(RecoveryTarget::Immediate).is_whole());
        let beyond = to(lsn(25));
        assert_eq!(beyond.missing.last().unwrap().last, 25);
    }

    #[test]
    fn a_position_before_the_end_of_the_backup_is_refused() {
        let early = RecoveryTarget::Lsn(Lsn(6 * MIB));
        let refused = plan(&[(1, 1, 9)], backup(1, 5, 6), early, TargetTimeline::Current);
        assert!(matches!(refused, Err(PgError::Refused { .. })));
    }
}
