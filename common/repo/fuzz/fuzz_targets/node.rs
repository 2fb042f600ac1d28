//! Any bytes as a node's payload with links: an error or a sound node of bounded size, which a writer makes
//! again so that it reads the same.

#![no_main]

use holdfast_core::limits;
use holdfast_repo::{DirBuilder, DirNode, Entry, FileBuilder, FileNode, Kind, Node, NodeDraft, Segment};
use holdfast_repo_fuzz::{keys, links};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let [kind, count, nodes, payload @ ..] = bytes else {
        return;
    };
    let links = links(*count, *nodes);
    let kind = if kind & 1 == 0 { Kind::Dir } else { Kind::File };
    match Node::decode(kind, &links, payload) {
        Ok(Node::Dir(DirNode::Leaf(entries))) => {
            assert!(entries.iter().all(|entry| Entry::is_safe_name(&entry.name)));
            assert!(entries.is_sorted_by(|a, b| a.name < b.name));
            assert_eq!(entries_again(&entries), entries);
        }
        Ok(Node::Dir(DirNode::Index(children))) => {
            assert!(children.is_sorted_by(|a, b| a.first_name < b.first_name));
        }
        Ok(Node::File(FileNode::Leaf(segments))) => {
            for segment in &segments {
                assert!(segment.len() > 0);
                if let Segment::Parts(parts) = segment {
                    assert!(parts.len() as usize <= limits::CHUNK_MAX);
                    assert!(parts.chunks().len() <= limits::SEGMENT_CHUNKS_MAX);
                }
            }
            assert_eq!(segments_again(segments.clone()), segments);
        }
        Ok(Node::File(FileNode::Index(children))) => assert!(!children.is_empty()),
        Err(_) => {}
    }
});

fn entries_again(entries: &[Entry]) -> Vec<Entry> {
    let keys = keys();
    let mut builder = DirBuilder::new(&keys);
    for entry in entries {
        builder.push(entry).expect("what a reader takes, a writer takes");
    }
    let mut back = Vec::new();
    for node in builder.finish().expect("a directory").nodes {
        match decode(&node) {
            Node::Dir(DirNode::Leaf(entries)) => back.extend(entries),
            Node::Dir(DirNode::Index(_)) => {}
            Node::File(_) => unreachable!("a directory's node"),
        }
    }
    back
}

fn segments_again(segments: Vec<Segment>) -> Vec<Segment> {
    let keys = keys();
    let mut builder = FileBuilder::default();
    // Short files stand in their directory entry; a hole makes it a node.
    builder.push(&keys, Segment::Hole(1)).expect("a hole");
    for segment in segments {
        builder
            .push(&keys, segment)
            .expect("what a reader takes, a writer takes");
    }
    let mut back = Vec::new();
    for node in builder.finish(&keys).expect("a file").1 {
        match decode(&node) {
            Node::File(FileNode::Leaf(segments)) => back.extend(segments),
            Node::File(FileNode::Index(_)) => {}
            Node::Dir(_) => unreachable!("a file's node"),
        }
    }
    back.remove(0);
    back
}

fn decode(node: &NodeDraft) -> Node {
    Node::decode(node.kind, &node.links, &node.payload).expect("what was built")
}
