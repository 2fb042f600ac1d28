//! Tails of journals: which agents may hold WAL in their spools that the journal does not hold yet.

use super::{Context, Outcome, journal, refuse, sessions};
use crate::catalog::{
    command::Reply,
    keys,
    kv::Read,
    model::{Journal, Tail},
    query::Queries,
};
use holdfast_core::{ErrorKind, Name, SourceRef, limits};

/// Whose spool.
pub(super) struct Mark<'a> {
    pub agent: &'a Name,
    pub incarnation: u32,
    pub mark: [u8; 16],
}

impl Mark<'_> {
    fn is_of(&self, tail: &Tail) -> bool {
        tail.agent == *self.agent && tail.incarnation == self.incarnation
    }
}

/// From now on nobody may be told that the journal is complete without asking that agent.
pub(super) fn open<R: Read>(
    cx: &mut Context<'_, '_, R>,
    name: &SourceRef,
    system_id: u64,
    mark: Mark<'_>,
) -> Outcome {
    check_agent(cx, &mark)?;
    let Some(mut source) = cx.txn.source(name)? else {
        return refuse(
            ErrorKind::NotFound,
            format!("there is no source {name}; make one first: holdfastctl apply -f FILE"),
        );
    };
    sessions::check_serves(&source, mark.agent)?;
    if source.postgres.is_none() {
        return refuse(
            ErrorKind::Invalid,
            format!("source {name} is of files; only PostgreSQL sources have a journal"),
        );
    }
    let mut journal = source.journal.take().unwrap_or_else(|| Journal::new(system_id));
    // An agent marks another cluster only with an empty spool; others may have WAL of the first one.
    let may_rebind = journal.tails.iter().all(|tail| mark.is_of(tail));
    journal::bind(&mut journal, name, system_id, may_rebind)?;
    journal.tails.retain(|tail| !mark.is_of(tail));
    if journal.tails.len() >= limits::JOURNAL_TAILS_MAX {
        return refuse(
            ErrorKind::TooLarge,
            format!(
                "more than {} spools of {name} are not drained",
                limits::JOURNAL_TAILS_MAX
            ),
        );
    }
    journal.tails.push(Tail {
        agent: mark.agent.clone(),
        incarnation: mark.incarnation,
        mark: mark.mark,
        opened_at: cx.now,
    });
    source.journal = Some(journal);
    cx.txn.put(keys::source(name), &source)?;
    Ok(Reply::Done)
}

/// That very mark is taken back; a later one of the same agent stays, however late this comes. Who shows the mark has the spool's
/// disk, also when its host was joined anew.
pub(super) fn close<R: Read>(cx: &mut Context<'_, '_, R>, name: &SourceRef, mark: Mark<'_>) -> Outcome {
    check_agent(cx, &mark)?;
    let Some(mut source) = cx.txn.source(name)? else {
        return Ok(Reply::Done);
    };
    if let Some(journal) = &mut source.journal {
        let before = journal.tails.len();
        journal
            .tails
            .retain(|tail| tail.agent != *mark.agent || tail.mark != mark.mark);
        if journal.tails.len() < before {
            cx.txn.put(keys::source(name), &source)?;
        }
    }
    Ok(Reply::Done)
}

fn check_agent<R: Read>(cx: &Context<'_, '_, R>, mark: &Mark<'_>) -> Outcome<()> {
    match cx.txn.agent(mark.agent)? {
        Some(agent) if agent.incarnation == mark.incarnation => Ok(()),
        _ => refuse(
            ErrorKind::Denied,
            format!("agent {} was replaced by a newer host, or is gone", mark.agent),
        ),
    }
}
