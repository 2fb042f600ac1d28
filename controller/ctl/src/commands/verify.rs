//! `verify`: what the stores hold, checked by the controllers without keys, and what snapshots need, checked here
//! with keys.

pub(super) mod test_restore;

use super::{apply, data::Opener, get};
use crate::{
    cluster::Cluster,
    error::{Result, fault, lift},
    output::{self, Format, bytes},
    progress::Ticker,
    rows::{SnapshotRow, id},
};
use holdfast_core::{ErrorKind, SnapshotId, SourceRef, VaultId};
use holdfast_net::Fault;
use holdfast_proto::v1::{self, verify_stores_response::Body};
use holdfast_restore::{Problem, Progress, Verifier, VerifyReport, shown};
use serde::Serialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, atomic::AtomicBool},
};

/// Findings beyond this are counted but not listed.
const FINDINGS_LISTED: usize = 10_000;

/// What was found.
#[derive(Debug, Default, Serialize)]
struct Report {
    findings: Vec<Finding>,
    findings_count: u64,
    packs: u64,
    pack_bytes: u64,
    objects: u64,
    snapshots: u64,
    /// Pages of journals.
    pages: u64,
    nodes: u64,
    chunks: u64,
    chunk_bytes: u64,
}

#[derive(Debug, Serialize)]
struct Finding {
    object: String,
    problem: String,
    snapshots: Vec<SnapshotId>,
}

impl Report {
    fn add(&mut self, finding: Finding, format: Format) {
        self.findings_count += 1;
        if matches!(format, Format::Table | Format::Wide) {
            eprintln!("FOUND {}: {}", finding.object, finding.problem);
        }
        if self.findings.len() < FINDINGS_LISTED {
            self.findings.push(finding);
        }
    }

    /// What was found in one snapshot or page; `object` names a path of it, `snapshots` are those that need it.
    fn take(
        &mut self,
        found: VerifyReport,
        object: impl Fn(&str) -> String,
        snapshots: &[SnapshotId],
        format: Format,
    ) {
        self.nodes += found.nodes;
        self.chunks += found.chunks;
        self.chunk_bytes += found.bytes;
        let listed = found.findings.listed.len() as u64;
        for Problem { path, reason, .. } in found.findings.listed {
            let finding = Finding {
                object: object(&shown(&path)),
                problem: reason,
                snapshots: snapshots.to_vec(),
            };
            self.add(finding, format);
        }
        self.findings_count += found.findings.count.saturating_sub(listed);
    }
}

pub(super) async fn run(
    cluster: &Cluster,
    source: Option<&SourceRef>,
    read_data: bool,
    format: Format,
) -> Result<()> {
    let mut report = Report::default();
    if source.is_none() {
        stores(cluster, read_data, format, &mut report).await?;
    }
    snapshots(cluster, source, read_data, format, &mut report).await?;
    journals(cluster, source, read_data, format, &mut report).await?;
    output::print(&match format {
        Format::Json | Format::Yaml => output::value(&report, format)?,
        Format::Table | Format::Wide | Format::Name => text(&report, read_data),
    })?;
    match report.findings_count {
        0 => Ok(()),
        count => Err(fault(
            ErrorKind::Findings,
            format!("{count} things are damaged or missing"),
        )
        .with_hint(
            "restore what they concern from another snapshot or site; then find out why the store lost it",
        )),
    }
}

fn text(report: &Report, read_data: bool) -> String {
    let how = if read_data {
        "every byte read"
    } else {
        "structure only; --read-data reads every byte"
    };
    format!(
        "{} packs ({}), {} other objects, {} snapshots, {} pages of WAL: {} nodes, {} chunks ({}); {how}: {} findings\n",
        report.packs,
        bytes(report.pack_bytes),
        report.objects,
        report.snapshots,
        report.pages,
        report.nodes,
        report.chunks,
        bytes(report.chunk_bytes),
        report.findings_count,
    )
}

/// The controllers check everything that their stores hold, without keys.
async fn stores(cluster: &Cluster, read_data: bool, format: Format, report: &mut Report) -> Result<()> {
    let request = v1::VerifyStoresRequest { read_data };
    let mut stream = cluster.control().verify_stores(request).await?.into_inner();
    let mut summary = None;
    while let Some(message) = stream.message().await? {
        match message.body {
            Some(Body::Finding(v1::Finding {
                object,
                problem,
                snapshots,
            })) => {
                let snapshots = snapshots.iter().map(|raw| id(raw)).collect::<Result<_>>()?;
                report.add(
                    Finding {
                        object,
                        problem,
                        snapshots,
                    },
                    format,
                );
            }
            Some(Body::Summary(found)) => summary = Some(found),
            None => {}
        }
    }
    // A stream that just ends has not checked everything.
    let v1::VerifySummary {
        packs,
        pack_bytes,
        objects,
        findings,
    } = summary.ok_or_else(|| {
        fault(
            ErrorKind::Unavailable,
            "the controller broke off before it had checked everything",
        )
    })?;
    (report.packs, report.pack_bytes, report.objects) = (packs, pack_bytes, objects);
    report.findings_count = report.findings_count.max(findings);
    Ok(())
}

