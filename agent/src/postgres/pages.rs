//! Page checksums, verified as pages are read: what is being written just then is told from what is damaged.
//!
//! A reader may meet a page half written. Read again it is another or whole, and recovery writes it anew from the WAL in any
//! case. A page that stays as it is, was last changed before the backup began and does not match its checksum is damaged.

use super::rules::RelationPages;
use holdfast_postgres::{BadPage, Lsn, PAGE_LEN, PageCheck, PageFault, page_lsn};
use parking_lot::Mutex;
use std::{os::fd::OwnedFd, thread::park_timeout, time::Duration};

/// Pauses before bad pages are read again, those of one segment together. A page is written in far less than the last of
/// them, and a file that is damaged from end to end costs under a second for each 10 MiB.
const PAUSES: [Duration; 4] = [
    Duration::from_millis(1),
    Duration::from_millis(4),
    Duration::from_millis(16),
    Duration::from_millis(60),
];
/// Most damaged pages that are listed; the count is exact.
pub(super) const LISTED_MAX: usize = 100;
/// Most pages that are held until the end of the backup shows whether their positions are real. More are not looked at:
/// they need a server that writes thousands of pages in the very moment in which they are read.
const DOUBTFUL_MAX: usize = 10_000;

/// A damaged page.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct DamagedPage {
    /// Its file, below `/postgresql/` in the snapshot.
    pub file: String,
    /// Its number within its fork: further files of a fork go on counting.
    pub block: u32,
    #[serde(skip)]
    fault: PageFault,
}

impl DamagedPage {
    /// What to say of it beside the name of its file.
    #[must_use]
    pub fn problem(&self) -> String {
        format!("block {} is damaged: {}", self.block, self.fault)
    }
}

/// What the pages of a file were like.
#[derive(Debug, Default)]
pub struct Checked {
    /// Of damaged pages.
    pub problems: Vec<String>,
    /// Some page was not whole when it was read first: the file must be read again by the next run.
    pub is_torn: bool,
}

/// Watches over the pages that one backup reads.
#[derive(Debug)]
pub struct PageWatch {
    check: PageCheck,
    start: Lsn,
    found: Mutex<Found>,
}

#[derive(Debug, Default)]
struct Found {
    damaged: Vec<DamagedPage>,
    count: u64,
    /// Bad pages that say that they changed since the backup began.
    doubtful: Vec<(DamagedPage, Lsn)>,
}

impl Found {
    fn add(&mut self, page: DamagedPage) {
        self.count += 1;
        if self.damaged.len() < LISTED_MAX {
            self.damaged.push(page);
        }
    }
}

impl PageWatch {
    /// For a backup that begins there.
    #[must_use]
    pub fn new(check: PageCheck, start: Lsn) -> Self {
        Self {
            check,
            start,
            found: Mutex::default(),
        }
    }

    /// The backup ended there: pages that claim a later change are damaged, and are given back. Nothing else that is in
    /// doubt is: recovery writes it anew.
    pub fn end(&self, stop: Lsn) -> Vec<DamagedPage> {
        let mut found = self.found.lock();
        let doubtful = std::mem::take(&mut found.doubtful);
        let beyond = doubtful.into_iter().filter(|(_, lsn)| *lsn > stop);
        let beyond: Vec<_> = beyond.map(|(page, _)| page).collect();
        beyond.iter().for_each(|page| found.add(page.clone()));
        beyond
    }

    /// Damaged pages, the first of them, and how many there are.
    #[must_use]
    pub fn damaged(&self) -> (Vec<DamagedPage>, u64) {
        let found = self.found.lock();
        (found.damaged.clone(), found.count)
    }

    /// Notes a bad page that stays as it is; says whether it is damaged for sure.
    fn note(&self, name: &str, bad: BadPage) -> Option<DamagedPage> {
        let BadPage { block, lsn, fault } = bad;
        let page = DamagedPage {
            file: name.to_owned(),
            block,
            fault,
        };
        let mut found = self.found.lock();
        if lsn < self.start {
            found.add(page.clone());
            return Some(page);
        }
        if found.doubtful.len() < DOUBTFUL_MAX {
            found.doubtful.push((page, lsn));
        }
        None
    }
}

