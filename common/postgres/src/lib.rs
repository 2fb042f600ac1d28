//! What Holdfast knows of PostgreSQL: what of a cluster is backed up and whether its pages are whole, the WAL that it
//! needs, and the settings with which a copy recovers.
//!
//! Pure: no I/O, no network, no clock and no threads. Callers read files, ask servers and tell the time.
//!
//! Versions 13 to 17 differ in few numbers (`version.rs`). `pg_control` and the headers of WAL segments are tested
//! with files that servers of these versions made (`tests/golden`). Layout, pages, labels, settings, commands and a
//! recovery with all of these are tested with a running server, which is of version 15 (`tests/real_server`).
//! Little-endian, 64-bit servers with pages of 8 KiB. No source or restore uses any of it yet.

#![forbid(unsafe_code)]
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        reason = "tests fail by panicking"
    )
)]

mod archive_contents;
mod backup_label;
mod command;
mod control_file;
mod error;
mod fields;
mod gaps;
mod history;
mod layout;
mod lsn;
mod page;
mod recovery;
mod relation_file;
mod segment;
mod settings;
mod standby_limits;
mod tablespace_map;
mod unlogged;
mod version;
mod wal;
mod wal_file;
mod wal_plan;
mod wal_tablespaces;

pub use archive_contents::{TimelineContents, contents};
pub use backup_label::{BackupLabel, BackupMethod, IncrementalFrom};
pub use command::{archive_command, command_word, restore_command};
pub use control_file::{
    CONTROL_FILE_LEN, Checkpoint, ControlFile, DbState, RecoveryBounds, StandbyLimits, WalLevel,
};
pub use error::PgError;
pub use gaps::{ArchivedSegments, Coverage, Need, Run, needed_segments};
pub use history::{Branch, Leg, TimelineHistory};
pub use layout::{EntryKind, Layout, Place, Treatment};
pub use lsn::{Lsn, SystemId, TimelineId};
pub use page::{BadPage, PAGE_LEN, PageCheck, PageFault, page_checksum, page_lsn};
pub use recovery::{
    Recovery, RecoveryMode, RecoveryTarget, TargetAction, TargetTimeline, is_recovery_setting,
    recovery_settings_in,
};
pub use relation_file::{Fork, RelationFile};
pub use segment::{Segment, SegmentSize, Segments};
pub use settings::{SettingsFile, quote_setting};
pub use standby_limits::LimitTooLow;
pub use tablespace_map::{MappedTablespace, TablespaceMap};
pub use unlogged::UnloggedRelations;
pub use version::PgVersion;
pub use wal::{Cluster, WAL_HEADER_LEN, WalHeader};
pub use wal_file::WalFile;
pub use wal_plan::{Archive, BackupRange, WalPlan, plan_wal};
pub use wal_tablespaces::{MadeTablespace, TablespaceScan};
