//! Snapshots: made visible by one entry or not at all; deleted softly.

use super::{Context, Outcome, refuse, sessions};
use crate::catalog::{
    command::{NewSnapshot, Reply},
    keys,
    kv::Read,
    model::{SessionState, Snapshot, SnapshotState, Source},
    query::Queries,
};
use holdfast_core::{ErrorKind, SessionId, SnapshotId, SourceRef, limits};

pub(super) fn commit<R: Read>(
    cx: &mut Context<'_, '_, R>,
    id: SessionId,
    fence: u64,
    as_of_index: u64,
    new: &NewSnapshot,
) -> Outcome {
    // The answer may have been lost: the same root again is the same commit.
    if let Some(session) = cx.txn.session(id)?
        && session.state == SessionState::Committed
        && session.fence == fence
        && let Some(snapshot) = cx.txn.snapshot(session.snapshot)?
        && snapshot.root_hash == new.root_hash
    {
        return Ok(Reply::Snapshot(Box::new(snapshot)));
    }
    let session = sessions::find_open(cx, id, fence)?;
    if session.is_journal {
        return refuse(
            ErrorKind::Invalid,
            format!("session {id} is of a journal, not of a backup"),
        );
    }
    if as_of_index > cx.index {
        return refuse(
            ErrorKind::Invalid,
            "the commit check cannot be of a later index than the commit",
        );
    }
    if cx.txn.vault_use(session.vault)?.last_deletion_index > as_of_index {
        return refuse(
            ErrorKind::Conflict,
            "packs of this vault were deleted since the commit check; check again",
        );
    }
    if new.root_len == 0 || new.root_len > limits::ROOT_MAX as u64 {
        return refuse(
            ErrorKind::Invalid,
            format!("a root object has at most {} bytes", limits::ROOT_MAX),
        );
    }
    let Some(mut source) = cx.txn.source(&session.source)? else {
        return refuse(
            ErrorKind::NotFound,
            format!("there is no source {} any more", session.source),
        );
    };
    let snapshot = Snapshot {
        id: session.snapshot,
        source: session.source.clone(),
        vault: session.vault,
        sequence: session.sequence,
        root_hash: new.root_hash,
        root_len: new.root_len,
        prev_root_hash: new.prev_root_hash,
        started_at: session.opened_at,
        finished_at: cx.now,
        stats: new.stats,
        partial: new.partial,
        state: SnapshotState::Visible,
        deleted_at: 0,
        undo_until: 0,
        hold: String::new(),
        job: session.job,
        problems: new
            .problems
            .iter()
            .take(limits::LISTED_PROBLEMS_MAX)
            .cloned()
            .collect(),
        last_test: None,
    };
    source.latest = Some(snapshot.id);
    source.latest_at = cx.now;
    source.snapshots += 1;
    cx.txn.put(keys::source(&session.source), &source)?;
    cx.txn.put(keys::snapshot(snapshot.id), &snapshot)?;
    cx.txn.put(
        keys::snapshot_by_source(&snapshot.source, snapshot.sequence),
        &snapshot.id,
    )?;
    sessions::end(cx, session, SessionState::Committed, "its snapshot is visible")?;
    Ok(Reply::Snapshot(Box::new(snapshot)))
}

pub(super) fn delete<R: Read>(cx: &mut Context<'_, '_, R>, id: SnapshotId, undo_ms: u64) -> Outcome {
    let mut snapshot = find(cx, id)?;
    if !snapshot.hold.is_empty() {
        return refuse(
            ErrorKind::Conflict,
            format!("snapshot {id} is held: {}", snapshot.hold),
        );
    }
    if snapshot.state == SnapshotState::Deleted {
        return Ok(Reply::Deleted {
            undo_until: snapshot.undo_until,
        });
    }
    snapshot.state = SnapshotState::Deleted;
    snapshot.deleted_at = cx.now;
    snapshot.undo_until = cx.now.saturating_add(undo_ms);
    let undo_until = snapshot.undo_until;
    cx.txn.put(keys::snapshot(id), &snapshot)?;
    refresh_latest(cx, &snapshot.source)?;
    Ok(Reply::Deleted { undo_until })
}

pub(super) fn undelete<R: Read>(cx: &mut Context<'_, '_, R>, id: SnapshotId) -> Outcome {
    let mut snapshot = find(cx, id)?;
    // As long as gc has not forgotten it, all its content is there, even past the promised time; but a gc that
    // runs now may have it on its list.
    if cx.txn.gc_run()?.is_some() {
        return refuse(
            ErrorKind::Unavailable,
            "a garbage collection runs; try again when it has ended",
        );
    }
    if snapshot.state == SnapshotState::Deleted {
        snapshot.state = SnapshotState::Visible;
        snapshot.deleted_at = 0;
        snapshot.undo_until = 0;
        cx.txn.put(keys::snapshot(id), &snapshot)?;
        refresh_latest(cx, &snapshot.source)?;
    }
    Ok(Reply::Snapshot(Box::new(snapshot)))
}

/// Recounts what a source says of its snapshots.
pub(super) fn refresh_latest<R: Read>(cx: &mut Context<'_, '_, R>, name: &SourceRef) -> Outcome<()> {
    let Some(source) = cx.txn.source(name)? else {
        return Ok(());
    };
    let mut latest: Option<Snapshot> = None;
    let mut count = 0;
    let mut after = None;
    loop {
        let page = cx.txn.snapshots_of(name, after.as_deref(), 256)?;
        for snapshot in page
            .items
            .into_iter()
            .filter(|s| s.state == SnapshotState::Visible)
        {
            count += 1;
            latest.get_or_insert(snapshot);
        }
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    let source = Source {
        latest: latest.as_ref().map(|s| s.id),
        latest_at: latest.as_ref().map_or(0, |s| s.finished_at),
        snapshots: count,
        ..source
    };
    cx.txn.put(keys::source(name), &source)?;
    Ok(())
}

fn find<R: Read>(cx: &Context<'_, '_, R>, id: SnapshotId) -> Outcome<Snapshot> {
    match cx.txn.snapshot(id)? {
        Some(snapshot) => Ok(snapshot),
        None => refuse(ErrorKind::NotFound, format!("there is no snapshot {id}")),
    }
}
