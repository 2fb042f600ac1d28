//! Damaged and hostile bytes: an error every time, never wrong content, never a panic.

use crate::{
    random::{Random, cases},
    samples::{VAULT, blob_bytes, entry, file, keys, root, signer},
};
use holdfast_core::{ChunkId, PackId};
use holdfast_repo::{
    Attributes, BlobHeader, ChunkRef, DirBuilder, DirNode, EntryKind, Extent, FileBuilder, FileNode,
    HardLink, Kind, Link, Links, Node, NodeDraft, Opener, PackDirectory, PackWriter, Parts, Root, RootClear,
    Sealer, Segment, VaultKeys,
    blob::{CRC_LEN, FIXED_LEN},
    pack::{TRAILER_LEN, Trailer},
};
use std::collections::HashMap;

/// Changes bytes in one of the ways that disks, networks and attackers do; always to something else.
fn mutate(random: &mut Random, original: &[u8]) -> Vec<u8> {
    loop {
        let mut bytes = original.to_vec();
        for _ in 0..=random.below(3) {
            let at = random.below(bytes.len());
            let len = random.below((bytes.len() - at).min(64) + 1);
            match random.below(8) {
                0 => bytes.truncate(at),
                1 => drop(bytes.drain(at..at + len)),
                2 => {
                    let count = random.below(64);
                    let noise = random.bytes(count);
                    drop(bytes.splice(at..at, noise));
                }
                3 => bytes[at..at + len].fill(0xff),
                4 => bytes[at..at + len].fill(0),
                5 => {
                    let copy = bytes[at..at + len].to_vec();
                    let to = random.below(bytes.len() - len + 1);
                    bytes[to..to + len].copy_from_slice(&copy);
                }
                _ => {
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte ^= 1 << random.below(8);
                    }
                }
            }
        }
        if bytes != original {
            return bytes;
        }
    }
}

struct Sample {
    id: PackId,
    bytes: Vec<u8>,
    directory: PackDirectory,
    /// What each chunk holds in truth.
    truth: HashMap<ChunkId, Vec<u8>>,
}

fn drafts() -> Vec<NodeDraft> {
    let keys = keys();
    let mut dir = DirBuilder::new(&*keys);
    for i in 0..20_u8 {
        let kind = match i % 3 {
            0 => file(&[(ChunkId([i; 32]), 5), (ChunkId([i + 1; 32]), 900)]),
            1 => EntryKind::Symlink {
                target: b"target".to_vec(),
            },
            _ => EntryKind::Dir {
                node: ChunkId([i; 32]),
                files: 3,
                bytes: 4,
            },
        };
        let mut entry = entry(&[b'a' + i], kind);
        if i % 2 == 0 {
            entry.attributes = Attributes {
                xattrs: [
                    (b"security.capability".to_vec(), vec![i; 20]),
                    (b"user.x".to_vec(), Vec::new()),
                ]
                .into(),
                hard_link: (i % 3 != 2).then_some(HardLink { device: 1, names: 3 }),
                flags: 0x10,
            }
            .boxed();
        }
        dir.push(&entry).unwrap();
    }
    let mut file = FileBuilder::default();
    for i in 0..1500_u32 {
        let id = ChunkId(*blake3::hash(&i.to_le_bytes()).as_bytes());
        file.push(&keys, ChunkRef { id, len: i + 1 }).unwrap();
        if i % 7 == 0 {
            let extent = |offset, len| Extent {
                chunk: id,
                offset,
                len,
            };
            let parts = Parts {
                hash: ChunkId([i as u8; 32]),
                extents: vec![extent(0, 1), extent(i, i + 1)],
            };
            file.push(&keys, Segment::Parts(parts)).unwrap();
            file.push(&keys, Segment::Hole(u64::from(i) << 20 | 1)).unwrap();
        }
    }
    let mut large = DirBuilder::new(&*keys);
    for i in 0..1200 {
        large
            .push(&entry(format!("{i:05}").as_bytes(), EntryKind::Fifo))
            .unwrap();
    }
    let mut all = dir.finish().unwrap().nodes;
    all.extend(file.finish(&keys).unwrap().1);
    // The last is the index above the leaves.
    all.extend(large.finish().unwrap().nodes.pop());
    all
}

