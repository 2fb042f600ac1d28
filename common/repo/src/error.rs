//! What can be wrong with stored bytes or with a request to make them.

use holdfast_core::{ChunkId, ErrorKind, HasKind};

/// Errors of the engine. None carries content, keys or names from inside a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RepoError {
    /// Bytes that are not of the format, or not all of it.
    #[error("{what} is damaged: {why}")]
    Malformed {
        /// The structure that was read.
        what: &'static str,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Authentication failed: the bytes or the key are not the ones that were sealed.
    #[error("blob {0} does not open: its bytes were changed or its key is another")]
    NotAuthentic(ChunkId),
    /// The content opened, but is not what the id names.
    #[error("blob {0} holds other content than its id says")]
    WrongContent(ChunkId),
    /// A signature or MAC does not hold.
    #[error("{what} is not genuine: {why}")]
    Forged {
        /// The object.
        what: &'static str,
        /// Which check failed.
        why: &'static str,
    },
    /// A key that this vault's keyring does not hold.
    #[error("key {number} of this vault is not in the keyring: obtain a newer grant")]
    UnknownKey {
        /// Number of the epoch key.
        number: u32,
    },
    /// Written by a newer version in a way that must not be guessed at.
    #[error("{what} needs a newer version of this program (version {version}, flags {flags:#06x})")]
    TooNew {
        /// The structure.
        what: &'static str,
        /// Its version.
        version: u16,
        /// Its must-understand bits.
        flags: u16,
    },
    /// A bound of `holdfast_core::limits` would be passed.
    #[error("{what} would be larger than its bound of {limit}")]
    TooLarge {
        /// What.
        what: &'static str,
        /// The bound.
        limit: usize,
    },
    /// The compressor or the cipher refused; does not depend on the data's meaning.
    #[error("{0} failed")]
    Primitive(&'static str),
}

impl HasKind for RepoError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Malformed { .. } | Self::NotAuthentic(_) | Self::WrongContent(_) => ErrorKind::Corrupt,
            Self::Forged { .. } => ErrorKind::Denied,
            Self::UnknownKey { .. } => ErrorKind::NotFound,
            Self::TooNew { .. } => ErrorKind::Unsupported,
            Self::TooLarge { .. } => ErrorKind::TooLarge,
            Self::Primitive(_) => ErrorKind::Internal,
        }
    }
}

/// Short form for decoders.
pub(crate) const fn malformed(what: &'static str, why: &'static str) -> RepoError {
    RepoError::Malformed { what, why }
}
