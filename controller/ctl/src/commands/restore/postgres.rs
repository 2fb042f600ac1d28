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
    postgres::{self, Backup, DamagedBlock, PostgresError, PostgresReport, Request},
    shown,
};
use serde::Serialize;
use std::{ffi::OsString, path::Path};

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
    damaged_count: u64,
    damaged: Vec<Damaged>,
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
    };
    let done = postgres::restore(snapshot, backup, request, options)
        .await
        .map_err(explained)?;
    let PostgresReport {
        report,
        complete,
        plan: decided,
        wal_aside,
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
            PostgresError::Bad(_) | PostgresError::File { .. } => "choose another snapshot",
            PostgresError::Newer(_) => "update holdfastctl",
            PostgresError::Mapping(_) | PostgresError::Busy { .. } => return lift(error),
        },
        _ => return hinted(error),
    };
    lift(error).with_hint(hint)
}

impl Cluster {
    /// Says on standard error what an operator must know, and how it ended.
    pub(super) fn finish(&self, problems: u64, dry_run: bool) -> Result<()> {
        if let Some(path) = &self.wal_aside {
            eprintln!(
                "note: the WAL that lay there before is kept in {path}; remove it when you do not need it"
            );
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
