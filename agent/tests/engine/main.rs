//! The engine on real directory trees, against a remote side that keeps packs in memory and checks
//! them as a controller would.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod deltas;
mod host;
mod metadata;
mod sending;
mod trees;
mod wide;
