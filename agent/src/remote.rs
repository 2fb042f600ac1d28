//! What the engine needs from the other side, and that side over gRPC.

use crate::{
    error::{AgentError, Result},
    limits::JobLimits,
};
use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use holdfast_core::{ChunkId, PackId, VaultId, limits};
use holdfast_net::{Fault, client::Connection};
use holdfast_proto::v1::{
    FetchRequest, QueryRequest, SessionRef, UploadFrame, UploadHeader,
    data_service_client::DataServiceClient, upload_frame,
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::runtime::Handle;

/// The store behind a session, as the engine's threads call it: plain blocking calls.
pub trait Remote: Send + Sync {
    /// For each id, whether the controllers hold it. A hint.
    ///
    /// # Errors
    /// When no answer can be had.
    fn known(&self, ids: &[ChunkId]) -> Result<Vec<bool>>;
    /// Blobs by id, as stored; `None` for what is not there.
    ///
    /// # Errors
    /// When no answer can be had.
    fn fetch(&self, ids: &[ChunkId]) -> Result<Vec<Option<Bytes>>>;
    /// Takes a finished pack; returns once it is durable and registered.
    ///
    /// # Errors
    /// When the pack was refused or could not be sent after the bounded number of tries.
    fn upload(&self, pack: PackId, bytes: Bytes) -> Result<()>;
}

/// Times that a call is tried when the controllers are away; with the pauses below about a minute.
const TRIES: u32 = 9;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(20);
/// How long a call goes on before it is seen that the run was cancelled.
const CANCEL_LOOK: Duration = Duration::from_millis(100);

/// A session at the controllers.
pub struct GrpcRemote {
    handle: Handle,
    connections: Vec<Connection>,
    next: AtomicUsize,
    session: SessionRef,
    vault: VaultId,
    /// Set when nothing was stored yet: every query would say no.
    nothing_known: bool,
    limits: Arc<JobLimits>,
    cancel: Arc<AtomicBool>,
}

impl GrpcRemote {
    /// Calls go round over `connections`, from threads outside the runtime of `handle`. Packs are sent as fast as
    /// `limits` says; `cancel` ends every call.
    #[must_use]
    pub fn new(
        handle: Handle,
        connections: Vec<Connection>,
        session: SessionRef,
        vault: VaultId,
        nothing_known: bool,
        limits: Arc<JobLimits>,
        cancel: Arc<AtomicBool>,
    ) -> Self {
        Self {
            handle,
            connections,
            next: AtomicUsize::new(0),
            session,
            vault,
            nothing_known,
            limits,
            cancel,
        }
    }

    fn client(&self) -> DataServiceClient<Connection> {
        let at = self.next.fetch_add(1, Ordering::Relaxed) % self.connections.len();
        data_client(self.connections[at].clone())
    }

    /// Runs a call, again after a pause while the controllers are away.
    fn retry<T>(
        &self,
        mut call: impl AsyncFnMut(DataServiceClient<Connection>) -> std::result::Result<T, Fault>,
    ) -> Result<T> {
        let span = tracing::Span::current();
        let tries = tracing::Instrument::instrument(
            async {
                let mut pause = FIRST_PAUSE;
                for left in (0..TRIES).rev() {
                    match call(self.client()).await {
                        Ok(answer) => return Ok(answer),
                        Err(fault) if fault.kind.is_transient() && left > 0 => {
                            tracing::info!(error = %fault, "controller away, trying again");
                            tokio::time::sleep(pause).await;
                            pause = (pause * 2).min(LONGEST_PAUSE);
                        }
                        Err(fault) => return Err(fault.into()),
                    }
                }
                Err(AgentError::Internal("no try was made".into()))
            },
            span,
        );
        self.handle.block_on(async {
            tokio::select! {
                outcome = tries => outcome,
                () = self.cancelled() => Err(AgentError::Interrupted(
                    "the run was cancelled or its lease ended".into(),
                )),
            }
        })
    }

    async fn cancelled(&self) {
        while !self.cancel.load(Ordering::Relaxed) {
            tokio::time::sleep(CANCEL_LOOK).await;
        }
    }
}

/// A data client with our message bounds.
#[must_use]
pub fn data_client(connection: Connection) -> DataServiceClient<Connection> {
    DataServiceClient::new(connection)
        .max_decoding_message_size(limits::MESSAGE_MAX)
        .max_encoding_message_size(limits::MESSAGE_MAX)
}

fn concat(ids: &[ChunkId]) -> Bytes {
    ids.iter().flat_map(|id| id.0).collect::<Vec<u8>>().into()
}

impl Remote for GrpcRemote {
    fn known(&self, ids: &[ChunkId]) -> Result<Vec<bool>> {
        if self.nothing_known {
            return Ok(vec![false; ids.len()]);
        }
        let mut all = Vec::with_capacity(ids.len());
        for ids in ids.chunks(limits::IDS_PER_QUERY) {
            let request = QueryRequest {
                session: Some(self.session.clone()),
                ids: concat(ids),
            };
            let answer =
                self.retry(async |mut client| Ok(client.query(request.clone()).await?.into_inner()))?;
            if answer.known.len() < ids.len().div_ceil(8) {
                return Err(AgentError::Internal(
                    "a query's answer is shorter than its question".into(),
                ));
            }
            all.extend((0..ids.len()).map(|i| answer.known[i / 8] >> (i % 8) & 1 == 1));
        }
        Ok(all)
    }

    fn fetch(&self, ids: &[ChunkId]) -> Result<Vec<Option<Bytes>>> {
        let mut all = Vec::with_capacity(ids.len());
        for ids in ids.chunks(limits::IDS_PER_QUERY) {
            let request = FetchRequest {
                vault: self.vault.as_bytes().to_vec().into(),
                ids: concat(ids),
                ..FetchRequest::default()
            };
            let blobs = self.retry(async |mut client| {
                let mut stream = client.fetch(request.clone()).await?.into_inner();
                let mut blobs = Vec::with_capacity(ids.len());
                while let Some(message) = stream.message().await? {
                    blobs.extend(
                        message
                            .blobs
                            .into_iter()
                            .map(|b| (!b.blob.is_empty()).then_some(b.blob)),
                    );
                    if blobs.len() > ids.len() {
                        break;
                    }
                }
                Ok(blobs)
            })?;
            if blobs.len() != ids.len() {
                return Err(AgentError::Internal(
                    "a fetch brought another number of blobs".into(),
                ));
            }
            all.extend(blobs);
        }
        Ok(all)
    }

    fn upload(&self, pack: PackId, bytes: Bytes) -> Result<()> {
        self.retry(async |mut client| {
            let header = UploadHeader {
                session: Some(self.session.clone()),
                pack: pack.as_bytes().to_vec().into(),
                len: bytes.len() as u64,
            };
            let header = UploadFrame {
                body: Some(upload_frame::Body::Header(header)),
            };
            let data = paced(bytes.clone(), Arc::clone(&self.limits));
            let frames = futures::stream::iter([header]).chain(data);
            client.upload_pack(frames).await?;
            Ok(())
        })
    }
}

/// A pack's bytes in frames, each once the limit lets it go.
fn paced(bytes: Bytes, pace: Arc<JobLimits>) -> impl Stream<Item = UploadFrame> + Send {
    futures::stream::unfold((bytes, pace), async |(mut bytes, pace)| {
        if bytes.is_empty() {
            return None;
        }
        let len = pace.send.piece(limits::FRAME_LEN).min(bytes.len());
        let data = bytes.split_to(len);
        pace.send.paid(len).await;
        let frame = UploadFrame {
            body: Some(upload_frame::Body::Data(data)),
        };
        Some((frame, (bytes, pace)))
    })
}
