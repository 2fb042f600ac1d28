//! Start and stop of a backup on the server: the versions differ in names and arguments.

use super::session::{Session, column};
use crate::error::Result;
use holdfast_postgres::{Lsn, PgVersion};

/// Its WAL is kept from the last checkpoint's redo on, which is at or before where the backup will begin.
const RESERVE_WAL: &str =
    "SELECT lsn::text FROM pg_create_physical_replication_slot($1::text::name, true, true)";

/// What the server says at the end. The texts are as it wrote them, in the encoding of the database.
pub(super) struct Stopped {
    /// All WAL before it belongs to the backup.
    pub stop: Lsn,
    pub label: Vec<u8>,
    /// Empty without tablespaces.
    pub tablespace_map: Vec<u8>,
}

/// Makes a slot that lasts as long as the session and keeps the WAL that is needed.
pub(super) async fn reserve_wal(session: &Session, slot: &str) -> Result<()> {
    let action = "keep the server's WAL for the time of the backup, by a temporary replication slot (max_replication_slots \
                  must leave one free)";
    session.row(action, RESERVE_WAL, &[&slot]).await?;
    Ok(())
}

/// Begins; returns where replay will have to begin. Without `fast` that is after the next spread checkpoint.
pub(super) async fn start(session: &Session, version: PgVersion, label: &str, fast: bool) -> Result<Lsn> {
    let sql = if version >= PgVersion::V15 {
        "SELECT pg_backup_start($1, $2)::text"
    } else {
        "SELECT pg_start_backup($1, $2, false)::text"
    };
    let row = session.row("begin the backup", sql, &[&label, &fast]).await?;
    let start: &str = column(&row, 0)?;
    Ok(start.parse()?)
}

/// Ends the backup, without waiting for any archive: the snapshot brings its own WAL.
pub(super) async fn stop(session: &Session, version: PgVersion) -> Result<Stopped> {
    let call = if version >= PgVersion::V15 {
        "pg_backup_stop(false)"
    } else {
        "pg_stop_backup(false, false)"
    };
    // As bytes: a conversion to this side's encoding could change them.
    let sql = format!(
        "SELECT lsn::text, convert_to(labelfile, getdatabaseencoding()), convert_to(spcmapfile, getdatabaseencoding()) FROM {call}"
    );
    let row = session.row("end the backup", &sql, &[]).await?;
    let stop: &str = column(&row, 0)?;
    let map: Option<Vec<u8>> = column(&row, 2)?;
    Ok(Stopped {
        stop: stop.parse()?,
        label: column(&row, 1)?,
        tablespace_map: map.unwrap_or_default(),
    })
}
