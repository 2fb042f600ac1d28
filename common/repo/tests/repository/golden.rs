//! Golden files: bytes of version 1 that every later version must read, and bytes that it must still write.
//!
//! Blobs and roots hold random nonces, so what is compared is what comes out of the committed bytes; what is
//! deterministic (headers, payloads, directories, keys, ids) is compared byte for byte, and the layouts are
//! written out here by hand from FORMAT.md, not with the crate's own encoders.
//! `HOLDFAST_GOLDEN_WRITE=1 cargo test -p holdfast-repo golden -- --test-threads=1` makes missing files; delete
//! one to renew it. A file of a released version is never renewed.

use crate::samples::{EPOCH_KEY, ID_KEY, VAULT, blob_bytes, entry, file, hex_bytes, keys, root, signer};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use holdfast_core::{ChunkId, PackId};
use holdfast_repo::{
    Attributes, BlobHeader, ChunkRef, Codec, Content, DirBuilder, DirNode, Entry, EntryKind, Extent,
    FileBuilder, FileNode, HardLink, Kind, Node, NodeDraft, Opener, PackDirectory, PackWriter, Parts, Root,
    RootClear, Sealer, Segment, VaultKeys,
};
use std::path::PathBuf;

/// The committed file, made first where it is missing and making was asked for.
fn golden(name: &str, make: impl FnOnce() -> Vec<u8>) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name);
    if !path.exists() && std::env::var_os("HOLDFAST_GOLDEN_WRITE").is_some() {
        std::fs::write(&path, make()).unwrap();
    }
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A committed file of deterministic bytes, which this version must still write.
fn golden_exact(name: &str, made: &[u8]) {
    assert!(
        golden(name, || made.to_vec()) == made,
        "{name}: written otherwise than before"
    );
}

fn raw_content() -> Vec<u8> {
    b"short content".to_vec()
}

fn zstd_content() -> Vec<u8> {
    b"holdfast keeps what it holds. ".repeat(40)
}

fn data_id_by_hand(content: &[u8]) -> ChunkId {
    let key = blake3::derive_key("holdfast v1 chunk id data", &ID_KEY);
    ChunkId(*blake3::keyed_hash(&key, content).as_bytes())
}

fn node_id_by_hand(context: &str, section: &[u8], payload: &[u8]) -> ChunkId {
    let key = blake3::derive_key(context, &ID_KEY);
    let all = [&(section.len() as u32).to_le_bytes(), section, payload].concat();
    ChunkId(*blake3::keyed_hash(&key, &all).as_bytes())
}

fn chunk(n: u8) -> ChunkRef {
    ChunkRef {
        id: ChunkId([n; 32]),
        len: 100_000 + u32::from(n),
    }
}

fn file_leaf() -> NodeDraft {
    let keys = keys();
    let mut builder = FileBuilder::default();
    (1..=9).for_each(|n| builder.push(&keys, chunk(n)).unwrap());
    let (content, mut nodes) = builder.finish(&keys).unwrap();
    let draft = nodes.remove(0);
    assert!(nodes.is_empty() && content == Content::Node(draft.id));
    draft
}

fn entries() -> Vec<Entry> {
    let mut changed = entry(b"changed", file(&[(data_id_by_hand(b"x"), 1)]));
    changed.changed_while_read = true;
    let big = EntryKind::File {
        size: (1..=9).map(|n| u64::from(chunk(n).len)).sum(),
        strategy: holdfast_repo::Strategy::Fixed,
        content: Content::Node(file_leaf().id),
    };
    let dir = EntryKind::Dir {
        node: ChunkId([0xdd; 32]),
        files: 2,
        bytes: 300,
    };
    vec![
        entry(b"big.img", big),
        entry(b"block", EntryKind::BlockDevice { rdev: 0x801 }),
        changed,
        entry(b"char", EntryKind::CharDevice { rdev: 0x103 }),
        entry(b"dir", dir),
        entry(b"empty", file(&[])),
        entry(b"fifo", EntryKind::Fifo),
        entry(
            b"link",
            EntryKind::Symlink {
                target: b"../any\xffwhere".to_vec(),
            },
        ),
        entry(
            "n\u{e4}me".as_bytes(),
            file(&[(ChunkId([9; 32]), 7), (ChunkId([8; 32]), 300)]),
        ),
    ]
}

