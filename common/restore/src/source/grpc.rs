//! Blobs from controllers.

use super::{BlobSource, Fetched};
use crate::{
    RestoreError, Result,
    bounds::{CALLS_IN_FLIGHT, FETCH_ATTEMPTS},
};
use async_trait::async_trait;
use bytes::{BufMut as _, Bytes, BytesMut};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use holdfast_core::{
    ChunkId, PackId, SnapshotId, VaultId,
    limits::{IDS_PER_QUERY, MESSAGE_MAX, RECONNECT_PAUSE},
};
use holdfast_net::{Fault, client::Connection};
use holdfast_proto::v1::{self, data_service_client::DataServiceClient};
use holdfast_repo::blob::BLOB_MAX;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Blobs of one vault from controllers, over several connections in turn.
pub struct GrpcSource {
    clients: Vec<DataServiceClient<Connection>>,
    next: AtomicUsize,
    vault: VaultId,
}

impl GrpcSource {
    /// A source over these connections (`holdfast_net::client::connect_pool`).
    ///
    /// # Errors
    /// `Invalid` without a connection.
    pub fn new(connections: Vec<Connection>, vault: VaultId) -> Result<Self> {
        if connections.is_empty() {
            return Err(RestoreError::Invalid("a source needs at least one connection"));
        }
        let clients = connections
            .into_iter()
            .map(|connection| DataServiceClient::new(connection).max_decoding_message_size(MESSAGE_MAX))
            .collect();
        Ok(Self {
            clients,
            next: AtomicUsize::new(0),
            vault,
        })
    }

    /// A snapshot's root object and what the catalog knows of it; believe the root once it is opened.
    ///
    /// # Errors
    /// `NotFound`, `Denied`, `Unavailable` as the controllers say.
    pub async fn root(connection: Connection, snapshot: SnapshotId) -> Result<(Bytes, Option<v1::Snapshot>)> {
        let request = v1::GetRootRequest {
            snapshot: Bytes::copy_from_slice(snapshot.as_bytes()),
        };
        let answer = DataServiceClient::new(connection)
            .max_decoding_message_size(MESSAGE_MAX)
            .get_root(request)
            .await
            .map_err(|status| RestoreError::Fetch(status.into()))?
            .into_inner();
        Ok((answer.root, answer.snapshot))
    }

    fn client(&self) -> DataServiceClient<Connection> {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        self.clients[turn % self.clients.len()].clone()
    }

    /// One call, tried again for a while when controllers are away.
    async fn call(&self, ids: &[ChunkId], avoid: &Bytes, most: usize) -> Result<Vec<Option<Fetched>>> {
        let mut pause = RECONNECT_PAUSE.0;
        let mut attempt = 1;
        loop {
            match self.call_once(ids, avoid, most).await {
                Err(RestoreError::Fetch(fault)) if fault.kind.is_transient() && attempt < FETCH_ATTEMPTS => {
                    tracing::warn!(attempt, error = %fault, "a fetch failed and is tried again");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(RECONNECT_PAUSE.1);
                    attempt += 1;
                }
                outcome => return outcome,
            }
        }
    }

    async fn call_once(&self, ids: &[ChunkId], avoid: &Bytes, most: usize) -> Result<Vec<Option<Fetched>>> {
        let mut wanted = BytesMut::with_capacity(ids.len() * ChunkId::LEN);
        ids.iter().for_each(|id| wanted.put_slice(id.as_bytes()));
        let request = v1::FetchRequest {
            vault: Bytes::copy_from_slice(self.vault.as_bytes()),
            ids: wanted.freeze(),
            avoid: avoid.clone(),
            nodes_only_header: false,
        };
        let fetch = |status: tonic::Status| RestoreError::Fetch(Fault::from(status));
        let mut answers = self.client().fetch(request).await.map_err(fetch)?.into_inner();
        let mut blobs = Vec::with_capacity(ids.len());
        let mut left = most;
        while let Some(answer) = answers.message().await.map_err(fetch)? {
            if answer.blobs.len() > ids.len() - blobs.len() {
                return Err(RestoreError::Protocol("more blobs than ids"));
            }
            for fetched in answer.blobs {
                if fetched.blob.len() > BLOB_MAX {
                    return Err(RestoreError::Protocol("a blob is longer than any can be"));
                }
                let pack = PackId::try_from(&fetched.pack[..]).ok();
                let rest = left.checked_sub(fetched.blob.len());
                let taken = rest.is_some() && !fetched.blob.is_empty();
                left = rest.unwrap_or(left);
                blobs.push(taken.then_some((fetched.blob, pack)));
            }
        }
        if blobs.len() == ids.len() {
            Ok(blobs)
        } else {
            // The stream ended early, as when a controller stops: another one may answer in full.
            Err(RestoreError::Fetch(Fault::new(
                holdfast_core::ErrorKind::Unavailable,
                "the controller's answer ended early",
            )))
        }
    }
}

#[async_trait]
impl BlobSource for GrpcSource {
    async fn fetch(&self, ids: &[ChunkId]) -> Result<Vec<Option<Fetched>>> {
        if ids.len() <= IDS_PER_QUERY {
            return self.call(ids, &Bytes::new(), usize::MAX).await;
        }
        let pieces: Vec<Vec<ChunkId>> = ids.chunks(IDS_PER_QUERY).map(<[_]>::to_vec).collect();
        stream::iter(
            pieces
                .into_iter()
                .map(|piece| async move { self.call(&piece, &Bytes::new(), usize::MAX).await }),
        )
        .buffered(CALLS_IN_FLIGHT)
        .try_concat()
        .await
    }

    async fn fetch_within(&self, ids: &[ChunkId], bytes: usize) -> Result<Vec<Option<Fetched>>> {
        let mut blobs = Vec::with_capacity(ids.len());
        let mut left = bytes;
        for piece in ids.chunks(IDS_PER_QUERY) {
            let found = self.call(piece, &Bytes::new(), left).await?;
            left -= found.iter().flatten().map(|(blob, _)| blob.len()).sum::<usize>();
            blobs.extend(found);
        }
        Ok(blobs)
    }

    async fn fetch_avoiding(&self, id: ChunkId, bad: &[PackId]) -> Result<Option<Fetched>> {
        let mut avoid = BytesMut::with_capacity(bad.len() * 64);
        for pack in bad {
            avoid.put_slice(id.as_bytes());
            avoid.put_slice(pack.as_bytes());
        }
        Ok(self
            .call(&[id], &avoid.freeze(), usize::MAX)
            .await?
            .pop()
            .flatten())
    }
}
