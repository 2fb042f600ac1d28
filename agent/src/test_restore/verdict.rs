//! What a test restore comes to, and which failures say something of the snapshot.

use super::findings::Findings;
use holdfast_core::ErrorKind;
use holdfast_proto::v1::{JobResult, TestReport};
use holdfast_restore::{RestoreError, postgres::PostgresError};

/// Most of a failed test's error that is kept, in characters: how it begins, and how it ends, which is where a server's log says why.
const ERROR_HEAD: usize = 200;
const ERROR_TAIL: usize = 700;

/// The server recovered and was looked at.
pub fn looked_at(report: TestReport, findings: Findings) -> JobResult {
    let verdict = if findings.count == 0 { "ok" } else { "findings" };
    ended(report, findings, verdict, String::new())
}

/// The cluster could not be brought back, or its server did not recover: the snapshot failed its test.
pub fn failed(report: TestReport, mut findings: Findings, why: impl ToString) -> JobResult {
    findings.count += 1;
    ended(report, findings, "failed", shortened(&why.to_string()))
}

fn shortened(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    if chars.len() <= ERROR_HEAD + ERROR_TAIL {
        return text.to_owned();
    }
    let head: String = chars[..ERROR_HEAD].iter().collect();
    let tail: String = chars[chars.len() - ERROR_TAIL..].iter().collect();
    format!("{head} … {tail}")
}

fn ended(report: TestReport, findings: Findings, verdict: &str, error: String) -> JobResult {
    let is_failed = verdict == "failed";
    JobResult {
        state: if is_failed { "failed" } else { "succeeded" }.into(),
        error_kind: if is_failed {
            ErrorKind::Corrupt.as_str().into()
        } else {
            String::new()
        },
        error,
        test: Some(TestReport {
            verdict: verdict.into(),
            findings: findings.count,
            checks: findings.checks,
            ..report
        }),
        findings: findings.listed,
        ..JobResult::default()
    }
}

/// Whether a failure is the snapshot's own, or the journal's. All others are of this machine, of the way to the controllers, or of
/// what was asked for: nothing is said of the snapshot then.
pub fn is_of_snapshot(error: &RestoreError) -> bool {
    match error {
        RestoreError::Missing { .. } | RestoreError::Damaged { .. } | RestoreError::BadTree(_) => true,
        RestoreError::At { source, .. } => is_of_snapshot(source),
        RestoreError::Postgres(error) => matches!(
            error,
            PostgresError::Bad(_)
                | PostgresError::File { .. }
                | PostgresError::WalMissing { .. }
                | PostgresError::NotRecovered { .. }
        ),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_failures_of_the_snapshot_are_its_verdict() {
        let gap = PostgresError::WalMissing {
            missing: "000000010000000000000003".into(),
            reaches: None,
        };
        assert!(is_of_snapshot(&gap.into()));
        assert!(is_of_snapshot(&RestoreError::BadTree("x")));
        assert!(!is_of_snapshot(&PostgresError::NoPrograms { major: 15 }.into()));
        assert!(!is_of_snapshot(&RestoreError::Interrupted));
        let full = RestoreError::Io {
            doing: "write",
            what: "x".into(),
            source: std::io::ErrorKind::StorageFull.into(),
        };
        assert!(!is_of_snapshot(&full));
    }

    #[test]
    fn long_errors_keep_their_end() {
        assert_eq!(shortened("short"), "short");
        let long = format!("{}the end", "ü".repeat(3000));
        let kept = shortened(&long);
        assert!(kept.ends_with("the end") && kept.chars().count() < 1000, "{kept}");
    }

    #[test]
    fn a_verdict_follows_from_what_was_found() {
        let verdict = |result: &JobResult| result.test.as_ref().unwrap().verdict.clone();
        let fine = looked_at(TestReport::default(), Findings::default());
        assert_eq!(
            (fine.state.as_str(), verdict(&fine).as_str()),
            ("succeeded", "ok")
        );
        let mut findings = Findings::default();
        findings.add("index", "why", "fix");
        let found = looked_at(TestReport::default(), findings);
        assert_eq!(
            (found.state.as_str(), verdict(&found).as_str()),
            ("succeeded", "findings")
        );
        assert_eq!(found.findings.len(), 1);
        let failed = failed(TestReport::default(), Findings::default(), "it did not start");
        assert_eq!(
            (failed.state.as_str(), verdict(&failed).as_str()),
            ("failed", "failed")
        );
        assert_eq!(failed.test.unwrap().findings, 1);
    }
}