fn dir_leaf() -> NodeDraft {
    let keys = keys();
    let mut builder = DirBuilder::new(&*keys);
    entries().iter().for_each(|entry| builder.push(entry).unwrap());
    builder.finish().unwrap().nodes.remove(0)
}

/// A directory of one entry with everything that few entries have.
fn dir_of_attributes() -> (Entry, NodeDraft) {
    let keys = keys();
    let mut entry = entry(b"f", EntryKind::Fifo);
    entry.is_sparse = true;
    let xattrs = [(&b"security.x"[..], &b"\0\xff"[..]), (b"user.e", b"")];
    entry.attributes = Attributes {
        xattrs: xattrs.map(|(name, value)| (name.to_vec(), value.to_vec())).into(),
        hard_link: Some(HardLink {
            device: 300,
            names: 2,
        }),
        flags: 0x90,
    }
    .boxed();
    let mut builder = DirBuilder::new(&*keys);
    builder.push(&entry).unwrap();
    (entry, builder.finish().unwrap().nodes.remove(0))
}

/// The top node of a directory of 3000 entries.
fn dir_index() -> NodeDraft {
    let keys = keys();
    let mut builder = DirBuilder::new(&*keys);
    for i in 0..3000 {
        builder
            .push(&entry(format!("entry-{i:05}").as_bytes(), EntryKind::Fifo))
            .unwrap();
    }
    builder.finish().unwrap().nodes.pop().unwrap()
}

/// The top node of a file of 5000 chunks.
fn file_index() -> NodeDraft {
    let keys = keys();
    let mut builder = FileBuilder::default();
    for i in 0..5000_u32 {
        let id = ChunkId(*blake3::hash(&i.to_le_bytes()).as_bytes());
        builder.push(&keys, ChunkRef { id, len: 1 + i }).unwrap();
    }
    builder.finish(&keys).unwrap().1.pop().unwrap()
}

fn sealed(draft: NodeDraft) -> Vec<u8> {
    blob_bytes(&Sealer::new(keys(), 3).unwrap().seal_node(draft).unwrap())
}

fn sealed_data(content: &[u8]) -> Vec<u8> {
    let id = keys().data_id(content);
    blob_bytes(&Sealer::new(keys(), 3).unwrap().seal_data(id, content).unwrap())
}

fn open(id: ChunkId, blob: &[u8]) -> (BlobHeader, Vec<u8>) {
    let mut raw = Vec::new();
    (
        Opener::new(keys()).unwrap().open(id, blob, &mut raw).unwrap(),
        raw,
    )
}

/// A blob's header as FORMAT.md gives it.
fn header_by_hand(
    codec: u8,
    kind: u8,
    class: u8,
    sealed_len: usize,
    id: ChunkId,
    links: &[(ChunkId, bool)],
) -> Vec<u8> {
    let mut out = b"HFB1".to_vec();
    out.extend_from_slice(&[1, 1, codec, kind, 0, 0, class, 0]);
    out.extend_from_slice(&1_u32.to_le_bytes());
    out.extend_from_slice(&(sealed_len as u32).to_le_bytes());
    out.extend_from_slice(&(links.len() as u32).to_le_bytes());
    out.extend_from_slice(&id.0);
    links.iter().for_each(|(id, _)| out.extend_from_slice(&id.0));
    let mut bits = vec![0; links.len().div_ceil(8)];
    links
        .iter()
        .enumerate()
        .for_each(|(i, link)| bits[i / 8] |= u8::from(link.1) << (i % 8));
    out.extend_from_slice(&bits);
    let crc = crc32c::crc32c(&out);
    out.extend_from_slice(&crc.to_le_bytes());
    out
}

