//! Any bytes as a row of the chunk index: an error, or places that are written as the same bytes; and keys that
//! keep vaults apart and stand in the order of the ids.

#![no_main]

use holdfast_controller::index::rows::{self, Row};
use holdfast_core::ChunkId;
use libfuzzer_sys::fuzz_target;

/// Bytes of one place, as the layout has been since its first version.
const ROW_LEN: usize = 12;
/// Bytes of a vault's number and of an id.
const PLACE_LEN: usize = 4 + 32;

fuzz_target!(|bytes: &[u8]| {
    match rows::decode(bytes) {
        Ok(places) => {
            assert_eq!(places.len() * ROW_LEN, bytes.len());
            assert_eq!(rows::encode(&places), bytes, "one list has one form");
        }
        Err(_) => assert_ne!(bytes.len() % ROW_LEN, 0),
    }
    written(bytes);
    keys(bytes);
});

/// The bytes as numbers: what is read is what was written, and one place more is one place more.
fn written(bytes: &[u8]) {
    let (numbers, _) = bytes.as_chunks::<4>();
    let number = |bytes: &[u8; 4]| u32::from_le_bytes(*bytes);
    let (triples, _) = numbers.as_chunks::<3>();
    let places: Vec<Row> = triples
        .iter()
        .map(|[pack, offset, len]| Row {
            pack: number(pack),
            offset: number(offset),
            len: number(len),
        })
        .collect();
    let value = rows::encode(&places);
    assert_eq!(rows::decode(&value).expect("what was written"), places);
    if let Some((last, before)) = places.split_last() {
        let parts = [rows::encode(before), rows::encode(&[*last])].concat();
        assert_eq!(parts, value, "a place is added behind the others");
        assert!(rows::decode(&value[1..]).is_err(), "a part of a place");
    }
}

/// The bytes as two chunks, each with its vault's number.
fn keys(bytes: &[u8]) {
    let (chunks, _) = bytes.as_chunks::<PLACE_LEN>();
    let [one, other, ..] = chunks else { return };
    let chunk =
        |[a, b, c, d, id @ ..]: &[u8; PLACE_LEN]| (u32::from_be_bytes([*a, *b, *c, *d]), ChunkId(*id));
    let key = |(vault, id): (u32, ChunkId)| rows::key(vault, &id);
    let (one, other) = (chunk(one), chunk(other));
    assert_eq!(key(one).cmp(&key(other)), one.cmp(&other));
    assert_eq!(key(one).len(), key(other).len(), "no key begins with another");
}
