//! For tests: a whole small controller on real files, and an agent that seals, packs and signs.

use super::{Data, DataParts, access};
use crate::{
    catalog::{
        Actor, Command, Queries, Reply,
        model::{AdminKey, FilesSpec, JobWork, Meta, Session, TokenRole},
    },
    error::Result,
    gc::Gc,
    index::{ChunkIndex, IndexOptions, sync},
    ingest::{Announced, Ingest},
    jobs::Hub,
    raft::{Catalog, Node, NodeOptions},
    session::Leases,
    verify::{Verify, gather},
};
use bytes::Bytes;
use holdfast_core::{
    ChunkId, ClusterId, JobId, ManualClock, Name, PackId, SnapshotId, SourceRef, StoreId, VaultId, limits,
};
use holdfast_net::{
    keys,
    sealed::{SealedHeader, SealedKind, seal_and_sign},
};
use holdfast_proto::v1 as pb;
use holdfast_repo::{
    Entry, EntryKind, Kind, Link, Links, NodeDraft, PackWriter, Root, RootClear, RootSealed, RootTree,
    Sealer, SigningKey, Timestamp, VaultKeys,
};
use holdfast_store::{DirStore, ObjectName, Store, fault::Faults};
use std::{collections::BTreeMap, path::Path, sync::Arc};
use tempfile::TempDir;

pub const VAULT: VaultId = VaultId([1; 16]);
pub const OTHER_VAULT: VaultId = VaultId([2; 16]);

/// A controller and all its state.
pub struct World {
    pub dir: TempDir,
    pub node: Node,
    pub catalog: Catalog,
    pub store: Arc<dyn Store>,
    pub faults: Faults,
    pub index: Arc<ChunkIndex>,
    pub ingest: Arc<Ingest>,
    pub data: Data,
    pub gc: Gc,
    pub clock: Arc<ManualClock>,
    pub keys: Arc<VaultKeys>,
    pub signer: SigningKey,
    pub admin: keys::SigningKey,
}

pub fn name(text: &str) -> Name {
    text.parse().unwrap()
}

pub fn source() -> SourceRef {
    "web1/data".parse().unwrap()
}

fn meta(admin: &keys::SigningKey) -> Meta {
    Meta {
        cluster: ClusterId([5; 16]),
        name: "test".into(),
        generation: 1,
        recovery_recipient: String::new(),
        admin_keys: vec![AdminKey(admin.public().0.to_vec())],
        root_ca_fingerprint: Vec::new(),
        founded_at: 0,
    }
}

impl World {
    /// A cluster with two agents, web1 and other, each with a vault and a source.
    pub async fn new() -> Self {
        Self::with_reserve(Some(0)).await
    }

    pub async fn with_reserve(reserve: Option<u64>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        drop(DirStore::create(&dir.path().join("store"), StoreId([9; 16])).unwrap());
        let signer = SigningKey::generate().unwrap();
        let clock = Arc::new(ManualClock::new(1_000_000_000));
        let admin = keys::SigningKey::generate().unwrap();
        let world = Self::start(dir, reserve, clock, signer, admin).await;
        for (agent, vault) in [("web1", VAULT), ("other", OTHER_VAULT)] {
            let header = SealedHeader {
                kind: SealedKind::VaultKeys,
                vault,
                number: 1,
            };
            let recipient = keys::SealingKey::generate().recipient();
            let key_object = seal_and_sign(b"keys", &[recipient], &world.admin, header).unwrap();
            world
                .store
                .put(&ObjectName::key(&vault, 0), key_object.clone().into())
                .await
                .unwrap();
            world
                .propose(Command::PutVault {
                    vault,
                    name: name(agent),
                    key_object,
                })
                .await;
            world
                .propose(Command::CreateToken {
                    auth_hash: vault.0.repeat(2).try_into().unwrap(),
                    role: TokenRole::Agent,
                    name: name(agent),
                    vault: Some(vault),
                    wrapped_vault: vec![9],
                    ttl_ms: 1000,
                    replace: false,
                })
                .await;
            let auth_hash = vault.0.repeat(2).try_into().unwrap();
            world
                .propose(Command::UseToken {
                    auth_hash,
                    name: name(agent),
                    version: "1".into(),
                })
                .await;
            world
                .propose(Command::AgentHello {
                    agent: name(agent),
                    incarnation: 1,
                    version: "1".into(),
                    signing_key: world.signer.public().to_vec(),
                    sealing_key: vec![1],
                    keys_mac: vec![2],
                    allow: vec!["/srv".into()],
                })
                .await;
            world
                .propose(Command::PutSource {
                    source: format!("{agent}/data").parse().unwrap(),
                    document: "{}".into(),
                    files: Some(FilesSpec {
                        roots: vec!["/srv".into()],
                        ..FilesSpec::default()
                    }),
                    postgres: None,
                    limits: holdfast_core::HostLimits::default(),
                })
                .await;
        }
        world
    }

