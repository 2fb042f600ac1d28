//! What is refused says why, and what helps.

use crate::{backup::Backups, server::Server};
use holdfast_agent::{AgentError, config::Config, postgres::cluster_of};
use holdfast_core::{ErrorKind, HasKind as _};
use std::fs;

fn refusal(backups: &Backups) -> AgentError {
    match backups.try_take() {
        Ok(_) => panic!("it was taken"),
        Err(error) => error,
    }
}

fn assert_says(error: &AgentError, kind: ErrorKind, words: &[&str]) {
    let text = error.to_string();
    assert_eq!(error.kind(), kind, "{text}");
    words
        .iter()
        .for_each(|word| assert!(text.contains(word), "{word:?} is not in {text:?}"));
}

#[test]
fn a_cluster_that_is_not_in_the_configuration_is_refused_with_the_lines_to_add() {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(
        file.path(),
        "state_dir = '/x'\n[postgres.main]\nconnection = 'host=/tmp'",
    )
    .unwrap();
    let config = Config::load(file.path()).unwrap();
    let (own, source) = ("db1".parse().unwrap(), "db1/main".parse().unwrap());
    let cluster = |config, name| cluster_of(config, &own, &source, name);
    assert!(cluster(&config, "main").is_ok());
    let error = cluster(&config, "other").unwrap_err();
    assert_says(
        &error,
        ErrorKind::Denied,
        &["[postgres.other]\nconnection = ", "restart the agent"],
    );
    let error = cluster(&config, "a.b").unwrap_err();
    assert_says(&error, ErrorKind::Denied, &["[postgres.\"a.b\"]"]);
    assert_eq!(cluster(&config, "../x").unwrap_err().kind(), ErrorKind::Invalid);
}

#[test]
fn nothing_is_read_that_is_not_allowed() {
    let server = Server::new();
    let location = server.make_dir("ts");
    let mut backups = Backups::of(&server);
    backups.allow.clear();
    assert_says(
        &refusal(&backups),
        ErrorKind::Denied,
        &[server.data().to_str().unwrap(), "`allow`"],
    );
    backups.allow = vec![server.data().to_owned()];
    assert!(backups.try_take().is_ok());
    server.sql(&format!(
        "CREATE TABLESPACE other LOCATION '{}'",
        location.display()
    ));
    assert_says(
        &refusal(&backups),
        ErrorKind::Denied,
        &[location.to_str().unwrap(), "`allow`"],
    );
    backups.allow.push(location);
    assert!(backups.try_take().is_ok());
}

#[test]
fn servers_that_cannot_be_backed_up_are_refused() {
    let server = Server::new();
    let backups = Backups::of(&server);
    server.stop("fast");
    assert_says(
        &refusal(&backups),
        ErrorKind::Unavailable,
        &["connect to the PostgreSQL server"],
    );

    server.configure("wal_level = minimal\nmax_wal_senders = 0");
    server.start();
    assert_says(
        &refusal(&backups),
        ErrorKind::Invalid,
        &["wal_level = replica", "restart"],
    );

    server.stop("fast");
    server.configure("wal_level = replica\nmax_wal_senders = 1\nmax_replication_slots = 1");
    server.start();
    server.sql("SELECT pg_create_physical_replication_slot('mine')");
    assert_says(
        &refusal(&backups),
        ErrorKind::Unavailable,
        &["max_replication_slots", "all replication slots are in use"],
    );
}

#[test]
fn a_role_without_rights_is_told_what_to_be_granted() {
    let server = Server::new();
    server.sql("CREATE ROLE \"Backup\" LOGIN");
    let mut backups = Backups::of(&server);
    backups.connection = format!("host={} user=Backup dbname=postgres", server.dir().display());
    let error = refusal(&backups);
    assert_says(&error, ErrorKind::Denied, &["ALTER ROLE \"Backup\" REPLICATION"]);
    let text = error.to_string();
    server.sql(&text[text.find("ALTER ROLE").unwrap()..]);
    backups.take();
}

#[test]
fn a_role_with_a_password_and_no_more_rights_than_needed_is_enough() {
    let server = Server::new();
    server.sql(
        "CREATE ROLE holdfast LOGIN REPLICATION PASSWORD 'correct horse';
         GRANT pg_read_all_settings TO holdfast;
         GRANT EXECUTE ON FUNCTION pg_backup_start(text, boolean), pg_backup_stop(boolean) TO holdfast;",
    );
    server.stop("fast");
    let rules = server.data().join("pg_hba.conf");
    fs::write(
        &rules,
        "local all holdfast scram-sha-256\nlocal all postgres trust\n",
    )
    .unwrap();
    server.start();
    let password = tempfile::NamedTempFile::new().unwrap();
    let mut backups = Backups::of(&server);
    backups.connection = format!("host={} user=holdfast", server.dir().display());
    backups.password_file = Some(password.path().to_owned());
    fs::write(password.path(), "wrong horse\n").unwrap();
    let error = refusal(&backups);
    assert_says(&error, ErrorKind::Denied, &["password authentication failed"]);
    assert!(!error.to_string().contains("horse"), "{error}");
    fs::write(password.path(), "correct horse\n").unwrap();
    backups.take();
}
