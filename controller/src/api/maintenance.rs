//! What operators ask of the stores: their state, collection of garbage, verification.

use crate::{catalog::Actor, error::Result};
use futures::stream::BoxStream;
use holdfast_core::RequestId;
use holdfast_proto::v1;

/// The stores and what keeps them in order.
#[async_trait::async_trait]
pub trait Maintenance: Send + Sync {
    /// Every store and its free space.
    async fn stores(&self) -> Vec<v1::StoreStatus>;
    /// Collects garbage, or says what it would do.
    ///
    /// # Errors
    /// `Conflict` while sessions are open or another collection runs.
    async fn gc(&self, actor: Actor, request: Option<RequestId>, options: &v1::GcRequest) -> Result<v1::GcResponse>;
    /// Checks what the stores hold: findings as they are found, then a summary.
    fn verify(&self, read_data: bool) -> BoxStream<'static, Result<v1::VerifyStoresResponse>>;
}
