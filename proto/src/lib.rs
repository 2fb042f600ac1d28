//! Messages and services of the wire protocol, generated, and the codec that they travel by.

#![forbid(unsafe_code)]

pub mod codec;

/// Version 1 of the protocol.
#[allow(missing_docs, clippy::all, clippy::pedantic, reason = "generated code")]
pub mod v1 {
    tonic::include_proto!("holdfast.v1");
}