#[test]
fn vault_keys_read_and_write_the_same_bytes() {
    golden_exact("keys.bin", &keys().encode());
    let mut by_hand = b"HFVK\x01\0".to_vec();
    by_hand.extend_from_slice(&VAULT.0);
    // Two generations, then two epochs; the second epoch's number takes two bytes.
    for (count, keys) in [(2, [(1, 0x22), (2, 0x66)]), (2, [(1, 0x33), (200, 0x77)])] {
        by_hand.push(count);
        for (number, byte) in keys {
            if number < 128 {
                by_hand.push(number);
            } else {
                by_hand.extend_from_slice(&[number, 1]);
            }
            by_hand.extend_from_slice(&[byte; 32]);
        }
    }
    golden_exact("keys-rotated.bin", &by_hand);
    let rotated = VaultKeys::decode(&by_hand).unwrap();
    assert_eq!(*rotated.encode(), by_hand);
    assert_eq!((rotated.vault(), rotated.current_epoch()), (VAULT, 200));
    // What the first generation and epoch wrote stays readable after rotation.
    let old = golden("blob-data-raw.bin", || sealed_data(&raw_content()));
    let mut raw = Vec::new();
    let mut opener = Opener::new(rotated.into()).unwrap();
    opener
        .open(data_id_by_hand(&raw_content()), &old, &mut raw)
        .unwrap();
    assert_eq!(raw, raw_content());
}

#[test]
fn derived_keys_and_ids_are_part_of_the_format() {
    let keys = keys();
    assert_eq!(keys.data_id(b"content"), data_id_by_hand(b"content"));
    assert_eq!(
        *keys.gear_key(),
        blake3::derive_key("holdfast v1 gear table", &ID_KEY)
    );
    let ids = format!(
        "data {}\nfile leaf {}\nfile index {}\ndir leaf {}\ndir index {}\nendorsement {}\n",
        keys.data_id(b"content"),
        file_leaf().id,
        file_index().id,
        dir_leaf().id,
        dir_index().id,
        ChunkId(keys.endorse(b"signing key", b"sealing key")),
    );
    golden_exact("ids.txt", ids.as_bytes());
}

#[test]
fn data_blobs_open_and_have_their_layout() {
    let raw_blob = golden("blob-data-raw.bin", || sealed_data(&raw_content()));
    let zstd_blob = golden("blob-data-zstd.bin", || sealed_data(&zstd_content()));
    for (blob, content, codec, class) in [
        (&raw_blob, raw_content(), Codec::Raw, 4),
        (&zstd_blob, zstd_content(), Codec::Zstd, 11),
    ] {
        let id = data_id_by_hand(&content);
        let (header, raw) = open(id, blob);
        assert_eq!(raw, content);
        assert_eq!(header.codec, codec);
        let by_hand = header_by_hand(codec as u8, 1, class, blob.len() - 60, id, &[]);
        assert_eq!(blob[..60], by_hand);
        let mut encoded = Vec::new();
        header.encode_into(&mut encoded);
        assert_eq!(encoded, by_hand);
    }
    // The sealed part of the raw one, opened by hand.
    let id = data_id_by_hand(&raw_content());
    let (head, sealed) = raw_blob.split_at(60);
    let key = blake3::keyed_hash(&EPOCH_KEY, &[b"blob", &id.0[..]].concat());
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key.as_bytes()).unwrap());
    let nonce = Nonce::try_assume_unique_for_key(&sealed[..12]).unwrap();
    let mut plain = sealed[12..].to_vec();
    let plain = key.open_in_place(nonce, Aad::from(head), &mut plain).unwrap();
    assert_eq!(plain, [&13_u32.to_le_bytes()[..], &raw_content()].concat());
}

