//! Where a restored PostgreSQL cluster recovers to: which snapshot it begins with, and the WAL after it.

use super::super::{data::Opener, get};
use crate::{
    address::{Address, At, parse_at},
    cli::{Action, TargetArgs, Timeline},
    cluster::Cluster,
    error::{Result, fault, invalid, lift},
    rows::SnapshotRow,
};
use async_trait::async_trait;
use holdfast_core::{ErrorKind, SnapshotId, SourceRef, UnixMillis};
use holdfast_net::client::Connection;
use holdfast_repo::{Root, VaultKeys};
use holdfast_restore::{
    GrpcSource, Journal, JournalFile, JournalRoots, RestoreError, Snapshot, open_root,
    postgres::{
        Backup, Lsn, NO_ARCHIVE, RecoverTo, Recovery, RecoveryMode, RecoveryTarget, TargetAction,
        TargetTimeline, TimelineHistory, wanted,
    },
};
use std::{collections::BTreeMap, sync::Arc};

/// A snapshot, and where its cluster recovers to.
pub(in super::super) struct Chosen {
    pub(in super::super) snapshot: Snapshot,
    /// None: the end of the backup.
    pub(in super::super) recover_to: Option<RecoverTo>,
    /// Where WAL may wait that is not archived, in words.
    pub(in super::super) open_tail: Option<String>,
}

/// Chooses the snapshot that an address and a target mean together.
/// `is_whole`: the cluster, and not files of it.
pub(in super::super) async fn choose(
    cluster: &Cluster,
    address: &Address,
    is_whole: bool,
    args: &TargetArgs,
) -> Result<Chosen> {
    let opener = Opener::new(cluster).await?;
    let journal = if is_whole {
        Some(get::journal(cluster, &address.source).await?)
    } else {
        None
    };
    let open_tail = journal.as_ref().and_then(get::Journal::open_tail);
    let journal = journal.map(|journal| journal.files).unwrap_or_default();
    let target = match asked(args)? {
        Some(target) => Some(target),
        None => match meant(address, !journal.is_empty() || open_tail.is_some())? {
            Some(target) => Some(target),
            None => implied(args),
        },
    };
    let Some(target) = target else {
        let row = cluster.resolve(address).await?;
        return Ok(Chosen {
            snapshot: opener.open(&row).await?,
            recover_to: None,
            open_tail: None,
        });
    };
    if let Some(tail) = &open_tail {
        check_tail(&address.source, tail, &target, args)?;
    }
    if journal.is_empty() {
        return Err(fault(
            ErrorKind::NotFound,
            format!("no WAL of {} is archived, so nothing after a backup can be recovered", address.source),
        )
        .with_hint(format!(
            "leave the target out to restore the end of a backup; to archive WAL, set archive_command on the server: \
             holdfast-agent wal push --source {} %p",
            address.source.source
        )));
    }
    let recovery = recovery(target, args)?;
    let files = journal.into_iter().map(|row| {
        let file = JournalFile {
            len: row.bytes,
            page: row.page,
            kept_at: row.kept_millis,
        };
        (row.name, file)
    });
    let files: BTreeMap<_, _> = files.collect();
    let journal_by = |snapshot: &Snapshot| {
        let roots = Pages {
            connection: cluster.connection.clone(),
            keys: Arc::clone(snapshot.reader().keys()),
        };
        let reader = snapshot.reader().clone();
        Journal::new(address.source.clone(), files.clone(), Arc::new(roots), reader)
    };
    let (snapshot, journal) = begin_with(cluster, &opener, address, &recovery, journal_by).await?;
    Ok(Chosen {
        snapshot,
        recover_to: Some(RecoverTo { recovery, journal }),
        open_tail,
    })
}

/// All WAL that there is can only be recovered to when it is known that there is no more. Every other target is looked for by
/// the server itself, which says when it does not find it; and a standby goes on to what its primary has.
fn check_tail(source: &SourceRef, tail: &str, target: &RecoveryTarget, asked: &TargetArgs) -> Result<()> {
    if *target == RecoveryTarget::Latest && !asked.standby && !asked.accept_loss {
        return Err(fault(
            ErrorKind::Conflict,
            format!("WAL of {source} may wait where it is not archived yet: {tail}"),
        )
        .with_hint(
            "start that agent and let it send what it has; or, to recover without that WAL: the same command with --accept-loss",
        ));
    }
    eprintln!("note: WAL of {source} may wait where it is not archived yet: {tail}");
    Ok(())
}

