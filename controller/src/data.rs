//! The data path: sessions, queries, uploads, commits and reads, as agents and admins see them.
//!
//! **Architecture invariants.** Every writing call shows its session and fence, and both are looked up in the
//! catalog. Answers to queries are hints; the closure check before a commit is what snapshots rely on. An agent
//! reads its own vault only.

mod access;
pub mod closure;
mod commit;
mod fetch;
#[cfg(test)]
pub(crate) mod fixture;
pub(crate) mod journal;
pub mod links;
mod roots;
pub(crate) mod tails;
mod wire;

pub(crate) use roots::{page_object, root_object};

use crate::{
    api::fleet::Fleet,
    catalog::{Actor, Command, Queries, Reply},
    error::{Error, Result},
    index::ChunkIndex,
    ingest::{Announced, Ingest},
    raft::Catalog,
    session::Leases,
};
use bytes::Bytes;
use futures::{Stream, StreamExt};
use holdfast_core::{ErrorKind, PackId, SessionId, SnapshotId, limits};
use holdfast_net::{
    status::{from_status, to_status},
    trace::current_traceparent,
};
use holdfast_proto::v1::{
    self as pb,
    data_service_server::{DataService, DataServiceServer},
};
use holdfast_store::Store;
use parking_lot::Mutex;
use std::{
    collections::{HashMap, HashSet},
    pin::Pin,
    sync::Arc,
    time::Duration,
};
use tonic::{Request, Response, Status, Streaming};
use tracing::Instrument;

/// Uploads of one session at a time: as many as agents send, and as many that they gave up but that still run here.
const UPLOADS_PER_SESSION: usize = 2 * limits::UPLOADS_IN_FLIGHT;

/// What the data service works on.
pub struct DataParts {
    /// The catalog.
    pub catalog: Catalog,
    /// Leases of sessions.
    pub leases: Arc<Leases>,
    /// The store that is served.
    pub store: Arc<dyn Store>,
    /// The chunk index of that store.
    pub index: Arc<ChunkIndex>,
    /// Takes packs in.
    pub ingest: Arc<Ingest>,
    /// The agents: their spools may hold what journals lack.
    pub fleet: Arc<dyn Fleet>,
}

/// The data service. Cheap to clone.
#[derive(Clone)]
pub struct Data {
    parts: Arc<DataParts>,
    uploads: Arc<Mutex<HashMap<SessionId, usize>>>,
    commits: Arc<Mutex<HashSet<SessionId>>>,
}

impl Data {
    /// A service over these parts.
    #[must_use]
    pub fn new(parts: DataParts) -> Self {
        Self {
            parts: Arc::new(parts),
            uploads: Arc::default(),
            commits: Arc::default(),
        }
    }

    /// The service for a gRPC server, with its message limits.
    #[must_use]
    pub fn into_server(self) -> DataServiceServer<Self> {
        DataServiceServer::new(self)
            .max_decoding_message_size(limits::MESSAGE_MAX)
            .max_encoding_message_size(limits::MESSAGE_MAX)
    }

