//! Any bytes as a node's payload with links: an error or a sound node, of bounded size.

#![no_main]

use holdfast_core::{ChunkId, limits};
use holdfast_repo::{DirNode, Entry, FileNode, Kind, Link, Links, Node, Segment};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let [kind, count, nodes, payload @ ..] = bytes else { return };
    let link = |n: u8| Link {
        id: ChunkId([n; 32]),
        is_node: nodes >> (n % 8) & 1 == 1,
    };
    let links = Links((0..*count).map(link).collect());
    let kind = if kind & 1 == 0 { Kind::Dir } else { Kind::File };
    match Node::decode(kind, &links, payload) {
        Ok(Node::Dir(DirNode::Leaf(entries))) => {
            assert!(entries.iter().all(|entry| Entry::is_safe_name(&entry.name)));
            assert!(entries.is_sorted_by(|a, b| a.name < b.name));
        }
        Ok(Node::Dir(DirNode::Index(children))) => {
            assert!(children.is_sorted_by(|a, b| a.first_name < b.first_name));
        }
        Ok(Node::File(FileNode::Leaf(segments))) => {
            for segment in segments {
                assert!(segment.len() > 0);
                if let Segment::Parts(parts) = segment {
                    assert!(parts.len() as usize <= limits::CHUNK_MAX);
                    assert!(parts.chunks().len() <= limits::SEGMENT_CHUNKS_MAX);
                }
            }
        }
        Ok(Node::File(FileNode::Index(children))) => assert!(!children.is_empty()),
        Err(_) => {}
    }
});
