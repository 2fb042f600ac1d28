//! `job cancel`, `job watch`, and how other commands wait for their jobs.

use super::verify::test_restore;
use crate::{
    cluster::{Cluster, bytes_of, request_id, retry},
    error::{Result, fault, invalid},
    output::{self, Format, bytes},
    progress::Progress,
    rows::JobRow,
};
use holdfast_core::{ErrorKind, JobId};
use holdfast_net::Fault;
use holdfast_proto::v1;
use std::time::{Duration, Instant};

/// How long the cluster may be away while one waits: a controller that restarts takes seconds.
const PATIENCE: Duration = Duration::from_secs(180);
/// Pause before the stream is opened again.
const PAUSE: Duration = Duration::from_millis(500);

pub(super) async fn cancel(cluster: &Cluster, job: &str) -> Result<()> {
    let job = parse(job)?;
    let request = v1::CancelJobRequest {
        request_id: request_id(),
        job: bytes_of(job.as_bytes()),
    };
    let answer = retry(|| {
        let (mut control, request) = (cluster.control(), request.clone());
        async move { control.cancel_job(request).await }
    })
    .await?
    .into_inner();
    match answer.state.as_str() {
        "cancelled" => output::print(&format!("job {job}: cancelled\n")),
        // A controller of an earlier version says nothing.
        "" => output::print(&format!("job {job}: asked to stop\n")),
        state => Err(fault(
            ErrorKind::Conflict,
            format!("job {job} had its snapshot already: it is {state}"),
        )
        .with_hint(format!("holdfastctl describe jobs {job}"))),
    }
}

pub(super) async fn watch(cluster: &Cluster, job: &str, format: Format) -> Result<()> {
    let ended = follow(cluster, parse(job)?).await?;
    match ended.kind.as_str() {
        "test-restore" => test_restore::finish(ended, format),
        _ => finish(ended, format),
    }
}

/// Follows a job to its end, through restarts of the controller.
pub(super) async fn follow(cluster: &Cluster, job: JobId) -> Result<JobRow> {
    tokio::select! {
        outcome = follow_uninterrupted(cluster, job) => outcome,
        _ = tokio::signal::ctrl_c() => {
            Err(fault(ErrorKind::Interrupted, format!("stopped waiting; job {job} goes on"))
                .with_hint(format!("holdfastctl job watch {job}, or holdfastctl job cancel {job}")))
        }
    }
}

