//! PostgreSQL clusters behind sources: backed up by one job at a time, and never two in one source.

use super::*;
use crate::catalog::model::PostgresSpec;

const CLUSTER: u64 = 7_301_234_567_890_123_456;

fn put(text: &str) -> Command {
    Command::PutSource {
        source: text.parse().unwrap(),
        document: "{}".into(),
        files: None,
        postgres: Some(PostgresSpec {
            cluster: name("main"),
            fast_checkpoint: true,
            members: Vec::new(),
        }),
        limits: HostLimits::default(),
    }
}

fn create(n: u8, text: &str) -> Command {
    Command::CreateJob {
        job: JobId([n; 16]),
        work: JobWork::Backup,
        source: text.parse().unwrap(),
        agent: name("web1"),
    }
}

fn open(n: u8, text: &str, system_id: u64) -> Command {
    Command::OpenSession {
        session: SessionId([n; 16]),
        snapshot: SnapshotId([n; 16]),
        source: text.parse().unwrap(),
        agent: name("web1"),
        incarnation: 1,
        job: JobId([n; 16]),
        attempt: 1,
        system_id: Some(system_id),
    }
}

fn start(n: u8) -> Command {
    Command::StartJob {
        job: JobId([n; 16]),
        attempt: 1,
    }
}

/// Both sources are there, and the first has a backup of the cluster.
fn world() -> World {
    let mut world = World::new();
    world.ok(put("web1/one"));
    world.ok(put("web1/two"));
    back_up(&mut world, 1, "web1/one");
    world
}

fn back_up(world: &mut World, n: u8, text: &str) {
    world.ok(create(n, text));
    world.ok(start(n));
    let Reply::Session { session, .. } = world.ok(open(n, text, CLUSTER)) else {
        panic!("no session");
    };
    world.ok(commit(session.id, session.fence, world.index));
    world.ok(finish(JobId([n; 16]), JobState::Succeeded));
}

#[test]
fn a_cluster_is_backed_up_by_one_job_at_a_time() {
    let mut world = world();
    world.ok(create(2, "web1/one"));
    world.ok(start(2));
    world.ok(open(2, "web1/one", CLUSTER));
    // Whose cluster is not known yet is found out when its agent has asked its server.
    world.ok(create(3, "web1/two"));
    world.ok(start(3));
    world.refused(ErrorKind::Conflict, open(3, "web1/two", CLUSTER));
    // Another cluster's is nobody's business.
    world.ok(open(3, "web1/two", CLUSTER + 1));
    world.ok(finish(JobId([3; 16]), JobState::Failed));
    world.ok(finish(JobId([2; 16]), JobState::Failed));

    back_up(&mut world, 4, "web1/two");
    world.ok(create(5, "web1/two"));
    // One that waits for its agent does not keep others waiting.
    world.ok(create(6, "web1/one"));
    world.ok(start(6));
    world.ok(open(6, "web1/one", CLUSTER));
    world.ok(start(5));
    world.refused(ErrorKind::Conflict, open(5, "web1/two", CLUSTER));
    world.ok(finish(JobId([5; 16]), JobState::Failed));
    // Known by now: refused at once, with the job that runs.
    match world.system(create(7, "web1/two")) {
        Reply::Refused(refusal) => {
            assert_eq!(refusal.kind, ErrorKind::Conflict);
            assert!(refusal.text.contains(&JobId([6; 16]).to_string()), "{refusal}");
        }
        other => panic!("not refused: {other:?}"),
    }
    world.ok(finish(JobId([6; 16]), JobState::Failed));
    world.ok(create(8, "web1/two"));
}

#[test]
fn a_source_with_snapshots_stays_that_of_its_cluster() {
    let mut world = world();
    world.ok(create(2, "web1/one"));
    world.ok(start(2));
    world.refused(ErrorKind::Invalid, open(2, "web1/one", CLUSTER + 1));
    world.ok(open(2, "web1/one", CLUSTER));
    // A first try that made no snapshot does not bind.
    world.ok(create(3, "web1/two"));
    world.ok(start(3));
    world.ok(open(3, "web1/two", CLUSTER + 1));
    world.ok(finish(JobId([3; 16]), JobState::Failed));
    world.ok(finish(JobId([2; 16]), JobState::Failed));
    back_up(&mut world, 4, "web1/two");
}
