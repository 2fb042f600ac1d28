//! WAL segments: their size, which one holds a position, and their names.
//!
//! A cluster's WAL is cut into files of one size, chosen by `initdb`. A name is three times eight hexadecimal digits:
//! the timeline, then the segment's number, as its quotient and remainder by the number of segments in 4 GiB.
//! Source: the documentation, "WAL Internals" and `initdb --wal-segsize`.

use crate::{
    error::{PgError, not_one},
    lsn::{Lsn, TimelineId, decimal_u64, hex_u32},
};
use std::{fmt, iter::FusedIterator};

/// Digits of a segment's name.
pub(crate) const NAME_LEN: usize = 24;

/// Size of a cluster's WAL segments in bytes: a power of two from 1 MiB to 1 GiB. It has no default: it is read from
/// the server or from `pg_control`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentSize(u32);

impl SegmentSize {
    /// The smallest that `initdb` makes.
    pub const MIN: Self = Self(1 << 20);
    /// The largest that `initdb` makes.
    pub const MAX: Self = Self(1 << 30);

    /// A size of so many bytes.
    ///
    /// # Errors
    /// `NotOne` for a size that `initdb` does not make.
    pub fn new(bytes: u64) -> Result<Self, PgError> {
        match u32::try_from(bytes) {
            Ok(size) if size.is_power_of_two() && (Self::MIN.0..=Self::MAX.0).contains(&size) => {
                Ok(Self(size))
            }
            _ => Err(not_one(
                "a size of WAL segments",
                &bytes.to_string(),
                "it must be a power of two from 1 MiB to 1 GiB",
            )),
        }
    }

    /// The size as `SHOW wal_segment_size` gives it (`16MB`, `1GB`), or in bytes as `pg_settings` has it.
    ///
    /// # Errors
    /// `NotOne`.
    pub fn from_setting(text: &str) -> Result<Self, PgError> {
        let (digits, unit) = match (text.strip_suffix("MB"), text.strip_suffix("GB")) {
            (Some(digits), _) => (digits, 1 << 20),
            (_, Some(digits)) => (digits, 1 << 30),
            _ => (text, 1_u64),
        };
        decimal_u64(digits.as_bytes())
            .and_then(|count| count.checked_mul(unit))
            .ok_or_else(|| not_one("a size of WAL segments", text, "it looks like 16MB"))
            .and_then(Self::new)
    }

    /// In bytes.
    #[must_use]
    pub const fn bytes(self) -> u32 {
        self.0
    }

    /// How many make up 4 GiB, the reach of a name's last eight digits.
    const fn per_four_gib(self) -> u64 {
        (1 << 32) / self.0 as u64
    }

    /// The number of the segment that holds the byte at `lsn`.
    #[must_use]
    pub const fn number_at(self, lsn: Lsn) -> u64 {
        lsn.0 / self.0 as u64
    }

    /// Where in its segment the byte at `lsn` is.
    #[must_use]
    pub const fn offset_at(self, lsn: Lsn) -> u32 {
        (lsn.0 % self.0 as u64) as u32
    }

    /// The number of the last segment that a position of 64 bits reaches.
    #[must_use]
    pub const fn last_number(self) -> u64 {
        self.number_at(Lsn(u64::MAX))
    }

    /// The segment that holds the byte at `lsn`. (At a boundary that is the later one. `pg_walfile_name` names the
    /// earlier one there before PostgreSQL 17.)
    #[must_use]
    pub const fn segment_at(self, timeline: TimelineId, lsn: Lsn) -> Segment {
        Segment {
            timeline,
            number: self.number_at(lsn),
            size: self,
        }
    }

    /// The segment that holds the last byte before `end`; none before the beginning of all.
    #[must_use]
    pub fn segment_before(self, timeline: TimelineId, end: Lsn) -> Option<Segment> {
        end.checked_sub(1).map(|last| self.segment_at(timeline, last))
    }

    /// The segments of a timeline that hold the bytes from `from` up to, and without, `to`. None if there are none.
    #[must_use]
    pub fn segments_between(self, timeline: TimelineId, from: Lsn, to: Lsn) -> Segments {
        let next = Some(self.segment_at(timeline, from)).filter(|_| from < to);
        let last = self.segment_before(timeline, to).map_or(0, |last| last.number);
        Segments { next, last }
    }
}

impl fmt::Display for SegmentSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0)
    }
}

/// One WAL segment of a timeline. Sorts, and is named, by timeline and number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Segment {
    timeline: TimelineId,
    number: u64,
    size: SegmentSize,
}

impl Segment {
    /// The segment of that number; none where positions of 64 bits do not reach.
    #[must_use]
    pub fn new(timeline: TimelineId, number: u64, size: SegmentSize) -> Option<Self> {
        (number <= size.last_number()).then_some(Self {
            timeline,
            number,
            size,
        })
    }

