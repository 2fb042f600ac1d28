//! The records that the catalog keeps. Everything here is agreed on by Raft and equal on every node.
//!
//! Times are catalog time in milliseconds since 1970 ([`UnixMillis`]); an index is a Raft log index.

mod journal;
mod test_restore;

pub use journal::{Divergent, Journal, JournalFile, JournalOutcome, JournalPage, Tail};
pub use test_restore::{
    Recovered, RecoverySpec, TableRows, TestCheck, TestReport, TestRestoreSpec, TestSummary, Verdict,
};

use holdfast_core::{
    ClusterId, ErrorKind, HostLimits, JobId, Name, PackId, SessionId, SnapshotId, SourceRef, StoreId,
    UnixMillis, VaultId,
};
use serde::{Deserialize, Serialize};

/// What the cluster is: written once, when it is founded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// The cluster.
    pub cluster: ClusterId,
    /// Its name, as given to `init`.
    pub name: String,
    /// Grows when a cluster is founded anew from a surviving site; lower ones are refused.
    pub generation: u64,
    /// age recipient of the recovery kit, as text.
    pub recovery_recipient: String,
    /// Ed25519 public keys of the admins, 32 bytes each.
    pub admin_keys: Vec<AdminKey>,
    /// BLAKE3 of the root CA's certificate.
    #[serde(with = "serde_bytes")]
    pub root_ca_fingerprint: Vec<u8>,
    /// When it was founded.
    pub founded_at: UnixMillis,
}

/// An admin's public key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdminKey(#[serde(with = "serde_bytes")] pub Vec<u8>);

/// A domain of keys and deduplication. Its key objects are records of their own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vault {
    /// The vault.
    pub id: VaultId,
    /// Its name, unique in the cluster.
    pub name: Name,
    /// Key objects 0..key_objects exist.
    pub key_objects: u32,
    /// When it was made.
    pub created_at: UnixMillis,
}

/// What a vault holds, and when it last lost something.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VaultUse {
    /// Packs registered and not deleted.
    pub packs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Index of the last entry that deleted packs of this vault; 0 = never.
    pub last_deletion_index: u64,
}

/// A host that has joined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agent {
    /// Its name.
    pub name: Name,
    /// The vault it writes to and reads from.
    pub vault: VaultId,
    /// Grows when a rebuilt host takes the name over; certificates of lower ones are refused.
    pub incarnation: u32,
    /// Ed25519 public key that signs its roots; empty until its first hello.
    #[serde(with = "serde_bytes")]
    pub signing_key: Vec<u8>,
    /// age X25519 recipient, as text bytes.
    #[serde(with = "serde_bytes")]
    pub sealing_key: Vec<u8>,
    /// MAC over both keys under a vault-derived key: clients check it, controllers cannot.
    #[serde(with = "serde_bytes")]
    pub keys_mac: Vec<u8>,
    /// When this incarnation joined.
    pub joined_at: UnixMillis,
    /// Paths that its own configuration allows, as it last said.
    pub allow: Vec<String>,
    /// Program version, as it last said.
    pub version: String,
}

/// What a joining host becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TokenRole {
    /// A backup agent.
    Agent,
    /// Another controller.
    Controller,
}

/// A join token, found by the hash of what the joining host shows.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// BLAKE3 of derive("join-auth", secret).
    pub auth_hash: [u8; 32],
    /// What it makes.
    pub role: TokenRole,
    /// The name that the host gets.
    pub name: Name,
    /// Its vault; none for controllers.
    pub vault: Option<VaultId>,
    /// The vault's keys under derive("join-wrap", secret).
    #[serde(with = "serde_bytes")]
    pub wrapped_vault: Vec<u8>,
    /// Refused from then on.
    pub expires_at: UnixMillis,
    /// The name may exist: a rebuilt host takes it over.
    pub replace: bool,
    /// Used, and when.
    pub used_at: Option<UnixMillis>,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token")
            .field("role", &self.role)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// A file source's settings.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilesSpec {
    /// Absolute directories or files.
    pub roots: Vec<String>,
    /// gitignore patterns, relative to each root.
    pub exclude: Vec<String>,
    /// Whether other file systems below a root are taken too.
    pub cross_mounts: bool,
}

