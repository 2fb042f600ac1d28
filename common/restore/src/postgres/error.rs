//! Why a PostgreSQL backup is not restored, or what was restored does not run.

use super::space::{self, Lack};
use holdfast_core::{ErrorKind, HasKind};
use holdfast_postgres::{PgError, SystemId};

/// Refusals and contradictions; nothing was written when one of them is returned, but for those about a server that is
/// started.
#[derive(Debug, thiserror::Error)]
pub enum PostgresError {
    /// The backup contradicts itself, or is not what an agent writes.
    #[error("this PostgreSQL backup cannot be used: {0}")]
    Bad(String),
    /// A newer version made it.
    #[error("this PostgreSQL backup has version {0} of its form, which this version does not know")]
    Newer(u64),
    /// A file of the backup or of the target is not PostgreSQL's.
    #[error("{what}: {source}")]
    File {
        /// Which file.
        what: String,
        /// What is wrong with it.
        source: PgError,
    },
    /// What was written for a tablespace makes no sense.
    #[error("{0}")]
    Mapping(String),
    /// Two targets would lie in each other.
    #[error("{inner} lies in {outer}: data directory and tablespaces need places of their own")]
    Nested {
        /// What lies within.
        inner: String,
        /// What it lies in, or the same.
        outer: String,
    },
    /// The data directory is not empty.
    #[error("{dir} cannot be restored into: it is not empty")]
    NotEmpty {
        /// Its path.
        dir: String,
    },
    /// It holds what is no cluster and no unfinished restore.
    #[error("{dir} cannot be restored into: it holds neither a cluster nor an unfinished restore of one")]
    Foreign {
        /// Its path.
        dir: String,
    },
    /// It holds another cluster.
    #[error("{dir} cannot be restored into: it belongs to the cluster {theirs}, and the backup is of {ours}")]
    OtherCluster {
        /// Its path.
        dir: String,
        /// Whose it is.
        theirs: SystemId,
        /// Whose backup it is.
        ours: SystemId,
    },
    /// A server runs there.
    #[error("{dir} cannot be restored into: a server runs there (process {pid}, says its postmaster.pid)")]
    Running {
        /// Its path.
        dir: String,
        /// The process.
        pid: i32,
    },
    /// Another restore works there.
    #[error("{dir} cannot be restored into: another restore works there; wait for its end")]
    Busy {
        /// Its path.
        dir: String,
    },
    /// Where the target is, and what is archived, do not fit.
    #[error("the WAL that is archived does not lead there: {0}")]
    Way(PgError),
    /// Some of the WAL on the way is not archived.
    #[error(
        "WAL on the way to the target is not archived: {missing} (it can be replayed {})",
        until(reaches)
    )]
    WalMissing {
        /// Which segments.
        missing: String,
        /// The last segment before them.
        reaches: Option<String>,
    },
    /// The cluster that is replaced has more WAL, which does not connect with the archive.
    #[error(
        "{dir} has WAL that is archived nowhere and goes on behind a gap: {segments}; what lies before it is missing, so that this \
         recovery would end before it"
    )]
    WouldLose {
        /// Its data directory.
        dir: String,
        /// Which segments.
        segments: String,
    },
    /// It would not fit.
    #[error("there is not enough room, and nothing was written: {}", space::told(lacks))]
    NoRoom {
        /// Where.
        lacks: Vec<Lack>,
    },
    /// Nothing was archived since the target.
    #[error("no WAL of that time is archived: {}", newest_text(newest))]
    NotThatFar {
        /// When the newest was.
        newest: Option<jiff::Timestamp>,
    },
    /// There are no programs of the server's version on this machine.
    #[error(
        "the programs of PostgreSQL {major} are not on this machine, so the restored server was not started"
    )]
    NoPrograms {
        /// The major version.
        major: u32,
    },
    /// A server that was started ended before it had recovered.
    #[error("the restored server on {dir} ended before it had recovered; it said last:\n{said}")]
    NotRecovered {
        /// Its data directory.
        dir: String,
        /// The end of its log.
        said: String,
    },
    /// A server would write over somebody else's tablespace.
    #[error(
        "the WAL on the way makes tablespace {oid} in {place}, where something lies already, and a server that replays it would write \
         over that; {dir} was restored but for its control file, so that no server starts from it"
    )]
    MakesTablespace {
        /// Its number.
        oid: u32,
        /// Where.
        place: String,
        /// The data directory.
        dir: String,
    },
    /// A tablespace's place is in use.
    #[error("tablespace {name} cannot be restored to {dir}: it is not empty")]
    TablespaceNotEmpty {
        /// The tablespace.
        name: String,
        /// Where it would go.
        dir: String,
    },
}

fn until(reaches: &Option<String>) -> String {
    reaches
        .as_ref()
        .map_or_else(|| "nowhere".into(), |name| format!("up to the end of {name}"))
}

fn newest_text(newest: &Option<jiff::Timestamp>) -> String {
    newest.as_ref().map_or_else(
        || "none is at all".into(),
        |at| format!("the newest was archived at {at}"),
    )
}

impl PostgresError {
    pub(crate) fn bad(why: impl Into<String>) -> Self {
        Self::Bad(why.into())
    }
}

impl HasKind for PostgresError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Bad(_) | Self::File { .. } => ErrorKind::Corrupt,
            Self::Way(error) => error.kind(),
            Self::WalMissing { .. } | Self::NotThatFar { .. } => ErrorKind::NotFound,
            Self::Newer(_) | Self::NoPrograms { .. } => ErrorKind::Unsupported,
            Self::NoRoom { .. } => ErrorKind::NoSpace,
            Self::NotRecovered { .. } => ErrorKind::Unavailable,
            Self::Mapping(_) | Self::Nested { .. } => ErrorKind::Invalid,
            Self::NotEmpty { .. }
            | Self::Foreign { .. }
            | Self::OtherCluster { .. }
            | Self::Running { .. }
            | Self::Busy { .. }
            | Self::WouldLose { .. }
            | Self::MakesTablespace { .. }
            | Self::TablespaceNotEmpty { .. } => ErrorKind::Conflict,
        }
    }
}
