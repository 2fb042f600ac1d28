//! Jobs on this agent: offered, accepted, started by the cluster's decision, reported to the end.

use crate::{
    backup::{self, Work},
    config::Config,
    engine::Stats,
    error::{AgentError, Result},
    limits::JobLimits,
    restore_job,
    state::State,
    test_restore,
};
use holdfast_core::{ErrorKind, HasKind as _, JobId, SourceRef, limits};
use holdfast_net::{
    client::{ClientTls, ConnectOptions, Connection, connect_pool},
    host_limits,
    metrics::Metrics,
};
use holdfast_proto::v1::{
    AgentMessage, BackupWork, JobOffer, JobProgress, JobResult, JobUpdate, SetLimits, agent_message,
    job_offer, job_update,
};
use parking_lot::Mutex;
use prometheus_client::metrics::{counter::Counter, family::Family};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::sync::mpsc;
use tracing::Instrument as _;

/// Messages to the controllers that wait for a slow stream.
pub const OUTBOX_LEN: usize = 64;
/// Jobs that one agent carries out at the same time.
const JOBS_MAX: usize = 16;
/// Results that are told again after a reconnect, in case the stream broke before they arrived.
const RESULTS_KEPT: usize = 64;
/// How often progress is told.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);
/// How long a wait goes on before it is seen that the job was cancelled.
const CANCEL_LOOK: Duration = Duration::from_millis(100);
/// Connections for data.
const DATA_CONNECTIONS: usize = 2;

/// What a run is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Reading and sending.
    Walk,
    /// Making it visible.
    Commit,
    /// Writing files.
    Restore,
    /// A server recovers.
    Recover,
    /// What was restored is looked at.
    Check,
    /// What was made for it is removed.
    Clean,
}

impl Phase {
    fn as_str(self) -> &'static str {
        match self {
            Self::Walk => "walk",
            Self::Commit => "commit",
            Self::Restore => "restore",
            Self::Recover => "recover",
            Self::Check => "check",
            Self::Clean => "clean",
        }
    }
}

/// What a job needs to run.
pub struct JobContext {
    /// The job.
    pub job: JobId,
    /// Which attempt.
    pub attempt: u32,
    /// Our state.
    pub state: Arc<State>,
    /// Our configuration.
    pub config: Arc<Config>,
    /// Our certificate.
    pub tls: ClientTls,
    /// Set to stop.
    pub cancel: Arc<AtomicBool>,
    /// What it may take of this host; changes while it runs.
    pub limits: Arc<JobLimits>,
    /// Counters.
    pub stats: Arc<Stats>,
    /// Bytes that a restore has to write; 0 while unknown.
    pub bytes_total: Arc<std::sync::atomic::AtomicU64>,
    /// Held by whoever works in the scratch directory.
    pub scratch_turn: Arc<tokio::sync::Mutex<()>>,
    phase: Mutex<Phase>,
}

impl JobContext {
    /// Connections for data.
    ///
    /// # Errors
    /// When no controller answers.
    pub async fn connect_data(&self) -> Result<Vec<Connection>> {
        let addresses = &self.state.membership.addresses;
        Ok(connect_pool(addresses, &self.tls, &ConnectOptions::default(), DATA_CONNECTIONS).await?)
    }

    /// Says what is being done.
    pub fn set_phase(&self, phase: Phase) {
        *self.phase.lock() = phase;
    }

    /// Whether someone asked to stop.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.cancel.load(Ordering::Relaxed)
    }

    /// Returns when someone asked to stop.
    pub async fn cancelled(&self) {
        while !self.is_cancelled() {
            tokio::time::sleep(CANCEL_LOOK).await;
        }
    }

    fn progress(&self) -> JobProgress {
        let progress = self.stats.progress();
        JobProgress {
            phase: self.phase.lock().as_str().into(),
            files_done: progress.files,
            bytes_done: progress.bytes,
            bytes_total: self.bytes_total.load(Ordering::Relaxed),
            bytes_sent: progress.sent,
            limits: Some(self.limits.in_force()),
        }
    }
}

/// A job that runs here, as others reach it.
struct Running {
    cancel: Arc<AtomicBool>,
    limits: Arc<JobLimits>,
}

