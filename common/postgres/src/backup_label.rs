//! `backup_label`: where recovery of a backup begins. The server gives its text when the backup stops.
//!
//! It is kept and put back byte for byte; it is read to check the backup and to know which WAL it needs. Sources:
//! the documentation, "Making a Base Backup Using the Low Level API", and labels of real servers. The label that a
//! backup is given is the one text in it that others choose: with a line break in it, it could pose as another line.
//! Such a line is refused, because it is unknown, stands twice or stands before one that comes first.

use crate::{
    error::{PgError, bounded, malformed},
    lsn::{Lsn, TimelineId, decimal_u32},
    segment::{Segment, SegmentSize},
};
use holdfast_core::limits::PG_BACKUP_LABEL_MAX;
use std::str::FromStr;

const WHAT: &str = "a backup label";

/// How a backup was begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackupMethod {
    /// By a session that stays open until the end, or over the replication protocol.
    Streamed,
    /// Exclusively, by a session that may end (up to 14): the label then lies in the live data directory.
    Exclusive,
}

/// What an incremental backup (from 17) is the difference to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IncrementalFrom {
    /// Where the earlier backup began.
    pub lsn: Lsn,
    /// Its timeline.
    pub timeline: TimelineId,
}

/// A decoded label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupLabel {
    /// Where replay begins.
    pub start: Lsn,
    /// The segment of that position, and its timeline: the first that the backup needs.
    pub segment: Segment,
    /// Where the checkpoint's record is that the backup began with.
    pub checkpoint: Lsn,
    /// How it was begun.
    pub method: BackupMethod,
    /// Whether it was taken from a standby.
    pub from_standby: bool,
    /// When, in the server's log time zone: for people.
    pub start_time: String,
    /// The label that it was given, for people. What is not UTF-8 in it is replaced.
    pub label: String,
    /// Set where it is no whole backup: it cannot be restored without the earlier one.
    pub incremental: Option<IncrementalFrom>,
}

impl BackupLabel {
    /// Reads the text as the server gave it, for a cluster with WAL segments of that size.
    ///
    /// # Errors
    /// `TooLarge`; `Malformed` for lines that no server writes, missing ones, and ones that contradict each other.
    pub fn parse(bytes: &[u8], size: SegmentSize) -> Result<Self, PgError> {
        bounded(WHAT, bytes.len(), PG_BACKUP_LABEL_MAX)?;
        let lines = Lines::read(bytes)?;
        let (start, segment) = start(lines.required(Key::Start)?, size)?;
        let timeline = number_of_timeline(lines.required(Key::Timeline)?)?;
        if !segment.holds(start) || segment.timeline() != timeline {
            return Err(malformed(
                WHAT,
                "its file, start and timeline do not fit each other",
            ));
        }
        let checkpoint = lsn(lines.required(Key::Checkpoint)?)?;
        if checkpoint < start {
            return Err(malformed(WHAT, "its checkpoint is before its start"));
        }
        Ok(Self {
            start,
            segment,
            checkpoint,
            method: match lines.required(Key::Method)? {
                "streamed" => BackupMethod::Streamed,
                "pg_start_backup" => BackupMethod::Exclusive,
                _ => return Err(malformed(WHAT, "its method is unknown")),
            },
            from_standby: match lines.required(Key::From)? {
                // It was named so up to 13.
                "primary" | "master" => false,
                "standby" => true,
                _ => {
                    return Err(malformed(
                        WHAT,
                        "it comes neither from a primary nor from a standby",
                    ));
                }
            },
            start_time: lines.required(Key::Time)?.to_owned(),
            label: lines.required(Key::Label)?.to_owned(),
            incremental: match (
                lines.get(Key::IncrementalLsn),
                lines.get(Key::IncrementalTimeline),
            ) {
                (None, None) => None,
                (Some(from), Some(timeline)) => Some(IncrementalFrom {
                    lsn: lsn(from)?,
                    timeline: number_of_timeline(timeline)?,
                }),
                _ => return Err(malformed(WHAT, "it says only half of what it is incremental to")),
            },
        })
    }

    /// The timeline that the backup began on.
    #[must_use]
    pub const fn timeline(&self) -> TimelineId {
        self.segment.timeline()
    }
}

