//! Catalog records to wire messages and back; nothing else knows both.

mod test_restore;

pub use test_restore::{
    test_report, test_restore_spec, wire_test_report, wire_test_restore, wire_test_summary,
};

use crate::{
    catalog::model::{
        Agent, Audit, CheckFinding, FilesSpec, Job, JobOutcome, JobWork, LimitsInForce, PostgresSpec,
        Problem, RestoreSpec, RunStats, Snapshot, SnapshotState, Source,
    },
    data::journal::journal_to_wire,
    error::{Error, Result},
};
use holdfast_core::{ErrorKind, HostLimits, IdError, NameError, SourceRef, limits};
use holdfast_net::host_limits;
use holdfast_proto::v1;

/// Longest text of a finding, in characters: a command with long paths.
const FINDING_TEXT_MAX: usize = 600;
/// Longest text that an agent may say of limits, in characters.
const LIMIT_TEXT_MAX: usize = 200;

/// A malformed part of a request.
pub fn invalid(why: impl std::fmt::Display) -> Error {
    Error::refused(ErrorKind::Invalid, why.to_string())
}

/// A source's address out of a request.
///
/// # Errors
/// `Invalid` when it is absent or malformed.
pub fn source_ref(wire: Option<&v1::SourceRef>) -> Result<SourceRef> {
    let wire = wire.ok_or_else(|| invalid("the request names no source"))?;
    let name = |text: &str| text.parse().map_err(|error: NameError| invalid(error));
    Ok(SourceRef {
        agent: name(&wire.agent)?,
        source: name(&wire.source)?,
    })
}

/// A source's address for the wire.
#[must_use]
pub fn wire_ref(source: &SourceRef) -> v1::SourceRef {
    v1::SourceRef {
        agent: source.agent.to_string(),
        source: source.source.to_string(),
    }
}

/// An id out of a request.
///
/// # Errors
/// `Invalid` when it has another length.
pub fn id<'a, T: TryFrom<&'a [u8], Error = IdError>>(bytes: &'a [u8]) -> Result<T> {
    T::try_from(bytes).map_err(invalid)
}

/// Settings of a source, with everything that would be refused by agents anyway; one of the two comes back.
///
/// # Errors
/// `Invalid` for none or both, for no roots or relative ones, for what is no name of a cluster.
pub fn source_spec(
    files: Option<v1::FilesSpec>,
    postgres: Option<v1::PostgresSpec>,
) -> Result<(Option<FilesSpec>, Option<PostgresSpec>)> {
    match (files, postgres) {
        (Some(files), None) => Ok((Some(files_spec(files)?), None)),
        (None, Some(postgres)) => Ok((None, Some(postgres_spec(postgres)?))),
        (None, None) => Err(invalid(
            "the source says nothing to back up: give spec.files.roots, or spec.postgres",
        )),
        (Some(_), Some(_)) => Err(invalid(
            "a source is of files or of PostgreSQL: make two sources of it",
        )),
    }
}

fn postgres_spec(wire: v1::PostgresSpec) -> Result<PostgresSpec> {
    let v1::PostgresSpec {
        cluster,
        fast_checkpoint,
        members,
    } = wire;
    let parsed = |member: &String| {
        member
            .parse()
            .map_err(|error: NameError| invalid(format!("spec.postgres.members: {error}")))
    };
    Ok(PostgresSpec {
        cluster: cluster
            .parse()
            .map_err(|error: NameError| invalid(format!("spec.postgres.cluster: {error}")))?,
        fast_checkpoint,
        members: members.iter().map(parsed).collect::<Result<_>>()?,
    })
}

fn files_spec(wire: v1::FilesSpec) -> Result<FilesSpec> {
    let v1::FilesSpec {
        roots,
        exclude,
        cross_mounts,
    } = wire;
    if roots.is_empty() {
        return Err(invalid("spec.files.roots is empty: name at least one directory"));
    }
    if let Some(relative) = roots.iter().find(|root| !root.starts_with('/')) {
        return Err(invalid(format!("root {relative:?} is not an absolute path")));
    }
    Ok(FilesSpec {
        roots,
        exclude,
        cross_mounts,
    })
}

/// Settings for the wire.
#[must_use]
pub fn wire_files(spec: &FilesSpec) -> v1::FilesSpec {
    let FilesSpec {
        roots,
        exclude,
        cross_mounts,
    } = spec.clone();
    v1::FilesSpec {
        roots,
        exclude,
        cross_mounts,
    }
}

/// Settings of a PostgreSQL source, for the wire.
#[must_use]
pub fn wire_postgres(spec: &PostgresSpec) -> v1::PostgresSpec {
    let PostgresSpec {
        cluster,
        fast_checkpoint,
        members,
    } = spec;
    v1::PostgresSpec {
        cluster: cluster.to_string(),
        fast_checkpoint: *fast_checkpoint,
        members: members.iter().map(ToString::to_string).collect(),
    }
}