#[derive(Default)]
struct Table {
    /// Offers that we accepted and that were not started or dropped yet.
    accepted: BTreeMap<(JobId, u32), JobOffer>,
    running: BTreeMap<JobId, Running>,
    /// Held by the run of a source: a new one begins when the threads of a cancelled one have ended.
    turns: BTreeMap<SourceRef, Arc<tokio::sync::Mutex<()>>>,
    /// Jobs that someone asked to stop, as opposed to those that lost their lease.
    cancelled: BTreeSet<JobId>,
    /// The agent ends: what runs is given up without a word, and the controllers hand it out again.
    stopping: bool,
    results: VecDeque<AgentMessage>,
    outbox: Option<mpsc::Sender<AgentMessage>>,
}

/// All jobs of this process; outlives the control stream.
#[derive(Clone)]
pub struct Jobs {
    state: Arc<State>,
    config: Arc<Config>,
    tls: ClientTls,
    table: Arc<Mutex<Table>>,
    scratch_turn: Arc<tokio::sync::Mutex<()>>,
    /// Jobs by how they ended.
    ended: Family<Vec<(&'static str, String)>, Counter>,
    bytes_sent: Counter,
}

impl Jobs {
    /// No jobs yet.
    #[must_use]
    pub fn new(state: Arc<State>, config: Arc<Config>, tls: ClientTls, metrics: &Metrics) -> Self {
        let (ended, bytes_sent) = (Family::default(), Counter::default());
        metrics.register(|registry| {
            registry.register("agent_jobs_ended", "Jobs by how they ended", ended.clone());
            registry.register(
                "agent_bytes_sent",
                "Bytes of packs sent and acknowledged",
                bytes_sent.clone(),
            );
        });
        Self {
            state,
            config,
            tls,
            table: Arc::default(),
            scratch_turn: Arc::default(),
            ended,
            bytes_sent,
        }
    }

    /// Removes in the background what test restores of earlier processes left behind; new ones wait for that.
    pub fn clear_scratch(&self) {
        let Some(root) = self.config.scratch.clone() else {
            return;
        };
        // Nobody else knows of it yet.
        let Ok(turn) = Arc::clone(&self.scratch_turn).try_lock_owned() else {
            return;
        };
        tokio::task::spawn_blocking(move || {
            let _turn = turn;
            if let Err(error) = test_restore::clear(&root) {
                tracing::warn!(%error, "what test restores left behind cannot be looked for");
            }
        });
    }

    /// Jobs that run here, and those whose results are told again: what a controller must not give up.
    #[must_use]
    pub fn known(&self) -> Vec<bytes::Bytes> {
        let table = self.table.lock();
        let running = table.running.keys().map(|job| job.as_bytes().to_vec().into());
        let ended = table.results.iter().filter_map(|message| match &message.body {
            Some(agent_message::Body::Update(update)) => Some(update.job.clone()),
            _ => None,
        });
        running.chain(ended).collect()
    }

    /// A new control stream is up: results that may have been lost with the old one are told again.
    pub fn attach(&self, outbox: mpsc::Sender<AgentMessage>) {
        let mut table = self.table.lock();
        table.accepted.clear();
        for result in &table.results {
            // The outbox is as long as the list of results.
            let _ = outbox.try_send(result.clone());
        }
        table.outbox = Some(outbox);
    }

    /// An offer: accepted unless it cannot be understood or there are too many already.
    pub fn offered(&self, offer: JobOffer) {
        let Ok(job) = JobId::try_from(&offer.job[..]) else {
            return;
        };
        let attempt = offer.attempt;
        let mut table = self.table.lock();
        if table.running.contains_key(&job) || table.running.len() + table.accepted.len() >= JOBS_MAX {
            return;
        }
        table.accepted.insert((job, attempt), offer);
        drop(table);
        self.tell(update(job, attempt, job_update::What::Accepted(true)));
    }

    /// The cluster decided that it is ours: begin.
    pub fn started(&self, job: &[u8], attempt: u32) {
        let Ok(job) = JobId::try_from(job) else { return };
        let mut table = self.table.lock();
        let Some(offer) = table.accepted.remove(&(job, attempt)) else {
            return;
        };
        let cancel = Arc::new(AtomicBool::new(false));
        // Limits that cannot be understood end the job before it does anything.
        let limits = host_limits::from_wire(offer.limits.clone()).unwrap_or_default();
        let limits = Arc::new(JobLimits::new(&limits));
        let running = Running {
            cancel: Arc::clone(&cancel),
            limits: Arc::clone(&limits),
        };
        if table.running.insert(job, running).is_some() {
            return;
        }
        drop(table);
        let context = JobContext {
            job,
            attempt,
            state: Arc::clone(&self.state),
            config: Arc::clone(&self.config),
            tls: self.tls.clone(),
            cancel,
            limits,
            stats: Arc::default(),
            bytes_total: Arc::default(),
            scratch_turn: Arc::clone(&self.scratch_turn),
            phase: Mutex::new(Phase::Walk),
        };
        tokio::spawn(self.clone().carry_out(context, offer));
    }

