//! Sessions as the leader keeps them beside the catalog: their leases.

mod leases;

pub use leases::{Leases, expire_leases};
