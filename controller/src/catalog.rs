//! The catalog: what Raft decides. Records and commands, the pure `apply`, and the sled below it.
//!
//! **Architecture invariants.** `apply` reads nothing but the state and the entry: no clock, no
//! randomness, no order of a hash map. Every record is hashed into the catalog hash, so that two
//! nodes at one applied index can be compared. No per-file or per-chunk record is ever here.

pub mod apply;
pub mod command;
mod database;
pub mod dump;
pub mod keys;
pub mod kv;
pub mod model;
pub mod query;
pub mod store;

pub use command::{
    Actor, Command, NewFile, NewPage, NewSnapshot, PackOutcome, PackRegistration, Proposal, Refusal, Reply,
    RewrittenPack,
};
pub use query::{CatalogView, Page, Queries};
