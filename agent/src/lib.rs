//! The agent: one process per host, which reads what its configuration allows, turns it into
//! sealed packs and hands them to the controllers.

#![forbid(unsafe_code)]
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        reason = "tests fail by panicking"
    )
)]

pub mod backup;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod engine;
mod error;
pub mod files;
pub mod jobs;
pub mod join;
pub mod limits;
pub mod postgres;
pub mod remote;
pub mod restore_job;
pub mod state;
pub mod test_restore;
pub mod wal;

pub use error::{AgentError, Result};
