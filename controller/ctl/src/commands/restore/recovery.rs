//! Where a restored PostgreSQL cluster recovers to: which snapshot it begins with, and the WAL after it.

use super::super::{data::Opener, get};
use crate::{
    address::{Address, At, parse_at},
    cli::{Action, RestoreArgs, RestoreLayout, TargetArgs, Timeline},
    cluster::Cluster,
    error::{Result, fault, invalid, lift},
    rows::SnapshotRow,
};
use async_trait::async_trait;
use holdfast_core::{ErrorKind, SnapshotId, UnixMillis};
use holdfast_net::client::Connection;
use holdfast_repo::{Root, VaultKeys};
use holdfast_restore::{
    GrpcSource, Journal, JournalFile, JournalRoots, RestoreError, Snapshot, open_root,
    postgres::{
        Backup, Lsn, NO_ARCHIVE, RecoverTo, Recovery, RecoveryMode, RecoveryTarget, TargetAction,
        TargetTimeline,
    },
};
use std::{collections::BTreeMap, sync::Arc};

/// A snapshot, and where its cluster recovers to.
pub(super) struct Chosen {
    pub(super) snapshot: Snapshot,
    /// None: the end of the backup.
    pub(super) recover_to: Option<RecoverTo>,
}

/// Chooses the snapshot that an address and a target mean together.
pub(super) async fn choose(cluster: &Cluster, address: &Address, args: &RestoreArgs) -> Result<Chosen> {
    let opener = Opener::new(cluster).await?;
    let is_whole = args.paths.is_empty() && args.layout == RestoreLayout::Auto;
    let journal = if is_whole {
        get::journal(cluster, &address.source).await?
    } else {
        Vec::new()
    };
    let target = match asked(&args.target)? {
        Some(target) => Some(target),
        None => meant(address, !journal.is_empty())?,
    };
    let Some(target) = target else {
        let row = cluster.resolve(address).await?;
        return Ok(Chosen {
            snapshot: opener.open(&row).await?,
            recover_to: None,
        });
    };
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
    let snapshot = begin_with(cluster, &opener, address, &target).await?;
    let files = journal.into_iter().map(|row| {
        let file = JournalFile {
            len: row.bytes,
            page: row.page,
            kept_at: row.kept_millis,
        };
        (row.name, file)
    });
    let roots = Pages {
        connection: cluster.connection.clone(),
        keys: Arc::clone(snapshot.reader().keys()),
    };
    let journal = Journal::new(
        address.source.clone(),
        files.collect::<BTreeMap<_, _>>(),
        Arc::new(roots),
        snapshot.reader().clone(),
    );
    let recovery = recovery(target, &args.target)?;
    Ok(Chosen {
        snapshot,
        recover_to: Some(RecoverTo { recovery, journal }),
    })
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

/// The newest whole snapshot that ends before the target.
async fn begin_with(
    cluster: &Cluster,
    opener: &Opener<'_>,
    address: &Address,
    target: &RecoveryTarget,
) -> Result<Snapshot> {
    if let At::Snapshot(_) = address.at {
        return opener.open(&cluster.resolve(address).await?).await;
    }
    let all = cluster.snapshots(Some(&address.source), false).await?;
    if let Some(newest) = all.first() {
        cluster
            .context
            .note_head(&address.source.to_string(), newest.sequence)?;
    }
    let whole = all
        .into_iter()
        .filter(|row| row.state == "visible" && !row.partial);
    for row in whole {
        if !ended_by(&row, target) {
            continue;
        }
        let snapshot = opener.open(&row).await?;
        let Some(backup) = Backup::find(&snapshot).await.map_err(lift)? else {
            continue;
        };
        let is_before = match target {
            RecoveryTarget::Lsn(lsn) => backup.manifest.stop_lsn <= *lsn,
            // Servers use the lower half, and so do people.
            RecoveryTarget::Xid(xid) => backup
                .next_xid()
                .is_none_or(|next| (next as u32) <= (*xid as u32)),
            _ => true,
        };
        if is_before {
            return Ok(snapshot);
        }
    }
    Err(fault(
        ErrorKind::NotFound,
        format!("no whole snapshot of {} ends before the target", address.source),
    )
    .with_hint(format!("holdfastctl get snapshots {}", address.source)))
}

/// Whether a snapshot was complete by the time that is asked for.
fn ended_by(row: &SnapshotRow, target: &RecoveryTarget) -> bool {
    match target {
        RecoveryTarget::Time(time) => {
            UnixMillis::try_from(time.as_millisecond()).is_ok_and(|time| row.finished_millis <= time)
        }
        _ => true,
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
