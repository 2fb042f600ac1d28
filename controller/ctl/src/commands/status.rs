//! `status`: the cluster at a glance.

use crate::{
    cluster::Cluster,
    error::Result,
    output::{self, Format, bytes, time},
    rows::{id, optional_id},
};
use holdfast_core::{ClusterId, StoreId};
use holdfast_net::Fault;
use holdfast_proto::v1;
use serde::Serialize;

/// The cluster's state in its stable JSON form.
#[derive(Debug, Serialize)]
pub(super) struct Status {
    cluster: ClusterId,
    name: String,
    version: String,
    now: Option<String>,
    #[serde(skip)]
    pub(super) now_millis: u64,
    applied_index: u64,
    catalog_hash: String,
    pub(super) leader: u64,
    node: u64,
    pub(super) stores: Vec<Store>,
    agents: u64,
    pub(super) agents_connected: u64,
    sources: u64,
    pub(super) sources_unprotected: u64,
    snapshots: u64,
    jobs_running: u64,
    pub(super) jobs_failed_last_day: u64,
    pub(super) warnings: Vec<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct Store {
    id: Option<StoreId>,
    pub(super) site: String,
    pub(super) location: String,
    pub(super) state: String,
    packs: u64,
    pack_bytes: u64,
    pub(super) free_bytes: u64,
    total_bytes: u64,
    reserve_bytes: u64,
}

impl TryFrom<v1::StatusResponse> for Status {
    type Error = Fault;
    fn try_from(wire: v1::StatusResponse) -> Result<Self> {
        let v1::StatusResponse {
            cluster,
            name,
            version,
            now,
            applied_index,
            catalog_hash,
            leader,
            node,
            stores,
            agents,
            agents_connected,
            sources,
            sources_unprotected,
            snapshots,
            jobs_running,
            jobs_failed_last_day,
            warnings,
        } = wire;
        Ok(Self {
            cluster: id(&cluster)?,
            name,
            version,
            now: time(now),
            now_millis: now,
            applied_index,
            catalog_hash,
            leader,
            node,
            stores: stores.into_iter().map(Store::try_from).collect::<Result<_>>()?,
            agents,
            agents_connected,
            sources,
            sources_unprotected,
            snapshots,
            jobs_running,
            jobs_failed_last_day,
            warnings,
        })
    }
}

impl TryFrom<v1::StoreStatus> for Store {
    type Error = Fault;
    fn try_from(wire: v1::StoreStatus) -> Result<Self> {
        let v1::StoreStatus {
            id: raw,
            site,
            location,
            state,
            packs,
            pack_bytes,
            free_bytes,
            total_bytes,
            reserve_bytes,
        } = wire;
        let id = optional_id(&raw)?;
        Ok(Self {
            id,
            site,
            location,
            state,
            packs,
            pack_bytes,
            free_bytes,
            total_bytes,
            reserve_bytes,
        })
    }
}

/// Asks the cluster.
pub(super) async fn ask(cluster: &Cluster) -> Result<Status> {
    cluster
        .control()
        .status(v1::StatusRequest {})
        .await?
        .into_inner()
        .try_into()
}

pub(super) async fn run(cluster: &Cluster, format: Format) -> Result<()> {
    let status = ask(cluster).await?;
    output::print(&match format {
        Format::Json | Format::Yaml => output::value(&status, format)?,
        Format::Name => format!("{}\n", status.name),
        Format::Table | Format::Wide => text(&status),
    })
}

fn text(s: &Status) -> String {
    let mut text = format!(
        "cluster    {} ({})\n\
         controller version {}, node {}, leader {}, catalog index {}\n\
         agents     {} of {} connected\n\
         sources    {}, of which {} have no snapshot yet\n\
         snapshots  {}\n\
         jobs       {} running, {} failed within a day\n",
        s.name,
        s.cluster,
        s.version,
        s.node,
        s.leader,
        s.applied_index,
        s.agents_connected,
        s.agents,
        s.sources,
        s.sources_unprotected,
        s.snapshots,
        s.jobs_running,
        s.jobs_failed_last_day,
    );
    for store in &s.stores {
        text.push_str(&format!(
            "store      {} {}: {}; {} packs, {}; {} of {} free\n",
            store.site,
            store.location,
            store.state,
            store.packs,
            bytes(store.pack_bytes),
            bytes(store.free_bytes),
            bytes(store.total_bytes),
        ));
    }
    for warning in &s.warnings {
        text.push_str(&format!("warning    {warning}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_names_stores_and_warnings() {
        let wire = v1::StatusResponse {
            cluster: vec![1; 16].into(),
            name: "prod".into(),
            stores: vec![v1::StoreStatus {
                site: "primary".into(),
                state: "ok".into(),
                ..Default::default()
            }],
            warnings: vec!["clock".into()],
            ..v1::StatusResponse::default()
        };
        let status = Status::try_from(wire).unwrap();
        let text = text(&status);
        assert!(
            text.contains("prod") && text.contains("primary") && text.contains("clock"),
            "{text}"
        );
        let json = output::value(&status, Format::Json).unwrap();
        assert!(json.contains("\"sources_unprotected\": 0"), "{json}");
    }
}
