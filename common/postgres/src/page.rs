//! Pages of relations: their checksums, and whether their headers make sense.
//!
//! A page with a checksum sums up its own bytes and its number, so that a page in a wrong place is found too. The
//! sum is a variant of FNV-1a that runs over 32 columns of 32-bit numbers at once, mixed at the end; it is meant for
//! vector units, and compilers find them here without being told. Source: the server's documentation ("Data
//! Checksums") and its description of the algorithm (`checksum_impl.h`); checked with pages of a real server
//! (`tests/real_server`).

use crate::{
    ControlFile, Lsn,
    error::{PgError, malformed},
};

/// Bytes of a page. Servers can be built with others, which are refused.
pub const PAGE_LEN: usize = 8192;
/// Bytes of its header.
const HEADER_LEN: u16 = 24;
/// Size of the page plus version 4 of its layout, which servers write since 8.3.
const LEN_AND_VERSION: u16 = 0x2004;
/// All flags that servers know: free line pointers, full, all visible.
const FLAGS: u16 = 0x0007;

/// Columns that are summed at once.
const LANES: usize = 32;
/// Bytes of one row of all columns.
const ROW_LEN: usize = LANES * 4;
const FNV_PRIME: u32 = 16_777_619;
/// Where the columns begin: numbers without a pattern, so that equal columns do not cancel each other out.
const LANES_BEGIN: [u32; LANES] = [
    0x5b1f_36e9,
    0xb852_5960,
    0x02ab_50aa,
    0x1de6_6d2a,
    0x79ff_467a,
    0x9bb9_f8a3,
    0x217e_7cd2,
    0x83e1_3d2c,
    0xf8d4_474f,
    0xe39e_b970,
    0x42c6_ae16,
    0x9932_16fa,
    0x7b09_3b5d,
    0x98da_ff3c,
    0xf718_902a,
    0x0b1c_9cdb,
    0xe58f_764b,
    0x1876_36bc,
    0x5d7b_3bb1,
    0xe73d_e7de,
    0x92be_c979,
    0xcca6_c0b2,
    0x304a_0979,
    0x85aa_43d4,
    0x7831_25bb,
    0x6ca8_eaa2,
    0xe407_eac6,
    0x4b5c_fc3e,
    0x9fbf_8c76,
    0x15ca_20be,
    0xf2ca_9fd3,
    0x959b_d756,
];

/// The checksum that a page should carry as that block of its fork. Never zero. What stands in the place of the
/// checksum does not count.
#[must_use]
pub fn page_checksum(page: &[u8; PAGE_LEN], block: u32) -> u16 {
    let (rows, _) = page.as_chunks::<ROW_LEN>();
    let mut sums = LANES_BEGIN;
    let mut rows = rows.iter();
    if let Some(first) = rows.next() {
        let mut first = *first;
        // The checksum's own place.
        first[8..10].fill(0);
        add_row(&mut sums, &first);
    }
    for row in rows {
        add_row(&mut sums, row);
    }
    // Two more, so that the last rows reach all bits as well.
    add_row(&mut sums, &[0; ROW_LEN]);
    add_row(&mut sums, &[0; ROW_LEN]);
    let all = sums.iter().fold(0, |all, sum| all ^ sum) ^ block;
    // From 1 to 65535: zero would look like a page without one.
    (all % 65_535 + 1) as u16
}

#[inline(always)]
fn add_row(sums: &mut [u32; LANES], row: &[u8; ROW_LEN]) {
    let (words, _) = row.as_chunks::<4>();
    for (sum, word) in sums.iter_mut().zip(words) {
        let mixed = *sum ^ u32::from_le_bytes(*word);
        *sum = mixed.wrapping_mul(FNV_PRIME) ^ (mixed >> 17);
    }
}

/// What is wrong with a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum PageFault {
    /// It does not match its checksum, or is not the page that it should be.
    #[error("its checksum is {stored:#06x} and should be {computed:#06x}")]
    Checksum {
        /// What stands in it.
        stored: u16,
        /// What should.
        computed: u16,
    },
    /// Its header is none that servers write.
    #[error("its header is damaged: {0}")]
    Header(&'static str),
}

/// A page that is not what a server wrote, as far as was read: the server may have been writing it just then. Only a
/// page that is found so again, with the same bytes, is damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BadPage {
    /// Its number within its fork.
    pub block: u32,
    /// What it says of its last change. One at or behind the start of the backup means that WAL will write the page
    /// anew.
    pub lsn: Lsn,
    /// What is wrong.
    pub fault: PageFault,
}

/// The position behind the last change of a page, as it says itself; zero where none was logged.
#[must_use]
pub fn page_lsn(page: &[u8; PAGE_LEN]) -> Lsn {
    let [a, b, c, d, e, f, g, h, ..] = *page;
    let (high, low) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]));
    Lsn((u64::from(high) << 32) | u64::from(low))
}

/// How the pages of one cluster are checked.
#[derive(Debug, Clone, Copy)]
pub struct PageCheck {
    checksums: bool,
}

