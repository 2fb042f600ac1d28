//! Recovery beyond the end of a backup: the WAL on the way is found before anything is written, and put where the server
//! looks for it.
//!
//! All of it goes into `pg_wal`. A server in recovery asks its `restore_command` first and takes what lies there when that
//! has none: so a command that never has any is enough, and the server needs neither a controller nor an agent while it
//! replays.

use super::{
    Backup, PostgresError,
    files::failed,
    old_wal::{self, OldWal, Sorted},
    server::Until,
};
use crate::{BlobOpener, RestoreError, Result, journal::Journal, place::open_below};
use holdfast_core::{UnixMillis, limits::PG_HISTORY_MAX};
use holdfast_postgres::{
    Archive, ArchivedSegments, BackupRange, Need, Recovery, RecoveryMode, RecoveryTarget, Run, Segment,
    TargetAction, TargetTimeline, TimelineHistory, TimelineId, WalFile, WalPlan, plan_wal,
};
use rustix::fs::{self, Mode, OFlags};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    os::fd::BorrowedFd,
};

/// Never has a file: servers then look into `pg_wal`.
pub const NO_ARCHIVE: &str = "/bin/false";
/// Runs of missing segments that are named.
const MISSING_NAMED: usize = 5;

/// What a restored cluster is to recover to, and from what.
#[derive(Debug, Clone)]
pub struct RecoverTo {
    /// The target.
    pub recovery: Recovery,
    /// What is archived of the source.
    pub journal: Journal,
}

impl RecoverTo {
    /// What the server does in the end.
    #[must_use]
    pub fn until(&self) -> Until {
        // Without a target there is nothing to wait at, but for a standby more WAL.
        match (self.recovery.mode, self.recovery.action) {
            (RecoveryMode::Standby, _) => Until::Reading,
            _ if self.recovery.target == RecoveryTarget::Latest => Until::Ready,
            (_, TargetAction::Promote) => Until::Ready,
            (_, TargetAction::Pause) => Until::Reading,
            (_, TargetAction::Shutdown) => Until::Stopped,
        }
    }
}

/// The way to the target, all of it there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Way {
    /// What the server is told.
    pub recovery: Recovery,
    /// The timeline that leads there.
    pub timeline: TimelineId,
    /// The last segment that there is.
    pub reaches: Option<Segment>,
    /// Files of the journal that go into `pg_wal`.
    pub files: Vec<String>,
    /// Their bytes.
    pub bytes: u64,
    /// What is missing behind where the target surely is, if anything.
    pub missing: Option<String>,
    /// Segments on the way that only the cluster has that is replaced.
    pub taken_over: SegmentSet,
    /// Others that only it has, and wanted to archive, or that the way would go on with.
    pub left_aside: SegmentSet,
    /// Those of them that go on behind a gap, and not from another content than is archived.
    pub cut_off: SegmentSet,
}

/// Segments of WAL.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SegmentSet(BTreeSet<Segment>);

