//! Random file trees through the builders, sealed, opened and decoded again; and the walk without keys.

use crate::{
    random::{Random, cases},
    samples::{blob_bytes, keys},
};
use holdfast_core::{ChunkId, limits};
use holdfast_repo::{
    Attributes, BlobHeader, ChunkRef, Content, DirBuilder, DirNode, Entry, EntryKind, FileBuilder, FileNode,
    HardLink, Node, NodeDraft, Opener, Sealer, Segment, Strategy, Timestamp, VaultKeys,
};
use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

/// What a walk of the tree sees: path, entry, and all chunks of a file.
type Seen = Vec<(Vec<u8>, Entry, Vec<ChunkRef>)>;

struct World {
    keys: Arc<VaultKeys>,
    sealer: Sealer,
    blobs: HashMap<ChunkId, Vec<u8>>,
    expected: Seen,
    /// Entries and chunks that may still be made, so that a tree of trees stays small.
    budget: usize,
}

impl World {
    fn store(&mut self, drafts: Vec<NodeDraft>) {
        for draft in drafts {
            let id = draft.id;
            self.blobs
                .insert(id, blob_bytes(&self.sealer.seal_node(draft).unwrap()));
        }
    }

    fn spend(&mut self, count: usize) -> usize {
        let count = count.min(self.budget);
        self.budget -= count;
        count
    }

    fn file(&mut self, random: &mut Random) -> (EntryKind, Vec<ChunkRef>) {
        let count = match random.below(20) {
            0..12 => random.below(3),
            12..19 => random.below(30),
            _ => random.below(4000),
        };
        let count = self.spend(count);
        let keys = self.keys.clone();
        let mut builder = FileBuilder::default();
        let mut chunks = Vec::with_capacity(count);
        for _ in 0..count {
            let mut id = [0; 32];
            id.copy_from_slice(&random.bytes(32));
            // Files of equal blocks name one chunk many times.
            let id = if random.one_in(4) { [7; 32] } else { id };
            let len = 1 + random.below(limits::CHUNK_MAX) as u32;
            chunks.push(ChunkRef { id: ChunkId(id), len });
            builder.push(&keys, chunks[chunks.len() - 1]).unwrap();
            if random.one_in(100) {
                self.store(builder.take_nodes());
            }
        }
        let (content, drafts) = builder.finish(&keys).unwrap();
        self.store(drafts);
        let kind = EntryKind::File {
            size: chunks.iter().map(|chunk| u64::from(chunk.len)).sum(),
            strategy: if random.one_in(2) {
                Strategy::Fixed
            } else {
                Strategy::ContentDefined
            },
            content,
        };
        (kind, chunks)
    }

    fn dir(&mut self, random: &mut Random, path: &[u8], depth: usize) -> EntryKind {
        let mut names = BTreeSet::new();
        let count = if random.one_in(15) {
            random.below(3000)
        } else {
            random.below(12)
        };
        for _ in 0..self.spend(count) {
            let longest = if random.one_in(20) { 255 } else { 12 };
            let len = 1 + random.below(longest);
            let name: Vec<u8> = random
                .bytes(len)
                .into_iter()
                .filter(|b| !matches!(b, 0 | b'/'))
                .collect();
            if Entry::is_safe_name(&name) {
                names.insert(name);
            }
        }
        let keys = self.keys.clone();
        let mut builder = DirBuilder::new(&*keys);
        for name in names {
            let path = [path, b"/", &name].concat();
            let (kind, chunks) = match random.below(12) {
                0..7 => self.file(random),
                7 | 8 if depth > 0 => (self.dir(random, &path, depth - 1), Vec::new()),
                9 => (EntryKind::Fifo, Vec::new()),
                10 => {
                    let rdev = random.next();
                    let kind = if random.one_in(2) {
                        EntryKind::CharDevice { rdev }
                    } else {
                        EntryKind::BlockDevice { rdev }
                    };
                    (kind, Vec::new())
                }
                _ => {
                    let target = random.content(40).into_iter().map(|b| b.max(1)).collect();
                    (EntryKind::Symlink { target }, Vec::new())
                }
            };
            let entry = any_entry(random, name, kind);
            builder.push(&entry).unwrap();
            if random.one_in(50) {
                self.store(builder.take_nodes());
            }
            self.expected.push((path, entry, chunks));
        }
        let built = builder.finish().unwrap();
        self.store(built.nodes);
        EntryKind::Dir {
            node: built.id,
            files: built.files,
            bytes: built.bytes,
        }
    }
}

