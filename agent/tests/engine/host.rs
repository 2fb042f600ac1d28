//! A host that is backed up, and a remote side that keeps packs in memory and checks them.

use bytes::Bytes;
use holdfast_agent::{
    Result,
    engine::{self, Caches, Levels, Outcome, Settings, Stats, Width},
    files::Selection,
    remote::Remote,
};
use holdfast_core::{ChunkId, PackId, VaultId, limits::SEGMENT_CHUNKS_MAX};
use holdfast_proto::v1::FilesSpec;
use holdfast_repo::{
    Content, DirNode, Entry, EntryKind, FileNode, Node, Opener, PackDirectory, RootTree, Segment, VaultKeys,
};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs,
    os::unix::{
        ffi::OsStrExt as _,
        fs::{MetadataExt as _, PermissionsExt as _},
    },
    path::Path,
    sync::Arc,
};

pub const VAULT: VaultId = VaultId([1; 16]);

#[derive(Default)]
pub struct Memory {
    pub blobs: Mutex<HashMap<ChunkId, Bytes>>,
    pub fetched: Mutex<usize>,
}

impl Remote for Memory {
    fn known(&self, ids: &[ChunkId]) -> Result<Vec<bool>> {
        let blobs = self.blobs.lock();
        Ok(ids.iter().map(|id| blobs.contains_key(id)).collect())
    }

    fn fetch(&self, ids: &[ChunkId]) -> Result<Vec<Option<Bytes>>> {
        *self.fetched.lock() += ids.len();
        let blobs = self.blobs.lock();
        Ok(ids.iter().map(|id| blobs.get(id).cloned()).collect())
    }

    fn upload(&self, pack: PackId, bytes: Bytes) -> Result<()> {
        let directory = PackDirectory::verify(&bytes, pack, VAULT).unwrap();
        let mut blobs = self.blobs.lock();
        for entry in directory.entries {
            let at = entry.offset as usize;
            blobs.insert(entry.id, bytes.slice(at..at + entry.len as usize));
        }
        Ok(())
    }
}

pub struct Host {
    pub state: tempfile::TempDir,
    pub keys: Arc<VaultKeys>,
    pub remote: Arc<Memory>,
    pub parent: Vec<RootTree>,
    pub width: Width,
}

impl Host {
    pub fn new() -> Self {
        Self {
            state: tempfile::tempdir().unwrap(),
            keys: Arc::new(VaultKeys::from_secrets(VAULT, [2; 32], [3; 32])),
            remote: Arc::default(),
            parent: Vec::new(),
            width: Width::default(),
        }
    }

    /// What a run with nothing special needs.
    pub fn settings(&self, spec: &FilesSpec) -> Settings {
        let own = [self.state.path().to_owned()];
        self.settings_of(Selection::open(spec, &["/".into()], &own).unwrap())
    }

    /// The same for any selection.
    pub fn settings_of(&self, selection: Selection) -> Settings {
        Settings {
            keys: Arc::clone(&self.keys),
            selection: Arc::new(selection),
            is_parent_of_here: true,
            parent: self.parent.clone(),
            workers: 4,
            levels: Levels {
                content: 3,
                segments: 1,
            },
            missing: HashSet::new(),
            limits: Arc::default(),
            width: self.width,
            segment_chunks: SEGMENT_CHUNKS_MAX,
        }
    }

    pub fn caches(&self) -> Caches {
        Caches::open(&self.state.path().join("source.cache"), !self.parent.is_empty()).unwrap()
    }

    pub fn back_up(&mut self, spec: &FilesSpec) -> (Outcome, Arc<Stats>) {
        self.back_up_missing(spec, HashSet::new())
    }

    pub fn back_up_missing(&mut self, spec: &FilesSpec, missing: HashSet<ChunkId>) -> (Outcome, Arc<Stats>) {
        let settings = Settings {
            missing,
            ..self.settings(spec)
        };
        let stats = Arc::new(Stats::default());
        let caches = self.caches();
        let remote = Arc::clone(&self.remote) as Arc<dyn Remote>;
        let outcome = engine::run(settings, remote, caches, Arc::clone(&stats), Arc::default()).unwrap();
        self.parent = outcome.trees.clone();
        (outcome, stats)
    }

    pub fn node(&self, id: ChunkId) -> Node {
        let (header, raw) = self.open(id);
        Node::decode(header.kind, &header.links, &raw).unwrap()
    }

    pub fn open(&self, id: ChunkId) -> (holdfast_repo::BlobHeader, Vec<u8>) {
        let blob = self
            .remote
            .blobs
            .lock()
            .get(&id)
            .unwrap_or_else(|| panic!("{id:?} is not stored"))
            .clone();
        let mut raw = Vec::new();
        let header = Opener::new(Arc::clone(&self.keys))
            .unwrap()
            .open(id, &blob, &mut raw)
            .unwrap();
        (header, raw)
    }

