//! What the end-to-end tests and the bench stand on: a harness of real processes, data sets from a
//! seed, an independent comparison of trees, and a file system that loses power.

#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "this crate is test code only: it fails by panicking, and says what it saw"
)]

pub mod bench;
pub mod dataset;
pub mod harness;
pub mod powercut;
pub mod scenario;
pub mod seed;
pub mod tree;
pub mod wait;