#[test]
fn file_nodes_open_and_have_their_layout() {
    let draft = file_leaf();
    let mut by_hand = vec![1, 0, 9];
    for n in 1..=9_u8 {
        // 100 001 … 100 009 as LEB128.
        by_hand.extend_from_slice(&[0, 0xa0 + n, 0x8d, 0x06]);
    }
    golden_exact("payload-file-leaf.bin", &by_hand);
    assert_eq!(draft.payload, by_hand);
    let section: Vec<u8> = (1..=9_u8).flat_map(|n| [n; 32]).chain([0, 0]).collect();
    assert_eq!(
        draft.id,
        node_id_by_hand("holdfast v1 chunk id file node", &section, &by_hand)
    );

    let blob = golden("blob-file-leaf.bin", || sealed(draft.clone()));
    let (header, payload) = open(draft.id, &blob);
    let links: Vec<_> = (1..=9).map(|n| (chunk(n).id, false)).collect();
    let head_len = 56 + 9 * 32 + 2 + 4;
    let codec = header.codec as u8;
    assert_eq!(
        blob[..head_len],
        header_by_hand(codec, 2, 6, blob.len() - head_len, draft.id, &links)
    );
    let leaf = Node::decode(header.kind, &header.links, &payload).unwrap();
    assert_eq!(
        leaf,
        Node::File(FileNode::Leaf(
            (1..=9).map(|n| Segment::Whole(chunk(n))).collect()
        ))
    );

    let mut builder = FileBuilder::default();
    let extent = |n: u8, offset, len| Extent {
        chunk: ChunkId([n; 32]),
        offset,
        len,
    };
    let segments = [
        Segment::Whole(chunk(1)),
        Segment::Parts(Parts {
            hash: ChunkId([0xaa; 32]),
            extents: vec![extent(1, 0, 8192), extent(2, 300, 8192), extent(1, 16_384, 1)],
        }),
        Segment::Hole(1 << 40),
    ];
    for segment in &segments {
        builder.push(&keys(), segment.clone()).unwrap();
    }
    let draft = builder.finish(&keys()).unwrap().1.remove(0);
    let mut by_hand = vec![1, 0, 3, 0, 0xa1, 0x8d, 0x06];
    by_hand.extend_from_slice(&[1, 0x81, 0x80, 0x01]);
    by_hand.extend_from_slice(&[0xaa; 32]);
    by_hand.extend_from_slice(&[
        3, 0, 0, 0x80, 0x40, 1, 0xac, 0x02, 0x80, 0x40, 0, 0x80, 0x80, 0x01, 1,
    ]);
    by_hand.extend_from_slice(&[2, 0x80, 0x80, 0x80, 0x80, 0x80, 0x20]);
    golden_exact("payload-file-segments.bin", &by_hand);
    assert_eq!(draft.payload, by_hand);
    let ids: Vec<_> = draft.links.0.iter().map(|link| link.id).collect();
    assert_eq!(ids, [chunk(1).id, ChunkId([2; 32])]);
    let back = Node::decode(Kind::File, &draft.links, &draft.payload).unwrap();
    assert_eq!(back, Node::File(FileNode::Leaf(segments.to_vec())));

    let index = file_index();
    golden_exact("payload-file-index.bin", &index.payload);
    let Ok(Node::File(FileNode::Index(children))) = Node::decode(Kind::File, &index.links, &index.payload)
    else {
        panic!("not an index")
    };
    assert_eq!(
        children.iter().map(|(_, bytes)| bytes).sum::<u64>(),
        (1..=5000).sum()
    );
}

