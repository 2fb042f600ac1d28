//! Sources.

use super::{TestSummaryRow, optional_id, or_dash, source};
use crate::{
    error::Result,
    output::{Row, short_time, time},
};
use holdfast_core::{JobId, SnapshotId, SourceRef};
use holdfast_net::Fault;
use holdfast_proto::v1;
use serde::Serialize;

/// A source.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct SourceRow {
    pub(crate) name: SourceRef,
    /// `files` or `postgres`.
    kind: &'static str,
    /// Agents that back it up and archive for it beside its own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    members: Vec<String>,
    snapshots: u64,
    pub(crate) latest_snapshot: Option<SnapshotId>,
    latest_at: Option<String>,
    running_job: Option<JobId>,
    created_at: Option<String>,
    changed_at: Option<String>,
    /// What changed after its snapshots, as far as it is kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    journal: Option<Journal>,
    /// The last test restore of any of its snapshots that came to a verdict.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_test: Option<TestSummaryRow>,
    document: serde_json::Value,
    #[serde(skip)]
    pub(crate) document_text: String,
    #[serde(skip)]
    latest_millis: u64,
}

/// A source's journal.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Journal {
    /// The cluster that it belongs to.
    system_id: String,
    files: u64,
    bytes: u64,
    last_file: String,
    last_at: Option<String>,
    /// Files whose name had another content already.
    divergent: u64,
    /// An agent archives into it.
    open: bool,
    /// Agents whose spools may hold more of it: `describe journal` asks them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    spooled_at: Vec<String>,
}

impl From<v1::Journal> for Journal {
    fn from(wire: v1::Journal) -> Self {
        let v1::Journal {
            system_id,
            pages: _,
            files,
            bytes,
            last_file,
            last_at,
            divergent,
            is_open,
            spooled_at,
        } = wire;
        Self {
            system_id: system_id.to_string(),
            files,
            bytes,
            last_file,
            last_at: time(last_at),
            divergent,
            open: is_open,
            spooled_at,
        }
    }
}

impl SourceRow {
    /// Whether WAL of it was ever archived.
    pub(crate) fn has_journal(&self) -> bool {
        self.journal.is_some()
    }
}

impl TryFrom<v1::Source> for SourceRow {
    type Error = Fault;
    fn try_from(wire: v1::Source) -> Result<Self> {
        let v1::Source {
            r#ref,
            document,
            files: _,
            postgres,
            created_at,
            changed_at,
            latest_snapshot,
            latest_at,
            snapshots,
            running_job,
            // They stand in the document, as they were written.
            limits: _,
            journal,
            last_test,
        } = wire;
        Ok(Self {
            name: source(r#ref)?,
            kind: if postgres.is_some() { "postgres" } else { "files" },
            members: postgres.map(|spec| spec.members).unwrap_or_default(),
            snapshots,
            latest_snapshot: optional_id(&latest_snapshot)?,
            latest_at: time(latest_at),
            running_job: optional_id(&running_job)?,
            created_at: time(created_at),
            changed_at: time(changed_at),
            journal: journal.map(Journal::from),
            last_test: last_test.map(TestSummaryRow::try_from).transpose()?,
            document: serde_json::from_str(&document).unwrap_or_default(),
            document_text: document,
            latest_millis: latest_at,
        })
    }
}

impl Row for SourceRow {
    const LIST: &'static str = "SourceList";
    const COLUMNS: &'static [&'static str] = &[
        "NAME",
        "KIND",
        "SNAPSHOTS",
        "LATEST",
        "RUNNING",
        "LATEST SNAPSHOT",
        "TESTED",
        "MEMBERS",
    ];
    const NARROW: usize = 5;

    fn name(&self) -> String {
        self.name.to_string()
    }

    fn cells(&self) -> Vec<String> {
        vec![
            self.name.to_string(),
            self.kind.into(),
            self.snapshots.to_string(),
            short_time(self.latest_millis),
            or_dash(&self.running_job),
            or_dash(&self.latest_snapshot),
            self.last_test
                .as_ref()
                .map_or_else(|| "-".into(), TestSummaryRow::short),
            if self.members.is_empty() {
                "-".into()
            } else {
                self.members.join(",")
            },
        ]
    }
}
