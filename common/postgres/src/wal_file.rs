//! Names of the files that a server hands to `archive_command`.

use crate::{
    error::{PgError, not_one},
    lsn::TimelineId,
    segment::{NAME_LEN, Segment, SegmentSize, hex_8},
};
use std::fmt;

/// A file that a server archives. Anything else that comes by that way is a mistake and is refused.
///
/// Source: the documentation, "Continuous Archiving", and names found in archives of real servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WalFile {
    /// A whole segment.
    Segment(Segment),
    /// The last segment of a timeline that ended in the middle of it: `.partial`.
    Partial(Segment),
    /// How a timeline came to be: `.history`.
    History(TimelineId),
    /// The note of a finished backup, named after the segment and the offset in it where the backup began.
    Backup {
        /// Where the backup began.
        segment: Segment,
        /// Bytes from the beginning of that segment.
        offset: u32,
    },
}

impl WalFile {
    /// Reads a name, without any directory.
    ///
    /// # Errors
    /// `NotOne` for anything that no server of this segment size hands over.
    pub fn parse(name: &str, size: SegmentSize) -> Result<Self, PgError> {
        let bad = |why| not_one("the name of a file to archive", name, why);
        if let Some(timeline) = name.strip_suffix(".history") {
            return hex_8(timeline.as_bytes())
                .and_then(TimelineId::new)
                .map(Self::History)
                .ok_or_else(|| bad("a timeline has 8 digits 0-9 and A-F, and is not 0"));
        }
        let (segment, rest) = name
            .split_at_checked(NAME_LEN)
            .ok_or_else(|| bad("it is none of a segment, .partial, .history and .backup"))?;
        let segment = Segment::parse(segment, size)?;
        if rest.is_empty() {
            return Ok(Self::Segment(segment));
        }
        if rest == ".partial" {
            return Ok(Self::Partial(segment));
        }
        let offset = rest
            .strip_prefix('.')
            .and_then(|rest| rest.strip_suffix(".backup"))
            .and_then(|offset| hex_8(offset.as_bytes()))
            .ok_or_else(|| bad("it is none of a segment, .partial, .history and .backup"))?;
        if offset >= size.bytes() {
            return Err(bad("its offset is beyond the segment"));
        }
        Ok(Self::Backup { segment, offset })
    }

    /// The timeline that it belongs to.
    #[must_use]
    pub const fn timeline(&self) -> TimelineId {
        match self {
            Self::Segment(segment) | Self::Partial(segment) | Self::Backup { segment, .. } => {
                segment.timeline()
            }
            Self::History(timeline) => *timeline,
        }
    }

    /// The longest that such a file may be, in bytes. Segments, `.partial` ones too, are exactly of this length.
    #[must_use]
    pub const fn len_max(&self) -> usize {
        match self {
            Self::Segment(segment) | Self::Partial(segment) => segment.size().bytes() as usize,
            Self::History(_) => holdfast_core::limits::PG_HISTORY_MAX,
            Self::Backup { .. } => holdfast_core::limits::PG_BACKUP_LABEL_MAX,
        }
    }
}

impl fmt::Display for WalFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Segment(segment) => segment.fmt(f),
            Self::Partial(segment) => write!(f, "{segment}.partial"),
            Self::History(timeline) => write!(f, "{:08X}.history", timeline.get()),
            Self::Backup { segment, offset } => write!(f, "{segment}.{offset:08X}.backup"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lsn::Lsn;
    use proptest::prelude::*;

    const SIZE: SegmentSize = SegmentSize::MIN;

    proptest! {
        #[test]
        fn each_kind_reads_back_as_it_is_written(timeline in 1..=u32::MAX, lsn: u64) {
            let timeline = TimelineId::new(timeline).unwrap();
            let segment = SIZE.segment_at(timeline, Lsn(lsn));
            let offset = SIZE.offset_at(Lsn(lsn));
            for file in [
                WalFile::Segment(segment),
                WalFile::Partial(segment),
                WalFile::History(timeline),
                WalFile::Backup { segment, offset },
            ] {
                prop_assert_eq!(WalFile::parse(&file.to_string(), SIZE).unwrap(), file);
                prop_assert_eq!(file.timeline(), timeline);
            }
        }

        #[test]
        fn a_name_with_anything_changed_is_refused_or_another(
            at in any::<proptest::sample::Index>(), with in any::<char>(), kind in 0..4_usize,
        ) {
            let names = [
                "00000001000000000000000A",
                "00000001000000000000000A.partial",
                "0000000A.history",
                "00000001000000000000000A.00000028.backup",
            ];
            let mut chars: Vec<char> = names[kind].chars().collect();
            let at = at.index(chars.len());
            chars[at] = with;
            let name: String = chars.into_iter().collect();
            if let Ok(file) = WalFile::parse(&name, SIZE) {
                prop_assert_eq!(file.to_string(), name);
            }
        }

        #[test]
        fn any_name_is_read_without_panic(name: String) {
            let _ = WalFile::parse(&name, SIZE);
        }
    }

    #[test]
    fn what_lies_beside_segments_in_pg_wal_is_not_archived() {
        for name in [
            "",
            "archive_status",
            "xlogtemp.123",
            "RECOVERYXLOG",
            "RECOVERYHISTORY",
            "00000001000000000000000A.ready",
            "00000001000000000000000A.partial.gz",
            "00000001000000000000000A.PARTIAL",
            "00000001000000000000000A.28.backup",
            "00000001000000000000000A.00100000.backup",
            "00000001000000000000000A.00000028.backup.done",
            "00000000.history",
            "0000000a.history",
            "2.history",
            ".history",
            "../00000002.history",
            "pg_wal/00000001000000000000000A",
            "00000001000000000000000A\n",
        ] {
            assert!(WalFile::parse(name, SIZE).is_err(), "{name:?}");
        }
    }
}