    async fn open(
        &self,
        peer: &access::Agent,
        request: pb::OpenSessionRequest,
    ) -> Result<pb::OpenSessionResponse> {
        let source = wire::source(request.source)?;
        let command = Command::OpenSession {
            session: SessionId::generate(),
            snapshot: SnapshotId::generate(),
            source,
            agent: peer.name.clone(),
            incarnation: peer.incarnation,
            job: wire::id(&request.job)?,
            attempt: request.attempt,
            // Zero is no identifier: agents say so of what is no cluster.
            system_id: (request.system_id != 0).then_some(request.system_id),
        };
        let catalog = &self.parts.catalog;
        let (_, reply) = catalog
            .propose_traced(peer.actor(), None, current_traceparent(), command)
            .await?;
        let Reply::Session {
            session,
            parent,
            vault_empty,
        } = reply
        else {
            return Err(Error::Internal(format!(
                "opening a session was answered by {reply:?}"
            )));
        };
        self.parts.leases.grant(session.id);
        let parent_root = match &parent {
            Some(parent) => match root_object(&*self.parts.store, parent).await {
                Ok(root) => root,
                // The agent then reads everything anew, which is also how such damage heals.
                Err(error) => {
                    tracing::error!(snapshot = %parent.id, %error, "the root of a parent snapshot cannot be read");
                    Bytes::new()
                }
            },
            None => Bytes::new(),
        };
        Ok(pb::OpenSessionResponse {
            session: Some(pb::SessionRef {
                session: Bytes::copy_from_slice(session.id.as_bytes()),
                fence: session.fence,
            }),
            snapshot: Bytes::copy_from_slice(session.snapshot.as_bytes()),
            sequence: session.sequence,
            parent_snapshot: parent.map_or_else(Bytes::new, |p| Bytes::copy_from_slice(p.id.as_bytes())),
            parent_root,
            lease_ttl_ms: millis(limits::LEASE_TTL),
            vault_empty,
            now: catalog.now(),
        })
    }

    async fn known(&self, peer: &access::Agent, request: pb::QueryRequest) -> Result<pb::QueryResponse> {
        let session = self.open_session(peer, request.session.as_ref()).await?;
        let ids = wire::chunk_ids(&request.ids)?;
        let known = self
            .parts
            .index
            .blocking(move |index| {
                // Sorted look-ups find their neighbours in the cache.
                let mut order: Vec<usize> = (0..ids.len()).collect();
                order.sort_unstable_by_key(|at| ids[*at]);
                let sorted: Vec<_> = order.iter().map(|at| ids[*at]).collect();
                let mut bits = vec![0_u8; ids.len().div_ceil(8)];
                for (at, known) in order.into_iter().zip(index.contains(session.vault, &sorted)?) {
                    bits[at / 8] |= u8::from(known) << (at % 8);
                }
                Ok(bits)
            })
            .await?;
        Ok(pb::QueryResponse { known: known.into() })
    }

    async fn upload(
        &self,
        peer: access::Agent,
        mut frames: Streaming<pb::UploadFrame>,
    ) -> Result<pb::UploadResponse> {
        let missing = || {
            Error::refused(
                ErrorKind::Invalid,
                "the first frame of an upload must be its header",
            )
        };
        let first = frames
            .message()
            .await
            .map_err(broken_stream)?
            .ok_or_else(missing)?;
        let Some(pb::upload_frame::Body::Header(header)) = first.body else {
            return Err(missing());
        };
        let session = self.open_session(&peer, header.session.as_ref()).await?;
        let announced = Announced {
            pack: wire::id::<PackId>(&header.pack)?,
            len: header.len,
        };
        let place = UploadPlace::take(&self.uploads, session.id)?;
        let ingest = Arc::clone(&self.parts.ingest);
        let frames = frames.map(|frame| match frame.map_err(broken_stream)?.body {
            Some(pb::upload_frame::Body::Data(data)) => Ok(data),
            _ => Err(Error::refused(
                ErrorKind::Invalid,
                "a frame of an upload holds no data",
            )),
        });
        // In a task of its own: a caller that goes away after its last byte must not leave a pack on disk
        // that nobody registers.
        let task = tokio::spawn(
            async move {
                let _place = place;
                ingest.receive(&session, announced, frames).await
            }
            .in_current_span(),
        );
        let already_there = task
            .await
            .map_err(|_| Error::Internal("an upload ended abnormally".into()))??;
        Ok(pb::UploadResponse { already_there })
    }

    async fn close(&self, peer: &access::Agent, request: pb::CloseSessionRequest) -> Result<()> {
        let session = self.open_session(peer, request.session.as_ref()).await?;
        let command = Command::CloseSession {
            session: session.id,
            fence: session.fence,
            reason: request.reason,
        };
        self.parts.catalog.propose(peer.actor(), None, command).await?;
        Ok(())
    }

