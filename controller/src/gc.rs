//! Garbage collection while nothing writes: mark what snapshots reach, delete packs without any of it, copy what
//! little is live out of mostly dead ones.
//!
//! **Architecture invariants.** Everything destructive is first a [`Plan`]. A pack is deleted only after the catalog
//! has said so for ever; a copy is registered and indexed before its original is deleted. At every step a crash
//! leaves a state from which [`Gc::resume`] ends the run; the next run does what was left.

mod execute;
mod mark;
mod plan;
mod tidy;

pub use plan::{PackPlan, Plan};

use crate::{
    catalog::{Actor, CatalogView, Command, Queries, Reply, model::SnapshotState},
    error::{Error, Result},
    index::{ChunkIndex, sync},
    raft::Catalog,
};
use holdfast_core::{ErrorKind, SnapshotId, UnixMillis, VaultId, limits};
use holdfast_store::Store;
use std::{collections::HashSet, sync::Arc, time::Duration};
use tokio::sync::{Mutex, OwnedMutexGuard};

/// Packs or snapshots of one command.
const BATCH: usize = 512;
/// First and longest pause between tries to end a run whose end failed.
const END_PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// What was done, or, of a dry run, would be.
#[derive(Debug, Default, Clone)]
pub struct GcReport {
    /// Deleted snapshots that are gone for good.
    pub snapshots_forgotten: u64,
    /// Packs that stay as they are.
    pub packs_kept: u64,
    /// Packs deleted whole.
    pub packs_deleted: u64,
    /// Packs whose live blobs were copied, and that were deleted then.
    pub packs_rewritten: u64,
    /// Bytes of deleted packs less bytes of new ones.
    pub bytes_freed: u64,
    /// Blobs that something reaches.
    pub chunks_live: u64,
    /// Blobs that nothing reaches.
    pub chunks_dead: u64,
    /// The plan of each vault.
    pub plans: Vec<Plan>,
}

/// What the operator asks.
#[derive(Debug, Default, Clone, Copy)]
pub struct GcOptions {
    /// Only say what would be done.
    pub dry_run: bool,
    /// Deleted snapshots go now, whatever their undo period says.
    pub ignore_undo: bool,
}

/// Collects garbage of one store.
#[derive(Clone)]
pub struct Gc {
    catalog: Catalog,
    store: Arc<dyn Store>,
    index: Arc<ChunkIndex>,
    /// A run of this process; one that the catalog knows without it is an interrupted one.
    running: Arc<Mutex<()>>,
}

impl Gc {
    /// A collector over these parts.
    #[must_use]
    pub fn new(catalog: Catalog, store: Arc<dyn Store>, index: Arc<ChunkIndex>) -> Self {
        Self {
            catalog,
            store,
            index,
            running: Arc::default(),
        }
    }

    /// Runs to the end, in a task of its own: a caller that goes away does not leave half a run.
    ///
    /// # Errors
    /// `Conflict` while sessions are open or another run goes on; `Corrupt` when something that a snapshot reaches is
    /// missing (nothing of that vault is deleted then).
    pub async fn run(&self, actor: Actor, options: GcOptions) -> Result<GcReport> {
        let this = self.clone();
        tokio::spawn(async move {
            if options.dry_run {
                this.dry_run(options).await
            } else {
                this.collect(actor, options).await
            }
        })
        .await
        .map_err(|_| Error::Internal("a garbage collection ended abnormally".into()))?
    }

    /// Ends a run that an earlier process began. Called at the start, after the index was synced.
    ///
    /// # Errors
    /// Those of the catalog and the index.
    pub async fn resume(&self) -> Result<()> {
        let running = self.running.clone().lock_owned().await;
        if let Some(run) = self.catalog.view().gc_run()? {
            tracing::info!(
                fence = run.fence,
                "ending a garbage collection that was interrupted"
            );
            self.end(run.fence).await?;
        }
        drop(running);
        Ok(())
    }

    async fn collect(&self, actor: Actor, options: GcOptions) -> Result<GcReport> {
        let Ok(running) = self.running.clone().try_lock_owned() else {
            return Err(Error::refused(
                ErrorKind::Conflict,
                "a garbage collection runs already; wait for its end",
            ));
        };
        if let Some(run) = self.catalog.read().await?.gc_run()? {
            self.end(run.fence).await?;
        }
        let fence = match self.catalog.propose(actor, None, Command::GcBegin).await? {
            Reply::Gc { fence } => fence,
            other => {
                return Err(Error::Internal(format!(
                    "beginning a collection was answered by {other:?}"
                )));
            }
        };
        let collected = self.collect_under(fence, options).await;
        let ended = self.end(fence).await;
        if let Err(error) = &ended {
            tracing::error!(%error, "a garbage collection could not be ended; no backup can begin until it is");
            tokio::spawn(self.clone().end_later(fence, running));
        }
        let report = collected?;
        ended?;
        Ok(report)
    }

