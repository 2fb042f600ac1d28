//! The bottom floor: ids, names, error kinds, limits and clocks that every other crate shares.

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

mod clock;
mod error;
mod host_limits;
mod id;
pub mod limits;
mod memory;
mod name;
mod names;
mod size;

pub use clock::{Clock, ManualClock, SystemClock, UnixMillis};
pub use error::{ErrorKind, HasKind};
pub use host_limits::{HostLimits, IoClass, nice_of_weight, weight_of_nice};
pub use id::{
    ChunkId, ClusterId, IdError, JobId, PackId, RequestId, SessionId, SnapshotId, StoreId, VaultId,
};
pub use memory::{give_freed_buffers_back, keep_freed_buffers};
pub use name::{Name, NameError, SourceRef};
pub use names::Names;
pub use size::Size;
