//! Sessions: one open per source, fenced by the index that opened it; packs are registered under them.

use super::{Context, Outcome, Stop, clusters, refuse};
use crate::catalog::{
    command::{PackOutcome, PackRegistration, Refusal, Reply},
    keys,
    kv::Read,
    model::{JobState, JobWork, Pack, Session, SessionState, Source, VaultUse},
    query::{PackPlace, Queries},
};
use holdfast_core::{ErrorKind, JobId, Name, PackId, SessionId, SnapshotId, SourceRef, VaultId, limits};

pub(super) struct Opening<'a> {
    pub session: SessionId,
    pub snapshot: SnapshotId,
    pub source: &'a SourceRef,
    pub agent: &'a Name,
    pub incarnation: u32,
    pub job: JobId,
    pub attempt: u32,
    pub system_id: Option<u64>,
}

/// The vault of an agent that may open a session now.
pub(super) fn may_open<R: Read>(cx: &Context<'_, '_, R>, name: &Name, incarnation: u32) -> Outcome<VaultId> {
    if cx.txn.gc_run()?.is_some() {
        return refuse(
            ErrorKind::Unavailable,
            "a garbage collection runs; backups and journals go on when it has ended",
        );
    }
    match cx.txn.agent(name)? {
        Some(agent) if agent.incarnation == incarnation => Ok(agent.vault),
        Some(_) => refuse(
            ErrorKind::Denied,
            format!("agent {name} was replaced by a newer host"),
        ),
        None => refuse(ErrorKind::NotFound, format!("there is no agent {name}")),
    }
}

/// Refused unless the agent is the source's own, or a member.
pub(super) fn check_serves(source: &Source, agent: &Name) -> Outcome<()> {
    if source.is_served_by(agent) {
        return Ok(());
    }
    refuse(
        ErrorKind::Denied,
        format!(
            "agent {agent} does not serve {}; if its server is of the same PostgreSQL cluster, name it in the source's \
             `postgres: {{members: [{agent}]}}`",
            source.source
        ),
    )
}

pub(super) fn open<R: Read>(cx: &mut Context<'_, '_, R>, new: Opening<'_>) -> Outcome {
    let vault = may_open(cx, new.agent, new.incarnation)?;
    let Some(mut source) = cx.txn.source(new.source)? else {
        return refuse(ErrorKind::NotFound, format!("there is no source {}", new.source));
    };
    check_serves(&source, new.agent)?;
    let Some(mut job) = cx.txn.job(new.job)? else {
        return refuse(ErrorKind::NotFound, format!("there is no job {}", new.job));
    };
    if job.work != JobWork::Backup || job.source != *new.source || job.agent != *new.agent {
        return refuse(
            ErrorKind::Denied,
            format!(
                "job {} is not a backup of {} by {}",
                new.job, new.source, new.agent
            ),
        );
    }
    if job.state != JobState::Running || job.attempt != new.attempt {
        return refuse(
            ErrorKind::Fenced,
            format!(
                "attempt {} of job {} does not run (it is {})",
                new.attempt,
                new.job,
                job.state.as_str()
            ),
        );
    }
    if let Some(open) = source.open_session
        && let Some(session) = cx.txn.session(open)?
    {
        // The answer may have been lost on its way to the very same attempt.
        if session.job == new.job && session.attempt == new.attempt {
            return opened(cx, session);
        }
        return refuse(
            ErrorKind::Conflict,
            format!(
                "source {} has session {open} open; try again when it ended",
                new.source
            ),
        );
    }
    if let Some(system_id) = new.system_id {
        clusters::bind(cx, &mut source, system_id, new.job)?;
    }
    let parent = source.latest;
    let session = Session {
        id: new.session,
        source: new.source.clone(),
        vault,
        agent: new.agent.clone(),
        incarnation: new.incarnation,
        job: new.job,
        attempt: new.attempt,
        fence: cx.index,
        parent,
        snapshot: new.snapshot,
        sequence: source.next_sequence,
        opened_at: cx.now,
        state: SessionState::Open,
        ended_at: 0,
        reason: String::new(),
        packs: 0,
        is_journal: false,
    };
    source.next_sequence += 1;
    source.open_session = Some(session.id);
    job.session = Some(session.id);
    cx.txn.put(keys::source(new.source), &source)?;
    cx.txn.put(keys::job(job.id), &job)?;
    put_open(cx, &session)?;
    opened(cx, session)
}

fn opened<R: Read>(cx: &Context<'_, '_, R>, session: Session) -> Outcome {
    let parent = match session.parent {
        Some(id) => cx.txn.snapshot(id)?.map(Box::new),
        None => None,
    };
    let vault_empty = cx.txn.vault_use(session.vault)?.packs == 0;
    Ok(Reply::Session {
        session: Box::new(session),
        parent,
        vault_empty,
    })
}

/// The session, if it may write: open, and the caller shows its fence.
pub(super) fn find_open<R: Read>(cx: &Context<'_, '_, R>, id: SessionId, fence: u64) -> Outcome<Session> {
    match cx.txn.session(id)? {
        Some(session) if session.state == SessionState::Open && session.fence == fence => Ok(session),
        Some(session) if session.fence == fence => refuse(
            ErrorKind::Fenced,
            format!("session {id} is over ({}); open a new one", session.reason),
        ),
        _ => refuse(
            ErrorKind::Fenced,
            format!("there is no session {id} with this fence; open a new one"),
        ),
    }
}