fn any_attributes(random: &mut Random, kind: &EntryKind) -> Option<Box<Attributes>> {
    if !random.one_in(3) {
        return None;
    }
    let mut xattrs = Vec::new();
    for _ in 0..random.below(4) {
        let len = if random.one_in(20) { 65_536 } else { 40 };
        let len = random.below(len);
        let name = 1 + random.below(30);
        let name = random.bytes(name).into_iter().map(|byte| byte.max(1)).collect();
        xattrs.push((name, random.content(len)));
    }
    let mut found = Attributes {
        xattrs: xattrs.into_iter().collect(),
        ..Attributes::default()
    };
    if random.one_in(3) && !matches!(kind, EntryKind::Dir { .. }) {
        let (device, names) = (random.next() >> random.below(64), 2 + random.next() / 2);
        found.hard_link = Some(HardLink { device, names });
    }
    if random.one_in(3) {
        found.flags = random.next() as u32;
    }
    found.boxed()
}

fn any_entry(random: &mut Random, name: Vec<u8>, kind: EntryKind) -> Entry {
    let mut time = || Timestamp {
        secs: random.next() as i64 >> random.below(64),
        nanos: random.below(1_000_000_000) as u32,
    };
    let (mtime, ctime) = (time(), time());
    Entry {
        name,
        mode: random.below(0o10000) as u32,
        uid: random.next() as u32,
        gid: random.next() as u32,
        mtime,
        ctime,
        inode: random.next(),
        changed_while_read: random.one_in(5),
        is_sparse: random.one_in(5),
        attributes: any_attributes(random, &kind),
        kind,
    }
}

struct Walk<'w> {
    opener: Opener,
    blobs: &'w HashMap<ChunkId, Vec<u8>>,
    seen: Seen,
}

impl Walk<'_> {
    fn node(&mut self, id: ChunkId) -> Node {
        let mut payload = Vec::new();
        let header = self.opener.open(id, &self.blobs[&id], &mut payload).unwrap();
        Node::decode(header.kind, &header.links, &payload).unwrap()
    }

    fn file(&mut self, id: ChunkId, out: &mut Vec<ChunkRef>) -> u64 {
        match self.node(id) {
            Node::File(FileNode::Leaf(segments)) => {
                out.extend(segments.iter().map(|segment| match segment {
                    Segment::Whole(chunk) => *chunk,
                    other => panic!("{other:?} was not put in"),
                }));
                segments.iter().map(Segment::len).sum()
            }
            Node::File(FileNode::Index(children)) => {
                let mut sum = 0;
                for (child, bytes) in children {
                    assert_eq!(self.file(child, out), bytes);
                    sum += bytes;
                }
                sum
            }
            Node::Dir(_) => panic!("a directory inside a file"),
        }
    }

    fn dir(&mut self, id: ChunkId, path: &[u8]) -> u64 {
        let entries = match self.node(id) {
            Node::Dir(DirNode::Index(children)) => {
                let mut sum = 0;
                for child in children {
                    assert_eq!(self.dir(child.id, path), child.entries);
                    sum += child.entries;
                }
                return sum;
            }
            Node::Dir(DirNode::Leaf(entries)) => entries,
            Node::File(_) => panic!("a file node where a directory should be"),
        };
        let count = entries.len() as u64;
        for entry in entries {
            let path = [path, b"/", &entry.name].concat();
            let mut chunks = Vec::new();
            match &entry.kind {
                EntryKind::File { content, size, .. } => match content {
                    Content::Inline(inline) => chunks.clone_from(inline),
                    Content::Node(id) => assert_eq!(self.file(*id, &mut chunks), *size),
                },
                EntryKind::Dir { node, .. } => {
                    self.dir(*node, &path);
                }
                _ => {}
            }
            self.seen.push((path, entry, chunks));
        }
        count
    }
}