impl PageCheck {
    /// For pages of that cluster.
    ///
    /// # Errors
    /// `Refused` when its pages are not of 8 KiB.
    pub fn new(control: &ControlFile) -> Result<Self, PgError> {
        if control.block_len as usize == PAGE_LEN {
            Ok(Self {
                checksums: control.data_checksums,
            })
        } else {
            Err(PgError::Refused {
                what: "a cluster with this block_size",
                why: "pages of 8 KiB are supported, as all packages of PostgreSQL have them",
            })
        }
    }

    /// Whether the cluster has checksums. Without them only headers are looked at, which finds little.
    #[must_use]
    pub const fn has_checksums(self) -> bool {
        self.checksums
    }

    /// Finds the bad ones in whole pages that follow each other, of which the first has that number within its fork.
    ///
    /// # Errors
    /// `Malformed` when the bytes are not whole pages, or when their numbers would be beyond those of servers.
    pub fn bad_pages(self, bytes: &[u8], first_block: u32) -> Result<impl Iterator<Item = BadPage>, PgError> {
        let (pages, rest) = bytes.as_chunks::<PAGE_LEN>();
        if !rest.is_empty() {
            return Err(malformed(
                "a file of a relation",
                "it does not end with a whole page",
            ));
        }
        let fits = u32::try_from(pages.len()).is_ok_and(|count| first_block.checked_add(count).is_some());
        if !fits {
            return Err(malformed(
                "a file of a relation",
                "it has more pages than a relation can have",
            ));
        }
        Ok(pages.iter().zip(first_block..).filter_map(move |(page, block)| {
            self.fault(page, block).map(|fault| BadPage {
                block,
                lsn: page_lsn(page),
                fault,
            })
        }))
    }

    /// What is wrong with one page, if anything.
    #[must_use]
    pub fn fault(self, page: &[u8; PAGE_LEN], block: u32) -> Option<PageFault> {
        let header = Header::read(page);
        // A page that was added to a file and not used yet, most often all zeros: it has no checksum, and the server
        // makes it anew. One that does have a checksum became like this by damage.
        if header.upper == 0 && (header.checksum == 0 || !self.checksums) {
            return None;
        }
        if self.checksums {
            let computed = page_checksum(page, block);
            if header.checksum != computed {
                return Some(PageFault::Checksum {
                    stored: header.checksum,
                    computed,
                });
            }
        }
        header.fault()
    }
}

/// The numbers of a page's header that show whether it is one.
struct Header {
    checksum: u16,
    flags: u16,
    lower: u16,
    upper: u16,
    special: u16,
    len_and_version: u16,
}

impl Header {
    fn read(page: &[u8; PAGE_LEN]) -> Self {
        let (numbers, _) = page.as_chunks::<2>();
        let number = |at: usize| numbers.get(at / 2).copied().map_or(0, u16::from_le_bytes);
        Self {
            checksum: number(8),
            flags: number(10),
            lower: number(12),
            upper: number(14),
            special: number(16),
            len_and_version: number(18),
        }
    }