/// What to restore, out of a request.
///
/// # Errors
/// `Invalid` when the target is relative or the snapshot's id malformed.
pub fn restore_spec(wire: Option<v1::RestoreSpec>) -> Result<RestoreSpec> {
    let v1::RestoreSpec {
        snapshot,
        target,
        paths,
        in_place,
    } = wire.ok_or_else(|| invalid("the request says nothing to restore"))?;
    if !target.starts_with('/') {
        return Err(invalid(format!("the target {target:?} is not an absolute path")));
    }
    Ok(RestoreSpec {
        snapshot: id(&snapshot)?,
        target,
        paths,
        in_place,
    })
}

/// What to restore, for the wire.
#[must_use]
pub fn wire_restore(spec: &RestoreSpec) -> v1::RestoreSpec {
    let RestoreSpec {
        snapshot,
        target,
        paths,
        in_place,
    } = spec.clone();
    v1::RestoreSpec {
        snapshot: snapshot.as_bytes().to_vec().into(),
        target,
        paths,
        in_place,
    }
}

macro_rules! same_fields {
    ($($field:ident),* $(,)?) => {
        /// Counts for the wire.
        #[must_use]
        pub fn wire_stats(stats: &RunStats) -> v1::RunStats {
            let RunStats { $($field),* } = *stats;
            v1::RunStats { $($field),* }
        }

        /// Counts out of a request.
        #[must_use]
        pub fn run_stats(wire: Option<v1::RunStats>) -> RunStats {
            let v1::RunStats { $($field),* } = wire.unwrap_or_default();
            RunStats { $($field),* }
        }
    };
}

same_fields!(
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
);

/// A snapshot for the wire.
#[must_use]
pub fn wire_snapshot(snapshot: &Snapshot) -> v1::Snapshot {
    let problems = snapshot
        .problems
        .iter()
        .map(|Problem { path, reason }| v1::Problem {
            path: path.clone().into(),
            reason: reason.clone(),
        });
    v1::Snapshot {
        id: snapshot.id.as_bytes().to_vec().into(),
        source: Some(wire_ref(&snapshot.source)),
        vault: snapshot.vault.as_bytes().to_vec().into(),
        sequence: snapshot.sequence,
        root_hash: snapshot.root_hash.to_vec().into(),
        root_len: snapshot.root_len,
        started_at: snapshot.started_at,
        finished_at: snapshot.finished_at,
        stats: Some(wire_stats(&snapshot.stats)),
        partial: snapshot.partial,
        state: match snapshot.state {
            SnapshotState::Visible => "visible",
            SnapshotState::Deleted => "deleted",
        }
        .into(),
        deleted_at: snapshot.deleted_at,
        undo_until: snapshot.undo_until,
        hold: snapshot.hold.clone(),
        job: snapshot.job.as_bytes().to_vec().into(),
        problems: problems.collect(),
        last_test: snapshot.last_test.as_ref().map(wire_test_summary),
    }
}

/// Limits out of a request.
///
/// # Errors
/// `Invalid` for what is beyond its bounds.
pub fn source_limits(wire: Option<v1::Limits>) -> Result<HostLimits> {
    host_limits::from_wire(wire).map_err(|why| invalid(format!("limits: {why}")))
}

/// What an agent says of the limits that a job runs under; none when it says nothing that can be understood.
#[must_use]
pub fn limits_in_force(wire: Option<v1::LimitsInForce>) -> Option<LimitsInForce> {
    let v1::LimitsInForce {
        asked,
        bandwidth,
        read_rate,
        threads,
        nice,
        cpu_weight,
        io_class,
        io_priority,
        warnings,
    } = wire?;
    let short = |text: String| text.chars().take(LIMIT_TEXT_MAX).collect();
    Some(LimitsInForce {
        asked: source_limits(asked).ok()?,
        bandwidth,
        read_rate,
        threads,
        nice,
        cpu_weight,
        io_class: short(io_class),
        io_priority,
        warnings: warnings
            .into_iter()
            .take(limits::LIMIT_WARNINGS_MAX)
            .map(short)
            .collect(),
    })
}

/// Limits in force, for the wire.
#[must_use]
pub fn wire_limits_in_force(limits: &LimitsInForce) -> v1::LimitsInForce {
    let LimitsInForce {
        asked,
        bandwidth,
        read_rate,
        threads,
        nice,
        cpu_weight,
        io_class,
        io_priority,
        warnings,
    } = limits.clone();
    v1::LimitsInForce {
        asked: Some(host_limits::to_wire(&asked)),
        bandwidth,
        read_rate,
        threads,
        nice,
        cpu_weight,
        io_class,
        io_priority,
        warnings,
    }
}