/// A PostgreSQL source's settings. How to reach the server stands in agent.toml on its host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PostgresSpec {
    /// The section `[postgres.NAME]` of agent.toml.
    pub cluster: Name,
    /// Begin at once, with the I/O that takes; otherwise after the next spread checkpoint.
    pub fast_checkpoint: bool,
    /// Agents beside the source's own whose servers are of the same cluster: primary and standbys share one archive.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<Name>,
}

/// One thing to protect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Its address.
    pub source: SourceRef,
    /// The document as applied, as JSON.
    pub document: String,
    /// Settings taken from the document: of a files source …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<FilesSpec>,
    /// … or of a PostgreSQL source; one of the two is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub postgres: Option<PostgresSpec>,
    /// What its jobs may take of their host.
    #[serde(default, skip_serializing_if = "HostLimits::is_none")]
    pub limits: HostLimits,
    /// When it was first applied.
    pub created_at: UnixMillis,
    /// When it last changed.
    pub changed_at: UnixMillis,
    /// The number that the next snapshot gets.
    pub next_sequence: u64,
    /// The newest visible snapshot.
    pub latest: Option<SnapshotId>,
    /// When that one finished; 0 when there is none.
    pub latest_at: UnixMillis,
    /// Visible snapshots.
    pub snapshots: u64,
    /// Its job that is not over yet.
    pub active_job: Option<JobId>,
    /// Its session that is not over yet.
    pub open_session: Option<SessionId>,
    /// What changed after its snapshots; none while nothing was kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub journal: Option<Journal>,
    /// The PostgreSQL cluster of its snapshots; none before its first backup, and where an older agent made them all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_id: Option<u64>,
    /// The last test restore of any of its snapshots that came to a verdict.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_test: Option<TestSummary>,
}

impl Source {
    /// The agents that may write to it: its own, then its members.
    pub fn agents(&self) -> impl Iterator<Item = &Name> {
        let members = self.postgres.iter().flat_map(|spec| &spec.members);
        std::iter::once(&self.source.agent).chain(members)
    }

    /// Whether an agent backs it up and archives into its journal.
    #[must_use]
    pub fn is_served_by(&self, agent: &Name) -> bool {
        self.agents().any(|serving| serving == agent)
    }
}

/// Counts of one backup run; see `RunStats` in types.proto.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(
    missing_docs,
    reason = "each field is documented where it is defined, in types.proto"
)]
pub struct RunStats {
    pub files: u64,
    pub dirs: u64,
    pub symlinks: u64,
    pub others: u64,
    pub skipped: u64,
    pub bytes: u64,
    pub files_unchanged: u64,
    pub bytes_read: u64,
    pub chunks_new: u64,
    pub bytes_new: u64,
    pub bytes_stored: u64,
    pub files_vanished: u64,
    pub files_changing: u64,
    pub unreadable: u64,
    pub packs: u64,
}

/// Something that could not be backed up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Path as bytes.
    #[serde(with = "serde_bytes")]
    pub path: Vec<u8>,
    /// Why.
    pub reason: String,
}

/// What to restore where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreSpec {
    /// Which snapshot.
    pub snapshot: SnapshotId,
    /// Absolute directory on the agent's host.
    pub target: String,
    /// Only these paths; empty: everything.
    pub paths: Vec<String>,
    /// A target that is not empty is allowed.
    pub in_place: bool,
}