    /// The segment of that name: exactly 24 digits, letters in upper case.
    ///
    /// # Errors
    /// `NotOne` for anything else, and for names that no segment of this size has.
    pub fn parse(name: &str, size: SegmentSize) -> Result<Self, PgError> {
        let bad = |why| not_one("the name of a WAL segment", name, why);
        let (timeline, high, low) =
            digits(name.as_bytes()).ok_or_else(|| bad("it has 24 digits 0-9 and A-F"))?;
        let timeline = TimelineId::new(timeline).ok_or_else(|| bad("there is no timeline 0"))?;
        if u64::from(low) >= size.per_four_gib() {
            return Err(bad(
                "segments of this cluster's size have no such number: check the segment size",
            ));
        }
        Ok(Self {
            timeline,
            number: u64::from(high) * size.per_four_gib() + u64::from(low),
            size,
        })
    }

    /// Its timeline.
    #[must_use]
    pub const fn timeline(self) -> TimelineId {
        self.timeline
    }

    /// Its number: how many segments of this size lie before it.
    #[must_use]
    pub const fn number(self) -> u64 {
        self.number
    }

    /// Its size.
    #[must_use]
    pub const fn size(self) -> SegmentSize {
        self.size
    }

    /// The position of its first byte.
    #[must_use]
    pub const fn start(self) -> Lsn {
        // Numbers are bounded by `last_number`.
        Lsn(self.number * self.size.0 as u64)
    }

    /// The position behind its last byte; none for the very last segment, whose end is beyond 64 bits.
    #[must_use]
    pub const fn end(self) -> Option<Lsn> {
        self.start().checked_add(self.size.0 as u64)
    }

    /// Whether the byte at `lsn` is in it.
    #[must_use]
    pub const fn holds(self, lsn: Lsn) -> bool {
        self.size.number_at(lsn) == self.number
    }

    /// The one that follows on the same timeline.
    #[must_use]
    pub fn next(self) -> Option<Self> {
        Self::new(self.timeline, self.number.checked_add(1)?, self.size)
    }
}

impl fmt::Display for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let per_four_gib = self.size.per_four_gib();
        let (high, low) = (self.number / per_four_gib, self.number % per_four_gib);
        write!(f, "{:08X}{high:08X}{low:08X}", self.timeline.get())
    }
}

/// Eight hexadecimal digits in upper case, as servers write them in names.
pub(crate) fn hex_8(digits: &[u8]) -> Option<u32> {
    let is_upper = digits.len() == 8 && !digits.iter().any(u8::is_ascii_lowercase);
    is_upper.then(|| hex_u32(digits, 8)).flatten()
}

/// The three numbers of a segment's name.
fn digits(name: &[u8]) -> Option<(u32, u32, u32)> {
    let (timeline, number) = name.split_at_checked(8)?;
    let (high, low) = number.split_at_checked(8)?;
    Some((hex_8(timeline)?, hex_8(high)?, hex_8(low)?))
}

/// Consecutive segments of one timeline.
#[derive(Debug, Clone, Copy)]
pub struct Segments {
    next: Option<Segment>,
    last: u64,
}

impl Segments {
    /// How many are left.
    #[must_use]
    pub fn count_left(&self) -> u64 {
        self.next.map_or(0, |next| self.last - next.number + 1)
    }
}

impl Iterator for Segments {
    type Item = Segment;
    fn next(&mut self) -> Option<Segment> {
        let segment = self.next?;
        self.next = segment.next().filter(|next| next.number <= self.last);
        Some(segment)
    }
}

impl FusedIterator for Segments {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sizes() -> impl Strategy<Value = SegmentSize> {
        (20_u32..=30).prop_map(|bits| SegmentSize::new(1 << bits).unwrap())
    }

    fn timelines() -> impl Strategy<Value = TimelineId> {
        (1..=u32::MAX).prop_map(|number| TimelineId::new(number).unwrap())
    }

    fn first(name: &str, size: u64) -> Segment {
        Segment::parse(name, SegmentSize::new(size).unwrap()).unwrap()
    }

