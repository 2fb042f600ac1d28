//! What can go wrong in an agent.

use holdfast_core::{ErrorKind, HasKind};
use holdfast_net::{Fault, NetError};
use holdfast_postgres::PgError;
use holdfast_repo::RepoError;
use std::path::{Path, PathBuf};

/// The result of anything here.
pub type Result<T, E = AgentError> = std::result::Result<T, E>;

/// Errors of the agent.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The operating system refused something about a path.
    #[error("{action} {path}: {source}")]
    Io {
        /// Present-tense verb, for example "open".
        action: &'static str,
        /// What it was done to.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The configuration or an argument is wrong.
    #[error("{0}")]
    Invalid(String),
    /// The agent's own configuration does not allow it.
    #[error("{0}")]
    NotAllowed(String),
    /// A controller refused or failed.
    #[error(transparent)]
    Remote(#[from] Fault),
    /// The network or an identity.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The engine.
    #[error(transparent)]
    Repo(#[from] RepoError),
    /// A PostgreSQL server refused, failed or is away.
    #[error("{action}: {message}")]
    Server {
        /// Present-tense verb, for example "connect to the PostgreSQL server".
        action: &'static str,
        /// What it said, and what helps.
        message: String,
        /// What kind of refusal that is.
        kind: ErrorKind,
    },
    /// Files of a PostgreSQL cluster, or what its server said.
    #[error(transparent)]
    Postgres(#[from] PgError),
    /// Someone asked to stop.
    #[error("stopped before the end: {0}")]
    Interrupted(String),
    /// A defect of ours.
    #[error("internal error: {0}")]
    Internal(String),
}

impl HasKind for AgentError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Io { source, .. } => ErrorKind::of_io(source),
            Self::Invalid(_) => ErrorKind::Invalid,
            Self::NotAllowed(_) => ErrorKind::Denied,
            Self::Remote(fault) => fault.kind,
            Self::Net(error) => error.kind(),
            Self::Repo(error) => error.kind(),
            Self::Server { kind, .. } => *kind,
            Self::Postgres(error) => error.kind(),
            Self::Interrupted(_) => ErrorKind::Interrupted,
            Self::Internal(_) => ErrorKind::Internal,
        }
    }
}

impl AgentError {
    /// For `map_err` on I/O.
    pub(crate) fn io<E: Into<std::io::Error>>(action: &'static str, path: &Path) -> impl FnOnce(E) -> Self {
        move |source| Self::Io {
            action,
            path: path.to_owned(),
            source: source.into(),
        }
    }
}
