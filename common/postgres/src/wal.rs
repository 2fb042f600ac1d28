//! Heads of WAL segments: whether the bytes that are handed over under a name are what the name says.
//!
//! Each page of the WAL begins with a header, and the first one of a segment with a longer one that also names the
//! cluster and the sizes. Source: what `pg_waldump` checks, and the heads of segments that servers of all known
//! versions archived (`tests/golden`).

use crate::{
    error::{PgError, malformed},
    fields::Fields,
    history::TimelineHistory,
    lsn::{Lsn, SystemId, TimelineId},
    segment::Segment,
    version::PgVersion,
};
use std::fmt;

/// Bytes of a segment that its header takes, and that are enough for all checks here.
pub const WAL_HEADER_LEN: usize = 40;
/// Flag: the page begins with the rest of a record.
const CONTINUES: u16 = 1;
/// Flag: the header is the long one.
const LONG: u16 = 2;
/// All flags that servers set.
const FLAGS: u16 = 0x000f;
const WHAT: &str = "a WAL segment";

/// The header of a segment's first page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalHeader {
    /// The version of the server that wrote it.
    pub version: PgVersion,
    /// Whether it begins with the rest of a record of the segment before.
    pub continues: bool,
    /// The timeline that wrote the first page.
    pub timeline: TimelineId,
    /// The position of its first byte.
    pub start: Lsn,
    /// The cluster.
    pub system_id: SystemId,
    /// Bytes of the segment.
    pub segment_len: u32,
    /// Bytes of one of its pages.
    pub block_len: u32,
}

/// The cluster that WAL must come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cluster {
    /// Its identity.
    pub system_id: SystemId,
    /// The version of its servers.
    pub version: PgVersion,
}

impl WalHeader {
    /// Decodes the first bytes of a segment.
    ///
    /// # Errors
    /// `Malformed` when they are too few or no such header, `UnknownVersion`.
    pub fn decode(head: &[u8]) -> Result<Self, PgError> {
        let head = head
            .get(..WAL_HEADER_LEN)
            .ok_or(malformed(WHAT, "it is shorter than its header"))?;
        if head.iter().all(|byte| *byte == 0) {
            return Err(malformed(
                WHAT,
                "it begins with zeros: nothing was written to it yet",
            ));
        }
        let fields = Fields::new(WHAT, head);
        let version = PgVersion::from_wal_magic(fields.u16(0)?)?;
        let flags = fields.u16(2)?;
        if flags & LONG == 0 || flags & !FLAGS != 0 {
            return Err(fields.bad("its first page is not the first of a segment"));
        }
        Ok(Self {
            version,
            continues: flags & CONTINUES != 0,
            timeline: TimelineId::new(fields.u32(4)?).ok_or_else(|| fields.bad("it is on timeline 0"))?,
            start: Lsn(fields.u64(8)?),
            system_id: SystemId(fields.u64(24)?),
            segment_len: fields.u32(32)?,
            block_len: fields.u32(36)?,
        })
    }

    /// Checks that bytes of that length which begin with this header are that segment (or its `.partial`) of that
    /// cluster. What stands behind the header is not looked at.
    ///
    /// The first page may be of an older timeline: a promotion in the middle of a segment copies what came before
    /// into the new timeline's segment of the same number. Whether that older timeline is the right one is
    /// [`Self::check_history`]'s to say; history files may be archived later than segments.
    ///
    /// # Errors
    /// `Foreign` naming what differs.
    pub fn check(&self, segment: Segment, len: u64, cluster: &Cluster) -> Result<(), PgError> {
        let differs = |field, found: &dyn fmt::Display, expected: &dyn fmt::Display| {
            Err(PgError::Foreign {
                what: segment.to_string(),
                field,
                found: found.to_string(),
                expected: expected.to_string(),
            })
        };
        if self.version != cluster.version {
            return differs("version", &self.version, &cluster.version);
        }
        if self.system_id != cluster.system_id {
            return differs("system identifier", &self.system_id, &cluster.system_id);
        }
        if self.segment_len != segment.size().bytes() {
            return differs("segment size", &self.segment_len, &segment.size().bytes());
        }
        if len != u64::from(segment.size().bytes()) {
            return differs("length", &len, &segment.size().bytes());
        }
        if self.start != segment.start() {
            return differs("position", &self.start, &segment.start());
        }
        if self.timeline > segment.timeline() {
            return differs("timeline", &self.timeline, &segment.timeline());
        }
        Ok(())
    }

