//! What can be asked of the catalog, and what it answers. Each command is one Raft entry.

use super::model::{
    AdminKey, FilesSpec, Job, JobOutcome, JobWork, JournalOutcome, Meta, PostgresSpec, Problem, RunStats,
    Session, Snapshot, Token, TokenRole,
};
use holdfast_core::{
    ErrorKind, HostLimits, JobId, Name, PackId, RequestId, SessionId, SnapshotId, SourceRef, StoreId,
    UnixMillis, VaultId,
};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Actor {
    /// A controller by itself.
    System,
    /// An operator: everything is audited.
    Admin(Name),
    /// An agent about itself.
    Agent(Name),
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System => f.write_str("system"),
            Self::Admin(name) => write!(f, "admin/{name}"),
            Self::Agent(name) => write!(f, "agent/{name}"),
        }
    }
}

/// One Raft entry's content: a command and all that `apply` needs to be a pure function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proposal {
    /// The client's name for the request; a second entry with it gets the first one's reply.
    pub request: Option<RequestId>,
    /// Catalog time, from the leader.
    pub time: UnixMillis,
    /// Who asks.
    pub actor: Actor,
    /// W3C traceparent of the request; may be empty.
    pub trace: String,
    /// What is asked.
    pub command: Command,
}

/// A pack to be registered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackRegistration {
    /// The session that brought it.
    pub session: SessionId,
    /// That session's fence.
    pub fence: u64,
    /// The pack.
    pub pack: PackId,
    /// Whose; must be the session's.
    pub vault: VaultId,
    /// Bytes.
    pub len: u64,
}

/// A pack that gc wrote in place of others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RewrittenPack {
    /// The pack.
    pub pack: PackId,
    /// Whose.
    pub vault: VaultId,
    /// Bytes.
    pub len: u64,
}

/// A snapshot as its session hands it in; the catalog adds what it knows itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewSnapshot {
    /// BLAKE3 of the root object.
    pub root_hash: [u8; 32],
    /// Its length in bytes.
    pub root_len: u64,
    /// Hash of the previous root, as the root says.
    pub prev_root_hash: Option<[u8; 32]>,
    /// Counts.
    pub stats: RunStats,
    /// Some of it could not be read.
    pub partial: bool,
    /// What could not be read; more than `LISTED_PROBLEMS_MAX` are cut.
    pub problems: Vec<Problem>,
}

/// A page of a journal as its session hands it in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewPage {
    /// The page.
    pub id: SnapshotId,
    /// Its number, as its root says.
    pub number: u64,
    /// BLAKE3 of the root object.
    pub root_hash: [u8; 32],
    /// Its length in bytes.
    pub root_len: u64,
    /// Hash of the page before, as its root says; zeros for the first.
    pub previous: [u8; 32],
    /// Its files.
    pub files: Vec<NewFile>,
}

/// A file of such a page.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewFile {
    /// Its name, without any directory.
    pub name: String,
    /// Bytes.
    pub len: u64,
    /// Keyed hash of its content.
    pub content: [u8; 32],
}

