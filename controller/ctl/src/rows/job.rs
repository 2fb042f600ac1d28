//! Jobs.

use super::{Stats, TestReportRow, id, limits::LimitsRow, optional_id, or_dash, source, text};
use crate::{
    error::Result,
    output::{Row, short_time, time},
};
use holdfast_core::{JobId, SnapshotId, SourceRef};
use holdfast_net::Fault;
use holdfast_proto::v1;
use serde::Serialize;

/// A job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct JobRow {
    pub(crate) id: JobId,
    pub(crate) kind: String,
    pub(crate) source: SourceRef,
    agent: String,
    pub(crate) state: String,
    attempt: u32,
    pub(crate) snapshot: Option<SnapshotId>,
    pub(crate) error: Option<String>,
    pub(crate) error_kind: Option<String>,
    requested_by: String,
    created_at: Option<String>,
    started_at: Option<String>,
    finished_at: Option<String>,
    pub(crate) stats: Stats,
    /// The limits that it runs under, or ended under, as its agent read them back.
    limits: Option<LimitsRow>,
    /// What a check or a test restore found.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) findings: Vec<Finding>,
    /// What a test restore came to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) test: Option<TestReportRow>,
    #[serde(skip)]
    created_millis: u64,
}

/// Something that a check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    pub(crate) what: String,
    pub(crate) why: String,
    pub(crate) fix: String,
}

impl From<v1::CheckFinding> for Finding {
    fn from(wire: v1::CheckFinding) -> Self {
        let v1::CheckFinding { what, why, fix } = wire;
        Self { what, why, fix }
    }
}

impl TryFrom<v1::Job> for JobRow {
    type Error = Fault;
    fn try_from(wire: v1::Job) -> Result<Self> {
        let v1::Job {
            id: raw_id,
            kind,
            source: raw_source,
            agent,
            state,
            attempt,
            created_at,
            started_at,
            finished_at,
            error_kind,
            error,
            snapshot,
            stats,
            requested_by,
            limits,
            findings,
            test,
        } = wire;
        Ok(Self {
            id: id(&raw_id)?,
            kind,
            source: source(raw_source)?,
            agent,
            state,
            attempt,
            snapshot: optional_id(&snapshot)?,
            error: text(error),
            error_kind: text(error_kind),
            requested_by,
            created_at: time(created_at),
            started_at: time(started_at),
            finished_at: time(finished_at),
            stats: stats.unwrap_or_default().into(),
            limits: limits.map(LimitsRow::from),
            findings: findings.into_iter().map(Finding::from).collect(),
            test: test.map(TestReportRow::from),
            created_millis: created_at,
        })
    }
}

impl JobRow {
    /// What went wrong, or was found.
    fn trouble(&self) -> Option<String> {
        let found = || self.test.as_ref().and_then(TestReportRow::trouble);
        self.error.clone().or_else(found)
    }

    /// What of its source's limits could not be applied, and why.
    pub(crate) fn limit_warnings(&self) -> &[String] {
        self.limits.as_ref().map_or(&[], |limits| &limits.warnings)
    }
}

impl Row for JobRow {
    const LIST: &'static str = "JobList";
    const COLUMNS: &'static [&'static str] = &[
        "ID",
        "KIND",
        "SOURCE",
        "STATE",
        "CREATED",
        "ERROR",
        "AGENT",
        "ATTEMPT",
        "SNAPSHOT",
        "REQUESTED BY",
        "LIMITS",
    ];
    const NARROW: usize = 6;

    fn name(&self) -> String {
        self.id.to_string()
    }

    fn cells(&self) -> Vec<String> {
        vec![
            self.id.to_string(),
            self.kind.clone(),
            self.source.to_string(),
            self.state.clone(),
            short_time(self.created_millis),
            or_dash(&self.trouble()),
            self.agent.clone(),
            self.attempt.to_string(),
            or_dash(&self.snapshot),
            self.requested_by.clone(),
            or_dash(&self.limits),
        ]
    }
}
