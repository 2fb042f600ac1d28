//! Rows of the index: a key per (vault, chunk), a list of places as its value; and which packs count.
//! The form of rows is public for the fuzz targets (`integration/fuzz`).

use crate::error::{Error, Result};
use holdfast_core::ChunkId;

/// One place of a chunk, by the index's own number of the pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// The pack's number.
    pub pack: u32,
    /// Where the blob begins in it.
    pub offset: u32,
    /// Its length in bytes.
    pub len: u32,
}

const ROW_LEN: usize = 12;

/// First byte of these keys.
pub(super) const CHUNK: u8 = b'c';

/// The key of a chunk's row: a vault's keys stand together, in the order of the ids.
#[must_use]
pub fn key(vault: u32, id: &ChunkId) -> Vec<u8> {
    let mut key = Vec::with_capacity(37);
    key.push(CHUNK);
    key.extend_from_slice(&vault.to_be_bytes());
    key.extend_from_slice(id.as_bytes());
    key
}

/// The value of a row.
#[must_use]
pub fn encode(rows: &[Row]) -> Vec<u8> {
    let mut value = Vec::with_capacity(rows.len() * ROW_LEN);
    for row in rows {
        value.extend_from_slice(&row.pack.to_be_bytes());
        value.extend_from_slice(&row.offset.to_be_bytes());
        value.extend_from_slice(&row.len.to_be_bytes());
    }
    value
}

/// Reads [`encode`].
///
/// # Errors
/// `Corrupt` when it is no list of whole places.
pub fn decode(value: &[u8]) -> Result<Vec<Row>> {
    let (rows, rest) = value.as_chunks::<ROW_LEN>();
    if !rest.is_empty() {
        return Err(Error::corrupt("the chunk index", "a row has the wrong length"));
    }
    let number = |bytes: &[u8]| bytes.iter().fold(0_u32, |sum, byte| sum << 8 | u32::from(*byte));
    Ok(rows
        .iter()
        .map(|row| Row {
            pack: number(&row[..4]),
            offset: number(&row[4..8]),
            len: number(&row[8..]),
        })
        .collect())
}

/// One bit for each pack number: whether the pack counts.
#[derive(Debug, Default)]
pub(super) struct Live {
    words: Vec<u64>,
    count: u64,
}

impl Live {
    pub fn has(&self, number: u32) -> bool {
        self.words
            .get(number as usize / 64)
            .is_some_and(|word| word >> (number % 64) & 1 == 1)
    }

    pub fn set(&mut self, number: u32) {
        let at = number as usize / 64;
        if self.words.len() <= at {
            self.words.resize(at + 1, 0);
        }
        self.count += u64::from(!self.has(number));
        self.words[at] |= 1 << (number % 64);
    }

    pub fn clear(&mut self, number: u32) {
        if self.has(number) {
            self.words[number as usize / 64] &= !(1 << (number % 64));
            self.count -= 1;
        }
    }

    pub fn count(&self) -> u64 {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn rows_round_trip(rows: Vec<(u32, u32, u32)>) {
            let rows: Vec<Row> = rows.into_iter().map(|(pack, offset, len)| Row { pack, offset, len }).collect();
            prop_assert_eq!(decode(&encode(&rows)).unwrap(), rows);
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>) {
            prop_assert_eq!(decode(&bytes).is_ok(), bytes.len() % ROW_LEN == 0);
        }
    }

    #[test]
    fn the_bits_count_packs() {
        let mut live = Live::default();
        for number in [0, 63, 64, 1000, 64] {
            live.set(number);
        }
        live.clear(63);
        live.clear(5000);
        assert_eq!(live.count(), 3);
        assert!(live.has(1000) && !live.has(63) && !live.has(5000));
    }
}
