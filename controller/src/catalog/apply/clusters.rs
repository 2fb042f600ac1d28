//! PostgreSQL clusters behind sources: one physical backup at a time of each, and never two clusters in one source.
//!
//! A cluster may be several sources, or one that several servers stand for. Each backup takes I/O of the same servers and a
//! replication slot, so a second one waits. What binds is the system identifier, which the agent asks the server for.

use super::{Context, Outcome, refuse};
use crate::catalog::{
    keys,
    kv::Read,
    model::{JobState, Source},
    query::Queries,
};
use holdfast_core::{ErrorKind, JobId};

/// The cluster that a source is known to be of.
pub(super) fn of(source: &Source) -> Option<u64> {
    // Before a journal's first page its cluster is only a try.
    let journal = source.journal.as_ref().filter(|journal| journal.next_page > 1);
    source.system_id.or(journal.map(|journal| journal.system_id))
}

/// Refused while another job backs the cluster up.
pub(super) fn check_free<R: Read>(cx: &Context<'_, '_, R>, system_id: u64, job: JobId) -> Outcome<()> {
    if let Some(other) = cx.txn.cluster_job(system_id)?
        && other != job
        && let Some(other) = cx.txn.job(other)?
        && other.state == JobState::Running
    {
        return refuse(
            ErrorKind::Conflict,
            format!(
                "the PostgreSQL cluster {system_id} is being backed up as {} by job {1}; wait, or: holdfastctl job cancel {1}",
                other.source, other.id
            ),
        );
    }
    Ok(())
}

/// Gives the cluster to a job that runs, and notes whose source it is. Refused for another cluster than before, unless nothing
/// is kept of that one.
pub(super) fn bind<R: Read>(
    cx: &mut Context<'_, '_, R>,
    source: &mut Source,
    system_id: u64,
    job: JobId,
) -> Outcome<()> {
    let before = of(source).filter(|before| *before != system_id);
    if let Some(before) = before {
        let has_journal = source
            .journal
            .as_ref()
            .is_some_and(|journal| journal.next_page > 1);
        let snapshots = keys::snapshot_by_source_prefix(&source.source);
        if has_journal || !cx.txn.page(&snapshots, None, 1)?.is_empty() {
            return refuse(
                ErrorKind::Invalid,
                format!(
                    "source {} is of the PostgreSQL cluster {before}, and the server is now one of {system_id}; a new cluster needs a \
                     source of its own: holdfastctl apply -f FILE with another name",
                    source.source
                ),
            );
        }
    }
    check_free(cx, system_id, job)?;
    source.system_id = Some(system_id);
    cx.txn.put(keys::cluster_job(system_id), &job)?;
    Ok(())
}
