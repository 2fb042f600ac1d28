//! AgentService: joining, renewal, and the control stream.

use super::{
    authorise::{Right, require},
    fleet::Fleet as _,
    wire::{limits_in_force, wire_limits_in_force},
};
use crate::{
    catalog::{
        Actor, Command, Queries as _, Reply,
        model::{Job, JobOutcome, JobState},
    },
    error::{Error, Result},
    jobs::{Hub, Registration},
    raft::Catalog,
};
use futures::{StreamExt as _, stream::BoxStream};
use holdfast_core::{ErrorKind, HasKind as _, JobId, Name, SnapshotId, limits};
use holdfast_net::{
    Identity, Role, host_limits, pki::IssuingCa, server::PeerIdentity, status::to_status,
    token::hash_join_auth,
};
use holdfast_proto::v1::{
    self, AgentHello, AgentMessage, ControllerMessage, DropJob, JobResult, JobUpdate, StartJob, Welcome,
    agent_message, agent_service_server::AgentService, controller_message, job_update,
};
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

/// A stream whose first message does not come is ended.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Says no more than the catalog does of a token that was used or ended.
const NOT_VALID: &str = crate::catalog::apply::TOKEN_NOT_VALID;
/// Longest text that an agent may say of itself, and most paths.
const TEXT_MAX: usize = 256;
const ALLOW_MAX: usize = 256;
/// Most sources, and most alerts of one, in an agent's word on its queues.
const QUEUES_MAX: usize = 256;
const ALERTS_MAX: usize = 8;

/// The service; one for all connections.
#[derive(Clone)]
pub struct Agents {
    /// The catalog.
    pub catalog: Catalog,
    /// The control streams.
    pub hub: Arc<Hub>,
    /// Signs certificates.
    pub issuing: Arc<IssuingCa>,
    /// Ends streams when the controller stops.
    pub stop: CancellationToken,
}

#[tonic::async_trait]
impl AgentService for Agents {
    type ControlStream = BoxStream<'static, Result<ControllerMessage, Status>>;

    async fn join(&self, request: Request<v1::JoinRequest>) -> Result<Response<v1::JoinResponse>, Status> {
        let answer = self.admit(request.into_inner()).await;
        answer.map(Response::new).map_err(|error| to_status(&error))
    }

    async fn renew(&self, request: Request<v1::RenewRequest>) -> Result<Response<v1::RenewResponse>, Status> {
        let identity = PeerIdentity::of(&request)?;
        require(&identity, Right::BeAgent).map_err(|error| to_status(&error))?;
        let chain = self
            .certify(&identity, &request.into_inner().csr_der)
            .map_err(|error| to_status(&error))?;
        Ok(Response::new(v1::RenewResponse { chain_der: chain }))
    }

    async fn control(
        &self,
        request: Request<Streaming<AgentMessage>>,
    ) -> Result<Response<Self::ControlStream>, Status> {
        let identity = PeerIdentity::of(&request)?;
        require(&identity, Right::BeAgent).map_err(|error| to_status(&error))?;
        let incoming = request.into_inner();
        let (messages, outgoing) = mpsc::channel(crate::jobs::STREAM_QUEUE);
        let service = self.clone();
        tokio::spawn(async move {
            let agent = identity.name.clone();
            match service.serve(identity, incoming, messages).await {
                Ok(()) => tracing::info!(%agent, "its control stream ended"),
                Err(status) => tracing::info!(%agent, why = status.message(), "its control stream ended"),
            }
        });
        Ok(Response::new(ReceiverStream::new(outgoing).map(Ok).boxed()))
    }
}

impl Agents {
    async fn admit(&self, request: v1::JoinRequest) -> Result<v1::JoinResponse> {
        let v1::JoinRequest {
            join_auth,
            name,
            csr_der,
            version,
        } = request;
        let name: Name = name
            .parse()
            .map_err(|e: holdfast_core::NameError| Error::refused(ErrorKind::Invalid, e.to_string()))?;
        let meta = self
            .catalog
            .view()
            .meta()?
            .ok_or_else(|| Error::Unavailable("the cluster is not founded".into()))?;
        // A request that cannot be certified must not use the token up.
        let probe = Identity {
            cluster: meta.cluster,
            role: Role::Agent,
            name: name.clone(),
            incarnation: 1,
        };
        self.certify(&probe, &csr_der)?;
        let auth_hash = hash_join_auth(&join_auth);
        if self.catalog.read().await?.token(&auth_hash)?.is_none() {
            // Anyone may call this: what is no token at all must not cost an entry and a sync.
            return Err(Error::refused(ErrorKind::Unauthenticated, NOT_VALID));
        }
        let command = Command::UseToken {
            auth_hash,
            name: name.clone(),
            version: version.chars().take(TEXT_MAX).collect(),
        };
        let reply = self
            .catalog
            .propose(Actor::Agent(name.clone()), None, command)
            .await?;
        let Reply::Joined { token, incarnation } = reply else {
            return Err(Error::Internal(
                "the catalog gave an answer of another kind".into(),
            ));
        };
        let role = match token.role {
            crate::catalog::model::TokenRole::Agent => Role::Agent,
            crate::catalog::model::TokenRole::Controller => Role::Controller,
        };
        let identity = Identity {
            cluster: meta.cluster,
            role,
            name: name.clone(),
            incarnation,
        };
        let chain_der = self.certify(&identity, &csr_der)?;
        let vault = match token.vault {
            Some(id) => self.catalog.view().vault(id)?,
            None => None,
        };
        tracing::info!(%name, incarnation, "joined");
        Ok(v1::JoinResponse {
            chain_der,
            wrapped_vault: token.wrapped_vault.into(),
            vault: token
                .vault
                .map(|id| id.as_bytes().to_vec().into())
                .unwrap_or_default(),
            vault_name: vault.map(|vault| vault.name.to_string()).unwrap_or_default(),
            incarnation,
            cluster: meta.cluster.as_bytes().to_vec().into(),
        })
    }

