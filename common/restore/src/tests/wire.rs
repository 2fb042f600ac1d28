//! Blobs over gRPC, from a peer that answers in pieces, breaks off, or lies.

use crate::{BlobSource, GrpcSource, RestoreOptions, Snapshot, restore, testing::*};
use bytes::Bytes;
use holdfast_core::{ChunkId, ErrorKind, HasKind, PackId, SnapshotId};
use holdfast_net::trace::TraceInterceptor;
use holdfast_proto::v1::{self, data_service_server as server};
use holdfast_store::Store as _;
use std::{
    collections::HashMap,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};
use tonic::{Request, Response, Status, Streaming, service::interceptor::InterceptedService};

type Answers = Pin<Box<dyn futures::Stream<Item = Result<v1::FetchResponse, Status>> + Send>>;

/// Blobs by id in the order in which they are tried, and what is wrong with the peer.
#[derive(Default)]
struct Peer {
    blobs: HashMap<ChunkId, Vec<(PackId, Bytes)>>,
    calls: AtomicU32,
    /// The first calls fail like this.
    away: u32,
    breaks_off: bool,
    one_too_many: bool,
    ignores_avoid: bool,
    /// The store that it serves: who reads that itself is told places.
    store: Option<holdfast_store::DirStore>,
    places: HashMap<ChunkId, v1::FetchedBlob>,
    /// Blobs that went over the wire.
    sent: AtomicU32,
}

#[tonic::async_trait]
impl server::DataService for Peer {
    type FetchStream = Answers;

    async fn fetch(&self, request: Request<v1::FetchRequest>) -> Result<Response<Answers>, Status> {
        let request = request.into_inner();
        if self.calls.fetch_add(1, Ordering::SeqCst) < self.away {
            return Err(Status::unavailable("starting"));
        }
        assert!(request.ids.len() <= 1024 * 32 && request.vault == VAULT.as_bytes()[..]);
        let avoid: Vec<&[u8]> = request.avoid.chunks(64).collect();
        let mut blobs: Vec<v1::FetchedBlob> = request
            .ids
            .chunks(32)
            .map(|id| {
                let id = &ChunkId::try_from(id).unwrap();
                let here = self.store.as_ref().map(|store| store.id().as_bytes().to_vec());
                if here.is_some_and(|here| here == request.read_here)
                    && let Some(place) = self.places.get(id)
                {
                    return place.clone();
                }
                self.sent.fetch_add(1, Ordering::SeqCst);
                let id = &id.as_bytes()[..];
                let copies = self.blobs.get(&ChunkId::try_from(id).unwrap());
                let good = copies.into_iter().flatten().find(|(pack, _)| {
                    self.ignores_avoid || !avoid.contains(&&[id, pack.as_bytes()].concat()[..])
                });
                good.map_or_else(Default::default, |(pack, blob)| v1::FetchedBlob {
                    blob: blob.clone(),
                    pack: Bytes::copy_from_slice(pack.as_bytes()),
                    ..Default::default()
                })
            })
            .collect();
        if self.breaks_off {
            blobs.pop();
        }
        if self.one_too_many {
            blobs.push(v1::FetchedBlob::default());
        }
        let pieces: Vec<_> = blobs
            .chunks(7)
            .map(|blobs| {
                Ok(v1::FetchResponse {
                    blobs: blobs.to_vec(),
                })
            })
            .collect();
        Ok(Response::new(Box::pin(futures::stream::iter(pieces))))
    }

