//! What lists show: the catalog's records in their stable JSON form, and as table rows.

use crate::{
    error::{Result, fault},
    output::{Row, bytes, short_time, time},
};
use holdfast_core::{ErrorKind, JobId, Name, SnapshotId, SourceRef, VaultId};
use holdfast_net::Fault;
use holdfast_proto::v1;
use serde::Serialize;

/// An id from its wire form.
pub(crate) fn id<'a, T>(raw: &'a [u8]) -> Result<T>
where
    T: TryFrom<&'a [u8]>,
    T::Error: std::fmt::Display,
{
    T::try_from(raw).map_err(|e| fault(ErrorKind::Internal, format!("the controller sent {e}")))
}

/// An id that may be absent.
pub(crate) fn optional_id<'a, T>(raw: &'a [u8]) -> Result<Option<T>>
where
    T: TryFrom<&'a [u8]>,
    T::Error: std::fmt::Display,
{
    if raw.is_empty() {
        Ok(None)
    } else {
        id(raw).map(Some)
    }
}

/// A source from its wire form.
pub(crate) fn source(wire: Option<v1::SourceRef>) -> Result<SourceRef> {
    let v1::SourceRef { agent, source } = wire.ok_or_else(|| {
        fault(
            ErrorKind::Internal,
            "the controller sent a record without its source",
        )
    })?;
    let name = |text: String| -> Result<Name> {
        text.parse()
            .map_err(|e| fault(ErrorKind::Internal, format!("the controller sent a name: {e}")))
    };
    Ok(SourceRef {
        agent: name(agent)?,
        source: name(source)?,
    })
}

fn text(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

fn or_dash(text: &Option<impl ToString>) -> String {
    text.as_ref().map_or_else(|| "-".into(), ToString::to_string)
}

/// Counts of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Stats {
    files: u64,
    dirs: u64,
    symlinks: u64,
    others: u64,
    skipped: u64,
    pub(crate) bytes: u64,
    files_unchanged: u64,
    bytes_read: u64,
    chunks_new: u64,
    bytes_new: u64,
    bytes_stored: u64,
    files_vanished: u64,
    files_changing: u64,
    pub(crate) unreadable: u64,
    packs: u64,
}

impl From<v1::RunStats> for Stats {
    fn from(stats: v1::RunStats) -> Self {
        let v1::RunStats {
            files,
            dirs,
            symlinks,
            others,
            skipped,
            bytes,
            files_unchanged,
            bytes_read,
            chunks_new,
            bytes_new,
            bytes_stored,
            files_vanished,
            files_changing,
            unreadable,
            packs,
        } = stats;
        Self {
            files,
            dirs,
            symlinks,
            others,
            skipped,
            bytes,
            files_unchanged,
            bytes_read,
            chunks_new,
            bytes_new,
            bytes_stored,
            files_vanished,
            files_changing,
            unreadable,
            packs,
        }
    }
}

/// Something that could not be backed up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct ProblemRow {
    /// With replacement characters where it is not UTF-8.
    pub(crate) path: String,
    pub(crate) reason: String,
}

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct SnapshotRow {
    pub(crate) id: SnapshotId,
    pub(crate) source: SourceRef,
    pub(crate) sequence: u64,
    pub(crate) state: String,
    pub(crate) partial: bool,
    pub(crate) vault: VaultId,
    started_at: Option<String>,
    finished_at: Option<String>,
    deleted_at: Option<String>,
    undo_until: Option<String>,
    hold: Option<String>,
    job: Option<JobId>,
    root_hash: String,
    root_len: u64,
    pub(crate) stats: Stats,
    pub(crate) problems: Vec<ProblemRow>,
    #[serde(skip)]
    pub(crate) finished_millis: u64,
}

impl TryFrom<v1::Snapshot> for SnapshotRow {
    type Error = Fault;
    fn try_from(wire: v1::Snapshot) -> Result<Self> {
        let v1::Snapshot {
            id: raw_id,
            source: raw_source,
            vault,
            sequence,
            root_hash,
            root_len,
            started_at,
            finished_at,
            stats,
            partial,
            state,
            deleted_at,
            undo_until,
            hold,
            job,
            problems,
        } = wire;
        Ok(Self {
            id: id(&raw_id)?,
            source: source(raw_source)?,
            sequence,
            state,
            partial,
            vault: id(&vault)?,
            started_at: time(started_at),
            finished_at: time(finished_at),
            deleted_at: time(deleted_at),
            undo_until: time(undo_until),
            hold: text(hold),
            job: optional_id(&job)?,
            root_hash: hex::encode(root_hash),
            root_len,
            stats: stats.unwrap_or_default().into(),
            problems: problems
                .into_iter()
                .map(|v1::Problem { path, reason }| ProblemRow {
                    path: String::from_utf8_lossy(&path).into_owned(),
                    reason,
                })
                .collect(),
            finished_millis: finished_at,
        })
    }
}

