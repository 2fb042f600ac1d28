//! Jobs: asking for them, watching them, cancelling them.

use super::{Control, name_of, request_id_of, unexpected};
use crate::{
    api::wire::{id, restore_spec, source_ref, test_restore_spec, wire_job},
    catalog::{
        Actor, Command, Queries as _, Reply,
        model::{Job, JobWork, Snapshot, Source},
    },
    error::{Error, Result},
};
use futures::{StreamExt as _, stream::BoxStream};
use holdfast_core::{ErrorKind, JobId, Name, SourceRef};
use holdfast_proto::v1;
use std::time::Duration;

/// A watcher hears of its job at least this often, even while nothing changes.
const SIGN_OF_LIFE: Duration = Duration::from_secs(30);

impl Control {
    pub(super) async fn run_backup(
        &self,
        actor: Actor,
        request: v1::RunBackupRequest,
    ) -> Result<v1::RunBackupResponse> {
        let v1::RunBackupRequest {
            request_id,
            source,
            agent,
        } = request;
        let source = source_ref(source.as_ref())?;
        let agent = match agent.as_str() {
            "" => self.who_backs_up(&source).await?,
            named => name_of(named)?,
        };
        let command = Command::CreateJob {
            job: JobId::generate(),
            work: JobWork::Backup,
            source,
            agent,
        };
        let job = self.create(actor, &request_id, command).await?;
        Ok(v1::RunBackupResponse {
            job: job.id.as_bytes().to_vec().into(),
            agent: job.agent.to_string(),
        })
    }

    /// The source's own agent; while that is away, a member that is not.
    async fn who_backs_up(&self, name: &SourceRef) -> Result<Name> {
        let source = self.catalog.read().await?.source(name)?;
        let mut agents = source.iter().flat_map(Source::agents);
        let connected = agents.find(|agent| self.fleet.is_connected(agent));
        Ok(connected.unwrap_or(&name.agent).clone())
    }

    pub(super) async fn run_check(
        &self,
        actor: Actor,
        request: v1::RunCheckRequest,
    ) -> Result<v1::RunCheckResponse> {
        let v1::RunCheckRequest { request_id, source } = request;
        let source = source_ref(source.as_ref())?;
        let agent = source.agent.clone();
        let command = Command::CreateJob {
            job: JobId::generate(),
            work: JobWork::Check,
            source,
            agent,
        };
        let job = self.create(actor, &request_id, command).await?;
        Ok(v1::RunCheckResponse {
            job: job.id.as_bytes().to_vec().into(),
        })
    }

    pub(super) async fn run_restore(
        &self,
        actor: Actor,
        request: v1::RunRestoreRequest,
    ) -> Result<v1::RunRestoreResponse> {
        let v1::RunRestoreRequest {
            request_id,
            agent,
            restore,
        } = request;
        let spec = restore_spec(restore)?;
        let agent = name_of(&agent)?;
        let snapshot = self.visible_snapshot(spec.snapshot).await?;
        self.require_keys(&agent, &snapshot, "restore to this machine instead")
            .await?;
        let work = JobWork::Restore(spec);
        let command = Command::CreateJob {
            job: JobId::generate(),
            work,
            source: snapshot.source,
            agent,
        };
        let job = self.create(actor, &request_id, command).await?;
        Ok(v1::RunRestoreResponse {
            job: job.id.as_bytes().to_vec().into(),
        })
    }

    pub(super) async fn run_test_restore(
        &self,
        actor: Actor,
        request: v1::RunTestRestoreRequest,
    ) -> Result<v1::RunTestRestoreResponse> {
        let v1::RunTestRestoreRequest {
            request_id,
            snapshot,
            agent,
            recovery,
        } = request;
        let spec = test_restore_spec(&snapshot, recovery)?;
        let snapshot = self.visible_snapshot(spec.snapshot).await?;
        let agent = match agent.as_str() {
            "" => snapshot.source.agent.clone(),
            named => name_of(named)?,
        };
        self.require_keys(
            &agent,
            &snapshot,
            "choose an agent of that vault, see `get agents`",
        )
        .await?;
        let command = Command::CreateJob {
            job: JobId::generate(),
            work: JobWork::TestRestore(spec),
            source: snapshot.source,
            agent,
        };
        let job = self.create(actor, &request_id, command).await?;
        Ok(v1::RunTestRestoreResponse {
            job: job.id.as_bytes().to_vec().into(),
        })
    }

