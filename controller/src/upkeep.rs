//! The stores of this node as operators see them: free room, key objects, garbage, verification.

use crate::{
    api::maintenance::Maintenance,
    catalog::{Actor, Queries as _},
    error::{Error, Result},
    gc::{Gc, GcOptions},
    index::ChunkIndex,
    ingest::Ingest,
    raft::Catalog,
    verify::Verify,
};
use bytes::Bytes;
use futures::stream::BoxStream;
use holdfast_core::{ErrorKind, RequestId, VaultId, limits};
use holdfast_proto::v1;
use holdfast_store::{Finished, ObjectName, Store};
use std::sync::Arc;

/// Names tried for a key object before something is wrong.
const KEY_NAMES_TRIED: u32 = 64;

/// What upkeep works on.
pub struct Upkeep {
    /// The catalog.
    pub catalog: Catalog,
    /// The store that is served.
    pub store: Arc<dyn Store>,
    /// Its index.
    pub index: Arc<ChunkIndex>,
    /// Collects garbage.
    pub gc: Gc,
    /// Knows the reserve.
    pub ingest: Arc<Ingest>,
}

#[async_trait::async_trait]
impl Maintenance for Upkeep {
    async fn stores(&self) -> Vec<v1::StoreStatus> {
        match self.status().await {
            Ok(status) => vec![status],
            Err(error) => {
                tracing::warn!(%error, "the store's state cannot be read");
                let id = self.store.id().as_bytes().to_vec().into();
                vec![v1::StoreStatus {
                    id,
                    state: "unreachable".into(),
                    ..v1::StoreStatus::default()
                }]
            }
        }
    }

    async fn keep_key_object(&self, vault: VaultId, object: &Bytes) -> Result<()> {
        let view = self.catalog.read().await?;
        let first = u32::try_from(view.key_objects(vault)?.len()).unwrap_or(u32::MAX);
        for number in first..first.saturating_add(KEY_NAMES_TRIED) {
            let name = ObjectName::key(&vault, number);
            if self.store.put(&name, object.clone()).await? == Finished::Created
                || self.store.get(&name, limits::KEY_OBJECT_MAX).await? == *object
            {
                return Ok(());
            }
        }
        Err(Error::refused(
            ErrorKind::Conflict,
            format!("vault {vault} has key objects at the store that the catalog does not know"),
        ))
    }

    /// A retry runs once more, which finds nothing left to do: the request's id is not needed.
    async fn gc(
        &self,
        actor: Actor,
        _request: Option<RequestId>,
        options: &v1::GcRequest,
    ) -> Result<v1::GcResponse> {
        let options = GcOptions {
            dry_run: options.dry_run,
            ignore_undo: options.ignore_undo_period,
        };
        let report = self.gc.run(actor, options).await?;
        Ok(v1::GcResponse {
            snapshots_forgotten: report.snapshots_forgotten,
            packs_kept: report.packs_kept,
            packs_deleted: report.packs_deleted,
            packs_rewritten: report.packs_rewritten,
            bytes_freed: report.bytes_freed,
            chunks_live: report.chunks_live,
            chunks_dead: report.chunks_dead,
        })
    }

    fn verify(&self, read_data: bool) -> BoxStream<'static, Result<v1::VerifyStoresResponse>> {
        let verify = Verify {
            catalog: self.catalog.clone(),
            store: Arc::clone(&self.store),
            index: Arc::clone(&self.index),
        };
        verify.run(read_data)
    }
}

impl Upkeep {
    async fn status(&self) -> Result<v1::StoreStatus> {
        let space = self.store.space().await?;
        let reserve = self.ingest.reserve_of(space.total);
        let view = self.catalog.view();
        let record = view
            .stores()?
            .into_iter()
            .find(|record| record.id == self.store.id());
        let (mut packs, mut pack_bytes) = (0, 0);
        for vault in view.vaults()? {
            let used = view.vault_use(vault.id)?;
            packs += used.packs;
            pack_bytes += used.bytes;
        }
        Ok(v1::StoreStatus {
            id: self.store.id().as_bytes().to_vec().into(),
            site: record
                .as_ref()
                .map(|record| record.site.to_string())
                .unwrap_or_default(),
            location: record.map(|record| record.path).unwrap_or_default(),
            state: if space.free < reserve { "reserve" } else { "ok" }.into(),
            packs,
            pack_bytes,
            free_bytes: space.free,
            total_bytes: space.total,
            reserve_bytes: reserve,
        })
    }
}
