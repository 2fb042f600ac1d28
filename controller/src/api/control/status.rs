//! One look at everything: what is protected, what is not, what needs a hand.

use super::Control;
use crate::{
    catalog::{Actor, CatalogView, Queries as _, model::JobState},
    data::tails::queue_of,
    error::Result,
};
use holdfast_core::limits;
use holdfast_proto::v1;

const DAY_MS: u64 = 24 * 3600 * 1000;
/// Most warnings in one answer; more than fit a screen help nobody.
const WARNINGS_MAX: usize = 50;

/// A wall clock that is further from catalog time than this has stepped.
const CLOCK_OFFSET_MAX_MS: u64 = 60_000;

#[derive(Default)]
struct Counts {
    agents: u64,
    sources: u64,
    unprotected: u64,
    snapshots: u64,
    failed_last_day: u64,
}

impl Control {
    pub(super) async fn status(&self, _: Actor, _: v1::StatusRequest) -> Result<v1::StatusResponse> {
        let view = self.catalog.read().await?;
        let now = self.catalog.now();
        let stores = self.maintenance.stores().await;
        let mut warnings = Vec::new();
        let counts = count(&view, now, &mut warnings)?;
        self.queues(&view, &mut warnings)?;
        for store in &stores {
            match store.state.as_str() {
                "ok" => {}
                "reserve" => warnings.push(format!(
                    "store {} has less than its reserve free: new data is refused, and WAL when half of it is used; delete snapshots and run `gc`",
                    store.location
                )),
                state => warnings.push(format!("store {} is {state}", store.location)),
            }
        }
        if stores.is_empty() {
            warnings.push("no store is configured: add [[store]] to controller.toml".into());
        }
        let offset = self.catalog.wall_offset_millis();
        if offset.unsigned_abs() > CLOCK_OFFSET_MAX_MS {
            warnings.push(format!(
                "the clock of this node stepped by {} s since the controller started; check it, then restart the controller",
                offset / 1000
            ));
        }
        warnings.truncate(WARNINGS_MAX);
        let meta = view.meta()?;
        let (applied_index, catalog_hash) = view.hash();
        Ok(v1::StatusResponse {
            cluster: meta
                .as_ref()
                .map(|meta| meta.cluster.as_bytes().to_vec().into())
                .unwrap_or_default(),
            name: meta.map(|meta| meta.name).unwrap_or_default(),
            version: env!("CARGO_PKG_VERSION").into(),
            now,
            applied_index,
            catalog_hash,
            leader: self.catalog.leader().map_or(0, |(node, _)| node),
            node: self.node.0,
            stores,
            agents: counts.agents,
            agents_connected: self.fleet.connected() as u64,
            sources: counts.sources,
            sources_unprotected: counts.unprotected,
            snapshots: counts.snapshots,
            jobs_running: view
                .active_jobs(None)?
                .iter()
                .filter(|job| job.state == JobState::Running)
                .count() as u64,
            jobs_failed_last_day: counts.failed_last_day,
            warnings,
        })
    }
}

impl Control {
    /// WAL that waits elsewhere, and what keeps it there. As the agents last said: asking each of them would take its time.
    fn queues(&self, view: &CatalogView, warnings: &mut Vec<String>) -> Result<()> {
        let mut after = None;
        loop {
            let page = view.sources(after.as_deref(), limits::LIST_PAGE)?;
            for source in page.items.iter().filter(|source| source.postgres.is_some()) {
                if warnings.len() >= WARNINGS_MAX {
                    return Ok(());
                }
                let name = &source.source;
                for tail in source.journal.iter().flat_map(|journal| &journal.tails) {
                    let report = self.fleet.queues(&tail.agent);
                    let queue = queue_of(report.as_ref(), &tail.agent, name)
                        .filter(|queue| queue.mark == tail.mark[..]);
                    if queue.is_none() {
                        warnings.push(format!(
                            "{name}: the spool of agent {}, which is away or was lost, may hold WAL that is not here; to recover \
                             without it: `restore --accept-loss`",
                            tail.agent
                        ));
                    }
                }
                for agent in source.agents() {
                    let report = self.fleet.queues(agent);
                    let alerts = queue_of(report.as_ref(), agent, name).map(|queue| queue.alerts.as_slice());
                    // Whose it is need not be said of the source's own.
                    let whose = if *agent == name.agent {
                        String::new()
                    } else {
                        format!(" at {agent}")
                    };
                    let alerts = alerts.unwrap_or_default().iter();
                    warnings.extend(alerts.map(|alert| format!("{name}{whose}: {alert}")));
                }
            }
            after = page.next;
            if after.is_none() {
                return Ok(());
            }
        }
    }
}

fn count(view: &CatalogView, now: u64, warnings: &mut Vec<String>) -> Result<Counts> {
    let mut counts = Counts::default();
    let mut after = None;
    loop {
        let page = view.agents(after.as_deref(), limits::LIST_PAGE)?;
        counts.agents += page.items.len() as u64;
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    loop {
        let page = view.sources(after.as_deref(), limits::LIST_PAGE)?;
        for source in &page.items {
            counts.sources += 1;
            counts.snapshots += source.snapshots;
            if source.snapshots == 0 {
                counts.unprotected += 1;
                if warnings.len() < WARNINGS_MAX {
                    warnings.push(format!("{} has no snapshot: run `backup run {0}`", source.source));
                }
            }
            let divergent = source.journal.as_ref().map_or(0, |journal| journal.divergent);
            if divergent > 0 && warnings.len() < WARNINGS_MAX {
                warnings.push(format!(
                    "{}: {divergent} files of WAL were handed in with another content than is kept; two servers may archive \
                     into it, see `get journal {0}`",
                    source.source
                ));
            }
        }
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    loop {
        let page = view.jobs(after.as_deref(), limits::LIST_PAGE)?;
        let recent = page.items.iter().take_while(|job| job.created_at + DAY_MS > now);
        let failed = recent
            .clone()
            .filter(|job| matches!(job.state, JobState::Failed | JobState::Interrupted));
        counts.failed_last_day += failed.count() as u64;
        let all_recent = recent.count() == page.items.len();
        after = page.next.filter(|_| all_recent);
        if after.is_none() {
            return Ok(counts);
        }
    }
}
