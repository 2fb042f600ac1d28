//! The WAL of a cluster that is restored over: what it alone has, and what of that surely goes on where the archive ends.
//!
//! A server that died may have committed transactions that are archived nowhere: in segments that waited to be archived, and in
//! the one that was written to. A recovery to the latest state takes them from there. The directory itself is only read; it goes
//! aside as it is.

use super::{
    Backup, PostgresError,
    files::{self, failed, open_dir},
    look,
    marker::{self, Marker, Phase},
    plan::{Begin, Plan},
    site::WAL_ASIDE,
};
use crate::{BlobOpener, RestoreError, Result, journal::Journal, place::open_below};
use holdfast_postgres::{Cluster, ControlFile, Segment, WAL_HEADER_LEN, WalHeader};
use rustix::fs::{self, Mode, OFlags};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, Read as _, Write},
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::fs::FileExt as _,
    },
};

/// Bytes that are read at a time.
const PIECE: usize = 256 * 1024;

/// The directory, held open: it is renamed later.
pub(super) struct OldWal {
    dir: OwnedFd,
    /// Segments that are what their names say, and whether the server meant to archive them still.
    segments: BTreeMap<Segment, bool>,
}

/// What became of segments that the archive lacks.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Sorted {
    /// They go on where the archive ends.
    pub(super) follow: BTreeSet<Segment>,
    /// They go on from a segment that has another content in the archive: another history of the same cluster.
    pub(super) diverged: BTreeSet<Segment>,
    /// Nothing leads to them.
    pub(super) apart: BTreeSet<Segment>,
}

impl OldWal {
    /// Looks at the WAL that a restore will put aside, or has put aside already.
    ///
    /// # Errors
    /// Those of the file system.
    pub(super) fn look(plan: &Plan, backup: &Backup) -> Result<Option<Self>> {
        let Some(dir) = old_dir(plan)? else {
            return Ok(None);
        };
        let control = ControlFile::decode(&backup.control).map_err(|source| PostgresError::File {
            what: "the backup's pg_control".into(),
            source,
        })?;
        let cluster = Cluster {
            system_id: control.system_id,
            version: control.version,
        };
        let size = backup.manifest.wal_segment_size;
        let ready = ready(&dir);
        let mut segments = BTreeMap::new();
        for (name, is_file) in files::list(dir.as_fd()).map_err(failed("list", b"pg_wal"))? {
            if let Some(segment) = std::str::from_utf8(&name)
                .ok()
                .filter(|_| is_file)
                .and_then(|name| Segment::parse(name, size).ok())
                && is_that(&dir, segment, &cluster)?
            {
                segments.insert(segment, ready.contains(&segment.to_string()));
            }
        }
        Ok(Some(Self { dir, segments }))
    }

    /// Sorts what is not archived.
    ///
    /// # Errors
    /// Those of reading the archive and the files.
    pub(super) fn sort(
        &self,
        opener: &mut BlobOpener,
        journal: &Journal,
        is_archived: impl Fn(Segment) -> bool,
    ) -> Result<Sorted> {
        sort(&self.segments, is_archived, |segment| {
            let name = segment.to_string();
            if !journal.files().contains_key(&name) {
                return Ok(None);
            }
            let mut comparing = Comparing {
                file: self.open(segment)?,
                is_same: true,
            };
            journal.write(opener, &name, &mut comparing)?;
            Ok(Some(comparing.is_same))
        })
    }

    /// Whether the server meant to archive that one still.
    pub(super) fn is_ready(&self, segment: Segment) -> bool {
        self.segments.get(&segment) == Some(&true)
    }

    /// Copies a segment; under its name only when it is whole. Gives its bytes.
    ///
    /// # Errors
    /// Those of the file system.
    pub(super) fn copy(&self, segment: Segment, to: BorrowedFd<'_>) -> Result<u64> {
        let name = segment.to_string();
        let temporary = format!(".holdfast-{name}");
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC;
        let out = open_below(to, temporary.as_bytes(), flags, Mode::RUSR | Mode::WUSR)
            .map_err(failed("make", name.as_bytes()))?;
        let copied = io::copy(&mut self.open(segment)?, &mut File::from(out));
        let len = copied.map_err(|source| RestoreError::Io {
            doing: "copy",
            what: name.clone(),
            source,
        })?;
        fs::renameat(to, &temporary, to, &name).map_err(failed("rename", name.as_bytes()))?;
        Ok(len)
    }