/// The lines of a label, in their order.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Key {
    Start,
    Checkpoint,
    Method,
    From,
    Time,
    Label,
    Timeline,
    IncrementalLsn,
    IncrementalTimeline,
}

impl Key {
    const ALL: [(Self, &'static [u8]); 9] = [
        (Self::Start, b"START WAL LOCATION"),
        (Self::Checkpoint, b"CHECKPOINT LOCATION"),
        (Self::Method, b"BACKUP METHOD"),
        (Self::From, b"BACKUP FROM"),
        (Self::Time, b"START TIME"),
        (Self::Label, b"LABEL"),
        (Self::Timeline, b"START TIMELINE"),
        (Self::IncrementalLsn, b"INCREMENTAL FROM LSN"),
        (Self::IncrementalTimeline, b"INCREMENTAL FROM TLI"),
    ];

    fn find(name: &[u8]) -> Result<Self, PgError> {
        Self::ALL
            .iter()
            .find(|row| row.1 == name)
            .map(|row| row.0)
            .ok_or_else(|| malformed(WHAT, "it has a line that the known versions do not write"))
    }
}

/// What each line says. They stand in the order of their keys, each at most once.
#[derive(Default)]
struct Lines {
    values: [Option<String>; Key::ALL.len()],
}

impl Lines {
    fn read(bytes: &[u8]) -> Result<Self, PgError> {
        let text = bytes
            .strip_suffix(b"\n")
            .ok_or_else(|| malformed(WHAT, "it does not end with a whole line"))?;
        let mut lines = Self::default();
        let mut last: Option<Key> = None;
        for line in text.split(|byte| *byte == b'\n') {
            let colon = line.windows(2).position(|pair| pair == b": ");
            let (name, value) = colon
                .and_then(|at| Some((line.get(..at)?, line.get(at + 2..)?)))
                .ok_or_else(|| malformed(WHAT, "it has a line without a name"))?;
            let key = Key::find(name)?;
            if last.is_some_and(|last| last as usize >= key as usize) {
                return Err(malformed(WHAT, "it has a line twice or in another order"));
            }
            last = Some(key);
            if let Some(place) = lines.values.get_mut(key as usize) {
                *place = Some(String::from_utf8_lossy(value).into_owned());
            }
        }
        Ok(lines)
    }

    fn get(&self, key: Key) -> Option<&str> {
        self.values.get(key as usize)?.as_deref()
    }