    async fn start(
        dir: TempDir,
        reserve: Option<u64>,
        clock: Arc<ManualClock>,
        signer: SigningKey,
        admin: keys::SigningKey,
    ) -> Self {
        let options = NodeOptions {
            id: 1,
            address: "127.0.0.1:1".into(),
            snapshot_log_bytes: 1 << 30,
            clock: clock.clone(),
        };
        let node = Node::start(&dir.path().join("state"), options, Some(meta(&admin)))
            .await
            .unwrap();
        let catalog = node.catalog().clone();
        let faults = Faults::none();
        let store: Arc<dyn Store> =
            Arc::new(DirStore::open_with_faults(&dir.path().join("store"), faults.clone()).unwrap());
        let options = IndexOptions { cache_bytes: 4 << 20 };
        let index = Arc::new(ChunkIndex::open(&dir.path().join("state/index"), options).unwrap());
        sync::sync(&index, &catalog.view(), &*store).await.unwrap();
        let ingest = Arc::new(Ingest::new(store.clone(), index.clone(), &catalog, reserve));
        let data = Data::new(DataParts {
            catalog: catalog.clone(),
            leases: Leases::new(clock.clone()),
            store: store.clone(),
            index: index.clone(),
            ingest: ingest.clone(),
            fleet: Hub::new(clock.clone()),
        });
        let gc = Gc::new(catalog.clone(), store.clone(), index.clone());
        let keys = Arc::new(VaultKeys::from_secrets(VAULT, [2; 32], [3; 32]));
        Self {
            dir,
            node,
            catalog,
            store,
            faults,
            index,
            ingest,
            data,
            gc,
            clock,
            keys,
            signer,
            admin,
        }
    }

    /// Stops everything and starts again on what is on disk. `prepare` sees the directory in between.
    pub async fn restart(self, prepare: impl FnOnce(&Path)) -> Self {
        let Self {
            dir,
            node,
            catalog,
            store,
            index,
            ingest,
            data,
            gc,
            clock,
            signer,
            admin,
            ..
        } = self;
        drop((data, gc, ingest, catalog));
        node.shutdown().await;
        // The registrar's task and blocking workers let go of their parts in their own time.
        until(|| Arc::strong_count(&store) == 1 && Arc::strong_count(&index) == 1).await;
        drop((store, index));
        prepare(dir.path());
        Self::start(dir, Some(0), clock, signer, admin).await
    }

    pub async fn propose(&self, command: Command) -> Reply {
        self.catalog.propose(Actor::System, None, command).await.unwrap()
    }

    /// Starts a job and opens its session, as the agent does.
    pub async fn open(&self, agent: &str) -> (pb::OpenSessionResponse, Session) {
        let opened = self.try_open(agent).await.unwrap();
        let id = opened
            .session
            .as_ref()
            .unwrap()
            .session
            .as_ref()
            .try_into()
            .unwrap();
        (opened, self.catalog.view().session(id).unwrap().unwrap())
    }

    pub async fn try_open(&self, agent: &str) -> Result<pb::OpenSessionResponse> {
        let source: SourceRef = format!("{agent}/data").parse().unwrap();
        let job = JobId::generate();
        let create = Command::CreateJob {
            job,
            work: JobWork::Backup,
            source: source.clone(),
            agent: source.agent.clone(),
        };
        self.catalog.propose(Actor::System, None, create).await?;
        self.propose(Command::OfferJob { job, attempt: 1 }).await;
        self.propose(Command::StartJob { job, attempt: 1 }).await;
        let request = pb::OpenSessionRequest {
            source: Some(pb::SourceRef {
                agent: agent.into(),
                source: "data".into(),
            }),
            job: Bytes::copy_from_slice(job.as_bytes()),
            attempt: 1,
            system_id: 0,
        };
        self.data.open(&peer(agent), request).await
    }