    /// Ends a run that could not be ended, for as long as it is the catalog's: until then every session would be refused.
    async fn end_later(self, fence: u64, running: OwnedMutexGuard<()>) {
        let mut pause = END_PAUSE.0;
        loop {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(END_PAUSE.1);
            let is_ours = async {
                let run = self.catalog.read().await?.gc_run()?;
                Ok::<_, Error>(run.is_some_and(|run| run.fence == fence))
            };
            match is_ours.await {
                Ok(false) => break,
                Ok(true) => match self.end(fence).await {
                    Ok(()) => {
                        tracing::info!("the garbage collection has ended");
                        break;
                    }
                    Err(error) => tracing::warn!(%error, "the garbage collection still cannot be ended"),
                },
                Err(error) => tracing::warn!(%error, "whether a garbage collection runs cannot be known yet"),
            }
        }
        drop(running);
    }

    async fn collect_under(&self, fence: u64, options: GcOptions) -> Result<GcReport> {
        let view = self.catalog.read().await?;
        let forget = forgettable(&view, self.catalog.now(), options.ignore_undo)?;
        let mut report = GcReport::default();
        for snapshots in forget.chunks(BATCH) {
            let command = Command::ForgetSnapshots {
                fence,
                snapshots: snapshots.to_vec(),
                ignore_undo: options.ignore_undo,
            };
            self.catalog.propose(Actor::System, None, command).await?;
            report.snapshots_forgotten += snapshots.len() as u64;
        }
        let mut failed = None;
        for vault in view.vaults()? {
            // A damaged vault must not keep the space of all others.
            if let Err(error) = self.collect_vault(fence, vault.id, &mut report).await {
                tracing::error!(vault = %vault.name, %error, "garbage of a vault cannot be collected");
                failed.get_or_insert(error);
            }
        }
        self.tidy(&view).await?;
        let index = self.index.blocking(ChunkIndex::sweep).await;
        match failed {
            Some(error) => Err(error),
            None => index.map(|_| report),
        }
    }

    async fn collect_vault(&self, fence: u64, vault: VaultId, report: &mut GcReport) -> Result<()> {
        let view = self.catalog.view();
        let live = self.mark(&view, vault, &HashSet::new()).await?;
        let plan = self.plan(&view, vault, &live, self.catalog.now()).await?;
        tracing::info!(%plan, "garbage collection");
        report.add(&plan);
        report.bytes_freed += self.execute(fence, &plan, &live).await?;
        report.plans.push(plan);
        Ok(())
    }

    async fn dry_run(&self, options: GcOptions) -> Result<GcReport> {
        let view = self.catalog.read().await?;
        let forget: HashSet<SnapshotId> = forgettable(&view, self.catalog.now(), options.ignore_undo)?
            .into_iter()
            .collect();
        let mut report = GcReport {
            snapshots_forgotten: forget.len() as u64,
            ..GcReport::default()
        };
        for vault in view.vaults()? {
            let live = self.mark(&view, vault.id, &forget).await?;
            let plan = self.plan(&view, vault.id, &live, self.catalog.now()).await?;
            report.add(&plan);
            report.bytes_freed += plan.bytes_to_free();
            report.plans.push(plan);
        }
        Ok(report)
    }

    /// Ends a run. The index must have let go of deleted packs before sessions may open again: a commit check
    /// would count on them.
    async fn end(&self, fence: u64) -> Result<()> {
        sync::drop_gone(&self.index, &self.catalog.view()).await?;
        self.catalog
            .propose(Actor::System, None, Command::GcEnd { fence })
            .await?;
        Ok(())
    }
}

impl GcReport {
    fn add(&mut self, plan: &Plan) {
        self.packs_kept += plan.kept;
        self.packs_deleted += plan.delete.len() as u64;
        self.packs_rewritten += plan.rewrite.len() as u64;
        self.chunks_live += plan.chunks_live;
        self.chunks_dead += plan.chunks_dead;
    }
}

/// Deleted snapshots whose undo period is over (or all), less those that open sessions build on.
fn forgettable(view: &CatalogView, now: UnixMillis, ignore_undo: bool) -> Result<Vec<SnapshotId>> {
    let pinned: HashSet<SnapshotId> = view
        .open_sessions()?
        .into_iter()
        .filter_map(|s| s.parent)
        .collect();
    let mut forget = Vec::new();
    let mut after = None;
    loop {
        let page = view.snapshots(after.as_deref(), limits::LIST_PAGE)?;
        forget.extend(
            page.items
                .iter()
                .filter(|s| s.state == SnapshotState::Deleted && s.hold.is_empty() && !pinned.contains(&s.id))
                .filter(|s| ignore_undo || s.undo_until <= now)
                .map(|s| s.id),
        );
        after = page.next;
        if after.is_none() {
            return Ok(forget);
        }
    }
}

#[cfg(test)]
mod tests;
