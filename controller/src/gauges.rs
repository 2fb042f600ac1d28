//! What `/metrics` shows of a controller; read from the catalog whenever it is asked.

use crate::{
    api::fleet::Fleet,
    catalog::{Queries as _, model::JobState},
    error::Result,
    raft::Catalog,
};
use holdfast_net::metrics::Metrics;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::gauge::ConstGauge,
};
use std::sync::Arc;

struct Gauges {
    catalog: Catalog,
    fleet: Arc<dyn Fleet>,
}

impl std::fmt::Debug for Gauges {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Gauges")
    }
}

/// (name, help, value); names get the prefix `holdfast_`.
type Gauge = (&'static str, &'static str, u64);

impl Gauges {
    fn read(&self) -> Result<Vec<Gauge>> {
        let view = self.catalog.view();
        let jobs = view.active_jobs(None)?;
        let running = jobs.iter().filter(|job| job.state == JobState::Running).count();
        let (mut packs, mut bytes) = (0, 0);
        for vault in view.vaults()? {
            let used = view.vault_use(vault.id)?;
            packs += used.packs;
            bytes += used.bytes;
        }
        Ok(vec![
            (
                "catalog_applied_index",
                "Index of the last Raft entry applied",
                view.applied_index(),
            ),
            (
                "catalog_has_leader",
                "1 while this node knows a leader",
                u64::from(self.catalog.leader().is_some()),
            ),
            (
                "agents_connected",
                "Agents whose control stream is open",
                self.fleet.connected() as u64,
            ),
            ("jobs_running", "Jobs that agents carry out now", running as u64),
            (
                "jobs_waiting",
                "Jobs that wait for their agents",
                (jobs.len() - running) as u64,
            ),
            (
                "sessions_open",
                "Backup sessions that may write",
                view.open_sessions()?.len() as u64,
            ),
            ("packs", "Packs registered", packs),
            ("pack_bytes", "Bytes of all registered packs", bytes),
        ])
    }
}

impl Collector for Gauges {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        let gauges = self.read().map_err(|error| {
            tracing::warn!(%error, "metrics cannot be read");
            std::fmt::Error
        })?;
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            let encoder =
                encoder.encode_descriptor(name, help, None, prometheus_client::metrics::MetricType::Gauge)?;
            gauge.encode(encoder)?;
        }
        Ok(())
    }
}

/// Shows this controller's gauges.
pub fn register(metrics: &Metrics, catalog: Catalog, fleet: Arc<dyn Fleet>) {
    metrics.register(|registry| registry.register_collector(Box::new(Gauges { catalog, fleet })));
}