impl Row for SnapshotRow {
    const LIST: &'static str = "SnapshotList";
    const COLUMNS: &'static [&'static str] = &[
        "ID",
        "SOURCE",
        "FINISHED",
        "STATE",
        "SIZE",
        "FILES",
        "SEQUENCE",
        "STORED",
        "UNREADABLE",
        "VAULT",
    ];
    const NARROW: usize = 6;

    fn name(&self) -> String {
        self.id.to_string()
    }

    fn cells(&self) -> Vec<String> {
        let state = if self.partial {
            format!("{}, partial", self.state)
        } else {
            self.state.clone()
        };
        vec![
            self.id.to_string(),
            self.source.to_string(),
            short_time(self.finished_millis),
            state,
            bytes(self.stats.bytes),
            self.stats.files.to_string(),
            self.sequence.to_string(),
            bytes(self.stats.bytes_stored),
            self.stats.unreadable.to_string(),
            self.vault.to_string(),
        ]
    }
}

/// An agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct AgentRow {
    pub(crate) name: String,
    pub(crate) connected: bool,
    pub(crate) vault: VaultId,
    vault_name: String,
    incarnation: u32,
    version: Option<String>,
    joined_at: Option<String>,
    last_seen_at: Option<String>,
    allow: Vec<String>,
    signing_public_key: Option<String>,
    sealing_recipient: Option<String>,
    #[serde(skip)]
    pub(crate) keys: AgentKeys,
    #[serde(skip)]
    last_seen_millis: u64,
}

/// An agent's public keys as sent, with their endorsement.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct AgentKeys {
    pub(crate) signing: Vec<u8>,
    pub(crate) sealing: Vec<u8>,
    pub(crate) mac: Vec<u8>,
}

impl TryFrom<v1::Agent> for AgentRow {
    type Error = Fault;
    fn try_from(wire: v1::Agent) -> Result<Self> {
        let v1::Agent {
            name,
            vault,
            vault_name,
            incarnation,
            joined_at,
            connected,
            last_seen_at,
            version,
            allow,
            signing_key,
            sealing_key,
            keys_mac,
        } = wire;
        Ok(Self {
            name,
            connected,
            vault: id(&vault)?,
            vault_name,
            incarnation,
            version: text(version),
            joined_at: time(joined_at),
            last_seen_at: time(last_seen_at),
            allow,
            signing_public_key: text(hex::encode(&signing_key)),
            sealing_recipient: text(String::from_utf8_lossy(&sealing_key).into_owned()),
            keys: AgentKeys {
                signing: signing_key.to_vec(),
                sealing: sealing_key.to_vec(),
                mac: keys_mac.to_vec(),
            },
            last_seen_millis: last_seen_at,
        })
    }
}

impl Row for AgentRow {
    const LIST: &'static str = "AgentList";
    const COLUMNS: &'static [&'static str] = &[
        "NAME",
        "CONNECTED",
        "LAST SEEN",
        "VAULT",
        "VERSION",
        "INCARNATION",
        "ALLOW",
    ];
    const NARROW: usize = 5;

    fn name(&self) -> String {
        self.name.clone()
    }

    fn cells(&self) -> Vec<String> {
        vec![
            self.name.clone(),
            if self.connected { "yes".into() } else { "no".into() },
            short_time(self.last_seen_millis),
            self.vault_name.clone(),
            or_dash(&self.version),
            self.incarnation.to_string(),
            self.allow.join(", "),
        ]
    }
}

/// A source.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct SourceRow {
    pub(crate) name: SourceRef,
    snapshots: u64,
    pub(crate) latest_snapshot: Option<SnapshotId>,
    latest_at: Option<String>,
    running_job: Option<JobId>,
    created_at: Option<String>,
    changed_at: Option<String>,
    document: serde_json::Value,
    #[serde(skip)]
    pub(crate) document_text: String,
    #[serde(skip)]
    latest_millis: u64,
}

impl TryFrom<v1::Source> for SourceRow {
    type Error = Fault;
    fn try_from(wire: v1::Source) -> Result<Self> {
        let v1::Source {
            r#ref,
            document,
            files: _,
            created_at,
            changed_at,
            latest_snapshot,
            latest_at,
            snapshots,
            running_job,
        } = wire;
        Ok(Self {
            name: source(r#ref)?,
            snapshots,
            latest_snapshot: optional_id(&latest_snapshot)?,
            latest_at: time(latest_at),
            running_job: optional_id(&running_job)?,
            created_at: time(created_at),
            changed_at: time(changed_at),
            document: serde_json::from_str(&document).unwrap_or_default(),
            document_text: document,
            latest_millis: latest_at,
        })
    }
}

impl Row for SourceRow {
    const LIST: &'static str = "SourceList";
    const COLUMNS: &'static [&'static str] = &["NAME", "SNAPSHOTS", "LATEST", "RUNNING", "LATEST SNAPSHOT"];
    const NARROW: usize = 4;

