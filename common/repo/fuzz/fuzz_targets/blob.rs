//! Any bytes as a blob, as the content of an authentic one, and as what is sealed: an error or the content,
//! never more memory than a chunk may take, and one form of each header.

#![no_main]

use holdfast_core::{ChunkId, limits};
use holdfast_repo::{BlobHeader, Codec, Links, Opener, Sealer, blob::FIXED_LEN};
use holdfast_repo_fuzz::{forged_blob, keys};
use libfuzzer_sys::fuzz_target;
use std::{cell::RefCell, sync::Arc};

thread_local! {
    static TOOLS: RefCell<(Opener, Sealer)> = RefCell::new({
        let keys = Arc::new(keys());
        (Opener::new(keys.clone()).expect("an opener"), Sealer::new(keys, 1).expect("a sealer"))
    });
}

fuzz_target!(|bytes: &[u8]| {
    TOOLS.with_borrow_mut(|(opener, sealer)| {
        read(opener, bytes);
        if let Some(mended) = with_right_checksum(bytes) {
            read(opener, &mended);
        }
        if let [a, b, c, coded @ ..] = bytes {
            let raw_len = u32::from_le_bytes([*a, *b, *c & 0x7f, 0]);
            let codec = if c & 0x80 == 0 { Codec::Zstd } else { Codec::Raw };
            let (id, blob) = forged_blob(codec, raw_len, coded);
            let mut raw = Vec::new();
            assert!(
                opener.open(id, &blob, &mut raw).is_err(),
                "no content has that id"
            );
            assert!(raw.capacity() <= limits::CHUNK_MAX.max(coded.len()));
        }
        let id = opener.keys().data_id(bytes);
        let sealed = sealer.seal_data(id, bytes).expect("a short chunk");
        let blob = [sealed.header_bytes, sealed.sealed].concat();
        let mut raw = Vec::new();
        opener.open(id, &blob, &mut raw).expect("what was sealed");
        assert_eq!(raw, bytes);
    });
});

fn read(opener: &mut Opener, bytes: &[u8]) {
    let Ok(header) = BlobHeader::decode(bytes) else {
        return;
    };
    let mut encoded = Vec::new();
    header.encode_into(&mut encoded);
    assert_eq!(
        bytes.get(..encoded.len()),
        Some(&encoded[..]),
        "one header has one form"
    );
    assert_eq!(
        BlobHeader::peek_len(bytes).expect("the same header"),
        encoded.len()
    );
    let mut raw = Vec::new();
    if opener.open(header.id, bytes, &mut raw).is_ok() {
        assert!(raw.len() <= header.kind.raw_max());
        assert_eq!(header.blob_len(), bytes.len());
    }
    assert!(opener.open(ChunkId([0xee; 32]), bytes, &mut raw).is_err());
}

/// The same bytes with the checksum that a header of their form has, so that what follows it is reached.
fn with_right_checksum(bytes: &[u8]) -> Option<Vec<u8>> {
    let count = u32::from_le_bytes(bytes.get(20..24)?.try_into().ok()?) as usize;
    let covered = FIXED_LEN + Links::section_len(count.min(limits::NODE_LINKS_MAX));
    let mut mended = bytes.to_vec();
    let sum = crc32c::crc32c(bytes.get(..covered)?);
    mended
        .get_mut(covered..covered + 4)?
        .copy_from_slice(&sum.to_le_bytes());
    Some(mended)
}
