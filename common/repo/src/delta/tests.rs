//! Deltas: what is found is the same, and what collides under MD4 alone is not taken.

use super::*;
use holdfast_core::VaultId;
use proptest::prelude::*;

fn keys() -> VaultKeys {
    VaultKeys::from_secrets(VaultId([1; 16]), [2; 32], [3; 32])
}

fn noise(seed: u8, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new_keyed(&[seed; 32])
        .finalize_xof()
        .fill(&mut out);
    out
}

/// Puts a segment together again; says how many bytes were new.
fn rebuilt(parts: &[Part], old: &[&[u8]], new: &[u8]) -> (Vec<u8>, usize) {
    let (mut out, mut fresh) = (Vec::new(), 0);
    for part in parts {
        match *part {
            Part::Old { segment, offset, len } => {
                out.extend_from_slice(&old[segment][offset as usize..(offset + len) as usize]);
            }
            Part::New { offset, len } => {
                assert_eq!(offset as usize, out.len());
                out.extend_from_slice(&new[offset as usize..(offset + len) as usize]);
                fresh += len as usize;
            }
        }
    }
    (out, fresh)
}

#[test]
fn values_of_blocks_give_the_segments_own_hash() {
    let keys = keys();
    for len in [
        0,
        1,
        1024,
        8191,
        8192,
        8193,
        16_384,
        24_577,
        40_000,
        65_536,
        1 << 20,
        (1 << 20) - 5,
        3 << 20,
        4 << 20,
    ] {
        let segment = noise(1, len);
        let (id, signature) = Signature::aligned(&keys, &segment);
        assert_eq!(id, keys.data_id(&segment), "{len}");
        let stored = signature.encode(&keys, &id);
        assert!(stored.len() <= SIGNATURE_MAX);
        assert_eq!(Signature::decode(&keys, &id, &stored), Some(signature));
    }
}

#[test]
fn a_rewritten_page_is_the_only_new_part() {
    let keys = keys();
    let old = noise(1, 1 << 20);
    let mut new = old.clone();
    new[5 * BLOCK_LEN + 77] ^= 1;
    new[9 * BLOCK_LEN..11 * BLOCK_LEN].fill(0);
    let values = |segment: &[u8]| match Signature::aligned(&keys, segment).1 {
        Signature::Aligned(values) => values,
        Signature::Shifted { .. } => panic!("shifted"),
    };
    let parts = compare_aligned(&values(&old), &values(&new), new.len());
    let (back, fresh) = rebuilt(&parts, &[&old], &new);
    assert_eq!((back, fresh, parts.len()), (new, 3 * BLOCK_LEN, 5));
    let longer = noise(1, (1 << 20) + 1);
    let parts = compare_aligned(&values(&old), &values(&longer), longer.len());
    assert_eq!(
        rebuilt(&parts, &[&old], &longer),
        (longer.clone(), longer.len()),
        "another length is all new"
    );
}

#[test]
fn an_insertion_costs_about_a_block() {
    let keys = keys();
    let (first, second) = (noise(1, 900_000), noise(2, 700_000));
    let mut new = [&first[..], &second[..]].concat();
    new.splice(300_000..300_000, *b"inserted");
    new.splice(1_200_000..1_200_000, *b"here too");
    let signatures = [
        Signature::shifted(&keys, &first),
        Signature::shifted(&keys, &second),
    ];
    let parts = compare_shifted(&keys, &[&signatures[0], &signatures[1]], &new).unwrap();
    let (back, fresh) = rebuilt(&parts, &[&first, &second], &new);
    assert_eq!(back, new);
    assert!(fresh < 5 * BLOCK_LEN, "{fresh}");
    let parts = compare_shifted(&keys, &[], &new).unwrap();
    assert_eq!(
        rebuilt(&parts, &[], &new),
        (new.clone(), new.len()),
        "without old ones all is new"
    );
}

#[test]
fn a_stored_signature_is_bound_to_its_segment_and_key() {
    let keys = keys();
    let (a, b) = (noise(1, 100_000), noise(2, 100_000));
    let (id, other) = (keys.data_id(&a), keys.data_id(&b));
    for signature in [Signature::shifted(&keys, &a), Signature::aligned(&keys, &a).1] {
        let stored = signature.encode(&keys, &id);
        assert_eq!(Signature::decode(&keys, &id, &stored).as_ref(), Some(&signature));
        assert_eq!(
            Signature::decode(&keys, &other, &stored),
            None,
            "filed under another segment"
        );
        let foreign = VaultKeys::from_secrets(VaultId([1; 16]), [9; 32], [3; 32]);
        assert_eq!(Signature::decode(&foreign, &id, &stored), None);
        for at in (0..stored.len()).step_by(97) {
            let mut rotten = stored.clone();
            rotten[at] ^= 0x10;
            assert_eq!(Signature::decode(&keys, &id, &rotten), None, "byte {at}");
            assert_eq!(Signature::decode(&keys, &id, &stored[..at]), None);
        }
    }
}