/// Everything that hangs below a node, by clear headers alone.
fn closure(blobs: &HashMap<ChunkId, Vec<u8>>, top: ChunkId) -> (HashSet<ChunkId>, HashSet<ChunkId>) {
    let (mut nodes, mut data) = (HashSet::new(), HashSet::new());
    let mut queue = vec![top];
    while let Some(id) = queue.pop() {
        if !nodes.insert(id) {
            continue;
        }
        for link in BlobHeader::decode(&blobs[&id]).unwrap().links.0 {
            if link.is_node {
                queue.push(link.id);
            } else {
                data.insert(link.id);
            }
        }
    }
    (nodes, data)
}

fn round_trip(random: &mut Random) {
    let keys = keys();
    let mut world = World {
        sealer: Sealer::new(keys.clone(), 1).unwrap(),
        keys: keys.clone(),
        blobs: HashMap::new(),
        expected: Vec::new(),
        budget: 10_000,
    };
    let top = world.dir(random, b"", 4);
    let EntryKind::Dir { node, files, bytes } = top else {
        panic!("not a directory")
    };
    let mut walk = Walk {
        opener: Opener::new(keys).unwrap(),
        blobs: &world.blobs,
        seen: Vec::new(),
    };
    walk.dir(node, b"");
    assert!(walk.seen == world.expected, "the tree that came back differs");
    let regular = |entry: &&(Vec<u8>, Entry, Vec<ChunkRef>)| matches!(entry.1.kind, EntryKind::File { .. });
    assert_eq!(walk.seen.iter().filter(regular).count() as u64, files);
    assert_eq!(
        walk.seen.iter().map(|(_, entry, _)| entry.size()).sum::<u64>(),
        bytes
    );

    // A controller without keys reaches exactly what a reader with keys used.
    let (nodes, data) = closure(&world.blobs, node);
    let used: HashSet<_> = walk
        .seen
        .iter()
        .flat_map(|seen| seen.2.iter().map(|chunk| chunk.id))
        .collect();
    assert_eq!(data, used);
    assert_eq!(nodes.len(), world.blobs.len());
}

#[test]
fn any_tree_comes_back_and_is_walked_without_keys() {
    cases(
        "any_tree_comes_back_and_is_walked_without_keys",
        60,
        3000,
        round_trip,
    );
}

#[test]
fn entries_that_no_reader_would_take_are_refused_when_they_are_written() {
    let keys = keys();
    let chunk = ChunkRef {
        id: ChunkId([1; 32]),
        len: 10,
    };
    let file = |size, chunks: usize| EntryKind::File {
        size,
        strategy: Strategy::Fixed,
        content: Content::Inline(vec![chunk; chunks]),
    };
    let good = crate::samples::entry(b"name", file(20, 2));
    DirBuilder::new(&*keys).push(&good).unwrap();
    let with = |kind| Entry { kind, ..good.clone() };
    let long = |len| EntryKind::Symlink {
        target: vec![b'x'; len],
    };
    let bad = [
        with(file(21, 2)),
        with(file(90, 9)),
        with(long(4097)),
        with(EntryKind::Symlink {
            target: b"a\0b".to_vec(),
        }),
        Entry {
            mode: 0o100_644,
            ..good.clone()
        },
        Entry {
            mtime: Timestamp {
                secs: 0,
                nanos: 1_000_000_000,
            },
            ..good.clone()
        },
    ];
    for entry in bad {
        assert!(DirBuilder::new(&*keys).push(&entry).is_err(), "{entry:?}");
    }
}
