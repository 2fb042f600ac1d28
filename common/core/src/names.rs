//! File names of a directory in order and in little memory, however many there are.

use std::cmp::Ordering;

/// What one name costs besides its bytes: where it begins, its length and its tag.
const COST: usize = 4 + HEAD;
/// Before the bytes of each name: its length and its tag.
const HEAD: usize = 2;

/// Names with a tag each, sorted by their bytes. When they take more than their room, only the first of them
/// are kept; the others come when the directory is read again for what lies behind the last one.
///
/// Memory: 6 bytes a name besides the name itself, and up to twice that while it grows.
#[derive(Debug, Default)]
pub struct Names {
    /// One name after the other: length, tag, bytes.
    bytes: Vec<u8>,
    /// Where each one begins.
    starts: Vec<u32>,
    room: usize,
    /// The last one that was kept when there was no room for all.
    cut: Option<Vec<u8>>,
}

impl Names {
    /// Longest name.
    pub const LEN_MAX: usize = u8::MAX as usize;

    /// Begins anew, with room for so many bytes; memory is used again.
    pub fn begin(&mut self, room: usize) {
        self.bytes.clear();
        self.starts.clear();
        self.cut = None;
        self.room = room.min(u32::MAX as usize / 2);
    }

    /// Adds a name, in any order. False for one that is too long.
    pub fn push(&mut self, name: &[u8], tag: u8) -> bool {
        let Ok(len) = u8::try_from(name.len()) else {
            return false;
        };
        if self.cut.as_ref().is_some_and(|cut| name > &cut[..]) {
            return true;
        }
        self.append(len, tag, name);
        // The first half of the names may be the longer one.
        while self.held() > self.room && self.starts.len() > 1 {
            self.keep_first_half();
        }
        true
    }

    /// Puts all into order, once.
    pub fn finish(&mut self) {
        self.sort();
        // A directory that changes while it is read may give a name twice.
        let bytes = &self.bytes;
        self.starts
            .dedup_by(|a, b| name_at(bytes, *a).0 == name_at(bytes, *b).0);
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    /// Whether there are more behind the last one.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        self.cut.is_some()
    }

    /// Bytes that they take.
    #[must_use]
    pub fn held(&self) -> usize {
        self.bytes.len() + self.starts.len() * size_of::<u32>()
    }

    /// Bytes that are set aside for them, and for those that come next in their place.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.bytes.capacity() + self.starts.capacity() * size_of::<u32>()
    }

    /// The name at a place in the order, and its tag.
    #[must_use]
    pub fn get(&self, at: usize) -> Option<(&[u8], u8)> {
        Some(name_at(&self.bytes, *self.starts.get(at)?))
    }

    /// The last one.
    #[must_use]
    pub fn last(&self) -> Option<&[u8]> {
        self.get(self.len().checked_sub(1)?).map(|(name, _)| name)
    }

    /// Gives back what was set aside and is not used.
    pub fn shrink(&mut self) {
        self.bytes.shrink_to_fit();
        self.starts.shrink_to_fit();
    }

    fn append(&mut self, len: u8, tag: u8, name: &[u8]) {
        self.starts.push(self.bytes.len() as u32);
        self.bytes.extend_from_slice(&[len, tag]);
        self.bytes.extend_from_slice(name);
    }

    fn sort(&mut self) {
        let bytes = &self.bytes;
        let order = |a: &u32, b: &u32| -> Ordering { name_at(bytes, *a).0.cmp(name_at(bytes, *b).0) };
        self.starts.sort_unstable_by(order);
    }

    /// What comes behind the middle is left out from now on, so that this happens but once for each half of
    /// the room that is filled again.
    fn keep_first_half(&mut self) {
        self.finish();
        let kept = (self.starts.len() / 2).max(1);
        let mut half = Self {
            bytes: Vec::with_capacity(self.room + Self::LEN_MAX + COST),
            starts: Vec::with_capacity(self.starts.len() + 1),
            room: self.room,
            cut: None,
        };
        for (name, tag) in (0..kept).filter_map(|at| self.get(at)) {
            half.append(name.len() as u8, tag, name);
        }
        half.cut = half.last().map(<[u8]>::to_vec);
        *self = half;
    }
}

fn name_at(bytes: &[u8], start: u32) -> (&[u8], u8) {
    let start = start as usize;
    let from = start + HEAD;
    (&bytes[from..from + usize::from(bytes[start])], bytes[start + 1])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// All names of a directory, read as often as the room demands.
    fn read_all(listing: &[(Vec<u8>, u8)], room: usize) -> (Vec<(Vec<u8>, u8)>, usize) {
        let (mut all, mut passes) = (Vec::new(), 0);
        let mut names = Names::default();
        loop {
            names.begin(room);
            let after: Option<Vec<u8>> = all.last().map(|(name, _): &(Vec<u8>, u8)| name.clone());
            for (name, tag) in listing {
                if after.as_ref().is_none_or(|after| name > after) {
                    assert!(names.push(name, *tag));
                }
            }
            names.finish();
            passes += 1;
            assert!(names.held() <= room || names.len() == 1);
            all.extend(
                (0..names.len())
                    .filter_map(|at| names.get(at))
                    .map(|(n, t)| (n.to_vec(), t)),
            );
            if !names.is_cut() {
                return (all, passes);
            }
        }
    }

    proptest! {
        #[test]
        fn in_whatever_room_all_names_come_in_order(
            set in proptest::collection::btree_map(proptest::collection::vec(1..=255_u8, 1..20), any::<u8>(), 0..200),
            room in 1..3000_usize,
            seed in any::<u64>(),
        ) {
            let set: BTreeMap<Vec<u8>, u8> = set;
            let mut listing: Vec<(Vec<u8>, u8)> = set.clone().into_iter().collect();
            listing.sort_by_key(|(name, _)| name.iter().fold(seed, |sum, byte| sum.wrapping_mul(31) ^ u64::from(*byte)));
            let (all, _) = read_all(&listing, room);
            prop_assert_eq!(all, set.into_iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_name_that_comes_twice_is_there_once_and_one_that_is_too_long_is_refused() {
        let mut names = Names::default();
        names.begin(1000);
        assert!(names.push(b"b", 1) && names.push(b"a", 2) && names.push(b"b", 1));
        assert!(names.push(&[b'x'; 255], 0) && !names.push(&[b'x'; 256], 0));
        names.finish();
        assert_eq!(names.len(), 3);
        assert_eq!(names.get(0), Some((&b"a"[..], 2)));
        assert!(!names.is_cut() && names.get(3).is_none());
    }

    #[test]
    fn few_passes_are_enough() {
        let listing: Vec<_> = (0..100_000_u32)
            .map(|n| (n.to_string().into_bytes(), 0))
            .collect();
        let (all, passes) = read_all(&listing, 300_000);
        assert_eq!(all.len(), 100_000);
        assert!(passes <= 8, "{passes}");
    }
}
