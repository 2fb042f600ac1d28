//! Tablespaces that the WAL makes: where replaying it would write outside of the data directory.
//!
//! A server that replays the making of a tablespace makes and fills the directory that stands in the record, whatever lies
//! there. On the host that the WAL comes from that is the directory of the origin itself. So whoever replays WAL beside its
//! origin looks for such records first. Source: the page and record headers as `pg_waldump` reads them; the numbers of
//! resource managers and records are the same in all known versions.

use crate::{lsn::Lsn, version::PgVersion};

/// Flag of a page: it begins with the rest of a record.
const CONTINUES: u16 = 1;
/// Flag of a page: its header is the long one, of a segment's first page.
const LONG: u16 = 2;
/// Bytes of a page's header, and of the long one.
const PAGE_HEADER: usize = 24;
const LONG_PAGE_HEADER: usize = 40;
/// Bytes of a record's header.
const RECORD_HEADER: usize = 24;
/// Number of the resource manager of tablespaces.
const TABLESPACES: u8 = 5;
/// Its record that makes one, in the upper half of the record's flags.
const CREATE: u8 = 0;
/// Bytes of such a record that are kept: a path has at most 1024.
const KEPT: usize = 2048;
/// Kinds of a record's parts: its data with a short or a long length, and what may stand before it.
const DATA_SHORT: u8 = 255;
const DATA_LONG: u8 = 254;
const ORIGIN: u8 = 253;
const TOP_XID: u8 = 252;

/// A tablespace that the WAL makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MadeTablespace {
    /// Its OID.
    pub oid: u32,
    /// Where it makes it; empty for one within the data directory. None: the record could not be read.
    pub location: Option<Vec<u8>>,
}

/// A record whose end was not seen yet.
#[derive(Debug)]
struct Pending {
    /// The first bytes.
    head: Vec<u8>,
    /// Bytes that are still to come.
    left: usize,
    /// It is replayed.
    is_wanted: bool,
}

/// Looks through the pages of segments, one after the other.
#[derive(Debug, Default)]
pub struct TablespaceScan {
    /// Records that begin before are not replayed.
    from: u64,
    pending: Option<Pending>,
    found: Vec<MadeTablespace>,
}

impl TablespaceScan {
    /// Of what is replayed from that position on: where a recovery begins, most often in the middle of a segment.
    #[must_use]
    pub fn replayed_from(position: Lsn) -> Self {
        Self {
            from: position.0,
            ..Self::default()
        }
    }

    /// Looks through the page at a position. False: no WAL follows in this segment.
    pub fn page(&mut self, page: &[u8], position: u64) -> bool {
        let Some((header, continued)) = header(page, position) else {
            self.pending = None;
            return false;
        };
        let mut at = header;
        match continued {
            Some(len) => {
                let here = len.min(page.len() - at);
                if let Some(pending) = self.pending.take().filter(|pending| pending.left == len) {
                    self.feed(pending, &page[at..at + here]);
                }
                at += here.next_multiple_of(8);
            }
            // What was begun was given up by the server too.
            None => self.pending = None,
        }
        while let Some(rest) = page.get(at..).filter(|rest| rest.len() >= 8) {
            let len = u32_at(rest, 0).unwrap_or(0) as usize;
            if len < RECORD_HEADER {
                return false;
            }
            let here = len.min(rest.len());
            let pending = Pending {
                head: Vec::with_capacity(RECORD_HEADER),
                left: len,
                is_wanted: position + at as u64 >= self.from,
            };
            self.feed(pending, &rest[..here]);
            at += here.next_multiple_of(8);
        }
        true
    }

    /// What was found.
    #[must_use]
    pub fn found(&self) -> &[MadeTablespace] {
        &self.found
    }