    async fn open_journal(
        &self,
        _: Request<v1::OpenJournalRequest>,
    ) -> Result<Response<v1::OpenJournalResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn append_journal(
        &self,
        _: Request<v1::AppendJournalRequest>,
    ) -> Result<Response<v1::AppendJournalResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn find_journal(
        &self,
        _: Request<v1::FindJournalRequest>,
    ) -> Result<Response<v1::FindJournalResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn browse_journal(
        &self,
        _: Request<v1::BrowseJournalRequest>,
    ) -> Result<Response<v1::BrowseJournalResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn mark_tail(
        &self,
        _: Request<v1::MarkTailRequest>,
    ) -> Result<Response<v1::MarkTailResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn open_session(
        &self,
        _: Request<v1::OpenSessionRequest>,
    ) -> Result<Response<v1::OpenSessionResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn renew_lease(
        &self,
        _: Request<v1::RenewLeaseRequest>,
    ) -> Result<Response<v1::RenewLeaseResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn query(&self, _: Request<v1::QueryRequest>) -> Result<Response<v1::QueryResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn upload_pack(
        &self,
        _: Request<Streaming<v1::UploadFrame>>,
    ) -> Result<Response<v1::UploadResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn commit(&self, _: Request<v1::CommitRequest>) -> Result<Response<v1::CommitResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn close_session(
        &self,
        _: Request<v1::CloseSessionRequest>,
    ) -> Result<Response<v1::CloseSessionResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn get_root(
        &self,
        _: Request<v1::GetRootRequest>,
    ) -> Result<Response<v1::GetRootResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

impl Peer {
    fn of(repo: &Repo) -> Self {
        let mut peer = Self::default();
        for (pack, bytes) in &repo.packs {
            let directory = holdfast_repo::PackDirectory::verify(bytes, *pack, VAULT).unwrap();
            for entry in directory.entries {
                let blob = Bytes::copy_from_slice(&bytes[entry.offset as usize..][..entry.len as usize]);
                let place = v1::FetchedBlob {
                    pack: Bytes::copy_from_slice(pack.as_bytes()),
                    offset: entry.offset,
                    len: entry.len,
                    ..Default::default()
                };
                peer.places.insert(entry.id, place);
                peer.blobs.entry(entry.id).or_default().push((*pack, blob));
            }
        }
        peer
    }

    /// A source that is connected to this peer, without TLS, which is not what is tested here.
    async fn serve(self) -> (Arc<Self>, GrpcSource) {
        let peer = Arc::new(self);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        let service = server::DataServiceServer::from_arc(Arc::clone(&peer));
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(incoming),
        );
        let mut connections = Vec::new();
        for _ in 0..2 {
            let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}")).unwrap();
            connections.push(InterceptedService::new(
                endpoint.connect().await.unwrap(),
                TraceInterceptor,
            ));
        }
        (peer, GrpcSource::new(connections, VAULT).unwrap())
    }
}

fn tree() -> Item {
    let many = (0..3000)
        .map(|n| (format!("f{n}").into_bytes(), file(format!("content {n}"))))
        .collect();
    dir([
        ("many", Item::Dir(0o755, many)),
        ("large", file(noise(3, 9 << 20))),
    ])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_comes_over_the_wire_even_if_the_peer_starts_late() {
    let mut repo = Repo::new();
    let root = repo.root(SnapshotId([3; 16]), &[("/t", tree())]);
    let (peer, source) = Peer {
        away: 2,
        ..Peer::of(&repo)
    }
    .serve()
    .await;
    let snapshot = Snapshot::open(&root, Arc::new(source), Arc::clone(&repo.keys)).unwrap();
    let to = tempfile::tempdir().unwrap();
    let report = restore(&snapshot, to.path(), RestoreOptions::default())
        .await
        .unwrap();
    assert_eq!(report.problems.listed, []);
    assert_same(&to.path().join("t"), &tree());
    let calls = peer.calls.load(Ordering::SeqCst);
    assert!(calls < 40, "{calls} calls for 3000 files");
}

#[tokio::test]
async fn bad_copies_are_avoided_and_named() {
    let mut repo = Repo::new();
    let id = repo.keys.data_id(b"content");
    let root = repo.root(SnapshotId([3; 16]), &[("/t", dir([("f", file("content"))]))]);
    for (bad, ignores_avoid) in [(1, false), (3, false), (20, false), (1, true)] {
        let mut peer = Peer {
            ignores_avoid,
            ..Peer::of(&repo)
        };
        let copies = peer.blobs.get_mut(&id).unwrap();
        for n in 0..bad {
            let mut blob = copies.last().unwrap().1.to_vec();
            blob[70 + usize::from(n) % 8] ^= 1;
            copies.insert(0, (PackId([n; 32]), blob.into()));
        }
        let (peer, source) = peer.serve().await;
        let snapshot = Snapshot::open(&root, Arc::new(source), Arc::clone(&repo.keys)).unwrap();
        let outcome = snapshot.read_file(b"/t/f", std::io::sink()).await;
        if bad < 8 && !ignores_avoid {
            assert_eq!(outcome.unwrap(), 7);
        } else {
            let error = outcome.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt);
            assert!(
                error.to_string().contains(&PackId([bad - 1; 32]).to_string()),
                "{error}"
            );
            assert!(peer.calls.load(Ordering::SeqCst) < 15);
        }
    }
}

