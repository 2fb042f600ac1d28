//! Snapshots, and what a run counted.

use super::{TestSummaryRow, id, optional_id, source, text};
use crate::{
    error::Result,
    output::{Row, bytes, short_time, time},
};
use holdfast_core::{JobId, SnapshotId, SourceRef, VaultId};
use holdfast_net::Fault;
use holdfast_proto::v1;
use serde::Serialize;

/// Counts of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Stats {
    pub(super) files: u64,
    dirs: u64,
    symlinks: u64,
    others: u64,
    skipped: u64,
    pub(crate) bytes: u64,
    files_unchanged: u64,
    bytes_read: u64,
    chunks_new: u64,
    bytes_new: u64,
    bytes_stored: u64,
    files_vanished: u64,
    files_changing: u64,
    pub(crate) unreadable: u64,
    packs: u64,
}

impl From<v1::RunStats> for Stats {
    fn from(stats: v1::RunStats) -> Self {
        let v1::RunStats {
            files,
            dirs,
            symlinks,
            others,
            skipped,
            bytes,
            files_unchanged,
            bytes_read,
            chunks_new,
            bytes_new,
            bytes_stored,
            files_vanished,
            files_changing,
            unreadable,
            packs,
        } = stats;
        Self {
            files,
            dirs,
            symlinks,
            others,
            skipped,
            bytes,
            files_unchanged,
            bytes_read,
            chunks_new,
            bytes_new,
            bytes_stored,
            files_vanished,
            files_changing,
            unreadable,
            packs,
        }
    }
}

/// Something that could not be backed up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct ProblemRow {
    /// With replacement characters where it is not UTF-8.
    pub(crate) path: String,
    pub(crate) reason: String,
}

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct SnapshotRow {
    pub(crate) id: SnapshotId,
    pub(crate) source: SourceRef,
    pub(crate) sequence: u64,
    pub(crate) state: String,
    pub(crate) partial: bool,
    pub(crate) vault: VaultId,
    started_at: Option<String>,
    finished_at: Option<String>,
    deleted_at: Option<String>,
    undo_until: Option<String>,
    hold: Option<String>,
    job: Option<JobId>,
    root_hash: String,
    root_len: u64,
    pub(crate) stats: Stats,
    pub(crate) problems: Vec<ProblemRow>,
    /// Its last test restore that came to a verdict.
    last_test: Option<TestSummaryRow>,
    #[serde(skip)]
    pub(crate) finished_millis: u64,
}

impl TryFrom<v1::Snapshot> for SnapshotRow {
    type Error = Fault;
    fn try_from(wire: v1::Snapshot) -> Result<Self> {
        let v1::Snapshot {
            id: raw_id,
            source: raw_source,
            vault,
            sequence,
            root_hash,
            root_len,
            started_at,
            finished_at,
            stats,
            partial,
            state,
            deleted_at,
            undo_until,
            hold,
            job,
            problems,
            last_test,
        } = wire;
        Ok(Self {
            id: id(&raw_id)?,
            source: source(raw_source)?,
            sequence,
            state,
            partial,
            vault: id(&vault)?,
            started_at: time(started_at),
            finished_at: time(finished_at),
            deleted_at: time(deleted_at),
            undo_until: time(undo_until),
            hold: text(hold),
            job: optional_id(&job)?,
            root_hash: hex::encode(root_hash),
            root_len,
            stats: stats.unwrap_or_default().into(),
            problems: problems
                .into_iter()
                .map(|v1::Problem { path, reason }| ProblemRow {
                    path: String::from_utf8_lossy(&path).into_owned(),
                    reason,
                })
                .collect(),
            last_test: last_test.map(TestSummaryRow::try_from).transpose()?,
            finished_millis: finished_at,
        })
    }
}

impl Row for SnapshotRow {
    const LIST: &'static str = "SnapshotList";
    const COLUMNS: &'static [&'static str] = &[
        "ID",
        "SOURCE",
        "FINISHED",
        "STATE",
        "SIZE",
        "FILES",
        "SEQUENCE",
        "STORED",
        "UNREADABLE",
        "VAULT",
        "TESTED",
    ];
    const NARROW: usize = 6;

    fn name(&self) -> String {
        self.id.to_string()
    }

    fn cells(&self) -> Vec<String> {
        let state = if self.partial {
            format!("{}, partial", self.state)
        } else {
            self.state.clone()
        };
        vec![
            self.id.to_string(),
            self.source.to_string(),
            short_time(self.finished_millis),
            state,
            bytes(self.stats.bytes),
            self.stats.files.to_string(),
            self.sequence.to_string(),
            bytes(self.stats.bytes_stored),
            self.stats.unreadable.to_string(),
            self.vault.to_string(),
            self.last_test
                .as_ref()
                .map_or_else(|| "-".into(), TestSummaryRow::short),
        ]
    }
}
