//! Any bytes as a vault's keys: an error, or keys that encode to the same bytes and can be used.

#![no_main]

use holdfast_repo::{SealedBlob, Sealer, VaultKeys};
use libfuzzer_sys::fuzz_target;
use std::sync::Arc;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(keys) = VaultKeys::decode(bytes) {
        assert_eq!(keys.encode()[..], *bytes);
        let id = keys.data_id(b"content");
        assert!(keys.is_content(&id, b"content") && !keys.is_content(&id, b"another"));
        let mut sealer = Sealer::new(Arc::new(keys), 1).expect("a sealer");
        let _: SealedBlob<'_> = sealer.seal_data(id, b"content").expect("a key to seal with");
    }
});