/// What is asked of the catalog.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "fields are documented at the records that they fill")]
pub enum Command {
    /// Founds the cluster. Refused when it was founded already.
    Init { meta: Meta },
    /// Adds an admin's key.
    AddAdminKey { key: AdminKey },
    /// Makes a vault, or adds a key object to one.
    PutVault {
        vault: VaultId,
        name: Name,
        #[serde(with = "serde_bytes")]
        key_object: Vec<u8>,
    },
    /// Keeps a join token. Refused when the agent exists, unless the token replaces.
    CreateToken {
        auth_hash: [u8; 32],
        role: TokenRole,
        name: Name,
        vault: Option<VaultId>,
        #[serde(with = "serde_bytes")]
        wrapped_vault: Vec<u8>,
        ttl_ms: u64,
        replace: bool,
    },
    /// Uses a token up: makes the agent, or its next incarnation.
    UseToken {
        auth_hash: [u8; 32],
        name: Name,
        version: String,
    },
    /// What an agent says of itself when it connects.
    AgentHello {
        agent: Name,
        incarnation: u32,
        version: String,
        #[serde(with = "serde_bytes")]
        signing_key: Vec<u8>,
        #[serde(with = "serde_bytes")]
        sealing_key: Vec<u8>,
        #[serde(with = "serde_bytes")]
        keys_mac: Vec<u8>,
        allow: Vec<String>,
    },
    /// Makes or changes a source, of files or of PostgreSQL: one of both is given.
    PutSource {
        source: SourceRef,
        document: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        files: Option<FilesSpec>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        postgres: Option<PostgresSpec>,
        #[serde(default, skip_serializing_if = "HostLimits::is_none")]
        limits: HostLimits,
    },
    /// Forgets a source. Refused while it has snapshots (deleted ones in their undo period too), a job or a session.
    DeleteSource { source: SourceRef },
    /// Queues a job. A backup is refused while its source has a job that is not over.
    CreateJob {
        job: JobId,
        work: JobWork,
        source: SourceRef,
        agent: Name,
    },
    /// Notes that the agent was told.
    OfferJob { job: JobId, attempt: u32 },
    /// Gives the attempt to the agent that asks: one winner, before any effect.
    StartJob { job: JobId, attempt: u32 },
    /// Ends the attempt that runs.
    FinishJob {
        job: JobId,
        attempt: u32,
        outcome: JobOutcome,
    },
    /// The agent that ran the attempt is lost: a backup is queued again, a restore ends interrupted.
    LoseJob {
        job: JobId,
        attempt: u32,
        reason: String,
    },
    /// Ends a job that is not over, and its session.
    CancelJob { job: JobId },
    /// Opens a session for the attempt that runs. Refused while gc runs, the source has one open or its cluster is being backed
    /// up by another job, and for another cluster than that of its snapshots.
    OpenSession {
        session: SessionId,
        snapshot: SnapshotId,
        source: SourceRef,
        agent: Name,
        incarnation: u32,
        job: JobId,
        attempt: u32,
        /// The PostgreSQL cluster that is backed up, as its server says; none for other sources, and from older agents.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        system_id: Option<u64>,
    },
    /// The agent gives up.
    CloseSession {
        session: SessionId,
        fence: u64,
        reason: String,
    },
    /// The lease ended.
    ExpireSession { session: SessionId, fence: u64 },
    /// Registers packs whose bytes are on disk; each has its own outcome, in order.
    RegisterPacks { packs: Vec<PackRegistration> },
    /// Makes the session's snapshot visible. Refused if packs of its vault were deleted after `as_of_index`.
    CommitSnapshot {
        session: SessionId,
        fence: u64,
        as_of_index: u64,
        snapshot: NewSnapshot,
    },
    /// Opens a session that appends to a source's journal, in place of an earlier one of the same agent. Refused while gc
    /// runs, and for another cluster than the journal's.
    OpenJournal {
        session: SessionId,
        source: SourceRef,
        agent: Name,
        incarnation: u32,
        system_id: u64,
    },
    /// Keeps the files of a page. The session stays open. Refused if packs of its vault were deleted after `as_of_index`.
    AppendJournal {
        session: SessionId,
        fence: u64,
        as_of_index: u64,
        page: NewPage,
    },
    /// Notes that an agent's spool may hold WAL of a source, or that what `mark` opened does not any more.
    MarkTail {
        source: SourceRef,
        agent: Name,
        incarnation: u32,
        system_id: u64,
        mark: [u8; 16],
        is_open: bool,
    },
    /// Hides a snapshot; its content stays until the undo period is over.
    DeleteSnapshot { snapshot: SnapshotId, undo_ms: u64 },
    /// Brings a deleted snapshot back.
    UndeleteSnapshot { snapshot: SnapshotId },
    /// Begins a garbage collection. Refused while sessions are open or another one runs.
    GcBegin,
    /// Forgets deleted snapshots whose undo period is over (or all deleted ones). Only inside a garbage collection.
    ForgetSnapshots {
        fence: u64,
        snapshots: Vec<SnapshotId>,
        ignore_undo: bool,
    },
    /// Registers packs that gc wrote in place of others.
    GcRegister { fence: u64, packs: Vec<RewrittenPack> },
    /// Deletes packs for ever: their ids are never accepted again.
    GcDelete { fence: u64, packs: Vec<PackId> },
    /// Ends the garbage collection.
    GcEnd { fence: u64 },
    /// Names a store, or changes its path.
    AddStore {
        store: StoreId,
        site: Name,
        path: String,
    },
}

/// What became of one registration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PackOutcome {
    /// Registered now.
    Registered,
    /// Was registered before, with the same vault and length.
    AlreadyThere,
    /// Not registered.
    Refused(Refusal),
}

/// Why the catalog said no.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{text}")]
pub struct Refusal {
    /// Coarsely.
    pub kind: ErrorKind,
    /// For people: what, why, what next.
    pub text: String,
}

impl Refusal {
    /// A refusal of that kind.
    #[must_use]
    pub fn new(kind: ErrorKind, text: impl Into<String>) -> Self {
        Self {
            kind,
            text: text.into(),
        }
    }
}

/// What the catalog answers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "each field is what its name says")]
pub enum Reply {
    /// Done; there is nothing to say.
    #[default]
    Done,
    /// Refused; the state is as before, save for an audit record.
    Refused(Refusal),
    /// To CreateToken.
    Token { expires_at: UnixMillis },
    /// To UseToken.
    Joined { token: Token, incarnation: u32 },
    /// To PutSource and AddStore.
    Put { created: bool, changed: bool },
    /// To CreateJob and the other job commands: the job as it is now.
    Job(Box<Job>),
    /// To OpenSession.
    Session {
        session: Box<Session>,
        parent: Option<Box<Snapshot>>,
        vault_empty: bool,
    },
    /// To RegisterPacks and GcRegister, in order.
    Packs(Vec<PackOutcome>),
    /// To CommitSnapshot and UndeleteSnapshot.
    Snapshot(Box<Snapshot>),
    /// To OpenJournal.
    Journal {
        session: Box<Session>,
        next_page: u64,
        last_root: [u8; 32],
    },
    /// To AppendJournal: what became of each file, in order; and what the next page has to say.
    Appended {
        outcomes: Vec<JournalOutcome>,
        next_page: u64,
        last_root: [u8; 32],
    },
    /// To DeleteSnapshot.
    Deleted { undo_until: UnixMillis },
    /// To GcBegin.
    Gc { fence: u64 },
    /// To ForgetSnapshots and GcDelete: how many there were.
    Count(u64),
}

impl Command {
    /// The command less what the serving node draws anew for each attempt, so that retries are equal.
    #[must_use]
    pub fn client_part(&self) -> Self {
        match self.clone() {
            Self::CreateJob {
                work, source, agent, ..
            } => Self::CreateJob {
                job: JobId([0; 16]),
                // A node chooses who backs up by who is connected, which may be another one at a retry.
                agent: match work {
                    JobWork::Backup => source.agent.clone(),
                    _ => agent,
                },
                work,
                source,
            },
            other => other,
        }
    }
}