impl RelationPages<'_> {
    /// Checks what was read from that offset on, and reads bad pages again: `bytes` then holds what was read last. What is
    /// less than a page at the end of a file is passed over.
    ///
    /// # Errors
    /// What the system says when it cannot be read.
    pub fn check(
        &self,
        fd: &OwnedFd,
        offset: u64,
        bytes: &mut [u8],
        checked: &mut Checked,
    ) -> rustix::io::Result<()> {
        let (Some(watch), Some(first)) = (self.watch, self.block_at(offset)) else {
            return Ok(());
        };
        let whole = bytes.len() / PAGE_LEN * PAGE_LEN;
        let bytes = &mut bytes[..whole];
        // Beyond the numbers of pages there is nothing to check them against.
        let mut bad: Vec<BadPage> = match watch.check.bad_pages(bytes, first) {
            Ok(bad) => bad.collect(),
            Err(_) => return Ok(()),
        };
        checked.is_torn |= !bad.is_empty();
        for (round, pause) in PAUSES.into_iter().enumerate() {
            if bad.is_empty() {
                return Ok(());
            }
            // A worker is a thread of its own, which nobody unparks.
            park_timeout(pause);
            let mut stay = Vec::with_capacity(bad.len());
            let is_last = round + 1 == PAUSES.len();
            for page in bad {
                let at = (page.block - first) as usize * PAGE_LEN;
                let Some(page_bytes) = bytes[at..].first_chunk_mut::<PAGE_LEN>() else {
                    continue;
                };
                match again(fd, offset + at as u64, page_bytes)? {
                    Again::Gone => {}
                    Again::Same => stay.push(page),
                    // Still bad after the last look: it is being written all the time.
                    Again::Other if is_last => {}
                    Again::Other => {
                        let fault = watch.check.fault(page_bytes, page.block);
                        let lsn = page_lsn(page_bytes);
                        stay.extend(fault.map(|fault| BadPage { lsn, fault, ..page }));
                    }
                }
            }
            bad = stay;
        }
        for page in bad {
            let damaged = watch.note(&self.name, page);
            checked.problems.extend(damaged.map(|page| page.problem()));
        }
        Ok(())
    }

    fn block_at(&self, offset: u64) -> Option<u32> {
        let blocks = u32::try_from(offset / PAGE_LEN as u64).ok()?;
        self.first_block.checked_add(blocks)
    }
}

/// What a second look at a page brings.
enum Again {
    /// The file is shorter now: what cut it off is in the WAL.
    Gone,
    Same,
    Other,
}