    fn fault(&self) -> Option<PageFault> {
        let why = if self.len_and_version != LEN_AND_VERSION {
            "its size and version are not those of this layout"
        } else if self.flags & !FLAGS != 0 {
            "it has unknown flags"
        } else if self.lower < HEADER_LEN || self.lower > self.upper || self.upper > self.special {
            "its parts overlap"
        } else if usize::from(self.special) > PAGE_LEN || !self.special.is_multiple_of(8) {
            "its special space is out of place"
        } else {
            return None;
        };
        Some(PageFault::Header(why))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CHECKED: PageCheck = PageCheck { checksums: true };
    const UNCHECKED: PageCheck = PageCheck { checksums: false };

    /// The algorithm once more, word by word and column by column, as slow as it is plain.
    fn plain_checksum(page: &[u8], block: u32) -> u16 {
        let mut all = 0;
        for (lane, begin) in LANES_BEGIN.into_iter().enumerate() {
            let mut sum = u64::from(begin);
            for row in 0..PAGE_LEN / ROW_LEN + 2 {
                let at = row * ROW_LEN + lane * 4;
                let byte = |at: usize| {
                    let skipped = at >= PAGE_LEN || at == 8 || at == 9;
                    if skipped { 0 } else { u64::from(page[at]) }
                };
                let word = byte(at) | (byte(at + 1) << 8) | (byte(at + 2) << 16) | (byte(at + 3) << 24);
                let mixed = sum ^ word;
                sum = ((mixed * u64::from(FNV_PRIME)) & 0xffff_ffff) ^ (mixed >> 17);
            }
            all ^= sum;
        }
        u16::try_from((all ^ u64::from(block)) % 65_535 + 1).unwrap()
    }

    /// A page with that in it and a header and checksum that are right for that block.
    fn page(block: u32, fill: u8) -> [u8; PAGE_LEN] {
        let mut page = [fill; PAGE_LEN];
        page[..8].copy_from_slice(&[2, 0, 0, 0, 0x48, 0xd8, 0x74, 0xb3]);
        let mut number = |at: usize, number: u16| page[at..at + 2].copy_from_slice(&number.to_le_bytes());
        number(10, 4);
        number(12, 40);
        number(14, 4096);
        number(16, 8176);
        number(18, LEN_AND_VERSION);
        sum_up(&mut page, block);
        page
    }

    fn sum_up(page: &mut [u8; PAGE_LEN], block: u32) {
        let sum = page_checksum(page, block);
        page[8..10].copy_from_slice(&sum.to_le_bytes());
    }

    fn bad(bytes: &[u8], first_block: u32) -> Vec<BadPage> {
        CHECKED.bad_pages(bytes, first_block).unwrap().collect()
    }

    #[test]
    fn each_bad_page_is_told_with_its_number() {
        let mut bytes: Vec<u8> = (7..12).flat_map(|block| page(block, block as u8)).collect();
        assert_eq!(bad(&bytes, 7), []);
        bytes[PAGE_LEN + 5000] ^= 1;
        bytes[4 * PAGE_LEN + 8] ^= 0x80;
        let found = bad(&bytes, 7);
        assert_eq!(found.iter().map(|page| page.block).collect::<Vec<_>>(), [8, 11]);
        assert!(
            found
                .iter()
                .all(|page| matches!(page.fault, PageFault::Checksum { .. }))
        );
        assert_eq!(found[0].lsn, Lsn(0x2_b374_d848));
        // At another place all of them are wrong.
        assert_eq!(bad(&bytes, 6).len(), 5);
    }

    #[test]
    fn unused_pages_are_valid() {
        assert_eq!(bad(&[0; 3 * PAGE_LEN], 0), []);
        let mut new = page(0, 1);
        new[14..16].fill(0);
        assert_eq!(UNCHECKED.fault(&new, 0), None);
        assert_eq!(bad(&new, 0).len(), 1);
        new[8..10].fill(0);
        assert_eq!(bad(&new, 0), []);
    }

    #[test]
    fn headers_that_no_server_writes_are_found_without_checksums_too() {
        for (at, number) in [
            (10, 8_u16),
            (12, 20),
            (12, 4104),
            (14, 8184),
            (16, 8200),
            (16, 8172),
            (18, 0x2003),
        ] {
            let mut page = page(3, 5);
            page[at..at + 2].copy_from_slice(&number.to_le_bytes());
            let fault = UNCHECKED.fault(&page, 3);
            assert!(
                matches!(fault, Some(PageFault::Header(_))),
                "{at} {number}: {fault:?}"
            );
            sum_up(&mut page, 3);
            assert_eq!(CHECKED.fault(&page, 3), fault);
        }
        let mut page = page(3, 5);
        page[6000] ^= 1;
        assert_eq!(UNCHECKED.fault(&page, 3), None);
    }

    #[test]
    fn parts_of_pages_and_numbers_beyond_those_of_servers_are_refused() {
        assert!(CHECKED.bad_pages(&[0; PAGE_LEN - 1], 0).is_err());
        assert!(CHECKED.bad_pages(&[0; PAGE_LEN + 1], 0).is_err());
        assert!(CHECKED.bad_pages(&[0; 2 * PAGE_LEN], u32::MAX - 1).is_err());
        assert_eq!(bad(&[0; 2 * PAGE_LEN], u32::MAX - 2), []);
        assert_eq!(bad(&[], u32::MAX), []);
    }

    #[test]
    fn clusters_with_other_pages_are_refused() {
        let mut file = include_bytes!("../tests/golden/pg_control-15.bin").to_vec();
        file.resize(crate::CONTROL_FILE_LEN, 0);
        let mut control = ControlFile::decode(&file).unwrap();
        assert!(PageCheck::new(&control).unwrap().has_checksums());
        control.block_len = 16_384;
        assert!(PageCheck::new(&control).is_err());
    }

    proptest! {
        #[test]
        fn the_fast_way_and_the_plain_way_agree(
            bytes in proptest::collection::vec(any::<u8>(), PAGE_LEN..=PAGE_LEN), block: u32,
        ) {
            prop_assert_eq!(page_checksum(bytes.as_slice().try_into().unwrap(), block), plain_checksum(&bytes, block));
        }

        #[test]
        fn any_flipped_bit_is_found(at in 0..PAGE_LEN * 8, block in 0..u32::MAX) {
            let mut page = page(block, 0xa5);
            prop_assert_eq!(CHECKED.fault(&page, block), None);
            page[at / 8] ^= 1 << (at % 8);
            prop_assert!(CHECKED.fault(&page, block).is_some());
        }

        #[test]
        fn any_bytes_are_checked_without_panic(bytes: Vec<u8>, first_block: u32) {
            let mut pages = bytes;
            pages.resize(2 * PAGE_LEN, 7);
            if let Ok(found) = CHECKED.bad_pages(&pages, first_block) {
                prop_assert!(found.count() <= 2);
            }
        }
    }
}
