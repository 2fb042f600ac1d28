//! What can go wrong between the wire and the domain.

use holdfast_core::{ErrorKind, HasKind};
use std::{io, path::Path};

/// An error of this crate. Texts never contain secrets: they are logged and sent to peers.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// A file, socket or other operating system resource failed.
    #[error("{what}: {source}")]
    Io {
        /// What was tried, with the path or address.
        what: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Something given to us is malformed or makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// Well-formed, but not allowed.
    #[error("{0}")]
    Denied(String),
    /// A certificate, signature or key that does not show what it should.
    #[error("{0}")]
    Untrusted(String),
    /// Stored or carried bytes were changed.
    #[error("{0}")]
    Corrupt(String),
    /// Larger than a bound of `limits`.
    #[error("{0}")]
    TooLarge(String),
    /// Something exists already.
    #[error("{0}")]
    Conflict(String),
    /// A format or feature that this version does not know.
    #[error("{0}")]
    Unsupported(String),
    /// No address answered.
    #[error("{0}")]
    Unavailable(String),
    /// A defect of ours, or of a library that we rely on.
    #[error("{0}")]
    Internal(String),
}

/// Result with [`NetError`].
pub type Result<T, E = NetError> = std::result::Result<T, E>;

impl NetError {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    pub(crate) fn file(verb: &str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        Self::io(format!("{verb} {}", path.display()))
    }

    /// For library calls that fail only through a defect, with what was tried.
    pub(crate) fn internal<E: std::fmt::Display>(what: &str) -> impl FnOnce(E) -> Self {
        move |error| Self::Internal(format!("{what}: {error}"))
    }
}

impl HasKind for NetError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Io { source, .. } if source.kind() == io::ErrorKind::AlreadyExists => ErrorKind::Conflict,
            Self::Io { source, .. } => ErrorKind::of_io(source),
            Self::Invalid(_) => ErrorKind::Invalid,
            Self::Denied(_) => ErrorKind::Denied,
            Self::Untrusted(_) => ErrorKind::Unauthenticated,
            Self::Corrupt(_) => ErrorKind::Corrupt,
            Self::TooLarge(_) => ErrorKind::TooLarge,
            Self::Conflict(_) => ErrorKind::Conflict,
            Self::Unsupported(_) => ErrorKind::Unsupported,
            Self::Unavailable(_) => ErrorKind::Unavailable,
            Self::Internal(_) => ErrorKind::Internal,
        }
    }
}
