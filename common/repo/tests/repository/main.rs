//! Tests of the engine from outside: golden files, whole-pipeline properties, and damage.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod golden;
mod mutations;
mod pipeline;
mod random;
mod samples;
mod trees;
