//! Any bytes as a cached signature, and any change between two versions: what is put together again from
//! the parts is the new version.

#![no_main]

use holdfast_core::{ChunkId, VaultId};
use holdfast_repo::{
    VaultKeys,
    delta::{Part, Signature, compare_shifted},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let keys = VaultKeys::from_secrets(VaultId([1; 16]), [2; 32], [3; 32]);
    assert!(Signature::decode(&keys, &ChunkId([9; 32]), bytes).is_none(), "decoded without its key");
    // The bytes as a script: blocks of the old version by number, or literals.
    let old: Vec<u8> = (0..40_960_u32).map(|i| (i / 7 ^ i >> 5) as u8).collect();
    let mut new = Vec::new();
    for step in bytes.iter().take(24) {
        let from = usize::from(*step) * 131;
        match step % 3 {
            0 => new.extend_from_slice(&old[from..(from + 9000).min(old.len())]),
            1 => new.push(*step),
            _ => new.extend_from_slice(&vec![*step; 500]),
        }
    }
    let signature = Signature::shifted(&keys, &old);
    let parts = compare_shifted(&keys, &[&signature], &new).expect("a comparison");
    let mut back = Vec::new();
    for part in parts {
        match part {
            Part::Old { offset, len, .. } => back.extend_from_slice(&old[offset as usize..(offset + len) as usize]),
            Part::New { offset, len } => back.extend_from_slice(&new[offset as usize..(offset + len) as usize]),
        }
    }
    assert_eq!(back, new);
});
