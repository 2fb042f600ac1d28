//! What can go wrong at a store, in terms that a caller can act on.

use crate::ObjectName;
use holdfast_core::{ErrorKind, HasKind};
use std::{io, path::PathBuf};

/// An error of a store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The object is not there although the store is.
    #[error("the store has no object {0}")]
    NotFound(ObjectName),
    /// The object ends before the range that was asked for.
    #[error("object {name} is damaged: {len} bytes wanted at offset {offset}, but it is {has} bytes long")]
    Short {
        /// The object.
        name: ObjectName,
        /// Where the range begins.
        offset: u64,
        /// Length of the range.
        len: u64,
        /// Length of the object.
        has: u64,
    },
    /// The object is longer than the caller is ready to hold.
    #[error("object {name} is {len} bytes long, more than the {max} that are allowed there")]
    TooLarge {
        /// The object.
        name: ObjectName,
        /// Its length.
        len: u64,
        /// What the caller allows.
        max: u64,
    },
    /// The text does not name an object of the store's layout.
    #[error("{0:?} does not name an object of a store")]
    BadName(String),
    /// There is no room; space must be freed first.
    #[error(
        "no space left while {doing} in {path}: free space there, for example with `holdfastctl snapshot delete` and `holdfastctl gc`"
    )]
    NoSpace {
        /// What was being done.
        doing: &'static str,
        /// The store's place.
        path: PathBuf,
    },
    /// The place of the store is there or not, but its marker is not: most likely an unmounted disk.
    #[error(
        "the store at {path} is offline: {reason}; mount it or check the path, nothing in it was changed"
    )]
    Offline {
        /// The store's place.
        path: PathBuf,
        /// What was seen.
        reason: String,
    },
    /// The place cannot become a store, or another process serves it.
    #[error("{path} cannot be used as a store: {reason}")]
    Conflict {
        /// The place.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The store was made by a version that this one does not know.
    #[error("the store at {path} has format version {version}, this program knows 1: use a newer Holdfast")]
    Version {
        /// The store's place.
        path: PathBuf,
        /// What its marker says.
        version: u32,
    },
    /// A sync of a directory failed before: what the disk holds is not known until it is read anew.
    #[error(
        "the store at {path} takes no more writes because an earlier sync failed: check the disk, then restart the controller"
    )]
    Poisoned {
        /// The store's place.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("{doing} failed at {path}: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A worker thread died: a defect of ours.
    #[error("a storage worker ended abnormally while {0}")]
    Worker(&'static str),
}

impl StoreError {
    pub(crate) fn io(doing: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        let path = path.into();
        match ErrorKind::of_io(&source) {
            ErrorKind::NoSpace => Self::NoSpace { doing, path },
            _ => Self::Io { doing, path, source },
        }
    }
}

impl HasKind for StoreError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound(_) => ErrorKind::NotFound,
            Self::Short { .. } => ErrorKind::Corrupt,
            Self::TooLarge { .. } => ErrorKind::TooLarge,
            Self::BadName(_) => ErrorKind::Invalid,
            Self::NoSpace { .. } => ErrorKind::NoSpace,
            Self::Offline { .. } => ErrorKind::Unavailable,
            Self::Conflict { .. } => ErrorKind::Conflict,
            Self::Version { .. } => ErrorKind::Unsupported,
            Self::Poisoned { .. } | Self::Io { .. } => ErrorKind::Io,
            Self::Worker(_) => ErrorKind::Internal,
        }
    }
}
