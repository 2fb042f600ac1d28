//! Sources of PostgreSQL beside those of files.

use super::*;
use crate::catalog::model::{PostgresSpec, Source};
use serde::Serialize;

fn files() -> FilesSpec {
    FilesSpec {
        roots: vec!["/srv".into()],
        ..FilesSpec::default()
    }
}

fn postgres(fast_checkpoint: bool) -> PostgresSpec {
    PostgresSpec {
        cluster: name("main"),
        fast_checkpoint,
        members: Vec::new(),
    }
}

fn put(files: Option<FilesSpec>, postgres: Option<PostgresSpec>) -> Command {
    Command::PutSource {
        source: source(),
        document: "{}".into(),
        files,
        postgres,
        limits: HostLimits::default(),
    }
}

fn changed(changed: bool) -> Reply {
    Reply::Put {
        created: false,
        changed,
    }
}

#[test]
fn a_source_is_of_files_or_of_postgresql() {
    let mut world = World::new();
    assert_eq!(world.ok(put(None, Some(postgres(true)))), changed(true));
    assert_eq!(world.ok(put(None, Some(postgres(true)))), changed(false));
    assert_eq!(world.ok(put(None, Some(postgres(false)))), changed(true));
    let kept = world.kv.source(&source()).unwrap().unwrap();
    assert_eq!((kept.files, kept.postgres), (None, Some(postgres(false))));
    for bad in [
        put(None, None),
        put(Some(files()), Some(postgres(false))),
        put(Some(FilesSpec::default()), None),
    ] {
        world.refused(ErrorKind::Invalid, bad);
    }
    assert_eq!(world.ok(put(Some(files()), None)), changed(true));
    let kept = world.kv.source(&source()).unwrap().unwrap();
    assert_eq!((kept.files, kept.postgres), (Some(files()), None));
}

/// A source and its command as versions wrote them that knew no other than files.
#[derive(Serialize)]
struct Earlier {
    source: SourceRef,
    document: String,
    files: FilesSpec,
    created_at: u64,
    changed_at: u64,
    next_sequence: u64,
    latest: Option<SnapshotId>,
    latest_at: u64,
    snapshots: u64,
    active_job: Option<JobId>,
    open_session: Option<SessionId>,
}

#[test]
fn sources_of_an_earlier_version_are_of_files() {
    let mut world = World::new();
    world.ok(put(Some(files()), None));
    let now = world.kv.source(&source()).unwrap().unwrap();
    let Source {
        source,
        document,
        created_at,
        changed_at,
        next_sequence,
        latest,
        latest_at,
        snapshots,
        active_job,
        open_session,
        ..
    } = now.clone();
    let earlier = Earlier {
        source,
        document,
        files: files(),
        created_at,
        changed_at,
        next_sequence,
        latest,
        latest_at,
        snapshots,
        active_job,
        open_session,
    };
    let bytes = crate::catalog::kv::encode(&earlier).unwrap();
    assert_eq!(crate::catalog::kv::decode::<Source>(&bytes).unwrap(), now);
    // And files sources are written as before, so that equal entries go on making equal catalogs.
    assert_eq!(crate::catalog::kv::encode(&now).unwrap(), bytes);
}
