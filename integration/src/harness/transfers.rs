//! Money that moves between accounts: whenever it is looked at, all of it is there, and every transfer has left its row.

use super::{Output, Process, Server};
use crate::wait;
use std::{fs, path::Path};

/// Accounts, each with [`BALANCE`] at first.
const ACCOUNTS: i64 = 1000;
const BALANCE: i64 = 1000;
/// What pgbench does.
const TRANSFER: &str = "\\set a random(1, 1000)
\\set b random(1, 1000)
\\set n random(1, 100)
BEGIN;
UPDATE accounts SET balance = balance - :n WHERE id = :a;
UPDATE accounts SET balance = balance + :n WHERE id = :b;
INSERT INTO transfers (a, b, n) VALUES (:a, :b, :n);
COMMIT;
";

/// Makes the tables; that of the transfers with more `options`, such as a tablespace.
pub fn make(server: &Server, options: &str) {
    server.execute(&format!(
        "CREATE TABLE accounts (id int PRIMARY KEY, balance bigint NOT NULL);
         INSERT INTO accounts SELECT i, {BALANCE} FROM generate_series(1, {ACCOUNTS}) i;
         CREATE TABLE transfers (id bigserial PRIMARY KEY, a int, b int, n int) {options};
         CREATE UNLOGGED TABLE scratch AS SELECT i FROM generate_series(1, 10000) i;"
    ));
}

/// Moves money from now on, until the process is stopped; `script` is where pgbench reads what to do.
#[must_use]
pub fn begin(server: &Server, script: &Path, clients: u32, rate: u32) -> Process {
    fs::write(script, TRANSFER).expect("to write the script");
    let mut command = server.client("pgbench");
    command
        .args(["--no-vacuum", "--time=3600"])
        .arg(format!("--client={clients}"))
        .arg(format!("--rate={rate}"))
        .arg("--file")
        .arg(script);
    let process = Process::start("pgbench", command, None);
    let before = count(server);
    wait::until("money to move", || (count(server) > before).then_some(()));
    process
}

/// Transfers that are committed.
#[must_use]
pub fn count(server: &Server) -> i64 {
    server.number("SELECT count(*) FROM transfers")
}

/// Looks at everything that must hold in a copy, and that it takes writes and does not archive where its origin does.
///
/// # Panics
/// When something does not hold.
pub fn check(server: &Server) {
    let sum = server.number("SELECT sum(balance) FROM accounts");
    assert_eq!(sum, ACCOUNTS * BALANCE, "money was lost or made");
    assert_eq!(server.number("SELECT count(*) FROM scratch"), 0);
    assert_eq!(server.query("SHOW archive_mode"), "off");
    let mut amcheck = server.client("pg_amcheck");
    amcheck.args(["--all", "--install-missing", "--heapallindexed"]);
    let _ = Output::of(amcheck).ok();
    server.execute("UPDATE accounts SET balance = balance + 0; CHECKPOINT");
}