fn again(fd: &OwnedFd, offset: u64, page: &mut [u8; PAGE_LEN]) -> rustix::io::Result<Again> {
    let mut now = [0; PAGE_LEN];
    let read = rustix::io::pread(fd, &mut now, offset)?;
    if read < PAGE_LEN {
        return Ok(Again::Gone);
    }
    if now == *page {
        return Ok(Again::Same);
    }
    *page = now;
    Ok(Again::Other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_postgres::{CONTROL_FILE_LEN, ControlFile, page_checksum};
    use std::{fs::File, io::Write as _, os::unix::fs::FileExt as _};

    const START: Lsn = Lsn(0x0100_0000);

    /// The golden file of the crate that knows the format; its cluster has checksums.
    fn watch() -> PageWatch {
        let mut bytes = include_bytes!("../../../common/postgres/tests/golden/pg_control-15.bin").to_vec();
        bytes.resize(CONTROL_FILE_LEN, 0);
        let control = ControlFile::decode(&bytes).unwrap();
        assert!(control.data_checksums);
        PageWatch::new(PageCheck::new(&control).unwrap(), START)
    }

    fn pages(watch: &PageWatch) -> RelationPages<'_> {
        RelationPages {
            watch: Some(watch),
            name: "data/base/5/16384.1".into(),
            first_block: 131_072,
        }
    }

    fn page(block: u32, lsn: u32, fill: u8) -> [u8; PAGE_LEN] {
        let mut page = [fill; PAGE_LEN];
        page[..4].fill(0);
        page[4..8].copy_from_slice(&lsn.to_le_bytes());
        for (at, number) in [(10, 4_u16), (12, 40), (14, 4096), (16, 8176), (18, 0x2004)] {
            page[at..at + 2].copy_from_slice(&number.to_le_bytes());
        }
        let sum = page_checksum(&page, block);
        page[8..10].copy_from_slice(&sum.to_le_bytes());
        page
    }

    fn file(pages: &[[u8; PAGE_LEN]]) -> (File, OwnedFd) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(pages.as_flattened()).unwrap();
        let fd = OwnedFd::from(file.try_clone().unwrap());
        (file, fd)
    }

    #[test]
    fn a_page_that_was_being_written_is_read_again_and_is_no_damage() {
        let watch = watch();
        let (before, after) = (page(131_073, 100, 1), page(131_073, 200, 2));
        let (_file, fd) = file(&[page(131_072, 1, 9), after]);
        let mut bytes = [page(131_072, 1, 9), before].as_flattened().to_vec();
        // Half of it was new when it was read.
        bytes[PAGE_LEN..PAGE_LEN + 4096].copy_from_slice(&after[..4096]);
        let mut checked = Checked::default();
        pages(&watch).check(&fd, 0, &mut bytes, &mut checked).unwrap();
        assert!(checked.is_torn && checked.problems.is_empty());
        assert_eq!(bytes[PAGE_LEN..], after);
        assert_eq!(watch.damaged().1, 0);
    }

    #[test]
    fn a_page_that_stays_as_it_is_is_damaged_unless_the_wal_brings_it() {
        let watch = watch();
        let mut bad = [
            page(131_072, 100, 1),
            page(131_073, 0x0100_0000, 1),
            page(131_074, 0x0300_0000, 1),
        ];
        bad.iter_mut().for_each(|page| page[5000] ^= 1);
        let (_file, fd) = file(&bad);
        let mut checked = Checked::default();
        let mut bytes = bad.as_flattened().to_vec();
        pages(&watch).check(&fd, 0, &mut bytes, &mut checked).unwrap();
        assert_eq!(checked.problems.len(), 1);
        assert!(
            checked.problems[0].starts_with("block 131072 is damaged: "),
            "{:?}",
            checked.problems
        );
        let late = watch.end(Lsn(0x0200_0000));
        assert_eq!(late.iter().map(|page| page.block).collect::<Vec<_>>(), [131_074]);
        let (listed, count) = watch.damaged();
        assert_eq!((listed.len(), count), (2, 2));
        assert_eq!(listed[0].file, "data/base/5/16384.1");
    }

    #[test]
    fn what_is_cut_off_meanwhile_and_parts_of_pages_are_no_damage() {
        let watch = watch();
        let mut bad = page(131_072 + 128, 100, 1);
        bad[5000] ^= 1;
        let (file, fd) = file(&[bad]);
        let mut bytes = bad.to_vec();
        bytes.extend([7; 100]);
        file.set_len(0).unwrap();
        let mut checked = Checked::default();
        pages(&watch)
            .check(&fd, 1 << 20, &mut bytes, &mut checked)
            .unwrap();
        assert_eq!((checked.problems.len(), watch.damaged().1), (0, 0));
        // The number of a page comes from where it is.
        file.write_all_at(&page(131_072 + 128, 100, 1), 1 << 20).unwrap();
        let (mut good, mut checked) = (page(131_072 + 128, 100, 1), Checked::default());
        pages(&watch)
            .check(&fd, 1 << 20, &mut good, &mut checked)
            .unwrap();
        assert!(!checked.is_torn);
    }

    #[test]
    fn more_damage_than_is_listed_is_counted() {
        let watch = watch();
        let mut bad: Vec<_> = (0..120).map(|n| page(131_072 + n, 100, 1)).collect();
        // The checksum itself, which no other change can make right again.
        bad.iter_mut().for_each(|page| page[8] ^= 1);
        let (_file, fd) = file(&bad);
        let mut checked = Checked::default();
        let mut bytes = bad.as_flattened().to_vec();
        pages(&watch).check(&fd, 0, &mut bytes, &mut checked).unwrap();
        let (listed, count) = watch.damaged();
        assert_eq!(
            (checked.problems.len(), listed.len(), count),
            (120, LISTED_MAX, 120)
        );
    }
}
