//! Any bytes in, the same bytes out: chunk, seal, pack, verify, parse, open.

use crate::{
    random::{Random, cases},
    samples::{VAULT, keys},
};
use holdfast_core::{ChunkId, PackId, limits};
use holdfast_repo::{
    Chunker, Kind, Opener, PackDirectory, PackEntry, PackWriter, Sealer,
    pack::{TRAILER_LEN, Trailer, pack_vault},
};
use std::collections::HashMap;

struct Pack {
    id: PackId,
    bytes: Vec<u8>,
}

/// Cuts content as one of the strategies does.
fn cut(random: &mut Random, chunker: &Chunker, content: &[u8]) -> Vec<usize> {
    if random.one_in(3) {
        return content.chunks(limits::SEGMENT_LEN).map(<[u8]>::len).collect();
    }
    let mut lens = Vec::new();
    let mut rest = content;
    while !rest.is_empty() {
        lens.push(chunker.cut(rest));
        rest = &rest[lens[lens.len() - 1]..];
    }
    lens
}

/// Reads a pack as a remote reader does: trailer, directory, then single blobs.
fn directory(pack: &Pack) -> PackDirectory {
    let total = pack.bytes.len();
    let trailer = Trailer::decode(&pack.bytes[total - TRAILER_LEN..], total as u64).unwrap();
    assert_eq!(trailer.id, pack.id);
    let start = trailer.directory_offset as usize;
    let bytes = &pack.bytes[start..start + trailer.directory_len as usize];
    PackDirectory::decode(bytes, trailer.directory_offset).unwrap()
}

fn blob<'a>(pack: &'a Pack, entry: &PackEntry) -> &'a [u8] {
    &pack.bytes[entry.offset as usize..][..entry.len as usize]
}

fn round_trip(random: &mut Random) {
    let len = match random.below(4) {
        0 => random.below(3),
        1 => random.below(5000),
        2 => random.below(1 << 20),
        _ => random.below(9 << 20),
    };
    let content = random.content(len);
    let keys = keys();
    let mut sealer = Sealer::new(keys.clone(), 1 + random.below(4) as i32).unwrap();
    let lens = cut(random, &Chunker::new(keys.gear_key()), &content);
    assert_eq!(lens.iter().sum::<usize>(), content.len());

    let mut packs = Vec::new();
    let mut open = PackWriter::new(VAULT, Vec::new());
    let mut ids = Vec::new();
    let mut rest = &content[..];
    for len in lens {
        let (chunk, tail) = rest.split_at(len);
        rest = tail;
        let id = keys.data_id(chunk);
        ids.push(id);
        open.push(&sealer.seal_data(id, chunk).unwrap());
        if open.is_full() || random.one_in(5) {
            let (id, bytes) = std::mem::replace(&mut open, PackWriter::new(VAULT, Vec::new())).finish();
            packs.push(Pack { id, bytes });
        }
    }
    let (id, bytes) = open.finish();
    packs.push(Pack { id, bytes });
    assert_eq!(read_back(&packs, &ids), content);

    // Rewritten without keys, the same content still comes out.
    let mut merged = PackWriter::new(VAULT, Vec::new());
    for pack in &packs {
        for entry in directory(pack).entries {
            merged.push_verbatim(blob(pack, &entry)).unwrap();
        }
    }
    let (id, bytes) = merged.finish();
    assert_eq!(read_back(&[Pack { id, bytes }], &ids), content);
}

fn read_back(packs: &[Pack], ids: &[ChunkId]) -> Vec<u8> {
    let mut places = HashMap::new();
    for pack in packs {
        let listed = directory(pack);
        assert_eq!(
            PackDirectory::verify(&pack.bytes, pack.id, VAULT).unwrap(),
            listed
        );
        assert_eq!(PackDirectory::salvage(&pack.bytes), listed);
        assert_eq!(pack_vault(&pack.bytes).unwrap(), VAULT);
        for entry in listed.entries {
            places.insert(entry.id, blob(pack, &entry));
        }
    }
    let mut opener = Opener::new(keys()).unwrap();
    let (mut content, mut chunk) = (Vec::new(), Vec::new());
    for id in ids {
        let header = opener.open(*id, places[id], &mut chunk).unwrap();
        assert_eq!(header.kind, Kind::Data);
        content.extend_from_slice(&chunk);
    }
    content
}

#[test]
fn any_bytes_in_are_the_same_bytes_out() {
    cases("any_bytes_in_are_the_same_bytes_out", 40, 1000, round_trip);
}
