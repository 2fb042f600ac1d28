//! Any bytes as a root object: decoding is bounded, and nothing without the vault's MAC opens.

#![no_main]

use holdfast_core::VaultId;
use holdfast_repo::{Root, RootClear, VaultKeys};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = RootClear::decode(bytes);
    let keys = VaultKeys::from_secrets(VaultId([1; 16]), [2; 32], [0x77; 32]);
    assert!(Root::open(bytes, &keys).is_err(), "opened without its key");
});
