//! One trial, from the first byte to what was found; whoever calls it removes what it leaves.

use super::{
    amcheck, blocking,
    findings::Findings,
    journal, made_elsewhere,
    queries::{Known, Server},
    scratch, settings, stopped, verdict,
};
use crate::{
    error::{AgentError, Result},
    jobs::{JobContext, Phase},
    postgres,
    restore_job::{self, Opened},
};
use holdfast_core::{ErrorKind, HasKind as _, SourceRef, limits::PG_SETTINGS_MAX};
use holdfast_net::Fault;
use holdfast_postgres::{Recovery, RecoveryTarget};
use holdfast_proto::v1::{JobResult, Recovered, RunStats, TestReport};
use holdfast_restore::{
    Progress, RestoreError, RestoreReport,
    postgres::{
        self as restoring, Backup, DATA, Network, PostgresReport, RecoverTo, Request, RunAs, Start, Started,
        Until,
    },
};
use std::{
    ffi::OsString,
    fs::{self, DirBuilder},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

/// Room for what the server makes of its own: segments to write to, and its log. In segments of WAL.
const SEGMENTS_SPARE: u64 = 8;

/// What a trial works on.
pub struct Trial<'a> {
    pub context: &'a JobContext,
    pub source: &'a SourceRef,
    pub opened: &'a Opened,
    pub backup: &'a Backup,
    /// Ours alone.
    pub dir: PathBuf,
}

