//! What is remembered of test restores.

use super::*;
use crate::catalog::model::{
    Job, PostgresSpec, RecoverySpec, Snapshot, Source, TestCheck, TestReport, TestRestoreSpec, TestSummary,
    Verdict,
};
use serde::Serialize;

fn spec(snapshot: SnapshotId) -> TestRestoreSpec {
    TestRestoreSpec {
        snapshot,
        recovery: Some(RecoverySpec {
            target: "latest".into(),
            value: String::new(),
            timeline: "latest".into(),
        }),
    }
}

fn test_restore(job: u8, spec: TestRestoreSpec) -> Command {
    Command::CreateJob {
        job: JobId([job; 16]),
        work: JobWork::TestRestore(spec),
        source: source(),
        agent: name("web1"),
    }
}

fn report(verdict: Verdict, findings: u64) -> TestReport {
    let check = |name: &str, state: &str| TestCheck {
        name: name.into(),
        state: state.into(),
        detail: String::new(),
    };
    TestReport {
        verdict,
        recovered: None,
        checks: vec![check("rows", "ok"), check("amcheck", TestCheck::NOT_RUN)],
        databases: 3,
        tables: 5,
        rows: 7,
        largest: Vec::new(),
        findings,
        bytes: 9,
        restore_ms: 10,
        recover_ms: 20,
        check_ms: 30,
        server_version: "15".into(),
        notes: Vec::new(),
    }
}

/// A world with a visible snapshot of a PostgreSQL source.
fn world() -> (World, SnapshotId) {
    let mut world = World::new();
    let snapshot = world.commit(1);
    world.ok(Command::PutSource {
        source: source(),
        document: "{}".into(),
        files: None,
        postgres: Some(PostgresSpec {
            cluster: name("main"),
            fast_checkpoint: true,
            members: Vec::new(),
        }),
        limits: HostLimits::default(),
    });
    (world, snapshot)
}

/// Runs a job to that end.
fn run(world: &mut World, job: u8, snapshot: SnapshotId, state: JobState, test: Option<TestReport>) -> Job {
    world.ok(test_restore(job, spec(snapshot)));
    let id = JobId([job; 16]);
    world.ok(Command::StartJob { job: id, attempt: 1 });
    let outcome = JobOutcome {
        state,
        error_kind: None,
        error: String::new(),
        snapshot: Some(snapshot),
        stats: RunStats::default(),
        limits: None,
        findings: Vec::new(),
        test: test.map(Box::new),
    };
    world.ok(Command::FinishJob {
        job: id,
        attempt: 1,
        outcome,
    });
    world.kv.job(id).unwrap().unwrap()
}

fn remembered(world: &World, snapshot: SnapshotId) -> (Option<TestSummary>, Option<TestSummary>) {
    let snapshot = world.kv.snapshot(snapshot).unwrap().unwrap();
    let source = world.kv.source(&source()).unwrap().unwrap();
    (snapshot.last_test, source.last_test)
}

#[test]
fn a_verdict_is_remembered_by_snapshot_and_source() {
    let (mut world, snapshot) = world();
    assert_eq!(remembered(&world, snapshot), (None, None));
    let found = report(Verdict::Findings, 2);
    let job = run(&mut world, 2, snapshot, JobState::Succeeded, Some(found.clone()));
    assert_eq!(job.outcome.unwrap().test.as_deref(), Some(&found));
    let (of_snapshot, of_source) = remembered(&world, snapshot);
    let summary = of_snapshot.unwrap();
    assert_eq!(Some(&summary), of_source.as_ref());
    assert_eq!((summary.verdict, summary.findings), (Verdict::Findings, 2));
    assert_eq!((summary.job, summary.duration_ms), (JobId([2; 16]), 60));
    assert_eq!(summary.not_run, ["amcheck"]);

    // One that came to no verdict says nothing of the snapshot.
    run(&mut world, 3, snapshot, JobState::Failed, None);
    assert_eq!(remembered(&world, snapshot).0, Some(summary));
    run(
        &mut world,
        4,
        snapshot,
        JobState::Failed,
        Some(report(Verdict::Failed, 1)),
    );
    let (of_snapshot, of_source) = remembered(&world, snapshot);
    assert_eq!(of_snapshot.unwrap().verdict, Verdict::Failed);
    assert_eq!(of_source.unwrap().job, JobId([4; 16]));
}

#[test]
fn a_lost_one_is_over_and_not_begun_again() {
    let (mut world, snapshot) = world();
    world.ok(test_restore(2, spec(snapshot)));
    let job = JobId([2; 16]);
    world.ok(Command::StartJob { job, attempt: 1 });
    world.ok(Command::LoseJob {
        job,
        attempt: 1,
        reason: "gone".into(),
    });
    assert_eq!(world.kv.job(job).unwrap().unwrap().state, JobState::Interrupted);
    assert_eq!(remembered(&world, snapshot), (None, None));
}

#[test]
fn what_cannot_be_tried_is_refused() {
    let (mut world, snapshot) = world();
    world.refused(ErrorKind::NotFound, test_restore(2, spec(SnapshotId([9; 16]))));
    let mut long = spec(snapshot);
    long.recovery.as_mut().unwrap().value = "x".repeat(1000);
    world.refused(ErrorKind::TooLarge, test_restore(2, long));
    let mut files = World::new();
    let snapshot = files.commit(1);
    files.refused(ErrorKind::Invalid, test_restore(2, spec(snapshot)));
}

#[test]
fn records_of_earlier_versions_have_no_test() {
    /// The last fields of a record before there were test restores.
    #[derive(Serialize)]
    struct Earlier<T: Serialize> {
        #[serde(flatten)]
        record: T,
    }
    let (world, snapshot) = world();
    let kept = world.kv.snapshot(snapshot).unwrap().unwrap();
    let bytes = crate::catalog::kv::encode(&Earlier { record: kept.clone() }).unwrap();
    assert!(!bytes.windows(9).any(|window| window == b"last_test"));
    assert_eq!(crate::catalog::kv::decode::<Snapshot>(&bytes).unwrap(), kept);
    let kept = world.kv.source(&source()).unwrap().unwrap();
    let bytes = crate::catalog::kv::encode(&kept).unwrap();
    assert!(!bytes.windows(9).any(|window| window == b"last_test"));
    assert_eq!(crate::catalog::kv::decode::<Source>(&bytes).unwrap(), kept);
}
