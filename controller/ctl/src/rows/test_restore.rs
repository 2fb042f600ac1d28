//! Test restores: the report in its job, and what snapshots and sources remember of the last one.

use super::{id, text};
use crate::{
    error::Result,
    output::{bytes, short_time, time},
};
use holdfast_core::{JobId, SnapshotId};
use holdfast_net::Fault;
use holdfast_proto::v1;
use serde::Serialize;
use std::fmt::Write as _;

/// How a test restore ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct TestReportRow {
    pub(crate) verdict: String,
    recovered: Option<RecoveredRow>,
    checks: Vec<CheckRow>,
    databases: u32,
    tables: u64,
    rows: u64,
    /// Tables with most rows.
    largest: Vec<TableRow>,
    pub(crate) findings: u64,
    bytes: u64,
    restore_ms: u64,
    recover_ms: u64,
    check_ms: u64,
    server_version: String,
    notes: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct RecoveredRow {
    lsn: String,
    timeline: u32,
    /// Of the last transaction that was replayed.
    last_commit_at: Option<String>,
    /// Why recovery ended there, as the server says it.
    reason: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct CheckRow {
    name: String,
    /// `ok`, `findings` or `not-run`.
    state: String,
    detail: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct TableRow {
    database: String,
    table: String,
    rows: u64,
}

/// What is remembered of a test restore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct TestSummaryRow {
    verdict: String,
    at: Option<String>,
    snapshot: SnapshotId,
    job: JobId,
    agent: String,
    duration_ms: u64,
    recovered: Option<RecoveredRow>,
    databases: u32,
    tables: u64,
    rows: u64,
    findings: u64,
    /// Checks that could not be run.
    not_run: Vec<String>,
    #[serde(skip)]
    at_millis: u64,
}

impl From<v1::Recovered> for RecoveredRow {
    fn from(wire: v1::Recovered) -> Self {
        let v1::Recovered {
            lsn,
            timeline,
            last_commit_at,
            reason,
        } = wire;
        Self {
            lsn,
            timeline,
            last_commit_at: time(last_commit_at),
            reason: text(reason),
        }
    }
}

impl From<v1::TestReport> for TestReportRow {
    fn from(wire: v1::TestReport) -> Self {
        let v1::TestReport {
            verdict,
            recovered,
            checks,
            databases,
            tables,
            rows,
            largest,
            findings,
            bytes,
            restore_ms,
            recover_ms,
            check_ms,
            server_version,
            notes,
        } = wire;
        let check = |v1::TestCheck { name, state, detail }| CheckRow { name, state, detail };
        let table = |v1::TableRows {
                         database,
                         table,
                         rows,
                     }| TableRow {
            database,
            table,
            rows,
        };
        Self {
            verdict,
            recovered: recovered.map(RecoveredRow::from),
            checks: checks.into_iter().map(check).collect(),
            databases,
            tables,
            rows,
            largest: largest.into_iter().map(table).collect(),
            findings,
            bytes,
            restore_ms,
            recover_ms,
            check_ms,
            server_version,
            notes,
        }
    }
}

impl TryFrom<v1::TestSummary> for TestSummaryRow {
    type Error = Fault;
    fn try_from(wire: v1::TestSummary) -> Result<Self> {
        let v1::TestSummary {
            job,
            snapshot,
            agent,
            verdict,
            at,
            duration_ms,
            recovered,
            databases,
            tables,
            rows,
            findings,
            not_run,
        } = wire;
        Ok(Self {
            verdict,
            at: time(at),
            snapshot: id(&snapshot)?,
            job: id(&job)?,
            agent,
            duration_ms,
            recovered: recovered.map(RecoveredRow::from),
            databases,
            tables,
            rows,
            findings,
            not_run,
            at_millis: at,
        })
    }
}

impl TestSummaryRow {
    /// For a cell of a table.
    pub(crate) fn short(&self) -> String {
        let mut cell = verdict_text(&self.verdict, self.findings);
        if !self.not_run.is_empty() {
            let _ = write!(cell, ", not all run");
        }
        format!("{cell} {}", short_time(self.at_millis))
    }
}

fn verdict_text(verdict: &str, findings: u64) -> String {
    match verdict {
        "findings" => format!("{findings} findings"),
        verdict => verdict.to_owned(),
    }
}

impl TestReportRow {
    /// For a cell of a table; none where all is well.
    pub(crate) fn trouble(&self) -> Option<String> {
        (self.verdict != "ok").then(|| verdict_text(&self.verdict, self.findings))
    }

    /// Checks that could not be run, or not to their end, with the reasons.
    pub(crate) fn not_run(&self) -> impl Iterator<Item = (&str, &str)> {
        let not_run = self.checks.iter().filter(|check| check.state == "not-run");
        not_run.map(|check| (check.name.as_str(), check.detail.as_str()))
    }

    /// What was not as isolated, or as thorough, as it could be.
    pub(crate) fn notes(&self) -> &[String] {
        &self.notes
    }

    /// For people.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        let seconds = |millis: u64| format!("{}.{} s", millis / 1000, millis % 1000 / 100);
        let _ = writeln!(
            text,
            "restored {} in {}, recovered in {}, looked through in {}; PostgreSQL {}",
            bytes(self.bytes),
            seconds(self.restore_ms),
            seconds(self.recover_ms),
            seconds(self.check_ms),
            self.server_version
        );
        if let Some(RecoveredRow {
            lsn,
            timeline,
            last_commit_at,
            reason,
        }) = &self.recovered
        {
            let reason = reason
                .as_ref()
                .map_or_else(String::new, |why| format!(" ({why})"));
            let at = last_commit_at
                .as_ref()
                .map_or_else(String::new, |at| format!(", last transaction of {at}"));
            let _ = writeln!(text, "recovered to {lsn} on timeline {timeline}{reason}{at}");
            let _ = writeln!(
                text,
                "{} databases, {} tables of users, {} rows",
                self.databases, self.tables, self.rows
            );
        }
        for CheckRow { name, state, detail } in &self.checks {
            let _ = writeln!(text, "{name:<12} {state:<9} {detail}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(verdict: &str, not_run: &[&str]) -> TestSummaryRow {
        let wire = v1::TestSummary {
            job: vec![1; 16].into(),
            snapshot: vec![2; 16].into(),
            verdict: verdict.into(),
            findings: 3,
            not_run: not_run.iter().map(|name| (*name).into()).collect(),
            ..v1::TestSummary::default()
        };
        TestSummaryRow::try_from(wire).unwrap()
    }

    #[test]
    fn a_cell_never_hides_what_was_not_run() {
        assert!(summary("ok", &[]).short().starts_with("ok "));
        assert!(
            summary("ok", &["amcheck"])
                .short()
                .starts_with("ok, not all run ")
        );
        assert!(summary("findings", &[]).short().starts_with("3 findings "));
        assert!(summary("failed", &[]).short().starts_with("failed "));
    }
}