/// What options ask for.
pub(in super::super) fn asked(asked: &TargetArgs) -> Result<Option<RecoveryTarget>> {
    if let Some(text) = &asked.at {
        return time(text).map(Some);
    }
    if let Some(xid) = asked.xid {
        return Ok(Some(RecoveryTarget::Xid(xid)));
    }
    if let Some(lsn) = &asked.lsn {
        let lsn: Lsn = lsn.parse().map_err(|error| invalid(format!("--lsn: {error}")))?;
        return Ok(Some(RecoveryTarget::Lsn(lsn)));
    }
    if let Some(name) = &asked.name {
        return Ok(Some(RecoveryTarget::Name(name.clone())));
    }
    Ok(if asked.immediate {
        Some(RecoveryTarget::Immediate)
    } else if asked.latest || asked.standby {
        Some(RecoveryTarget::Latest)
    } else {
        None
    })
}

/// What an address means by itself; none where it is the end of a backup.
fn meant(address: &Address, has_journal: bool) -> Result<Option<RecoveryTarget>> {
    Ok(match address.at {
        At::Latest if has_journal => Some(RecoveryTarget::Latest),
        At::Time(millis) if has_journal => {
            let at = i64::try_from(millis)
                .ok()
                .and_then(|millis| jiff::Timestamp::from_millisecond(millis).ok());
            Some(RecoveryTarget::Time(
                at.ok_or_else(|| invalid("the time is out of range"))?,
            ))
        }
        _ => None,
    })
}

/// What is said without a target, but makes no sense where nothing is recovered, stands for all WAL that there is.
pub(in super::super) fn implied(asked: &TargetArgs) -> Option<RecoveryTarget> {
    let is_said = asked.timeline.is_some() || asked.action != Action::Promote;
    is_said.then_some(RecoveryTarget::Latest)
}

/// With all its digits: servers know microseconds.
fn time(text: &str) -> Result<RecoveryTarget> {
    // In words for people where it has no zone.
    parse_at(text)?;
    let at = text
        .parse::<jiff::Timestamp>()
        .or_else(|_| text.parse::<jiff::Zoned>().map(|zoned| zoned.timestamp()))
        .map_err(|error| invalid(format!("--at {text:?} is no time: {error}")))?;
    Ok(RecoveryTarget::Time(at))
}

/// The whole recovery to a target.
pub(in super::super) fn recovery(target: RecoveryTarget, asked: &TargetArgs) -> Result<Recovery> {
    let timeline = match (&asked.timeline, &target) {
        (_, RecoveryTarget::Immediate) | (Some(Timeline::Current), _) => TargetTimeline::Current,
        (Some(Timeline::Is(timeline)), _) => TargetTimeline::Is(*timeline),
        (Some(Timeline::Latest) | None, _) => TargetTimeline::Latest,
    };
    let recovery = Recovery {
        mode: if asked.standby {
            RecoveryMode::Standby
        } else {
            RecoveryMode::Primary
        },
        primary: asked.primary.clone(),
        restore_command: asked.restore_command.clone().unwrap_or_else(|| NO_ARCHIVE.into()),
        target,
        inclusive: !asked.exclusive,
        action: match asked.action {
            Action::Promote => TargetAction::Promote,
            Action::Pause => TargetAction::Pause,
            Action::Shutdown => TargetAction::Shutdown,
        },
        timeline,
        keeps_archiving: false,
    };
    // What contradicts itself is refused before anything is read.
    recovery.settings().map_err(|error| invalid(error.to_string()))?;
    Ok(recovery)
}

