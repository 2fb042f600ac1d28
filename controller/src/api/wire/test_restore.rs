//! Test restores on the wire. What agents say is cut to bounds: it is kept in the catalog.

use super::{id, invalid, text_max};
use crate::{
    catalog::model::{
        Recovered, RecoverySpec, TableRows, TestCheck, TestReport, TestRestoreSpec, TestSummary, Verdict,
    },
    error::Result,
};
use holdfast_proto::v1;

/// Most checks of one report: more than there are.
const CHECKS_MAX: usize = 16;
/// Most tables whose rows are listed.
const TABLES_MAX: usize = 16;
/// Most notes.
const NOTES_MAX: usize = 8;
/// Longest text of a check or note, in characters.
const TEXT_MAX: usize = 400;
/// Longest name of a table with its schema, or of anything else with a name, in characters.
const NAME_MAX: usize = 132;

/// What to try, out of a request.
///
/// # Errors
/// `Invalid` when the snapshot's id is malformed.
pub fn test_restore_spec(snapshot: &[u8], recovery: Option<v1::RecoverySpec>) -> Result<TestRestoreSpec> {
    Ok(TestRestoreSpec {
        snapshot: id(snapshot)?,
        recovery: recovery.map(recovery_spec).transpose()?,
    })
}

fn recovery_spec(wire: v1::RecoverySpec) -> Result<RecoverySpec> {
    let v1::RecoverySpec {
        target,
        value,
        timeline,
    } = wire;
    if target.is_empty() {
        return Err(invalid("the request does not say where the recovery ends"));
    }
    Ok(RecoverySpec {
        target,
        value,
        timeline,
    })
}

/// What to try, for the wire.
#[must_use]
pub fn wire_test_restore(spec: &TestRestoreSpec) -> v1::TestRestoreWork {
    let TestRestoreSpec { snapshot, recovery } = spec.clone();
    let recovery = recovery.map(|to| {
        let RecoverySpec {
            target,
            value,
            timeline,
        } = to;
        v1::RecoverySpec {
            target,
            value,
            timeline,
        }
    });
    v1::TestRestoreWork {
        snapshot: snapshot.as_bytes().to_vec().into(),
        recovery,
    }
}

/// A report as an agent says it; none without a verdict that is known.
#[must_use]
pub fn test_report(wire: v1::TestReport) -> Option<TestReport> {
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
    let short = |text: String| text_max(text, TEXT_MAX);
    let named = |text: String| text_max(text, NAME_MAX);
    Some(TestReport {
        verdict: Verdict::from_wire(&verdict)?,
        recovered: recovered.map(|found| Recovered {
            lsn: named(found.lsn),
            timeline: found.timeline,
            last_commit_at: found.last_commit_at,
            reason: short(found.reason),
        }),
        checks: checks
            .into_iter()
            .take(CHECKS_MAX)
            .map(|check| TestCheck {
                name: named(check.name),
                state: named(check.state),
                detail: short(check.detail),
            })
            .collect(),
        databases,
        tables,
        rows,
        largest: largest
            .into_iter()
            .take(TABLES_MAX)
            .map(|found| TableRows {
                database: named(found.database),
                table: named(found.table),
                rows: found.rows,
            })
            .collect(),
        findings,
        bytes,
        restore_ms,
        recover_ms,
        check_ms,
        server_version: named(server_version),
        notes: notes.into_iter().take(NOTES_MAX).map(short).collect(),
    })
}

/// A report for the wire.
#[must_use]
pub fn wire_test_report(report: &TestReport) -> v1::TestReport {
    let TestReport {
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
    } = report.clone();
    v1::TestReport {
        verdict: verdict.as_str().into(),
        recovered: recovered.map(wire_recovered),
        checks: checks
            .into_iter()
            .map(|TestCheck { name, state, detail }| v1::TestCheck { name, state, detail })
            .collect(),
        databases,
        tables,
        rows,
        largest: largest
            .into_iter()
            .map(
                |TableRows {
                     database,
                     table,
                     rows,
                 }| v1::TableRows {
                    database,
                    table,
                    rows,
                },
            )
            .collect(),
        findings,
        bytes,
        restore_ms,
        recover_ms,
        check_ms,
        server_version,
        notes,
    }
}

/// What is remembered of a test restore, for the wire.
#[must_use]
pub fn wire_test_summary(summary: &TestSummary) -> v1::TestSummary {
    let TestSummary {
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
    } = summary.clone();
    v1::TestSummary {
        job: job.as_bytes().to_vec().into(),
        snapshot: snapshot.as_bytes().to_vec().into(),
        agent: agent.to_string(),
        verdict: verdict.as_str().into(),
        at,
        duration_ms,
        recovered: recovered.map(wire_recovered),
        databases,
        tables,
        rows,
        findings,
        not_run,
    }
}

fn wire_recovered(recovered: Recovered) -> v1::Recovered {
    let Recovered {
        lsn,
        timeline,
        last_commit_at,
        reason,
    } = recovered;
    v1::Recovered {
        lsn,
        timeline,
        last_commit_at,
        reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_cut_to_bounds_and_come_back() {
        let long = "x".repeat(10_000);
        let check = v1::TestCheck {
            name: long.clone(),
            state: "ok".into(),
            detail: long.clone(),
        };
        let wire = v1::TestReport {
            verdict: "findings".into(),
            checks: vec![check; 100],
            notes: vec![long; 100],
            ..v1::TestReport::default()
        };
        let report = test_report(wire).unwrap();
        assert_eq!((report.checks.len(), report.notes.len()), (CHECKS_MAX, NOTES_MAX));
        assert_eq!(report.checks[0].detail.len(), TEXT_MAX);
        assert_eq!(test_report(wire_test_report(&report)), Some(report));
        let unknown = v1::TestReport {
            verdict: "perfect".into(),
            ..v1::TestReport::default()
        };
        assert_eq!(test_report(unknown), None);
    }
}
