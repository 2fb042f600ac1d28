//! Lists of what the catalog holds, a page at a time.

use super::Control;
use crate::{
    api::wire::{id, invalid, source_ref, wire_agent, wire_audit, wire_job, wire_snapshot, wire_source},
    catalog::{
        Actor, Page, Queries as _,
        model::{Snapshot, SnapshotState},
    },
    data::{journal::file_to_wire, tails},
    error::{Error, Result},
};
use holdfast_core::{ErrorKind, SnapshotId, limits};
use holdfast_proto::v1;

/// A page token, as the catalog gave it.
fn after_of(token: &str) -> Result<Option<Vec<u8>>> {
    if token.is_empty() {
        return Ok(None);
    }
    hex::decode(token)
        .map(Some)
        .map_err(|_| invalid("`after` is not a page token of an earlier answer"))
}

fn next_of<T>(page: &Page<T>) -> String {
    page.next.as_deref().map(hex::encode).unwrap_or_default()
}

fn limit_of(limit: u32) -> usize {
    match limit as usize {
        0 => limits::LIST_PAGE,
        limit => limit.min(limits::LIST_PAGE),
    }
}

impl Control {
    pub(super) async fn list_vaults(
        &self,
        _: Actor,
        _: v1::ListVaultsRequest,
    ) -> Result<v1::ListVaultsResponse> {
        let view = self.catalog.read().await?;
        let mut vaults = Vec::new();
        for vault in view.vaults()? {
            let key_object = view.key_objects(vault.id)?.pop().unwrap_or_default();
            vaults.push(v1::Vault {
                id: vault.id.as_bytes().to_vec().into(),
                name: vault.name.to_string(),
                key_object: key_object.into(),
            });
        }
        Ok(v1::ListVaultsResponse { vaults })
    }

    pub(super) async fn list_agents(
        &self,
        _: Actor,
        request: v1::ListRequest,
    ) -> Result<v1::ListAgentsResponse> {
        let view = self.catalog.read().await?;
        let page = view.agents(after_of(&request.after)?.as_deref(), limit_of(request.limit))?;
        let next = next_of(&page);
        let mut agents = Vec::with_capacity(page.items.len());
        for agent in page.items {
            let vault = view
                .vault(agent.vault)?
                .map_or_else(String::new, |vault| vault.name.to_string());
            let connected = self.fleet.is_connected(&agent.name);
            agents.push(wire_agent(
                &agent,
                vault,
                connected,
                self.fleet.last_seen(&agent.name),
            ));
        }
        Ok(v1::ListAgentsResponse { agents, next })
    }

    pub(super) async fn list_sources(
        &self,
        _: Actor,
        request: v1::ListRequest,
    ) -> Result<v1::ListSourcesResponse> {
        let view = self.catalog.read().await?;
        let page = view.sources(after_of(&request.after)?.as_deref(), limit_of(request.limit))?;
        let next = next_of(&page);
        Ok(v1::ListSourcesResponse {
            sources: page.items.iter().map(wire_source).collect(),
            next,
        })
    }

    pub(super) async fn list_snapshots(
        &self,
        _: Actor,
        request: v1::ListSnapshotsRequest,
    ) -> Result<v1::ListSnapshotsResponse> {
        let v1::ListSnapshotsRequest {
            source,
            include_deleted,
            after,
            limit,
            id: wanted,
        } = request;
        let view = self.catalog.read().await?;
        if !wanted.is_empty() {
            let wanted: SnapshotId = id(&wanted)?;
            let found = view.snapshot(wanted)?.ok_or_else(|| {
                Error::refused(
                    ErrorKind::NotFound,
                    format!("there is no snapshot {wanted}; see `get snapshots`"),
                )
            })?;
            return Ok(v1::ListSnapshotsResponse {
                snapshots: vec![wire_snapshot(&found)],
                next: String::new(),
            });
        }
        let (after, limit) = (after_of(&after)?, limit_of(limit));
        let page = match &source {
            Some(source) => view.snapshots_of(&source_ref(Some(source))?, after.as_deref(), limit)?,
            None => view.snapshots(after.as_deref(), limit)?,
        };
        let next = next_of(&page);
        let is_shown = |snapshot: &&Snapshot| include_deleted || snapshot.state == SnapshotState::Visible;
        let snapshots = page.items.iter().filter(is_shown).map(wire_snapshot).collect();
        Ok(v1::ListSnapshotsResponse { snapshots, next })
    }

    pub(super) async fn list_journal(
        &self,
        _: Actor,
        request: v1::ListJournalRequest,
    ) -> Result<v1::ListJournalResponse> {
        let source = source_ref(request.source.as_ref())?;
        let view = self.catalog.read().await?;
        if view.source(&source)?.is_none() {
            return Err(Error::refused(
                ErrorKind::NotFound,
                format!("there is no source {source}; see `get sources`"),
            ));
        }
        let (after, limit) = (after_of(&request.after)?, limit_of(request.limit));
        let tails = match after {
            None => tails::ask(&view, &*self.fleet, &source, None).await?,
            Some(_) => Vec::new(),
        };
        // Of a moment after the agents answered: what they say is gone from there has come here.
        let view = self.catalog.read().await?;
        let page = view.journal_files(&source, after.as_deref(), limit)?;
        let next = next_of(&page);
        Ok(v1::ListJournalResponse {
            files: page.items.into_iter().map(file_to_wire).collect(),
            next,
            tails,
        })
    }

    pub(super) async fn list_jobs(&self, _: Actor, request: v1::ListRequest) -> Result<v1::ListJobsResponse> {
        let view = self.catalog.read().await?;
        let page = view.jobs(after_of(&request.after)?.as_deref(), limit_of(request.limit))?;
        let next = next_of(&page);
        Ok(v1::ListJobsResponse {
            jobs: page
                .items
                .iter()
                .map(|job| wire_job(job, self.fleet.progress(job.id).as_ref()))
                .collect(),
            next,
        })
    }

    pub(super) async fn list_audit(
        &self,
        _: Actor,
        request: v1::ListRequest,
    ) -> Result<v1::ListAuditResponse> {
        let view = self.catalog.read().await?;
        let page = view.audit(after_of(&request.after)?.as_deref(), limit_of(request.limit))?;
        let next = next_of(&page);
        Ok(v1::ListAuditResponse {
            records: page.items.iter().map(wire_audit).collect(),
            next,
        })
    }

    pub(super) async fn list_members(&self, _: Actor, _: v1::ListRequest) -> Result<v1::ListMembersResponse> {
        let leader = self.catalog.leader().map(|(node, _)| node);
        let metrics = self.catalog.raft().metrics().borrow().clone();
        let members = metrics.membership_config.nodes().map(|(node, basic)| v1::Member {
            node: *node,
            address: basic.addr.clone(),
            role: if leader == Some(*node) {
                "leader"
            } else {
                "follower"
            }
            .into(),
            // Only our own is known until controllers speak to each other.
            version: if *node == self.node.0 {
                env!("CARGO_PKG_VERSION").into()
            } else {
                String::new()
            },
        });
        Ok(v1::ListMembersResponse {
            members: members.collect(),
        })
    }
}
