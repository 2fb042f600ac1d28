//! The control streams that agents hold open, and what came through them last.

use crate::api::fleet::Fleet;
use futures::future::BoxFuture;
use holdfast_core::{Clock, JobId, Name, UnixMillis};
use holdfast_proto::v1::{
    AskQueues, CancelJob, ControllerMessage, JobProgress, Limits, QueueReport, SetLimits, controller_message,
};
use parking_lot::Mutex;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

/// Messages to one agent that wait for its stream; a slower agent loses its stream and comes back.
pub const STREAM_QUEUE: usize = 64;

/// Questions about queues that wait for answers; more are not asked, which counts as no answer.
const QUESTIONS_MAX: usize = 256;
/// How long an answer is waited for. Agents answer from memory.
const ANSWER_PATIENCE: Duration = Duration::from_secs(3);

struct Stream {
    number: u64,
    /// What the agent last said of its queues on this stream.
    queues: Option<QueueReport>,
    /// Cancelled when a newer stream of the same agent takes its place.
    replaced: CancellationToken,
    messages: mpsc::Sender<ControllerMessage>,
}

struct Progress {
    last: JobProgress,
    /// Boot time of the last sign of life.
    seen: Duration,
}

#[derive(Default)]
struct State {
    next_number: u64,
    streams: BTreeMap<Name, Stream>,
    last_seen: BTreeMap<Name, UnixMillis>,
    /// Of running jobs only; a job that is over is forgotten.
    progress: BTreeMap<JobId, Progress>,
    changes: u64,
    next_question: u64,
    /// Who was asked what, and who waits for it.
    questions: BTreeMap<u64, (Name, oneshot::Sender<QueueReport>)>,
}

/// All control streams of this controller. The lock is held for map operations only.
pub struct Hub {
    state: Mutex<State>,
    changes: watch::Sender<u64>,
    clock: Arc<dyn Clock>,
}

/// A registered stream; the agent counts as connected until it is dropped or replaced.
pub struct Registration {
    hub: Arc<Hub>,
    agent: Name,
    number: u64,
    replaced: CancellationToken,
}

impl Registration {
    /// Returns when a newer stream of the same agent took this one's place.
    pub async fn replaced(&self) {
        self.replaced.cancelled().await;
    }
}

impl Hub {
    /// No agents yet.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            changes: watch::Sender::new(0),
            clock,
        })
    }

    /// An agent's new stream; an older one of the same agent ends when its sender is dropped here.
    #[must_use]
    pub fn register(
        self: &Arc<Self>,
        agent: &Name,
        messages: mpsc::Sender<ControllerMessage>,
    ) -> Registration {
        let mut state = self.state.lock();
        state.next_number += 1;
        let number = state.next_number;
        let replaced = CancellationToken::new();
        let stream = Stream {
            number,
            queues: None,
            replaced: replaced.clone(),
            messages,
        };
        if let Some(older) = state.streams.insert(agent.clone(), stream) {
            older.replaced.cancel();
        }
        state.last_seen.insert(agent.clone(), self.clock.wall());
        Registration {
            hub: Arc::clone(self),
            agent: agent.clone(),
            number,
            replaced,
        }
    }

    /// Sends to a connected agent; says whether it was taken.
    pub fn send(&self, agent: &Name, body: controller_message::Body) -> bool {
        let state = self.state.lock();
        let message = ControllerMessage { body: Some(body) };
        state
            .streams
            .get(agent)
            .is_some_and(|stream| stream.messages.try_send(message).is_ok())
    }

    /// An agent was heard of.
    pub fn seen(&self, agent: &Name) {
        self.state
            .lock()
            .last_seen
            .insert(agent.clone(), self.clock.wall());
    }

    /// A running job was heard of.
    pub fn progressed(&self, job: JobId, progress: JobProgress) {
        let seen = self.clock.boot();
        let mut state = self.state.lock();
        state.progress.insert(job, Progress { last: progress, seen });
        state.changes += 1;
        let changes = state.changes;
        drop(state);
        self.changes.send_replace(changes);
    }

    /// An agent said what waits there.
    pub fn queues_told(&self, agent: &Name, report: QueueReport) {
        let mut state = self.state.lock();
        let is_asked = |asked: &(Name, oneshot::Sender<_>)| asked.0 == *agent;
        if state.questions.get(&report.question).is_some_and(is_asked)
            && let Some((_, answer)) = state.questions.remove(&report.question)
        {
            // Whoever asked may have given up.
            let _ = answer.send(report.clone());
        }
        if let Some(stream) = state.streams.get_mut(agent) {
            stream.queues = Some(report);
        }
    }

    async fn ask(&self, agent: &Name) -> Option<QueueReport> {
        let (answer, answered) = oneshot::channel();
        let question = {
            let mut state = self.state.lock();
            if state.questions.len() >= QUESTIONS_MAX {
                return None;
            }
            state.next_question += 1;
            let question = state.next_question;
            state.questions.insert(question, (agent.clone(), answer));
            question
        };
        let asked = self.send(agent, controller_message::Body::AskQueues(AskQueues { question }));
        let report = if asked {
            tokio::time::timeout(ANSWER_PATIENCE, answered).await.ok()
        } else {
            None
        };
        self.state.lock().questions.remove(&question);
        report?.ok()
    }

    /// A job is over.
    pub fn forget(&self, job: JobId) {
        self.state.lock().progress.remove(&job);
    }

    /// How long ago a running job was last heard of. One that was never heard of counts from now: a
    /// new leader gives every job a full term.
    pub fn silence(&self, job: JobId) -> Duration {
        let now = self.clock.boot();
        let mut state = self.state.lock();
        let progress = state.progress.entry(job).or_insert(Progress {
            last: JobProgress::default(),
            seen: now,
        });
        now.saturating_sub(progress.seen)
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut state = self.hub.state.lock();
        if state
            .streams
            .get(&self.agent)
            .is_some_and(|stream| stream.number == self.number)
        {
            state.streams.remove(&self.agent);
        }
    }
}

