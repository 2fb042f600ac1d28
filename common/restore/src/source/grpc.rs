//! Blobs from controllers, or, where this host holds the controller's store, from that: nothing is believed before it was
//! opened anyway, and the way through two sockets and their encryption costs as much as decompression.

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
use holdfast_repo::{BlobHeader, blob::BLOB_MAX};
use holdfast_store::{DirStore, Location, Store, read_places};
use std::{
    path::Path,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

/// Blobs of one vault from controllers, over several connections in turn.
pub struct GrpcSource {
    clients: Vec<DataServiceClient<Connection>>,
    next: AtomicUsize,
    vault: VaultId,
    here: Option<DirStore>,
    /// The store on this host could not be read; the controllers give everything from then on.
    not_here: AtomicBool,
}

/// What a controller answers for one id.
enum Answer {
    Blob(Fetched),
    /// It lies there in the store on this host.
    Here(Location),
    Nothing,
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
            here: None,
            not_here: AtomicBool::new(false),
        })
    }

    /// Reads a controller's store itself where it can: on the same host, with the right to. That it is that store is told by
    /// the id in its marker.
    #[must_use]
    pub fn reading(mut self, store: Option<&v1::LocalStore>) -> Self {
        self.here = store.and_then(|told| {
            let found = DirStore::open_read_only(Path::new(&told.directory)).ok()?;
            (found.id().as_bytes()[..] == told.id[..]).then_some(found)
        });
        tracing::debug!(directly = self.here.is_some(), "how blobs are read");
        self
    }

    /// A snapshot's root object, and which store the controller has; believe the root once it is opened.
    ///
    /// # Errors
    /// `NotFound`, `Denied`, `Unavailable` as the controllers say.
    pub async fn root(
        connection: Connection,
        snapshot: SnapshotId,
    ) -> Result<(Bytes, Option<v1::LocalStore>)> {
        let request = v1::GetRootRequest {
            snapshot: Bytes::copy_from_slice(snapshot.as_bytes()),
        };
        let answer = DataServiceClient::new(connection)
            .max_decoding_message_size(MESSAGE_MAX)
            .get_root(request)
            .await
            .map_err(|status| RestoreError::Fetch(status.into()))?
            .into_inner();
        Ok((answer.root, answer.store))
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
        let here = self.here.as_ref();
        let here = here.filter(|_| avoid.is_empty() && !self.not_here.load(Ordering::Relaxed));
        let answers = self.ask(ids, avoid, most, here).await?;
        match here {
            Some(store) => self.complete(store, ids, answers).await,
            None => Ok(answers.into_iter().map(Answer::blob).collect()),
        }
    }

    /// Asks for blobs, or for places in the store `here`; of both, `most` bytes in all.
    async fn ask(
        &self,
        ids: &[ChunkId],
        avoid: &Bytes,
        most: usize,
        here: Option<&DirStore>,
    ) -> Result<Vec<Answer>> {
        let request = v1::FetchRequest {
            vault: Bytes::copy_from_slice(self.vault.as_bytes()),
            ids: concat(ids),
            avoid: avoid.clone(),
            nodes_only_header: false,
            read_here: here.map_or_else(Bytes::new, |store| Bytes::copy_from_slice(store.id().as_bytes())),
        };
        let fetch = |status: tonic::Status| RestoreError::Fetch(Fault::from(status));
        let mut stream = self.client().fetch(request).await.map_err(fetch)?.into_inner();
        let mut answers = Vec::with_capacity(ids.len());
        let mut left = most;
        while let Some(message) = stream.message().await.map_err(fetch)? {
            if message.blobs.len() > ids.len() - answers.len() {
                return Err(RestoreError::Protocol("more blobs than ids"));
            }
            for fetched in message.blobs {
                let (answer, len) = Answer::of(fetched, here.is_some());
                if len > BLOB_MAX {
                    return Err(RestoreError::Protocol("a blob is longer than any can be"));
                }
                let rest = left.checked_sub(len);
                left = rest.unwrap_or(left);
                answers.push(if rest.is_some() { answer } else { Answer::Nothing });
            }
        }
        if answers.len() == ids.len() {
            Ok(answers)
        } else {
            // The stream ended early, as when a controller stops: another one may answer in full.
            Err(RestoreError::Fetch(Fault::new(
                holdfast_core::ErrorKind::Unavailable,
                "the controller's answer ended early",
            )))
        }
    }

    /// Reads what lies here. What is not as it should be, the controllers are asked for: they look for another copy.
    async fn complete(
        &self,
        store: &DirStore,
        ids: &[ChunkId],
        answers: Vec<Answer>,
    ) -> Result<Vec<Option<Fetched>>> {
        let places: Vec<Location> = answers.iter().filter_map(Answer::here).collect();
        let read = match read_places(store, &places).await {
            Ok(read) => read,
            Err(error) => {
                tracing::warn!(%error, "the store on this host cannot be read; the controllers are asked for everything");
                self.not_here.store(true, Ordering::Relaxed);
                vec![None; places.len()]
            }
        };
        let mut read = read.into_iter();
        let mut blobs = Vec::with_capacity(ids.len());
        let (mut again, mut bytes) = (Vec::new(), 0);
        for (answer, id) in answers.into_iter().zip(ids) {
            let Answer::Here(place) = answer else {
                blobs.push(answer.blob());
                continue;
            };
            let blob = read.next().flatten().filter(|blob| is_of(*id, blob));
            if blob.is_none() {
                again.push(blobs.len());
                bytes += place.len as usize;
            }
            blobs.push(blob.map(|blob| (blob, Some(place.pack))));
        }
        let lost: Vec<ChunkId> = again.iter().map(|at| ids[*at]).collect();
        if !lost.is_empty() {
            // What was reckoned with is all that may come.
            let found = self.ask(&lost, &Bytes::new(), bytes, None).await?;
            for (at, answer) in again.into_iter().zip(found) {
                blobs[at] = answer.blob();
            }
        }
        Ok(blobs)
    }
}

impl Answer {
    /// What was answered, and how many bytes that is. Only who asked for places is told some.
    fn of(fetched: v1::FetchedBlob, places: bool) -> (Self, usize) {
        let pack = PackId::try_from(&fetched.pack[..]).ok();
        match pack {
            _ if !fetched.blob.is_empty() => {
                let len = fetched.blob.len();
                (Self::Blob((fetched.blob, pack)), len)
            }
            Some(pack) if places && fetched.len > 0 => {
                let place = Location {
                    pack,
                    offset: fetched.offset,
                    len: fetched.len,
                };
                (Self::Here(place), fetched.len as usize)
            }
            _ => (Self::Nothing, 0),
        }
    }

    fn blob(self) -> Option<Fetched> {
        match self {
            Self::Blob(fetched) => Some(fetched),
            Self::Here(_) | Self::Nothing => None,
        }
    }

    fn here(&self) -> Option<Location> {
        match self {
            Self::Here(place) => Some(*place),
            Self::Blob(_) | Self::Nothing => None,
        }
    }
}

fn concat(ids: &[ChunkId]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(ids.len() * ChunkId::LEN);
    ids.iter().for_each(|id| bytes.put_slice(id.as_bytes()));
    bytes.freeze()
}

/// Whether that is the blob that was asked for, by its header; what is in it is checked when it is opened.
fn is_of(id: ChunkId, blob: &Bytes) -> bool {
    BlobHeader::decode(blob).is_ok_and(|header| header.id == id && header.blob_len() == blob.len())
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
