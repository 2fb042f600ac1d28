//! Backups of real PostgreSQL servers, against a remote side that keeps packs in memory. Needs PostgreSQL 15 in
//! `/usr/lib/postgresql`; as root, the servers run as the user `postgres`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod backup;
mod damage;
mod ending;
mod full;
#[allow(dead_code, reason = "shared with the engine's tests, which use all of it")]
#[path = "../engine/host.rs"]
mod host;
mod increments;
mod refusals;
mod server;
mod standby;
