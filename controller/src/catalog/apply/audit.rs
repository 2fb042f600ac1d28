//! The audit trail: every operator action, refused ones too, chained by hashes.

use super::is_audited;
use crate::{
    catalog::{
        command::{Command, Proposal, Reply},
        keys,
        kv::{Read, Txn},
        model::{Audit, TokenRole},
    },
    error::Result,
};
use holdfast_core::UnixMillis;
use serde::{Deserialize, Serialize};

/// The end of the chain.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Head {
    sequence: u64,
    hash: [u8; 32],
}

/// Writes the record of this entry, if it is one that is audited.
pub(super) fn record<R: Read>(
    txn: &mut Txn<'_, R>,
    now: UnixMillis,
    proposal: &Proposal,
    reply: &Reply,
) -> Result<()> {
    if !is_audited(proposal, reply) {
        return Ok(());
    }
    let head: Head = txn.record(&[keys::AUDIT_HEAD])?.unwrap_or_default();
    let (action, object) = describe(&proposal.command);
    let outcome = match reply {
        Reply::Refused(refusal) => format!("{}: {}", refusal.kind.as_str(), refusal.text),
        _ => "ok".to_owned(),
    };
    let mut audit = Audit {
        sequence: head.sequence + 1,
        at: now,
        actor: proposal.actor.to_string(),
        action: action.to_owned(),
        object,
        outcome,
        hash: [0; 32],
    };
    audit.hash = chain(&head.hash, &audit);
    txn.put(
        vec![keys::AUDIT_HEAD],
        &Head {
            sequence: audit.sequence,
            hash: audit.hash,
        },
    )?;
    txn.put(keys::audit(audit.sequence), &audit)
}

/// The hash that a record must have, given the one before it.
pub fn chain(before: &[u8; 32], audit: &Audit) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(before);
    hasher.update(&audit.sequence.to_le_bytes());
    hasher.update(&audit.at.to_le_bytes());
    for text in [&audit.actor, &audit.action, &audit.object, &audit.outcome] {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    }
    *hasher.finalize().as_bytes()
}

/// What a command does, and to what, as audit records say it. Never a secret.
fn describe(command: &Command) -> (&'static str, String) {
    match command {
        Command::Init { meta } => ("cluster.init", meta.name.clone()),
        Command::AddAdminKey { key } => ("admin.add-key", hex::encode(&key.0)),
        Command::PutVault { vault, name, .. } => ("vault.put", format!("{name} ({vault})")),
        Command::CreateToken {
            role, name, replace, ..
        } => {
            let role = match role {
                TokenRole::Agent => "agent",
                TokenRole::Controller => "controller",
            };
            (
                "token.create",
                format!("{role}/{name}{}", if *replace { " (replaces)" } else { "" }),
            )
        }
        Command::UseToken { name, .. } => ("token.use", name.to_string()),
        Command::AgentHello { agent, .. } => ("agent.hello", agent.to_string()),
        Command::PutSource { source, .. } => ("source.put", source.to_string()),
        Command::DeleteSource { source } => ("source.delete", source.to_string()),
        Command::CreateJob {
            job,
            source,
            agent,
            work,
        } => match work {
            crate::catalog::model::JobWork::Backup => ("backup.run", format!("{source} ({job})")),
            crate::catalog::model::JobWork::Check => ("check.run", format!("{source} ({job})")),
            crate::catalog::model::JobWork::TestRestore(spec) => (
                "test-restore.run",
                format!("{source}@{} by {agent} ({job})", spec.snapshot),
            ),
            crate::catalog::model::JobWork::Restore(spec) => (
                "restore.run",
                format!("{source}@{} to {agent}:{} ({job})", spec.snapshot, spec.target),
            ),
        },
        Command::OfferJob { job, .. } => ("job.offer", job.to_string()),
        Command::StartJob { job, .. } => ("job.start", job.to_string()),
        Command::FinishJob { job, .. } => ("job.finish", job.to_string()),
        Command::LoseJob { job, .. } => ("job.lose", job.to_string()),
        Command::CancelJob { job } => ("job.cancel", job.to_string()),
        Command::OpenSession { session, .. } => ("session.open", session.to_string()),
        Command::CloseSession { session, .. } => ("session.close", session.to_string()),
        Command::ExpireSession { session, .. } => ("session.expire", session.to_string()),
        Command::RegisterPacks { packs } => ("pack.register", packs.len().to_string()),
        Command::CommitSnapshot { session, .. } => ("snapshot.commit", session.to_string()),
        Command::OpenJournal { source, .. } => ("journal.open", source.to_string()),
        Command::AppendJournal { page, .. } => ("journal.append", page.id.to_string()),
        Command::MarkTail { source, .. } => ("journal.mark-tail", source.to_string()),
        Command::DeleteSnapshot { snapshot, .. } => ("snapshot.delete", snapshot.to_string()),
        Command::UndeleteSnapshot { snapshot } => ("snapshot.undelete", snapshot.to_string()),
        Command::GcBegin => ("gc.begin", String::new()),
        Command::ForgetSnapshots { snapshots, .. } => ("snapshot.forget", list(snapshots)),
        Command::GcRegister { packs, .. } => ("gc.register", packs.len().to_string()),
        Command::GcDelete { packs, .. } => ("gc.delete", format!("{} packs", packs.len())),
        Command::GcEnd { .. } => ("gc.end", String::new()),
        Command::AddStore { store, site, .. } => ("store.add", format!("{site} ({store})")),
    }
}

fn list(snapshots: &[holdfast_core::SnapshotId]) -> String {
    const SHOWN: usize = 16;
    let mut text = snapshots
        .iter()
        .take(SHOWN)
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(" ");
    if snapshots.len() > SHOWN {
        text.push_str(&format!(" and {} more", snapshots.len() - SHOWN));
    }
    text
}
