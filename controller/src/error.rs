//! What can go wrong in a controller.

use crate::catalog::command::Refusal;
use holdfast_core::{ErrorKind, HasKind};
use std::path::{Path, PathBuf};

/// An error of the controller. Texts say what failed, why, and what to do next.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The catalog, or the edge, said no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// Present-tense verb, for example "open".
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Stored bytes are not what they should be.
    #[error("{what} is damaged: {why}")]
    Corrupt {
        /// What.
        what: String,
        /// How it was noticed, and what to do next.
        why: String,
    },
    /// This node cannot answer now; another may.
    #[error("the catalog is not available: {0}; try again")]
    Unavailable(String),
    /// A store said no.
    #[error(transparent)]
    Store(#[from] holdfast_store::StoreError),
    /// Bytes of the repository are not what they should be.
    #[error(transparent)]
    Repo(#[from] holdfast_repo::RepoError),
    /// The configuration is wrong.
    #[error("{0}")]
    Config(String),
    /// A defect of ours.
    #[error("internal error: {0}")]
    Internal(String),
}

impl Error {
    /// A refusal of that kind.
    pub fn refused(kind: ErrorKind, text: impl Into<String>) -> Self {
        Self::Refused(Refusal::new(kind, text))
    }

    /// An operating system error with its context.
    pub fn io(action: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::Io {
            action,
            path: path.to_owned(),
            source,
        }
    }

    /// Damage.
    pub fn corrupt(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Corrupt {
            what: what.into(),
            why: why.into(),
        }
    }
}

impl HasKind for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Refused(refusal) => refusal.kind,
            Self::Io { source, .. } => ErrorKind::of_io(source),
            Self::Corrupt { .. } => ErrorKind::Corrupt,
            Self::Unavailable(_) => ErrorKind::Unavailable,
            Self::Store(error) => error.kind(),
            Self::Repo(error) => error.kind(),
            Self::Config(_) => ErrorKind::Invalid,
            Self::Internal(_) => ErrorKind::Internal,
        }
    }
}

/// Short for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
