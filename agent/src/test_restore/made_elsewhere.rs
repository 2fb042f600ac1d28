//! Whether replaying the WAL that was restored would write outside of the scratch directory.

use crate::{
    error::{AgentError, Result},
    restore_job::lift,
};
use holdfast_core::ErrorKind;
use holdfast_net::Fault;
use holdfast_postgres::{Lsn, SegmentSize};
use holdfast_restore::postgres::made_elsewhere;
use std::path::Path;

/// Refuses WAL that makes tablespaces: a server would make them where its origin has them, which on the origin's host is the
/// origin's own directory. `is_cancelled` ends it. On a thread that may wait.
///
/// # Errors
/// `Unsupported` naming the first such tablespace; when the WAL cannot be read.
pub fn refuse(wal: &Path, size: SegmentSize, from: Lsn, is_cancelled: impl Fn() -> bool) -> Result<()> {
    let found = made_elsewhere(wal, size, from, is_cancelled).map_err(lift)?;
    let Some(made) = found.first() else { return Ok(()) };
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
