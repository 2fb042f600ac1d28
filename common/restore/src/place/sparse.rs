//! Which parts of content must be written into a file that is all zeros already.

use std::{iter, ops::Range};

/// Blocks of file systems: less than one is stored anyway.
const BLOCK: usize = 4096;
const ZEROS: [u8; BLOCK] = [0; BLOCK];

/// The ranges of `bytes`, which belong at `offset`, that are left without the blocks of zeros. Blocks are
/// aligned within the file.
pub(super) fn data_ranges(offset: u64, bytes: &[u8]) -> impl Iterator<Item = Range<usize>> {
    let lead = (offset % BLOCK as u64) as usize;
    let mut at = 0;
    iter::from_fn(move || {
        let block_end = |at: usize| ((lead + at) / BLOCK + 1) * BLOCK - lead;
        let is_zero = |at: usize| {
            let block = &bytes[at..block_end(at).min(bytes.len())];
            *block == ZEROS[..block.len()]
        };
        while at < bytes.len() && is_zero(at) {
            at = block_end(at);
        }
        let start = at;
        while at < bytes.len() && !is_zero(at) {
            at = block_end(at);
        }
        let end = at.min(bytes.len());
        (start < end).then_some(start..end)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Beginnings and ends.
    fn ranges(offset: u64, bytes: &[u8]) -> Vec<(usize, usize)> {
        let ranges = data_ranges(offset, bytes);
        ranges.map(|range| (range.start, range.end)).collect()
    }

    #[test]
    fn only_whole_blocks_of_zeros_are_left_out() {
        let mut bytes = vec![0; 5 * BLOCK];
        assert!(ranges(0, &bytes).is_empty());
        bytes[BLOCK] = 1;
        bytes[3 * BLOCK - 1] = 1;
        assert_eq!(ranges(0, &bytes), [(BLOCK, 3 * BLOCK)]);
        bytes[5 * BLOCK - 1] = 1;
        assert_eq!(ranges(0, &bytes), [(BLOCK, 3 * BLOCK), (4 * BLOCK, 5 * BLOCK)]);
        // Elsewhere in the file the blocks begin elsewhere.
        assert_eq!(
            ranges(BLOCK as u64 - 1, &bytes),
            [
                (1, BLOCK + 1),
                (2 * BLOCK + 1, 3 * BLOCK + 1),
                (4 * BLOCK + 1, 5 * BLOCK)
            ]
        );
        assert!(ranges(7, &[]).is_empty());
        assert_eq!(ranges(1 << 60, b"\0x"), [(0, 2)]);
    }

    #[test]
    fn what_is_left_out_is_zero_and_what_is_not_is_in_order() {
        for seed in 0..200_u64 {
            let bytes: Vec<u8> = (0..40_000_u64)
                .map(|n| {
                    u8::from((n / 3000 * (seed + 7)).is_multiple_of(3) && n.is_multiple_of(1 + seed * 40))
                })
                .collect();
            let offset = seed * 1021;
            let mut back = vec![0; bytes.len()];
            let mut end = 0;
            for (start, stop) in ranges(offset, &bytes) {
                assert!(end <= start && start < stop);
                back[start..stop].copy_from_slice(&bytes[start..stop]);
                end = stop;
            }
            assert!(back == bytes);
        }
    }
}