    fn open(&self, segment: Segment) -> Result<File> {
        open(&self.dir, &segment.to_string())
    }
}

/// Where that WAL is now.
fn old_dir(plan: &Plan) -> Result<Option<OwnedFd>> {
    if plan.begin == Begin::Fresh {
        return Ok(None);
    }
    let Some(dir) = look::open(&plan.dir)? else {
        return Ok(None);
    };
    let note = files::read(dir.as_fd(), marker::NAME.as_bytes(), marker::LEN_MAX)?;
    let phase = note.as_deref().and_then(Marker::parse).map(|(_, phase)| phase);
    let is_in_place = plan.begin == Begin::Replace || phase == Some(Phase::Aside);
    let names = files::list(dir.as_fd()).map_err(failed("list", b"the data directory"))?;
    let has = |wanted: &[u8]| names.iter().any(|(name, _)| name == wanted);
    // The last one that was put aside is the one that this restore put there.
    let aside = names.iter().filter_map(|(name, _)| {
        let number = std::str::from_utf8(name).ok()?.strip_prefix(WAL_ASIDE)?;
        number.parse::<u32>().ok()
    });
    let name = match aside.max() {
        _ if is_in_place && has(b"pg_wal") => "pg_wal".to_owned(),
        Some(number) if plan.begin == Begin::Resume => format!("{WAL_ASIDE}{number}"),
        _ => return Ok(None),
    };
    // A link to another file system is usual here, and followed: only files that are segments of this cluster are read.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    fs::openat(&dir, &name, flags, Mode::empty())
        .map(Some)
        .map_err(failed("open", name.as_bytes()))
}

/// Names that the server wanted to be archived.
fn ready(wal: &OwnedFd) -> BTreeSet<String> {
    let Ok(status) = open_dir(wal, b"archive_status") else {
        return BTreeSet::new();
    };
    let names = files::list(status.as_fd()).unwrap_or_default();
    let name = |(name, _): (Vec<u8>, bool)| {
        let text = String::from_utf8(name).ok()?;
        text.strip_suffix(".ready").map(str::to_owned)
    };
    names.into_iter().filter_map(name).collect()
}

fn open(wal: &OwnedFd, name: &str) -> Result<File> {
    open_below(
        wal,
        name.as_bytes(),
        OFlags::RDONLY | OFlags::NONBLOCK,
        Mode::empty(),
    )
    .map(File::from)
    .map_err(failed("open", name.as_bytes()))
}

/// Whether a file is the segment that its name says; one that was renamed for later use is not.
fn is_that(wal: &OwnedFd, segment: Segment, cluster: &Cluster) -> Result<bool> {
    let name = segment.to_string();
    let file = open(wal, &name)?;
    let reading = |source| RestoreError::Io {
        doing: "read",
        what: name.clone(),
        source,
    };
    let about = file.metadata().map_err(reading)?;
    let mut head = [0; WAL_HEADER_LEN];
    if !about.is_file() || file.read_exact_at(&mut head, 0).is_err() {
        return Ok(false);
    }
    let checked = WalHeader::decode(&head).and_then(|header| header.check(segment, about.len(), cluster));
    Ok(checked.is_ok())
}