impl SegmentSet {
    /// In words, run by run.
    #[must_use]
    pub fn named(&self) -> Vec<String> {
        old_wal::named(&self.0)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Segment> {
        self.0.iter().copied()
    }
}

/// Finds the way; on a thread that may wait.
pub(super) fn find(
    opener: &mut BlobOpener,
    backup: &Backup,
    to: &RecoverTo,
    old_wal: Option<&OldWal>,
) -> Result<Way> {
    let manifest = &backup.manifest;
    let size = manifest.wal_segment_size;
    let journal = &to.journal;
    let mut segments = ArchivedSegments::new(size);
    let mut histories = BTreeMap::new();
    let own = own_segments(backup, &to.recovery.target, journal);
    for segment in &own {
        segments.insert(*segment).map_err(of_archive)?;
    }
    for name in journal.files().keys() {
        match WalFile::parse(name, size) {
            Ok(WalFile::Segment(segment)) => segments.insert(segment).map_err(of_archive)?,
            Ok(WalFile::History(timeline)) => {
                let bytes = journal.read(opener, name, PG_HISTORY_MAX)?;
                let history = TimelineHistory::parse(timeline, &bytes).map_err(of_archive)?;
                histories.insert(timeline, history);
            }
            // A partial segment's content comes under the next timeline's name; notes of backups are for people.
            Ok(WalFile::Partial(_) | WalFile::Backup { .. }) | Err(_) => {}
        }
    }
    let mut old = Sorted::default();
    if let Some(old_wal) = old_wal {
        old = old_wal.sort(opener, journal, |segment| {
            segments.contains(segment.timeline(), segment.number())
        })?;
        for segment in &old.follow {
            segments.insert(*segment).map_err(of_archive)?;
        }
    }
    let range = BackupRange {
        timeline: manifest.timeline,
        start: manifest.start_lsn,
        stop: manifest.stop_lsn,
    };
    let archive = Archive {
        segments: &segments,
        histories: &histories,
    };
    let (target, timeline) = (&to.recovery.target, to.recovery.timeline);
    let plan = plan_wal(range, archive, target, timeline).map_err(of_archive)?;
    let missing = check(&plan, target, journal)?;
    let on_way = on_way(&plan, target, &own);
    let files = files_of(&on_way, &histories, journal);
    let taken_over: BTreeSet<Segment> = on_way.intersection(&old.follow).copied().collect();
    let (left_aside, cut_off) = left(&plan, &old, &taken_over, |segment| {
        old_wal.is_some_and(|old| old.is_ready(segment))
    });
    Ok(Way {
        recovery: Recovery {
            timeline: told(&plan, manifest.timeline, &to.recovery),
            ..to.recovery.clone()
        },
        timeline: plan.timeline,
        reaches: plan.reaches,
        bytes: files
            .iter()
            .filter_map(|name| Some(journal.files().get(name)?.len))
            .chain(taken_over.iter().map(|segment| u64::from(segment.size().bytes())))
            .sum(),
        files,
        missing,
        taken_over: SegmentSet(taken_over),
        left_aside: SegmentSet(left_aside),
        cut_off: SegmentSet(cut_off),
    })
}

/// What the way does not take of the segments that only the old cluster has: all that matters, and of it what the way would go
/// on with but for a gap.
fn left(
    plan: &WalPlan,
    old: &Sorted,
    taken: &BTreeSet<Segment>,
    is_ready: impl Fn(Segment) -> bool,
) -> (BTreeSet<Segment>, BTreeSet<Segment>) {
    let reaches = plan.reaches.map(Segment::number);
    let goes_on = |segment: &Segment| segment.timeline() == plan.timeline && Some(segment.number()) > reaches;
    let all = old.follow.union(&old.diverged).chain(&old.apart).copied();
    let left = all.filter(|segment| !taken.contains(segment) && (goes_on(segment) || is_ready(*segment)));
    // A server that archives would have gone on with them, on whichever timeline.
    let is_beyond =
        |segment: &Segment| segment.timeline() >= plan.timeline && Some(segment.number()) > reaches;
    let cut_off = old
        .apart
        .iter()
        .copied()
        .filter(|segment| goes_on(segment) || (is_ready(*segment) && is_beyond(segment)));
    (left.collect(), cut_off.collect())
}

/// The segments of the backup that need not come from the archive. A standby's last one ends where the backup does: it stands
/// for itself only where nothing behind it is wanted, or archived.
fn own_segments(backup: &Backup, target: &RecoveryTarget, journal: &Journal) -> Vec<Segment> {
    let manifest = &backup.manifest;
    let size = manifest.wal_segment_size;
    let own = size.segments_between(manifest.timeline, manifest.start_lsn, manifest.stop_lsn);
    let mut own: Vec<Segment> = own.collect();
    let (true, Some(last)) = (backup.is_of_standby, own.last()) else {
        return own;
    };
    let is_enough = match target {
        RecoveryTarget::Immediate => true,
        RecoveryTarget::Lsn(_) => false,
        RecoveryTarget::Latest
        | RecoveryTarget::Time(_)
        | RecoveryTarget::Xid(_)
        | RecoveryTarget::Name(_) => !journal.files().keys().any(|name| {
            matches!(WalFile::parse(name, size), Ok(WalFile::Segment(archived))
                if archived.number() >= last.number() && archived.timeline() >= last.timeline())
        }),
    };
    if !is_enough {
        own.pop();
    }
    own
}

/// The history of the timeline that a recovery follows; none where that is the backup's own, whichever it is.
///
/// # Errors
/// Those of reading it, and what is wrong with it.
pub async fn wanted(journal: &Journal, timeline: TargetTimeline) -> Result<Option<TimelineHistory>> {
    let archived = journal.files().keys().filter_map(|name| {
        // Histories are named alike whatever the size of segments is.
        match WalFile::parse(name, holdfast_postgres::SegmentSize::MIN) {
            Ok(WalFile::History(timeline)) => Some(timeline),
            _ => None,
        }
    });
    let number = match timeline {
        TargetTimeline::Current => None,
        TargetTimeline::Latest => archived.max(),
        TargetTimeline::Is(TimelineId::FIRST) => return Ok(Some(TimelineHistory::root(TimelineId::FIRST))),
        TargetTimeline::Is(timeline) => archived.filter(|archived| *archived == timeline).max(),
    };
    let Some(number) = number else {
        return Ok(None);
    };
    let (this, name) = (journal.clone(), WalFile::History(number).to_string());
    let read = move |opener: &mut BlobOpener| this.read(opener, &name, PG_HISTORY_MAX);
    let bytes = journal.reader().blocking(read).await?;
    Ok(Some(TimelineHistory::parse(number, &bytes).map_err(of_archive)?))
}

impl Backup {
    /// Whether a recovery along that timeline may begin with this backup.
    #[must_use]
    pub fn is_on(&self, history: &TimelineHistory) -> bool {
        history.holds_until(self.manifest.timeline, self.manifest.stop_lsn)
    }
}

fn of_archive(source: holdfast_postgres::PgError) -> PostgresError {
    PostgresError::Way(source)
}

/// By number, so that the server follows the very timeline whose WAL was found; its own needs none. A standby goes on to those
/// that its primary will begin.
fn told(plan: &WalPlan, own: TimelineId, recovery: &Recovery) -> TargetTimeline {
    if recovery.mode == RecoveryMode::Standby && recovery.timeline == TargetTimeline::Latest {
        return TargetTimeline::Latest;
    }
    if plan.timeline == own || recovery.target == RecoveryTarget::Immediate {
        TargetTimeline::Current
    } else {
        TargetTimeline::Is(plan.timeline)
    }
}

/// Refuses what no server could reach. Gives what is missing behind a time that was archived before it.
fn check(
    plan: &WalPlan,
    target: &RecoveryTarget,
    journal: &Journal,
) -> Result<Option<String>, PostgresError> {
    let missing = || named(&plan.missing, plan);
    let wanted = match target {
        RecoveryTarget::Time(time) => UnixMillis::try_from(time.as_millisecond()).ok(),
        _ => None,
    };
    if !plan.is_whole() {
        let reached = plan
            .reaches
            .and_then(|segment| Some(journal.files().get(&segment.to_string())?.kept_at));
        return match (wanted, reached) {
            (Some(wanted), Some(reached)) if wanted <= reached => Ok(Some(missing())),
            _ => Err(PostgresError::WalMissing {
                missing: missing(),
                reaches: plan.reaches.map(|segment| segment.to_string()),
            }),
        };
    }
    let Some(wanted) = wanted else {
        return Ok(None);
    };
    // What was kept then was written before.
    let newest = journal.files().values().map(|file| file.kept_at).max();
    match newest {
        Some(newest) if wanted <= newest => Ok(None),
        newest => Err(PostgresError::NotThatFar {
            newest: newest.and_then(|at| jiff::Timestamp::from_millisecond(i64::try_from(at).ok()?).ok()),
        }),
    }
}

fn named(missing: &[Run], plan: &WalPlan) -> String {
    let size = plan
        .reaches
        .map_or(holdfast_postgres::SegmentSize::MIN, Segment::size);
    let name = |timeline, number| {
        Segment::new(timeline, number, size).map_or_else(String::new, |segment| segment.to_string())
    };
    let runs = missing.iter().take(MISSING_NAMED).map(|run| {
        if run.first == run.last {
            name(run.timeline, run.first)
        } else {
            format!(
                "{} to {}",
                name(run.timeline, run.first),
                name(run.timeline, run.last)
            )
        }
    });
    let mut text = runs.collect::<Vec<_>>().join(", ");
    if missing.len() > MISSING_NAMED {
        text.push_str(&format!(" and {} more", missing.len() - MISSING_NAMED));
    }
    text
}

/// Segments on the way that the backup does not hold itself, archived or not.
fn on_way(plan: &WalPlan, target: &RecoveryTarget, own: &[Segment]) -> BTreeSet<Segment> {
    let own: BTreeSet<Segment> = own.iter().copied().collect();
    let size = plan.reaches.map(Segment::size);
    let mut found = BTreeSet::new();
    for Need { any_of, first, last } in &plan.needs {
        let reaches = plan.reaches.map(Segment::number);
        let mut last = last.or(reaches).unwrap_or(*first);
        if !plan.is_whole() {
            last = last.min(reaches.unwrap_or(last));
        }
        if matches!(target, RecoveryTarget::Lsn(_)) {
            // The record there may end in the next segment, and behind a switch none begins in this one.
            last += 1;
        }
        for number in *first..=last {
            let on_any = any_of
                .iter()
                .filter_map(|timeline| Segment::new(*timeline, number, size?));
            found.extend(on_any.filter(|segment| !own.contains(segment)));
        }
    }
    found
}

/// The archived ones of them, and the histories of all timelines.
fn files_of(
    on_way: &BTreeSet<Segment>,
    histories: &BTreeMap<TimelineId, TimelineHistory>,
    journal: &Journal,
) -> Vec<String> {
    // All histories, also those off the way: a server that is promoted takes the next number that it finds free, and must
    // not take one whose WAL is archived already.
    let histories = histories
        .keys()
        .map(|timeline| WalFile::History(*timeline).to_string());
    let segments = on_way.iter().map(Segment::to_string);
    histories
        .chain(segments.filter(|name| journal.files().contains_key(name)))
        .collect()
}

/// Puts the way's files into `pg_wal`, each under its name only when it is whole. Those that are there stay.
pub(super) fn place(
    opener: &mut BlobOpener,
    journal: &Journal,
    way: &Way,
    wal: BorrowedFd<'_>,
    mut placed: impl FnMut(u64) -> Result<()>,
) -> Result<()> {
    for name in &way.files {
        let Some(expected) = journal.files().get(name) else {
            continue;
        };
        let temporary = format!(".holdfast-{name}");
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC;
        let file = open_below(wal, temporary.as_bytes(), flags, Mode::RUSR | Mode::WUSR)
            .map_err(failed("make", name.as_bytes()))?;
        let mut file = File::from(file);
        let len = journal.write(opener, name, &mut file)?;
        if len != expected.len {
            return Err(RestoreError::Protocol(
                "a file of another length than the catalog says",
            ));
        }
        fs::renameat(wal, &temporary, wal, name).map_err(failed("rename", name.as_bytes()))?;
        placed(len)?;
    }
    Ok(())
}
