//! Whether replaying the WAL that was restored would write outside of the scratch directory.

use crate::error::{AgentError, Result};
use holdfast_core::ErrorKind;
use holdfast_net::Fault;
use holdfast_postgres::{Segment, SegmentSize, TablespaceScan, WAL_HEADER_LEN, WalHeader};
use std::{
    fs::{self, File},
    io::{BufReader, Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
};

/// Read at a time.
const READ: usize = 1 << 20;

/// Refuses WAL that makes tablespaces: a server would make them where its origin has them, which on the origin's host is the
/// origin's own directory. `is_cancelled` ends it. On a thread that may wait.
///
/// # Errors
/// `Unsupported` naming the first such tablespace; when the WAL cannot be read.
pub fn refuse(wal: &Path, size: SegmentSize, is_cancelled: impl Fn() -> bool) -> Result<()> {
    let mut scan = TablespaceScan::default();
    for (segment, path) in segments(wal, size)? {
        if is_cancelled() {
            return Err(AgentError::Interrupted("the job was cancelled".into()));
        }
        look_through(&mut scan, segment, &path)?;
    }
    // One without a place lies within the data directory.
    let outside = scan
        .found()
        .iter()
        .find(|made| made.location.as_ref().is_none_or(|location| !location.is_empty()));
    let Some(made) = outside else { return Ok(()) };
    let place = made.location.as_ref().map_or_else(
        || "a place that cannot be read".into(),
        |path| String::from_utf8_lossy(path),
    );
    Err(AgentError::Remote(Fault::new(
        ErrorKind::Unsupported,
        format!(
            "the WAL behind the backup makes tablespace {} in {place}, and a server that replays it would write there, outside of \
             the scratch directory: nothing was started; take a backup, one that begins after the tablespace was made can be tried",
            made.oid
        ),
    )))
}

/// In the order of their names: by timeline, then by position.
fn segments(wal: &Path, size: SegmentSize) -> Result<Vec<(Segment, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(wal).map_err(AgentError::io("list", wal))? {
        let entry = entry.map_err(AgentError::io("list", wal))?;
        let segment = entry
            .file_name()
            .to_str()
            .and_then(|name| Segment::parse(name, size).ok());
        found.extend(segment.map(|segment| (segment, entry.path())));
    }
    found.sort_by(|a, b| a.1.cmp(&b.1));
    Ok(found)
}

fn look_through(scan: &mut TablespaceScan, segment: Segment, path: &Path) -> Result<()> {
    let failed = || AgentError::io("read", path);
    let mut file = BufReader::with_capacity(READ, File::open(path).map_err(AgentError::io("open", path))?);
    let mut head = [0; WAL_HEADER_LEN];
    file.read_exact(&mut head).map_err(failed())?;
    let header = WalHeader::decode(&head)?;
    file.seek(SeekFrom::Start(0)).map_err(failed())?;
    let len = u64::from(segment.size().bytes());
    let block = u64::from(header.block_len);
    if block == 0 || len % block != 0 {
        return Err(AgentError::Invalid(format!(
            "{} has pages of {block} bytes",
            path.display()
        )));
    }
    let mut page = vec![0; header.block_len as usize];
    for number in 0..len / block {
        file.read_exact(&mut page).map_err(failed())?;
        if !scan.page(&page, segment.start().0 + number * block) {
            break;
        }
    }
    Ok(())
}