#[test]
fn directory_nodes_open_and_have_their_layout() {
    let draft = dir_leaf();
    golden_exact("payload-dir-leaf.bin", &draft.payload);
    // The last entry by hand: a name of 5 bytes, a file of two chunks.
    let mut last = vec![5];
    last.extend_from_slice("n\u{e4}me".as_bytes());
    last.extend_from_slice(&[0, 0]); // type, flags
    last.extend_from_slice(&[0xa0, 0x03, 0xe8, 0x07, 100]); // 0o640, 1000, 100
    last.extend_from_slice(&hex_bytes("80c49fd50c05")); // 1 700 000 000 s as zigzag, 5 ns
    last.extend_from_slice(&[1, 0]); // -1 s, 0 ns
    last.extend_from_slice(&[0xac, 0x02]); // inode 300
    last.extend_from_slice(&[0xb3, 0x02, 0, 2, 7, 0xac, 0x02]); // size 307, content-defined, 2 chunks: 7, 300
    last.push(0); // attributes
    assert!(draft.payload.ends_with(&last), "{:02x?}", draft.payload);

    let blob = golden("blob-dir-leaf.bin", || sealed(draft.clone()));
    let (header, payload) = open(draft.id, &blob);
    let node = Node::decode(header.kind, &header.links, &payload).unwrap();
    assert_eq!(node, Node::Dir(DirNode::Leaf(entries())));
    let links = [
        (file_leaf().id, true),
        (data_id_by_hand(b"x"), false),
        (ChunkId([0xdd; 32]), true),
        (ChunkId([9; 32]), false),
        (ChunkId([8; 32]), false),
    ];
    let head_len = 56 + 5 * 32 + 1 + 4;
    let class = BlobHeader::size_class_of(payload.len());
    let by_hand = header_by_hand(
        header.codec as u8,
        3,
        class,
        blob.len() - head_len,
        draft.id,
        &links,
    );
    assert_eq!(blob[..head_len], by_hand);

    let (with_attributes, draft) = dir_of_attributes();
    let mut by_hand = vec![1, 0, 1, 1, b'f', 3, 2]; // version, leaf, one entry, its name, a pipe, sparse
    by_hand.extend_from_slice(&[0xa0, 0x03, 0xe8, 0x07, 100]);
    by_hand.extend_from_slice(&hex_bytes("80c49fd50c05"));
    by_hand.extend_from_slice(&[1, 0, 0xac, 0x02]);
    by_hand.extend_from_slice(&[3, 1, 23, 2]); // three attributes; tag 1, 23 bytes, two names
    by_hand.extend_from_slice(b"\x0asecurity.x\x02\0\xff\x06user.e\0");
    by_hand.extend_from_slice(&[2, 3, 0xac, 0x02, 2]); // tag 2: device 300, two names
    by_hand.extend_from_slice(&[4, 2, 0x90, 0x01]); // tag 4: immutable, no access times
    golden_exact("payload-dir-attributes.bin", &by_hand);
    assert_eq!(draft.payload, by_hand);
    let back = Node::decode(Kind::Dir, &draft.links, &by_hand).unwrap();
    assert_eq!(back, Node::Dir(DirNode::Leaf(vec![with_attributes])));

    let index = dir_index();
    golden_exact("payload-dir-index.bin", &index.payload);
    let Ok(Node::Dir(DirNode::Index(children))) = Node::decode(Kind::Dir, &index.links, &index.payload)
    else {
        panic!("not an index")
    };
    assert_eq!(children.iter().map(|child| child.entries).sum::<u64>(), 3000);
    assert_eq!(children[0].first_name, b"entry-00000");
}

#[test]
fn packs_verify_and_have_their_layout() {
    let blobs = [
        (
            1_u8,
            data_id_by_hand(&raw_content()),
            0_u16,
            golden("blob-data-raw.bin", || sealed_data(&raw_content())),
        ),
        (
            1,
            data_id_by_hand(&zstd_content()),
            0,
            golden("blob-data-zstd.bin", || sealed_data(&zstd_content())),
        ),
        (
            2,
            file_leaf().id,
            9,
            golden("blob-file-leaf.bin", || sealed(file_leaf())),
        ),
        (
            3,
            dir_leaf().id,
            5,
            golden("blob-dir-leaf.bin", || sealed(dir_leaf())),
        ),
    ];
    let mut by_hand = b"HFPACK\0\x01".to_vec();
    by_hand.extend_from_slice(&VAULT.0);
    by_hand.extend_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0]);
    let mut directory = b"HFPDIR\0\x01\x04\0\0\0\0\0\0\0".to_vec();
    let mut writer = PackWriter::new(VAULT, Vec::new());
    for (kind, id, links, blob) in &blobs {
        directory.extend_from_slice(&id.0);
        directory.extend_from_slice(&(by_hand.len() as u32).to_le_bytes());
        directory.extend_from_slice(&(blob.len() as u32).to_le_bytes());
        directory.extend_from_slice(&links.to_le_bytes());
        directory.extend_from_slice(&[*kind, 0, 0, 0, 0, 0]);
        directory.extend_from_slice(&blake3::hash(blob).as_bytes()[..16]);
        by_hand.extend_from_slice(blob);
        writer.push_verbatim(blob).unwrap();
    }
    let at = by_hand.len() as u64;
    by_hand.extend_from_slice(&directory);
    by_hand.extend_from_slice(&at.to_le_bytes());
    let total = by_hand.len() as u64 + 40;
    by_hand.extend_from_slice(&total.to_le_bytes());
    let id = PackId(*blake3::hash(&by_hand).as_bytes());
    by_hand.extend_from_slice(&id.0);
    golden_exact("pack.bin", &by_hand);
    assert!(writer.finish() == (id, by_hand.clone()));
    let listed = PackDirectory::verify(&by_hand, id, VAULT).unwrap();
    assert!(
        listed
            .entries
            .iter()
            .zip(&blobs)
            .all(|(entry, blob)| entry.id == blob.1)
    );
}

