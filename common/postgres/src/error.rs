//! What can be wrong with a server's files, with names and positions, or with what a recovery is asked to do.

use holdfast_core::{ErrorKind, HasKind};

/// Longest part of a refused text that an error repeats.
const SHOWN_MAX: usize = 80;

/// Errors of this crate. Texts from outside are cut to a bound.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PgError {
    /// Bytes that are not of their format, or not all of it.
    #[error("{what} is damaged: {why}")]
    Malformed {
        /// The file or structure that was read.
        what: &'static str,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The bytes are not the ones that were summed up.
    #[error(
        "{what} does not match its checksum (stored {stored:#010x}, computed {computed:#010x}): read it again, \
         the server may have been writing it"
    )]
    ChecksumWrong {
        /// The file.
        what: &'static str,
        /// The sum that stands in it.
        stored: u32,
        /// The sum of what was read.
        computed: u32,
    },
    /// A text that does not have the form of what it should be.
    #[error("{text:?} is not {what}: {why}")]
    NotOne {
        /// What it should be.
        what: &'static str,
        /// The text, cut to a bound.
        text: String,
        /// Why it is not.
        why: &'static str,
    },
    /// Made by a server of a version whose formats are not known here.
    #[error("{what} is of an unknown version ({found}): PostgreSQL 13 to 17 are known")]
    UnknownVersion {
        /// What was read.
        what: &'static str,
        /// What it says of its version.
        found: String,
    },
    /// Whole, but of another cluster, another place or another shape than it was said to be.
    #[error("{what} is not what it is said to be: its {field} is {found}, and {expected} was expected")]
    Foreign {
        /// What was handed over.
        what: String,
        /// What differs.
        field: &'static str,
        /// What it says.
        found: String,
        /// What it should say.
        expected: String,
    },
    /// A position that is not on the way to the timeline that is asked for.
    #[error(
        "{at} on timeline {timeline} is not in the history of timeline {target}, which left that timeline at \
         {left}: choose a snapshot from before that, or another timeline"
    )]
    NotInHistory {
        /// The position.
        at: crate::Lsn,
        /// The timeline that it was said to be on.
        timeline: crate::TimelineId,
        /// The timeline to reach.
        target: crate::TimelineId,
        /// Where the way to the target leaves the former; zero if it never was on it.
        left: crate::Lsn,
    },
    /// A bound of `holdfast_core::limits` would be passed.
    #[error("{what} would be larger than its bound of {limit}")]
    TooLarge {
        /// What.
        what: &'static str,
        /// The bound.
        limit: usize,
    },
    /// Settings that contradict each other or that the server would take otherwise than meant.
    #[error("{what} is refused: {why}")]
    Refused {
        /// The setting.
        what: &'static str,
        /// Why, and what to write instead.
        why: &'static str,
    },
}

impl HasKind for PgError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Malformed { .. } | Self::ChecksumWrong { .. } => ErrorKind::Corrupt,
            Self::NotOne { .. } | Self::Refused { .. } => ErrorKind::Invalid,
            Self::UnknownVersion { .. } => ErrorKind::Unsupported,
            Self::Foreign { .. } | Self::NotInHistory { .. } => ErrorKind::Conflict,
            Self::TooLarge { .. } => ErrorKind::TooLarge,
        }
    }
}

/// Short form for decoders.
pub(crate) const fn malformed(what: &'static str, why: &'static str) -> PgError {
    PgError::Malformed { what, why }
}

/// Short form for parsers of texts.
pub(crate) fn not_one(what: &'static str, text: &str, why: &'static str) -> PgError {
    PgError::NotOne {
        what,
        text: text.chars().take(SHOWN_MAX).collect(),
        why,
    }
}

/// Refuses what is longer than its bound, before anything else looks at it.
pub(crate) fn bounded(what: &'static str, len: usize, limit: usize) -> Result<(), PgError> {
    if len > limit {
        Err(PgError::TooLarge { what, limit })
    } else {
        Ok(())
    }
}
