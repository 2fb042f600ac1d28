//! Test restores: what is to be tried, and what came of it.

use holdfast_core::{JobId, Name, SnapshotId, UnixMillis};
use serde::{Deserialize, Serialize};

/// What a test restore tries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TestRestoreSpec {
    /// Which snapshot.
    pub snapshot: SnapshotId,
    /// Where its cluster recovers to; none: the end of the backup.
    pub recovery: Option<RecoverySpec>,
}

/// See `RecoverySpec` in types.proto; agents judge what it says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(
    missing_docs,
    reason = "each field is documented where it is defined, in types.proto"
)]
pub struct RecoverySpec {
    pub target: String,
    pub value: String,
    pub timeline: String,
}

/// What a test restore came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// The server recovered, and nothing was found.
    Ok,
    /// The server recovered, and something was found.
    Findings,
    /// No server came up from it, or it did not recover.
    Failed,
}

impl Verdict {
    /// Name on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Findings => "findings",
            Self::Failed => "failed",
        }
    }

    /// The verdict of that wire name.
    #[must_use]
    pub fn from_wire(name: &str) -> Option<Self> {
        [Self::Ok, Self::Findings, Self::Failed]
            .into_iter()
            .find(|verdict| verdict.as_str() == name)
    }
}

/// How a test restore ended; see `TestReport` in types.proto.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(
    missing_docs,
    reason = "each field is documented where it is defined, in types.proto"
)]
pub struct TestReport {
    pub verdict: Verdict,
    pub recovered: Option<Recovered>,
    pub checks: Vec<TestCheck>,
    pub databases: u32,
    pub tables: u64,
    pub rows: u64,
    pub largest: Vec<TableRows>,
    pub findings: u64,
    pub bytes: u64,
    pub restore_ms: u64,
    pub recover_ms: u64,
    pub check_ms: u64,
    pub server_version: String,
    pub notes: Vec<String>,
}

/// Where recovery ended; see types.proto.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(
    missing_docs,
    reason = "each field is documented where it is defined, in types.proto"
)]
pub struct Recovered {
    pub lsn: String,
    pub timeline: u32,
    pub last_commit_at: UnixMillis,
    pub reason: String,
}

/// Something that a test restore looks at; see types.proto.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(
    missing_docs,
    reason = "each field is documented where it is defined, in types.proto"
)]
pub struct TestCheck {
    pub name: String,
    pub state: String,
    pub detail: String,
}

impl TestCheck {
    /// The state of a check that could not be run.
    pub const NOT_RUN: &'static str = "not-run";
}

/// Rows of a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(
    missing_docs,
    reason = "each field is documented where it is defined, in types.proto"
)]
pub struct TableRows {
    pub database: String,
    pub table: String,
    pub rows: u64,
}

/// What snapshots and sources remember of their last test restore; see types.proto.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(
    missing_docs,
    reason = "each field is documented where it is defined, in types.proto"
)]
pub struct TestSummary {
    pub job: JobId,
    pub snapshot: SnapshotId,
    pub agent: Name,
    pub verdict: Verdict,
    pub at: UnixMillis,
    pub duration_ms: u64,
    pub recovered: Option<Recovered>,
    pub databases: u32,
    pub tables: u64,
    pub rows: u64,
    pub findings: u64,
    pub not_run: Vec<String>,
}

impl TestSummary {
    /// What is remembered of a report.
    #[must_use]
    pub fn of(report: &TestReport, job: JobId, snapshot: SnapshotId, agent: &Name, at: UnixMillis) -> Self {
        let not_run = report
            .checks
            .iter()
            .filter(|check| check.state == TestCheck::NOT_RUN);
        Self {
            job,
            snapshot,
            agent: agent.clone(),
            verdict: report.verdict,
            at,
            duration_ms: report.restore_ms + report.recover_ms + report.check_ms,
            recovered: report.recovered.clone(),
            databases: report.databases,
            tables: report.tables,
            rows: report.rows,
            findings: report.findings,
            not_run: not_run.map(|check| check.name.clone()).collect(),
        }
    }
}
