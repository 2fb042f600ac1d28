//! Changed parts of large files cost about what changed, and every version still comes back.

use crate::host::{Host, noise, real_tree, spec};
use holdfast_core::ChunkId;
use holdfast_repo::{Content, Entry, EntryKind, FileNode, Node, Segment};
use std::{collections::HashSet, fs, os::unix::fs::FileExt as _, path::Path};

const PAGE: usize = 8192;

/// A file that is recognised as one that is rewritten in place.
fn image(len: usize) -> Vec<u8> {
    let mut bytes = noise(1, len);
    bytes[..16].copy_from_slice(b"SQLite format 3\0");
    bytes
}

fn stored(host: &Host) -> usize {
    host.remote.blobs.lock().values().map(bytes::Bytes::len).sum()
}

fn segments(host: &Host, entry: &Entry) -> Vec<Segment> {
    let EntryKind::File { content, .. } = &entry.kind else {
        panic!("{entry:?}")
    };
    match content {
        Content::Inline(chunks) => chunks.iter().copied().map(Segment::Whole).collect(),
        Content::Node(top) => nodes(host, *top),
    }
}

fn nodes(host: &Host, top: ChunkId) -> Vec<Segment> {
    match host.node(top) {
        Node::File(FileNode::Leaf(segments)) => segments,
        Node::File(FileNode::Index(children)) => {
            children.iter().flat_map(|(id, _)| nodes(host, *id)).collect()
        }
        Node::Dir(_) => panic!("a directory"),
    }
}

fn only_file(host: &Host) -> Entry {
    let EntryKind::Dir { node, .. } = host.parent[0].entry.kind else {
        panic!("no directory")
    };
    host.entries(node).remove(0)
}

#[test]
fn rewritten_pages_cost_their_bytes_again_and_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("base.db");
    let len = 70 << 20;
    fs::write(&path, image(len)).unwrap();
    let mut host = Host::new();
    host.back_up(&spec(dir.path()));
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    for run in 1..=5_u64 {
        for page in 0..70_u64 {
            let at = (page * 1_048_576 + run * 7 * PAGE as u64 + page % 3 * PAGE as u64) % len as u64;
            file.write_all_at(&noise(run * 1000 + page, PAGE), at).unwrap();
        }
        let before = stored(&host);
        let (outcome, stats) = host.back_up(&spec(dir.path()));
        let grown = stored(&host) - before;
        assert!(grown < 70 * PAGE * 5 / 4, "run {run}: {grown} for {}", 70 * PAGE);
        assert_eq!(stats.snapshot().files_unchanged, 0);
        assert_eq!(host.stored_tree(&outcome), real_tree(dir.path()), "run {run}");
    }
    let parts = segments(&host, &only_file(&host));
    assert!(parts.iter().filter(|s| matches!(s, Segment::Parts(_))).count() >= 60);
}

#[test]
fn a_segment_of_too_many_patches_is_stored_whole_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("base.db");
    fs::write(&path, image(64 << 20)).unwrap();
    let mut host = Host::new();
    host.back_up(&spec(dir.path()));
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    let mut whole_again = 0;
    for run in 0..70_u64 {
        file.write_all_at(&noise(run + 5, PAGE), (1 << 20) + run * PAGE as u64)
            .unwrap();
        let (outcome, _) = host.back_up(&spec(dir.path()));
        if run % 10 == 9 {
            assert_eq!(host.stored_tree(&outcome), real_tree(dir.path()), "run {run}");
        }
        match &segments(&host, &only_file(&host))[1] {
            Segment::Parts(parts) => assert!(parts.chunks().len() <= 64),
            Segment::Whole(_) => whole_again += 1,
            Segment::Hole(_) => panic!("a hole"),
        }
    }
    assert_eq!(whole_again, 1);
}

#[test]
fn insertions_into_text_cost_little() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal.txt");
    let mut content = noise(3, 24 << 20);
    fs::write(&path, &content).unwrap();
    let mut host = Host::new();
    host.back_up(&spec(dir.path()));
    for run in 0..3_usize {
        for at in 0..24 {
            let place = (at * 1_000_003 + run * 77_777) % content.len();
            content.splice(place..place, *b"a line more\n");
        }
        fs::write(&path, &content).unwrap();
        let before = stored(&host);
        let (outcome, _) = host.back_up(&spec(dir.path()));
        let grown = stored(&host) - before;
        assert!(grown < 24 * 4 * PAGE, "run {run}: {grown}");
        assert_eq!(host.stored_tree(&outcome), real_tree(dir.path()), "run {run}");
    }
}