async fn follow_uninterrupted(cluster: &Cluster, job: JobId) -> Result<JobRow> {
    let progress = Progress::new();
    let mut last_news = Instant::now();
    loop {
        match one_stream(cluster, job, &progress, &mut last_news).await {
            Ok(Some(ended)) => return Ok(ended),
            // The server stopped politely, or broke off: it may come back.
            Ok(None) => {}
            Err(fault) if fault.kind.is_transient() && last_news.elapsed() < PATIENCE => {
                tracing::debug!(%fault, "the watched job is out of sight");
            }
            Err(fault) => return Err(fault),
        }
        if last_news.elapsed() >= PATIENCE {
            return Err(fault(
                ErrorKind::Unavailable,
                format!("no news of job {job} for {} s", PATIENCE.as_secs()),
            )
            .with_hint(format!("holdfastctl job watch {job}")));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn one_stream(
    cluster: &Cluster,
    job: JobId,
    progress: &Progress,
    last_news: &mut Instant,
) -> Result<Option<JobRow>> {
    let request = v1::WatchJobRequest {
        job: bytes_of(job.as_bytes()),
    };
    let mut stream = cluster.control().watch_job(request).await?.into_inner();
    while let Some(update) = stream.message().await? {
        let v1::WatchJobResponse {
            job: now,
            phase,
            files_done,
            bytes_done,
            bytes_total,
            bytes_sent: _,
        } = update;
        *last_news = Instant::now();
        let Some(now) = now else { continue };
        let row = JobRow::try_from(now)?;
        if is_over(&row.state) {
            return Ok(Some(row));
        }
        let phase = if phase.is_empty() {
            row.state.as_str()
        } else {
            phase.as_str()
        };
        progress.show(phase, files_done, bytes_done, bytes_total);
    }
    Ok(None)
}

fn is_over(state: &str) -> bool {
    matches!(
        state,
        "succeeded" | "partial" | "failed" | "interrupted" | "cancelled"
    )
}

/// Shows how a job ended, and turns that into the command's outcome.
pub(super) fn finish(job: JobRow, format: Format) -> Result<()> {
    for warning in job.limit_warnings() {
        eprintln!("warning: limits: {warning}");
    }
    match format {
        Format::Json | Format::Yaml => output::print(&output::value(&job, format)?)?,
        Format::Name => output::print(&job.snapshot.map(|id| format!("{id}\n")).unwrap_or_default())?,
        Format::Table | Format::Wide => {
            if let (Some(snapshot), "backup") = (job.snapshot, job.kind.as_str()) {
                output::print(&format!(
                    "snapshot {snapshot} of {}: {}\n",
                    job.source,
                    bytes(job.stats.bytes)
                ))?;
            }
        }
    }
    outcome(&job)
}

/// How a job ended, as the outcome of the command that asked for it.
pub(super) fn outcome(job: &JobRow) -> Result<()> {
    let what = format!("{} of {}", job.kind, job.source);
    let why = job.error.clone().unwrap_or_else(|| "no reason was given".into());
    let id = job.id;
    Err(match job.state.as_str() {
        "succeeded" => return Ok(()),
        "partial" => {
            let snapshot = job.snapshot.map_or_else(|| id.to_string(), |id| id.to_string());
            let kind = if job.snapshot.is_some() {
                "snapshots"
            } else {
                "jobs"
            };
            let count = job.stats.unreadable;
            Fault::new(
                ErrorKind::Partial,
                format!("{what}: done, but {count} things could not be read"),
            )
            .with_hint(format!("holdfastctl describe {kind} {snapshot}"))
        }
        "failed" => {
            let kind = job
                .error_kind
                .as_deref()
                .and_then(ErrorKind::from_wire)
                .unwrap_or(ErrorKind::Internal);
            // A failure is never mistaken for a result with gaps.
            let kind = if kind == ErrorKind::Partial {
                ErrorKind::Internal
            } else {
                kind
            };
            Fault::new(kind, format!("{what} failed: {why}"))
                .with_hint(format!("holdfastctl describe jobs {id}"))
        }
        state => Fault::new(ErrorKind::Interrupted, format!("{what} was {state}: {why}"))
            .with_hint(format!("holdfastctl describe jobs {id}")),
    })
}

fn parse(text: &str) -> Result<JobId> {
    text.parse()
        .map_err(|e| invalid(format!("{text:?} is not a job id ({e})")).with_hint("holdfastctl get jobs"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(state: &str, error_kind: &str) -> Result<()> {
        let job = v1::Job {
            id: vec![1; 16].into(),
            kind: "backup".into(),
            source: Some(v1::SourceRef {
                agent: "web1".into(),
                source: "a".into(),
            }),
            state: state.into(),
            error_kind: error_kind.into(),
            ..v1::Job::default()
        };
        outcome(&JobRow::try_from(job).unwrap())
    }

    #[test]
    fn ends_become_exit_codes() {
        assert!(ended("succeeded", "").is_ok());
        for (state, kind, code) in [
            ("partial", "", 3),
            ("failed", "not-found", 10),
            ("failed", "denied", 12),
            ("failed", "partial", 1),
            ("failed", "nonsense", 1),
            ("cancelled", "", 130),
            ("interrupted", "", 130),
        ] {
            let fault = ended(state, kind).unwrap_err();
            assert_eq!(fault.kind.exit_code(), code, "{state} {kind}");
            assert!(fault.hint.is_some());
        }
        for state in ["queued", "offered", "running"] {
            assert!(!is_over(state));
        }
    }
}
