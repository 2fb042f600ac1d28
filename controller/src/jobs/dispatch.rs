//! Hands queued jobs to connected agents, and gives up jobs whose agents fell silent.

use super::Hub;
use crate::{
    api::{
        fleet::Fleet as _,
        wire::{wire_files, wire_postgres, wire_ref, wire_restore, wire_test_restore},
    },
    catalog::{
        Actor, CatalogView, Command, Queries as _,
        model::{Job, JobState, JobWork},
    },
    error::Result,
    raft::Catalog,
};
use holdfast_core::limits;
use holdfast_net::host_limits;
use holdfast_proto::v1::{BackupWork, CheckWork, JobOffer, controller_message, job_offer};
use std::{sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

/// How often silent jobs are looked for.
const SILENCE_CHECK: Duration = Duration::from_secs(1);

/// Offers queued jobs whenever the catalog changed, until told to stop.
pub async fn dispatch(catalog: Catalog, hub: Arc<Hub>, stop: CancellationToken) {
    let mut applied = catalog.subscribe();
    loop {
        applied.borrow_and_update();
        if let Err(error) = offer_queued(&catalog, &hub).await {
            tracing::warn!(%error, "queued jobs could not be offered; trying again at the next change");
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = applied.changed() => if changed.is_err() { return },
        }
    }
}

async fn offer_queued(catalog: &Catalog, hub: &Hub) -> Result<()> {
    for job in catalog.view().active_jobs(None)? {
        if job.state == JobState::Queued && hub.is_connected(&job.agent) {
            offer(catalog, hub, &job).await?;
        }
    }
    Ok(())
}

/// Offers one job: noted in the catalog first, so that a new leader knows.
///
/// # Errors
/// When the catalog cannot answer.
pub(crate) async fn offer(catalog: &Catalog, hub: &Hub, job: &Job) -> Result<()> {
    let Some(body) = offer_of(&catalog.view(), job)? else {
        return Ok(());
    };
    catalog
        .propose(
            Actor::System,
            None,
            Command::OfferJob {
                job: job.id,
                attempt: job.attempt,
            },
        )
        .await?;
    if !hub.send(&job.agent, controller_message::Body::Offer(body)) {
        tracing::debug!(job = %job.id, agent = %job.agent, "the agent's stream did not take the offer");
    }
    Ok(())
}

/// The offer as it goes over the wire; none when the source is gone meanwhile.
fn offer_of(view: &CatalogView, job: &Job) -> Result<Option<JobOffer>> {
    let work = match &job.work {
        JobWork::Backup => match view.source(&job.source)? {
            Some(source) => job_offer::Work::Backup(BackupWork {
                files: source.files.as_ref().map(wire_files),
                postgres: source.postgres.as_ref().map(wire_postgres),
            }),
            None => return Ok(None),
        },
        JobWork::Restore(spec) => job_offer::Work::Restore(wire_restore(spec)),
        JobWork::TestRestore(spec) => job_offer::Work::TestRestore(wire_test_restore(spec)),
        JobWork::Check => match view.source(&job.source)? {
            Some(source) => job_offer::Work::Check(CheckWork {
                postgres: source.postgres.as_ref().map(wire_postgres),
            }),
            None => return Ok(None),
        },
    };
    Ok(Some(JobOffer {
        job: job.id.as_bytes().to_vec().into(),
        attempt: job.attempt,
        source: Some(wire_ref(&job.source)),
        trace_parent: job.trace.clone(),
        work: Some(work),
        limits: view
            .source(&job.source)?
            .map(|source| host_limits::to_wire(&source.limits)),
    }))
}

/// Gives up running jobs of which nothing was heard for a lease's term, until told to stop.
pub async fn lose_jobs_without_agent(catalog: Catalog, hub: Arc<Hub>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(SILENCE_CHECK) => {}
        }
        let jobs = match catalog.view().active_jobs(None) {
            Ok(jobs) => jobs,
            Err(error) => {
                tracing::warn!(%error, "running jobs could not be read");
                continue;
            }
        };
        for job in jobs.iter().filter(|job| job.state == JobState::Running) {
            if hub.silence(job.id) > limits::LEASE_TTL {
                lose(
                    &catalog,
                    &hub,
                    job,
                    "its agent has not been heard of for the length of a lease",
                )
                .await;
            }
        }
    }
}

/// Gives one attempt up: a backup is queued again, a restore ends interrupted.
pub(crate) async fn lose(catalog: &Catalog, hub: &Hub, job: &Job, reason: &str) {
    tracing::warn!(job = %job.id, agent = %job.agent, reason, "a job's attempt is lost");
    let command = Command::LoseJob {
        job: job.id,
        attempt: job.attempt,
        reason: reason.into(),
    };
    if let Err(error) = catalog.propose(Actor::System, None, command).await {
        tracing::warn!(job = %job.id, %error, "the lost attempt could not be noted; trying again");
    }
    hub.forget(job.id);
}