impl Trial<'_> {
    /// Restores, starts, looks.
    ///
    /// # Errors
    /// When nothing can be said of the snapshot.
    pub async fn run(&self, recovery: Option<Recovery>) -> Result<JobResult> {
        let mut findings = Findings::default();
        let mut report = TestReport {
            server_version: self.backup.manifest.server_version.clone(),
            ..TestReport::default()
        };
        self.check_place()?;
        let began = Instant::now();
        let restored = match self.restore(recovery).await {
            Ok(restored) => restored,
            Err(Failure::OfSnapshot(why)) => return Ok(verdict::failed(report, findings, why)),
            Err(Failure::Other(error)) => return Err(error),
        };
        report.restore_ms = millis(began.elapsed());
        report.bytes = restored.report.bytes;
        let result = if restored.complete {
            self.start_and_look(&restored, report, &mut findings).await?
        } else {
            verdict::failed(report, std::mem::take(&mut findings), gaps(&restored.report))
        };
        Ok(JobResult {
            stats: Some(counts(&restored.report)),
            ..result
        })
    }

    /// Refuses a place where no server of the cluster's user could run, before anything is written.
    fn check_place(&self) -> Result<()> {
        if !settings::fits_socket(&self.socket()) {
            return Err(AgentError::NotAllowed(format!(
                "{} is too long a path: the server's socket, in a directory of it, has a path of at most 107 bytes; choose a \
                 shorter one for `scratch` in agent.toml",
                self.dir.display()
            )));
        }
        if !rustix::process::geteuid().is_root() {
            return Ok(());
        }
        let trees = self.opened.snapshot.root().sealed.trees.iter();
        let owner = trees
            .filter(|tree| tree.path == DATA.as_bytes())
            .map(|tree| (tree.entry.uid, tree.entry.gid))
            .next();
        let (uid, gid) = owner.unwrap_or((0, 0));
        if uid == 0 {
            return Err(AgentError::Remote(Fault::new(
                ErrorKind::Unsupported,
                "the cluster's files belong to root, as whom no server runs",
            )));
        }
        for above in self.dir.ancestors() {
            let about = fs::metadata(above).map_err(AgentError::io("look at", above))?;
            if !may_enter((about.mode(), about.uid(), about.gid()), uid, gid) {
                return Err(AgentError::NotAllowed(format!(
                    "user {uid}, whom the server runs as, may not enter {} (mode {:o}): choose another directory for `scratch` \
                     in agent.toml, for example /var/lib/holdfast-scratch, or let others pass: chmod o+x {0}",
                    above.display(),
                    about.mode() & 0o7777
                )));
            }
        }
        Ok(())
    }

    async fn restore(&self, recovery: Option<Recovery>) -> Result<PostgresReport, Failure> {
        let Opened {
            snapshot,
            connections,
        } = self.opened;
        let recover_to = match recovery {
            Some(recovery) => {
                let keys = &self.context.state.keys;
                let connection = connections
                    .first()
                    .ok_or_else(|| AgentError::Internal("no connection was made".into()))?;
                let journal = journal::journal(self.source, snapshot, connection, keys).await?;
                if journal.files().is_empty() && recovery.target == RecoveryTarget::Latest {
                    None
                } else {
                    Some(RecoverTo { recovery, journal })
                }
            }
            None => None,
        };
        let tablespaces = self.backup.manifest.tablespaces.iter().filter(|t| t.is_outside());
        let request = Request {
            dir: self.data(),
            tablespaces: tablespaces
                .map(|tablespace| {
                    let mut text = OsString::from(format!("{}=", tablespace.oid));
                    text.push(self.tablespaces().join(tablespace.oid.to_string()));
                    text
                })
                .collect(),
            in_place: false,
            recover_to,
            // It is looked for by the trial, whose word on it is another.
            guards_tablespaces: false,
            accept_loss: false,
            checks_space: false,
        };
        // The server's user passes through it to the tablespaces.
        scratch::make_dir(&self.tablespaces(), false)?;
        let looked = self.place(&request, true).await?;
        let need = needed(
            looked.report.bytes,
            looked.way.as_ref().map_or(0, |way| way.bytes),
            u64::from(self.backup.manifest.wal_segment_size.bytes()),
        );
        self.check_space(need)?;
        tracing::debug!(target: "holdfast::phase", phase = "test-restore");
        self.place(&request, false).await
    }

    async fn place(&self, request: &Request, dry_run: bool) -> Result<PostgresReport, Failure> {
        let progress = Arc::new(Progress::default());
        let options = restore_job::options(self.context, &progress, dry_run);
        let placing = restoring::restore(&self.opened.snapshot, self.backup, request.clone(), options);
        let placed = if dry_run {
            placing.await
        } else {
            tokio::select! {
                placed = placing => placed,
                never = restore_job::follow(self.context, &progress) => match never {},
            }
        };
        placed.map_err(Failure::of)
    }

    fn check_space(&self, need: u64) -> Result<()> {
        let about = rustix::fs::statvfs(&self.dir).map_err(AgentError::io("look at", &self.dir))?;
        let free = about.f_bavail.saturating_mul(about.f_frsize);
        if need <= free {
            return Ok(());
        }
        let root = self.dir.parent().unwrap_or(&self.dir);
        Err(AgentError::Remote(Fault::new(
            ErrorKind::NoSpace,
            format!(
                "the test restore needs up to {} MiB in {}, where {} MiB are free: nothing was written; free space there, or choose \
                 another directory for `scratch` in agent.toml, or another agent with --agent",
                need.div_ceil(1 << 20),
                root.display(),
                free >> 20
            ),
        )))
    }

    async fn start_and_look(
        &self,
        restored: &PostgresReport,
        mut report: TestReport,
        findings: &mut Findings,
    ) -> Result<JobResult> {
        self.context.set_phase(Phase::Recover);
        let began = Instant::now();
        let data = self.data();
        let run_as = RunAs::owner_of(&data).map_err(restore_job::lift)?;
        self.refuse_writes_elsewhere().await?;
        self.write_settings(run_as)?;
        let network = match run_as.try_without_network() {
            Ok(()) => Network::None,
            Err(why) => {
                report.notes.push(format!(
                    "the server shared this machine's network (it listened at no address): {why}"
                ));
                Network::Shared
            }
        };
        tracing::debug!(target: "holdfast::phase", phase = "test-recover");
        let started = match self.start(network).await {
            Ok(started) => started,
            Err(error) if verdict::is_of_snapshot(&error) => {
                report.recover_ms = millis(began.elapsed());
                findings.not_run("recovery", "the server ended before it had recovered");
                return Ok(verdict::failed(report, std::mem::take(findings), error));
            }
            Err(RestoreError::Interrupted) => return Err(stopped()),
            Err(error) => return Err(restore_job::lift(error)),
        };
        report.recover_ms = millis(began.elapsed());
        let reason = started.reason.clone().unwrap_or_default();
        let recovered = Recovered {
            lsn: started.lsn.to_string(),
            timeline: started.timeline.get(),
            last_commit_at: 0,
            reason,
        };
        findings.checked(
            "recovery",
            findings.count,
            format!(
                "consistent, and recovered to {} on timeline {}",
                recovered.lsn, recovered.timeline
            ),
        );
        report.recovered = Some(recovered);
        if let Some(missing) = restored.way.as_ref().and_then(|way| way.missing.as_ref()) {
            findings.add(
                "WAL",
                format!("it is not archived from there on: {missing}"),
                "holdfastctl describe journal; take a backup",
            );
        }
        self.context.set_phase(Phase::Check);
        tracing::debug!(target: "holdfast::phase", phase = "test-check");
        let began = Instant::now();
        self.look(run_as, &mut report, findings).await?;
        report.check_ms = millis(began.elapsed());
        Ok(verdict::looked_at(report, std::mem::take(findings)))
    }

    async fn refuse_writes_elsewhere(&self) -> Result<()> {
        let manifest = &self.backup.manifest;
        let (wal, size, from) = (
            self.data().join("pg_wal"),
            manifest.wal_segment_size,
            manifest.start_lsn,
        );
        let cancel = Arc::clone(&self.context.cancel);
        blocking(move || made_elsewhere::refuse(&wal, size, from, || cancel.load(Ordering::Relaxed))).await
    }

    /// Files of settings that are ours, and a directory for the socket that only the server's user and root enter.
    fn write_settings(&self, run_as: RunAs) -> Result<()> {
        let socket = self.socket();
        DirBuilder::new()
            .mode(0o700)
            .create(&socket)
            .map_err(AgentError::io("make", &socket))?;
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&socket, Some(run_as.uid), Some(run_as.gid))
                .map_err(AgentError::io("set the owner of", &socket))?;
        }
        let (limits, major) = (self.backup.standby_limits(), self.backup.manifest.version);
        let text = settings::settings(major, limits, &socket, &self.access())?;
        for (path, text) in [
            (self.settings(), text.as_str()),
            (self.access(), settings::ACCESS),
        ] {
            fs::write(&path, text).map_err(AgentError::io("write", &path))?;
            // The server's user reads them, and nobody but us writes them.
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644))
                .map_err(AgentError::io("set the mode of", &path))?;
        }
        let auto = self.data().join("postgresql.auto.conf");
        let found = holdfast_net::durable::read(&auto, PG_SETTINGS_MAX)?;
        fs::write(&auto, settings::recovery_only(&found)?).map_err(AgentError::io("write", &auto))
    }

    async fn start(&self, network: Network) -> Result<Started, RestoreError> {
        let start = Start {
            dir: self.data(),
            major: self.backup.manifest.version,
            options: Some(format!(
                "-c config_file={}",
                settings::shell_word(&self.settings().display().to_string())
            )),
            until: Until::Ready,
            network,
        };
        let cancel = Arc::clone(&self.context.cancel);
        let started = tokio::task::spawn_blocking(move || {
            restoring::start(&start, |_| !cancel.load(Ordering::Relaxed))
        });
        started.await.map_err(|_| RestoreError::Worker)?
    }

    async fn look(&self, run_as: RunAs, report: &mut TestReport, findings: &mut Findings) -> Result<()> {
        self.damaged_at_backup(findings);
        let socket = self.socket();
        let server = Server {
            socket: &socket,
            port: settings::PORT,
            cancel: &self.context.cancel,
        };
        let Known {
            role,
            version,
            last_commit_at,
        } = match server.known(&self.roles()).await {
            Ok(known) => known,
            Err(error) if error.kind() == ErrorKind::Interrupted => return Err(error),
            Err(error) => {
                for name in [amcheck::NAME, "constraints", "indexes", "rows"] {
                    findings.not_run(name, format!("nobody may ask the server: {error}"));
                }
                return Ok(());
            }
        };
        report.server_version = version;
        if let Some(recovered) = &mut report.recovered {
            recovered.last_commit_at = last_commit_at.map_or(0, i64::unsigned_abs);
        }
        self.amcheck(run_as, &role, findings).await?;
        let counted = server.look_through(&role, findings).await?;
        (report.databases, report.tables, report.rows) = (counted.databases, counted.tables, counted.rows);
        report.largest = counted.largest;
        Ok(())
    }

    /// Blocks whose checksums were wrong already when the cluster was backed up.
    fn damaged_at_backup(&self, findings: &mut Findings) {
        let manifest = &self.backup.manifest;
        if !manifest.data_checksums {
            return findings.not_run("checksums", "the cluster keeps no checksums of its pages");
        }
        let before = findings.count;
        for damaged in &manifest.damaged {
            findings.add(
                format!("{} block {}", damaged.file, damaged.block),
                "its checksum was wrong in the cluster itself when it was backed up",
                "an older snapshot may have it whole",
            );
        }
        findings.add_unlisted(
            manifest
                .damaged_count
                .saturating_sub(manifest.damaged.len() as u64),
        );
        findings.checked("checksums", before, "of all pages, when they were backed up");
    }

    async fn amcheck(&self, run_as: RunAs, role: &str, findings: &mut Findings) -> Result<()> {
        let (data, socket, role) = (self.data(), self.socket(), role.to_owned());
        let (major, cancel) = (self.backup.manifest.version, Arc::clone(&self.context.cancel));
        let mut taken = std::mem::take(findings);
        *findings = blocking(move || {
            let Some(programs) = restoring::programs(major, run_as) else {
                taken.not_run(amcheck::NAME, "the programs of the server are gone");
                return Ok(taken);
            };
            let reach = amcheck::Reach {
                socket: &socket,
                port: settings::PORT,
                role: &role,
            };
            let program = programs.join("pg_amcheck");
            let is_cancelled = || cancel.load(Ordering::Relaxed);
            amcheck::run(&program, run_as, &reach, &data, is_cancelled, &mut taken)?;
            Ok(taken)
        })
        .await?;
        Ok(())
    }

    /// Roles that may be there: as which the agent backs the cluster up, if it is this agent's.
    fn roles(&self) -> Vec<String> {
        let own = &self.context.state.membership.name;
        let configured = postgres::section_of(&self.context.config, own, self.source);
        let settings = configured.and_then(|(_, cluster)| cluster.settings().ok());
        settings
            .and_then(|settings| settings.get_user().map(str::to_owned))
            .into_iter()
            .collect()
    }

    fn tablespaces(&self) -> PathBuf {
        self.dir.join("tablespaces")
    }

    fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    fn socket(&self) -> PathBuf {
        self.dir.join("s")
    }

    fn settings(&self) -> PathBuf {
        self.dir.join("postgresql.conf")
    }

    fn access(&self) -> PathBuf {
        self.dir.join("pg_hba.conf")
    }
}

