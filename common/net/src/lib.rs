//! Everything between the wire and the domain: identities and certificates, join tokens and sealed keys,
//! mutually authenticated servers and clients, traces, logs, metrics and orderly shutdown.

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

pub mod client;
pub mod durable;
mod error;
pub mod host_limits;
mod identity;
pub mod keys;
pub mod kit;
pub mod metrics;
pub mod notify;
pub mod pem;
pub mod pki;
mod read_ahead;
pub mod sealed;
pub mod seed;
pub mod server;
pub mod shutdown;
pub mod status;
pub mod telemetry;
pub mod token;
pub mod trace;

pub use error::{NetError, Result};
pub use identity::{CONTROLLER_DNS_NAME, Identity, Role};
pub use status::Fault;
