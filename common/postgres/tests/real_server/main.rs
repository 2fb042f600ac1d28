//! What this crate says of a cluster, held against a real server and its own tools: PostgreSQL 15 as Debian ships it.
//!
//! Each test makes a cluster of its own in a temporary directory. As root, servers run as the user `postgres`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod kept;
mod recovered;
mod server;

use holdfast_postgres::{BackupLabel, BackupMethod, Lsn, PAGE_LEN, Place, Segment, TablespaceMap, Treatment};
use kept::{check_pages, control_file, everything, kept};
use server::{Server, Session, directory, program, said_by, subdirectory};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// A name of a directory that its map must escape.
const ODD_NAME: &str = "fast \\disk\nof two lines";

/// Relations of all sorts, in the default place and in two tablespaces, one of them within the data directory.
/// Returns the other's location.
fn fill(session: &mut Session, directory: &Path) -> PathBuf {
    let location = subdirectory(directory, ODD_NAME);
    session.run(&format!(
        "CREATE TABLESPACE outside LOCATION '{}'",
        location.display()
    ));
    session.run("SET allow_in_place_tablespaces = on");
    session.run("CREATE TABLESPACE inside LOCATION ''");
    for (number, place) in ["pg_default", "outside", "inside"].into_iter().enumerate() {
        session.run(&format!(
            "CREATE TABLE kept_{number} (id int PRIMARY KEY USING INDEX TABLESPACE {place}, text text) TABLESPACE {place};
             CREATE UNLOGGED TABLE reset_{number} (id int PRIMARY KEY USING INDEX TABLESPACE {place}, text text) TABLESPACE {place};
             INSERT INTO kept_{number} SELECT n, repeat('x', 100) FROM generate_series(1, 5000) n;
             INSERT INTO reset_{number} SELECT n, repeat('x', 100) FROM generate_series(1, 5000) n;"
        ));
        session.run(&format!("VACUUM kept_{number}, reset_{number}"));
    }
    session.run("CREATE SEQUENCE numbers; CREATE INDEX ON kept_0 USING gin (string_to_array(text, ' '));");
    session.run("CREATE INDEX ON kept_0 USING brin (id); CREATE INDEX ON kept_0 USING hash (id);");
    session.run("CHECKPOINT");
    location
}

#[test]
fn the_control_file_says_what_pg_controldata_says() {
    let directory = directory();
    let server = Server::make(
        directory.path(),
        "wal_log_hints = on\nmax_locks_per_transaction = 77\n",
    );
    for is_running in [false, true] {
        if is_running {
            server.start();
            server
                .session()
                .run("CREATE TABLE t (id int); CHECKPOINT; SELECT pg_switch_wal(); CHECKPOINT;");
        }
        let control = control_file(&server.data);
        let said = said_by(program("pg_controldata").arg(&server.data).env("TZ", "UTC"));
        let said: BTreeMap<&str, &str> = said
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(key, value)| (key, value.trim()))
            .collect();
        let time = |unix_secs| {
            let time = jiff::Timestamp::from_second(unix_secs).unwrap();
            time.strftime("%a %b %e %H:%M:%S %Y").to_string()
        };
        let on = |flag| if flag { "on" } else { "off" }.to_owned();
        let size = control.wal_segment_size;
        let redo_file = size.segment_at(control.checkpoint.timeline, control.checkpoint.redo);
        for (key, ours) in [
            (
                "pg_control version number",
                control.version.control_version().to_string(),
            ),
            (
                "Catalog version number",
                control.version.catalog_version().to_string(),
            ),
            ("Database system identifier", control.system_id.to_string()),
            ("Database cluster state", control.state.to_string()),
            ("pg_control last modified", time(control.written_unix_secs)),
            ("Latest checkpoint location", control.checkpoint.lsn.to_string()),
            (
                "Latest checkpoint's REDO location",
                control.checkpoint.redo.to_string(),
            ),
            ("Latest checkpoint's REDO WAL file", redo_file.to_string()),
            (
                "Latest checkpoint's TimeLineID",
                control.checkpoint.timeline.to_string(),
            ),
            (
                "Latest checkpoint's PrevTimeLineID",
                control.checkpoint.previous_timeline.to_string(),
            ),
            (
                "Latest checkpoint's full_page_writes",
                on(control.checkpoint.full_page_writes),
            ),
            (
                "Latest checkpoint's NextXID",
                format!(
                    "{}:{}",
                    control.checkpoint.next_xid >> 32,
                    control.checkpoint.next_xid as u32
                ),
            ),
            ("Time of latest checkpoint", time(control.checkpoint.unix_secs)),
            (
                "Fake LSN counter for unlogged rels",
                control.unlogged_lsn.to_string(),
            ),
            (
                "Minimum recovery ending location",
                control.recovery.min_lsn.to_string(),
            ),
            ("Backup start location", control.recovery.backup_start.to_string()),
            ("Backup end location", control.recovery.backup_end.to_string()),
            (
                "End-of-backup record required",
                if control.recovery.backup_end_required {
                    "yes"
                } else {
                    "no"
                }
                .to_owned(),
            ),
            (
                "wal_level setting",
                format!("{:?}", control.wal_level).to_lowercase(),
            ),
            ("wal_log_hints setting", on(control.wal_log_hints)),
            (
                "max_connections setting",
                control.limits.max_connections.to_string(),
            ),
            (
                "max_worker_processes setting",
                control.limits.max_worker_processes.to_string(),
            ),
            (
                "max_wal_senders setting",
                control.limits.max_wal_senders.to_string(),
            ),
            (
                "max_prepared_xacts setting",
                control.limits.max_prepared_transactions.to_string(),
            ),
            (
                "max_locks_per_xact setting",
                control.limits.max_locks_per_transaction.to_string(),
            ),
            (
                "track_commit_timestamp setting",
                on(control.track_commit_timestamp),
            ),
            ("Database block size", control.block_len.to_string()),
            (
                "Blocks per segment of large relation",
                control.blocks_per_file.to_string(),
            ),
            ("WAL block size", control.wal_block_len.to_string()),
            ("Bytes per WAL segment", size.bytes().to_string()),
            (
                "Data page checksum version",
                u8::from(control.data_checksums).to_string(),
            ),
        ] {
            assert_eq!(said.get(key), Some(&ours.as_str()), "{key}");
        }
        if is_running {
            assert_eq!(
                (control.limits.max_locks_per_transaction, control.wal_log_hints),
                (77, true)
            );
        }
    }
}

