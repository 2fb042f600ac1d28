//! Content-defined chunking: normalised gear hashing (Xia et al., "The Design of Fast
//! Content-Defined Chunking", 2020) with a table that derives from the vault's key, so that
//! boundaries tell an observer nothing about content.

use holdfast_core::limits::{CHUNK_AVG, CHUNK_MAX, CHUNK_MIN};

/// Bits that must be zero before the average size is reached: harder than average …
const MASK_HARD: u64 = mask(CHUNK_AVG.ilog2() + 1);
/// … and after it: easier. Normalisation gathers sizes around the average.
const MASK_EASY: u64 = mask(CHUNK_AVG.ilog2() - 1);

/// The top `bits` bits below the uppermost: in a left-shifting gear hash the high bits depend on
/// the most bytes, and one bit is left free for the two-byte step.
const fn mask(bits: u32) -> u64 {
    ((1 << bits) - 1) << (63 - bits)
}

/// Finds chunk boundaries; one is shared by all threads.
pub struct Chunker {
    gear: Box<[u64; 256]>,
    /// The same table shifted by one, to take two bytes in a step.
    gear_shifted: Box<[u64; 256]>,
}

impl Chunker {
    /// A chunker whose table derives from `gear_key`.
    #[must_use]
    pub fn new(gear_key: &[u8; 32]) -> Self {
        let mut stream = blake3::Hasher::new_keyed(gear_key).finalize_xof();
        let mut gear = Box::new([0_u64; 256]);
        let mut gear_shifted = Box::new([0_u64; 256]);
        for (plain, shifted) in gear.iter_mut().zip(gear_shifted.iter_mut()) {
            let mut bytes = [0; 8];
            stream.fill(&mut bytes);
            *plain = u64::from_le_bytes(bytes);
            *shifted = *plain << 1;
        }
        Self { gear, gear_shifted }
    }

    /// Length of the first chunk of `data`, which must hold `CHUNK_MAX` bytes or all that is left
    /// of the file. Never zero for non-empty data.
    #[must_use]
    pub fn cut(&self, data: &[u8]) -> usize {
        if data.len() <= CHUNK_MIN {
            return data.len();
        }
        let end = data.len().min(CHUNK_MAX);
        let normal = end.min(CHUNK_AVG);
        let mut hash = 0_u64;
        if let Some(at) = self.scan(&data[..normal], CHUNK_MIN, MASK_HARD, &mut hash) {
            return at;
        }
        self.scan(&data[..end], normal, MASK_EASY, &mut hash)
            .unwrap_or(end)
    }

    /// Rolls from `start` to the end of `data`; the boundary lies behind the byte that made it.
    fn scan(&self, data: &[u8], start: usize, mask: u64, hash: &mut u64) -> Option<usize> {
        let mut rolling = *hash;
        let (pairs, odd) = data[start..].as_chunks::<2>();
        for (index, [first, second]) in pairs.iter().enumerate() {
            rolling = (rolling << 2).wrapping_add(self.gear_shifted[usize::from(*first)]);
            // The hash stands one bit further left here, and so does the mask.
            if rolling & (mask << 1) == 0 {
                return Some(start + index * 2 + 1);
            }
            rolling = rolling.wrapping_add(self.gear[usize::from(*second)]);
            if rolling & mask == 0 {
                return Some(start + index * 2 + 2);
            }
        }
        if let [last] = odd {
            rolling = (rolling << 1).wrapping_add(self.gear[usize::from(*last)]);
            if rolling & mask == 0 {
                return Some(data.len());
            }
        }
        *hash = rolling;
        None
    }
}

impl std::fmt::Debug for Chunker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Chunker")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Bytes that look random and are the same everywhere.
    pub(crate) fn noise(seed: u8, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        blake3::Hasher::new_keyed(&[seed; 32])
            .finalize_xof()
            .fill(&mut out);
        out
    }

    fn chunks(chunker: &Chunker, mut data: &[u8]) -> Vec<usize> {
        let mut lens = Vec::new();
        while !data.is_empty() {
            let len = chunker.cut(data);
            lens.push(len);
            data = &data[len..];
        }
        lens
    }

    /// One byte a time, as the paper defines it.
    fn slow_cut(chunker: &Chunker, data: &[u8]) -> usize {
        let end = data.len().min(CHUNK_MAX);
        let mut hash = 0_u64;
        for (at, byte) in data.iter().enumerate().take(end).skip(CHUNK_MIN) {
            hash = (hash << 1).wrapping_add(chunker.gear[usize::from(*byte)]);
            let mask = if at < CHUNK_AVG { MASK_HARD } else { MASK_EASY };
            if hash & mask == 0 {
                return at + 1;
            }
        }
        end
    }

    #[test]
    fn two_byte_steps_find_the_same_boundaries() {
        let chunker = Chunker::new(&[9; 32]);
        let data = noise(1, 24 << 20);
        let mut rest = &data[..];
        while !rest.is_empty() {
            let len = chunker.cut(rest);
            assert_eq!(len, slow_cut(&chunker, rest));
            rest = &rest[len..];
        }
    }

    #[test]
    fn boundaries_are_part_of_the_format() {
        // Golden: a change here makes every host store its files again.
        let lens = chunks(&Chunker::new(&[9; 32]), &noise(1, 12 << 20));
        assert_eq!(lens, GOLDEN);
    }
    const GOLDEN: &[usize] = &[
        2656182, 1670867, 292867, 2075934, 2366378, 503457, 1550688, 669636, 796903,
    ];

    #[test]
    fn sizes_gather_around_the_average() {
        let lens = chunks(&Chunker::new(&[9; 32]), &noise(2, 128 << 20));
        let average = (128 << 20) / lens.len();
        assert!((CHUNK_AVG / 2..CHUNK_AVG * 2).contains(&average), "{average}");
        assert!(
            lens[..lens.len() - 1]
                .iter()
                .all(|len| (CHUNK_MIN..=CHUNK_MAX).contains(len))
        );
    }

    #[test]
    fn an_insertion_moves_few_boundaries() {
        let chunker = Chunker::new(&[9; 32]);
        let data = noise(3, 32 << 20);
        let mut edited = data.clone();
        edited.splice(10_000_000..10_000_000, *b"inserted");
        let (before, after) = (chunks(&chunker, &data), chunks(&chunker, &edited));
        let common = before
            .iter()
            .rev()
            .zip(after.iter().rev())
            .take_while(|(a, b)| a == b)
            .count();
        assert!(common + 14 > before.len(), "{common} of {}", before.len());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn cuts_cover_everything(seed: u8, len in 0_usize..9_000_000) {
            let data = noise(seed, len);
            prop_assert_eq!(chunks(&Chunker::new(&[seed; 32]), &data).iter().sum::<usize>(), len);
        }
    }
}
