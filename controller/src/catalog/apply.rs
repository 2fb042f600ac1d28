//! `apply`: what one entry does to the catalog. A pure function of the state and the entry.
//!
//! No clock, no randomness, no order of a hash map: every node that applies the same entries has
//! the same records and the same catalog hash. A refused command changes nothing but the audit trail.

mod audit;
mod clusters;
mod gc;
mod identity;
mod jobs;
mod journal;
mod requests;
mod sessions;
mod snapshots;
mod sources;
mod tails;
mod test_restores;

use super::{
    command::{Actor, Command, Proposal, Refusal, Reply},
    keys,
    kv::{Read, Txn},
    query::Queries,
};
use crate::error::{Error, Result};
use holdfast_core::{ErrorKind, UnixMillis};

/// What is said of a token that cannot be used, whatever the reason.
pub const TOKEN_NOT_VALID: &str =
    "the token is not valid (unknown, used, or expired); create another: holdfastctl token create";

/// What a command sees and changes.
struct Context<'t, 'b, R: Read> {
    txn: &'t mut Txn<'b, R>,
    index: u64,
    now: UnixMillis,
    proposal: &'t Proposal,
}

/// Why a command did not happen: the catalog says no, or reading failed.
enum Stop {
    Refused(Refusal),
    Failed(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

type Outcome<T = Reply> = Result<T, Stop>;

fn refuse<T>(kind: ErrorKind, text: impl Into<String>) -> Outcome<T> {
    Err(Stop::Refused(Refusal::new(kind, text)))
}

/// Applies the entry of that index and returns the reply. Changes stay in `txn`.
///
/// # Errors
/// Only when the state cannot be read; then nothing of the transaction may be written.
pub fn apply<R: Read>(txn: &mut Txn<'_, R>, index: u64, proposal: &Proposal) -> Result<Reply> {
    // A new leader's clock may be behind: time stands still rather than go back.
    let now = proposal.time.max(txn.catalog_time()?);
    txn.put(vec![keys::CLOCK], &now)?;
    if let Some(reply) = requests::remembered(txn, proposal)? {
        return Ok(reply);
    }
    txn.begin_command();
    let mut context = Context {
        txn,
        index,
        now,
        proposal,
    };
    let reply = match run(&mut context) {
        Ok(reply) => {
            txn.keep();
            reply
        }
        Err(Stop::Refused(refusal)) => {
            txn.roll_back();
            Reply::Refused(refusal)
        }
        Err(Stop::Failed(error)) => return Err(error),
    };
    audit::record(txn, now, proposal, &reply)?;
    requests::remember(txn, now, proposal, &reply)?;
    Ok(reply)
}

fn run<R: Read>(cx: &mut Context<'_, '_, R>) -> Outcome {
    // The entry outlives the borrow of the context.
    let proposal = cx.proposal;
    if !matches!(proposal.command, Command::Init { .. }) && cx.txn.meta()?.is_none() {
        return refuse(
            ErrorKind::Unavailable,
            "the cluster is not founded yet; try again in a moment",
        );
    }
    match &proposal.command {
        Command::Init { meta } => identity::init(cx, meta),
        Command::AddAdminKey { key } => identity::add_admin_key(cx, key),
        Command::PutVault {
            vault,
            name,
            key_object,
        } => identity::put_vault(cx, *vault, name, key_object),
        Command::CreateToken {
            auth_hash,
            role,
            name,
            vault,
            wrapped_vault,
            ttl_ms,
            replace,
        } => identity::create_token(
            cx,
            identity::NewToken {
                auth_hash,
                role: *role,
                name,
                vault: *vault,
                wrapped_vault,
                ttl_ms: *ttl_ms,
                replace: *replace,
            },
        ),
        Command::UseToken {
            auth_hash,
            name,
            version,
        } => identity::use_token(cx, auth_hash, name, version),
        Command::AgentHello {
            agent,
            incarnation,
            version,
            signing_key,
            sealing_key,
            keys_mac,
            allow,
        } => identity::hello(
            cx,
            identity::Hello {
                agent,
                incarnation: *incarnation,
                version,
                signing_key,
                sealing_key,
                keys_mac,
                allow,
            },
        ),
        Command::AddStore { store, site, path } => identity::add_store(cx, *store, site, path),
        Command::PutSource {
            source,
            document,
            files,
            postgres,
            limits,
        } => {
            let settings = sources::Settings {
                files,
                postgres,
                limits,
            };
            sources::put(cx, source, document, settings)
        }
        Command::DeleteSource { source } => sources::delete(cx, source),
        Command::CreateJob {
            job,
            work,
            source,
            agent,
        } => jobs::create(cx, *job, work, source, agent),
        Command::OfferJob { job, attempt } => jobs::offer(cx, *job, *attempt),
        Command::StartJob { job, attempt } => jobs::start(cx, *job, *attempt),
        Command::FinishJob {
            job,
            attempt,
            outcome,
        } => jobs::finish(cx, *job, *attempt, outcome),
        Command::LoseJob { job, attempt, reason } => jobs::lose(cx, *job, *attempt, reason),
        Command::CancelJob { job } => jobs::cancel(cx, *job),
        Command::OpenSession {
            session,
            snapshot,
            source,
            agent,
            incarnation,
            job,
            attempt,
            system_id,
        } => sessions::open(
            cx,
            sessions::Opening {
                session: *session,
                snapshot: *snapshot,
                source,
                agent,
                incarnation: *incarnation,
                job: *job,
                attempt: *attempt,
                system_id: *system_id,
            },
        ),
        Command::CloseSession {
            session,
            fence,
            reason,
        } => sessions::close(cx, *session, *fence, reason),
        Command::ExpireSession { session, fence } => sessions::expire(cx, *session, *fence),
        Command::RegisterPacks { packs } => sessions::register(cx, packs),
        Command::CommitSnapshot {
            session,
            fence,
            as_of_index,
            snapshot,
        } => snapshots::commit(cx, *session, *fence, *as_of_index, snapshot),
        Command::OpenJournal {
            session,
            source,
            agent,
            incarnation,
            system_id,
        } => journal::open(
            cx,
            journal::Opening {
                session: *session,
                source,
                agent,
                incarnation: *incarnation,
                system_id: *system_id,
            },
        ),
        Command::AppendJournal {
            session,
            fence,
            as_of_index,
            page,
        } => journal::append(cx, *session, *fence, *as_of_index, page),
        Command::MarkTail {
            source,
            agent,
            incarnation,
            system_id,
            mark,
            is_open,
        } => {
            let mark = tails::Mark {
                agent,
                incarnation: *incarnation,
                mark: *mark,
            };
            if *is_open {
                tails::open(cx, source, *system_id, mark)
            } else {
                tails::close(cx, source, mark)
            }
        }
        Command::DeleteSnapshot { snapshot, undo_ms } => snapshots::delete(cx, *snapshot, *undo_ms),
        Command::UndeleteSnapshot { snapshot } => snapshots::undelete(cx, *snapshot),
        Command::GcBegin => gc::begin(cx),
        Command::ForgetSnapshots {
            fence,
            snapshots,
            ignore_undo,
        } => gc::forget(cx, *fence, snapshots, *ignore_undo),
        Command::GcRegister { fence, packs } => gc::register(cx, *fence, packs),
        Command::GcDelete { fence, packs } => gc::delete(cx, *fence, packs),
        Command::GcEnd { fence } => gc::end(cx, *fence),
    }
}

/// Whether this is written into the audit trail: what operators do or try, and hosts that join. Not the tries
/// of strangers with tokens that are not valid: they could fill the trail.
fn is_audited(proposal: &Proposal, reply: &Reply) -> bool {
    match (&proposal.actor, &proposal.command) {
        (Actor::Admin(_), _) | (_, Command::Init { .. }) => true,
        (_, Command::UseToken { .. }) => !matches!(reply, Reply::Refused(_)),
        _ => false,
    }
}

#[cfg(test)]
mod tests;
