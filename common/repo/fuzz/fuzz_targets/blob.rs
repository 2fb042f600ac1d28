//! Any bytes as a blob: an error or its content, and a header that decodes encodes to the same bytes.

#![no_main]

use holdfast_core::{ChunkId, VaultId};
use holdfast_repo::{BlobHeader, Opener, VaultKeys};
use libfuzzer_sys::fuzz_target;
use std::{cell::RefCell, sync::Arc};

thread_local! {
    static OPENER: RefCell<Opener> = RefCell::new({
        let keys = VaultKeys::from_secrets(VaultId([1; 16]), [2; 32], [3; 32]);
        Opener::new(Arc::new(keys)).expect("an opener")
    });
}

fuzz_target!(|bytes: &[u8]| {
    let Ok(header) = BlobHeader::decode(bytes) else { return };
    let mut encoded = Vec::new();
    header.encode_into(&mut encoded);
    assert_eq!(bytes.get(..encoded.len()), Some(&encoded[..]), "one header has one form");
    let mut raw = Vec::new();
    OPENER.with_borrow_mut(|opener| {
        let _ = opener.open(header.id, bytes, &mut raw);
        assert!(opener.open(ChunkId([0xee; 32]), bytes, &mut raw).is_err());
    });
});