/// What a job does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum JobWork {
    /// Backs its source up.
    Backup,
    /// Restores a snapshot onto its agent's host.
    Restore(RestoreSpec),
    /// Looks whether its source can be backed up as it should be.
    Check,
    /// Tries a snapshot of a PostgreSQL cluster in its agent's scratch directory.
    TestRestore(TestRestoreSpec),
}

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobState {
    /// Waits for its agent.
    Queued,
    /// Its agent was told.
    Offered,
    /// Its agent won it and works.
    Running,
    /// Done.
    Succeeded,
    /// Done, but some of it could not be.
    Partial,
    /// Over, not done.
    Failed,
    /// Over: the agent was lost, and it is not safe to begin again by itself.
    Interrupted,
    /// Over: someone asked.
    Cancelled,
}

impl JobState {
    /// Whether the job is over.
    #[must_use]
    pub fn is_over(self) -> bool {
        !matches!(self, Self::Queued | Self::Offered | Self::Running)
    }

    /// Name on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Offered => "offered",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Partial => "partial",
            Self::Failed => "failed",
            Self::Interrupted => "interrupted",
            Self::Cancelled => "cancelled",
        }
    }

    /// The state of that wire name.
    #[must_use]
    pub fn from_wire(name: &str) -> Option<Self> {
        [
            Self::Queued,
            Self::Offered,
            Self::Running,
            Self::Succeeded,
            Self::Partial,
            Self::Failed,
            Self::Interrupted,
            Self::Cancelled,
        ]
        .into_iter()
        .find(|state| state.as_str() == name)
    }
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobOutcome {
    /// One of the states that are over.
    pub state: JobState,
    /// Kind of the error, if it failed.
    pub error_kind: Option<ErrorKind>,
    /// The error's text, if it failed.
    pub error: String,
    /// The snapshot that a backup made.
    pub snapshot: Option<SnapshotId>,
    /// Counts.
    pub stats: RunStats,
    /// The limits that it ran under, as its agent read them back; none when it did not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<LimitsInForce>,
    /// What a check or a test restore found.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<CheckFinding>,
    /// What a test restore came to; none when it came to no verdict.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test: Option<Box<TestReport>>,
}

/// Something that a check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckFinding {
    /// A setting, a path, a right.
    pub what: String,
    /// Why it is wrong.
    pub why: String,
    /// The line that mends it.
    pub fix: String,
}

/// The limits that a job runs under; see `LimitsInForce` in types.proto.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(
    missing_docs,
    reason = "each field is documented where it is defined, in types.proto"
)]
pub struct LimitsInForce {
    pub asked: HostLimits,
    pub bandwidth: u64,
    pub read_rate: u64,
    pub threads: u32,
    pub nice: i32,
    pub cpu_weight: u32,
    pub io_class: String,
    pub io_priority: u32,
    pub warnings: Vec<String>,
}

/// A unit of work for an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// The job.
    pub id: JobId,
    /// What it does.
    pub work: JobWork,
    /// The source that is backed up, or whose snapshot is restored.
    pub source: SourceRef,
    /// Who carries it out.
    pub agent: Name,
    /// Where it stands.
    pub state: JobState,
    /// Counts from 1; grows when it is queued again after its agent was lost.
    pub attempt: u32,
    /// When it was asked for.
    pub created_at: UnixMillis,
    /// When its present attempt began; 0 = not yet.
    pub started_at: UnixMillis,
    /// When it was over; 0 = not yet.
    pub finished_at: UnixMillis,
    /// How it ended; none while it is not over.
    pub outcome: Option<JobOutcome>,
    /// The session of its present attempt.
    pub session: Option<SessionId>,
    /// Who asked, as in audit records.
    pub requested_by: String,
    /// W3C traceparent of whoever asked; may be empty.
    pub trace: String,
}

/// Where a session stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SessionState {
    /// May write.
    Open,
    /// Its snapshot is visible.
    Committed,
    /// Its agent gave up.
    Closed,
    /// Its lease ended.
    Expired,
}