fn sample() -> Sample {
    let keys = keys();
    let mut random = Random::new(1);
    let mut sealer = Sealer::new(keys.clone(), 3).unwrap();
    let mut writer = PackWriter::new(VAULT, Vec::new());
    let mut truth = HashMap::new();
    for len in [0, 1, 50, 3000, 3000] {
        let content = random.content(len);
        let id = keys.data_id(&content);
        writer.push(&sealer.seal_data(id, &content).unwrap());
        truth.insert(id, content);
    }
    let small = drafts().swap_remove(0);
    truth.insert(small.id, small.payload.clone());
    writer.push(&sealer.seal_node(small).unwrap());
    let (id, bytes) = writer.finish();
    let directory = PackDirectory::verify(&bytes, id, VAULT).unwrap();
    Sample {
        id,
        bytes,
        directory,
        truth,
    }
}

/// Opens whatever `directory` says is there: only the truth may come out.
fn open_all(opener: &mut Opener, sample: &Sample, directory: &PackDirectory, bytes: &[u8]) {
    let mut raw = Vec::new();
    for entry in &directory.entries {
        let Some(blob) = bytes.get(entry.offset as usize..entry.offset as usize + entry.len as usize) else {
            continue;
        };
        for id in sample.truth.keys().chain([&entry.id]) {
            if opener.open(*id, blob, &mut raw).is_ok() {
                assert_eq!(sample.truth.get(id), Some(&raw), "wrong bytes came out of {id}");
            }
        }
    }
}

/// Puts a right hash below changed bytes, as an attacker without keys can.
fn rehash(mut bytes: Vec<u8>) -> (PackId, Vec<u8>) {
    let body = bytes.len().saturating_sub(32);
    bytes.truncate(body);
    let id = PackId(*blake3::hash(&bytes).as_bytes());
    bytes.extend_from_slice(&id.0);
    (id, bytes)
}

/// Puts right header checksums into a pack whose blobs' headers were changed.
fn repair_checksums(directory: &PackDirectory, bytes: &mut [u8]) {
    for entry in &directory.entries {
        let Some(blob) = bytes.get_mut(entry.offset as usize..) else {
            continue;
        };
        if let Ok(len) = BlobHeader::peek_len(&blob[..blob.len().min(FIXED_LEN)])
            && len <= blob.len()
        {
            let crc = crc32c::crc32c(&blob[..len - CRC_LEN]);
            blob[len - CRC_LEN..len].copy_from_slice(&crc.to_le_bytes());
        }
    }
}

#[test]
fn damaged_packs_are_found_and_give_no_wrong_bytes() {
    let sample = sample();
    let mut opener = Opener::new(keys()).unwrap();
    cases("damaged_packs", 4000, 200_000, |random| {
        let mut bytes = mutate(random, &sample.bytes);
        assert!(PackDirectory::verify(&bytes, sample.id, VAULT).is_err());
        open_all(&mut opener, &sample, &sample.directory, &bytes);
        open_all(&mut opener, &sample, &PackDirectory::salvage(&bytes), &bytes);
        if random.one_in(2) {
            repair_checksums(&sample.directory, &mut bytes);
        }
        // Whoever holds no key can still make a pack that verifies: its blobs must not open as anything else.
        let (id, bytes) = rehash(bytes);
        if let Ok(directory) = PackDirectory::verify(&bytes, id, VAULT) {
            open_all(&mut opener, &sample, &directory, &bytes);
        }
        if let Some(trailer) = bytes.last_chunk::<TRAILER_LEN>() {
            let _ = Trailer::decode(trailer, bytes.len() as u64);
        }
        open_all(&mut opener, &sample, &PackDirectory::salvage(&bytes), &bytes);
    });
}

#[test]
fn damaged_and_forged_roots_are_refused() {
    let keys = keys();
    let bytes = root(ChunkId([8; 32])).encode(&keys, &signer(7)).unwrap();
    let attacker = aws_lc_rs::signature::Ed25519KeyPair::from_seed_unchecked(&[9; 32]).unwrap();
    let public = aws_lc_rs::signature::KeyPair::public_key(&attacker)
        .as_ref()
        .to_vec();
    let signer_at = bytes
        .windows(32)
        .position(|window| window == signer(7).public())
        .unwrap();
    cases("damaged_roots", 3000, 200_000, |random| {
        let mut bytes = mutate(random, &bytes);
        assert!(RootClear::decode(&bytes).is_err());
        assert!(Root::open(&bytes, &keys).is_err());
        // Signed again by someone who has no key of the vault: the signature may hold, the MAC may not.
        if bytes.len() > signer_at + 32 + 64 {
            bytes[signer_at..signer_at + 32].copy_from_slice(&public);
            let signed = bytes.len() - 64;
            let signature = attacker.sign(&bytes[..signed]);
            bytes[signed..].copy_from_slice(signature.as_ref());
            let _ = RootClear::decode(&bytes);
            assert!(Root::open(&bytes, &keys).is_err());
        }
    });
}