    fn name(&self) -> String {
        self.name.to_string()
    }

    fn cells(&self) -> Vec<String> {
        vec![
            self.name.to_string(),
            self.snapshots.to_string(),
            short_time(self.latest_millis),
            or_dash(&self.running_job),
            or_dash(&self.latest_snapshot),
        ]
    }
}

/// A job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct JobRow {
    pub(crate) id: JobId,
    pub(crate) kind: String,
    pub(crate) source: SourceRef,
    agent: String,
    pub(crate) state: String,
    attempt: u32,
    pub(crate) snapshot: Option<SnapshotId>,
    pub(crate) error: Option<String>,
    pub(crate) error_kind: Option<String>,
    requested_by: String,
    created_at: Option<String>,
    started_at: Option<String>,
    finished_at: Option<String>,
    pub(crate) stats: Stats,
    #[serde(skip)]
    created_millis: u64,
}

impl TryFrom<v1::Job> for JobRow {
    type Error = Fault;
    fn try_from(wire: v1::Job) -> Result<Self> {
        let v1::Job {
            id: raw_id,
            kind,
            source: raw_source,
            agent,
            state,
            attempt,
            created_at,
            started_at,
            finished_at,
            error_kind,
            error,
            snapshot,
            stats,
            requested_by,
        } = wire;
        Ok(Self {
            id: id(&raw_id)?,
            kind,
            source: source(raw_source)?,
            agent,
            state,
            attempt,
            snapshot: optional_id(&snapshot)?,
            error: text(error),
            error_kind: text(error_kind),
            requested_by,
            created_at: time(created_at),
            started_at: time(started_at),
            finished_at: time(finished_at),
            stats: stats.unwrap_or_default().into(),
            created_millis: created_at,
        })
    }
}

impl Row for JobRow {
    const LIST: &'static str = "JobList";
    const COLUMNS: &'static [&'static str] = &[
        "ID",
        "KIND",
        "SOURCE",
        "STATE",
        "CREATED",
        "ERROR",
        "AGENT",
        "ATTEMPT",
        "SNAPSHOT",
        "REQUESTED BY",
    ];
    const NARROW: usize = 6;

    fn name(&self) -> String {
        self.id.to_string()
    }

    fn cells(&self) -> Vec<String> {
        vec![
            self.id.to_string(),
            self.kind.clone(),
            self.source.to_string(),
            self.state.clone(),
            short_time(self.created_millis),
            or_dash(&self.error),
            self.agent.clone(),
            self.attempt.to_string(),
            or_dash(&self.snapshot),
            self.requested_by.clone(),
        ]
    }
}

/// A member of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct MemberRow {
    node: u64,
    address: String,
    role: String,
    version: String,
}

impl From<v1::Member> for MemberRow {
    fn from(
        v1::Member {
            node,
            address,
            role,
            version,
        }: v1::Member,
    ) -> Self {
        Self {
            node,
            address,
            role,
            version,
        }
    }
}

impl Row for MemberRow {
    const LIST: &'static str = "MemberList";
    const COLUMNS: &'static [&'static str] = &["NODE", "ADDRESS", "ROLE", "VERSION"];
    const NARROW: usize = 4;

    fn name(&self) -> String {
        self.node.to_string()
    }

    fn cells(&self) -> Vec<String> {
        vec![
            self.node.to_string(),
            self.address.clone(),
            self.role.clone(),
            self.version.clone(),
        ]
    }
}

/// A vault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct VaultRow {
    pub(crate) name: String,
    pub(crate) id: VaultId,
    key_object_len: usize,
    #[serde(skip)]
    pub(crate) key_object: Vec<u8>,
}

impl TryFrom<v1::Vault> for VaultRow {
    type Error = Fault;
    fn try_from(
        v1::Vault {
            id: raw,
            name,
            key_object,
        }: v1::Vault,
    ) -> Result<Self> {
        Ok(Self {
            name,
            id: id(&raw)?,
            key_object_len: key_object.len(),
            key_object: key_object.to_vec(),
        })
    }
}

