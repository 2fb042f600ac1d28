//! The engine on real directory trees, against a remote side that keeps packs in memory and checks
//! them as a controller would.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

use bytes::Bytes;
use holdfast_agent::{
    Result,
    engine::{self, NodeCache, Outcome, Settings, Stats},
    files::Selection,
    remote::Remote,
};
use holdfast_core::{ChunkId, PackId, VaultId};
use holdfast_proto::v1::FilesSpec;
use holdfast_repo::{
    Content, DirNode, Entry, EntryKind, FileNode, Node, Opener, PackDirectory, RootTree, VaultKeys,
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
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

const VAULT: VaultId = VaultId([1; 16]);

#[derive(Default)]
struct Memory {
    blobs: Mutex<HashMap<ChunkId, Bytes>>,
    fetched: Mutex<usize>,
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

struct Host {
    state: tempfile::TempDir,
    keys: Arc<VaultKeys>,
    remote: Arc<Memory>,
    parent: Vec<RootTree>,
}

impl Host {
    fn new() -> Self {
        Self {
            state: tempfile::tempdir().unwrap(),
            keys: Arc::new(VaultKeys::from_secrets(VAULT, [2; 32], [3; 32])),
            remote: Arc::default(),
            parent: Vec::new(),
        }
    }

    fn back_up(&mut self, spec: &FilesSpec) -> (Outcome, Arc<Stats>) {
        self.back_up_missing(spec, HashSet::new())
    }

    fn back_up_missing(&mut self, spec: &FilesSpec, missing: HashSet<ChunkId>) -> (Outcome, Arc<Stats>) {
        let allow = [std::path::PathBuf::from("/")];
        let settings = Settings {
            keys: Arc::clone(&self.keys),
            selection: Arc::new(Selection::open(spec, &allow, &[self.state.path().to_owned()]).unwrap()),
            parent: self.parent.clone(),
            workers: 4,
            level: 3,
            missing,
        };
        let stats = Arc::new(Stats::default());
        let cache = NodeCache::open(&self.state.path().join("nodes")).unwrap();
        let remote = Arc::clone(&self.remote) as Arc<dyn Remote>;
        let outcome = engine::run(settings, remote, cache, Arc::clone(&stats), Arc::default()).unwrap();
        self.parent = outcome.trees.clone();
        (outcome, stats)
    }

    fn node(&self, id: ChunkId) -> Node {
        let (header, raw) = self.open(id);
        Node::decode(header.kind, &header.links, &raw).unwrap()
    }

    fn open(&self, id: ChunkId) -> (holdfast_repo::BlobHeader, Vec<u8>) {
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

    fn content(&self, content: &Content) -> Vec<u8> {
        let chunks = match content {
            Content::Inline(chunks) => chunks.clone(),
            Content::Node(top) => match self.node(*top) {
                Node::File(FileNode::Leaf(chunks)) => chunks,
                other => panic!("{other:?}"),
            },
        };
        chunks.iter().flat_map(|chunk| self.open(chunk.id).1).collect()
    }

    fn entries(&self, top: ChunkId) -> Vec<Entry> {
        match self.node(top) {
            Node::Dir(DirNode::Leaf(entries)) => entries,
            Node::Dir(DirNode::Index(children)) => children.iter().flat_map(|c| self.entries(c.id)).collect(),
            Node::File(node) => panic!("{node:?}"),
        }
    }

    /// Everything below an entry: path -> (mode, mtime ns, content or target).
    fn flatten(&self, entry: &Entry, path: &Path, out: &mut Tree) {
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

    fn stored_tree(&self, outcome: &Outcome) -> Tree {
        let mut tree = Tree::new();
        self.flatten(&outcome.trees[0].entry, Path::new(""), &mut tree);
        tree
    }
}

type Tree = BTreeMap<std::path::PathBuf, (u32, i128, Vec<u8>)>;

fn real_tree(root: &Path) -> Tree {
    fn visit(path: &Path, relative: &Path, out: &mut Tree) {
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

fn noise(seed: u64, len: usize) -> Vec<u8> {
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
fn make_tree(root: &Path) {
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

fn spec(root: &Path) -> FilesSpec {
    FilesSpec {
        roots: vec![root.to_str().unwrap().into()],
        ..FilesSpec::default()
    }
}

#[test]
fn a_tree_goes_in_whole_and_a_second_run_sends_only_what_changed() {
    let dir = tempfile::tempdir().unwrap();
    make_tree(dir.path());
    let mut host = Host::new();
    let (outcome, stats) = host.back_up(&spec(dir.path()));
    assert_eq!(host.stored_tree(&outcome), real_tree(dir.path()));
    let counts = stats.snapshot();
    assert_eq!((counts.files, counts.symlinks, counts.unreadable), (804, 1, 0));
    assert!(counts.files_unchanged == 0 && counts.bytes > 23_000_000);

    let (again, stats) = host.back_up(&spec(dir.path()));
    let counts = stats.snapshot();
    assert_eq!(again.trees, outcome.trees, "an unchanged tree is the same tree");
    assert_eq!(
        (counts.files_unchanged, counts.bytes_read, counts.packs),
        (804, 0, 0)
    );
    assert_eq!(*host.remote.fetched.lock(), 0, "nodes come from the cache");

    fs::write(dir.path().join("dir-3/sub/f5"), b"changed").unwrap();
    fs::remove_file(dir.path().join("dir-4/sub/f6")).unwrap();
    let (changed, stats) = host.back_up(&spec(dir.path()));
    assert_eq!(host.stored_tree(&changed), real_tree(dir.path()));
    let counts = stats.snapshot();
    assert_eq!(
        (counts.files, counts.files_unchanged, counts.bytes_read),
        (803, 802, 7)
    );
}

#[test]
fn losing_the_cache_costs_fetches_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    make_tree(dir.path());
    let mut host = Host::new();
    let (first, _) = host.back_up(&spec(dir.path()));
    fs::write(host.state.path().join("nodes"), noise(1, 5000)).unwrap();
    let (again, stats) = host.back_up(&spec(dir.path()));
    assert_eq!(again.trees, first.trees);
    assert_eq!(stats.snapshot().bytes_read, 0);
    assert!(*host.remote.fetched.lock() > 20);
}

#[test]
fn what_the_other_side_lost_is_sent_again() {
    let dir = tempfile::tempdir().unwrap();
    make_tree(dir.path());
    let mut host = Host::new();
    let (first, _) = host.back_up(&spec(dir.path()));
    let everything: HashSet<ChunkId> = host.remote.blobs.lock().keys().copied().collect();
    let lost: HashSet<ChunkId> = everything.iter().copied().filter(|id| id.0[0] % 3 == 0).collect();
    host.remote.blobs.lock().retain(|id, _| !lost.contains(id));
    let (again, _) = host.back_up_missing(&spec(dir.path()), lost);
    assert_eq!(again.trees, first.trees);
    assert_eq!(host.stored_tree(&again), real_tree(dir.path()));
}

#[test]
fn rules_leave_out_what_they_name_and_own_state_is_never_read() {
    let dir = tempfile::tempdir().unwrap();
    make_tree(dir.path());
    fs::create_dir(dir.path().join("store")).unwrap();
    fs::create_dir(dir.path().join("store/packs")).unwrap();
    fs::write(dir.path().join("store/holdfast-store.toml"), b"x").unwrap();
    let mut host = Host::new();
    let exclude = vec!["large".into(), "/dir-1*/".into()];
    let (outcome, _) = host.back_up(&FilesSpec {
        exclude,
        ..spec(dir.path())
    });
    let tree = host.stored_tree(&outcome);
    assert!(
        !tree
            .keys()
            .any(|path| path.starts_with("large") || path.starts_with("dir-1") || path.starts_with("store"))
    );
    assert!(tree.contains_key(Path::new("dir-2/sub/f1")));
}

#[test]
fn several_roots_and_single_files_are_trees_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    make_tree(dir.path());
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let roots = vec![path("dir-5"), path("large"), path("dir-6")];
    let mut host = Host::new();
    let (outcome, _) = host.back_up(&FilesSpec {
        roots: roots.clone(),
        ..FilesSpec::default()
    });
    let paths: Vec<_> = outcome
        .trees
        .iter()
        .map(|tree| String::from_utf8(tree.path.clone()).unwrap())
        .collect();
    assert_eq!(paths, roots);
    let EntryKind::File { content, .. } = &outcome.trees[1].entry.kind else {
        panic!("not a file")
    };
    assert_eq!(host.content(content), fs::read(dir.path().join("large")).unwrap());
}

#[test]
fn a_file_that_changes_all_the_time_is_stored_and_marked() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("busy");
    fs::write(&path, noise(1, 20 << 20)).unwrap();
    fs::write(dir.path().join("calm"), b"calm").unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let writer = {
        let (path, stop) = (path.clone(), Arc::clone(&stop));
        std::thread::spawn(move || {
            let file = fs::OpenOptions::new().write(true).open(path).unwrap();
            let mut round = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                std::os::unix::fs::FileExt::write_all_at(&file, &round.to_le_bytes(), round * 8 % (20 << 20))
                    .unwrap();
                round += 1;
            }
        })
    };
    let mut host = Host::new();
    let (outcome, stats) = host.back_up(&spec(dir.path()));
    stop.store(true, Ordering::Relaxed);
    writer.join().unwrap();
    let EntryKind::Dir { node, .. } = outcome.trees[0].entry.kind else {
        panic!("not a directory")
    };
    let marks: Vec<_> = host
        .entries(node)
        .iter()
        .map(|entry| entry.changed_while_read)
        .collect();
    assert_eq!(marks, [true, false]);
    assert_eq!(stats.snapshot().files_changing, 1);
    assert_eq!(
        stats.snapshot().unreadable,
        0,
        "a busy file does not make a run partial"
    );
}

#[test]
fn a_cancelled_run_ends_with_an_error() {
    let dir = tempfile::tempdir().unwrap();
    make_tree(dir.path());
    let host = Host::new();
    let settings = Settings {
        keys: Arc::clone(&host.keys),
        selection: Arc::new(Selection::open(&spec(dir.path()), &["/".into()], &[]).unwrap()),
        parent: Vec::new(),
        workers: 2,
        level: 3,
        missing: HashSet::new(),
    };
    let cache = NodeCache::open(&host.state.path().join("nodes")).unwrap();
    let cancel = Arc::new(AtomicBool::new(true));
    let outcome = engine::run(settings, host.remote.clone(), cache, Arc::default(), cancel);
    assert!(outcome.is_err());
}
