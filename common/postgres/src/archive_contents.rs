//! What an archive holds of each timeline, and what is missing in between: for people who look whether it is whole.

use crate::{
    error::PgError,
    gaps::{ArchivedSegments, Run},
    lsn::TimelineId,
    segment::{Segment, SegmentSize},
    wal_file::WalFile,
};
use std::collections::BTreeMap;

/// One timeline of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimelineContents {
    /// The timeline.
    pub timeline: TimelineId,
    /// The first and the last segment; none where only its history is there.
    pub ends: Option<(Segment, Segment)>,
    /// How many segments there are.
    pub segments: u64,
    /// What is missing between them: first and last of each gap.
    pub gaps: Vec<(Segment, Segment)>,
    /// The timeline's history is there. The first one has none.
    pub has_history: bool,
    /// Where the timeline ended in the middle of a segment.
    pub partial: Option<Segment>,
}

/// What files of these names and lengths hold, by timeline. What no server archives is passed over.
///
/// # Errors
/// `TooLarge` for more separate runs than are kept.
pub fn contents<'a>(
    files: impl Iterator<Item = (&'a str, u64)> + Clone,
) -> Result<Vec<TimelineContents>, PgError> {
    // All segments of a cluster are of one size, which their own length tells.
    let size = files.clone().find_map(|(name, len)| {
        let size = SegmentSize::new(len).ok()?;
        Segment::parse(name, size).is_ok().then_some(size)
    });
    let size = size.unwrap_or(SegmentSize::MIN);
    let mut segments = ArchivedSegments::new(size);
    let mut timelines: BTreeMap<TimelineId, TimelineContents> = BTreeMap::new();
    for (name, _) in files {
        let Ok(file) = WalFile::parse(name, size) else {
            continue;
        };
        let timeline = file.timeline();
        let contents = timelines.entry(timeline).or_insert(TimelineContents {
            timeline,
            ends: None,
            segments: 0,
            gaps: Vec::new(),
            has_history: false,
            partial: None,
        });
        match file {
            WalFile::Segment(segment) => segments.insert(segment)?,
            WalFile::Partial(segment) => contents.partial = Some(segment),
            WalFile::History(_) => contents.has_history = true,
            WalFile::Backup { .. } => {}
        }
    }
    let ends = |run: Run| {
        let segment = |number| Segment::new(run.timeline, number, size);
        segment(run.first).zip(segment(run.last))
    };
    for run in segments.runs() {
        if let (Some(contents), Some((first, last))) = (timelines.get_mut(&run.timeline), ends(run)) {
            contents.segments += run.last - run.first + 1;
            contents.ends = Some((contents.ends.map_or(first, |(first, _)| first), last));
        }
    }
    for gap in segments.gaps() {
        if let (Some(contents), Some(ends)) = (timelines.get_mut(&gap.timeline), ends(gap)) {
            contents.gaps.push(ends);
        }
    }
    Ok(timelines.into_values().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn shown(files: &[(&str, u64)]) -> Vec<String> {
        let name = |segment: Segment| segment.to_string();
        let line = |of: TimelineContents| {
            let ends = of.ends.map(|(first, last)| (name(first), name(last)));
            let gaps: Vec<_> = of
                .gaps
                .iter()
                .map(|(first, last)| format!("{first}-{last}"))
                .collect();
            format!(
                "{} {ends:?} {} [{}] {} {:?}",
                of.timeline.get(),
                of.segments,
                gaps.join(" "),
                of.has_history,
                of.partial.map(name)
            )
        };
        contents(files.iter().copied())
            .unwrap()
            .into_iter()
            .map(line)
            .collect()
    }

    #[test]
    fn gaps_are_named_for_each_timeline() {
        let found = shown(&[
            ("000000010000000000000003", 16 * MIB),
            ("000000010000000000000001", 16 * MIB),
            ("0000000100000000000000FF", 16 * MIB),
            ("000000010000000100000000.partial", 16 * MIB),
            ("00000002.history", 40),
            ("000000020000000100000000", 16 * MIB),
            ("000000020000000100000001", 16 * MIB),
            ("000000020000000100000001.00000028.backup", 300),
            ("00000003.history", 80),
            ("postgresql.conf", 5),
        ]);
        assert_eq!(
            found,
            [
                "1 Some((\"000000010000000000000001\", \"0000000100000000000000FF\")) 3 \
                 [000000010000000000000002-000000010000000000000002 \
                 000000010000000000000004-0000000100000000000000FE] false Some(\"000000010000000100000000\")",
                "2 Some((\"000000020000000100000000\", \"000000020000000100000001\")) 2 [] true None",
                "3 None 0 [] true None",
            ]
        );
    }

    #[test]
    fn an_archive_of_other_segments_has_gaps_where_they_are() {
        // With segments of 64 MiB, 3F is the last of its 4 GiB, and 00 of the next follows.
        let found = shown(&[
            ("00000001000000000000003F", 64 * MIB),
            ("000000010000000100000000", 64 * MIB),
        ]);
        assert!(found[0].contains(" 2 [] "), "{found:?}");
        assert_eq!(shown(&[]), [""; 0]);
    }
}