impl Row for VaultRow {
    const LIST: &'static str = "VaultList";
    const COLUMNS: &'static [&'static str] = &["NAME", "ID"];
    const NARROW: usize = 2;

    fn name(&self) -> String {
        self.name.clone()
    }

    fn cells(&self) -> Vec<String> {
        vec![self.name.clone(), self.id.to_string()]
    }
}

/// An audit record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct AuditRow {
    sequence: u64,
    at: Option<String>,
    actor: String,
    action: String,
    object: String,
    outcome: String,
    hash: String,
    #[serde(skip)]
    at_millis: u64,
}

impl From<v1::AuditRecord> for AuditRow {
    fn from(wire: v1::AuditRecord) -> Self {
        let v1::AuditRecord {
            sequence,
            at,
            actor,
            action,
            object,
            outcome,
            hash,
        } = wire;
        let hash = hex::encode(hash);
        Self {
            sequence,
            at: time(at),
            actor,
            action,
            object,
            outcome,
            hash,
            at_millis: at,
        }
    }
}

impl Row for AuditRow {
    const LIST: &'static str = "AuditList";
    const COLUMNS: &'static [&'static str] =
        &["SEQUENCE", "AT", "ACTOR", "ACTION", "OBJECT", "OUTCOME", "HASH"];
    const NARROW: usize = 6;

    fn name(&self) -> String {
        self.sequence.to_string()
    }

    fn cells(&self) -> Vec<String> {
        vec![
            self.sequence.to_string(),
            short_time(self.at_millis),
            self.actor.clone(),
            self.action.clone(),
            self.object.clone(),
            self.outcome.clone(),
            self.hash.clone(),
        ]
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::output::{Format, rows};

    pub(crate) fn snapshot(number: u8) -> SnapshotRow {
        let wire = v1::Snapshot {
            id: vec![number; 16].into(),
            source: Some(v1::SourceRef {
                agent: "web1".into(),
                source: "a".into(),
            }),
            vault: vec![9; 16].into(),
            sequence: number.into(),
            finished_at: u64::from(number) * 1000,
            state: "visible".into(),
            problems: vec![v1::Problem {
                path: vec![b'a', 0xff].into(),
                reason: "denied".into(),
            }],
            ..v1::Snapshot::default()
        };
        wire.try_into().unwrap()
    }

    #[test]
    fn snapshots_in_json_begin_with_id_and_source() {
        let text = rows(&[snapshot(1)], Format::Json).unwrap();
        let (id, source) = (
            text.find("\"id\"").unwrap(),
            text.find("\"source\": \"web1/a\"").unwrap(),
        );
        assert!(id < source && source < text.find("\"stats\"").unwrap());
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["items"][0]["problems"][0]["path"], "a\u{fffd}");
        assert_eq!(value["items"][0]["deleted_at"], serde_json::Value::Null);
    }

    #[test]
    fn every_row_has_a_cell_per_column() {
        assert_eq!(snapshot(1).cells().len(), SnapshotRow::COLUMNS.len());
        let agent = v1::Agent {
            vault: vec![1; 16].into(),
            ..v1::Agent::default()
        };
        assert_eq!(
            AgentRow::try_from(agent).unwrap().cells().len(),
            AgentRow::COLUMNS.len()
        );
        let source = || {
            Some(v1::SourceRef {
                agent: "a".into(),
                source: "b".into(),
            })
        };
        let row = v1::Source {
            r#ref: source(),
            ..v1::Source::default()
        };
        assert_eq!(
            SourceRow::try_from(row).unwrap().cells().len(),
            SourceRow::COLUMNS.len()
        );
        let job = v1::Job {
            id: vec![1; 16].into(),
            source: source(),
            ..v1::Job::default()
        };
        assert_eq!(
            JobRow::try_from(job).unwrap().cells().len(),
            JobRow::COLUMNS.len()
        );
        assert_eq!(
            MemberRow::from(v1::Member::default()).cells().len(),
            MemberRow::COLUMNS.len()
        );
        let vault = v1::Vault {
            id: vec![1; 16].into(),
            ..v1::Vault::default()
        };
        assert_eq!(
            VaultRow::try_from(vault).unwrap().cells().len(),
            VaultRow::COLUMNS.len()
        );
        assert_eq!(
            AuditRow::from(v1::AuditRecord::default()).cells().len(),
            AuditRow::COLUMNS.len()
        );
    }

    #[test]
    fn malformed_records_are_refused() {
        let bad = v1::Snapshot {
            id: vec![1; 15].into(),
            ..v1::Snapshot::default()
        };
        assert_eq!(SnapshotRow::try_from(bad).unwrap_err().kind, ErrorKind::Internal);
        assert!(
            JobRow::try_from(v1::Job {
                id: vec![1; 16].into(),
                ..v1::Job::default()
            })
            .is_err()
        );
    }
}
