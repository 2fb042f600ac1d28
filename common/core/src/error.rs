//! Kinds of error, and the one table that maps them to gRPC codes and exit codes.

use serde::{Deserialize, Serialize};

/// What went wrong, coarsely: enough to decide what a caller does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorKind {
    /// The request itself is wrong; repeating it cannot help.
    Invalid,
    /// The named thing does not exist.
    NotFound,
    /// Something else is in the way (already exists, already running).
    Conflict,
    /// The caller may not do this.
    Denied,
    /// The caller did not show who it is.
    Unauthenticated,
    /// The session's lease ended or its fence is old; open a new one.
    Fenced,
    /// A peer or the network is away for now; try again.
    Unavailable,
    /// Too few controllers agree; try again when they are back.
    NoQuorum,
    /// A second person must approve first.
    ApprovalNeeded,
    /// Stored bytes are not what they should be.
    Corrupt,
    /// No space left where data must go.
    NoSpace,
    /// A bound of `limits` would be passed.
    TooLarge,
    /// It took longer than its deadline.
    Timeout,
    /// Someone asked to stop.
    Interrupted,
    /// Done, but some of it could not be.
    Partial,
    /// A check ran to its end and found something.
    Findings,
    /// This version cannot do it (newer format, missing feature).
    Unsupported,
    /// The operating system refused (I/O error, permission on a local file).
    Io,
    /// A defect of ours.
    Internal,
}

/// An error that knows its kind.
pub trait HasKind: std::error::Error {
    /// The kind of this error.
    fn kind(&self) -> ErrorKind;
}

/// (kind, wire name, gRPC status code, exit code)
const TABLE: &[(ErrorKind, &str, i32, u8)] = &[
    (ErrorKind::Invalid, "invalid", 3, 2),
    (ErrorKind::NotFound, "not-found", 5, 10),
    (ErrorKind::Conflict, "conflict", 6, 11),
    (ErrorKind::Denied, "denied", 7, 12),
    (ErrorKind::Unauthenticated, "unauthenticated", 16, 12),
    (ErrorKind::Fenced, "fenced", 9, 1),
    (ErrorKind::Unavailable, "unavailable", 14, 1),
    (ErrorKind::NoQuorum, "no-quorum", 14, 13),
    (ErrorKind::ApprovalNeeded, "approval-needed", 9, 14),
    (ErrorKind::Corrupt, "corrupt", 15, 1),
    (ErrorKind::NoSpace, "no-space", 8, 1),
    (ErrorKind::TooLarge, "too-large", 8, 1),
    (ErrorKind::Timeout, "timeout", 4, 1),
    (ErrorKind::Interrupted, "interrupted", 1, 130),
    (ErrorKind::Partial, "partial", 2, 3),
    (ErrorKind::Findings, "findings", 2, 4),
    (ErrorKind::Unsupported, "unsupported", 12, 1),
    (ErrorKind::Io, "io", 2, 1),
    (ErrorKind::Internal, "internal", 13, 1),
];

impl ErrorKind {
    fn row(self) -> &'static (ErrorKind, &'static str, i32, u8) {
        // Every kind has a row (tested below); the last row is the safe answer.
        TABLE
            .iter()
            .find(|row| row.0 == self)
            .unwrap_or(&TABLE[TABLE.len() - 1])
    }

    /// Name on the wire and in JSON output; stable.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.row().1
    }

    /// gRPC status code (numbers as in the gRPC specification).
    #[must_use]
    pub fn grpc_code(self) -> i32 {
        self.row().2
    }

    /// Process exit code; stable.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        self.row().3
    }

    /// The kind of that wire name.
    #[must_use]
    pub fn from_wire(name: &str) -> Option<Self> {
        TABLE.iter().find(|row| row.1 == name).map(|row| row.0)
    }

    /// The most likely kind for a bare gRPC status code, as sent by something that is not Holdfast.
    #[must_use]
    pub fn from_grpc_code(code: i32) -> Self {
        TABLE
            .iter()
            .find(|row| row.2 == code)
            .map_or(Self::Internal, |row| row.0)
    }

    /// Whether the same call may succeed later without anyone doing anything.
    #[must_use]
    pub fn is_transient(self) -> bool {
        matches!(self, Self::Unavailable | Self::NoQuorum | Self::Timeout)
    }

    /// The kind of an operating system error.
    #[must_use]
    pub fn of_io(error: &std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Self::NoSpace,
            std::io::ErrorKind::NotFound => Self::NotFound,
            _ => Self::Io,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_one_row_and_its_name_is_serdes() {
        for (kind, name, _, _) in TABLE {
            assert_eq!(kind.row().0, *kind);
            assert_eq!(ErrorKind::from_wire(name), Some(*kind));
            assert_eq!(
                TABLE
                    .iter()
                    .filter(|row| row.0 == *kind || row.1 == *name)
                    .count(),
                1
            );
        }
        // `Internal` is declared last: its discriminant counts the kinds.
        assert_eq!(TABLE.len(), ErrorKind::Internal as usize + 1);
    }
}