#[test]
fn a_rotten_or_lost_signature_cache_costs_bytes_and_nothing_else() {
    for rot in 0..3 {
        let dir = tempfile::tempdir().unwrap();
        let (fixed, moved) = (dir.path().join("base.db"), dir.path().join("text"));
        fs::write(&fixed, image(66 << 20)).unwrap();
        fs::write(&moved, noise(9, 8 << 20)).unwrap();
        let mut host = Host::new();
        host.back_up(&spec(dir.path()));
        let cache = host.state.path().join("source.signatures");
        let mut bytes = fs::read(&cache).unwrap();
        match rot {
            // Every record is damaged somewhere.
            0 => bytes.iter_mut().step_by(997).for_each(|byte| *byte ^= 0x20),
            // Records are exchanged: whole, but filed under another segment.
            1 => {
                let record = 4 + 32 + 1 + 128 * 32 + 32;
                let (a, b) = bytes[8..].split_at_mut(record);
                a[36..].swap_with_slice(&mut b[36..record]);
            }
            _ => bytes.clear(),
        }
        fs::write(&cache, bytes).unwrap();
        let file = fs::OpenOptions::new().write(true).open(&fixed).unwrap();
        file.write_all_at(&noise(5, PAGE), 40_960).unwrap();
        file.write_all_at(&noise(6, PAGE), (1 << 20) + 8192).unwrap();
        let mut text = fs::read(&moved).unwrap();
        text.splice(5_000_000..5_000_000, *b"inserted");
        fs::write(&moved, text).unwrap();
        let (outcome, _) = host.back_up(&spec(dir.path()));
        assert_eq!(host.stored_tree(&outcome), real_tree(dir.path()), "rot {rot}");
    }
}

#[test]
fn parts_of_chunks_that_the_other_side_lost_are_stored_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("base.db");
    fs::write(&path, image(66 << 20)).unwrap();
    let mut host = Host::new();
    host.back_up(&spec(dir.path()));
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&noise(5, PAGE), 5 << 20).unwrap();
    host.back_up(&spec(dir.path()));
    let Segment::Parts(parts) = &segments(&host, &only_file(&host))[5] else {
        panic!("not parts")
    };
    let lost: HashSet<ChunkId> = parts.chunks().into_iter().take(1).collect();
    host.remote.blobs.lock().retain(|id, _| !lost.contains(id));
    file.write_all_at(&noise(6, PAGE), (5 << 20) + 65_536).unwrap();
    let (outcome, _) = host.back_up_missing(&spec(dir.path()), lost);
    assert_eq!(host.stored_tree(&outcome), real_tree(dir.path()));
}

#[test]
fn holes_are_neither_read_nor_stored_and_large_ones_are_by_arithmetic() {
    let dir = tempfile::tempdir().unwrap();
    let sparse = |name: &str, len: u64, data: &[(u64, usize)]| {
        let file = fs::File::create(dir.path().join(name)).unwrap();
        file.set_len(len).unwrap();
        for (at, len) in data {
            file.write_all_at(&noise(*at, *len), *at).unwrap();
        }
        file
    };
    sparse("only a hole", 300 << 20, &[]);
    sparse("islands", 40 << 20, &[(1 << 20, 100_000), (9_437_184, 5_000_000)]);
    sparse("data at the end", (20 << 20) + 5, &[(20 << 20, 5)]);
    sparse("small", 100_000, &[(65_536, 10)]);
    let disk = sparse("disk", 100 << 20, &[(0, 4096), (50 << 20, 8192)]);
    disk.write_all_at(b"SQLite format 3\0", 0).unwrap();
    let mut host = Host::new();
    let (outcome, stats) = host.back_up(&spec(dir.path()));
    assert_eq!(host.stored_tree(&outcome), real_tree(dir.path()));
    assert!(stats.snapshot().bytes_read < 12 << 20, "{:?}", stats.snapshot());
    let EntryKind::Dir { node, .. } = host.parent[0].entry.kind else {
        panic!("no directory")
    };
    assert!(host.entries(node).iter().all(|entry| entry.is_sparse));

    // Beyond 1 TiB: nothing of it fits into memory or a store.
    fs::remove_file(dir.path().join("only a hole")).unwrap();
    let huge = 3_u64 << 40;
    sparse("huge", huge, &[(2 << 40, 4096)]);
    host.back_up(&spec(dir.path()));
    let EntryKind::Dir { node, .. } = host.parent[0].entry.kind else {
        panic!("no directory")
    };
    let entry = host
        .entries(node)
        .into_iter()
        .find(|entry| entry.name == b"huge")
        .unwrap();
    let segments = segments(&host, &entry);
    assert_eq!(segments.iter().map(Segment::len).sum::<u64>(), huge);
    assert!(segments.len() < 5, "{segments:?}");
    assert!(Path::new(dir.path()).exists());
}
