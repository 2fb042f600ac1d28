//! Any bytes as a pack, a trailer, a directory: whatever is found lies inside of the bytes.

#![no_main]

use holdfast_core::{PackId, VaultId};
use holdfast_repo::{PackDirectory, pack::Trailer};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = Trailer::decode(bytes, bytes.len() as u64);
    let _ = PackDirectory::decode(bytes, 32);
    let _ = PackDirectory::verify(bytes, PackId([7; 32]), VaultId([1; 16]));
    for entry in PackDirectory::salvage(bytes).entries {
        assert!(entry.offset as usize + entry.len as usize <= bytes.len());
    }
});