/// Why a restore failed.
enum Failure {
    /// The snapshot's own doing.
    OfSnapshot(RestoreError),
    Other(AgentError),
}

impl Failure {
    fn of(error: RestoreError) -> Self {
        match error {
            RestoreError::Interrupted => Self::Other(stopped()),
            error if verdict::is_of_snapshot(&error) => Self::OfSnapshot(error),
            error => Self::Other(restore_job::lift(error)),
        }
    }
}

impl From<AgentError> for Failure {
    fn from(error: AgentError) -> Self {
        Self::Other(error)
    }
}

/// Bytes that a trial takes at most: files of the snapshot; WAL of the journal, and as much again for what replaying it adds; and
/// what the server makes of its own.
fn needed(files: u64, wal: u64, segment: u64) -> u64 {
    files
        .saturating_add(wal.saturating_mul(2))
        .saturating_add(segment.saturating_mul(SEGMENTS_SPARE))
}

/// Whether a user of one group may pass a directory of that mode, user and group.
fn may_enter((mode, owner, group): (u32, u32, u32), uid: u32, gid: u32) -> bool {
    let bit = if owner == uid {
        0o100
    } else if group == gid {
        0o010
    } else {
        0o001
    };
    mode & bit != 0
}

fn gaps(report: &RestoreReport) -> String {
    let first = report
        .problems
        .listed
        .first()
        .map_or_else(String::new, |problem| {
            format!(
                ", the first: {}: {}",
                String::from_utf8_lossy(&problem.path),
                problem.reason
            )
        });
    format!("{} things could not be restored{first}", report.problems.count)
}

fn counts(report: &RestoreReport) -> RunStats {
    RunStats {
        files: report.files,
        dirs: report.dirs,
        symlinks: report.symlinks,
        others: report.others,
        bytes: report.bytes,
        unreadable: report.problems.count,
        ..RunStats::default()
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wal_counts_twice_and_the_server_gets_room() {
        assert_eq!(needed(1000, 10, 1), 1020 + SEGMENTS_SPARE);
        assert_eq!(needed(u64::MAX, u64::MAX, u64::MAX), u64::MAX);
    }

    #[test]
    fn directories_let_their_owner_group_or_others_pass() {
        for (mode, may) in [(0o700, false), (0o711, true), (0o755, true), (0o710, false)] {
            assert_eq!(may_enter((0o040_000 | mode, 0, 0), 101, 102), may, "{mode:o}");
        }
        assert!(may_enter((0o710, 0, 102), 101, 102));
        assert!(may_enter((0o100, 101, 0), 101, 102));
        // The owner's bit counts, even where others have more.
        assert!(!may_enter((0o011, 101, 0), 101, 102));
    }
}