#[test]
fn sealed_nodes_that_were_damaged_do_not_open() {
    let keys = keys();
    let mut sealer = Sealer::new(keys.clone(), 3).unwrap();
    let mut opener = Opener::new(keys).unwrap();
    let blobs: Vec<_> = drafts()
        .into_iter()
        .map(|draft| (draft.id, blob_bytes(&sealer.seal_node(draft).unwrap())))
        .collect();
    let mut raw = Vec::new();
    cases("damaged_nodes", 4000, 200_000, |random| {
        let (id, blob) = &blobs[random.below(blobs.len())];
        assert!(opener.open(*id, &mutate(random, blob), &mut raw).is_err());
    });
}

/// A holder of the vault's key may seal any payload: what decodes must be sound, and nothing may panic.
#[test]
fn hostile_payloads_decode_to_sound_nodes_or_not_at_all() {
    let drafts = drafts();
    let keys = keys();
    let (mut sound, mut refused) = (0_u64, 0_u64);
    cases("hostile_payloads", 20_000, 1_000_000, |random| {
        let draft = &drafts[random.below(drafts.len())];
        let mut links = draft.links.clone();
        if random.one_in(3) && !links.0.is_empty() {
            match random.below(3) {
                0 => links.0.truncate(random.below(links.0.len())),
                1 => links.0.push(Link {
                    id: ChunkId([0; 32]),
                    is_node: random.one_in(2),
                }),
                _ => {
                    let at = random.below(links.0.len());
                    links.0[at].is_node ^= true;
                }
            }
        }
        let payload = mutate(random, &draft.payload);
        let kind = if random.one_in(20) { Kind::File } else { draft.kind };
        match Node::decode(kind, &links, &payload) {
            Err(_) => refused += 1,
            Ok(node) => {
                sound += 1;
                check(&keys, &node);
            }
        }
    });
    println!("{sound} decoded, {refused} refused");
    assert!(sound > 0 && refused > 0, "the mutations reach only one side");
}

fn check(keys: &VaultKeys, node: &Node) {
    match node {
        Node::Dir(DirNode::Leaf(entries)) => {
            // Whatever is read can be written again, and reads back the same.
            let mut builder = DirBuilder::new(keys);
            entries.iter().for_each(|entry| builder.push(entry).unwrap());
            let mut back = Vec::new();
            for draft in builder.finish().unwrap().nodes {
                if let Ok(Node::Dir(DirNode::Leaf(more))) =
                    Node::decode(Kind::Dir, &draft.links, &draft.payload)
                {
                    back.extend(more);
                }
            }
            assert_eq!(&back, entries);
        }
        Node::Dir(DirNode::Index(children)) => {
            assert!(
                children
                    .windows(2)
                    .all(|pair| pair[0].first_name < pair[1].first_name)
            );
        }
        Node::File(FileNode::Leaf(segments)) => assert!(segments.iter().all(|segment| segment.len() > 0)),
        Node::File(FileNode::Index(children)) => assert!(!children.is_empty()),
    }
}

#[test]
fn damaged_keys_are_refused_or_are_other_keys() {
    let bytes = keys().encode();
    cases("damaged_keys", 4000, 200_000, |random| {
        let mutated = mutate(random, &bytes);
        // There is no checksum inside: the seal around keys is what finds damage. One form per value.
        if let Ok(keys) = VaultKeys::decode(&mutated) {
            assert_eq!(*keys.encode(), mutated);
        }
    });
}

#[test]
fn links_and_headers_take_any_bytes() {
    cases("links_and_headers", 4000, 200_000, |random| {
        let count = random.below(300);
        let len = random.below(300);
        let bytes = random.bytes(len);
        if let Ok(links) = Links::decode(count, &bytes) {
            let mut out = Vec::new();
            links.encode_into(&mut out);
            assert_eq!(out, bytes);
        }
        let _ = PackDirectory::salvage(&bytes);
        let _ = RootClear::decode(&bytes);
    });
}
