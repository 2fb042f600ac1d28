//! Where blobs come from.

mod grpc;
mod store;

pub use grpc::GrpcSource;
pub use store::StoreSource;

use crate::Result;
use async_trait::async_trait;
use bytes::Bytes;
use holdfast_core::{ChunkId, PackId};

/// A blob as it was read, not checked yet, and the pack it was read from.
pub type Fetched = (Bytes, Option<PackId>);

/// Gives blobs of one vault by id. Nothing that it gives is believed before it was opened.
#[async_trait]
pub trait BlobSource: Send + Sync {
    /// One answer for each id, in their order; `None` for what is not stored.
    async fn fetch(&self, ids: &[ChunkId]) -> Result<Vec<Option<Fetched>>>;

    /// The same, but what goes beyond so many bytes of blobs together is left out as if it were not stored.
    /// References do not tell how long the blobs behind them are, so this is what bounds the memory.
    async fn fetch_within(&self, ids: &[ChunkId], bytes: usize) -> Result<Vec<Option<Fetched>>>;

    /// Another copy of a blob whose copies in these packs are bad; `None` when there is none.
    async fn fetch_avoiding(&self, id: ChunkId, bad: &[PackId]) -> Result<Option<Fetched>>;
}
