//! A test restore: a cluster brought back into a scratch directory, a server started on it, everything looked at, and all of it
//! removed again.
//!
//! The server is as alone as this machine allows: it listens at no address, in a network namespace of its own, with settings
//! of our own; it archives nowhere, subscribes to nothing, loads no library by itself. `scratch` makes sure that nothing
//! stays, whatever happens to this process.

mod aim;
mod amcheck;
mod findings;
mod journal;
mod made_elsewhere;
mod processes;
mod queries;
mod scratch;
mod settings;
mod trial;
mod verdict;

pub use scratch::clear;

use crate::{
    error::{AgentError, Result},
    jobs::{JobContext, Phase},
    restore_job,
};
use holdfast_core::{SnapshotId, SourceRef};
use holdfast_proto::v1::{JobResult, TestRestoreWork};
use holdfast_restore::postgres::Backup;
use scratch::Scratch;
use trial::Trial;

/// Carries a test restore out. One at a time on an agent.
///
/// # Errors
/// When nothing can be said of the snapshot: it was not tried to the end for a reason of this machine, or somebody stopped it.
pub async fn run(context: &JobContext, source: &SourceRef, work: &TestRestoreWork) -> Result<JobResult> {
    let TestRestoreWork { snapshot, recovery } = work;
    let Some(root) = context.config.scratch.clone() else {
        return Err(AgentError::NotAllowed(
            "this agent has no directory for test restores; add this line to agent.toml, before its first section, and restart \
             the agent:\nscratch = \"/var/lib/holdfast-scratch\""
                .into(),
        ));
    };
    context.set_phase(Phase::Restore);
    let recovery = recovery.as_ref().map(aim::recovery).transpose()?;
    let id = SnapshotId::try_from(&snapshot[..]).map_err(|error| AgentError::Invalid(error.to_string()))?;
    let _turn = tokio::select! {
        turn = context.scratch_turn.lock() => turn,
        () = context.cancelled() => return Err(stopped()),
    };
    let opened = restore_job::open(context, id).await?;
    if opened.snapshot.root().clear.source != *source {
        return Err(AgentError::Invalid("the snapshot is of another source".into()));
    }
    let backup = Backup::find(&opened.snapshot).await.map_err(restore_job::lift)?;
    let backup = backup.ok_or_else(|| {
        AgentError::Invalid(format!(
            "snapshot {id} is no PostgreSQL backup; only these are tried in a scratch server"
        ))
    })?;
    let scratch = blocking({
        let (root, job) = (root.clone(), context.job);
        move || Scratch::make(&root, job)
    })
    .await?;
    let trial = Trial {
        context,
        source,
        opened: &opened,
        backup: &backup,
        dir: scratch.path().to_owned(),
    };
    let outcome = trial.run(recovery).await;
    context.set_phase(Phase::Clean);
    tracing::debug!(target: "holdfast::phase", phase = "test-clean");
    let removed = blocking(move || scratch.remove()).await;
    let stays = removed.err().map(|error| {
        tracing::error!(%error, "a test restore could not be removed; the next start tries again");
        format!("its scratch directory could not be removed, the agent's next start tries again: {error}")
    });
    let mut result = outcome?;
    if let (Some(stays), Some(report)) = (stays, &mut result.test) {
        report.notes.push(stays);
    }
    Ok(JobResult {
        snapshot: snapshot.clone(),
        ..result
    })
}

/// On a thread that may wait.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| AgentError::Internal(format!("a test restore's thread ended: {error}")))?
}

fn stopped() -> AgentError {
    AgentError::Interrupted("the job was cancelled".into())
}
