//! Backups of standbys.

use crate::{
    backup::{Backups, runtime},
    ending::{Meanwhile, is_untouched, wait_until},
    server::Server,
};
use holdfast_agent::{
    AgentError, Result,
    engine::Outcome,
    files::Selection,
    postgres::{Part, Passes, take},
};
use holdfast_core::{ErrorKind, HasKind as _};
use std::{fs, path::Path, sync::atomic::Ordering, time::Duration};

fn pair(lines: &str) -> (Server, Server) {
    // What a standby did not get yet must outlast a checkpoint.
    let primary = Server::with(&["--data-checksums"], &format!("wal_keep_size = 1GB\n{lines}"));
    primary.sql("CREATE TABLE t AS SELECT n, md5(n::text) AS text FROM generate_series(1, 20000) AS n");
    let standby = Server::standby_of(&primary);
    (primary, standby)
}

fn catch_up(primary: &Server, standby: &Server) {
    let lsn = primary.sql("SELECT pg_current_wal_flush_lsn()");
    wait_until("the standby replays", || {
        standby.sql(&format!("SELECT pg_last_wal_replay_lsn() >= '{lsn}'")) == "t"
    });
}

fn failure(result: Result<holdfast_agent::postgres::Taken>) -> AgentError {
    match result {
        Ok(_) => panic!("it was taken"),
        Err(error) => error,
    }
}

fn promote(standby: &Server) {
    assert_eq!(standby.sql("SELECT pg_promote()"), "t");
}

/// A server on what was restored; in recovery if it is told so.
fn restored(backups: &Backups, outcome: &Outcome, in_recovery: bool) -> Server {
    Server::of(|data: &Path| {
        backups.restore(outcome, data);
        let settings = if in_recovery {
            fs::write(data.join("recovery.signal"), "").unwrap();
            "restore_command = 'false'\n"
        } else {
            ""
        };
        fs::write(data.join("postgresql.auto.conf"), settings).unwrap();
    })
}

#[test]
fn a_standby_that_is_written_to_comes_back_whole() {
    let (primary, standby) = pair("");
    // Otherwise it begins with the checkpoint of the backup that the standby was made of, whose end is in the WAL.
    primary.sql("CREATE INDEX i ON t (text); CHECKPOINT");
    catch_up(&primary, &standby);
    let backups = Backups::of(&standby);
    let passes = Meanwhile(&backups, || {
        primary.sql("UPDATE t SET text = md5(text) WHERE n % 3 = 0; INSERT INTO t SELECT n, 'new' FROM generate_series(1, 5000) AS n; CHECKPOINT");
        catch_up(&primary, &standby);
        standby.sql("CHECKPOINT");
        primary.sql("UPDATE t SET text = md5(text) WHERE n % 7 = 0");
        catch_up(&primary, &standby);
    });
    let taken = runtime().block_on(take(&backups.order(), &passes)).unwrap();
    let outcome = taken.outcome;
    drop(taken.held);
    assert!(outcome.problems.is_empty(), "{:?}", outcome.problems);
    wait_until("the standby is as before", || is_untouched(&standby));
    // Who does not know of standbys' backups must not restore it.
    assert_eq!(backups.manifest(&outcome)["holdfast_postgres_backup"], 2);
    let label = &backups.tree(&outcome, "/postgresql/backup")[Path::new("backup_label")].2;
    assert!(String::from_utf8_lossy(label).contains("BACKUP FROM: standby"));

    for in_recovery in [false, true] {
        let server = restored(&backups, &outcome, in_recovery);
        server.start();
        wait_until("it takes writes", || {
            server.sql("SELECT pg_is_in_recovery()") == "f"
        });
        let rows = server.sql("SELECT count(*) FROM t WHERE n <= 20000");
        assert!(rows.parse::<u32>().unwrap() >= 25_000, "{rows}");
        server.sql("CREATE EXTENSION amcheck; SELECT bt_index_check('i')");
        server.stop("fast");
    }
}

#[test]
fn a_standby_that_is_promoted_meanwhile_is_backed_up_on_its_new_timeline_next() {
    let (_primary, standby) = pair("");
    let mut backups = Backups::of(&standby);
    let passes = Meanwhile(&backups, || {
        if standby.sql("SELECT pg_is_in_recovery()") == "t" {
            promote(&standby);
        }
    });
    let error = failure(runtime().block_on(take(&backups.order(), &passes)));
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    assert!(
        error.to_string().contains("promoted while it was backed up"),
        "{error}"
    );
    wait_until("the server is as before", || is_untouched(&standby));
    assert!(!backups.host.state.path().join("staging/0123_1").exists());

    let (outcome, _) = backups.take();
    let manifest = backups.manifest(&outcome);
    assert_eq!(
        (&manifest["timeline"], &manifest["holdfast_postgres_backup"]),
        (&2.into(), &1.into())
    );
}

/// A pass that goes on until somebody ends it.
struct Endless<'b>(&'b Backups, &'b Server);

impl Passes for Endless<'_> {
    async fn pass(&self, _: Selection, _: Part) -> Result<Outcome> {
        promote(self.1);
        while !self.0.cancel.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Err(AgentError::Interrupted("told to".into()))
    }
}

#[test]
fn nothing_more_is_read_once_a_standby_is_promoted() {
    let (_primary, standby) = pair("");
    let backups = Backups::of(&standby);
    let error = failure(runtime().block_on(take(&backups.order(), &Endless(&backups, &standby))));
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    wait_until("the server is as before", || is_untouched(&standby));
}

#[test]
fn pages_that_were_not_written_whole_by_the_primary_refuse_the_backup() {
    let (primary, standby) = pair("full_page_writes = off");
    primary.sql("INSERT INTO t VALUES (0, 'more'); CHECKPOINT");
    catch_up(&primary, &standby);
    let error = failure(Backups::of(&standby).try_take());
    assert!(error.to_string().contains("full_page_writes"), "{error}");
    wait_until("the standby is as before", || is_untouched(&standby));
}