pub(super) fn close<R: Read>(
    cx: &mut Context<'_, '_, R>,
    id: SessionId,
    fence: u64,
    reason: &str,
) -> Outcome {
    let session = find_open(cx, id, fence)?;
    end(cx, session, SessionState::Closed, reason)?;
    Ok(Reply::Done)
}

pub(super) fn expire<R: Read>(cx: &mut Context<'_, '_, R>, id: SessionId, fence: u64) -> Outcome {
    let session = find_open(cx, id, fence)?;
    end(cx, session, SessionState::Expired, "its lease ended")?;
    Ok(Reply::Done)
}

/// Writes a session that begins.
pub(super) fn put_open<R: Read>(cx: &mut Context<'_, '_, R>, session: &Session) -> Outcome<()> {
    cx.txn.put(keys::session(session.id), session)?;
    cx.txn.put(keys::session_open(session.id), &session.id)?;
    Ok(())
}

/// Ends an open session and frees its source.
pub(super) fn end<R: Read>(
    cx: &mut Context<'_, '_, R>,
    mut session: Session,
    state: SessionState,
    reason: &str,
) -> Outcome<()> {
    session.state = state;
    session.ended_at = cx.now;
    session.reason = reason.chars().take(500).collect();
    cx.txn.delete(keys::session_open(session.id));
    if let Some(mut source) = cx.txn.source(&session.source)? {
        let mut is_its = source.open_session == Some(session.id);
        if is_its {
            source.open_session = None;
        }
        if let Some(journal) = source.journal.as_mut() {
            is_its |= journal.remove_session(session.id);
        }
        if is_its {
            cx.txn.put(keys::source(&session.source), &source)?;
        }
    }
    cx.txn.put(keys::session(session.id), &session)?;
    Ok(())
}

pub(super) fn register<R: Read>(cx: &mut Context<'_, '_, R>, packs: &[PackRegistration]) -> Outcome {
    if packs.len() > limits::REGISTER_BATCH {
        return refuse(
            ErrorKind::TooLarge,
            format!("at most {} packs are registered at once", limits::REGISTER_BATCH),
        );
    }
    let mut outcomes = Vec::with_capacity(packs.len());
    for (ordinal, new) in (0..).zip(packs) {
        // Each stands for itself: one closed session does not undo what others brought.
        outcomes.push(match register_one(cx, ordinal, new) {
            Ok(outcome) => outcome,
            Err(Stop::Refused(refusal)) => PackOutcome::Refused(refusal),
            Err(failed) => return Err(failed),
        });
    }
    Ok(Reply::Packs(outcomes))
}

fn register_one<R: Read>(
    cx: &mut Context<'_, '_, R>,
    ordinal: u32,
    new: &PackRegistration,
) -> Outcome<PackOutcome> {
    let mut session = find_open(cx, new.session, new.fence)?;
    if session.vault != new.vault {
        return refuse(
            ErrorKind::Denied,
            "a session registers packs of its own vault only",
        );
    }
    let pack = NewPack {
        id: new.pack,
        vault: new.vault,
        len: new.len,
        session: Some(new.session),
    };
    let outcome = add_pack(cx, ordinal, &pack)?;
    if outcome == PackOutcome::Registered {
        session.packs += 1;
        cx.txn.put(keys::session(session.id), &session)?;
    }
    Ok(outcome)
}

pub(super) struct NewPack {
    pub id: PackId,
    pub vault: VaultId,
    pub len: u64,
    pub session: Option<SessionId>,
}

/// Registers a pack, unless it is there or was deleted once.
pub(super) fn add_pack<R: Read>(
    cx: &mut Context<'_, '_, R>,
    ordinal: u32,
    new: &NewPack,
) -> Outcome<PackOutcome> {
    if new.len == 0 || new.len > limits::PACK_MAX as u64 {
        return refuse(
            ErrorKind::Invalid,
            format!(
                "a pack has at most {} bytes, this one {}",
                limits::PACK_MAX,
                new.len
            ),
        );
    }
    if cx.txn.pack_deleted_at(new.id)?.is_some() {
        return Ok(PackOutcome::Refused(Refusal::new(
            ErrorKind::Conflict,
            format!("pack {} was deleted for ever; seal its content anew", new.id),
        )));
    }
    if let Some(there) = cx.txn.pack(new.id)? {
        if there.vault != new.vault || there.len != new.len {
            return refuse(
                ErrorKind::Conflict,
                format!("pack {} is registered for another vault or length", new.id),
            );
        }
        return Ok(PackOutcome::AlreadyThere);
    }
    let record = Pack {
        id: new.id,
        vault: new.vault,
        len: new.len,
        session: new.session,
        registered_index: cx.index,
        registered_at: cx.now,
    };
    cx.txn.put(keys::pack(new.vault, cx.index, ordinal), &record)?;
    cx.txn.put(
        keys::pack_place(new.id),
        &PackPlace {
            vault: new.vault,
            index: cx.index,
            ordinal,
        },
    )?;
    let used = cx.txn.vault_use(new.vault)?;
    cx.txn.put(
        keys::vault_use(new.vault),
        &VaultUse {
            packs: used.packs + 1,
            bytes: used.bytes + new.len,
            ..used
        },
    )?;
    Ok(PackOutcome::Registered)
}