    proptest! {
        #[test]
        fn every_position_is_in_the_segment_that_its_name_leads_back_to(
            size in sizes(), timeline in timelines(), lsn in any::<u64>().prop_map(Lsn),
        ) {
            let segment = size.segment_at(timeline, lsn);
            prop_assert_eq!(Segment::parse(&segment.to_string(), size).unwrap(), segment);
            prop_assert!(segment.holds(lsn) && segment.start() <= lsn);
            prop_assert!(segment.end().is_none_or(|end| lsn < end && !segment.holds(end)));
            prop_assert_eq!(segment.start().checked_add(u64::from(size.offset_at(lsn))), Some(lsn));
            prop_assert_eq!(Segment::new(timeline, segment.number(), size), Some(segment));
        }

        #[test]
        fn the_next_segment_begins_where_this_one_ends(size in sizes(), timeline in timelines(), lsn: u64) {
            let segment = size.segment_at(timeline, Lsn(lsn));
            prop_assert_eq!(segment.next().map(Segment::start), segment.end());
            if let (Some(next), Some(end)) = (segment.next(), segment.end()) {
                prop_assert!(next > segment && next.to_string() > segment.to_string());
                prop_assert_eq!(size.segment_before(timeline, end), Some(segment));
            }
        }

        #[test]
        fn a_range_has_the_segment_of_each_of_its_bytes_and_no_other(
            size in sizes(), timeline in timelines(), from in 0..1_u64 << 40, len in 0..1_u64 << 32,
        ) {
            let (from, to) = (Lsn(from), Lsn(from + len));
            let range = size.segments_between(timeline, from, to);
            let all: Vec<Segment> = range.take(5000).collect();
            prop_assert_eq!(all.len() as u64, range.count_left());
            prop_assert_eq!(all.is_empty(), len == 0);
            if let (Some(first), Some(last)) = (all.first(), all.last()) {
                prop_assert!(first.holds(from) && last.holds(to.checked_sub(1).unwrap()));
                prop_assert!(all.windows(2).all(|pair| pair[0].next() == Some(pair[1])));
            }
        }

        #[test]
        fn any_name_is_read_without_panic_and_has_one_form(name: String, size in sizes()) {
            let _ = SegmentSize::from_setting(&name);
            if let Ok(segment) = Segment::parse(&name, size) {
                prop_assert_eq!(segment.to_string(), name);
            }
        }
    }

    #[test]
    fn the_size_decides_what_a_name_means() {
        // The last segment below 4 GiB, and the first above, in three sizes.
        assert_eq!(
            first("0000000100000000000000FF", 16 << 20)
                .next()
                .unwrap()
                .to_string(),
            "000000010000000100000000"
        );
        assert_eq!(
            first("000000010000000000000FFF", 1 << 20)
                .next()
                .unwrap()
                .to_string(),
            "000000010000000100000000"
        );
        assert_eq!(
            first("000000010000000000000003", 1 << 30)
                .next()
                .unwrap()
                .to_string(),
            "000000010000000100000000"
        );
        assert_eq!(
            first("000000020000000A00000001", 16 << 20).start(),
            Lsn(0xa_0100_0000)
        );
        let too_high = Segment::parse("000000010000000000000100", SegmentSize::new(16 << 20).unwrap());
        assert!(too_high.unwrap_err().to_string().contains("segment size"));
    }

    #[test]
    fn sizes_that_initdb_does_not_make_are_refused() {
        for bytes in [0, 1, 1 << 19, (1 << 20) + 1, 3 << 20, 1 << 31, 1 << 32, u64::MAX] {
            assert!(SegmentSize::new(bytes).is_err(), "{bytes}");
        }
        assert_eq!(SegmentSize::from_setting("16MB").unwrap().bytes(), 16 << 20);
        assert_eq!(SegmentSize::from_setting("1GB").unwrap(), SegmentSize::MAX);
        assert_eq!(SegmentSize::from_setting("1048576").unwrap(), SegmentSize::MIN);
        for text in ["", "MB", "16", "16kB", "16 MB", "-16MB", "2GB", "17179869184GB"] {
            assert!(SegmentSize::from_setting(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn names_that_the_server_does_not_give_are_refused() {
        let size = SegmentSize::new(16 << 20).unwrap();
        for name in [
            "",
            "00000001000000000000000",
            "0000000100000000000000011",
            "000000000000000000000001",
            "00000001000000000000000a",
            "00000001 00000000000000A",
            "+0000001000000000000000A",
            "00000001000000000000000A ",
            "00000001000000000000é0A",
        ] {
            assert!(Segment::parse(name, size).is_err(), "{name:?}");
        }
    }

    #[test]
    fn the_end_of_all_positions_is_no_panic() {
        let last = SegmentSize::MIN.segment_at(TimelineId::FIRST, Lsn(u64::MAX));
        assert_eq!(last.to_string(), "00000001FFFFFFFF00000FFF");
        assert_eq!((last.next(), last.end()), (None, None));
        assert_eq!(
            Segment::new(TimelineId::FIRST, last.number() + 1, SegmentSize::MIN),
            None
        );
        assert_eq!(
            SegmentSize::MIN.segment_before(TimelineId::FIRST, Lsn::ZERO),
            None
        );
        let tail = SegmentSize::MIN.segments_between(TimelineId::FIRST, last.start(), Lsn(u64::MAX));
        assert_eq!(tail.count_left(), 1);
    }
}