    fn feed(&mut self, mut pending: Pending, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let wanted = if pending.head.len() < RECORD_HEADER {
                RECORD_HEADER
            } else if makes_tablespace(&pending.head) {
                KEPT
            } else {
                break;
            };
            let room = wanted.saturating_sub(pending.head.len());
            if room == 0 {
                break;
            }
            let (now, later) = rest.split_at(room.min(rest.len()));
            pending.head.extend_from_slice(now);
            rest = later;
        }
        pending.left = pending.left.saturating_sub(bytes.len());
        if pending.left > 0 {
            self.pending = Some(pending);
        } else if pending.is_wanted && makes_tablespace(&pending.head) {
            self.found.push(made(&pending.head));
        }
    }
}

/// The length of a page's header, and how much of it continues a record; none for what is no page of that position.
fn header(page: &[u8], position: u64) -> Option<(usize, Option<usize>)> {
    let flags = u16_at(page, 2)?;
    let _: PgVersion = PgVersion::from_wal_magic(u16_at(page, 0)?).ok()?;
    let at = page.get(8..16)?.first_chunk().copied().map(u64::from_le_bytes)?;
    // A server takes old segments for new ones: what was written before lies behind the end.
    if at != position {
        return None;
    }
    let len = if flags & LONG == 0 {
        PAGE_HEADER
    } else {
        LONG_PAGE_HEADER
    };
    let continued = u32_at(page, 16)? as usize;
    (page.len() > len).then_some((len, (flags & CONTINUES != 0).then_some(continued)))
}

fn makes_tablespace(head: &[u8]) -> bool {
    matches!((head.get(16), head.get(17)), (Some(flags), Some(&TABLESPACES)) if flags & 0xf0 == CREATE)
}

fn made(head: &[u8]) -> MadeTablespace {
    let data = data(head).unwrap_or_default();
    let location = data.get(4..).and_then(|text| {
        let end = text.iter().position(|byte| *byte == 0)?;
        Some(text[..end].to_vec())
    });
    MadeTablespace {
        oid: u32_at(data, 0).unwrap_or(0),
        location,
    }
}