    pub fn content(&self, content: &Content) -> Vec<u8> {
        let segments = match content {
            Content::Inline(chunks) => chunks.iter().copied().map(Segment::Whole).collect(),
            Content::Node(top) => match self.node(*top) {
                Node::File(FileNode::Leaf(segments)) => segments,
                other => panic!("{other:?}"),
            },
        };
        segments
            .iter()
            .flat_map(|segment| self.segment(segment))
            .collect()
    }

    pub fn segment(&self, segment: &Segment) -> Vec<u8> {
        match segment {
            Segment::Whole(chunk) => self.open(chunk.id).1,
            Segment::Hole(len) => vec![0; *len as usize],
            Segment::Parts(parts) => {
                let chunks: HashMap<_, _> = parts
                    .chunks()
                    .into_iter()
                    .map(|id| (id, self.open(id).1))
                    .collect();
                let mut out = Vec::new();
                let content = |id: &ChunkId| chunks.get(id).map(Vec::as_slice);
                parts.assemble(&self.keys, content, &mut out).unwrap();
                out
            }
        }
    }

    pub fn entries(&self, top: ChunkId) -> Vec<Entry> {
        match self.node(top) {
            Node::Dir(DirNode::Leaf(entries)) => entries,
            Node::Dir(DirNode::Index(children)) => children.iter().flat_map(|c| self.entries(c.id)).collect(),
            Node::File(node) => panic!("{node:?}"),
        }
    }

    /// Everything below an entry: path -> (mode, mtime ns, content or target).
    pub fn flatten(&self, entry: &Entry, path: &Path, out: &mut Tree) {
        let bytes = match &entry.kind {
            EntryKind::File { content, .. } => self.content(content),
            EntryKind::Symlink { target } => target.clone(),
            _ => Vec::new(),
        };
        let mtime = i128::from(entry.mtime.secs) * 1_000_000_000 + i128::from(entry.mtime.nanos);
        out.insert(path.to_owned(), (entry.mode, mtime, bytes));
        if let EntryKind::Dir { node, .. } = entry.kind {
            for child in self.entries(node) {
                self.flatten(&child, &path.join(std::ffi::OsStr::from_bytes(&child.name)), out);
            }
        }
    }

    pub fn stored_tree(&self, outcome: &Outcome) -> Tree {
        let mut tree = Tree::new();
        self.flatten(&outcome.trees[0].entry, Path::new(""), &mut tree);
        tree
    }
}

pub type Tree = BTreeMap<std::path::PathBuf, (u32, i128, Vec<u8>)>;

pub fn real_tree(root: &Path) -> Tree {
    pub fn visit(path: &Path, relative: &Path, out: &mut Tree) {
        let meta = fs::symlink_metadata(path).unwrap();
        let bytes = if meta.is_file() {
            fs::read(path).unwrap()
        } else if meta.is_symlink() {
            fs::read_link(path).unwrap().as_os_str().as_bytes().to_vec()
        } else {
            Vec::new()
        };
        let mtime = i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec());
        out.insert(relative.to_owned(), (meta.mode() & 0o7777, mtime, bytes));
        if meta.is_dir() {
            for item in fs::read_dir(path).unwrap() {
                let name = item.unwrap().file_name();
                visit(&path.join(&name), &relative.join(&name), out);
            }
        }
    }
    let mut tree = Tree::new();
    visit(root, Path::new(""), &mut tree);
    tree
}

pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(0x9e37_79b9_7f4a_7c15);
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}

/// Many small files, a few large ones, deep and odd names.
pub fn make_tree(root: &Path) {
    for dir in 0..20 {
        let dir_path = root.join(format!("dir-{dir}/sub"));
        fs::create_dir_all(&dir_path).unwrap();
        for file in 0..40_u64 {
            let len = (file * 97 + dir) as usize % 5000;
            fs::write(dir_path.join(format!("f{file}")), noise(dir * 100 + file, len)).unwrap();
        }
    }
    fs::write(root.join("empty"), b"").unwrap();
    fs::write(root.join("medium"), noise(7, 300_000)).unwrap();
    fs::write(root.join("large"), noise(8, 23_456_789)).unwrap();
    fs::write(
        root.join(std::ffi::OsStr::from_bytes(b"not \xff utf-8\n")),
        b"odd name",
    )
    .unwrap();
    std::os::unix::fs::symlink("../nowhere", root.join("link")).unwrap();
    fs::set_permissions(root.join("medium"), fs::Permissions::from_mode(0o4750)).unwrap();
}

pub fn spec(root: &Path) -> FilesSpec {
    FilesSpec {
        roots: vec![root.to_str().unwrap().into()],
        ..FilesSpec::default()
    }
}
