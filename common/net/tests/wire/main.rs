//! Real connections between real clients and a real server: who is let in, who is not, and what travels along.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod fixture;
mod live;
mod trace;
mod trust;