    async fn root(
        &self,
        reader: &access::Reader,
        request: pb::GetRootRequest,
    ) -> Result<pb::GetRootResponse> {
        let id: SnapshotId = wire::id(&request.snapshot)?;
        if let Some(root) = self.page_root(reader, id).await? {
            let store = self.local_store(reader);
            return Ok(pb::GetRootResponse {
                root,
                snapshot: None,
                store,
            });
        }
        let view = self.parts.catalog.read().await?;
        let unknown = || Error::refused(ErrorKind::NotFound, format!("there is no snapshot {id}"));
        let snapshot = view.snapshot(id)?.ok_or_else(unknown)?;
        // To an agent, another vault's snapshot is one that is not there.
        if !reader.may_read(&view, snapshot.vault)? {
            return Err(unknown());
        }
        let root = root_object(&*self.parts.store, &snapshot).await?;
        Ok(pb::GetRootResponse {
            root,
            snapshot: Some(wire::snapshot(snapshot)),
            store: self.local_store(reader),
        })
    }

    /// Where an admin may find the store, if its host is this one.
    fn local_store(&self, reader: &access::Reader) -> Option<pb::LocalStore> {
        let directory = self.parts.store.directory()?.to_str()?;
        reader.is_admin().then(|| pb::LocalStore {
            id: Bytes::copy_from_slice(self.parts.store.id().as_bytes()),
            directory: directory.to_owned(),
        })
    }
}

/// The stream of a client broke or was cut.
fn broken_stream(status: Status) -> Error {
    let fault = from_status(&status);
    Error::refused(fault.kind, format!("the upload was broken off: {fault}"))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// One of a session's uploads.
struct UploadPlace {
    uploads: Arc<Mutex<HashMap<SessionId, usize>>>,
    session: SessionId,
}

impl UploadPlace {
    fn take(uploads: &Arc<Mutex<HashMap<SessionId, usize>>>, session: SessionId) -> Result<Self> {
        let mut counts = uploads.lock();
        let count = counts.entry(session).or_insert(0);
        if *count >= UPLOADS_PER_SESSION {
            return Err(Error::Unavailable(format!(
                "{UPLOADS_PER_SESSION} packs of this session are under way"
            )));
        }
        *count += 1;
        Ok(Self {
            uploads: Arc::clone(uploads),
            session,
        })
    }
}

impl Drop for UploadPlace {
    fn drop(&mut self) {
        let mut counts = self.uploads.lock();
        if let Some(count) = counts.get_mut(&self.session) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.session);
            }
        }
    }
}

fn answer<T>(result: Result<T>) -> Result<Response<T>, Status> {
    result.map(Response::new).map_err(|error| {
        tracing::debug!(%error, "a data call is refused");
        to_status(&error)
    })
}

#[tonic::async_trait]
impl DataService for Data {
    type FetchStream = Pin<Box<dyn Stream<Item = Result<pb::FetchResponse, Status>> + Send>>;

    async fn open_session(
        &self,
        request: Request<pb::OpenSessionRequest>,
    ) -> Result<Response<pb::OpenSessionResponse>, Status> {
        let peer = access::agent(&request)?;
        answer(self.open(&peer, request.into_inner()).await)
    }

    async fn renew_lease(
        &self,
        request: Request<pb::RenewLeaseRequest>,
    ) -> Result<Response<pb::RenewLeaseResponse>, Status> {
        let peer = access::agent(&request)?;
        let renewed = async {
            let session = self
                .open_session(&peer, request.get_ref().session.as_ref())
                .await?;
            let ttl = self.parts.leases.renew(session.id)?;
            Ok(pb::RenewLeaseResponse {
                lease_ttl_ms: millis(ttl),
            })
        };
        answer(renewed.await)
    }