/// One agent's run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// The session.
    pub id: SessionId,
    /// What it backs up.
    pub source: SourceRef,
    /// Where it writes.
    pub vault: VaultId,
    /// Who runs it.
    pub agent: Name,
    /// Which incarnation of that name.
    pub incarnation: u32,
    /// The job that it serves.
    pub job: JobId,
    /// Which attempt of that job.
    pub attempt: u32,
    /// Index of the entry that opened it: every later call must show it.
    pub fence: u64,
    /// Newest visible snapshot of the source when it opened; kept until the session is over.
    pub parent: Option<SnapshotId>,
    /// The id that its snapshot will have.
    pub snapshot: SnapshotId,
    /// The number that its snapshot will have.
    pub sequence: u64,
    /// When it opened.
    pub opened_at: UnixMillis,
    /// Where it stands.
    pub state: SessionState,
    /// When it was over; 0 = not yet.
    pub ended_at: UnixMillis,
    /// Why it was over, for people.
    pub reason: String,
    /// Packs that it registered.
    pub packs: u64,
    /// It appends to its source's journal instead of making a snapshot: its job, snapshot, sequence and parent say nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_journal: bool,
}

/// Whether a snapshot may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SnapshotState {
    /// Can be restored.
    Visible,
    /// Someone deleted it; it can be brought back until `undo_until`.
    Deleted,
}

/// A source at one point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The snapshot.
    pub id: SnapshotId,
    /// Of what.
    pub source: SourceRef,
    /// Where its content lies.
    pub vault: VaultId,
    /// 1, 2, 3 … of this source; numbers of failed runs are missing.
    pub sequence: u64,
    /// BLAKE3 of the root object.
    pub root_hash: [u8; 32],
    /// Length of the root object in bytes.
    pub root_len: u64,
    /// Hash of the previous root, as its root says; none for the first.
    pub prev_root_hash: Option<[u8; 32]>,
    /// When its session opened.
    pub started_at: UnixMillis,
    /// When it became visible.
    pub finished_at: UnixMillis,
    /// Counts of its run.
    pub stats: RunStats,
    /// Some of it could not be read.
    pub partial: bool,
    /// Whether it may be used.
    pub state: SnapshotState,
    /// When it was deleted; 0 = it is not.
    pub deleted_at: UnixMillis,
    /// It can be brought back until then; 0 when it is not deleted.
    pub undo_until: UnixMillis,
    /// Why it must stay; empty when it need not.
    pub hold: String,
    /// The job that made it.
    pub job: JobId,
    /// What could not be read, capped by `LISTED_PROBLEMS_MAX`.
    pub problems: Vec<Problem>,
    /// Its last test restore that came to a verdict.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_test: Option<TestSummary>,
}

/// A pack whose bytes are on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pack {
    /// The pack.
    pub id: PackId,
    /// Whose.
    pub vault: VaultId,
    /// Bytes.
    pub len: u64,
    /// The session that brought it; none for packs that gc rewrote.
    pub session: Option<SessionId>,
    /// Index of the entry that registered it.
    pub registered_index: u64,
    /// When that was.
    pub registered_at: UnixMillis,
}

/// A place that holds packs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Store {
    /// The store.
    pub id: StoreId,
    /// The site it belongs to.
    pub site: Name,
    /// Where it is, on the node that serves it.
    pub path: String,
}

/// A garbage collection that runs: no session opens meanwhile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GcRun {
    /// Index of the entry that began it; its later commands must show it.
    pub fence: u64,
    /// When it began.
    pub started_at: UnixMillis,
}

/// What an operator did, and what came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Audit {
    /// 1, 2, 3 …
    pub sequence: u64,
    /// When.
    pub at: UnixMillis,
    /// Who, for example `admin/alice`.
    pub actor: String,
    /// What, for example `snapshot.delete`.
    pub action: String,
    /// To what.
    pub object: String,
    /// `ok`, or the kind and text of the refusal.
    pub outcome: String,
    /// BLAKE3 over the hash before it and all fields above.
    pub hash: [u8; 32],
}
