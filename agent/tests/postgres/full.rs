//! What is in a backup is what `pg_basebackup` would have taken, and it becomes a server again.

use crate::{
    backup::Backups,
    server::{Server, program, run},
};
use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Stdio,
};

/// Names below a directory; `pg_wal` is not looked into.
fn names_below(dir: &Path, below: &Path, out: &mut BTreeSet<PathBuf>) {
    for entry in fs::read_dir(dir.join(below)).unwrap() {
        let entry = entry.unwrap();
        let path = below.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() && !path.starts_with("pg_wal") {
            names_below(dir, &path, out);
        }
        out.insert(path);
    }
}

#[test]
fn a_backup_under_writes_becomes_a_consistent_server() {
    let server = Server::new();
    run(program("pgbench")
        .args(server.reach())
        .args(["-i", "-q", "-s", "2", "postgres"]));
    let mut writer = program("pgbench")
        .args(server.reach())
        .args(["-n", "-c", "2", "-T", "600", "postgres"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut backups = Backups::of(&server);
    for round in 0..2 {
        let (outcome, stats) = backups.take();
        let counts = stats.snapshot();
        assert_eq!(outcome.problems, [], "round {round}");
        assert_eq!(
            (counts.unreadable, counts.files_changing),
            (0, 0),
            "changes are nothing special"
        );
        let restored = Server::of(|data| backups.restore(&outcome, data));
        restored.configure("hot_standby = on");
        restored.start();
        let sums = restored.sql(
            "SELECT count(*) > 0, (SELECT sum(abalance) FROM pgbench_accounts) = sum(delta), \
             (SELECT sum(bbalance) FROM pgbench_branches) = sum(delta) FROM pgbench_history",
        );
        assert_eq!(sums, "t|t|t", "round {round}: {}", restored.log());
        restored.stop("fast");
        run(program("pg_checksums")
            .arg("--check")
            .arg("-D")
            .arg(restored.data()));
        assert!(writer.try_wait().unwrap().is_none(), "it wrote all the time");
    }
    writer.kill().unwrap();
    writer.wait().unwrap();
}

#[test]
fn the_files_are_those_of_pg_basebackup() {
    let server = Server::new();
    let location = server.make_dir("ts");
    server.sql(&format!(
        "CREATE TABLESPACE other LOCATION '{}'",
        location.display()
    ));
    server.sql(
        "CREATE TABLE here AS SELECT generate_series(1, 5000) AS n; \
         CREATE TABLE there TABLESPACE other AS SELECT generate_series(1, 5000) AS n; \
         CREATE UNLOGGED TABLE quick AS SELECT generate_series(1, 5000) AS n; \
         CREATE INDEX ON quick (n)",
    );
    let quick = server.sql("SELECT pg_relation_filepath('quick')");
    // A session that keeps temporary files while the backup runs.
    let mut session = program("psql")
        .args(server.reach())
        .args(["-X", "-c"])
        .arg("CREATE TEMP TABLE mine AS SELECT generate_series(1, 5000) AS n; SELECT pg_sleep(600)")
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    while server.sql("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'") != "1" {}
    fs::write(server.data().join("of the owner"), b"x").unwrap();
    fs::create_dir(server.data().join("base/pgsql_tmp")).unwrap();
    fs::write(server.data().join("base/pgsql_tmp/pgsql_tmp1.0"), b"x").unwrap();
    server.own(server.data());

    let mut backups = Backups::of(&server);
    let (outcome, stats) = backups.take();
    assert_eq!((outcome.problems.len(), stats.snapshot().unreadable), (0, 0));
    let (base, mapped) = (server.dir().join("base"), server.dir().join("mapped"));
    run(program("pg_basebackup")
        .args(server.reach())
        .args(["-c", "fast", "-X", "none", "--no-manifest", "-D"])
        .arg(&base)
        .arg(format!(
            "--tablespace-mapping={}={}",
            location.display(),
            mapped.display()
        )));
    session.kill().unwrap();
    session.wait().unwrap();

    let (mut theirs, mut their_tablespace) = (BTreeSet::new(), BTreeSet::new());
    names_below(&base, Path::new(""), &mut theirs);
    names_below(&mapped, Path::new(""), &mut their_tablespace);
    for path in ["backup_label", "global/pg_control"] {
        assert!(theirs.remove(Path::new(path)), "{path}");
    }
    let names = |tree: &str| -> BTreeSet<PathBuf> {
        let tree = backups.tree(&outcome, tree).into_keys();
        tree.filter(|path| !path.as_os_str().is_empty()).collect()
    };
    let ours = names("/postgresql/data");
    assert_eq!(ours, theirs);
    assert!(!ours.contains(Path::new(&quick)) && ours.contains(Path::new(&format!("{quick}_init"))));
    let oid = server.sql("SELECT oid FROM pg_tablespace WHERE spcname = 'other'");
    assert_eq!(names(&format!("/postgresql/tablespaces/{oid}")), their_tablespace);
    assert!(
        their_tablespace.len() >= 3,
        "a directory of the version, of the database, and a table"
    );

    let staged = names("/postgresql/backup");
    let expected = ["backup.json", "backup_label", "pg_control", "tablespace_map"];
    assert_eq!(staged, expected.map(PathBuf::from).into());
    let manifest = backups.manifest(&outcome);
    assert_eq!(manifest["holdfast_postgres_backup"], 1);
    assert_eq!(manifest["version"], 15);
    assert_eq!(manifest["wal_segment_size"], 1 << 20);
    assert_eq!(manifest["data_checksums"], true);
    assert_eq!(manifest["tablespaces"][0]["name"], "other");
    assert_eq!(manifest["tablespaces"][0]["oid"].to_string(), oid);
    assert_eq!(manifest["tablespaces"][0]["location"], location.to_str().unwrap());
    assert_eq!(
        (&manifest["damaged"], &manifest["damaged_count"]),
        (&serde_json::json!([]), &0.into())
    );
    let id = server.sql("SELECT system_identifier FROM pg_control_system()");
    assert_eq!(manifest["system_id"], id);
    let link = &backups.tree(&outcome, "/postgresql/data")[&Path::new("pg_tblspc").join(&oid)];
    assert_eq!(link.2, location.to_str().unwrap().as_bytes());
    assert!(
        !backups.host.state.path().join("staging/0123_1").exists(),
        "nothing is left staged"
    );
}

#[test]
fn a_link_in_the_place_of_pg_wal_is_followed_for_wal_and_kept_as_a_directory() {
    let server = Server::new();
    server.stop("fast");
    let (inside, outside) = (server.data().join("pg_wal"), server.dir().join("wal"));
    #[expect(clippy::disallowed_methods, reason = "a server's owner syncs nothing")]
    fs::rename(&inside, &outside).unwrap();
    std::os::unix::fs::symlink(&outside, &inside).unwrap();
    server.start();
    server.sql("CREATE TABLE t AS SELECT generate_series(1, 100) AS n");
    let mut backups = Backups::of(&server);
    let (outcome, _) = backups.take();
    let data = backups.tree(&outcome, "/postgresql/data");
    let mode = fs::metadata(server.data()).unwrap().permissions().mode() & 0o7777;
    assert_eq!(data[Path::new("pg_wal")].0, mode);
    assert!(data[Path::new("pg_wal")].2.is_empty());
    let restored = Server::of(|data| backups.restore(&outcome, data));
    restored.start();
    assert_eq!(restored.sql("SELECT sum(n) FROM t"), "5050");
}
