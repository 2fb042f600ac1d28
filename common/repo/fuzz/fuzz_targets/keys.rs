//! Any bytes as a vault's keys: an error, or keys that encode to the same bytes.

#![no_main]

use holdfast_repo::VaultKeys;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(keys) = VaultKeys::decode(bytes) {
        assert_eq!(keys.encode()[..], *bytes);
    }
});
