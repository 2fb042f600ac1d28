//! Fetch, verify, place: how content comes back, for agents, the command line, and recovery without
//! controllers.
//!
//! Nothing that is fetched is believed: every blob is authenticated and checked against its id, a
//! damaged one is looked for elsewhere, and what cannot be had right is an error, never wrong bytes.

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

pub mod bounds;
mod chunks;
mod content;
mod error;
mod file_segments;
mod journal;
mod path;
pub mod pattern;
mod place;
mod pool;
pub mod postgres;
mod progress;
mod recover;
mod report;
mod source;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod tree;
mod verify;
mod walk;
mod wanted;

pub use chunks::{BlobOpener, ChunkReader};
pub use error::RestoreError;
pub use journal::{Journal, JournalFile, JournalRoots};
pub use path::{join_path, names, shown};
pub use place::{Layout, OnRemoval, RestoreOptions, restore};
pub use progress::Progress;
pub use recover::{RecoveredSnapshot, Recovery, Refused};
pub use report::{Problem, Problems, RestoreReport};
pub use source::{BlobSource, Fetched, GrpcSource, StoreSource};
pub use tree::{Change, Difference, Snapshot, TreeEntry, compare, open_root};
pub use verify::{Verifier, VerifyReport};

/// Result with [`RestoreError`].
pub type Result<T, E = RestoreError> = std::result::Result<T, E>;