    /// Ends the job of a session, so that the source can have another one.
    pub async fn finish(&self, session: &Session) {
        let session = self.catalog.view().session(session.id).unwrap().unwrap();
        if session.ended_at == 0 {
            let request = pb::CloseSessionRequest {
                session: Some(shown(&session)),
                reason: "over".into(),
            };
            self.data
                .close(&peer(session.agent.as_str()), request)
                .await
                .unwrap();
        }
        self.propose(Command::CancelJob { job: session.job }).await;
    }

    /// Sends a pack as an agent would.
    pub async fn send(&self, session: &Session, pack: &(PackId, Vec<u8>)) -> Result<bool> {
        let announced = Announced {
            pack: pack.0,
            len: pack.1.len() as u64,
        };
        let frames: Vec<_> = pack
            .1
            .chunks(limits::FRAME_LEN)
            .map(|c| Ok(Bytes::copy_from_slice(c)))
            .collect();
        self.ingest
            .receive(session, announced, futures::stream::iter(frames))
            .await
    }

    /// Hands a root in.
    pub async fn commit(&self, session: &Session, root: Vec<u8>) -> Result<pb::CommitResponse> {
        let request = pb::CommitRequest {
            session: Some(shown(session)),
            root: root.into(),
            stats: Some(pb::RunStats {
                files: 3,
                ..pb::RunStats::default()
            }),
            ..pb::CommitRequest::default()
        };
        self.data
            .commit_snapshot(&peer(session.agent.as_str()), request)
            .await
    }

    /// A whole run: packs, then a root over `tops`; returns the snapshot.
    pub async fn back_up(&self, packs: &[(PackId, Vec<u8>)], tops: &[ChunkId]) -> SnapshotId {
        let (opened, session) = self.open("web1").await;
        for pack in packs {
            self.send(&session, pack).await.unwrap();
        }
        let committed = self
            .commit(&session, self.root(&session, &opened, tops))
            .await
            .unwrap();
        assert_eq!(committed.missing_count, 0);
        self.finish(&session).await;
        committed.snapshot.as_ref().try_into().unwrap()
    }

    pub fn root(&self, session: &Session, opened: &pb::OpenSessionResponse, tops: &[ChunkId]) -> Vec<u8> {
        let previous = if opened.parent_root.is_empty() {
            [0; 32]
        } else {
            Root::hash(&opened.parent_root)
        };
        self.root_with(session, tops, |clear| clear.previous = previous)
    }

    pub fn root_with(
        &self,
        session: &Session,
        tops: &[ChunkId],
        change: impl FnOnce(&mut RootClear),
    ) -> Vec<u8> {
        let mut clear = RootClear {
            vault: session.vault,
            snapshot: session.snapshot,
            source: session.source.clone(),
            sequence: session.sequence,
            previous: [0; 32],
            started_at: 1,
            finished_at: 2,
            partial: false,
            is_journal: false,
            signer: [0; 32],
            epoch: 0,
            links: Links::default(),
        };
        change(&mut clear);
        let tree = |(at, node): (usize, &ChunkId)| RootTree {
            path: format!("/srv/{at}").into_bytes(),
            entry: Entry {
                name: Vec::new(),
                mode: 0o755,
                uid: 0,
                gid: 0,
                mtime: Timestamp::default(),
                ctime: Timestamp::default(),
                inode: 2,
                changed_while_read: false,
                is_sparse: false,
                attributes: None,
                kind: EntryKind::Dir {
                    node: *node,
                    files: 1,
                    bytes: 2,
                },
            },
        };
        let sealed = RootSealed {
            hostname: b"web1".to_vec(),
            trees: tops.iter().enumerate().map(tree).collect(),
            users: BTreeMap::new(),
            groups: BTreeMap::new(),
        };
        Root { clear, sealed }.encode(&self.keys, &self.signer).unwrap()
    }

