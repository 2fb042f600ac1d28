//! The stores of this node as operators see them: free room, key objects, garbage, verification.

use crate::{
    api::maintenance::Maintenance,
    catalog::{Actor, Queries as _},
    error::{Error, Result},
    index::ChunkIndex,
    ingest::Ingest,
    raft::Catalog,
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
                vec![v1::StoreStatus { id, state: "unreachable".into(), ..v1::StoreStatus::default() }]
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
        Err(Error::refused(ErrorKind::Conflict, format!("vault {vault} has key objects at the store that the catalog does not know")))
    }

    async fn gc(&self, actor: Actor, request: Option<RequestId>, options: &v1::GcRequest) -> Result<v1::GcResponse> {
        let _ = (actor, request, options);
        Err(Error::refused(ErrorKind::Unsupported, "garbage collection is not served by this build"))
    }

    fn verify(&self, read_data: bool) -> BoxStream<'static, Result<v1::VerifyStoresResponse>> {
        let _ = read_data;
        let error = Error::refused(ErrorKind::Unsupported, "verification is not served by this build");
        Box::pin(futures::stream::iter([Err(error)]))
    }
}

impl Upkeep {
    async fn status(&self) -> Result<v1::StoreStatus> {
        let space = self.store.space().await?;
        let reserve = self.ingest.reserve_of(space.total);
        let view = self.catalog.view();
        let record = view.stores()?.into_iter().find(|record| record.id == self.store.id());
        let (mut packs, mut pack_bytes) = (0, 0);
        for vault in view.vaults()? {
            let used = view.vault_use(vault.id)?;
            packs += used.packs;
            pack_bytes += used.bytes;
        }
        Ok(v1::StoreStatus {
            id: self.store.id().as_bytes().to_vec().into(),
            site: record.as_ref().map(|record| record.site.to_string()).unwrap_or_default(),
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
