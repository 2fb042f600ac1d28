//! Jobs and the agents that carry them out, as the leader knows them beside the catalog.

mod dispatch;
mod hub;

pub use dispatch::{dispatch, lose_jobs_without_agent};
pub(crate) use dispatch::{lose, offer};
pub use hub::{Hub, Registration, STREAM_QUEUE};
