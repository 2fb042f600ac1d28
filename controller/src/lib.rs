//! The controller: catalog, sessions, jobs and services of a Holdfast cluster.

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

pub mod api;
pub mod catalog;
pub mod config;
pub mod copies;
pub mod data;
pub mod error;
pub mod gauges;
pub mod gc;
pub mod index;
pub mod ingest;
pub mod jobs;
pub mod raft;
pub mod serve;
pub mod session;
pub mod upkeep;
pub mod verify;

pub use error::{Error, Result};
