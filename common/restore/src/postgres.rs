//! Physical backups of PostgreSQL, brought back as a data directory that a server starts from.
//!
//! A snapshot of one has these trees: the data directory without `global/pg_control` and the content of `pg_wal`
//! ([`DATA`]), the content of each tablespace's location ([`TABLESPACES`]`/OID`), the WAL that makes it consistent
//! ([`WAL`]), and what belongs to the backup itself ([`BACKUP`]): `backup.json`, `backup_label`, `tablespace_map` if
//! there are tablespaces, and `pg_control`.
//!
//! Two things must never happen: that a server starts from half a directory, and that a restore writes over a cluster
//! that was not meant. So `global/pg_control`, without which no server starts, comes last, when everything else is on
//! disk; and what lies in the targets is looked at before anything is written. `plan` decides, without I/O; `look`
//! sees; `apply` acts, through handles of directories, like every restore. A third must not either: that the restored
//! cluster archives WAL where its origin does. So its `postgresql.auto.conf` turns archiving off.

mod apply;
mod backup;
mod error;
mod files;
mod look;
mod made_elsewhere;
mod manifest;
mod map;
mod marker;
mod old_wal;
mod plan;
mod recovery;
mod run_as;
mod server;
mod site;
mod space;

pub use apply::PostgresReport;
pub use backup::Backup;
pub use error::PostgresError;
pub use made_elsewhere::made_elsewhere;
pub use manifest::{DamagedBlock, Manifest, Tablespace};
pub use plan::{Begin, Plan, TablespaceTarget};
pub use recovery::{NO_ARCHIVE, RecoverTo, SegmentSet, Way, wanted};
pub use run_as::{Network, RunAs};
pub use server::{ServerState, Start, Started, Until, programs, start};
pub use space::Lack;

pub use holdfast_postgres::{
    Lsn, Recovery, RecoveryMode, RecoveryTarget, TargetAction, TargetTimeline, TimelineContents,
    TimelineHistory, TimelineId, contents,
};

use crate::{RestoreOptions, Result, Snapshot, verify::CancelOnDrop};
use std::{ffi::OsString, path::PathBuf, sync::Arc};

/// Path of the tree of the data directory.
pub const DATA: &str = "/postgresql/data";
/// Above the trees of tablespaces, each named by its OID.
pub const TABLESPACES: &str = "/postgresql/tablespaces";
/// Path of the tree of WAL segments and timeline histories.
pub const WAL: &str = "/postgresql/wal";
/// Path of the tree of what belongs to the backup itself.
pub const BACKUP: &str = "/postgresql/backup";

/// What an operator asks for.
#[derive(Debug, Clone)]
pub struct Request {
    /// The data directory to be: an absolute path.
    pub dir: PathBuf,
    /// Places of tablespaces that do not go to their own: `OID=DIR`, `NAME=DIR` or `LOCATION=DIR`.
    pub tablespaces: Vec<OsString>,
    /// The data directory may hold an unfinished restore, or an older state, of the same cluster.
    pub in_place: bool,
    /// Where the server recovers to; none: the end of the backup, without telling the server anything.
    pub recover_to: Option<RecoverTo>,
    /// Whether WAL is refused that makes tablespaces where something else lies; not where the caller looks itself.
    pub guards_tablespaces: bool,
    /// Recover to the latest state also where the cluster that is replaced has WAL that would go on from there, but does not
    /// connect with the archive.
    pub accept_loss: bool,
    /// Whether it is refused when there seems to be no room.
    pub checks_space: bool,
}

/// Makes a data directory of a snapshot. Of `options`, what says where and what is not used: the whole cluster goes
/// where `request` says, and in place also what the snapshot does not have is removed.
///
/// When it returns with `complete`, everything is on disk. When it does not, or fails, or is interrupted, no server
/// starts from the directory, and the same request with `in_place` goes on.
///
/// # Errors
/// `Conflict` for targets that must not be written to, `Invalid` for tablespaces that make no sense, `Corrupt` for a
/// backup that contradicts itself; those of [`crate::restore`].
pub async fn restore(
    snapshot: &Snapshot,
    backup: &Backup,
    request: Request,
    options: RestoreOptions,
) -> Result<PostgresReport> {
    let (snapshot, backup) = (snapshot.clone(), backup.clone());
    let guard = CancelOnDrop(Some(Arc::clone(&options.cancel)));
    let reader = snapshot.reader().clone();
    let outcome = reader
        .blocking(move |opener| apply::run(opener, &snapshot, &backup, &request, &options))
        .await;
    guard.disarm();
    outcome
}