#[test]
fn roots_open_and_have_their_layout() {
    let wanted = root(dir_leaf().id);
    let encode = || wanted.encode(&keys(), &signer(7)).unwrap();
    let bytes = golden("root.bin", encode);
    let opened = Root::open(&bytes, &keys()).unwrap();
    let clear = RootClear::decode(&bytes).unwrap();
    assert_eq!(opened.sealed, wanted.sealed);
    assert_eq!(opened.clear, clear);
    assert_eq!(
        (clear.signer, clear.epoch, clear.partial),
        (signer(7).public(), 1, true)
    );
    assert_eq!(clear.source, wanted.clear.source);
    assert_eq!(clear.top_nodes().collect::<Vec<_>>(), [dir_leaf().id]);

    let mut by_hand = b"HFROOT\0\x01\x01\0\0\0\x01\0".to_vec();
    by_hand.extend_from_slice(&VAULT.0);
    by_hand.extend_from_slice(&[0x44; 16]);
    by_hand.extend_from_slice(b"\x04web1\x07uploads");
    by_hand.extend_from_slice(&7_u64.to_le_bytes());
    by_hand.extend_from_slice(&[0x55; 32]);
    by_hand.extend_from_slice(&1_700_000_000_000_u64.to_le_bytes());
    by_hand.extend_from_slice(&1_700_000_060_000_u64.to_le_bytes());
    by_hand.extend_from_slice(&signer(7).public());
    by_hand.extend_from_slice(&[1, 0, 0, 0, 1, 0, 0, 0]); // epoch, count of links
    by_hand.extend_from_slice(&dir_leaf().id.0);
    by_hand.push(1);
    let end = by_hand.len();
    assert_eq!(bytes[..end], by_hand);
    assert_eq!(encode()[..end], by_hand);

    // The private part by hand.
    let sealed_len = u32::from_le_bytes(bytes[end..end + 4].try_into().unwrap()) as usize;
    let sealed = &bytes[end + 4..end + 4 + sealed_len];
    assert_eq!(bytes.len(), end + 4 + sealed_len + 32 + 64);
    let key = blake3::keyed_hash(&EPOCH_KEY, &[b"root", &[0x44_u8; 16][..]].concat());
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key.as_bytes()).unwrap());
    let nonce = Nonce::try_assume_unique_for_key(&sealed[..12]).unwrap();
    let mut plain = sealed[12..].to_vec();
    let plain = key.open_in_place(nonce, Aad::from(&by_hand), &mut plain).unwrap();
    assert!(plain.starts_with(b"\x0cweb1.example\x01\x0c/srv/uploads\0\x01"));
    assert!(plain.ends_with(b"\x02\0\x04root\xe8\x07\x05alice\x01\x64\x05users"));
    let mac_key = blake3::derive_key("holdfast v1 root mac", &ID_KEY);
    let (body, rest) = bytes.split_at(end + 4 + sealed_len);
    assert_eq!(rest[..32], *blake3::keyed_hash(&mac_key, body).as_bytes());
}
