//! Restores of PostgreSQL backups: what lies where, in which order, and over what.

use crate::{
    RestoreError, RestoreOptions, Snapshot,
    postgres::{Backup, Begin, PostgresError, PostgresReport, Request, restore},
    testing::*,
};
use holdfast_core::{ErrorKind, HasKind as _};
use holdfast_postgres::{CONTROL_FILE_LEN, ControlFile};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt as _, symlink},
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool},
};

/// What a server wrote, without the zeros behind it.
const CONTROL: &[u8] = include_bytes!("../../../postgres/tests/golden/pg_control-15.bin");
const SEGMENT: u64 = 4 << 20;

/// A snapshot's trees by path.
type Trees = Vec<(&'static str, Item)>;

fn control() -> Vec<u8> {
    let mut control = CONTROL.to_vec();
    control.resize(CONTROL_FILE_LEN, 0);
    control
}

fn decoded() -> ControlFile {
    ControlFile::decode(&control()).unwrap()
}

fn label() -> String {
    let checkpoint = decoded().checkpoint;
    format!(
        "START WAL LOCATION: {} (file {})\nCHECKPOINT LOCATION: {}\nBACKUP METHOD: streamed\nBACKUP FROM: primary\n\
         START TIME: 2026-11-27 14:00:00 UTC\nLABEL: holdfast\nSTART TIMELINE: 1\n",
        checkpoint.redo,
        segment_name(),
        checkpoint.lsn
    )
}

fn manifest(location: &Path) -> Value {
    let control = decoded();
    let start = control.checkpoint.redo.0;
    json!({
        "holdfast_postgres_backup": 1,
        "system_id": control.system_id.to_string(),
        "version": 15,
        "server_version": "15.1",
        "wal_segment_size": SEGMENT,
        "data_checksums": true,
        "timeline": 1,
        "start_lsn": format!("0/{start:X}"),
        "stop_lsn": format!("0/{:X}", start + 16),
        "started_at_ms": 1,
        "tablespaces": [{"oid": 16384, "name": "x", "location": location}],
        "damaged": [],
        "damaged_count": 0,
    })
}

fn segment_name() -> String {
    let number = decoded().checkpoint.redo.0 / SEGMENT;
    let per_four_gib = (1_u64 << 32) / SEGMENT;
    format!(
        "00000001{:08X}{:08X}",
        number / per_four_gib,
        number % per_four_gib
    )
}

/// The trees of a backup whose tablespace lay at `location`.
fn trees(manifest: &Value, location: &Path, content: &str) -> Trees {
    let private = |item: Item| match item {
        Item::Dir(_, items) => Item::Dir(0o700, items),
        other => other,
    };
    let data = private(dir([
        ("PG_VERSION", file("15\n")),
        (
            "base",
            private(dir([("5", private(dir([("1259", file(content))])))])),
        ),
        ("global", private(dir([("1262", file("databases"))]))),
        ("pg_wal", private(dir([("archive_status", private(dir([])))]))),
        (
            "pg_tblspc",
            private(dir([
                ("16384", link(location.to_str().unwrap())),
                ("99", link("/etc")),
            ])),
        ),
        (
            "postgresql.auto.conf",
            file("# By ALTER SYSTEM\narchive_mode = 'on'\nwork_mem = '8MB'\n"),
        ),
        ("postgresql.conf", file("port = 5432\n")),
    ]));
    let wal = Item::Dir(
        0o755,
        BTreeMap::from([(segment_name().into_bytes(), file(noise(1, SEGMENT as usize)))]),
    );
    vec![
        ("/postgresql/data", data),
        (
            "/postgresql/tablespaces/16384",
            private(dir([(
                "PG_15_202209061",
                private(dir([("5", private(dir([("16390", file("rows"))])))])),
            )])),
        ),
        ("/postgresql/wal", wal),
        (
            "/postgresql/backup",
            dir([
                ("backup.json", file(manifest.to_string())),
                ("backup_label", file(label())),
                ("tablespace_map", file(format!("16384 {}\n", location.display()))),
                ("pg_control", file(control())),
            ]),
        ),
    ]
}

struct World {
    _dir: tempfile::TempDir,
    dir: PathBuf,
    own: PathBuf,
    snapshot: Snapshot,
    backup: Backup,
}

impl World {
    async fn new() -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let dir = temporary.path().canonicalize().unwrap();
        let own = dir.join("own");
        let manifest = manifest(&own);
        let (snapshot, _) = snapshot(&mut Repo::new(), &trees(&manifest, &own, "pages")).await;
        let backup = Backup::find(&snapshot).await.unwrap().unwrap();
        Self {
            _dir: temporary,
            dir,
            own,
            snapshot,
            backup,
        }
    }

    fn to(&self) -> PathBuf {
        self.dir.join("pg")
    }

    fn request(&self, mapped: Option<&str>, in_place: bool) -> Request {
        let mapping = mapped.map(|name| format!("x={}", self.dir.join(name).display()).into());
        Request {
            dir: self.to(),
            tablespaces: mapping.into_iter().collect(),
            in_place,
            recover_to: None,
            guards_tablespaces: true,
            accept_loss: false,
            checks_space: true,
        }
    }

    async fn run(&self, mapped: Option<&str>, in_place: bool) -> crate::Result<PostgresReport> {
        let request = self.request(mapped, in_place);
        restore(&self.snapshot, &self.backup, request, RestoreOptions::default()).await
    }

    async fn refused(&self, mapped: Option<&str>, in_place: bool) -> PostgresError {
        match self.run(mapped, in_place).await {
            Err(RestoreError::Postgres(error)) => error,
            other => panic!("{other:?}"),
        }
    }

    fn read(&self, path: &str) -> Vec<u8> {
        fs::read(self.to().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    fn has(&self, path: &str) -> bool {
        self.to().join(path).symlink_metadata().is_ok()
    }

    /// What a complete restore looks like, with its tablespace at that place.
    fn assert_complete(&self, tablespace: &Path) {
        assert_eq!(self.read("global/pg_control"), control());
        assert_eq!(self.read("base/5/1259"), b"pages");
        assert_eq!(self.read("backup_label"), label().as_bytes());
        // It must not archive where its origin does.
        let settings = b"# By ALTER SYSTEM\nwork_mem = '8MB'\narchive_mode = 'off'\n";
        assert_eq!(self.read("postgresql.auto.conf"), settings);
        let map = format!("16384 {}\n", tablespace.display());
        assert_eq!(self.read("tablespace_map"), map.as_bytes());
        let link = fs::read_link(self.to().join("pg_tblspc/16384")).unwrap();
        assert_eq!(link, tablespace);
        assert_eq!(self.read("pg_tblspc/16384/PG_15_202209061/5/16390"), b"rows");
        let wal = format!("pg_wal/{}", segment_name());
        assert_eq!(self.read(&wal), noise(1, SEGMENT as usize));
        for (path, mode) in [
            ("", 0o700),
            ("pg_wal", 0o700),
            ("pg_wal/archive_status", 0o700),
            (&wal[..], 0o600),
            ("global/pg_control", 0o600),
            ("backup_label", 0o600),
        ] {
            let now = fs::metadata(self.to().join(path)).unwrap().mode() & 0o7777;
            assert_eq!(now, mode, "{path}");
        }
        for absent in [
            ".holdfast-restore",
            "global/pg_control.before-restore",
            "pg_tblspc/99",
            "postmaster.pid",
        ] {
            assert!(!self.has(absent), "{absent}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_put_together_at_its_own_and_at_other_places() {
    let world = World::new().await;
    let done = world.run(None, false).await.unwrap();
    assert!(done.complete && done.plan.begin == Begin::Fresh && done.wal_aside.is_none());
    assert_eq!(done.report.problems.listed, []);
    world.assert_complete(&world.own);

    // Both targets are taken now.
    assert!(matches!(
        world.refused(None, false).await,
        PostgresError::NotEmpty { .. }
    ));
    fs::remove_dir_all(world.to()).unwrap();
    let taken = world.refused(None, false).await;
    assert!(
        matches!(taken, PostgresError::TablespaceNotEmpty { .. }),
        "{taken}"
    );
    assert!(
        !world.to().exists(),
        "something was written before it was refused"
    );
    assert!(world.run(Some("moved"), false).await.unwrap().complete);
    world.assert_complete(&world.dir.join("moved"));
}

#[tokio::test(flavor = "multi_thread")]
async fn targets_within_each_other_are_refused_before_anything_is_written() {
    let world = World::new().await;
    fs::create_dir(world.to()).unwrap();
    symlink(world.to(), world.dir.join("link")).unwrap();
    for inside in ["pg/ts", "pg", "link/ts", ""] {
        let refused = world.refused(Some(inside), false).await;
        assert_eq!(refused.kind(), ErrorKind::Invalid, "{inside}: {refused}");
    }
    assert_eq!(fs::read_dir(world.to()).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_restore_has_no_control_file_and_goes_on() {
    let world = World::new().await;
    let cancelled = RestoreOptions {
        cancel: Arc::new(AtomicBool::new(true)),
        ..RestoreOptions::default()
    };
    // While room is looked for, nothing is there yet.
    let request = world.request(Some("moved"), false);
    let outcome = restore(&world.snapshot, &world.backup, request, cancelled.clone()).await;
    assert!(matches!(outcome, Err(RestoreError::Interrupted)));
    assert!(!world.has(".holdfast-restore"));
    let request = Request {
        checks_space: false,
        ..world.request(Some("moved"), false)
    };
    let outcome = restore(&world.snapshot, &world.backup, request, cancelled).await;
    assert!(matches!(outcome, Err(RestoreError::Interrupted)));
    assert!(world.has(".holdfast-restore") && !world.has("global/pg_control"));

    // What a kill in the middle leaves.
    let tablespace = world.dir.join("moved/PG_15_202209061");
    fs::create_dir_all(tablespace.join("5")).unwrap();
    fs::write(tablespace.join("5/16390"), "ro").unwrap();
    fs::write(tablespace.join("5/extra"), "of another backup").unwrap();
    fs::create_dir_all(world.to().join("base/7")).unwrap();
    fs::create_dir_all(world.to().join("pg_wal")).unwrap();
    fs::write(world.to().join("base/7/1259"), "of another backup").unwrap();
    fs::write(
        world.to().join("pg_wal/000000010000000000000001"),
        "of another backup",
    )
    .unwrap();

    assert!(matches!(
        world.refused(Some("moved"), false).await,
        PostgresError::NotEmpty { .. }
    ));
    // Not over another tablespace than the one that it began with, unless that is empty.
    let other = world.dir.join("other");
    fs::create_dir_all(&other).unwrap();
    fs::write(other.join("precious"), "precious").unwrap();
    assert!(matches!(
        world.refused(Some("other"), true).await,
        PostgresError::TablespaceNotEmpty { .. }
    ));
    let done = world.run(Some("moved"), true).await.unwrap();
    assert!(done.complete && done.plan.begin == Begin::Resume && done.wal_aside.is_none());
    world.assert_complete(&world.dir.join("moved"));
    for gone in [
        "base/7",
        "pg_wal/000000010000000000000001",
        "pg_tblspc/16384/PG_15_202209061/5/extra",
    ] {
        assert!(!world.has(gone), "{gone}");
    }
    assert_eq!(fs::read(other.join("precious")).unwrap(), b"precious");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_state_of_the_same_cluster_is_replaced() {
    let world = World::new().await;
    assert!(world.run(None, false).await.unwrap().complete);
    let to = world.to();
    fs::write(to.join("base/5/1259"), "other").unwrap();
    fs::write(to.join("base/5/1259_vm"), "stale").unwrap();
    fs::write(to.join("standby.signal"), "").unwrap();
    fs::write(to.join("pg_wal/000000010000000000000042"), "newer").unwrap();
    // Another version's directory in the same place is not the snapshot's.
    fs::create_dir(world.own.join("PG_16_202307071")).unwrap();
    fs::write(world.own.join("PG_15_202209061/5/77"), "stale").unwrap();

    fs::write(
        to.join("postmaster.pid"),
        format!("{}\n{}\n", std::process::id(), to.display()),
    )
    .unwrap();
    assert!(matches!(
        world.refused(None, true).await,
        PostgresError::Running { .. }
    ));
    assert!(world.has("global/pg_control"));
    // No process has that number.
    fs::write(to.join("postmaster.pid"), "99999999\n").unwrap();

    let done = world.run(None, true).await.unwrap();
    assert!(done.complete && done.plan.begin == Begin::Replace);
    world.assert_complete(&world.own);
    let aside = done.wal_aside.unwrap();
    assert_eq!(aside, to.join("pg_wal.before-restore-1"));
    assert_eq!(
        fs::read(aside.join("000000010000000000000042")).unwrap(),
        b"newer"
    );
    for gone in [
        "base/5/1259_vm",
        "standby.signal",
        "pg_wal/000000010000000000000042",
    ] {
        assert!(!world.has(gone), "{gone}");
    }
    assert!(world.own.join("PG_16_202307071").exists() && !world.own.join("PG_15_202209061/5/77").exists());

    // Again: what was moved aside stays.
    let again = world.run(None, true).await.unwrap();
    assert_eq!(again.wal_aside.unwrap(), to.join("pg_wal.before-restore-2"));
    assert!(world.has("pg_wal.before-restore-1/000000010000000000000042"));
    world.assert_complete(&world.own);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_crash_between_the_first_steps_leaves_is_moved_aside_too() {
    let world = World::new().await;
    assert!(world.run(None, false).await.unwrap().complete);
    let (to, id) = (world.to(), world.backup.manifest.system_id);
    rustix::fs::rename(
        to.join("global/pg_control"),
        to.join("global/pg_control.before-restore"),
    )
    .unwrap();
    let note = json!({"holdfast_postgres_restore": 1, "system_id": id.to_string(), "phase": "aside"});
    fs::write(to.join(".holdfast-restore"), note.to_string()).unwrap();
    fs::write(to.join("pg_wal/000000010000000000000042"), "newer").unwrap();
    let done = world.run(None, true).await.unwrap();
    assert!(done.complete && done.plan.begin == Begin::Resume);
    assert!(world.has("pg_wal.before-restore-1/000000010000000000000042"));
    assert!(!world.has("pg_wal/000000010000000000000042"));
    world.assert_complete(&world.own);
}

#[tokio::test(flavor = "multi_thread")]
async fn other_directories_are_never_written_over() {
    let world = World::new().await;
    let to = world.to();
    fs::create_dir_all(to.join("global")).unwrap();
    fs::write(to.join("letters"), "precious").unwrap();
    assert!(matches!(
        world.refused(None, true).await,
        PostgresError::Foreign { .. }
    ));
    let mut other = control();
    other[0] ^= 1;
    let sum = crc32c_of(&other[..288]);
    other[288..292].copy_from_slice(&sum.to_le_bytes());
    fs::write(to.join("global/pg_control"), &other).unwrap();
    assert!(matches!(
        world.refused(None, true).await,
        PostgresError::OtherCluster { .. }
    ));
    // One that cannot be read is nobody's either.
    fs::write(to.join("global/pg_control"), &control()[..8000]).unwrap();
    assert!(world.run(None, true).await.is_err());
    assert_eq!(fs::read(to.join("letters")).unwrap(), b"precious");
    assert!(!to.join(".holdfast-restore").exists() && !to.join("base").exists());
}

/// CRC-32C by its definition; the crate of that name is not this one's.
fn crc32c_of(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg())
        })
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn gaps_leave_no_cluster_that_starts() {
    let temporary = tempfile::tempdir().unwrap();
    let own = temporary.path().join("own");
    let manifest = manifest(&own);
    let mut trees = trees(&manifest, &own, "pages");
    if let Item::Dir(_, items) = &mut trees[0].1 {
        items.insert(b"lost".to_vec(), missing_file());
    }
    let (snapshot, _) = snapshot(&mut Repo::new(), &trees).await;
    let backup = Backup::find(&snapshot).await.unwrap().unwrap();
    let request = Request {
        dir: temporary.path().join("pg"),
        tablespaces: Vec::new(),
        in_place: false,
        recover_to: None,
        guards_tablespaces: true,
        accept_loss: false,
        checks_space: true,
    };
    let done = restore(&snapshot, &backup, request.clone(), RestoreOptions::default())
        .await
        .unwrap();
    assert!(!done.complete && done.report.problems.count == 1);
    assert!(!request.dir.join("global/pg_control").exists() && !request.dir.join("backup_label").exists());
    assert!(request.dir.join(".holdfast-restore").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_tells_and_changes_nothing() {
    let world = World::new().await;
    let dry = || RestoreOptions {
        dry_run: true,
        ..RestoreOptions::default()
    };
    let request = world.request(Some("moved"), false);
    let done = restore(&world.snapshot, &world.backup, request, dry())
        .await
        .unwrap();
    assert!(!done.complete && done.report.files == 7, "{:?}", done.report);
    assert!(!world.to().exists() && !world.dir.join("moved").exists());

    assert!(world.run(None, false).await.unwrap().complete);
    fs::write(world.to().join("base/5/1259_vm"), "stale").unwrap();
    let request = world.request(None, true);
    let done = restore(&world.snapshot, &world.backup, request, dry())
        .await
        .unwrap();
    assert_eq!(done.plan.begin, Begin::Replace);
    // Also the labels, which the server would have renamed meanwhile.
    assert_eq!(done.report.removed, 3);
    assert!(world.has("base/5/1259_vm") && world.has("global/pg_control") && !world.has(".holdfast-restore"));
}

#[tokio::test(flavor = "multi_thread")]
async fn other_snapshots_are_no_backups_and_broken_ones_are_refused() {
    let own = Path::new("/own");
    let find = async |change: &dyn Fn(&mut Trees), manifest: &Value| {
        let mut trees = trees(manifest, own, "pages");
        change(&mut trees);
        let (snapshot, _) = snapshot(&mut Repo::new(), &trees).await;
        Backup::find(&snapshot).await.map(|found| found.is_some())
    };
    let good = manifest(own);
    assert!(find(&|_| {}, &good).await.unwrap());
    assert!(!find(&|_| {}, &json!({"anything": 1})).await.unwrap());
    assert!(!find(&|trees| drop(trees.remove(2)), &good).await.unwrap());
    let with = |field: &str, value: Value| {
        let mut changed = good.clone();
        changed[field] = value;
        changed
    };
    for bad in [
        with("holdfast_postgres_backup", json!(3)),
        with("system_id", json!("5")),
        with("wal_segment_size", json!(1 << 20)),
        with("stop_lsn", json!("7F/0")),
        with("start_lsn", json!("7F/0")),
        with("tablespaces", json!([{"oid": 5, "name": "x", "location": "/x"}])),
    ] {
        assert!(find(&|_| {}, &bad).await.is_err(), "{bad}");
    }
    let without = |name: &'static str| {
        move |trees: &mut Trees| {
            if let Item::Dir(_, items) = &mut trees[3].1 {
                items.remove(name.as_bytes());
            }
        }
    };
    assert!(find(&without("backup_label"), &good).await.is_err());
    assert!(find(&without("pg_control"), &good).await.is_err());
    assert!(!find(&without("backup.json"), &good).await.unwrap());
}
