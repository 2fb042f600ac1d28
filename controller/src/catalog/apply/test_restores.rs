//! Test restores: what may be tried, and what is remembered of them.

use super::{Context, Outcome, refuse};
use crate::catalog::{
    keys,
    kv::Read,
    model::{Job, JobOutcome, JobWork, SnapshotState, TestRestoreSpec, TestSummary},
    query::Queries,
};
use holdfast_core::{ErrorKind, SourceRef};

/// Longest text in what a recovery aims at, in bytes: names of restore points have 63.
const TARGET_TEXT_MAX: usize = 128;

/// Refuses what cannot be tried.
pub(super) fn check<R: Read>(
    cx: &mut Context<'_, '_, R>,
    source_name: &SourceRef,
    spec: &TestRestoreSpec,
) -> Outcome<()> {
    let snapshot = cx.txn.snapshot(spec.snapshot)?;
    let is_visible = snapshot
        .as_ref()
        .is_some_and(|s| s.state == SnapshotState::Visible && s.source == *source_name);
    if !is_visible {
        return refuse(
            ErrorKind::NotFound,
            format!("there is no snapshot {} of {source_name} to try", spec.snapshot),
        );
    }
    let is_postgres = cx
        .txn
        .source(source_name)?
        .is_none_or(|source| source.postgres.is_some());
    if !is_postgres {
        return refuse(
            ErrorKind::Invalid,
            format!(
                "source {source_name} is of files; only PostgreSQL clusters are tried in a scratch server"
            ),
        );
    }
    let texts = spec
        .recovery
        .iter()
        .flat_map(|to| [&to.target, &to.value, &to.timeline]);
    if texts.into_iter().any(|text| text.len() > TARGET_TEXT_MAX) {
        return refuse(
            ErrorKind::TooLarge,
            format!("what a recovery aims at has at most {TARGET_TEXT_MAX} bytes"),
        );
    }
    Ok(())
}

/// Notes a verdict with the snapshot and its source, as far as they are still there.
pub(super) fn remember<R: Read>(cx: &mut Context<'_, '_, R>, job: &Job, outcome: &JobOutcome) -> Outcome<()> {
    let (JobWork::TestRestore(spec), Some(report)) = (&job.work, &outcome.test) else {
        return Ok(());
    };
    let summary = TestSummary::of(report, job.id, spec.snapshot, &job.agent, cx.now);
    if let Some(mut snapshot) = cx.txn.snapshot(spec.snapshot)? {
        snapshot.last_test = Some(summary.clone());
        cx.txn.put(keys::snapshot(snapshot.id), &snapshot)?;
    }
    if let Some(mut source) = cx.txn.source(&job.source)? {
        source.last_test = Some(summary);
        cx.txn.put(keys::source(&job.source), &source)?;
    }
    Ok(())
}
