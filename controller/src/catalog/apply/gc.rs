//! Garbage collection while nothing writes: begin, forget, rewrite, delete, end.

use super::{Context, Outcome, Stop, refuse, sessions, snapshots};
use crate::catalog::{
    command::{PackOutcome, Reply, RewrittenPack},
    keys,
    kv::Read,
    model::{GcRun, SessionState, SnapshotState, VaultUse},
    query::{PackPlace, Queries},
};
use holdfast_core::{ErrorKind, PackId, SnapshotId, SourceRef};
use std::collections::BTreeSet;

/// Most packs or snapshots of one command: bounds the entry and the batch that it becomes.
pub const GC_BATCH: usize = 1024;

pub(super) fn begin<R: Read>(cx: &mut Context<'_, '_, R>) -> Outcome {
    if let Some(run) = cx.txn.gc_run()? {
        return refuse(
            ErrorKind::Conflict,
            format!("a garbage collection runs already (since entry {})", run.fence),
        );
    }
    let (journals, open): (Vec<_>, Vec<_>) = cx
        .txn
        .open_sessions()?
        .into_iter()
        .partition(|session| session.is_journal);
    if let Some(session) = open.first() {
        return refuse(
            ErrorKind::Conflict,
            format!(
                "{} backups run, for example of {}; try again when they have ended",
                open.len(),
                session.source
            ),
        );
    }
    // What they sent and is in no page yet they send again: agents hold files until they are kept.
    for session in journals {
        sessions::end(cx, session, SessionState::Closed, "a garbage collection began")?;
    }
    cx.txn.put(
        vec![keys::GC],
        &GcRun {
            fence: cx.index,
            started_at: cx.now,
        },
    )?;
    Ok(Reply::Gc { fence: cx.index })
}

pub(super) fn end<R: Read>(cx: &mut Context<'_, '_, R>, fence: u64) -> Outcome {
    check(cx, fence, 0)?;
    cx.txn.delete(vec![keys::GC]);
    Ok(Reply::Done)
}

pub(super) fn forget<R: Read>(
    cx: &mut Context<'_, '_, R>,
    fence: u64,
    ids: &[SnapshotId],
    ignore_undo: bool,
) -> Outcome {
    check(cx, fence, ids.len())?;
    let mut touched: BTreeSet<SourceRef> = BTreeSet::new();
    let mut count = 0;
    for id in ids {
        // Gone already: this entry is a retry.
        let Some(snapshot) = cx.txn.snapshot(*id)? else {
            continue;
        };
        if snapshot.state != SnapshotState::Deleted {
            return refuse(ErrorKind::Conflict, format!("snapshot {id} is not deleted"));
        }
        if !ignore_undo && snapshot.undo_until > cx.now {
            return refuse(
                ErrorKind::Conflict,
                format!("snapshot {id} can still be brought back"),
            );
        }
        cx.txn.delete(keys::snapshot(*id));
        cx.txn
            .delete(keys::snapshot_by_source(&snapshot.source, snapshot.sequence));
        touched.insert(snapshot.source);
        count += 1;
    }
    for source in &touched {
        snapshots::refresh_latest(cx, source)?;
    }
    Ok(Reply::Count(count))
}

pub(super) fn register<R: Read>(cx: &mut Context<'_, '_, R>, fence: u64, packs: &[RewrittenPack]) -> Outcome {
    check(cx, fence, packs.len())?;
    let mut outcomes = Vec::with_capacity(packs.len());
    for (ordinal, new) in (0..).zip(packs) {
        let pack = sessions::NewPack {
            id: new.pack,
            vault: new.vault,
            len: new.len,
            session: None,
        };
        outcomes.push(match sessions::add_pack(cx, ordinal, &pack) {
            Ok(outcome) => outcome,
            Err(Stop::Refused(refusal)) => PackOutcome::Refused(refusal),
            Err(failed) => return Err(failed),
        });
    }
    Ok(Reply::Packs(outcomes))
}

pub(super) fn delete<R: Read>(cx: &mut Context<'_, '_, R>, fence: u64, packs: &[PackId]) -> Outcome {
    check(cx, fence, packs.len())?;
    let mut count = 0;
    for id in packs {
        let Some(place) = cx.txn.record::<PackPlace>(&keys::pack_place(*id))? else {
            continue;
        };
        let Some(pack) = cx.txn.pack(*id)? else { continue };
        cx.txn.delete(keys::pack(place.vault, place.index, place.ordinal));
        cx.txn.delete(keys::pack_place(*id));
        cx.txn.put(keys::pack_deleted(*id), &cx.index)?;
        let used = cx.txn.vault_use(pack.vault)?;
        let left = VaultUse {
            packs: used.packs.saturating_sub(1),
            bytes: used.bytes.saturating_sub(pack.len),
            last_deletion_index: cx.index,
        };
        cx.txn.put(keys::vault_use(pack.vault), &left)?;
        count += 1;
    }
    Ok(Reply::Count(count))
}

fn check<R: Read>(cx: &Context<'_, '_, R>, fence: u64, items: usize) -> Outcome<()> {
    if items > GC_BATCH {
        return refuse(
            ErrorKind::TooLarge,
            format!("at most {GC_BATCH} packs or snapshots in one command"),
        );
    }
    match cx.txn.gc_run()? {
        Some(run) if run.fence == fence => Ok(()),
        Some(_) => refuse(ErrorKind::Fenced, "another garbage collection runs"),
        None => refuse(ErrorKind::Fenced, "this garbage collection is over"),
    }
}