    /// What verification finds.
    pub async fn findings(&self, read_data: bool) -> Vec<pb::Finding> {
        let verify = Verify {
            catalog: self.catalog.clone(),
            store: self.store.clone(),
            index: self.index.clone(),
        };
        let (findings, summary) = gather(verify.run(read_data)).await.unwrap();
        assert_eq!(summary.findings, findings.len() as u64);
        findings
    }

    /// Fails unless everything is in order: nothing missing, nothing damaged, nothing left over.
    pub async fn assert_clean(&self) {
        assert_eq!(self.findings(true).await, []);
        assert_eq!(
            std::fs::read_dir(self.dir.path().join("store/tmp"))
                .unwrap()
                .count(),
            0
        );
    }

    /// Deletes a snapshot; it can be brought back for `undo_ms`.
    pub async fn delete(&self, snapshot: SnapshotId, undo_ms: u64) {
        self.propose(Command::DeleteSnapshot { snapshot, undo_ms }).await;
    }

    pub fn pack_ids(&self) -> Vec<PackId> {
        let packs = self.catalog.view().packs(None, 1000).unwrap().items;
        packs.into_iter().map(|pack| pack.id).collect()
    }

    pub fn pack_file(&self, id: &PackId) -> std::path::PathBuf {
        self.dir.path().join("store").join(ObjectName::pack(id).as_str())
    }
}

pub(super) fn peer(agent: &str) -> access::Agent {
    access::Agent {
        name: name(agent),
        incarnation: 1,
    }
}

pub fn shown(session: &Session) -> pb::SessionRef {
    pb::SessionRef {
        session: Bytes::copy_from_slice(session.id.as_bytes()),
        fence: session.fence,
    }
}

/// Waits for something that other tasks bring about.
pub async fn until(condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), waiting)
        .await
        .expect("it comes about");
}

/// Seals blobs into one pack.
pub struct Packer {
    keys: Arc<VaultKeys>,
    sealer: Sealer,
    writer: PackWriter,
}

impl Packer {
    pub fn new(vault: VaultId) -> Self {
        let keys = Arc::new(VaultKeys::from_secrets(vault, [2; 32], [3; 32]));
        let sealer = Sealer::new(keys.clone(), 1).unwrap();
        Self {
            keys,
            sealer,
            writer: PackWriter::new(vault, Vec::new()),
        }
    }

    /// Adds data that does not compress.
    pub fn data(&mut self, seed: &str, len: usize) -> Link {
        let mut content = vec![0; len];
        blake3::Hasher::new()
            .update(seed.as_bytes())
            .finalize_xof()
            .fill(&mut content);
        let id = self.keys.data_id(&content);
        self.writer.push(&self.sealer.seal_data(id, &content).unwrap());
        Link { id, is_node: false }
    }

    /// Adds a node over these links. Its payload stands for a directory's; no controller can read either.
    pub fn node(&mut self, links: &[Link]) -> Link {
        let (draft, link) = draft(&self.keys, links);
        self.writer.push(&self.sealer.seal_node(draft).unwrap());
        link
    }

    /// The link of a node without adding it.
    pub fn absent_node(&self, links: &[Link]) -> Link {
        draft(&self.keys, links).1
    }

    pub fn finish(self) -> (PackId, Vec<u8>) {
        self.writer.finish()
    }
}

fn draft(keys: &VaultKeys, links: &[Link]) -> (NodeDraft, Link) {
    let links = Links(links.to_vec());
    let mut section = Vec::new();
    links.encode_into(&mut section);
    let id = keys.node_id(Kind::Dir, &section, b"payload");
    (
        NodeDraft {
            id,
            kind: Kind::Dir,
            links,
            payload: b"payload".to_vec(),
        },
        Link { id, is_node: true },
    )
}

/// One pack with a directory of `count` files.
pub fn tree(seed: &str, count: usize, len: usize) -> ((PackId, Vec<u8>), Link, Vec<Link>) {
    let mut packer = Packer::new(VAULT);
    let files: Vec<Link> = (0..count)
        .map(|n| packer.data(&format!("{seed} {n}"), len))
        .collect();
    let top = packer.node(&files);
    (packer.finish(), top, files)
}