    fn required(&self, key: Key) -> Result<&str, PgError> {
        self.get(key)
            .ok_or_else(|| malformed(WHAT, "a line is missing that every version writes"))
    }
}

/// `0/2000028 (file 000000010000000000000002)`.
fn start(value: &str, size: SegmentSize) -> Result<(Lsn, Segment), PgError> {
    let (position, file) = value
        .strip_suffix(')')
        .and_then(|value| value.split_once(" (file "))
        .ok_or_else(|| malformed(WHAT, "its start is not a position and a file"))?;
    Ok((lsn(position)?, Segment::parse(file, size)?))
}

fn lsn(value: &str) -> Result<Lsn, PgError> {
    match Lsn::from_str(value) {
        Ok(lsn) if !lsn.is_zero() => Ok(lsn),
        _ => Err(malformed(WHAT, "one of its positions is none")),
    }
}

fn number_of_timeline(value: &str) -> Result<TimelineId, PgError> {
    decimal_u32(value.as_bytes())
        .and_then(TimelineId::new)
        .ok_or_else(|| malformed(WHAT, "one of its timelines is none"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TEXT: &str = "START WAL LOCATION: 0/5000028 (file 000000030000000000000005)\n\
        CHECKPOINT LOCATION: 0/5000060\n\
        BACKUP METHOD: streamed\n\
        BACKUP FROM: primary\n\
        START TIME: 2026-11-27 14:00:00 UTC\n\
        LABEL: nightly: all of it\n\
        START TIMELINE: 3\n";

    fn size() -> SegmentSize {
        SegmentSize::new(16 << 20).unwrap()
    }

    fn parse(text: &str) -> Result<BackupLabel, PgError> {
        BackupLabel::parse(text.as_bytes(), size())
    }

    #[test]
    fn a_label_says_where_recovery_begins() {
        let label = parse(TEXT).unwrap();
        assert_eq!(label.start, Lsn(0x500_0028));
        assert_eq!(label.checkpoint, Lsn(0x500_0060));
        assert_eq!(label.segment.to_string(), "000000030000000000000005");
        assert_eq!(label.timeline().get(), 3);
        assert_eq!(
            (label.method, label.from_standby),
            (BackupMethod::Streamed, false)
        );
        assert_eq!(label.start_time, "2026-11-27 14:00:00 UTC");
        assert_eq!(label.label, "nightly: all of it");
        assert_eq!(label.incremental, None);
    }

    #[test]
    fn other_versions_and_ways_are_read_too() {
        let label = parse(&TEXT.replace("primary", "standby")).unwrap();
        assert!(label.from_standby);
        let label = parse(
            &TEXT
                .replace("primary", "master")
                .replace("streamed", "pg_start_backup"),
        )
        .unwrap();
        assert_eq!(
            (label.method, label.from_standby),
            (BackupMethod::Exclusive, false)
        );
        let label = parse(&format!(
            "{TEXT}INCREMENTAL FROM LSN: 0/3000028\nINCREMENTAL FROM TLI: 2\n"
        ));
        let from = IncrementalFrom {
            lsn: Lsn(0x300_0028),
            timeline: TimelineId::new(2).unwrap(),
        };
        assert_eq!(label.unwrap().incremental, Some(from));
        assert_eq!(parse(&TEXT.replace("nightly: all of it", "")).unwrap().label, "");
    }

    #[test]
    fn each_line_is_needed_and_none_stands_twice() {
        for line in TEXT.split_inclusive('\n') {
            assert!(parse(&TEXT.replace(line, "")).is_err(), "{line}");
            assert!(parse(&format!("{TEXT}{line}")).is_err(), "{line}");
        }
        // A label with a line break cannot change where recovery begins.
        let forged = TEXT.replace("nightly: all of it", "x\nSTART TIMELINE: 1");
        assert!(parse(&forged).is_err());
        let forged = "x\nINCREMENTAL FROM LSN: 0/28\nINCREMENTAL FROM TLI: 1";
        assert!(parse(&TEXT.replace("nightly: all of it", forged)).is_err());
        assert!(parse(&TEXT.replace("nightly: all of it", "x\ny: z")).is_err());
        assert!(parse(&TEXT.replace("nightly: all of it", "x\ny")).is_err());
    }

    #[test]
    fn contradictions_and_parts_are_refused() {
        for (from, to) in [
            ("0/5000028", "0/6000028"),
            ("0/5000028", "0/4000028"),
            ("0/5000028", "0/5000061"),
            ("0/5000028", "0/0"),
            ("0/5000028", "5000028"),
            ("START TIMELINE: 3", "START TIMELINE: 2"),
            ("START TIMELINE: 3", "START TIMELINE: 0"),
            ("0/5000060", "0/4FFFFFF"),
            ("streamed", "copied"),
            ("primary", "elsewhere"),
            (" (file ", " "),
            ("000000030000000000000005", "00000003000000000000000"),
            ("START TIMELINE: 3", "START TIMELINE:3"),
            (
                "START TIMELINE: 3\n",
                "START TIMELINE: 3\nINCREMENTAL FROM LSN: 0/3000028\n",
            ),
        ] {
            assert!(parse(&TEXT.replace(from, to)).is_err(), "{from} {to}");
        }
        for len in 0..TEXT.len() {
            assert!(parse(&TEXT[..len]).is_err(), "{len}");
        }
    }

    #[test]
    fn a_label_beyond_its_bound_is_refused_unread() {
        let long = TEXT.replace("nightly: all of it", &"x".repeat(PG_BACKUP_LABEL_MAX));
        assert!(matches!(parse(&long), Err(PgError::TooLarge { .. })));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>, at in any::<proptest::sample::Index>(), with: u8) {
            let _ = BackupLabel::parse(&bytes, size());
            let mut changed = TEXT.as_bytes().to_vec();
            let at = at.index(changed.len());
            changed[at] = with;
            let _ = BackupLabel::parse(&changed, size());
        }
    }
}
