//! Where packs and root objects lie: one trait, its implementations, one contract suite for all of them.

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

#[cfg(any(test, feature = "testing"))]
pub mod contract;
mod dir;
mod error;
#[cfg(any(test, feature = "testing"))]
pub mod fault;
mod mem;
mod name;
mod read;
mod store;

pub use dir::{DirStore, MARKER};
pub use error::StoreError;
pub use mem::MemStore;
pub use name::{Area, ObjectKind, ObjectName};
pub use read::{Location, read_places};
pub use store::{Finished, Listed, Space, Store, Upload};
