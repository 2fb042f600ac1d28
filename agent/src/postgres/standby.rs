//! What is different about a backup of a standby.
//!
//! The server writes no record where such a backup ends. Recovery takes `pg_control` at its word instead: the files are
//! consistent where it says that replay must come at least. A standby raises that position before it writes a page that is
//! newer, so `pg_control` must be read after all pages. WAL is switched by primaries only: the segment of the end comes as it
//! is in `pg_wal`, whole up to there and followed by whatever was there before. Where the
//! backup begins needs no waiting: a standby begins it at a checkpoint that it has replayed. Sources: the documentation, "Making a
//! Base Backup Using the Low Level API", and what servers do with such backups (`agent/tests/postgres/standby.rs`).

use super::session::{Session, column};
use crate::error::{AgentError, Result};
use holdfast_core::ErrorKind;
use holdfast_postgres::{ControlFile, DbState, Lsn, TimelineId};
use std::time::Duration;

/// How often a standby is asked whether it still is one: what is read after its promotion is read in vain.
const LOOK_EVERY: Duration = Duration::from_secs(2);
const ACTION: &str = "back the standby up";

/// Refuses a server that was a standby when the backup began, and is none any more.
pub(super) async fn check(session: &Session) -> Result<()> {
    let row = session.row(ACTION, "SELECT pg_is_in_recovery()", &[]).await?;
    if column(&row, 0)? { Ok(()) } else { Err(promoted()) }
}

/// Returns when it is none any more, or cannot be asked.
pub(super) async fn ended(session: &Session) -> AgentError {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        if let Err(error) = check(session).await {
            return error;
        }
    }
}

/// Where the backup ends, by the `pg_control` that was read last of all files.
pub(super) fn end_of(control: &ControlFile, timeline: TimelineId, start: Lsn) -> Result<Lsn> {
    let bounds = &control.recovery;
    if control.state != DbState::InArchiveRecovery {
        return Err(promoted());
    }
    if bounds.min_timeline != Some(timeline) || control.checkpoint.timeline != timeline {
        return Err(changed(format!(
            "it followed its primary from timeline {timeline} to another one meanwhile; run the backup again, it begins on the \
             new one as soon as that has had a checkpoint"
        )));
    }
    if bounds.min_lsn <= start || !bounds.backup_start.is_zero() {
        return Err(changed(format!(
            "its pg_control says that it has not replayed WAL beyond the beginning at {start}; run the backup again when it has"
        )));
    }
    Ok(bounds.min_lsn)
}

/// What to say when a segment of its WAL is gone.
pub(super) fn wal_gone(name: &str) -> String {
    format!(
        "WAL segment {name}, which the backup needs, is gone. If the server was promoted meanwhile, run the backup again; if not, \
         raise max_slot_wal_keep_size on the server (or set it to -1), and let nothing else remove files from pg_wal"
    )
}

fn promoted() -> AgentError {
    changed(
        "it was promoted while it was backed up, so that its files are of two timelines and nothing of them is kept; run the \
         backup again, it begins on the new timeline"
            .into(),
    )
}

fn changed(message: String) -> AgentError {
    AgentError::Server {
        action: ACTION,
        message,
        kind: ErrorKind::Conflict,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_core::HasKind as _;

    const START: Lsn = Lsn(0x300_0028);

    fn timeline(number: u32) -> TimelineId {
        TimelineId::new(number).unwrap()
    }

    /// As a standby has it that has come to 0/4000000.
    fn control() -> ControlFile {
        let mut bytes = include_bytes!("../../../common/postgres/tests/golden/pg_control-15.bin").to_vec();
        // As servers write it; what follows the content is zeros.
        bytes.resize(holdfast_postgres::CONTROL_FILE_LEN, 0);
        let mut control = ControlFile::decode(&bytes).unwrap();
        control.state = DbState::InArchiveRecovery;
        control.checkpoint.timeline = TimelineId::FIRST;
        control.recovery.min_lsn = Lsn(0x400_0000);
        control.recovery.min_timeline = Some(TimelineId::FIRST);
        control.recovery.backup_start = Lsn::ZERO;
        control
    }

    #[test]
    fn a_backup_ends_where_replay_must_come_to() {
        let end = end_of(&control(), TimelineId::FIRST, START).unwrap();
        assert_eq!(end, Lsn(0x400_0000));
    }

    #[test]
    fn what_is_not_one_stretch_of_one_timeline_is_no_backup() {
        type Change = fn(&mut ControlFile);
        let changes: [(Change, &str); 5] = [
            (|control| control.state = DbState::InProduction, "promoted"),
            (
                |control| control.recovery.min_timeline = Some(timeline(2)),
                "followed its primary",
            ),
            (
                |control| control.checkpoint.timeline = timeline(2),
                "followed its primary",
            ),
            (|control| control.recovery.min_lsn = START, "not replayed"),
            (|control| control.recovery.backup_start = START, "not replayed"),
        ];
        for (change, why) in changes {
            let mut control = control();
            change(&mut control);
            let error = end_of(&control, TimelineId::FIRST, START).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Conflict);
            assert!(error.to_string().contains(why), "{error}");
        }
    }
}
