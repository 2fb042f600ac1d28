//! Starting a node: open its storage, found or rejoin its cluster, keep its log short.

use super::{
    catalog::Catalog, machine::Machine, network::Peers, storage::LogStore, time::CatalogTime, types::Raft,
};
use crate::{
    catalog::{Actor, Command, Queries, model::Meta},
    error::{Error, Result},
};
use holdfast_core::Clock;
use openraft::{BasicNode, Config, SnapshotPolicy};
use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

/// Heartbeats of a leader, milliseconds. Generous: an fsync may take hundreds of them on a bad day.
const HEARTBEAT_MS: u64 = 500;
/// Bounds of the election timeout, milliseconds.
const ELECTION_MS: (u64, u64) = (2_000, 4_000);
/// Entries kept behind a snapshot, for followers that are a little behind.
const ENTRIES_KEPT: u64 = 256;
/// A snapshot is built when this many bytes of entries were written since the last.
pub const SNAPSHOT_LOG_BYTES: u64 = 32 << 20;
/// A node alone leads within this time.
const LEADER_TIMEOUT: Duration = Duration::from_secs(30);

/// How to start a node.
pub struct NodeOptions {
    /// Its id in the cluster.
    pub id: u64,
    /// Where others reach it, `host:port`.
    pub address: String,
    /// Bytes of entries between snapshots.
    pub snapshot_log_bytes: u64,
    /// Time.
    pub clock: Arc<dyn Clock>,
}

/// A running node.
pub struct Node {
    catalog: Catalog,
    log: LogStore,
    machine: Machine,
    tasks: [tokio::task::JoinHandle<()>; 2],
}

impl Node {
    /// Opens what is under `data_dir` and starts the node. With `seed`, a node without any state founds a cluster
    /// of its own; without, it waits to be added to one.
    ///
    /// # Errors
    /// `Corrupt` when state is damaged beyond what the node mends itself; `Conflict` when the state is another
    /// cluster's.
    pub async fn start(data_dir: &Path, options: NodeOptions, seed: Option<Meta>) -> Result<Self> {
        let (raft_dir, catalog_dir, snapshot_dir) = (
            data_dir.join("raft"),
            data_dir.join("catalog"),
            data_dir.join("snapshots"),
        );
        // Both read whole files.
        let (log, machine) = tokio::task::spawn_blocking(move || -> Result<_> {
            Ok((
                LogStore::open(&raft_dir)?,
                Machine::open(&catalog_dir, &snapshot_dir)?,
            ))
        })
        .await
        .map_err(|e| Error::Internal(e.to_string()))??;
        let last_time = machine.store().catalog_time()?;
        let time = Arc::new(CatalogTime::new(options.clock, last_time));
        machine.keep_time(time.clone());

        let config = Config {
            cluster_name: "holdfast".into(),
            heartbeat_interval: HEARTBEAT_MS,
            election_timeout_min: ELECTION_MS.0,
            election_timeout_max: ELECTION_MS.1,
            // By bytes, not by entries: see `build_snapshots`.
            snapshot_policy: SnapshotPolicy::Never,
            max_in_snapshot_log_to_keep: ENTRIES_KEPT,
            ..Config::default()
        };
        let config = Arc::new(config.validate().map_err(|e| Error::Internal(e.to_string()))?);
        let raft = Raft::new(options.id, config, Peers, log.clone(), machine.clone())
            .await
            .map_err(stopped)?;
        if seed.is_some() && !raft.is_initialized().await.map_err(stopped)? {
            let members = BTreeMap::from([(options.id, BasicNode::new(options.address))]);
            raft.initialize(members)
                .await
                .map_err(|e| Error::Unavailable(e.to_string()))?;
        } else {
            elect_alone(&raft, &machine, options.id).await?;
        }
        let catalog = Catalog::new(
            raft.clone(),
            machine.store().clone(),
            machine.applied(),
            time,
            log.clone(),
        );
        let snapshots = tokio::spawn(build_snapshots(
            raft.clone(),
            log.clone(),
            machine.applied(),
            options.snapshot_log_bytes,
        ));
        let node = Self {
            catalog,
            log,
            machine,
            tasks: [snapshots, tokio::spawn(stop_when_broken(raft.clone()))],
        };
        if let Some(meta) = seed {
            node.found(&raft, meta).await?;
            node.end_abandoned_gc().await?;
        }
        Ok(node)
    }