/// A record's own data, behind what says how long it is.
fn data(head: &[u8]) -> Option<&[u8]> {
    let mut at = RECORD_HEADER;
    loop {
        match *head.get(at)? {
            ORIGIN => at += 1 + 2,
            TOP_XID => at += 1 + 4,
            DATA_SHORT => return head.get(at + 2..),
            DATA_LONG => return head.get(at + 5..),
            _ => return None,
        }
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().copied().map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().copied().map(u32::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PAGE: usize = 8192;
    const START: u64 = 3 << 24;

    fn record(manager: u8, flags: u8, data: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; RECORD_HEADER];
        bytes[16] = flags;
        bytes[17] = manager;
        if data.len() < 256 {
            bytes.extend([DATA_SHORT, data.len() as u8]);
        } else {
            bytes.push(DATA_LONG);
            bytes.extend((data.len() as u32).to_le_bytes());
        }
        bytes.extend(data);
        let len = bytes.len() as u32;
        bytes[..4].copy_from_slice(&len.to_le_bytes());
        bytes
    }

    fn create(oid: u32, path: &str) -> Vec<u8> {
        let mut data = oid.to_le_bytes().to_vec();
        data.extend(path.as_bytes());
        data.push(0);
        record(TABLESPACES, 0, &data)
    }

    /// Pages as a server of version 15 writes them.
    fn pages(records: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let mut pages: Vec<Vec<u8>> = Vec::new();
        let begin = |pages: &mut Vec<Vec<u8>>, left: usize| {
            if let Some(last) = pages.last_mut() {
                last.resize(PAGE, 0);
            }
            let first = pages.is_empty();
            let mut page = vec![0; if first { LONG_PAGE_HEADER } else { PAGE_HEADER }];
            page[..2].copy_from_slice(&0xD110_u16.to_le_bytes());
            let flags = u16::from(first) * LONG + u16::from(left > 0) * CONTINUES;
            page[2..4].copy_from_slice(&flags.to_le_bytes());
            let position = START + (pages.len() * PAGE) as u64;
            page[8..16].copy_from_slice(&position.to_le_bytes());
            page[16..20].copy_from_slice(&(left as u32).to_le_bytes());
            pages.push(page);
        };
        begin(&mut pages, 0);
        for record in records {
            let mut rest = &record[..];
            while !rest.is_empty() {
                let room = PAGE - pages.last().unwrap().len();
                if room == 0 {
                    let left = if rest.len() == record.len() { 0 } else { rest.len() };
                    begin(&mut pages, left);
                    continue;
                }
                let (now, later) = rest.split_at(room.min(rest.len()));
                pages.last_mut().unwrap().extend(now);
                rest = later;
            }
            let len = pages.last().unwrap().len().next_multiple_of(8);
            pages.last_mut().unwrap().resize(len, 0);
        }
        pages.last_mut().unwrap().resize(PAGE, 0);
        pages
    }

    fn scan(pages: &[Vec<u8>]) -> Vec<MadeTablespace> {
        let mut scan = TablespaceScan::default();
        for (number, page) in pages.iter().enumerate() {
            if !scan.page(page, START + (number * PAGE) as u64) {
                break;
            }
        }
        scan.found().to_vec()
    }

    fn made(oid: u32, path: &str) -> MadeTablespace {
        MadeTablespace {
            oid,
            location: Some(path.into()),
        }
    }

    #[test]
    fn only_records_that_make_tablespaces_are_found() {
        let records = [
            record(10, 0, b"heap"),
            create(16384, "/srv/a"),
            record(TABLESPACES, 0x10, &16384_u32.to_le_bytes()),
            create(16385, ""),
            record(4, 0, b"/srv/database"),
        ];
        assert_eq!(scan(&pages(&records)), [made(16384, "/srv/a"), made(16385, "")]);
    }

    #[test]
    fn what_was_made_before_the_recovery_begins_is_not_replayed() {
        let records = [create(1, "/srv/before"), create(2, "/srv/behind")];
        let second = START + (LONG_PAGE_HEADER + records[0].len().next_multiple_of(8)) as u64;
        let found = |from| {
            let mut scan = TablespaceScan::replayed_from(Lsn(from));
            assert!(!scan.page(&pages(&records)[0], START));
            scan.found().to_vec()
        };
        assert_eq!(found(second), [made(2, "/srv/behind")]);
        assert_eq!(found(second - 8), [made(2, "/srv/behind")]);
        assert_eq!(found(second + 8), []);
        assert_eq!(found(START).len(), 2);
    }

    #[test]
    fn what_lies_behind_the_end_of_the_wal_is_not_read() {
        let mut all = pages(&[record(10, 0, &vec![1; 9000]), create(1, "/srv/a")]);
        assert_eq!(scan(&all), [made(1, "/srv/a")]);
        // The second page is what an older segment left.
        all[1][8] ^= 1;
        assert_eq!(scan(&all), []);
        let zeros = pages(&[record(0, 0x40, b"")]);
        assert_eq!(scan(&zeros), []);
    }

    #[test]
    fn a_location_that_cannot_be_read_is_told_as_unknown() {
        let broken = record(TABLESPACES, 0, &[1, 0, 0, 0, b'/', b'x']);
        let found = scan(&pages(&[broken]));
        assert_eq!((found[0].oid, found[0].location.clone()), (1, None));
    }

    proptest! {
        #[test]
        fn records_are_found_wherever_pages_end(lens in proptest::collection::vec(0..20_000_usize, 0..8), long in 1..1000_usize) {
            let path = format!("/{}", "x".repeat(long));
            let mut records: Vec<Vec<u8>> = lens.iter().map(|len| record(10, 0, &vec![7; *len])).collect();
            records.push(create(5, &path));
            records.push(record(10, 0, b"after"));
            records.push(create(6, "/b"));
            prop_assert_eq!(scan(&pages(&records)), [made(5, &path), made(6, "/b")]);
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>, page in proptest::collection::vec(any::<u8>(), 0..100)) {
            let mut scan = TablespaceScan::default();
            let _ = scan.page(&bytes, 0);
            let mut whole = pages(&[create(1, "/a")]).remove(0);
            whole[40..40 + page.len()].copy_from_slice(&page);
            let _ = scan.page(&whole, START);
        }
    }
}