#[test]
fn every_page_passes_and_a_flipped_byte_is_found_where_it_is() {
    let directory = directory();
    let server = Server::make(directory.path(), "");
    server.start();
    let mut session = server.session();
    let location = fill(&mut session, directory.path());
    let table = session.value("SELECT pg_relation_filepath('kept_0')");
    let outside = session.value("SELECT pg_relation_filepath('kept_1')");
    drop(session);
    server.stop();

    let found = check_pages(&server.data);
    assert_eq!(found.bad, []);
    let said = said_by(program("pg_checksums").args(["--check", "-D"]).arg(&server.data));
    let counted = |key: &str| -> u64 {
        let line = said.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        line.trim().parse().unwrap()
    };
    assert_eq!(
        (found.files, found.pages),
        (counted("Files scanned:"), counted("Blocks scanned:")),
        "{said}"
    );

    let mut expected = Vec::new();
    for (path, block, at) in [
        (&table, 3_u32, 8191),
        (&table, 7, 100),
        (&outside, 0, 9),
        (&outside, 2, 20),
    ] {
        let file = server.data.join(path);
        let mut bytes = fs::read(&file).unwrap();
        bytes[block as usize * PAGE_LEN + at] ^= 0x10;
        fs::write(&file, bytes).unwrap();
        expected.push((PathBuf::from(path), block));
    }
    assert!(
        server
            .data
            .join(&outside)
            .canonicalize()
            .unwrap()
            .starts_with(location)
    );
    assert_eq!(check_pages(&server.data).bad, expected);
    // The server's own tool sees the same ones.
    let output = program("pg_checksums")
        .args(["--check", "-D"])
        .arg(&server.data)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        !output.status.success() && said.contains("Bad checksums:  4"),
        "{said}"
    );
}

/// Paths of what `pg_basebackup` wrote.
fn base_backup(server: &Server, directory: &Path, location: &Path) -> (BTreeSet<PathBuf>, BTreeSet<PathBuf>) {
    let (copy, space) = (directory.join("copy"), directory.join("copied space"));
    let mapping = format!("{}={}", location.display(), space.display());
    said_by(
        server
            .client("pg_basebackup")
            .args([
                "-c",
                "fast",
                "-X",
                "none",
                "--no-manifest",
                "-N",
                "-T",
                &mapping,
                "-D",
            ])
            .arg(&copy),
    );
    let data = everything(&copy).into_iter();
    // Through its link the tablespace shows up in the data directory as well.
    let link = fs::read_dir(copy.join("pg_tblspc")).unwrap().find_map(|entry| {
        let entry = entry.unwrap();
        entry
            .file_type()
            .unwrap()
            .is_symlink()
            .then(|| Path::new("pg_tblspc").join(entry.file_name()))
    });
    let link = link.unwrap();
    let data = data
        .filter(|path| *path == link || !path.starts_with(&link))
        .collect();
    (data, everything(&space).into_iter().collect())
}

fn paths(kept: kept::Kept) -> BTreeSet<PathBuf> {
    kept.into_keys().collect()
}