impl Fleet for Hub {
    fn is_connected(&self, agent: &Name) -> bool {
        self.state.lock().streams.contains_key(agent)
    }

    fn last_seen(&self, agent: &Name) -> UnixMillis {
        self.state.lock().last_seen.get(agent).copied().unwrap_or(0)
    }

    fn connected(&self) -> usize {
        self.state.lock().streams.len()
    }

    fn progress(&self, job: JobId) -> Option<JobProgress> {
        self.state
            .lock()
            .progress
            .get(&job)
            .map(|progress| progress.last.clone())
    }

    fn progress_changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn queues(&self, agent: &Name) -> Option<QueueReport> {
        let state = self.state.lock();
        state.streams.get(agent).and_then(|stream| stream.queues.clone())
    }

    fn ask_queues<'a>(&'a self, agent: &'a Name) -> BoxFuture<'a, Option<QueueReport>> {
        Box::pin(self.ask(agent))
    }

    fn job_cancelled(&self, job: JobId, agent: &Name) {
        self.send(
            agent,
            controller_message::Body::Cancel(CancelJob {
                job: job.as_bytes().to_vec().into(),
            }),
        );
        self.forget(job);
    }

    fn limits_changed(&self, job: JobId, agent: &Name, limits: Limits) {
        let message = SetLimits {
            job: job.as_bytes().to_vec().into(),
            limits: Some(limits),
        };
        if !self.send(agent, controller_message::Body::Limits(message)) {
            tracing::debug!(%job, %agent, "the agent's stream did not take the new limits; they are sent again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_core::ManualClock;

    #[test]
    fn an_agent_is_connected_until_its_newest_stream_ends() {
        let hub = Hub::new(Arc::new(ManualClock::new(5)));
        let name: Name = "web1".parse().unwrap();
        let (first, mut first_end) = mpsc::channel(1);
        let (second, mut second_end) = mpsc::channel(1);
        let old = hub.register(&name, first);
        let new = hub.register(&name, second);
        assert!(
            first_end
                .try_recv()
                .is_err_and(|e| e == mpsc::error::TryRecvError::Disconnected)
        );
        drop(old);
        assert!(hub.is_connected(&name));
        assert!(hub.send(&name, controller_message::Body::Cancel(CancelJob::default())));
        assert!(second_end.try_recv().is_ok());
        drop(new);
        assert!(!hub.is_connected(&name));
        assert_eq!(hub.last_seen(&name), 5);
    }

    #[test]
    fn silence_counts_from_the_last_word_and_for_a_new_leader_from_now() {
        let clock = Arc::new(ManualClock::new(0));
        let hub = Hub::new(clock.clone());
        let job = JobId([1; 16]);
        clock.advance(Duration::from_secs(100));
        assert_eq!(hub.silence(job), Duration::ZERO);
        clock.advance(Duration::from_secs(7));
        assert_eq!(hub.silence(job), Duration::from_secs(7));
        hub.progressed(job, JobProgress::default());
        assert_eq!(hub.silence(job), Duration::ZERO);
    }
}
