//! Generated messages and services of the wire protocol; nothing here is written by hand.

#![forbid(unsafe_code)]
#![allow(missing_docs, clippy::all, clippy::pedantic, reason = "generated code")]

/// Version 1 of the protocol.
pub mod v1 {
    tonic::include_proto!("holdfast.v1");
}
