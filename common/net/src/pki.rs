//! The cluster's certificates: an offline root, an issuing CA of the controllers, and leaves.
//!
//! Only the root makes admins. A leaf that says `admin` and chains through an intermediate is refused by
//! [`verify`], so whoever captures the issuing CA can impersonate agents and controllers but not operators.

mod ca;
mod identity_file;
pub mod verify;

pub use ca::{Fingerprint, IssuingCa, RootCa};
pub use identity_file::TlsIdentity;
