//! What can go wrong when content is brought back.

use crate::{path::shown, postgres::PostgresError};
use holdfast_core::{ChunkId, ErrorKind, HasKind, PackId, SnapshotId};
use holdfast_net::{Fault, NetError};
use holdfast_repo::RepoError;
use holdfast_store::StoreError;
use std::io;

/// Errors of restores, reads and verification. Paths are of the snapshot unless said otherwise.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// A controller refused, or none answered.
    #[error("{0}")]
    Fetch(Fault),
    /// A store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A peer's answer makes no sense.
    #[error("the controller's answer is not what was asked for: {0}")]
    Protocol(&'static str),
    /// A chunk is nowhere.
    #[error(
        "chunk {id} is not stored anywhere: run `holdfastctl verify`, and restore from another snapshot or site"
    )]
    Missing {
        /// The chunk.
        id: ChunkId,
    },
    /// Every copy of a chunk is damaged.
    #[error("chunk {id} is damaged in every copy that was tried, {} of them ({reason}; packs: {})", packs.len().max(1), list(packs))]
    Damaged {
        /// The chunk.
        id: ChunkId,
        /// Where bad copies were read.
        packs: Vec<PackId>,
        /// What is wrong with the last one.
        reason: RepoError,
    },
    /// Opening failed for another reason than damage.
    #[error(transparent)]
    Repo(#[from] RepoError),
    /// Something is wrong below one path.
    #[error("{}: {source}", shown(path))]
    At {
        /// Path in the snapshot.
        path: Vec<u8>,
        /// What.
        source: Box<RestoreError>,
    },
    /// The tree contradicts itself; only a defect or a holder of the vault's key can cause it.
    #[error("the snapshot's tree is damaged: {0}")]
    BadTree(&'static str),
    /// The snapshot has no such path.
    #[error("{} is not in this snapshot: list it with `holdfastctl ls`", shown(.0))]
    NoSuchPath(Vec<u8>),
    /// Nothing in the snapshot fits a pattern.
    #[error("nothing in this snapshot fits the pattern {}: list it with `holdfastctl ls -r`", shown(.0))]
    NoMatch(Vec<u8>),
    /// The path is of another kind than the call needs.
    #[error("{} is not {wanted}", shown(path))]
    WrongKind {
        /// Path in the snapshot.
        path: Vec<u8>,
        /// What it should be.
        wanted: &'static str,
    },
    /// The target is not one that may be restored into.
    #[error("{target} cannot be restored into: {reason}")]
    Target {
        /// Path of the target.
        target: String,
        /// Why not.
        reason: &'static str,
    },
    /// A PostgreSQL backup is not restored.
    #[error(transparent)]
    Postgres(#[from] PostgresError),
    /// Several things asked for exclude each other.
    #[error("{0}")]
    Invalid(&'static str),
    /// The operating system refused.
    #[error("{doing} {what}: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// With what: a path below the target, or the target.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// Recovery: no such snapshot.
    #[error("snapshot {0} is not in this store: list them with `holdfastctl recover --list`")]
    NoSuchSnapshot(SnapshotId),
    /// Recovery: the object is there, but is not genuine.
    #[error("{object} was refused: {reason}")]
    Refused {
        /// The object in the store.
        object: String,
        /// Why.
        reason: String,
        /// The kind of that reason.
        kind: ErrorKind,
    },
    /// Someone asked to stop.
    #[error("interrupted; what was restored so far stays")]
    Interrupted,
    /// A worker thread died: a defect of ours.
    #[error("a worker ended abnormally")]
    Worker,
}

impl RestoreError {
    /// Says below which path it happened, unless that is known.
    pub(crate) fn at(self, path: &[u8]) -> Self {
        match self {
            Self::At { .. } | Self::Interrupted => self,
            other => Self::At {
                path: path.to_vec(),
                source: Box::new(other),
            },
        }
    }

    pub(crate) fn io(doing: &'static str, what: impl Into<String>, errno: rustix::io::Errno) -> Self {
        Self::Io {
            doing,
            what: what.into(),
            source: errno.into(),
        }
    }

    /// The error without its path.
    pub(crate) fn cause(&self) -> &Self {
        match self {
            Self::At { source, .. } => source.cause(),
            other => other,
        }
    }

    /// Whether it concerns one path only, so that a restore goes on with the others.
    pub(crate) fn is_local(&self) -> bool {
        use rustix::io::Errno;
        match self.cause() {
            Self::Missing { .. } | Self::Damaged { .. } | Self::BadTree(_) | Self::Repo(_) => true,
            Self::Io { source, .. } => {
                let fatal = [
                    Errno::NOSPC,
                    Errno::DQUOT,
                    Errno::ROFS,
                    Errno::IO,
                    Errno::MFILE,
                    Errno::NFILE,
                ];
                !fatal
                    .iter()
                    .any(|errno| source.raw_os_error() == Some(errno.raw_os_error()))
            }
            _ => false,
        }
    }
}

fn list(packs: &[PackId]) -> String {
    if packs.is_empty() {
        return "unknown".into();
    }
    packs
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}

impl HasKind for RestoreError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Fetch(fault) => fault.kind,
            Self::Store(error) => error.kind(),
            Self::Missing { .. } | Self::Damaged { .. } | Self::BadTree(_) => ErrorKind::Corrupt,
            Self::Repo(error) => error.kind(),
            Self::Postgres(error) => error.kind(),
            Self::At { source, .. } => source.kind(),
            Self::NoSuchPath(_) | Self::NoMatch(_) | Self::NoSuchSnapshot(_) => ErrorKind::NotFound,
            Self::WrongKind { .. } | Self::Invalid(_) => ErrorKind::Invalid,
            Self::Target { .. } => ErrorKind::Conflict,
            Self::Io { source, .. } => ErrorKind::of_io(source),
            Self::Refused { kind, .. } => *kind,
            Self::Interrupted => ErrorKind::Interrupted,
            Self::Protocol(_) | Self::Worker => ErrorKind::Internal,
        }
    }
}

impl From<NetError> for RestoreError {
    fn from(error: NetError) -> Self {
        Self::Fetch(error.into())
    }
}