    /// Someone else has it, or it is over.
    pub fn dropped(&self, job: &[u8], attempt: u32) {
        if let Ok(job) = JobId::try_from(job) {
            self.table.lock().accepted.remove(&(job, attempt));
        }
    }

    /// Asks a job to stop; one that was not started here yet never is.
    pub fn cancel(&self, job: &[u8]) {
        let Ok(job) = JobId::try_from(job) else { return };
        let mut table = self.table.lock();
        table.accepted.retain(|(accepted, _), _| *accepted != job);
        if let Some(running) = table.running.get(&job) {
            running.cancel.store(true, Ordering::Relaxed);
            table.cancelled.insert(job);
        }
    }

    /// The limits of a job's source changed.
    pub fn set_limits(&self, message: SetLimits) {
        let SetLimits { job, limits } = message;
        let Ok(job) = JobId::try_from(&job[..]) else {
            return;
        };
        let wanted = match host_limits::from_wire(limits.clone()) {
            Ok(wanted) => wanted,
            Err(why) => {
                return tracing::warn!(%job, why, "new limits cannot be understood; the old ones stay");
            }
        };
        let mut table = self.table.lock();
        let accepted = table.accepted.iter_mut().filter(|((id, _), _)| *id == job);
        accepted.for_each(|(_, offer)| offer.limits.clone_from(&limits));
        let running = table.running.get(&job).map(|running| Arc::clone(&running.limits));
        drop(table);
        if let Some(limits) = running {
            tracing::info!(%job, ?wanted, "new limits");
            limits.set(&wanted);
        }
    }

    fn cancel_all(&self) {
        let mut table = self.table.lock();
        table.stopping = true;
        table
            .running
            .values()
            .for_each(|running| running.cancel.store(true, Ordering::Relaxed));
    }

    /// Asks all to stop, and waits until they have, bounded by `patience`.
    pub async fn stop(&self, patience: Duration) {
        self.cancel_all();
        let all_ended = async {
            while !self.table.lock().running.is_empty() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let _ = tokio::time::timeout(patience, all_ended).await;
    }

    async fn carry_out(self, context: JobContext, offer: JobOffer) {
        let span = tracing::info_span!("job", job = %context.job, attempt = context.attempt);
        holdfast_net::trace::set_parent(&span, &offer.trace_parent);
        let result = async {
            tokio::select! {
                result = self.execute(&context, &offer) => result,
                () = self.report_progress(&context) => unreachable_result(),
            }
        }
        .instrument(span)
        .await;
        let Some(result) = self.settle(&context, result) else {
            return;
        };
        self.ended
            .get_or_create(&vec![("state", result.state.clone())])
            .inc();
        self.bytes_sent.inc_by(context.stats.progress().sent);
        let message = update(context.job, context.attempt, job_update::What::Result(result));
        self.keep_result(message.clone());
        self.tell(message);
    }

    fn keep_result(&self, message: AgentMessage) {
        let mut table = self.table.lock();
        if table.results.len() == RESULTS_KEPT {
            table.results.pop_front();
        }
        table.results.push_back(message);
    }

    /// Takes a job off the table: what to say of its end, or nothing when the agent itself ends and
    /// the job should be handed out again.
    fn settle(&self, context: &JobContext, result: JobResult) -> Option<JobResult> {
        let mut table = self.table.lock();
        table.running.remove(&context.job);
        let was_cancelled = table.cancelled.remove(&context.job);
        let is_interrupted = result.error_kind == ErrorKind::Interrupted.as_str();
        // A cancelled job's session is closed, which its calls may have met before they were told.
        let has_failed = result.state == "failed";
        match (is_interrupted, was_cancelled) {
            (_, true) if has_failed => Some(JobResult {
                state: "cancelled".into(),
                ..result
            }),
            (true, false) if table.stopping => None,
            _ => Some(result),
        }
    }

    /// Tells progress until dropped.
    async fn report_progress(&self, context: &JobContext) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(PROGRESS_EVERY) => {}
                () = context.limits.changed() => {}
            }
            let progress = job_update::What::Progress(context.progress());
            self.tell(update(context.job, context.attempt, progress));
        }
    }

    async fn execute(&self, context: &JobContext, offer: &JobOffer) -> JobResult {
        let result = match host_limits::from_wire(offer.limits.clone()) {
            Ok(_) => execute(context, offer, self.turn_of(offer)).await,
            Err(why) => failed(&AgentError::Invalid(format!("limits: {why}"))),
        };
        JobResult {
            limits: Some(context.limits.in_force()),
            ..result
        }
    }

    fn turn_of(&self, offer: &JobOffer) -> Arc<tokio::sync::Mutex<()>> {
        let mut table = self.table.lock();
        match source_of(offer) {
            Ok(source) => Arc::clone(table.turns.entry(source).or_default()),
            Err(_) => Arc::default(),
        }
    }

    /// Sends what the stream can take now; progress may be lost, results are told again.
    fn tell(&self, message: AgentMessage) {
        if let Some(outbox) = &self.table.lock().outbox {
            let _ = outbox.try_send(message);
        }
    }
}

