//! Any bytes as a cached signature, sound or not, and any change between two versions: what is put together
//! again from the parts is the new version, and a signature of anything never makes it something else.

#![no_main]

use holdfast_core::ChunkId;
use holdfast_repo::{
    VaultKeys,
    delta::{BLOCK_LEN, Part, Signature, compare_aligned, compare_shifted},
};
use holdfast_repo_fuzz::{forged_signature, keys};
use libfuzzer_sys::fuzz_target;

const SEGMENT: ChunkId = ChunkId([9; 32]);

fuzz_target!(|bytes: &[u8]| {
    let keys = keys();
    assert!(
        Signature::decode(&keys, &SEGMENT, bytes).is_none(),
        "decoded without its key"
    );
    let old: Vec<u8> = (0..40_960_u32).map(|i| (i / 7 ^ i >> 5) as u8).collect();
    let new = scripted(&old, bytes);
    let signature = Signature::shifted(&keys, &old);
    let parts = compare_shifted(&keys, &[&signature], &new).expect("a comparison");
    assert_eq!(put_together(&parts, &old, &new), new);
    aligned(&keys, &old, &new);
    any_signature(&keys, bytes, &old, &new);
});

/// The bytes as a script: parts of the old version by number, or literals.
fn scripted(old: &[u8], script: &[u8]) -> Vec<u8> {
    let mut new = Vec::new();
    for step in script.iter().take(24) {
        let from = usize::from(*step) * 131;
        match step % 3 {
            0 => new.extend_from_slice(&old[from..(from + 9000).min(old.len())]),
            1 => new.push(*step),
            _ => new.extend_from_slice(&vec![*step; 500]),
        }
    }
    new
}

fn put_together(parts: &[Part], old: &[u8], new: &[u8]) -> Vec<u8> {
    let mut back = Vec::new();
    for part in parts {
        match *part {
            Part::Old { offset, len, .. } => {
                back.extend_from_slice(&old[offset as usize..(offset + len) as usize])
            }
            Part::New { offset, len } => {
                back.extend_from_slice(&new[offset as usize..(offset + len) as usize])
            }
        }
    }
    back
}

fn aligned(keys: &VaultKeys, old: &[u8], new: &[u8]) {
    let (_, before) = Signature::aligned(keys, old);
    let (id, after) = Signature::aligned(keys, new);
    assert_eq!(id, keys.data_id(new), "the blocks merge to the segment's id");
    let (Signature::Aligned(before), Signature::Aligned(after)) = (before, after) else {
        unreachable!("they are aligned")
    };
    let parts = compare_aligned(&before, &after, new.len());
    if old.len() == new.len() {
        assert_eq!(put_together(&parts, old, new), new);
    } else {
        assert_eq!(put_together(&parts, old, new).len(), new.len());
    }
}

/// The bytes as a signature that was stored under our key, rotten or not.
fn any_signature(keys: &VaultKeys, bytes: &[u8], old: &[u8], new: &[u8]) {
    let stored = forged_signature(&SEGMENT, bytes);
    let Some(signature) = Signature::decode(keys, &SEGMENT, &stored) else {
        return;
    };
    assert_eq!(signature.encode(keys, &SEGMENT), stored);
    match &signature {
        Signature::Aligned(values) => {
            let (_, Signature::Aligned(after)) = Signature::aligned(keys, new) else {
                return;
            };
            let parts = compare_aligned(values, &after, new.len());
            assert!(
                parts.iter().all(|part| matches!(part, Part::New { .. })),
                "nothing is the same"
            );
        }
        Signature::Shifted { .. } => {
            let Ok(parts) = compare_shifted(keys, &[&signature], new) else {
                return;
            };
            // Only a block's keyed hash, which the fuzzer cannot make, could have matched.
            for part in &parts {
                if let Part::Old { offset, len, .. } = *part {
                    assert!((offset + len) as usize <= old.len().next_multiple_of(BLOCK_LEN));
                }
            }
        }
    }
}
