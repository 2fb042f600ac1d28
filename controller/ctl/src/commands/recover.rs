//! `recover`: everything back from one store and the recovery kit, with no controller.

use super::restore;
use crate::{
    cli::RecoverArgs,
    error::{Result, fault, invalid, lift},
    output::{self, Format, Row, bytes, short_time, time},
};
use holdfast_core::{ErrorKind, SnapshotId, SourceRef, VaultId};
use holdfast_net::kit::RecoveryKit;
use holdfast_restore::{
    RecoveredSnapshot, Recovery,
    postgres::{RecoverTo, RecoveryTarget},
    shown,
};
use holdfast_store::DirStore;
use serde::Serialize;
use std::{path::PathBuf, sync::Arc};

/// A snapshot as the store itself tells.
#[derive(Debug, Serialize)]
struct RecoveredRow {
    id: SnapshotId,
    source: SourceRef,
    sequence: u64,
    partial: bool,
    vault: VaultId,
    started_at: Option<String>,
    finished_at: Option<String>,
    hostname: String,
    paths: Vec<String>,
    files: u64,
    bytes: u64,
    #[serde(skip)]
    finished_millis: u64,
}

impl From<RecoveredSnapshot> for RecoveredRow {
    fn from(found: RecoveredSnapshot) -> Self {
        let RecoveredSnapshot {
            id,
            vault,
            source,
            sequence,
            started_at,
            finished_at,
            partial,
            hostname,
            paths,
            files,
            bytes,
        } = found;
        Self {
            id,
            source,
            sequence,
            partial,
            vault,
            started_at: time(started_at),
            finished_at: time(finished_at),
            hostname: shown(&hostname),
            paths: paths.iter().map(|path| shown(path)).collect(),
            files,
            bytes,
            finished_millis: finished_at,
        }
    }
}

impl Row for RecoveredRow {
    const LIST: &'static str = "RecoverableSnapshotList";
    const COLUMNS: &'static [&'static str] = &[
        "ID", "SOURCE", "SEQUENCE", "FINISHED", "SIZE", "FILES", "PATHS", "HOST", "VAULT",
    ];
    const NARROW: usize = 7;

    fn name(&self) -> String {
        self.id.to_string()
    }

    fn cells(&self) -> Vec<String> {
        let partial = if self.partial { ", partial" } else { "" };
        vec![
            self.id.to_string(),
            self.source.to_string(),
            self.sequence.to_string(),
            format!("{}{partial}", short_time(self.finished_millis)),
            bytes(self.bytes),
            self.files.to_string(),
            self.paths.join(", "),
            self.hostname.clone(),
            self.vault.to_string(),
        ]
    }
}

pub(super) async fn run(args: &RecoverArgs) -> Result<()> {
    let kit = RecoveryKit::load(&args.kit).map_err(lift)?;
    let path = location(&args.from)?;
    let store = DirStore::open_read_only(&path).map_err(lift)?;
    let recovery = Recovery::open(Arc::new(store), &kit).await.map_err(lift)?;
    for refused in recovery.refused() {
        eprintln!("warning: {} is refused: {}", refused.object, refused.reason);
    }
    match (&args.snapshot, &args.to) {
        (Some(snapshot), Some(to)) => {
            let wanted = snapshot.parse().map_err(|e| {
                invalid(format!("{snapshot:?} is not a snapshot id ({e})"))
                    .with_hint("holdfastctl recover --from STORE --kit FILE --list")
            })?;
            let found = recovery.snapshot(wanted).await.map_err(lift)?;
            let asked = restore::recovery::asked(&args.target)?;
            let recover_to = match asked.or_else(|| restore::recovery::implied(&args.target)) {
                Some(target) => Some(RecoverTo {
                    recovery: restore::recovery::recovery(target, &args.target)?,
                    journal: recovery.journal(&found.root().clear.source, found.reader().clone()),
                }),
                None => None,
            };
            if let Some(RecoverTo { recovery, .. }) = &recover_to
                && recovery.target == RecoveryTarget::Latest
                && !args.target.accept_loss
            {
                eprintln!(
                    "note: without controllers it is not known whether agents' spools hold WAL that the store lacks; look there \
                     first: STATE/spool on the hosts of agents with `spool` in agent.toml"
                );
            }
            let plan = restore::Plan {
                to,
                paths: &args.paths,
                in_place: args.in_place,
                delete: false,
                dry_run: false,
                layout: args.layout,
                tablespaces: &args.tablespaces,
                recover_to,
                accept_loss: args.target.accept_loss,
                checks_space: !args.target.no_space_check,
                start: args.target.start.then_some(args.target.server_options.as_deref()),
            };
            restore::here(&found, &plan, args.output.output).await
        }
        _ => list(&recovery, args.output.output),
    }
}

fn list(recovery: &Recovery, format: Format) -> Result<()> {
    let rows: Vec<RecoveredRow> = recovery.snapshots().into_iter().map(RecoveredRow::from).collect();
    output::print(&output::rows(&rows, format)?)?;
    match recovery.refused().len() {
        0 => Ok(()),
        count => Err(fault(
            ErrorKind::Findings,
            format!("{count} objects of the store are forged or damaged"),
        )
        .with_hint("what is listed above is genuine; look for the rest at another site")),
    }
}

/// The directory that a store's location means.
fn location(text: &str) -> Result<PathBuf> {
    let path = match text.split_once("://") {
        None => text,
        Some(("file", path)) if path.starts_with('/') => path,
        Some(("file", _)) => return Err(invalid(format!("{text:?} is not a file URL: write file:///PATH"))),
        Some((scheme, _)) => {
            return Err(fault(
                ErrorKind::Unsupported,
                format!("stores of the kind {scheme:?} are not known here"),
            )
            .with_hint("copy the store into a directory, and give that"));
        }
    };
    if path.is_empty() {
        Err(invalid("--from is empty"))
    } else {
        Ok(PathBuf::from(path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_directories_or_file_urls() {
        assert_eq!(location("/srv/store").unwrap(), PathBuf::from("/srv/store"));
        assert_eq!(location("store").unwrap(), PathBuf::from("store"));
        assert_eq!(
            location("file:///srv/store").unwrap(),
            PathBuf::from("/srv/store")
        );
        assert_eq!(location("s3://bucket").unwrap_err().kind, ErrorKind::Unsupported);
        assert!(location("file://srv").is_err());
        assert!(location("").is_err());
    }

    #[tokio::test]
    async fn a_store_without_its_marker_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let fault = DirStore::open_read_only(dir.path())
            .map(|_| ())
            .map_err(lift)
            .unwrap_err();
        assert_ne!(fault.kind.exit_code(), 0);
    }
}
