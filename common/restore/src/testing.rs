//! Small snapshots in real packs, for the tests of this crate.

use crate::{BlobSource, Fetched, Snapshot, StoreSource};
use bytes::Bytes;
use holdfast_core::{ChunkId, PackId, SnapshotId, StoreId, VaultId};
use holdfast_repo::{
    Attributes, ChunkRef, Content, DirBuilder, Entry, EntryKind, FileBuilder, Kind, Link, Links, NodeDraft,
    PackWriter, Root, RootClear, RootSealed, RootTree, Sealer, SigningKey, Strategy, Timestamp, VaultKeys,
};
use holdfast_store::{MemStore, ObjectName, Store};
use std::{
    collections::{BTreeMap, HashMap},
    fs,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

pub const VAULT: VaultId = VaultId([7; 16]);

/// What a test wants in a tree.
#[derive(Debug, Clone)]
pub enum Item {
    Dir(u32, BTreeMap<Vec<u8>, Item>),
    File(u32, Vec<u8>),
    Link(Vec<u8>),
    Fifo(u32),
    /// Something with attributes, by its inode number.
    More(Box<Item>, u64, Attributes),
    /// An entry as it is, for what no honest agent writes.
    Raw(EntryKind),
}

/// What stands under a name in a directory that no builder makes.
#[derive(Debug, Clone)]
pub enum Crafted {
    EmptyFile,
    Link(Vec<u8>),
    Dir(ChunkId),
}

/// A directory of one file, whose node is this.
pub fn dir_of(node: ChunkId) -> Item {
    Item::Raw(EntryKind::Dir {
        node,
        files: 1,
        bytes: 0,
    })
}

pub fn dir<const N: usize>(items: [(&str, Item); N]) -> Item {
    Item::Dir(
        0o755,
        items
            .into_iter()
            .map(|(name, item)| (name.as_bytes().to_vec(), item))
            .collect(),
    )
}

pub fn file(content: impl AsRef<[u8]>) -> Item {
    Item::File(0o644, content.as_ref().to_vec())
}

pub fn link(target: &str) -> Item {
    Item::Link(target.as_bytes().to_vec())
}

/// Bytes that look random and are the same everywhere.
pub fn noise(seed: u8, len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(u64::from(seed) + 1);
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(len);
    out
}

/// The time that a name gets: every name another one, with nanoseconds.
pub fn mtime(name: &[u8]) -> Timestamp {
    let sum: u32 = name.iter().map(|byte| u32::from(*byte)).sum();
    Timestamp {
        secs: 1_500_000_000 + i64::from(sum),
        nanos: 123_000_000 + sum,
    }
}

/// Collects blobs into packs.
pub struct Repo {
    pub keys: Arc<VaultKeys>,
    pub signer: SigningKey,
    sealer: Sealer,
    data: PackWriter,
    nodes: PackWriter,
    pub packs: Vec<(PackId, Vec<u8>)>,
    /// Where cuts are made; chunks this small make small tests of large files.
    pub chunk_len: usize,
    /// Everything is stored in two packs.
    pub twice: bool,
}

impl Repo {
    pub fn new() -> Self {
        let keys = Arc::new(VaultKeys::from_secrets(VAULT, [1; 32], [2; 32]));
        Self {
            signer: SigningKey::generate().unwrap(),
            sealer: Sealer::new(Arc::clone(&keys), 1).unwrap(),
            data: PackWriter::new(VAULT, Vec::new()),
            nodes: PackWriter::new(VAULT, Vec::new()),
            packs: Vec::new(),
            chunk_len: 1 << 20,
            twice: false,
            keys,
        }
    }

    pub fn chunk(&mut self, content: &[u8]) -> ChunkRef {
        let id = self.keys.data_id(content);
        let sealed = self.sealer.seal_data(id, content).unwrap();
        self.data.push(&sealed);
        if self.data.is_full() {
            self.end_packs();
        }
        ChunkRef {
            id,
            len: content.len() as u32,
        }
    }

    pub fn node(&mut self, draft: NodeDraft) -> ChunkId {
        let id = draft.id;
        self.nodes.push(&self.sealer.seal_node(draft).unwrap());
        id
    }

    /// A directory node that no builder makes: whatever names, in this order.
    pub fn crafted(&mut self, entries: &[(&[u8], Crafted)]) -> ChunkId {
        let mut payload = vec![1, 0, entries.len() as u8];
        let mut links = Links::default();
        for (name, what) in entries {
            // Lengths are varints; these are below 2^14.
            if name.len() > 127 {
                payload.extend([name.len() as u8 | 0x80, (name.len() >> 7) as u8]);
            } else {
                payload.push(name.len() as u8);
            }
            payload.extend_from_slice(name);
            payload.push(match what {
                Crafted::EmptyFile => 0,
                Crafted::Dir(_) => 1,
                Crafted::Link(_) => 2,
            });
            payload.extend_from_slice(&[0, 0x40, 0, 0, 0, 0, 0, 0, 1]);
            match what {
                Crafted::EmptyFile => payload.extend_from_slice(&[0, 0, 0]),
                Crafted::Dir(id) => {
                    payload.extend_from_slice(&[0, 0]);
                    links.0.push(Link {
                        id: *id,
                        is_node: true,
                    });
                }
                Crafted::Link(target) => {
                    payload.push(target.len() as u8);
                    payload.extend_from_slice(target);
                }
            }
            payload.push(0);
        }
        let mut section = Vec::new();
        links.encode_into(&mut section);
        self.node(NodeDraft {
            id: self.keys.node_id(Kind::Dir, &section, &payload),
            kind: Kind::Dir,
            links,
            payload,
        })
    }

    fn end_packs(&mut self) {
        for writer in [&mut self.data, &mut self.nodes] {
            let full = std::mem::replace(writer, PackWriter::new(VAULT, Vec::new()));
            if full.is_empty() {
                continue;
            }
            let (id, bytes) = full.finish();
            if self.twice {
                let found = holdfast_repo::PackDirectory::verify(&bytes, id, VAULT).unwrap();
                let mut copy = PackWriter::new(VAULT, Vec::new());
                for entry in found.entries.iter().rev() {
                    copy.push_verbatim(&bytes[entry.offset as usize..][..entry.len as usize])
                        .unwrap();
                }
                let extra = self
                    .sealer
                    .seal_data(self.keys.data_id(b"differs"), b"differs")
                    .unwrap();
                copy.push(&extra);
                self.packs.push(copy.finish());
            }
            self.packs.push((id, bytes));
        }
    }

    pub fn entry(&mut self, name: &[u8], item: &Item) -> Entry {
        let (mode, kind) = match item {
            Item::More(item, inode, attributes) => {
                return Entry {
                    inode: *inode,
                    mtime: mtime(&inode.to_le_bytes()),
                    attributes: attributes.clone().boxed(),
                    ..self.entry(name, item)
                };
            }
            Item::Dir(mode, items) => {
                let entries: Vec<Entry> = items.iter().map(|(name, item)| self.entry(name, item)).collect();
                let keys = Arc::clone(&self.keys);
                let mut builder = DirBuilder::new(keys);
                entries.iter().for_each(|entry| builder.push(entry).unwrap());
                let built = builder.finish().unwrap();
                built.nodes.into_iter().for_each(|node| {
                    self.node(node);
                });
                (
                    *mode,
                    EntryKind::Dir {
                        node: built.id,
                        files: built.files,
                        bytes: built.bytes,
                    },
                )
            }
            Item::File(mode, content) => (*mode, self.content(content)),
            Item::Link(target) => (
                0o777,
                EntryKind::Symlink {
                    target: target.clone(),
                },
            ),
            Item::Fifo(mode) => (*mode, EntryKind::Fifo),
            Item::Raw(kind) => (0o644, kind.clone()),
        };
        Entry {
            name: name.to_vec(),
            mode,
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            mtime: mtime(name),
            ctime: Timestamp::default(),
            inode: 1,
            changed_while_read: false,
            is_sparse: false,
            attributes: None,
            kind,
        }
    }

    fn content(&mut self, content: &[u8]) -> EntryKind {
        let keys = Arc::clone(&self.keys);
        let mut builder = FileBuilder::default();
        for piece in content.chunks(self.chunk_len) {
            let chunk = self.chunk(piece);
            builder.push(&keys, chunk).unwrap();
        }
        let (content_ref, nodes) = builder.finish(&keys).unwrap();
        nodes.into_iter().for_each(|node| {
            self.node(node);
        });
        EntryKind::File {
            size: content.len() as u64,
            strategy: Strategy::ContentDefined,
            content: content_ref,
        }
    }

    /// Ends the packs and makes the root object of these trees.
    pub fn root(&mut self, snapshot: SnapshotId, trees: &[(&str, Item)]) -> Vec<u8> {
        let trees = trees
            .iter()
            .map(|(path, item)| {
                let name = Path::new(path)
                    .file_name()
                    .map_or(&b""[..], |name| name.as_bytes())
                    .to_vec();
                let entry = Entry {
                    name: Vec::new(),
                    ..self.entry(&name, item)
                };
                RootTree {
                    path: path.as_bytes().to_vec(),
                    entry,
                }
            })
            .collect();
        self.end_packs();
        let clear = RootClear {
            vault: VAULT,
            snapshot,
            source: "web1/data".parse().unwrap(),
            sequence: 1,
            previous: [0; 32],
            started_at: 1,
            finished_at: 2,
            partial: false,
            is_journal: false,
            signer: [0; 32],
            epoch: 0,
            links: Default::default(),
        };
        let sealed = RootSealed {
            hostname: b"host".to_vec(),
            trees,
            ..Default::default()
        };
        Root { clear, sealed }.encode(&self.keys, &self.signer).unwrap()
    }

    pub async fn put_packs(&self, store: &dyn Store) {
        for (id, bytes) in &self.packs {
            store
                .put(&ObjectName::pack(id), Bytes::copy_from_slice(bytes))
                .await
                .unwrap();
        }
    }

    /// The blob of a chunk in the first pack that has it: which pack, offset, length.
    pub fn find(&self, id: ChunkId) -> (usize, usize, usize) {
        self.packs
            .iter()
            .enumerate()
            .find_map(|(at, (pack, bytes))| {
                let directory = holdfast_repo::PackDirectory::verify(bytes, *pack, VAULT).unwrap();
                let entry = directory.entries.into_iter().find(|entry| entry.id == id)?;
                Some((at, entry.offset as usize, entry.len as usize))
            })
            .unwrap()
    }
}

/// A snapshot of these trees in a store in memory.
pub async fn snapshot(repo: &mut Repo, trees: &[(&str, Item)]) -> (Snapshot, MemStore) {
    let root = repo.root(SnapshotId([3; 16]), trees);
    let store = MemStore::new(StoreId([1; 16]), 1 << 30);
    repo.put_packs(&store).await;
    (open(repo, &root, &store).await, store)
}

pub async fn open(repo: &Repo, root: &[u8], store: &MemStore) -> Snapshot {
    let source = StoreSource::open(Arc::new(store.clone()), VAULT).await.unwrap();
    Snapshot::open(root, Arc::new(source), Arc::clone(&repo.keys)).unwrap()
}

/// What a source was asked for.
#[derive(Default)]
pub struct Counts {
    pub data: AtomicUsize,
    pub nodes: AtomicUsize,
}

/// A source that counts the different blobs that it gives out in each call, by kind.
struct Counted {
    inner: StoreSource,
    counts: Arc<Counts>,
}

impl Counted {
    fn count(&self, found: &[Option<Fetched>]) {
        for (blob, _) in found.iter().flatten() {
            // The kind stands in the blob's header.
            let is_data = blob[7] == 1;
            let counter = if is_data {
                &self.counts.data
            } else {
                &self.counts.nodes
            };
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[async_trait::async_trait]
impl BlobSource for Counted {
    async fn fetch(&self, ids: &[ChunkId]) -> crate::Result<Vec<Option<Fetched>>> {
        self.fetch_within(ids, usize::MAX).await
    }

    async fn fetch_within(&self, ids: &[ChunkId], bytes: usize) -> crate::Result<Vec<Option<Fetched>>> {
        let found = self.inner.fetch_within(ids, bytes).await?;
        self.count(&found);
        Ok(found)
    }

    async fn fetch_avoiding(&self, id: ChunkId, bad: &[PackId]) -> crate::Result<Option<Fetched>> {
        self.inner.fetch_avoiding(id, bad).await
    }
}

/// Like [`snapshot`], with counters of what is fetched.
pub async fn counted(repo: &mut Repo, trees: &[(&str, Item)]) -> (Snapshot, Arc<Counts>) {
    let root = repo.root(SnapshotId([3; 16]), trees);
    let (mut opened, counts) = open_counted(repo, &[root]).await;
    (opened.remove(0), counts)
}

/// Two snapshots in one store.
pub async fn pair(
    repo: &mut Repo,
    before: &[(&str, Item)],
    after: &[(&str, Item)],
) -> (Snapshot, Snapshot, Arc<Counts>) {
    let roots = [
        repo.root(SnapshotId([3; 16]), before),
        repo.root(SnapshotId([4; 16]), after),
    ];
    let (mut opened, counts) = open_counted(repo, &roots).await;
    let after = opened.remove(1);
    (opened.remove(0), after, counts)
}

async fn open_counted(repo: &Repo, roots: &[Vec<u8>]) -> (Vec<Snapshot>, Arc<Counts>) {
    let store = MemStore::new(StoreId([1; 16]), 1 << 30);
    repo.put_packs(&store).await;
    let counts = Arc::new(Counts::default());
    let mut opened = Vec::new();
    for root in roots {
        let inner = StoreSource::open(Arc::new(store.clone()), VAULT).await.unwrap();
        let counts = Arc::clone(&counts);
        let source = Arc::new(Counted { inner, counts });
        opened.push(Snapshot::open(root, source, Arc::clone(&repo.keys)).unwrap());
    }
    (opened, counts)
}

/// Replaces the bytes of one pack in a store.
pub fn damage(store: &MemStore, id: &PackId, bytes: Vec<u8>) {
    store.damage(&ObjectName::pack(id), bytes.into());
}

/// Compares what lies at a path with what should: kind, content, mode, time, and nothing besides.
pub fn assert_same(path: &Path, item: &Item) {
    let stat = fs::symlink_metadata(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let (item, time) = match item {
        Item::More(item, inode, _) => (&**item, mtime(&inode.to_le_bytes())),
        item => (item, mtime(path.file_name().unwrap().as_bytes())),
    };
    assert_eq!(
        (stat.mtime(), stat.mtime_nsec()),
        (time.secs, i64::from(time.nanos)),
        "{}",
        path.display()
    );
    let mode = match item {
        Item::Dir(mode, items) => {
            assert!(stat.is_dir(), "{}", path.display());
            let names: HashMap<Vec<u8>, ()> = fs::read_dir(path)
                .unwrap()
                .map(|entry| (entry.unwrap().file_name().as_bytes().to_vec(), ()))
                .collect();
            assert_eq!(names.len(), items.len(), "{}: {:?}", path.display(), names.keys());
            for (name, item) in items {
                assert_same(&path.join(std::ffi::OsStr::from_bytes(name)), item);
            }
            *mode
        }
        Item::File(mode, content) => {
            assert!(stat.is_file(), "{}", path.display());
            assert!(
                fs::read(path).unwrap() == *content,
                "{}: other content",
                path.display()
            );
            *mode
        }
        Item::Link(target) => {
            assert_eq!(fs::read_link(path).unwrap().as_os_str().as_bytes(), target);
            return;
        }
        Item::Fifo(mode) => {
            use std::os::unix::fs::FileTypeExt;
            assert!(stat.file_type().is_fifo());
            *mode
        }
        Item::Raw(_) | Item::More(..) => return,
    };
    assert_eq!(stat.mode() & 0o7777, mode, "{}", path.display());
}

/// A file of one chunk that no one stored.
pub fn missing_file() -> Item {
    Item::Raw(EntryKind::File {
        size: 5,
        strategy: Strategy::ContentDefined,
        content: Content::Inline(vec![ChunkRef {
            id: ChunkId([0xee; 32]),
            len: 5,
        }]),
    })
}
