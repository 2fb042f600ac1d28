//! Tablespaces that the WAL of a restored cluster makes: a server that replays it makes them where its origin has them, which
//! on the origin's host is the origin's own directory.

use super::{Manifest, Plan, PostgresError};
use crate::{RestoreError, Result};
use holdfast_postgres::{
    Lsn, MadeTablespace, Segment, SegmentSize, TablespaceScan, WAL_HEADER_LEN, WalHeader,
};
use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, BufReader, Read as _, Seek as _, SeekFrom},
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

/// Read at a time.
const READ: usize = 1 << 20;

/// Those that lie outside of the data directory, or whose place cannot be read, in what is replayed from that position on. What is no segment is left to the server,
/// which does not replay it. `is_cancelled` ends it; on a thread that may wait.
///
/// # Errors
/// `Interrupted`; when the directory or a file cannot be read.
pub fn made_elsewhere(
    wal: &Path,
    size: SegmentSize,
    from: Lsn,
    is_cancelled: impl Fn() -> bool,
) -> Result<Vec<MadeTablespace>> {
    let mut scan = TablespaceScan::replayed_from(from);
    for (segment, path) in segments(wal, size)? {
        if is_cancelled() {
            return Err(RestoreError::Interrupted);
        }
        look_through(&mut scan, segment, &path).map_err(|source| failed("read", &path, source))?;
    }
    let is_elsewhere = |made: &&MadeTablespace| {
        let location = made.location.as_ref();
        location.is_none_or(|location| !location.is_empty())
    };
    Ok(scan.found().iter().filter(is_elsewhere).cloned().collect())
}

/// Refuses WAL that makes a tablespace where something lies that is not this cluster's.
///
/// Also where a cluster is replaced: it may be a copy of the one whose tablespace lies there.
pub(super) fn refuse(plan: &Plan, manifest: &Manifest, is_cancelled: impl Fn() -> bool) -> Result<()> {
    let (wal, size) = (plan.dir.join("pg_wal"), manifest.wal_segment_size);
    for MadeTablespace { oid, location } in made_elsewhere(&wal, size, manifest.start_lsn, is_cancelled)? {
        let place = location.map(|location| PathBuf::from(OsStr::from_bytes(&location)));
        let is_free = place.as_ref().is_some_and(|place| match fs::read_dir(place) {
            Ok(mut entries) => entries.next().is_none(),
            // The server will say that it needs it.
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        });
        if !is_free {
            return Err(PostgresError::MakesTablespace {
                oid,
                place: place.map_or_else(
                    || "a place that cannot be read".into(),
                    |place| place.display().to_string(),
                ),
                dir: plan.dir.display().to_string(),
            }
            .into());
        }
    }
    Ok(())
}

/// In the order of their names: by timeline, then by position.
fn segments(wal: &Path, size: SegmentSize) -> Result<Vec<(Segment, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(wal).map_err(|source| failed("list", wal, source))? {
        let entry = entry.map_err(|source| failed("list", wal, source))?;
        let segment = entry
            .file_name()
            .to_str()
            .and_then(|name| Segment::parse(name, size).ok());
        found.extend(segment.map(|segment| (segment, entry.path())));
    }
    found.sort_by(|a, b| a.1.cmp(&b.1));
    Ok(found)
}

fn look_through(scan: &mut TablespaceScan, segment: Segment, path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    let len = u64::from(segment.size().bytes());
    if file.metadata()?.len() != len {
        return Ok(());
    }
    let mut file = BufReader::with_capacity(READ, file);
    let mut head = [0; WAL_HEADER_LEN];
    file.read_exact(&mut head)?;
    let Ok(header) = WalHeader::decode(&head) else {
        return Ok(());
    };
    let block = u64::from(header.block_len);
    if block == 0 || len % block != 0 {
        return Ok(());
    }
    file.seek(SeekFrom::Start(0))?;
    let mut page = vec![0; header.block_len as usize];
    for number in 0..len / block {
        file.read_exact(&mut page)?;
        if !scan.page(&page, segment.start().0 + number * block) {
            break;
        }
    }
    Ok(())
}

fn failed(doing: &'static str, path: &Path, source: io::Error) -> RestoreError {
    RestoreError::Io {
        doing,
        what: path.display().to_string(),
        source,
    }
}
