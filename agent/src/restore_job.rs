//! A restore onto this host, into a directory that `agent.toml` names as a target.

use crate::{
    error::{AgentError, Result},
    jobs::{JobContext, Phase},
    limits::JobLimits,
};
use async_trait::async_trait;
use holdfast_core::{ChunkId, HasKind as _, PackId, SnapshotId};
use holdfast_net::{Fault, client::Connection};
use holdfast_proto::v1::{JobResult, RestoreSpec, RunStats};
use holdfast_restore::{
    BlobSource, Fetched, GrpcSource, Layout, OnRemoval, Progress, RestoreError, RestoreOptions, Snapshot,
    restore,
};
use std::{
    path::{Component, Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// How often the job's counters follow the restore's.
const PROGRESS_EVERY: Duration = Duration::from_millis(250);
/// How long a wait for the limit goes on before it is seen that the job was cancelled.
const CANCEL_LOOK: Duration = Duration::from_millis(100);

/// Carries a restore out.
///
/// # Errors
/// `NotAllowed` outside the allowed targets; otherwise what the restore said.
pub async fn run(context: &JobContext, spec: &RestoreSpec) -> Result<JobResult> {
    let RestoreSpec {
        snapshot,
        target,
        paths,
        in_place,
    } = spec;
    context.set_phase(Phase::Restore);
    let target = allowed_target(Path::new(target), &context.config.restore_targets)?;
    let id = SnapshotId::try_from(&snapshot[..]).map_err(|error| AgentError::Invalid(error.to_string()))?;
    let opened = open(context, id).await?.snapshot;
    let progress = Arc::new(Progress::default());
    let options = RestoreOptions {
        paths: paths.iter().map(|path| path.as_bytes().to_vec()).collect(),
        in_place: *in_place,
        ..options(context, &progress, false)
    };
    let report = tokio::select! {
        report = restore(&opened, &target, options) => report.map_err(lift)?,
        never = follow(context, &progress) => match never {},
    };
    let partial = report.problems.count > 0;
    let stats = RunStats {
        files: report.files,
        dirs: report.dirs,
        symlinks: report.symlinks,
        others: report.others,
        bytes: report.bytes,
        unreadable: report.problems.count,
        ..RunStats::default()
    };
    let error = report.problems.listed.first().map(|problem| {
        format!(
            "{} things could not be restored, the first: {}: {}",
            report.problems.count,
            String::from_utf8_lossy(&problem.path),
            problem.reason
        )
    });
    Ok(JobResult {
        state: if partial { "partial" } else { "succeeded" }.into(),
        error_kind: if partial {
            holdfast_core::ErrorKind::Partial.as_str().into()
        } else {
            String::new()
        },
        error: error.unwrap_or_default(),
        snapshot: snapshot.clone(),
        stats: Some(stats),
        ..JobResult::default()
    })
}

/// A snapshot, opened with this agent's keys, and the connections that it is read through.
pub(crate) struct Opened {
    pub(crate) snapshot: Snapshot,
    pub(crate) connections: Vec<Connection>,
}

/// Opens a snapshot for a job: read as fast as the job's limits say, until it is cancelled.
pub(crate) async fn open(context: &JobContext, id: SnapshotId) -> Result<Opened> {
    let connections = context.connect_data().await?;
    let (root, _) = GrpcSource::root(connections[0].clone(), id).await.map_err(lift)?;
    let source = GrpcSource::new(connections.clone(), context.state.membership.vault).map_err(lift)?;
    let source = Paced {
        source,
        limits: Arc::clone(&context.limits),
        cancel: Arc::clone(&context.cancel),
    };
    let snapshot = Snapshot::open(&root, Arc::new(source), Arc::clone(&context.state.keys)).map_err(lift)?;
    if snapshot.root().clear.snapshot != id {
        return Err(AgentError::Invalid(
            "the controllers gave the root of another snapshot".into(),
        ));
    }
    Ok(Opened {
        snapshot,
        connections,
    })
}

/// What restores of jobs have in common.
pub(crate) fn options(context: &JobContext, progress: &Arc<Progress>, dry_run: bool) -> RestoreOptions {
    RestoreOptions {
        paths: Vec::new(),
        except: Vec::new(),
        layout: Layout::Paths,
        in_place: false,
        delete: false,
        on_removal: OnRemoval::default(),
        dry_run,
        workers: None,
        progress: Arc::clone(progress),
        cancel: Arc::clone(&context.cancel),
    }
}

/// Blobs as fast as the limit says, until the job is cancelled. They are paid for when they have come: what is under
/// way is bounded anyway.
struct Paced {
    source: GrpcSource,
    limits: Arc<JobLimits>,
    cancel: Arc<AtomicBool>,
}

impl Paced {
    async fn pay(&self, fetched: impl Iterator<Item = &Fetched>) {
        let bytes = fetched.map(|(blob, _)| blob.len()).sum();
        self.limits.send.paid(bytes).await;
    }

    async fn unless_cancelled<T>(
        &self,
        work: impl Future<Output = Result<T, RestoreError>>,
    ) -> Result<T, RestoreError> {
        let cancelled = async {
            while !self.cancel.load(Ordering::Relaxed) {
                tokio::time::sleep(CANCEL_LOOK).await;
            }
        };
        tokio::select! {
            biased;
            done = work => done,
            () = cancelled => Err(RestoreError::Interrupted),
        }
    }
}

#[async_trait]
impl BlobSource for Paced {
    async fn fetch(&self, ids: &[ChunkId]) -> Result<Vec<Option<Fetched>>, RestoreError> {
        let fetching = async {
            let blobs = self.source.fetch(ids).await?;
            self.pay(blobs.iter().flatten()).await;
            Ok(blobs)
        };
        self.unless_cancelled(fetching).await
    }

    async fn fetch_within(
        &self,
        ids: &[ChunkId],
        bytes: usize,
    ) -> Result<Vec<Option<Fetched>>, RestoreError> {
        let fetching = async {
            let blobs = self.source.fetch_within(ids, bytes).await?;
            self.pay(blobs.iter().flatten()).await;
            Ok(blobs)
        };
        self.unless_cancelled(fetching).await
    }

    async fn fetch_avoiding(&self, id: ChunkId, bad: &[PackId]) -> Result<Option<Fetched>, RestoreError> {
        let fetching = async {
            let blob = self.source.fetch_avoiding(id, bad).await?;
            self.pay(blob.iter()).await;
            Ok(blob)
        };
        self.unless_cancelled(fetching).await
    }
}

/// Copies the restore's progress into the job's counters, until dropped.
pub(crate) async fn follow(context: &JobContext, progress: &Progress) -> std::convert::Infallible {
    loop {
        tokio::time::sleep(PROGRESS_EVERY).await;
        let (bytes, total) = progress.bytes();
        context.stats.files.store(progress.files().0, Ordering::Relaxed);
        context.stats.bytes.store(bytes, Ordering::Relaxed);
        context.bytes_total.store(total, Ordering::Relaxed);
    }
}

/// The target, if it lies in one of the allowed directories once all links on the way to it are followed.
fn allowed_target(target: &Path, allowed: &[PathBuf]) -> Result<PathBuf> {
    let plain = target.is_absolute() && !target.components().any(|part| part == Component::ParentDir);
    if !plain {
        return Err(AgentError::Invalid(format!(
            "target {}: write an absolute path without '..'",
            target.display()
        )));
    }
    // What does not exist yet cannot be a link: resolve the part that does.
    let existing = target
        .ancestors()
        .find(|path| path.symlink_metadata().is_ok())
        .unwrap_or(Path::new("/"));
    let real = existing
        .canonicalize()
        .map_err(AgentError::io("resolve", existing))?;
    let real = target
        .strip_prefix(existing)
        .map_or(real.clone(), |rest| real.join(rest));
    let is_inside = allowed.iter().any(|allowed| match allowed.canonicalize() {
        Ok(allowed) => real.starts_with(allowed),
        Err(_) => real.starts_with(allowed),
    });
    if is_inside {
        return Ok(real);
    }
    Err(AgentError::NotAllowed(format!(
        "{} is not a restore target on this host; add it to `restore_targets` in agent.toml and restart the agent",
        target.display()
    )))
}

pub(crate) fn lift(error: RestoreError) -> AgentError {
    AgentError::Remote(Fault::new(error.kind(), error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restores_go_only_where_the_configuration_allows() {
        let dir = tempfile::tempdir().unwrap();
        let (inside, outside) = (dir.path().join("in"), dir.path().join("out"));
        std::fs::create_dir_all(&inside).unwrap();
        std::fs::create_dir_all(&outside).unwrap();
        std::os::unix::fs::symlink(&outside, inside.join("link")).unwrap();
        let allowed = [inside.clone()];
        assert!(allowed_target(&inside, &allowed).is_ok());
        assert!(allowed_target(&inside.join("new/deeper"), &allowed).is_ok());
        for bad in [
            outside.clone(),
            inside.join("link/x"),
            inside.join("../out"),
            PathBuf::from("in/x"),
        ] {
            assert!(allowed_target(&bad, &allowed).is_err(), "{bad:?}");
        }
        assert!(allowed_target(&inside, &[]).is_err());
    }
}