#[test]
fn the_layout_keeps_and_omits_what_pg_basebackup_does() {
    let directory = directory();
    let server = Server::make(directory.path(), "");
    server.start();
    let mut session = server.session();
    let location = fill(&mut session, directory.path());
    // Temporary relations, and temporary files of a sort that is not over.
    session.run("CREATE TEMP TABLE gone_0 AS SELECT n FROM generate_series(1, 5000) n");
    session.run("CREATE TEMP TABLE gone_1 TABLESPACE outside AS SELECT n FROM generate_series(1, 5000) n");
    session.run("SET work_mem = '64kB'; SET temp_tablespaces = pg_default, outside;");
    session.run(
        "BEGIN; DECLARE a CURSOR FOR SELECT n FROM generate_series(1, 100000) n ORDER BY -n; FETCH 1 FROM a;",
    );
    session
        .run("DECLARE b CURSOR FOR SELECT n FROM generate_series(1, 100000) n ORDER BY -n; FETCH 1 FROM b;");
    let omitted = [
        "postgresql.auto.conf.tmp",
        "current_logfiles.tmp",
        "backup_manifest",
        "backup_label",
        "tablespace_map",
        "base/1/pg_internal.init.77",
        "base/1/t5_1234_fsm",
        "pg_notify/x",
        "pg_stat_tmp/x",
        "pg_replslot/x",
    ];
    for path in omitted {
        fs::write(server.data.join(path), "").unwrap();
    }
    server::give_to_server(&server.data);
    let other_version = subdirectory(&location, "PG_14_202107181/5");
    fs::write(other_version.join("16384"), "").unwrap();

    let (data, space) = base_backup(&server, directory.path(), &location);
    let ours = kept(&server.data, Place::DataDirectory);
    let tablespaces = ours
        .values()
        .filter(|treatment| matches!(treatment, Treatment::Tablespace(_)))
        .count();
    assert_eq!(tablespaces, 1);
    assert_eq!(
        ours.get(Path::new("global/pg_control")),
        Some(&Treatment::KeepLast)
    );
    let ours = paths(ours);
    let only_theirs: Vec<_> = data
        .difference(&ours)
        .map(|path| path.to_str().unwrap())
        .collect();
    let only_ours: Vec<_> = ours.difference(&data).collect();
    // The first is of that backup itself; servers make the other when they start.
    assert_eq!(only_theirs, ["backup_label", "pg_wal/archive_status"]);
    assert_eq!(only_ours, [] as [&PathBuf; 0]);
    assert_eq!(paths(kept(&location, Place::Tablespace)), space);

    // What the comparison is about was really there.
    let all = everything(&server.data);
    let is_there = |part: &str| all.iter().any(|path| path.to_string_lossy().contains(part));
    for part in [
        "base/5/t",
        "base/5/pg_internal.init",
        "postmaster.pid",
        "pg_wal/0",
        "_init",
    ] {
        assert!(is_there(part), "{part}");
    }
    let temporary = all
        .iter()
        .filter(|path| path.to_string_lossy().contains("/pgsql_tmp/"))
        .count();
    assert!(temporary >= 2, "{all:?}");
    let is_unlogged = |path: &&PathBuf| path.to_string_lossy().ends_with("_init");
    // A table and its index in three places, and the tables' parts for large values with theirs.
    assert_eq!(all.iter().filter(is_unlogged).count(), 12);
    for path in omitted.iter().take(5) {
        fs::remove_file(server.data.join(path)).unwrap();
    }
}

#[test]
fn labels_and_maps_of_a_real_backup_are_read() {
    let directory = directory();
    let server = Server::make(directory.path(), "");
    server.start();
    let mut session = server.session();
    let location = fill(&mut session, directory.path());
    let start: Lsn = session
        .value("SELECT pg_backup_start('it''s: \"nightly\"', true)")
        .parse()
        .unwrap();
    let control = control_file(&server.data);
    let row = session.value(
        "SELECT lsn, encode(convert_to(labelfile, 'UTF8'), 'hex'), encode(convert_to(spcmapfile, 'UTF8'), 'hex')
         FROM pg_backup_stop(false)",
    );
    let columns: Vec<&str> = row.split('|').collect();
    let (label_file, map_file) = (recovered::unhex(columns[1]), recovered::unhex(columns[2]));

    let size = control.wal_segment_size;
    let label = BackupLabel::parse(&label_file, size).unwrap();
    assert_eq!((label.start, label.checkpoint), (start, control.checkpoint.lsn));
    assert_eq!(control.checkpoint.redo, start);
    let name = session.value(&format!("SELECT pg_walfile_name('{start}')"));
    assert_eq!(label.segment, Segment::parse(&name, size).unwrap());
    assert_eq!(
        (label.method, label.from_standby),
        (BackupMethod::Streamed, false)
    );
    assert_eq!(label.label, "it's: \"nightly\"");
    assert!(label.start_time.ends_with(" UTC") && label.incremental.is_none());
    assert!(columns[0].parse::<Lsn>().unwrap() > label.checkpoint);

    let map = TablespaceMap::parse(&map_file).unwrap();
    let oid = session
        .value("SELECT oid FROM pg_tablespace WHERE spcname = 'outside'")
        .parse()
        .unwrap();
    assert_eq!(map.tablespaces().len(), 1, "{map:?}");
    assert_eq!(map.path(oid), Some(location.to_str().unwrap().as_bytes()));
    assert_eq!(map.render(), map_file);
}
