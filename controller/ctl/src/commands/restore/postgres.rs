//! A PostgreSQL backup becomes a data directory.

use super::{Plan, hinted};
use crate::{
    cli::RestoreLayout,
    error::{Result, fault, lift},
};
use holdfast_core::ErrorKind;
use holdfast_net::Fault;
use holdfast_restore::{
    RestoreError, RestoreOptions, RestoreReport, Snapshot,
    postgres::{
        self, Backup, DamagedBlock, Network, PostgresError, PostgresReport, Request, ServerState, Start,
        Started, Until, Way,
    },
    shown,
};
use serde::Serialize;
use std::{
    ffi::OsString,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// Between two lines about a server that replays.
const TELL_INTERVAL: Duration = Duration::from_secs(5);
/// The same while it does not move: it may wait for somebody.
const STILL_INTERVAL: Duration = Duration::from_secs(60);
/// Damaged blocks that are printed one by one; JSON has all that the backup lists.
const DAMAGED_SHOWN: usize = 100;

/// What became of a cluster, in its stable JSON form.
#[derive(Debug, Serialize)]
pub(super) struct Cluster {
    /// A server starts from it.
    complete: bool,
    system_id: String,
    version: String,
    tablespaces: Vec<Tablespace>,
    /// Where the WAL is kept that lay there before.
    wal_aside: Option<String>,
    /// What the server recovers to when it starts.
    #[serde(skip_serializing_if = "Option::is_none")]
    recovery: Option<Recovers>,
    /// How far it came, if it was started.
    #[serde(skip_serializing_if = "Option::is_none")]
    server: Option<Server>,
    damaged_count: u64,
    damaged: Vec<Damaged>,
    #[serde(skip)]
    major: u32,
}

/// A server that was started.
#[derive(Debug, Serialize)]
struct Server {
    /// `ready`, `reading` or `stopped`.
    state: &'static str,
    timeline: u32,
    lsn: String,
    /// Why it recovered to there, in the server's words.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    log: String,
}

impl From<Started> for Server {
    fn from(started: Started) -> Self {
        let Started {
            state,
            timeline,
            lsn,
            reason,
            log,
        } = started;
        Self {
            state: match state {
                ServerState::Ready => "ready",
                ServerState::Reading => "reading",
                ServerState::Stopped => "stopped",
            },
            timeline: timeline.get(),
            lsn: lsn.to_string(),
            reason,
            log: log.display().to_string(),
        }
    }
}

/// A recovery that a server begins when it starts.
#[derive(Debug, Serialize)]
struct Recovers {
    timeline: u32,
    /// The last segment of WAL that it has.
    reaches: Option<String>,
    wal_files: usize,
    wal_bytes: u64,
    /// Segments behind the target that are archived nowhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    missing: Option<String>,
    /// Segments that are archived nowhere, and came from the cluster that was replaced.
    taken_over: Vec<String>,
    /// Segments of that cluster that are archived nowhere either, and are no part of this recovery.
    left_aside: Vec<String>,
}

impl From<Way> for Recovers {
    fn from(way: Way) -> Self {
        Self {
            timeline: way.timeline.get(),
            reaches: way.reaches.map(|segment| segment.to_string()),
            wal_files: way.files.len(),
            wal_bytes: way.bytes,
            missing: way.missing,
            taken_over: way.taken_over.named(),
            left_aside: way.left_aside.named(),
        }
    }
}

impl Recovers {
    /// Says what the archive lacks of the cluster that was replaced.
    fn tell(&self, aside: Option<&str>) {
        let place = aside.unwrap_or("its pg_wal, aside");
        if !self.taken_over.is_empty() {
            eprintln!(
                "note: WAL that is archived nowhere was taken over from the cluster that lay there: {}; until the next backup of \
                 what it recovers to, it is only here and in {place}",
                self.taken_over.join(", ")
            );
        }
        if !self.left_aside.is_empty() {
            eprintln!(
                "warning: WAL of the cluster that lay there is archived nowhere and no part of this recovery: {}; it is only in \
                 {place}",
                self.left_aside.join(", ")
            );
        }
    }
}

#[derive(Debug, Serialize)]
struct Tablespace {
    oid: u32,
    name: String,
    dir: String,
}

#[derive(Debug, Serialize)]
struct Damaged {
    file: String,
    block: u64,
}

/// The backup that is restored as a cluster; none where files are.
pub(super) async fn backup_in(
    snapshot: &Snapshot,
    paths: &[OsString],
    layout: RestoreLayout,
) -> Result<Option<Backup>> {
    if !paths.is_empty() || layout == RestoreLayout::Files {
        return Ok(None);
    }
    Backup::find(snapshot).await.map_err(|error| {
        lift(error).with_hint(
            "--layout files restores the files of the backup as they are; or choose another snapshot",
        )
    })
}

/// Restores it.
pub(super) async fn restore(
    snapshot: &Snapshot,
    backup: &Backup,
    plan: &Plan<'_>,
    target: &Path,
    options: RestoreOptions,
) -> Result<(RestoreReport, Option<Cluster>)> {
    let request = Request {
        dir: target.to_path_buf(),
        tablespaces: plan.tablespaces.to_vec(),
        in_place: plan.in_place,
        recover_to: plan.recover_to.clone(),
        guards_tablespaces: true,
        accept_loss: plan.accept_loss,
        checks_space: plan.checks_space,
    };
    let done = postgres::restore(snapshot, backup, request, options)
        .await
        .map_err(explained)?;
    let PostgresReport {
        report,
        complete,
        plan: decided,
        wal_aside,
        way,
    } = done;
    let (manifest, clear) = (&backup.manifest, &snapshot.root().clear);
    if clear.partial && manifest.damaged_count == 0 {
        eprintln!(
            "warning: this snapshot is partial: files of the cluster could not be read when it was made, see \
             holdfastctl describe snapshots {}",
            clear.snapshot
        );
    }
    let tablespaces = decided.tablespaces.into_iter().map(|target| Tablespace {
        oid: target.oid,
        name: target.name,
        dir: target.dir.display().to_string(),
    });
    let damaged = manifest
        .damaged
        .iter()
        .map(|DamagedBlock { file, block }| Damaged {
            file: file.clone(),
            block: *block,
        });
    let cluster = Cluster {
        complete,
        system_id: manifest.system_id.to_string(),
        version: manifest.server_version.clone(),
        tablespaces: tablespaces.collect(),
        wal_aside: wal_aside.map(|path| path.display().to_string()),
        recovery: way.map(Recovers::from),
        server: None,
        major: manifest.version,
        damaged_count: manifest.damaged_count,
        damaged: damaged.collect(),
    };
    Ok((report, Some(cluster)))
}

/// What to do about an error.
fn explained(error: RestoreError) -> Fault {
    let hint = match &error {
        RestoreError::Postgres(refused) => match refused {
            PostgresError::NotEmpty { .. } => {
                "choose an empty directory; --in-place completes an interrupted restore, or restores over the same cluster"
            }
            PostgresError::Foreign { .. } | PostgresError::OtherCluster { .. } => {
                "choose an empty directory: --in-place writes only over the same cluster"
            }
            PostgresError::Running { .. } => {
                "stop that server first; if no server runs there, remove postmaster.pid"
            }
            PostgresError::TablespaceNotEmpty { .. } | PostgresError::Nested { .. } => {
                "give the tablespace another place: --tablespace NAME=DIR"
            }
            PostgresError::MakesTablespace { .. } => {
                "restore on another host; or from a backup that began after the tablespace was made; or, if what lies there is of no \
                 use, move it away and run the same command with --in-place"
            }
            PostgresError::Bad(_) | PostgresError::File { .. } => "choose another snapshot",
            PostgresError::Way(_) => "choose another snapshot (SOURCE@SNAPSHOT), target or --timeline",
            PostgresError::WalMissing { .. } => {
                "recover to a target before the gap, or choose a snapshot after it; holdfastctl get journal shows what there is"
            }
            PostgresError::NoRoom { .. } => {
                "free space there, choose another directory, or give tablespaces another place (--tablespace NAME=DIR); where the \
                 file system compresses, --no-space-check"
            }
            PostgresError::WouldLose { .. } => {
                "start that server and let it archive them, or archive what is missing before them (holdfast-agent wal push); or, to \
                 recover without them, --accept-loss: they are kept aside"
            }
            PostgresError::NotThatFar { .. } => {
                "wait until WAL of that time is archived, or leave the target out to recover all that there is"
            }
            PostgresError::Newer(_) => "update holdfastctl",
            PostgresError::NoPrograms { .. } => {
                "what was restored is whole; start it on a machine with that version, or install it and run its pg_ctl start"
            }
            PostgresError::NotRecovered { .. } => {
                "what was restored is whole; mend what the server complains of, and start it with its pg_ctl start"
            }
            PostgresError::Mapping(_) | PostgresError::Busy { .. } => return lift(error),
        },
        _ => return hinted(error),
    };
    lift(error).with_hint(hint)
}

impl Cluster {
    /// Starts the server on what was restored, if that is whole, and follows it.
    pub(super) async fn start(&mut self, dir: &Path, options: Option<&str>, until: Until) -> Result<()> {
        if !self.complete {
            return Ok(());
        }
        let start = Start {
            dir: dir.to_path_buf(),
            major: self.major,
            options: options.map(str::to_owned),
            until,
            network: Network::Shared,
        };
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = Arc::clone(&stop);
        let mut told = (Instant::now(), None);
        let starting = tokio::task::spawn_blocking(move || {
            postgres::start(&start, |lsn| {
                let interval = if told.1 == Some(lsn) {
                    STILL_INTERVAL
                } else {
                    TELL_INTERVAL
                };
                if told.0.elapsed() >= interval {
                    eprintln!("the server has replayed its WAL at least to {lsn}");
                    told = (Instant::now(), Some(lsn));
                }
                !stopping.load(Ordering::Relaxed)
            })
        });
        tokio::pin!(starting);
        let started = tokio::select! {
            started = &mut starting => started,
            _ = tokio::signal::ctrl_c() => {
                stop.store(true, Ordering::Relaxed);
                starting.await
            }
        };
        let started = started.map_err(|error| fault(ErrorKind::Internal, error.to_string()))?;
        let started = started.map_err(|error| match error {
            // Not the hint of a restore that was interrupted: this one is whole, and the server may go on.
            RestoreError::Interrupted => {
                fault(ErrorKind::Interrupted, "no longer followed; the server goes on").with_hint(format!(
                    "everything is restored; what the server does stands in {}/holdfast-start.log",
                    dir.display()
                ))
            }
            error => explained(error),
        });
        self.server = Some(started?.into());
        Ok(())
    }

    /// Says on standard error what an operator must know, and how it ended.
    pub(super) fn finish(&self, problems: u64, dry_run: bool) -> Result<()> {
        if let Some(path) = &self.wal_aside {
            eprintln!(
                "note: the WAL that lay there before is kept in {path}; remove it when you do not need it"
            );
        }
        if let Some(recovery) = &self.recovery {
            recovery.tell(self.wal_aside.as_deref());
        }
        let printable = |text: &str| shown(text.as_bytes());
        for Damaged { file, block } in self.damaged.iter().take(DAMAGED_SHOWN) {
            eprintln!("DAMAGED {}: block {block}", printable(file));
        }
        let told = self.damaged.len().min(DAMAGED_SHOWN) as u64;
        if self.damaged_count > told {
            eprintln!("DAMAGED and {} blocks more", self.damaged_count - told);
        }
        if problems > 0 {
            let what = format!(
                "{problems} things could not be restored, so global/pg_control is not there and no server starts"
            );
            return Err(fault(ErrorKind::Partial, what).with_hint(
                "remove the cause, and run the same command with --in-place; or choose another snapshot",
            ));
        }
        if !dry_run && !self.complete {
            return Err(fault(ErrorKind::Internal, "the restore is not complete"));
        }
        if let Some(missing) = self
            .recovery
            .as_ref()
            .and_then(|recovery| recovery.missing.as_ref())
        {
            eprintln!(
                "warning: WAL is not archived from there on: {missing}. If the target lies behind it after all, the server says so \
                 and ends"
            );
        }
        if let Some(Server {
            state,
            timeline,
            lsn,
            reason,
            log,
        }) = &self.server
        {
            let how = match *state {
                "ready" => "takes writes",
                "stopped" => "has stopped at its target",
                _ => "answers queries while it replays, and waits where its WAL or its target ends",
            };
            let why = reason
                .as_ref()
                .map(|reason| format!(" ({})", printable(reason)))
                .unwrap_or_default();
            eprintln!(
                "the server {how}: timeline {timeline}, recovered to {lsn}{why}; its output is in {log}"
            );
        } else if let Some(recovery) = &self.recovery
            && self.complete
        {
            eprintln!(
                "note: the server recovers along timeline {} when it starts; {} files of WAL are in pg_wal",
                recovery.timeline, recovery.wal_files
            );
        }
        if self.complete {
            eprintln!(
                "note: archive_mode is off in the restored cluster (postgresql.auto.conf), so that it does not write into \
                 the archive of the one it came from; ALTER SYSTEM RESET archive_mode and a restart bring it back"
            );
        }
        match self.damaged_count {
            0 => Ok(()),
            count => Err(fault(
                ErrorKind::Partial,
                format!(
                    "everything was restored, but {count} blocks had wrong checksums in the cluster itself when it was \
                     backed up"
                ),
            )
            .with_hint("pg_amcheck shows what they concern; an older snapshot may have them whole")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(complete: bool, damaged_count: u64) -> Cluster {
        Cluster {
            complete,
            system_id: "1".into(),
            version: "15.1".into(),
            tablespaces: Vec::new(),
            wal_aside: None,
            recovery: None,
            server: None,
            major: 15,
            damaged_count,
            damaged: vec![Damaged {
                file: "data/base/5/1\n".into(),
                block: 3,
            }],
        }
    }

    #[test]
    fn damage_and_gaps_exit_with_3() {
        assert!(cluster(true, 0).finish(0, false).is_ok());
        assert!(cluster(false, 0).finish(0, true).is_ok());
        let damaged = cluster(true, 4).finish(0, false).unwrap_err();
        assert_eq!(damaged.kind.exit_code(), 3);
        assert!(damaged.message.contains("4 blocks"), "{damaged}");
        let gaps = cluster(false, 0).finish(2, false).unwrap_err();
        assert_eq!(gaps.kind.exit_code(), 3);
        assert!(gaps.message.contains("no server starts"), "{gaps}");
        assert_ne!(
            cluster(false, 0).finish(0, false).unwrap_err().kind.exit_code(),
            0
        );
    }
}
