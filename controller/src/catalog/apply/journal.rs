//! Journals: files that are kept under their names. Appended page by page, each page by one entry.

use super::{Context, Outcome, refuse, sessions};
use crate::catalog::{
    command::{NewFile, NewPage, Reply},
    keys,
    kv::Read,
    model::{Divergent, Journal, JournalFile, JournalOutcome, JournalPage, Session, SessionState},
    query::Queries,
};
use holdfast_core::{ErrorKind, JobId, Name, SessionId, SnapshotId, SourceRef, limits};
use std::collections::BTreeSet;

pub(super) struct Opening<'a> {
    pub session: SessionId,
    pub source: &'a SourceRef,
    pub agent: &'a Name,
    pub incarnation: u32,
    pub system_id: u64,
}

pub(super) fn open<R: Read>(cx: &mut Context<'_, '_, R>, new: Opening<'_>) -> Outcome {
    let vault = sessions::may_open(cx, new.agent, new.incarnation)?;
    let Some(mut source) = cx.txn.source(new.source)? else {
        return refuse(
            ErrorKind::NotFound,
            format!(
                "there is no source {}; make one first: holdfastctl apply -f FILE",
                new.source
            ),
        );
    };
    sessions::check_serves(&source, new.agent)?;
    if source.postgres.is_none() {
        return refuse(
            ErrorKind::Invalid,
            format!(
                "source {} is of files; only PostgreSQL sources have a journal",
                new.source
            ),
        );
    }
    let mut journal = source
        .journal
        .take()
        .unwrap_or_else(|| Journal::new(new.system_id));
    let may_rebind = journal.tails.is_empty();
    bind(&mut journal, new.source, new.system_id, may_rebind)?;
    // Members append side by side: a page that does not follow the last one is refused, whoever hands it in.
    let others: Vec<SessionId> = journal.sessions().collect();
    for other in others {
        let before = cx.txn.session(other)?;
        let before = before.filter(|before| before.state == SessionState::Open);
        if let Some(before) = &before
            && before.agent != *new.agent
        {
            continue;
        }
        journal.remove_session(other);
        let Some(before) = before else { continue };
        // The answer may have been lost on its way to the very same call.
        if before.id == new.session {
            return Ok(opened(before, &journal));
        }
        sessions::end(
            cx,
            before,
            SessionState::Closed,
            "its agent opened the journal anew",
        )?;
    }
    let session = Session {
        id: new.session,
        source: new.source.clone(),
        vault,
        agent: new.agent.clone(),
        incarnation: new.incarnation,
        job: JobId([0; 16]),
        attempt: 0,
        fence: cx.index,
        parent: None,
        snapshot: SnapshotId([0; 16]),
        sequence: 0,
        opened_at: cx.now,
        state: SessionState::Open,
        ended_at: 0,
        reason: String::new(),
        packs: 0,
        is_journal: true,
    };
    journal.add_session(session.id);
    let reply = opened(session.clone(), &journal);
    source.journal = Some(journal);
    cx.txn.put(keys::source(new.source), &source)?;
    sessions::put_open(cx, &session)?;
    Ok(reply)
}

/// Refuses another cluster than the journal's. While nothing is in it, nor may wait for it, a mistaken first try does not bind.
pub(super) fn bind(
    journal: &mut Journal,
    source: &SourceRef,
    system_id: u64,
    may_rebind: bool,
) -> Outcome<()> {
    if journal.next_page == 1 && may_rebind {
        journal.system_id = system_id;
    }
    if journal.system_id != system_id {
        return refuse(
            ErrorKind::Conflict,
            format!(
                "the journal of {source} holds WAL of the cluster {}, not of {system_id}; a new cluster needs a source of its own",
                journal.system_id
            ),
        );
    }
    Ok(())
}

fn opened(session: Session, journal: &Journal) -> Reply {
    Reply::Journal {
        session: Box::new(session),
        next_page: journal.next_page,
        last_root: journal.last_root,
    }
}