/// Progress never ends by itself.
fn unreachable_result() -> JobResult {
    failed(&AgentError::Internal("progress ended".into()))
}

fn update(job: JobId, attempt: u32, what: job_update::What) -> AgentMessage {
    let update = JobUpdate {
        job: job.as_bytes().to_vec().into(),
        attempt,
        what: Some(what),
    };
    AgentMessage {
        body: Some(agent_message::Body::Update(update)),
    }
}

async fn execute(context: &JobContext, offer: &JobOffer, turn: Arc<tokio::sync::Mutex<()>>) -> JobResult {
    let done = match &offer.work {
        Some(job_offer::Work::Backup(work)) => match (source_of(offer), backup_work(work)) {
            (Ok(source), Ok(work)) => {
                let _turn = turn.lock().await;
                tracing::info!(%source, "backup begins");
                backup::run(context, &source, work).await.map(|done| JobResult {
                    state: if done.partial { "partial" } else { "succeeded" }.into(),
                    snapshot: done.snapshot.as_bytes().to_vec().into(),
                    stats: Some(done.stats),
                    ..JobResult::default()
                })
            }
            (Err(error), _) | (_, Err(error)) => Err(error),
        },
        Some(job_offer::Work::Restore(spec)) => restore_job::run(context, spec).await,
        Some(job_offer::Work::Check(work)) => match source_of(offer) {
            Ok(source) => backup::check(context, &source, work).await,
            Err(error) => Err(error),
        },
        Some(job_offer::Work::TestRestore(work)) => match source_of(offer) {
            Ok(source) => test_restore::run(context, &source, work).await,
            Err(error) => Err(error),
        },
        None => Err(AgentError::Invalid(
            "this agent does not know that kind of job; update it".into(),
        )),
    };
    match done {
        Ok(result) => {
            tracing::info!(state = result.state, stats = ?result.stats, "job done");
            result
        }
        Err(error) => {
            tracing::warn!(%error, "job failed");
            JobResult {
                stats: Some(context.stats.snapshot()),
                ..failed(&error)
            }
        }
    }
}

fn backup_work(work: &BackupWork) -> Result<Work> {
    let BackupWork { files, postgres } = work.clone();
    match (files, postgres) {
        (Some(files), None) => Ok(Work::Files(files)),
        (None, Some(postgres)) => Ok(Work::Postgres(postgres)),
        (Some(_), Some(_)) => Err(AgentError::Invalid(
            "a source is either files or a PostgreSQL cluster".into(),
        )),
        (None, None) => Err(AgentError::Invalid(
            "this agent does not know that kind of source; update it".into(),
        )),
    }
}

fn failed(error: &AgentError) -> JobResult {
    JobResult {
        state: "failed".into(),
        error_kind: error.kind().as_str().into(),
        error: error
            .to_string()
            .chars()
            .take(limits::SLED_VALUE_MAX / 8)
            .collect(),
        ..JobResult::default()
    }
}

fn source_of(offer: &JobOffer) -> Result<SourceRef> {
    let source = offer.source.clone().unwrap_or_default();
    let parse = |text: &str| {
        text.parse()
            .map_err(|e: holdfast_core::NameError| AgentError::Invalid(e.to_string()))
    };
    Ok(SourceRef {
        agent: parse(&source.agent)?,
        source: parse(&source.source)?,
    })
}
