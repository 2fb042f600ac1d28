//! The handle through which everything else reads and changes the catalog.

use super::{storage::LogStore, time::CatalogTime, types::Raft};
use crate::{
    catalog::{Actor, CatalogView, Command, Proposal, Reply, store::CatalogStore},
    error::{Error, Result},
};
use holdfast_core::{ErrorKind, RequestId};
use openraft::error::{CheckIsLeaderError, ClientWriteError, RaftError};
use std::{sync::Arc, time::Duration};
use tokio::sync::watch;

/// A proposal that took this long has lost its quorum.
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(30);

/// The catalog: propose, read, wait. Cheap to clone.
#[derive(Clone)]
pub struct Catalog {
    raft: Raft,
    view: CatalogView,
    applied: watch::Receiver<u64>,
    time: Arc<CatalogTime>,
    log: LogStore,
}

impl Catalog {
    pub(super) fn new(
        raft: Raft,
        store: Arc<CatalogStore>,
        applied: watch::Receiver<u64>,
        time: Arc<CatalogTime>,
        log: LogStore,
    ) -> Self {
        Self {
            raft,
            view: CatalogView::new(store),
            applied,
            time,
            log,
        }
    }

    /// Has the cluster agree on a command and returns what the catalog answered.
    ///
    /// # Errors
    /// `Refused` with the catalog's reason; `Unavailable` when this node cannot say (try again with the
    /// same request id: it acts once).
    pub async fn propose(&self, actor: Actor, request: Option<RequestId>, command: Command) -> Result<Reply> {
        self.propose_indexed(actor, request, command)
            .await
            .map(|(_, reply)| reply)
    }

    /// As [`Self::propose`], with the index of the entry.
    ///
    /// # Errors
    /// As there.
    pub async fn propose_indexed(
        &self,
        actor: Actor,
        request: Option<RequestId>,
        command: Command,
    ) -> Result<(u64, Reply)> {
        self.propose_traced(actor, request, String::new(), command).await
    }

    /// As [`Self::propose_indexed`], with the traceparent of whoever asked.
    ///
    /// # Errors
    /// As there.
    pub async fn propose_traced(
        &self,
        actor: Actor,
        request: Option<RequestId>,
        trace: String,
        command: Command,
    ) -> Result<(u64, Reply)> {
        match &command {
            Command::RegisterPacks { .. } => tracing::debug!(target: "holdfast::phase", phase = "register"),
            Command::CommitSnapshot { .. } => tracing::debug!(target: "holdfast::phase", phase = "commit"),
            Command::AppendJournal { .. } => {
                tracing::debug!(target: "holdfast::phase", phase = "journal-append");
            }
            _ => {}
        }
        let proposal = Proposal {
            request,
            time: self.time.now(),
            actor,
            trace,
            command,
        };
        // openraft runs in its own tasks: a caller that goes away here does not undo anything.
        let written = tokio::time::timeout(PROPOSE_TIMEOUT, self.raft.client_write(proposal))
            .await
            .map_err(|_| {
                if self.log.is_disk_full() {
                    let text =
                        "the disk of the controller's Raft log is full; free space there and try again";
                    Error::refused(ErrorKind::NoSpace, text)
                } else {
                    Error::refused(
                        ErrorKind::NoQuorum,
                        "too few controllers answered in time; try again",
                    )
                }
            })?
            .map_err(|e| match e {
                RaftError::APIError(ClientWriteError::ForwardToLeader(forward)) => Error::Unavailable(
                    format!("this node does not lead; the leader is {:?}", forward.leader_id),
                ),
                other => Error::Unavailable(other.to_string()),
            })?;
        match written.data {
            Reply::Refused(refusal) => Err(Error::Refused(refusal)),
            reply => Ok((written.log_id.index, reply)),
        }
    }

    /// The catalog after everything that was acknowledged before this call.
    ///
    /// # Errors
    /// `Unavailable` when no leader confirms itself.
    pub async fn read(&self) -> Result<CatalogView> {
        self.raft.ensure_linearizable().await.map_err(|e| match e {
            RaftError::APIError(CheckIsLeaderError::QuorumNotEnough(e)) => {
                Error::refused(ErrorKind::NoQuorum, format!("too few controllers answer: {e}"))
            }
            other => Error::Unavailable(other.to_string()),
        })?;
        Ok(self.view.clone())
    }

    /// The catalog as this node has applied it; may be behind. For executors, which act on applied state.
    #[must_use]
    pub fn view(&self) -> CatalogView {
        self.view.clone()
    }

    /// Returns once this node has applied the entry of that index.
    ///
    /// # Errors
    /// `Timeout` after `limit`; `Unavailable` when the node stops.
    pub async fn wait_applied(&self, index: u64, limit: Duration) -> Result<()> {
        let mut applied = self.applied.clone();
        tokio::time::timeout(limit, applied.wait_for(|at| *at >= index))
            .await
            .map_err(|_| {
                Error::refused(
                    ErrorKind::Timeout,
                    format!("entry {index} was not applied in time; try again"),
                )
            })?
            .map_err(|_| Error::Unavailable("the node stops".into()))?;
        Ok(())
    }

    /// Told after every applied batch: the value is the applied index. Look at the view for what changed.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.applied.clone()
    }

    /// Catalog time now, in milliseconds since 1970: never goes back.
    #[must_use]
    pub fn now(&self) -> holdfast_core::UnixMillis {
        self.time.now()
    }

    /// Milliseconds by which the wall clock is ahead of (positive) or behind catalog time, which does not follow
    /// its steps.
    #[must_use]
    pub fn wall_offset_millis(&self) -> i64 {
        self.time.wall_offset_millis()
    }

    /// Leader and term as this node knows them; none while there is no leader.
    #[must_use]
    pub fn leader(&self) -> Option<(u64, u64)> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        metrics
            .current_leader
            .map(|leader| (leader, metrics.current_term))
    }

    /// The node below, for membership and shutdown.
    #[must_use]
    pub fn raft(&self) -> &Raft {
        &self.raft
    }
}