/// The newest whole snapshot that ends before the target, on the timeline that is followed; and the journal, read with its keys.
async fn begin_with(
    cluster: &Cluster,
    opener: &Opener<'_>,
    address: &Address,
    recovery: &Recovery,
    journal_by: impl Fn(&Snapshot) -> Journal,
) -> Result<(Snapshot, Journal)> {
    if let At::Snapshot(_) = address.at {
        let snapshot = opener.open(&cluster.resolve(address).await?).await?;
        let journal = journal_by(&snapshot);
        return Ok((snapshot, journal));
    }
    let target = &recovery.target;
    let all = cluster.snapshots(Some(&address.source), false).await?;
    if let Some(newest) = all.first() {
        cluster
            .context
            .note_head(&address.source.to_string(), newest.sequence)?;
    }
    let whole: Vec<SnapshotRow> = all
        .into_iter()
        .filter(|row| row.state == "visible" && !row.partial && ended_by(row, address, target))
        .collect();
    if matches!(target, RecoveryTarget::Name(_)) && whole.len() > 1 && address.at == At::Latest {
        return Err(invalid(
            "where in the WAL a name stands is not known, so the backup before it must be said",
        )
        .with_hint(format!(
            "holdfastctl get snapshots {0}; then restore {0}@SNAPSHOT or {0}@TIME with --name",
            address.source
        )));
    }
    let mut followed: Option<(Journal, Option<TimelineHistory>)> = None;
    for row in whole {
        let snapshot = opener.open(&row).await?;
        let Some(backup) = Backup::find(&snapshot).await.map_err(lift)? else {
            continue;
        };
        let (journal, history) = match &followed {
            Some(followed) => followed,
            None => {
                let journal = journal_by(&snapshot);
                let history = wanted(&journal, recovery.timeline).await.map_err(lift)?;
                followed.insert((journal, history))
            }
        };
        // What the timeline left behind would come back with a backup beside it.
        if history.as_ref().is_some_and(|history| !backup.is_on(history)) {
            continue;
        }
        let is_before = match target {
            RecoveryTarget::Lsn(lsn) => backup.manifest.stop_lsn <= *lsn,
            // Servers use the lower half, and so do people.
            RecoveryTarget::Xid(xid) => backup.next_xid().is_none_or(|next| is_before(next, *xid)),
            _ => true,
        };
        if is_before {
            return Ok((snapshot, journal.clone()));
        }
    }
    Err(fault(
        ErrorKind::NotFound,
        format!(
            "no whole snapshot of {} ends before the target on the timeline that is followed",
            address.source
        ),
    )
    .with_hint(format!("holdfastctl get snapshots {}", address.source)))
}

/// Whether a snapshot was complete by the time that is asked for, as the target or beside it.
fn ended_by(row: &SnapshotRow, address: &Address, target: &RecoveryTarget) -> bool {
    let by_target = match target {
        RecoveryTarget::Time(time) => {
            UnixMillis::try_from(time.as_millisecond()).is_ok_and(|time| row.finished_millis <= time)
        }
        _ => true,
    };
    let by_address = match address.at {
        At::Time(time) => row.finished_millis <= time,
        _ => true,
    };
    by_target && by_address
}

/// Whether `next` was not given out yet when `xid` was. With its epoch by all bits; without, as servers compare: half of all
/// numbers are behind one.
fn is_before(next: u64, xid: u64) -> bool {
    if xid > u64::from(u32::MAX) {
        next <= xid
    } else {
        (xid as u32).wrapping_sub(next as u32) < 1 << 31
    }
}

/// Pages from the controllers.
struct Pages {
    connection: Connection,
    keys: Arc<VaultKeys>,
}

#[async_trait]
impl JournalRoots for Pages {
    async fn root(&self, page: SnapshotId) -> Result<Root, RestoreError> {
        let (root, _) = GrpcSource::root(self.connection.clone(), page).await?;
        open_root(&root, &self.keys)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transactions_are_compared_as_servers_do() {
        let wrap = 1 << 32;
        for (next, xid, expected) in [
            (700, 700, true),
            (700, 699, false),
            (wrap + 5, 4_294_967_000, false),
            (wrap - 100, 7, true),
            (wrap + 5, wrap + 4, false),
            (wrap + 5, wrap + 6, true),
        ] {
            assert_eq!(is_before(next, xid), expected, "{next} {xid}");
        }
    }
}