    fn certify(&self, identity: &Identity, csr: &[u8]) -> Result<Vec<bytes::Bytes>> {
        let chain = self
            .issuing
            .issue(identity, csr, SystemTime::now())
            .map_err(|error| Error::refused(error.kind(), error.to_string()))?;
        Ok(chain.into_iter().map(|der| der.to_vec().into()).collect())
    }

    /// One control stream, to its end.
    async fn serve(
        &self,
        identity: Arc<Identity>,
        mut incoming: Streaming<AgentMessage>,
        messages: mpsc::Sender<ControllerMessage>,
    ) -> Result<(), Status> {
        let first = tokio::time::timeout(HELLO_TIMEOUT, incoming.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no hello came"))??;
        let Some(AgentMessage {
            body: Some(agent_message::Body::Hello(hello)),
        }) = first
        else {
            return Err(Status::invalid_argument("the first message must be a hello"));
        };
        let carried = hello.jobs.clone();
        self.learn(&identity, hello)
            .await
            .map_err(|error| to_status(&error))?;
        let agent = &identity.name;
        let registration = self.hub.register(agent, messages.clone());
        tracing::info!(%agent, "connected");
        self.welcome(&messages)?;
        self.settle(agent, &carried)
            .await
            .map_err(|error| to_status(&error))?;
        drop(messages);
        let served = self.receive(agent, &mut incoming, &registration).await;
        drop(registration);
        served
    }

    fn welcome(&self, messages: &mpsc::Sender<ControllerMessage>) -> Result<(), Status> {
        let meta = self.catalog.view().meta().map_err(|error| to_status(&error))?;
        let welcome = Welcome {
            cluster: meta
                .map(|meta| meta.cluster.as_bytes().to_vec().into())
                .unwrap_or_default(),
            now: self.catalog.now(),
        };
        let message = ControllerMessage {
            body: Some(controller_message::Body::Welcome(welcome)),
        };
        messages
            .try_send(message)
            .map_err(|_| Status::unavailable("the stream ended"))
    }

    /// Notes what an agent says of itself, if it is news.
    async fn learn(&self, identity: &Identity, hello: AgentHello) -> Result<()> {
        let AgentHello {
            version,
            signing_key,
            sealing_key,
            keys_mac,
            allow,
            boot_id: _,
            jobs: _,
        } = hello;
        let version: String = version.chars().take(TEXT_MAX).collect();
        let allow: Vec<String> = allow
            .into_iter()
            .take(ALLOW_MAX)
            .map(|path| path.chars().take(TEXT_MAX).collect())
            .collect();
        let known = self.catalog.view().agent(&identity.name)?;
        let is_news = known.is_none_or(|known| {
            known.version != version
                || known.signing_key != signing_key
                || known.sealing_key != sealing_key
                || known.keys_mac != keys_mac
                || known.allow != allow
        });
        if !is_news {
            return Ok(());
        }
        let command = Command::AgentHello {
            agent: identity.name.clone(),
            incarnation: identity.incarnation,
            version,
            signing_key: signing_key.into(),
            sealing_key: sealing_key.into(),
            keys_mac: keys_mac.into(),
            allow,
        };
        self.catalog
            .propose(Actor::Agent(identity.name.clone()), None, command)
            .await?;
        Ok(())
    }

    /// Brings the catalog's belief about an agent's jobs in line with what the agent carries.
    async fn settle(&self, agent: &Name, carried: &[bytes::Bytes]) -> Result<()> {
        for job in self.catalog.view().active_jobs(Some(agent))? {
            match job.state {
                JobState::Running if !carried.iter().any(|id| id[..] == job.id.0) => {
                    crate::jobs::lose(&self.catalog, &self.hub, &job, "its agent was started anew").await;
                }
                JobState::Queued | JobState::Offered => {
                    crate::jobs::offer(&self.catalog, &self.hub, &job).await?
                }
                _ => {}
            }
        }
        // Jobs that were queued again just now are offered by the dispatcher.
        Ok(())
    }

    async fn receive(
        &self,
        agent: &Name,
        incoming: &mut Streaming<AgentMessage>,
        registration: &Registration,
    ) -> Result<(), Status> {
        loop {
            let message = tokio::select! {
                () = self.stop.cancelled() => return Ok(()),
                () = registration.replaced() => return Ok(()),
                message = incoming.message() => message?,
            };
            let Some(message) = message else { return Ok(()) };
            self.hub.seen(agent);
            match message.body {
                Some(agent_message::Body::Update(update)) => {
                    if let Err(error) = self.update(agent, update).await {
                        tracing::warn!(%agent, %error, "its message about a job was refused");
                    }
                }
                Some(agent_message::Body::Queues(report)) => {
                    self.hub.queues_told(agent, bounded(report));
                }
                Some(agent_message::Body::Hello(_)) | None => {}
            }
        }
    }

    async fn update(&self, agent: &Name, update: JobUpdate) -> Result<()> {
        let JobUpdate { job, attempt, what } = update;
        let id: JobId = super::wire::id(&job)?;
        let known = self.catalog.view().job(id)?.filter(|job| job.agent == *agent);
        let Some(known) = known else {
            return Err(Error::refused(
                ErrorKind::Denied,
                format!("job {id} is not this agent's"),
            ));
        };
        match what {
            Some(job_update::What::Accepted(true)) => {
                let command = Command::StartJob { job: id, attempt };
                let started = self
                    .catalog
                    .propose(Actor::Agent(agent.clone()), None, command)
                    .await;
                let body = match &started {
                    Ok(_) => {
                        self.hub.progressed(id, v1::JobProgress::default());
                        controller_message::Body::Start(StartJob { job, attempt })
                    }
                    Err(_) => controller_message::Body::Drop(DropJob { job, attempt }),
                };
                self.hub.send(agent, body);
                started.map(|_| ())
            }
            Some(job_update::What::Progress(progress)) => self.progressed(&known, progress),
            Some(job_update::What::Result(result)) => self.finish(agent, id, attempt, result).await,
            Some(job_update::What::Accepted(false)) | None => Ok(()),
        }
    }

    /// Notes how a job goes on, and tells its agent again what it may not have heard: that the job was cancelled,
    /// that its limits changed.
    fn progressed(&self, job: &Job, progress: v1::JobProgress) -> Result<()> {
        if job.state.is_over() {
            self.hub.job_cancelled(job.id, &job.agent);
            return Ok(());
        }
        let limits = limits_in_force(progress.limits);
        if let Some(limits) = &limits {
            let source = self.catalog.view().source(&job.source)?;
            let wanted = source.map(|source| source.limits).unwrap_or_default();
            if wanted != limits.asked {
                self.hub
                    .limits_changed(job.id, &job.agent, host_limits::to_wire(&wanted));
            }
        }
        let progress = v1::JobProgress {
            limits: limits.as_ref().map(wire_limits_in_force),
            ..progress
        };
        self.hub.progressed(job.id, progress);
        Ok(())
    }

    async fn finish(&self, agent: &Name, job: JobId, attempt: u32, result: JobResult) -> Result<()> {
        let JobResult {
            state,
            error_kind,
            error,
            snapshot,
            stats,
            limits,
            findings,
            test,
        } = result;
        let outcome = JobOutcome {
            state: JobState::from_wire(&state)
                .filter(|state| state.is_over())
                .unwrap_or(JobState::Failed),
            error_kind: ErrorKind::from_wire(&error_kind),
            error: error.chars().take(limits::SLED_VALUE_MAX / 4).collect(),
            snapshot: SnapshotId::try_from(&snapshot[..]).ok(),
            stats: super::wire::run_stats(stats),
            limits: limits_in_force(limits),
            findings: findings.into_iter().map(super::wire::check_finding).collect(),
            test: test.and_then(super::wire::test_report).map(Box::new),
        };
        let command = Command::FinishJob {
            job,
            attempt,
            outcome,
        };
        self.catalog
            .propose(Actor::Agent(agent.clone()), None, command)
            .await?;
        self.hub.forget(job);
        Ok(())
    }
}

/// What of a report is kept: agents may say anything.
fn bounded(mut report: v1::QueueReport) -> v1::QueueReport {
    report.queues.truncate(QUEUES_MAX);
    for queue in &mut report.queues {
        queue.alerts.truncate(ALERTS_MAX);
        for alert in &mut queue.alerts {
            *alert = alert.chars().take(TEXT_MAX).collect();
        }
    }
    report
}