    /// Checks that the first page was written by the timeline that wrote that part of the WAL, according to the
    /// history of the segment's timeline.
    ///
    /// # Errors
    /// `Foreign` when the history is of another timeline, or the page.
    pub fn check_history(&self, segment: Segment, history: &TimelineHistory) -> Result<(), PgError> {
        let differs = |field, found: TimelineId, expected: TimelineId| PgError::Foreign {
            what: segment.to_string(),
            field,
            found: found.to_string(),
            expected: expected.to_string(),
        };
        if history.timeline() != segment.timeline() {
            return Err(differs(
                "history's timeline",
                history.timeline(),
                segment.timeline(),
            ));
        }
        let expected = history.timeline_at(segment.start());
        if self.timeline == expected {
            Ok(())
        } else {
            Err(differs("first page's timeline", self.timeline, expected))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segment::SegmentSize;
    use proptest::prelude::*;

    /// The head of a segment that a server of each version archived; its name and size.
    const GOLDEN: [(PgVersion, &[u8], &str, u64); 5] = [
        (
            PgVersion::V13,
            include_bytes!("../tests/golden/wal-13-00000001000000000000000A.bin"),
            "00000001000000000000000A",
            1 << 20,
        ),
        (
            PgVersion::V14,
            include_bytes!("../tests/golden/wal-14-000000010000000000000002.bin"),
            "000000010000000000000002",
            64 << 20,
        ),
        (
            PgVersion::V15,
            include_bytes!("../tests/golden/wal-15-000000010000000000000003.bin"),
            "000000010000000000000003",
            4 << 20,
        ),
        (
            PgVersion::V16,
            include_bytes!("../tests/golden/wal-16-000000010000000000000002.bin"),
            "000000010000000000000002",
            32 << 20,
        ),
        (
            PgVersion::V17,
            include_bytes!("../tests/golden/wal-17-000000010000000000000002.bin"),
            "000000010000000000000002",
            8 << 20,
        ),
    ];

    fn timeline(number: u32) -> TimelineId {
        TimelineId::new(number).unwrap()
    }

    /// The golden segment of 15, its length and its cluster.
    fn one() -> (Vec<u8>, Segment, u64, Cluster) {
        let (version, head, name, len) = GOLDEN[2];
        let segment = Segment::parse(name, SegmentSize::new(len).unwrap()).unwrap();
        let system_id = WalHeader::decode(head).unwrap().system_id;
        (head.to_vec(), segment, len, Cluster { system_id, version })
    }

    fn field_that_differs(head: &[u8], segment: Segment, len: u64, cluster: &Cluster) -> &'static str {
        match WalHeader::decode(head).unwrap().check(segment, len, cluster) {
            Err(PgError::Foreign { field, .. }) => field,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn segments_of_every_version_are_what_their_names_say() {
        for (version, head, name, len) in GOLDEN {
            let header = WalHeader::decode(head).unwrap();
            let segment = Segment::parse(name, SegmentSize::new(len).unwrap()).unwrap();
            let cluster = Cluster {
                system_id: header.system_id,
                version,
            };
            assert_eq!(header.check(segment, len, &cluster), Ok(()), "{version}");
            assert_eq!(
                header.check_history(segment, &TimelineHistory::root(timeline(1))),
                Ok(())
            );
            assert_eq!((header.block_len, header.continues), (8192, false));
        }
    }

    #[test]
    fn the_head_names_the_same_cluster_as_its_control_file() {
        let mut file = include_bytes!("../tests/golden/pg_control-15.bin").to_vec();
        file.resize(crate::CONTROL_FILE_LEN, 0);
        let control = crate::ControlFile::decode(&file).unwrap();
        assert_eq!(WalHeader::decode(&one().0).unwrap().system_id, control.system_id);
    }

    #[test]
    fn segments_of_another_cluster_version_size_or_place_are_refused() {
        let (head, segment, len, cluster) = one();
        let other = Cluster {
            system_id: SystemId(cluster.system_id.0 + 1),
            ..cluster
        };
        assert_eq!(
            field_that_differs(&head, segment, len, &other),
            "system identifier"
        );
        let newer = Cluster {
            version: PgVersion::V16,
            ..cluster
        };
        assert_eq!(field_that_differs(&head, segment, len, &newer), "version");
        let larger = Segment::parse(&segment.to_string(), SegmentSize::new(len * 2).unwrap()).unwrap();
        assert_eq!(
            field_that_differs(&head, larger, len * 2, &cluster),
            "segment size"
        );
        assert_eq!(field_that_differs(&head, segment, len - 1, &cluster), "length");
        let next = segment.next().unwrap();
        assert_eq!(field_that_differs(&head, next, len, &cluster), "position");
    }

    #[test]
    fn a_segment_may_begin_with_an_older_timeline_but_only_with_the_right_one() {
        let (mut head, segment, len, cluster) = one();
        let on = |number| Segment::new(timeline(number), segment.number(), segment.size()).unwrap();
        let inside = segment.start().checked_add(100).unwrap();
        let switched_inside = TimelineHistory::root(timeline(1))
            .branch_off(timeline(3), inside, "")
            .unwrap();
        let switched_before = TimelineHistory::root(timeline(1))
            .branch_off(timeline(3), segment.start(), "")
            .unwrap();
        let header = WalHeader::decode(&head).unwrap();
        assert_eq!(header.check(on(3), len, &cluster), Ok(()));
        assert_eq!(header.check_history(on(3), &switched_inside), Ok(()));
        assert!(header.check_history(on(3), &switched_before).is_err());
        assert!(header.check_history(on(2), &switched_inside).is_err());
        // A newer timeline than the name's can only be a mistake.
        head[4] = 2;
        assert_eq!(field_that_differs(&head, on(1), len, &cluster), "timeline");
        let header = WalHeader::decode(&head).unwrap();
        assert_eq!(header.check(on(3), len, &cluster), Ok(()));
        assert!(header.check_history(on(3), &switched_inside).is_err());
    }

    #[test]
    fn what_is_no_head_of_a_segment_is_refused() {
        let (head, ..) = one();
        assert!(WalHeader::decode(&head[..WAL_HEADER_LEN - 1]).is_err());
        let zeros = WalHeader::decode(&[0; 8192]).unwrap_err();
        assert!(zeros.to_string().contains("nothing was written"), "{zeros}");
        for (at, byte) in [(0, 0x11), (1, 0), (2, 0), (3, 1), (4, 0)] {
            let mut changed = head.clone();
            changed[at] = byte;
            assert!(WalHeader::decode(&changed).is_err(), "{at}");
        }
        let mut continued = head;
        continued[2] |= 1;
        assert!(WalHeader::decode(&continued).unwrap().continues);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>, len: u64) {
            let (mut head, segment, _, cluster) = one();
            let _ = WalHeader::decode(&bytes);
            head.truncate(4);
            head.extend_from_slice(&bytes);
            if let Ok(header) = WalHeader::decode(&head) {
                let _ = header.check(segment, len, &cluster);
                let _ = header.check_history(segment, &TimelineHistory::root(timeline(1)));
            }
        }
    }
}
