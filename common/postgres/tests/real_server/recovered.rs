//! All of it together: a backup by these rules, archived WAL, and a server that recovers from both to a named point.

use crate::{
    fill,
    kept::{Kept, check_pages, kept},
    server::{Server, directory, give_to_server, said_by, subdirectory, wait_until},
};
use holdfast_postgres::{
    BackupLabel, MappedTablespace, Place, Recovery, RecoveryMode, RecoveryTarget, SettingsFile,
    TablespaceMap, TargetAction, TargetTimeline, Treatment, archive_command, restore_command,
};
use std::{
    fs,
    os::unix::{
        ffi::OsStrExt,
        fs::{PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
    process::Command,
};

pub fn unhex(digits: &str) -> Vec<u8> {
    let pairs = digits.as_bytes().chunks(2);
    pairs
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

/// A value that needs every kind of quoting.
const ODD_VALUE: &str = "it's \"50%\" \\ \\n #x = ";

/// Copies what is kept. What is to be taken last is.
fn copy(from: &Path, to: &Path, kept: &Kept) {
    let mut last = Vec::new();
    for (path, treatment) in kept {
        let (source, target) = (from.join(path), to.join(path));
        match treatment {
            Treatment::KeepEmpty => fs::create_dir(target).unwrap(),
            Treatment::Keep if source.is_dir() => fs::create_dir(target).unwrap(),
            Treatment::Keep => drop(fs::copy(source, target).unwrap()),
            Treatment::KeepLast => last.push((source, target)),
            // Made anew for another location.
            Treatment::Tablespace(_) | Treatment::Omit => {}
        }
    }
    for (source, target) in last {
        fs::copy(source, target).unwrap();
    }
}

/// A program at a path that needs quoting for the shell and for the server, which copies its first argument to the
/// second in a directory that it is given, or from there.
fn copier(directory: &Path, name: &str, script: &str) -> PathBuf {
    let path = subdirectory(directory, "100% it's \"odd\" $HOME").join(name);
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[test]
fn a_backup_by_these_rules_recovers_to_its_target() {
    let directory = directory();
    let top = directory.path();
    let archive = subdirectory(top, "archive & %f %%");
    let archive_name = archive.to_str().unwrap();
    let push = copier(
        top,
        "push",
        r#"[ ! -e "$1/$3" ] && cp "$2" "$1/$3.new" && mv "$1/$3.new" "$1/$3""#,
    );
    let pull = copier(top, "pull", r#"[ -e "$1/$2" ] && cp "$1/$2" "$3""#);
    let push = archive_command(push.to_str().unwrap(), &[archive_name]).unwrap();
    let pull = restore_command(pull.to_str().unwrap(), &[archive_name]).unwrap();

    let server = Server::make(top, "archive_mode = on\nallow_in_place_tablespaces = on\n");
    // The settings are written by this crate, and the server starts with them.
    let file = server.data.join("postgresql.auto.conf");
    let mut settings = SettingsFile::parse(&fs::read(&file).unwrap()).unwrap();
    settings.set("archive_command", &push).unwrap();
    settings.set("cluster_name", "first").unwrap();
    fs::write(&file, settings.render()).unwrap();
    server.start();
    let mut session = server.session();
    assert_eq!(session.value("SHOW archive_command"), push);
    let location = fill(&mut session, top);
    let quoted = ODD_VALUE.replace('\'', "''");
    session.run(&format!("ALTER SYSTEM SET log_line_prefix = '{quoted}'"));
    session.run(
        "ALTER SYSTEM SET recovery_target_xid = '12345'; ALTER SYSTEM SET search_path = \"$user\", public;",
    );
    session.run("CREATE TABLE history (event text); INSERT INTO history VALUES ('in the backup');");

    session.run("SELECT pg_backup_start('holdfast', true)");
    let (data, space) = (subdirectory(top, "restored"), subdirectory(top, "restored space"));
    copy(&server.data, &data, &kept(&server.data, Place::DataDirectory));
    copy(&location, &space, &kept(&location, Place::Tablespace));
    let row = session.value(
        "SELECT encode(convert_to(labelfile, 'UTF8'), 'hex'), encode(convert_to(spcmapfile, 'UTF8'), 'hex')
         FROM pg_backup_stop(true)",
    );
    let (label, map) = row.split_once('|').unwrap();
    session.run("INSERT INTO history VALUES ('before the point')");
    session.run("SELECT pg_create_restore_point('it''s here')");
    session.run("INSERT INTO history VALUES ('after the point')");
    let last = session.value("SELECT pg_walfile_name(pg_switch_wal())");
    wait_until("the last segment is archived", || archive.join(&last).exists());
    let label_file = unhex(label);
    let control = crate::kept::control_file(&server.data);
    let label = BackupLabel::parse(&label_file, control.wal_segment_size).unwrap();
    assert!(archive.join(label.segment.to_string()).exists());

    // Its labels, the tablespace at another place, and what to recover to.
    fs::write(data.join("backup_label"), label_file).unwrap();
    let map = TablespaceMap::parse(&unhex(map)).unwrap();
    let moved = map.tablespaces().iter().map(|tablespace| {
        symlink(&space, data.join(format!("pg_tblspc/{}", tablespace.oid))).unwrap();
        MappedTablespace {
            oid: tablespace.oid,
            path: space.as_os_str().as_bytes().to_vec(),
        }
    });
    fs::write(
        data.join("tablespace_map"),
        TablespaceMap::new(moved.collect()).unwrap().render(),
    )
    .unwrap();
    let recovery = Recovery {
        mode: RecoveryMode::Primary,
        primary: None,
        restore_command: pull.clone(),
        target: RecoveryTarget::Name("it's here".to_owned()),
        inclusive: true,
        action: TargetAction::Promote,
        timeline: TargetTimeline::Latest,
        keeps_archiving: false,
    };
    let file = data.join("postgresql.auto.conf");
    let mut settings = SettingsFile::parse(&fs::read(&file).unwrap()).unwrap();
    assert_eq!(settings.get("log_line_prefix").as_deref(), Some(ODD_VALUE));
    assert_eq!(settings.get("archive_command"), Some(push));
    recovery.write_to(&mut settings, &[]).unwrap();
    settings.set("port", "5433").unwrap();
    fs::write(&file, settings.render()).unwrap();
    fs::write(data.join(recovery.mode.signal_file()), "").unwrap();
    fs::set_permissions(&data, fs::Permissions::from_mode(0o700)).unwrap();
    give_to_server(&data);
    give_to_server(&space);

    let restored = Server::of(top, data, 5433);
    restored.start();
    let mut session = restored.session();
    wait_until("the restored server is promoted", || {
        session.value("SELECT pg_is_in_recovery()") == "f"
    });
    assert_eq!(
        session.run("SELECT event FROM history ORDER BY 1"),
        ["before the point", "in the backup"]
    );
    for number in 0..3 {
        assert_eq!(
            session.value(&format!("SELECT count(*) FROM kept_{number}")),
            "5000"
        );
        assert_eq!(
            session.value(&format!("SELECT count(*) FROM reset_{number}")),
            "0"
        );
    }
    assert_eq!(session.value("SHOW log_line_prefix"), ODD_VALUE);
    assert_eq!(session.value("SHOW search_path"), "\"$user\", public");
    assert_eq!(session.value("SHOW restore_command"), pull);
    assert_eq!(session.value("SHOW archive_mode"), "off");
    assert_eq!(session.value("SHOW cluster_name"), "first");
    // The server goes on writing to the file that was rewritten.
    session.run("ALTER SYSTEM RESET log_line_prefix; ALTER SYSTEM SET work_mem = '3MB';");
    let settings = SettingsFile::parse(&fs::read(&file).unwrap()).unwrap();
    assert_eq!(settings.get("work_mem").as_deref(), Some("3MB"));
    assert_eq!(settings.get("log_line_prefix"), None);
    assert_eq!(settings.get("restore_command"), Some(pull));
    drop(session);
    restored.stop();
    assert_eq!(check_pages(&restored.data).bad, []);
    // Words reach a program through a shell as they are.
    let word = holdfast_postgres::command_word(ODD_VALUE)
        .unwrap()
        .replace("%%", "%");
    let said = said_by(Command::new("/bin/sh").args(["-c", &format!("printf %s {word}")]));
    assert_eq!(said, ODD_VALUE);
}