pub(super) fn append<R: Read>(
    cx: &mut Context<'_, '_, R>,
    id: SessionId,
    fence: u64,
    as_of_index: u64,
    new: &NewPage,
) -> Outcome {
    // The answer may have been lost: the same root again is the same page.
    if let Some(page) = cx.txn.journal_page(new.id)? {
        if page.root_hash != new.root_hash {
            return refuse(
                ErrorKind::Conflict,
                format!("page {} is there with another root", new.id),
            );
        }
        let Some(journal) = cx.txn.source(&page.source)?.and_then(|source| source.journal) else {
            return refuse(
                ErrorKind::NotFound,
                format!("there is no journal of {}", page.source),
            );
        };
        return Ok(appended(page.outcomes, &journal));
    }
    let session = sessions::find_open(cx, id, fence)?;
    if !session.is_journal {
        return refuse(
            ErrorKind::Invalid,
            format!("session {id} is of a backup, not of a journal"),
        );
    }
    check(cx, &session, as_of_index, new)?;
    let Some(mut source) = cx.txn.source(&session.source)? else {
        return refuse(
            ErrorKind::NotFound,
            format!("there is no source {} any more", session.source),
        );
    };
    let Some(mut journal) = source.journal.take() else {
        return refuse(
            ErrorKind::NotFound,
            format!("there is no journal of {}", session.source),
        );
    };
    if new.number != journal.next_page || new.previous != journal.last_root {
        return refuse(
            ErrorKind::Fenced,
            format!(
                "page {} does not follow the last one of the journal of {}; open it anew",
                new.number, session.source
            ),
        );
    }
    let mut outcomes = Vec::with_capacity(new.files.len());
    for file in &new.files {
        outcomes.push(keep(cx, &session.source, &mut journal, new.id, file)?);
    }
    journal.next_page += 1;
    journal.last_root = new.root_hash;
    let reply = appended(outcomes.clone(), &journal);
    let page = JournalPage {
        id: new.id,
        source: session.source.clone(),
        vault: session.vault,
        number: new.number,
        root_hash: new.root_hash,
        root_len: new.root_len,
        at: cx.now,
        outcomes,
    };
    source.journal = Some(journal);
    cx.txn.put(keys::source(&session.source), &source)?;
    cx.txn.put(keys::journal_page(page.id), &page)?;
    Ok(reply)
}

fn appended(outcomes: Vec<JournalOutcome>, journal: &Journal) -> Reply {
    Reply::Appended {
        outcomes,
        next_page: journal.next_page,
        last_root: journal.last_root,
    }
}

fn check<R: Read>(
    cx: &Context<'_, '_, R>,
    session: &Session,
    as_of_index: u64,
    new: &NewPage,
) -> Outcome<()> {
    if as_of_index > cx.index {
        return refuse(
            ErrorKind::Invalid,
            "the check of a page cannot be of a later index than the page",
        );
    }
    if cx.txn.vault_use(session.vault)?.last_deletion_index > as_of_index {
        return refuse(
            ErrorKind::Conflict,
            "packs of this vault were deleted since the page was checked; check again",
        );
    }
    if new.root_len == 0 || new.root_len > limits::ROOT_MAX as u64 {
        return refuse(
            ErrorKind::Invalid,
            format!("a root object has at most {} bytes", limits::ROOT_MAX),
        );
    }
    if new.files.is_empty() || new.files.len() > limits::JOURNAL_PAGE_FILES {
        return refuse(
            ErrorKind::Invalid,
            format!("a page has 1 to {} files", limits::JOURNAL_PAGE_FILES),
        );
    }
    let names: BTreeSet<&str> = new.files.iter().map(|file| file.name.as_str()).collect();
    if names.len() < new.files.len() || !names.iter().all(|name| is_name(name)) {
        return refuse(
            ErrorKind::Invalid,
            format!(
                "the files of a page have different names of 1 to {} characters 0-9, A-Z, a-z and '.'",
                limits::JOURNAL_NAME_MAX
            ),
        );
    }
    Ok(())
}

/// What servers call files of their WAL, and nothing that could be a path.
fn is_name(name: &str) -> bool {
    (1..=limits::JOURNAL_NAME_MAX).contains(&name.len())
        && !name.starts_with('.')
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'.')
}

/// The first content of a name is what readers get; another one is kept beside it, for people to look at.
fn keep<R: Read>(
    cx: &mut Context<'_, '_, R>,
    source: &SourceRef,
    journal: &mut Journal,
    page: SnapshotId,
    new: &NewFile,
) -> Outcome<JournalOutcome> {
    let key = keys::journal_file(source, &new.name);
    let Some(mut file) = cx.txn.journal_file(source, &new.name)? else {
        journal.files += 1;
        journal.bytes = journal.bytes.saturating_add(new.len);
        journal.last_file.clone_from(&new.name);
        journal.last_at = cx.now;
        let file = JournalFile {
            name: new.name.clone(),
            len: new.len,
            content: new.content,
            page,
            at: cx.now,
            divergent: Vec::new(),
        };
        cx.txn.put(key, &file)?;
        return Ok(JournalOutcome::Kept);
    };
    if file.len == new.len && file.content == new.content {
        return Ok(JournalOutcome::There);
    }
    journal.divergent += 1;
    if file.divergent.len() < limits::JOURNAL_DIVERGENT_LISTED {
        file.divergent.push(Divergent {
            content: new.content,
            page,
        });
        cx.txn.put(key, &file)?;
    }
    Ok(JournalOutcome::Divergent)
}
