//! Physical backups of PostgreSQL clusters: files of a running server, and the WAL that makes them one point in time.
//!
//! One session with the server stays open from start to stop and until the snapshot is committed: whatever ends it, a crash
//! of this process included, takes the server out of backup mode and gives its WAL free. [`take()`] tells the order of
//! things. What is known of PostgreSQL's formats is in `holdfast_postgres`; here is what asks servers and reads files.

mod backup_mode;
mod check;
mod cluster_config;
mod control_file;
mod manifest;
mod pages;
mod rules;
mod selection;
mod server;
mod session;
mod staging;
mod standby;
mod take;
mod wal;

pub use check::{Asked, Finding, check};
pub use cluster_config::{ClusterConfig, cluster_of, not_a_member, section_of};
pub use manifest::{Manifest, ManifestTablespace};
pub use pages::{Checked, DamagedPage, PageWatch};
pub use rules::{ClusterRules, RelationPages};
pub(crate) use session::{Session, column};
pub use staging::Staging;
pub use take::{Held, Order, Part, Passes, Taken, system_id, take};