/// Two messages of 64 bytes with the same MD4, by Wang et al., "Cryptanalysis of the Hash Functions MD4 and
/// RIPEMD" (2005), example of collision 1.
fn md4_collision() -> [[u8; 64]; 2] {
    let words = |text: &str| -> [u8; 64] {
        let words = text
            .split_whitespace()
            .map(|word| u32::from_str_radix(word, 16).unwrap());
        let bytes: Vec<u8> = words.flat_map(u32::to_le_bytes).collect();
        bytes.try_into().unwrap()
    };
    [
        words(
            "4d7a9c83 56cb927a b9d5a578 57a7a5ee de748a3c dcc366b3 b683a020 3b2a5d9f \
             c69d71b3 f9e99198 d79f805e a63bb2e8 45dd8e31 97e31fe5 2794bf08 b9e8c3e9",
        ),
        words(
            "4d7a9c83 d6cb927a 29d5a578 57a7a5ee de748a3c dcc366b3 b683a020 3b2a5d9f \
             c69d71b3 f9e99198 d79f805e a63bb2e8 45dc8e31 97e31fe5 2794bf08 b9e8c3e9",
        ),
    ]
}

#[test]
fn a_block_that_collides_under_md4_is_not_taken_for_the_old_one() {
    // The same block behind two colliding beginnings: MD4 agrees, and the rolling checksum is forged in
    // the signature, as somebody who can choose all content could bring about.
    let keys = keys();
    let tail = noise(5, BLOCK_LEN - 64);
    let [old, new] = md4_collision().map(|head| [&head[..], &tail[..]].concat());
    assert_ne!(old, new);
    let (honest, mut forged) = (Signature::shifted(&keys, &new), Signature::shifted(&keys, &old));
    let (Signature::Shifted { rsync: of_new, .. }, Signature::Shifted { rsync: of_old, .. }) =
        (&honest, &mut forged)
    else {
        panic!("aligned")
    };
    assert_eq!(of_old[4..], of_new[4..], "MD4 collides");
    of_old[..4].copy_from_slice(&of_new[..4]);
    let parts = compare_shifted(&keys, &[&forged], &new).unwrap();
    assert_eq!(
        parts,
        [Part::New {
            offset: 0,
            len: BLOCK_LEN as u32
        }]
    );
    let parts = compare_shifted(&keys, &[&honest], &new).unwrap();
    assert!(
        matches!(parts[..], [Part::Old { .. }]),
        "an honest match is taken"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn whatever_changed_the_parts_give_the_new_content(
        len in 0_usize..300_000,
        edits in proptest::collection::vec((any::<proptest::sample::Index>(), 0_usize..20_000, 0_usize..20_000), 0..6),
    ) {
        let keys = keys();
        let old = noise(1, len);
        let mut new = old.clone();
        for (seed, (at, cut, add)) in edits.into_iter().enumerate() {
            let at = at.index(new.len() + 1);
            let end = (at + cut).min(new.len());
            new.splice(at..end, noise(seed as u8 + 2, add));
        }
        let halves = old.split_at(len / 2);
        let signatures = [Signature::shifted(&keys, halves.0), Signature::shifted(&keys, halves.1)];
        let parts = compare_shifted(&keys, &[&signatures[0], &signatures[1]], &new).unwrap();
        prop_assert_eq!(rebuilt(&parts, &[halves.0, halves.1], &new).0, new.clone());
        let values = |segment: &[u8]| match Signature::aligned(&keys, segment).1 {
            Signature::Aligned(values) => values,
            Signature::Shifted { .. } => panic!("shifted"),
        };
        let parts = compare_aligned(&values(&old), &values(&new), new.len());
        prop_assert_eq!(rebuilt(&parts, &[&old], &new).0, new);
    }

    #[test]
    fn any_bytes_are_read_as_commands_without_panic(bytes: Vec<u8>) {
        let delta = [&0x7273_0236_u32.to_be_bytes()[..], &bytes].concat();
        let commands: Vec<_> = Commands::new(&delta).unwrap().collect();
        prop_assert!(commands.len() <= bytes.len() + 1);
    }
}