    async fn query(&self, request: Request<pb::QueryRequest>) -> Result<Response<pb::QueryResponse>, Status> {
        let peer = access::agent(&request)?;
        answer(self.known(&peer, request.into_inner()).await)
    }

    async fn upload_pack(
        &self,
        request: Request<Streaming<pb::UploadFrame>>,
    ) -> Result<Response<pb::UploadResponse>, Status> {
        let peer = access::agent(&request)?;
        answer(self.upload(peer, request.into_inner()).await)
    }

    async fn commit(
        &self,
        request: Request<pb::CommitRequest>,
    ) -> Result<Response<pb::CommitResponse>, Status> {
        let peer = access::agent(&request)?;
        // In a task of its own, so that what the catalog decides is also what happens to the root object.
        let this = self.clone();
        let task = tokio::spawn(
            async move { this.commit_snapshot(&peer, request.into_inner()).await }.in_current_span(),
        );
        answer(
            task.await
                .map_err(|_| Error::Internal("a commit ended abnormally".into()))
                .flatten(),
        )
    }

    async fn close_session(
        &self,
        request: Request<pb::CloseSessionRequest>,
    ) -> Result<Response<pb::CloseSessionResponse>, Status> {
        let peer = access::agent(&request)?;
        answer(
            self.close(&peer, request.into_inner())
                .await
                .map(|()| pb::CloseSessionResponse {}),
        )
    }

    async fn fetch(&self, request: Request<pb::FetchRequest>) -> Result<Response<Self::FetchStream>, Status> {
        let reader = access::reader(&request)?;
        let stream = self.fetch_blobs(&reader, request.into_inner());
        answer(stream.map(|stream| Box::pin(stream) as Self::FetchStream))
    }

    async fn get_root(
        &self,
        request: Request<pb::GetRootRequest>,
    ) -> Result<Response<pb::GetRootResponse>, Status> {
        let reader = access::reader(&request)?;
        answer(self.root(&reader, request.into_inner()).await)
    }

    async fn open_journal(
        &self,
        request: Request<pb::OpenJournalRequest>,
    ) -> Result<Response<pb::OpenJournalResponse>, Status> {
        let peer = access::agent(&request)?;
        answer(self.open_a_journal(&peer, request.into_inner()).await)
    }

    async fn append_journal(
        &self,
        request: Request<pb::AppendJournalRequest>,
    ) -> Result<Response<pb::AppendJournalResponse>, Status> {
        let peer = access::agent(&request)?;
        // In a task of its own, so that what the catalog decides is also what happens to the root object.
        let this = self.clone();
        let task = tokio::spawn(
            async move { this.append_to_journal(&peer, request.into_inner()).await }.in_current_span(),
        );
        answer(
            task.await
                .map_err(|_| Error::Internal("an append ended abnormally".into()))
                .flatten(),
        )
    }

    async fn mark_tail(
        &self,
        request: Request<pb::MarkTailRequest>,
    ) -> Result<Response<pb::MarkTailResponse>, Status> {
        let peer = access::agent(&request)?;
        answer(self.mark_a_tail(&peer, request.into_inner()).await)
    }

    async fn find_journal(
        &self,
        request: Request<pb::FindJournalRequest>,
    ) -> Result<Response<pb::FindJournalResponse>, Status> {
        let reader = access::reader(&request)?;
        answer(self.find_in_journal(&reader, request.into_inner()).await)
    }

    async fn browse_journal(
        &self,
        request: Request<pb::BrowseJournalRequest>,
    ) -> Result<Response<pb::BrowseJournalResponse>, Status> {
        let reader = access::reader(&request)?;
        answer(self.browse_the_journal(&reader, request.into_inner()).await)
    }
}

impl access::Agent {
    fn actor(&self) -> Actor {
        Actor::Agent(self.name.clone())
    }
}

#[cfg(test)]
mod tests;
