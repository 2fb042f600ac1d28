//! What the leader knows of agents beside the catalog: who is connected, how jobs go on.

use futures::future::BoxFuture;
use holdfast_core::{JobId, Name, UnixMillis};
use holdfast_proto::v1::{JobProgress, Limits, QueueReport};
use tokio::sync::watch;

/// The connected agents, as services see them.
pub trait Fleet: Send + Sync {
    /// Whether the agent's control stream is open.
    fn is_connected(&self, agent: &Name) -> bool;
    /// When it was last heard of; 0 = not since this controller started.
    fn last_seen(&self, agent: &Name) -> UnixMillis;
    /// How many are connected.
    fn connected(&self) -> usize;
    /// How a running job goes on, as its agent last said.
    fn progress(&self, job: JobId) -> Option<JobProgress>;
    /// Changes whenever any job's progress does.
    fn progress_changes(&self) -> watch::Receiver<u64>;
    /// A job was cancelled: tell its agent.
    fn job_cancelled(&self, job: JobId, agent: &Name);
    /// The limits of a running job's source changed: tell its agent.
    fn limits_changed(&self, job: JobId, agent: &Name, limits: Limits);
    /// What waits at an agent, as it last said since it is connected.
    fn queues(&self, agent: &Name) -> Option<QueueReport>;
    /// Asks an agent what waits there. The answer is of a moment after the question; none when it does not come soon.
    fn ask_queues<'a>(&'a self, agent: &'a Name) -> BoxFuture<'a, Option<QueueReport>>;
}