    async fn found(&self, raft: &Raft, meta: Meta) -> Result<()> {
        raft.wait(Some(LEADER_TIMEOUT))
            .metrics(|metrics| metrics.current_leader.is_some(), "a leader")
            .await
            .map_err(|e| Error::Unavailable(e.to_string()))?;
        match self.catalog.view().meta()? {
            Some(there) if there.cluster == meta.cluster => Ok(()),
            // Says so when it is another cluster's.
            _ => self
                .catalog
                .propose(Actor::System, None, Command::Init { meta })
                .await
                .map(|_| ()),
        }
    }

    /// Whoever ran a garbage collection ran in the process before this one: it is over, and backups go on.
    async fn end_abandoned_gc(&self) -> Result<()> {
        let Some(run) = self.catalog.view().gc_run()? else {
            return Ok(());
        };
        tracing::warn!(
            began = run.started_at,
            "a garbage collection was cut off; what it did not delete stays until the next"
        );
        let end = Command::GcEnd { fence: run.fence };
        self.catalog.propose(Actor::System, None, end).await.map(|_| ())
    }

    /// The handle for everything else.
    #[must_use]
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// The log below, for metrics.
    #[must_use]
    pub fn log(&self) -> &LogStore {
        &self.log
    }

    /// The state machine below, for metrics.
    #[must_use]
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// Stops the node; everything acknowledged is on disk already.
    pub async fn shutdown(self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
        if let Err(e) = self.catalog.raft().shutdown().await {
            tracing::warn!(error = %e, "the Raft node did not stop in order");
        }
        // They hold the catalog until they are gone.
        for task in self.tasks {
            let _ = task.await;
        }
    }
}

/// A single voter need not wait for an election timeout: nobody else could lead.
async fn elect_alone(raft: &Raft, machine: &Machine, id: u64) -> Result<()> {
    let applied = machine.store().applied();
    let mut voters = applied.membership.membership().voter_ids();
    if voters.next() == Some(id) && voters.next().is_none() {
        raft.trigger().elect().await.map_err(stopped)?;
    }
    Ok(())
}

/// Builds a snapshot whenever enough bytes of entries were written; openraft then purges the log behind it.
async fn build_snapshots(
    raft: Raft,
    log: LogStore,
    mut applied: tokio::sync::watch::Receiver<u64>,
    every_bytes: u64,
) {
    // What an earlier process left in the log counts too.
    let mut since = log.written_bytes();
    let mut carried = log.len_bytes();
    while applied.changed().await.is_ok() {
        let written = log.written_bytes();
        if written - since + carried < every_bytes {
            continue;
        }
        if let Err(e) = raft.trigger().snapshot().await {
            tracing::warn!(error = %e, "cannot ask for a snapshot");
            return;
        }
        since = written;
        carried = 0;
    }
}

/// A node whose storage failed can do nothing right any more; a new process checks and mends what is on disk.
async fn stop_when_broken(raft: Raft) {
    let mut metrics = raft.metrics();
    let broken = metrics
        .wait_for(|metrics| matches!(&metrics.running_state, Err(e) if *e != openraft::error::Fatal::Stopped))
        .await
        .map(|metrics| format!("{:?}", metrics.running_state));
    // An error here only says that the node was shut down.
    if let Ok(state) = broken {
        tracing::error!(%state, "the Raft node is broken; the process stops");
        eprintln!("holdfast-controller: the Raft node is broken, the process stops: {state}");
        std::process::abort();
    }
}

fn stopped(error: openraft::error::Fatal<u64>) -> Error {
    Error::Unavailable(format!("the Raft node stopped: {error}"))
}

#[cfg(test)]
mod tests;
