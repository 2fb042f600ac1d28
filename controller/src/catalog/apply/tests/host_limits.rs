//! Limits of a source and of a job's outcome.

use super::*;
use crate::catalog::model::{LimitsInForce, Source};
use holdfast_core::IoClass;

fn put(limits: HostLimits) -> Command {
    Command::PutSource {
        source: source(),
        document: "{}".into(),
        files: Some(FilesSpec {
            roots: vec!["/srv".into()],
            ..FilesSpec::default()
        }),
        postgres: None,
        limits,
    }
}

#[test]
fn limits_are_kept_with_their_source_and_bad_ones_refused() {
    let mut world = World::new();
    let slow = HostLimits {
        bandwidth: Some(1 << 20),
        io: Some(IoClass::BestEffort(7)),
        ..HostLimits::default()
    };
    assert_eq!(
        world.ok(put(slow)),
        Reply::Put {
            created: false,
            changed: true
        }
    );
    assert_eq!(
        world.ok(put(slow)),
        Reply::Put {
            created: false,
            changed: false
        }
    );
    assert_eq!(world.kv.source(&source()).unwrap().unwrap().limits, slow);
    let none = HostLimits {
        cpu_weight: Some(0),
        ..slow
    };
    world.refused(ErrorKind::Invalid, put(none));
    assert_eq!(world.kv.source(&source()).unwrap().unwrap().limits, slow);
}

#[test]
fn sources_of_an_earlier_version_have_no_limits() {
    let mut world = World::new();
    world.ok(put(HostLimits::default()));
    let plain = world.kv.source(&source()).unwrap().unwrap();
    let bytes = crate::catalog::kv::encode(&plain).unwrap();
    // Without limits the record is what earlier versions wrote.
    assert!(!bytes.windows(6).any(|window| window == b"limits"));
    assert_eq!(crate::catalog::kv::decode::<Source>(&bytes).unwrap(), plain);
}

#[test]
fn what_an_agent_said_of_limits_stays_with_the_job() {
    let mut world = World::new();
    let job = JobId([7; 16]);
    world.ok(Command::CreateJob {
        job,
        work: JobWork::Backup,
        source: source(),
        agent: name("web1"),
    });
    world.ok(Command::StartJob { job, attempt: 1 });
    let limits = LimitsInForce {
        asked: HostLimits::default(),
        bandwidth: 5,
        read_rate: 0,
        threads: 3,
        nice: 10,
        cpu_weight: 11,
        io_class: "idle".into(),
        io_priority: 0,
        warnings: vec!["refused".into()],
    };
    let Command::FinishJob { outcome, .. } = finish(job, JobState::Failed) else {
        unreachable!()
    };
    let outcome = JobOutcome {
        limits: Some(limits.clone()),
        ..outcome
    };
    world.ok(Command::FinishJob {
        job,
        attempt: 1,
        outcome,
    });
    let ended = world.kv.job(job).unwrap().unwrap();
    assert_eq!(ended.outcome.unwrap().limits, Some(limits));
}
