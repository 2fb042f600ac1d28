//! Sources: what is to be protected.

use super::{Context, Outcome, refuse, sessions};
use crate::catalog::{
    command::Reply,
    keys,
    kv::Read,
    model::{FilesSpec, Journal, PostgresSpec, SessionState, Source},
    query::Queries,
};
use holdfast_core::{ErrorKind, HostLimits, Name, SessionId, SourceRef, VaultId, limits};
use std::collections::BTreeSet;

/// Longest document of one source, in bytes.
const DOCUMENT_MAX: usize = 64 * 1024;

/// What a source's document says, as far as it is acted upon.
pub(super) struct Settings<'c> {
    pub(super) files: &'c Option<FilesSpec>,
    pub(super) postgres: &'c Option<PostgresSpec>,
    pub(super) limits: &'c HostLimits,
}

pub(super) fn put<R: Read>(
    cx: &mut Context<'_, '_, R>,
    name: &SourceRef,
    document: &str,
    settings: Settings<'_>,
) -> Outcome {
    let Settings {
        files,
        postgres,
        limits,
    } = settings;
    if document.len() > DOCUMENT_MAX {
        return refuse(
            ErrorKind::TooLarge,
            format!("a source's document has at most {DOCUMENT_MAX} bytes"),
        );
    }
    let why = match (files, postgres) {
        (Some(files), None) if files.roots.is_empty() => Some("names no path; give at least one"),
        (Some(_), None) | (None, Some(_)) => None,
        (None, None) => Some("says nothing to back up; give files or postgres"),
        (Some(_), Some(_)) => Some("is of files and of PostgreSQL; make two sources of it"),
    };
    if let Some(why) = why {
        return refuse(ErrorKind::Invalid, format!("source {name} {why}"));
    }
    if let Err(why) = limits.check() {
        return refuse(ErrorKind::Invalid, format!("source {name}: {why}"));
    }
    let Some(owner) = cx.txn.agent(&name.agent)? else {
        return refuse(
            ErrorKind::NotFound,
            format!(
                "there is no agent {}; let it join first: holdfastctl token create {}",
                name.agent, name.agent
            ),
        );
    };
    let vault = owner.vault;
    if let Some(spec) = postgres {
        check_members(cx, name, vault, &spec.members)?;
    }
    let before = cx.txn.source(name)?;
    let created = before.is_none();
    let mut source = before.unwrap_or_else(|| Source {
        source: name.clone(),
        document: String::new(),
        files: None,
        postgres: None,
        limits: HostLimits::default(),
        created_at: cx.now,
        changed_at: cx.now,
        next_sequence: 1,
        latest: None,
        latest_at: 0,
        snapshots: 0,
        active_job: None,
        open_session: None,
        journal: None,
        system_id: None,
        last_test: None,
    });
    let changed = created
        || source.document != document
        || source.files != *files
        || source.postgres != *postgres
        || source.limits != *limits;
    if changed {
        document.clone_into(&mut source.document);
        source.files.clone_from(files);
        source.postgres.clone_from(postgres);
        source.limits = *limits;
        source.changed_at = cx.now;
        cx.txn.put(keys::source(name), &source)?;
        end_others(cx, &source)?;
    }
    Ok(Reply::Put { created, changed })
}

/// Members write into the source's vault, so they must hold its keys already: these come with the token of a host that joins.
fn check_members<R: Read>(
    cx: &Context<'_, '_, R>,
    name: &SourceRef,
    vault: VaultId,
    members: &[Name],
) -> Outcome<()> {
    if members.len() > limits::SOURCE_MEMBERS_MAX {
        return refuse(
            ErrorKind::TooLarge,
            format!(
                "source {name} has {} members; at most {} are allowed",
                members.len(),
                limits::SOURCE_MEMBERS_MAX
            ),
        );
    }
    let different: BTreeSet<&Name> = members.iter().chain([&name.agent]).collect();
    if different.len() <= members.len() {
        return refuse(
            ErrorKind::Invalid,
            format!("source {name}: name each member once, and without its own agent, which is always one"),
        );
    }
    for member in members {
        let Some(agent) = cx.txn.agent(member)? else {
            return refuse(
                ErrorKind::NotFound,
                format!(
                    "source {name}: there is no agent {member} to be its member; let it join the vault of {} first: holdfastctl \
                     token create {member} --vault VAULT (`get agents` shows which that is)",
                    name.agent
                ),
            );
        };
        if agent.vault != vault {
            return refuse(
                ErrorKind::Invalid,
                format!(
                    "source {name}: agent {member} is of another vault than {}, so neither could read what the other backs up; \
                     let a new agent join on that host: holdfastctl token create NAME --vault VAULT (`get agents` shows which \
                     {} has)",
                    name.agent, name.agent
                ),
            );
        }
    }
    Ok(())
}

/// Ends what agents do that were members until now. A spool that they have stays known: what waits there was called archived.
fn end_others<R: Read>(cx: &mut Context<'_, '_, R>, source: &Source) -> Outcome<()> {
    let of_journal = source.journal.iter().flat_map(Journal::sessions);
    let open: Vec<SessionId> = of_journal.chain(source.open_session).collect();
    for id in open {
        if let Some(session) = cx.txn.session(id)?
            && session.state == SessionState::Open
            && !source.is_served_by(&session.agent)
        {
            let reason = format!("its agent is no member of {} any more", source.source);
            sessions::end(cx, session, SessionState::Closed, &reason)?;
        }
    }
    Ok(())
}

/// Refused while anything of it is left: a forgotten source would leave snapshots that nobody can address.
pub(super) fn delete<R: Read>(cx: &mut Context<'_, '_, R>, name: &SourceRef) -> Outcome {
    let Some(source) = cx.txn.source(name)? else {
        return refuse(ErrorKind::NotFound, format!("there is no source {name}"));
    };
    if let Some(job) = source.active_job {
        return refuse(
            ErrorKind::Conflict,
            format!("source {name} is being backed up; wait, or: holdfastctl job cancel {job}"),
        );
    }
    if source.open_session.is_some() {
        return refuse(
            ErrorKind::Conflict,
            format!("source {name} is being backed up; wait until its session ends"),
        );
    }
    let tail = source.journal.as_ref().and_then(|journal| journal.tails.first());
    if let Some(tail) = tail {
        return refuse(
            ErrorKind::Conflict,
            format!(
                "agent {} may hold WAL of {name} in its spool; take `spool` out of its agent.toml and restart it, and when it has \
                 sent all of it, try again",
                tail.agent
            ),
        );
    }
    if source.journal.is_some_and(|journal| journal.next_page > 1) {
        return refuse(
            ErrorKind::Conflict,
            format!("source {name} has a journal, which nothing could address without it; it is kept"),
        );
    }
    if !cx
        .txn
        .page(&keys::snapshot_by_source_prefix(name), None, 1)?
        .is_empty()
    {
        return refuse(
            ErrorKind::Conflict,
            format!(
                "source {name} still has snapshots (deleted ones count until gc forgets them); delete them first: holdfastctl get snapshots {name}"
            ),
        );
    }
    cx.txn.delete(keys::source(name));
    Ok(Reply::Done)
}
