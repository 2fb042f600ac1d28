//! What operators ask of the stores: their state, collection of garbage, verification.

use crate::{catalog::Actor, error::Result};
use bytes::Bytes;
use futures::stream::BoxStream;
use holdfast_core::{RequestId, VaultId};
use holdfast_proto::v1;

/// The stores and what keeps them in order.
#[async_trait::async_trait]
pub trait Maintenance: Send + Sync {
    /// Every store and its free space.
    async fn stores(&self) -> Vec<v1::StoreStatus>;
    /// Keeps a vault's key object at every store, durably, before the catalog knows it: a key is used
    /// only once it can be recovered.
    ///
    /// # Errors
    /// Those of the stores.
    async fn keep_key_object(&self, vault: VaultId, object: &Bytes) -> Result<()>;
    /// Collects garbage, or says what it would do.
    ///
    /// # Errors
    /// `Conflict` while sessions are open or another collection runs.
    async fn gc(
        &self,
        actor: Actor,
        request: Option<RequestId>,
        options: &v1::GcRequest,
    ) -> Result<v1::GcResponse>;
    /// Checks what the stores hold: findings as they are found, then a summary.
    fn verify(&self, read_data: bool) -> BoxStream<'static, Result<v1::VerifyStoresResponse>>;
}