/// We check what snapshots need, with keys; what snapshots of one vault share is read once.
async fn snapshots(
    cluster: &Cluster,
    source: Option<&SourceRef>,
    read_data: bool,
    format: Format,
    report: &mut Report,
) -> Result<()> {
    let visible = cluster
        .snapshots(source, false)
        .await?
        .into_iter()
        .filter(|row| row.state == "visible");
    let mut vaults: BTreeMap<VaultId, Vec<SnapshotRow>> = BTreeMap::new();
    for row in visible {
        vaults.entry(row.vault).or_default().push(row);
    }
    let opener = Opener::new(cluster).await?;
    let progress = Arc::new(Progress::default());
    let cancel = Arc::new(AtomicBool::new(false));
    let _ticker = Ticker::start("verify", Arc::clone(&progress));
    for rows in vaults.into_values() {
        let verifier = Verifier::new(read_data, Arc::clone(&progress), Arc::clone(&cancel));
        for row in rows {
            let outcome = tokio::select! {
                outcome = one(&opener, &verifier, &row, report, format) => outcome,
                _ = tokio::signal::ctrl_c() => Err(fault(ErrorKind::Interrupted, "stopped before everything was checked")),
            };
            report.snapshots += 1;
            match outcome {
                Err(fault) if is_damage(&fault) => {
                    let object = format!("snapshot {} of {}", row.id, row.source);
                    report.add(
                        Finding {
                            object,
                            problem: fault.message,
                            snapshots: vec![row.id],
                        },
                        format,
                    );
                }
                other => other?,
            }
        }
    }
    Ok(())
}

/// We check the archived WAL too: what a page lists must be there.
async fn journals(
    cluster: &Cluster,
    source: Option<&SourceRef>,
    read_data: bool,
    format: Format,
    report: &mut Report,
) -> Result<()> {
    let mut sources = apply::sources(cluster).await?;
    sources.retain(|row| row.has_journal() && source.is_none_or(|source| row.name == *source));
    if sources.is_empty() {
        return Ok(());
    }
    let vaults: BTreeMap<_, _> = get::agents(cluster)
        .await?
        .into_iter()
        .map(|row| (row.name.clone(), row.vault))
        .collect();
    let opener = Opener::new(cluster).await?;
    let progress = Arc::new(Progress::default());
    let _ticker = Ticker::start("verify WAL", Arc::clone(&progress));
    for row in sources {
        let vault = vaults.get(row.name.agent.as_str()).copied();
        let vault = vault.ok_or_else(|| {
            fault(
                ErrorKind::NotFound,
                format!("there is no agent {}", row.name.agent),
            )
        })?;
        let verifier = Verifier::new(read_data, Arc::clone(&progress), Arc::default());
        let files = get::journal(cluster, &row.name).await?.files;
        let pages: BTreeSet<SnapshotId> = files.iter().map(|file| file.page).collect();
        for page in pages {
            let found = async {
                let page = opener.page(&row.name, vault, page).await?;
                verifier.verify(&page).await.map_err(lift)
            };
            let found = tokio::select! {
                found = found => found,
                _ = tokio::signal::ctrl_c() => Err(fault(ErrorKind::Interrupted, "stopped before everything was checked")),
            };
            report.pages += 1;
            let object = |path: &str| format!("WAL of {} {path}", row.name);
            let found = match found {
                Err(fault) if is_damage(&fault) => {
                    let names = files
                        .iter()
                        .filter(|file| file.page == page)
                        .map(|file| file.name.as_str());
                    let object = object(&names.collect::<Vec<_>>().join(" "));
                    let problem = fault.message;
                    report.add(
                        Finding {
                            object,
                            problem,
                            snapshots: Vec::new(),
                        },
                        format,
                    );
                    continue;
                }
                other => other?,
            };
            report.take(found, object, &[], format);
        }
    }
    Ok(())
}

/// What concerns this snapshot alone, so that the others are still to be checked.
fn is_damage(fault: &Fault) -> bool {
    matches!(
        fault.kind,
        ErrorKind::Corrupt | ErrorKind::NotFound | ErrorKind::Denied | ErrorKind::Unauthenticated
    )
}

async fn one(
    opener: &Opener<'_>,
    verifier: &Verifier,
    row: &SnapshotRow,
    report: &mut Report,
    format: Format,
) -> Result<()> {
    let snapshot = opener.open(row).await?;
    let found = verifier.verify(&snapshot).await.map_err(lift)?;
    let object = |path: &str| format!("{}@{} {path}", row.source, row.id);
    report.take(found, object, &[row.id], format);
    Ok(())
}