/// Sorts segments that are not archived. `is_same` compares a segment that is here and in the archive; none where the archive's
/// cannot be read.
fn sort(
    segments: &BTreeMap<Segment, bool>,
    is_archived: impl Fn(Segment) -> bool,
    mut is_same: impl FnMut(Segment) -> Result<Option<bool>>,
) -> Result<Sorted> {
    let mut sorted = Sorted::default();
    let missing = segments.iter().filter(|(segment, _)| !is_archived(**segment));
    for (segment, is_ready) in missing {
        let before = segment
            .number()
            .checked_sub(1)
            .and_then(|number| Segment::new(segment.timeline(), number, segment.size()));
        let to = match before {
            Some(before) if sorted.follow.contains(&before) => &mut sorted.follow,
            Some(before) if sorted.diverged.contains(&before) => &mut sorted.diverged,
            Some(before) if is_archived(before) => {
                let same = if segments.contains_key(&before) {
                    is_same(before)?
                } else {
                    None
                };
                match same {
                    Some(true) => &mut sorted.follow,
                    Some(false) => &mut sorted.diverged,
                    // The server removes what is archived. That it wanted to archive this one too is what says that both
                    // are of one history.
                    None if *is_ready => &mut sorted.follow,
                    None => &mut sorted.apart,
                }
            }
            _ => &mut sorted.apart,
        };
        to.insert(*segment);
    }
    Ok(sorted)
}

/// Compares what is written to it with a file.
struct Comparing {
    file: File,
    is_same: bool,
}

impl Write for Comparing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = &bytes[..bytes.len().min(PIECE)];
        let mut there = Vec::with_capacity(taken.len());
        if self.is_same {
            (&self.file).take(taken.len() as u64).read_to_end(&mut there)?;
            self.is_same = there == taken;
        }
        Ok(taken.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Runs of segments in words, such as `A to B, C`.
pub(super) fn named(segments: &BTreeSet<Segment>) -> Vec<String> {
    let mut runs: Vec<(Segment, Segment)> = Vec::new();
    for segment in segments {
        match runs.last_mut() {
            Some((_, last)) if last.next() == Some(*segment) => *last = *segment,
            _ => runs.push((*segment, *segment)),
        }
    }
    let text = |(first, last): (Segment, Segment)| {
        if first == last {
            first.to_string()
        } else {
            format!("{first} to {last}")
        }
    };
    runs.into_iter().map(text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_postgres::{SegmentSize, TimelineId};

    fn segment(number: u64) -> Segment {
        Segment::new(TimelineId::FIRST, number, SegmentSize::MIN).unwrap()
    }

    /// `local`: numbers, ready ones negative. Archived are 1 to 5. Gives what follows, diverged and lies apart.
    fn sorted(local: &[i64], same: bool) -> [Vec<u64>; 3] {
        let local = local
            .iter()
            .map(|number| (segment(number.unsigned_abs()), *number < 0))
            .collect();
        let archived = |segment: Segment| (1..=5).contains(&segment.number());
        let Sorted {
            follow,
            diverged,
            apart,
        } = sort(&local, archived, |_| Ok(Some(same))).unwrap();
        [follow, diverged, apart].map(|set| set.into_iter().map(Segment::number).collect())
    }

    #[test]
    fn what_goes_on_where_the_archive_ends_follows() {
        assert_eq!(sorted(&[4, 5, -6, -7, 8], true), [vec![6, 7, 8], vec![], vec![]]);
        // The tail alone, behind an archived segment that is still there.
        assert_eq!(sorted(&[5, 6], true), [vec![6], vec![], vec![]]);
        // Those before were removed, as servers do with what is archived.
        assert_eq!(sorted(&[-6, 7], true), [vec![6, 7], vec![], vec![]]);
        assert_eq!(sorted(&[2, 3], true), [Vec::<u64>::new(), vec![], vec![]]);
    }

    #[test]
    fn another_history_and_what_lies_behind_a_gap_do_not() {
        assert_eq!(sorted(&[5, 6, 7], false), [vec![], vec![6, 7], vec![]]);
        assert_eq!(sorted(&[5, -7, 8], true), [vec![], vec![], vec![7, 8]]);
        // Nothing says whose it is.
        assert_eq!(sorted(&[6], true), [vec![], vec![], vec![6]]);
        // Before the archive began.
        assert_eq!(sorted(&[0, 1], true), [vec![], vec![], vec![0]]);
    }

    #[test]
    fn runs_are_named_by_their_ends() {
        let set = [1, 2, 3, 9].map(segment).into();
        assert_eq!(
            named(&set),
            [
                "000000010000000000000001 to 000000010000000000000003",
                "000000010000000000000009"
            ]
        );
        assert!(named(&BTreeSet::new()).is_empty());
    }
}
