//! However a backup ends, nothing of it stays on the server or on the host.

use crate::{
    backup::{Backups, runtime, stop},
    server::Server,
};
use holdfast_agent::{
    AgentError, Result,
    engine::Outcome,
    files::Selection,
    postgres::{Part, Passes, take},
};
use holdfast_core::{ErrorKind, HasKind as _};
use std::time::{Duration, Instant};

/// Longest wait for what must come at once.
const DEADLINE: Duration = Duration::from_secs(60);

pub fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
    }
}

pub fn is_untouched(server: &Server) -> bool {
    server.sql(
        "SELECT (SELECT count(*) FROM pg_replication_slots) + \
                (SELECT count(*) FROM pg_stat_activity WHERE application_name = 'holdfast')",
    ) == "0"
}

/// A pass during which something happens to the backup.
pub struct Meanwhile<'b, F>(pub &'b Backups, pub F);

impl<F: Fn() + Sync> Passes for Meanwhile<'_, F> {
    async fn pass(&self, selection: Selection, part: Part) -> Result<Outcome> {
        (self.1)();
        self.0.pass(selection, part).await
    }
}

#[test]
fn a_cancelled_backup_leaves_no_slot_and_no_files() {
    let server = Server::new();
    let backups = Backups::of(&server);
    let passes = Meanwhile(&backups, || {
        assert_eq!(
            server
                .sql("SELECT count(*) FROM pg_replication_slots WHERE temporary AND restart_lsn IS NOT NULL"),
            "1"
        );
        assert!(backups.host.state.path().join("staging/0123_1").exists());
        stop(&backups.cancel);
    });
    let Err(error) = runtime().block_on(take(&backups.order(), &passes)) else {
        panic!("it was cancelled")
    };
    assert_eq!(error.kind(), ErrorKind::Interrupted, "{error}");
    wait_until("the server is as before", || is_untouched(&server));
    assert!(!backups.host.state.path().join("staging/0123_1").exists());
    assert!(server.log().contains("aborting backup"), "{}", server.log());
}

#[test]
fn a_backup_that_waits_for_a_checkpoint_stops_at_once() {
    let server = Server::with(&[], "checkpoint_timeout = 1d\nmax_wal_size = 1GB");
    server.sql("CREATE TABLE t AS SELECT generate_series(1, 300000) AS n");
    let backups = Backups::of(&server);
    let mut order = backups.order();
    order.fast_checkpoint = false;
    let runtime = runtime();
    let result = std::thread::scope(|scope| {
        let running = scope.spawn(|| runtime.block_on(take(&order, &backups)).map(drop));
        wait_until("it waits for the checkpoint", || {
            let waits = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'holdfast' AND wait_event LIKE 'Checkpoint%'";
            server.sql(waits) == "1"
        });
        stop(&backups.cancel);
        running.join().unwrap()
    });
    assert!(matches!(result, Err(AgentError::Interrupted(_))), "{result:?}");
    wait_until("the server is as before", || is_untouched(&server));
}

#[test]
fn a_server_that_goes_away_ends_the_backup() {
    let server = Server::new();
    let backups = Backups::of(&server);
    let passes = Meanwhile(&backups, || {
        server.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'holdfast'",
        );
    });
    let Err(error) = runtime().block_on(take(&backups.order(), &passes)) else {
        panic!("the session was ended")
    };
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    wait_until("the server is as before", || is_untouched(&server));
}