/// A job for the wire, with how it goes on as far as that is known.
#[must_use]
pub fn wire_job(job: &Job, progress: Option<&v1::JobProgress>) -> v1::Job {
    let restores = match &job.work {
        JobWork::Restore(spec) => Some(spec.snapshot),
        JobWork::TestRestore(spec) => Some(spec.snapshot),
        JobWork::Backup | JobWork::Check => None,
    };
    let kind = match &job.work {
        JobWork::Backup => "backup",
        JobWork::Restore(_) => "restore",
        JobWork::Check => "check",
        JobWork::TestRestore(_) => "test-restore",
    };
    let outcome = job.outcome.as_ref();
    let snapshot = outcome.and_then(|outcome| outcome.snapshot).or(restores);
    v1::Job {
        id: job.id.as_bytes().to_vec().into(),
        kind: kind.into(),
        source: Some(wire_ref(&job.source)),
        agent: job.agent.to_string(),
        state: job.state.as_str().into(),
        attempt: job.attempt,
        created_at: job.created_at,
        started_at: job.started_at,
        finished_at: job.finished_at,
        error_kind: outcome
            .and_then(|o| o.error_kind)
            .map_or_else(String::new, |kind| kind.as_str().into()),
        error: outcome.map_or_else(String::new, |o| o.error.clone()),
        snapshot: snapshot
            .map(|id| id.as_bytes().to_vec().into())
            .unwrap_or_default(),
        stats: outcome.map(|JobOutcome { stats, .. }| wire_stats(stats)),
        requested_by: job.requested_by.clone(),
        limits: match outcome {
            Some(outcome) => outcome.limits.as_ref().map(wire_limits_in_force),
            None => progress.and_then(|progress| progress.limits.clone()),
        },
        findings: outcome.map_or_else(Vec::new, |outcome| {
            outcome.findings.iter().map(wire_finding).collect()
        }),
        test: outcome.and_then(|outcome| outcome.test.as_deref().map(wire_test_report)),
    }
}

fn wire_finding(finding: &CheckFinding) -> v1::CheckFinding {
    let CheckFinding { what, why, fix } = finding.clone();
    v1::CheckFinding { what, why, fix }
}

/// A finding as an agent says it, cut to bounds.
#[must_use]
pub fn check_finding(wire: v1::CheckFinding) -> CheckFinding {
    let short = |text| text_max(text, FINDING_TEXT_MAX);
    let v1::CheckFinding { what, why, fix } = wire;
    CheckFinding {
        what: short(what),
        why: short(why),
        fix: short(fix),
    }
}

/// A text's beginning, of at most that many characters.
fn text_max(text: String, max: usize) -> String {
    match text.char_indices().nth(max) {
        Some((end, _)) => text[..end].to_owned(),
        None => text,
    }
}

/// A source for the wire.
#[must_use]
pub fn wire_source(source: &Source) -> v1::Source {
    v1::Source {
        r#ref: Some(wire_ref(&source.source)),
        document: source.document.clone(),
        files: source.files.as_ref().map(wire_files),
        postgres: source.postgres.as_ref().map(wire_postgres),
        created_at: source.created_at,
        changed_at: source.changed_at,
        latest_snapshot: source
            .latest
            .map(|id| id.as_bytes().to_vec().into())
            .unwrap_or_default(),
        latest_at: source.latest_at,
        snapshots: source.snapshots,
        running_job: source
            .active_job
            .map(|id| id.as_bytes().to_vec().into())
            .unwrap_or_default(),
        limits: (!source.limits.is_none()).then(|| host_limits::to_wire(&source.limits)),
        journal: source.journal.as_ref().map(journal_to_wire),
        last_test: source.last_test.as_ref().map(wire_test_summary),
    }
}

/// An agent for the wire; whether it is connected is not the catalog's to know.
#[must_use]
pub fn wire_agent(agent: &Agent, vault_name: String, connected: bool, last_seen_at: u64) -> v1::Agent {
    v1::Agent {
        name: agent.name.to_string(),
        vault: agent.vault.as_bytes().to_vec().into(),
        vault_name,
        incarnation: agent.incarnation,
        joined_at: agent.joined_at,
        connected,
        last_seen_at,
        version: agent.version.clone(),
        allow: agent.allow.clone(),
        signing_key: agent.signing_key.clone().into(),
        sealing_key: agent.sealing_key.clone().into(),
        keys_mac: agent.keys_mac.clone().into(),
    }
}

/// An audit record for the wire.
#[must_use]
pub fn wire_audit(record: &Audit) -> v1::AuditRecord {
    let Audit {
        sequence,
        at,
        actor,
        action,
        object,
        outcome,
        hash,
    } = record.clone();
    v1::AuditRecord {
        sequence,
        at,
        actor,
        action,
        object,
        outcome,
        hash: hash.to_vec().into(),
    }
}