#[tokio::test]
async fn answers_that_do_not_fit_are_errors() {
    let mut repo = Repo::new();
    let ids: Vec<ChunkId> = (0..2500_u32).map(|n| repo.chunk(&n.to_le_bytes()).id).collect();
    repo.root(SnapshotId([3; 16]), &[]);
    let (_, source) = Peer::of(&repo).serve().await;
    let mut asked = ids.clone();
    asked[1500] = ChunkId([9; 32]);
    let found = source.fetch(&asked).await.unwrap();
    assert_eq!(found.len(), 2500);
    assert!(
        found
            .iter()
            .enumerate()
            .all(|(at, blob)| blob.is_some() == (at != 1500))
    );
    assert_eq!(
        found[2000].as_ref().unwrap().0,
        Peer::of(&repo).blobs[&ids[2000]][0].1
    );

    let (_, source) = Peer {
        one_too_many: true,
        ..Peer::of(&repo)
    }
    .serve()
    .await;
    assert_eq!(
        source.fetch(&ids[..10]).await.unwrap_err().kind(),
        ErrorKind::Internal
    );
    let (peer, source) = Peer {
        breaks_off: true,
        ..Peer::of(&repo)
    }
    .serve()
    .await;
    assert_eq!(
        source.fetch(&ids[..10]).await.unwrap_err().kind(),
        ErrorKind::Unavailable
    );
    assert_eq!(peer.calls.load(Ordering::SeqCst), crate::bounds::FETCH_ATTEMPTS);
}

/// A peer whose store lies in `dir`, and what it tells of that.
async fn with_store(repo: &Repo, dir: &std::path::Path) -> (Peer, v1::LocalStore) {
    let id = holdfast_core::StoreId([7; 16]);
    let store = holdfast_store::DirStore::create(dir, id).unwrap();
    for (pack, bytes) in &repo.packs {
        let name = holdfast_store::ObjectName::pack(pack);
        store.put(&name, Bytes::from(bytes.clone())).await.unwrap();
    }
    let told = v1::LocalStore {
        id: Bytes::copy_from_slice(id.as_bytes()),
        directory: dir.to_str().unwrap().to_owned(),
    };
    let peer = Peer {
        store: Some(store),
        ..Peer::of(repo)
    };
    (peer, told)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_on_this_host_is_read_directly_and_what_is_damaged_there_comes_over_the_wire() {
    let mut repo = Repo::new();
    let root = repo.root(SnapshotId([3; 16]), &[("/t", tree())]);
    for damaged in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let (peer, told) = with_store(&repo, &dir.path().join("store")).await;
        if damaged {
            // One pack is gone, a header in another one is damaged, a third one's content.
            let packs = peer.store.as_ref().unwrap().path().join("packs");
            let mut files = files_below(&packs);
            files.sort_by_key(|file| std::fs::metadata(file).unwrap().len());
            std::fs::remove_file(files.pop().unwrap()).unwrap();
            for (file, at) in files.iter().rev().zip([40, 400]) {
                let mut bytes = std::fs::read(file).unwrap();
                bytes[at] ^= 0x10;
                std::fs::write(file, bytes).unwrap();
            }
        }
        let (peer, source) = peer.serve().await;
        let source = source.reading(Some(&told));
        let snapshot = Snapshot::open(&root, Arc::new(source), Arc::clone(&repo.keys)).unwrap();
        let to = tempfile::tempdir().unwrap();
        let report = restore(&snapshot, to.path(), RestoreOptions::default())
            .await
            .unwrap();
        assert_eq!(report.problems.listed, []);
        assert_same(&to.path().join("t"), &tree());
        assert_eq!(peer.sent.load(Ordering::SeqCst) > 0, damaged);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_store_in_that_place_is_not_read() {
    let mut repo = Repo::new();
    let root = repo.root(SnapshotId([3; 16]), &[("/t", tree())]);
    let dir = tempfile::tempdir().unwrap();
    let (peer, mut told) = with_store(&repo, &dir.path().join("store")).await;
    told.id = Bytes::from_static(&[8; 16]);
    let (peer, source) = peer.serve().await;
    let source = source.reading(Some(&told));
    let snapshot = Snapshot::open(&root, Arc::new(source), Arc::clone(&repo.keys)).unwrap();
    let to = tempfile::tempdir().unwrap();
    restore(&snapshot, to.path(), RestoreOptions::default())
        .await
        .unwrap();
    assert_same(&to.path().join("t"), &tree());
    assert!(peer.sent.load(Ordering::SeqCst) > 0);
}

fn files_below(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_below(&path));
        } else {
            found.push(path);
        }
    }
    found
}