    /// Refuses an agent that could not read a snapshot, and says what to do instead.
    async fn require_keys(&self, agent: &Name, snapshot: &Snapshot, instead: &str) -> Result<()> {
        let host = self.catalog.read().await?.agent(agent)?;
        let host = host.ok_or_else(|| {
            Error::refused(
                ErrorKind::NotFound,
                format!("there is no agent {agent}; see `get agents`"),
            )
        })?;
        if host.vault == snapshot.vault {
            return Ok(());
        }
        Err(Error::refused(
            ErrorKind::Denied,
            format!("agent {agent} does not hold the keys of this snapshot's vault; {instead}"),
        ))
    }

    async fn create(&self, actor: Actor, request_id: &[u8], command: Command) -> Result<Job> {
        let trace = holdfast_net::trace::current_traceparent();
        let request = request_id_of(request_id)?;
        match self
            .catalog
            .propose_traced(actor, request, trace, command)
            .await?
        {
            (_, Reply::Job(job)) => Ok(*job),
            (_, other) => Err(unexpected(&other)),
        }
    }

    pub(super) async fn cancel_job(
        &self,
        actor: Actor,
        request: v1::CancelJobRequest,
    ) -> Result<v1::CancelJobResponse> {
        let v1::CancelJobRequest { request_id, job } = request;
        let command = Command::CancelJob { job: id(&job)? };
        match self
            .catalog
            .propose(actor, request_id_of(&request_id)?, command)
            .await?
        {
            Reply::Job(job) => {
                self.fleet.job_cancelled(job.id, &job.agent);
                Ok(v1::CancelJobResponse {
                    state: job.state.as_str().into(),
                })
            }
            other => Err(unexpected(&other)),
        }
    }

    /// The job now and after every change, until it is over.
    pub(super) async fn watch(
        &self,
        request: &v1::WatchJobRequest,
    ) -> Result<BoxStream<'static, Result<v1::WatchJobResponse>>> {
        let job: JobId = id(&request.job)?;
        if self.catalog.read().await?.job(job)?.is_none() {
            return Err(Error::refused(
                ErrorKind::NotFound,
                format!("there is no job {job}; see `get jobs`"),
            ));
        }
        let watch = Watch {
            control: self.clone(),
            job,
            applied: self.catalog.subscribe(),
            progress: self.fleet.progress_changes(),
            last: None,
            over: false,
        };
        Ok(futures::stream::unfold(watch, |mut watch| async move {
            let item = watch.next().await?;
            Some((item, watch))
        })
        .boxed())
    }
}

/// One client that watches one job.
struct Watch {
    control: Control,
    job: JobId,
    applied: tokio::sync::watch::Receiver<u64>,
    progress: tokio::sync::watch::Receiver<u64>,
    last: Option<v1::WatchJobResponse>,
    over: bool,
}

impl Watch {
    async fn next(&mut self) -> Option<Result<v1::WatchJobResponse>> {
        if self.over {
            return None;
        }
        loop {
            self.applied.borrow_and_update();
            self.progress.borrow_and_update();
            match self.look() {
                Ok(now) if self.last.as_ref() != Some(&now) => {
                    self.last = Some(now.clone());
                    return Some(Ok(now));
                }
                Ok(_) => {}
                Err(error) => {
                    self.over = true;
                    return Some(Err(error));
                }
            }
            let stopped = tokio::select! {
                () = tokio::time::sleep(SIGN_OF_LIFE) => {
                    self.last = None;
                    false
                }
                changed = self.applied.changed() => changed.is_err(),
                changed = self.progress.changed() => changed.is_err(),
            };
            if stopped {
                self.over = true;
                return Some(Err(Error::Unavailable("the controller stops".into())));
            }
        }
    }

    fn look(&mut self) -> Result<v1::WatchJobResponse> {
        let job = self.control.catalog.view().job(self.job)?;
        let job = job.ok_or_else(|| Error::refused(ErrorKind::NotFound, "the job's record is gone"))?;
        self.over = job.state.is_over();
        let progress = self.control.fleet.progress(self.job).unwrap_or_default();
        let job = wire_job(&job, Some(&progress));
        Ok(v1::WatchJobResponse {
            job: Some(job),
            phase: progress.phase,
            files_done: progress.files_done,
            bytes_done: progress.bytes_done,
            bytes_total: progress.bytes_total,
            bytes_sent: progress.bytes_sent,
        })
    }
}
