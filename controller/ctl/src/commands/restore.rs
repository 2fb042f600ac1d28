//! `restore`: to this machine with the admin's keys, or on an agent's host by its agent.

mod postgres;
pub(super) mod recovery;

use super::{data, job};
use crate::{
    address::Address,
    cli::{RestoreArgs, RestoreLayout},
    cluster::{Cluster, bytes_of, job_id, request_id, retry},
    error::{Result, fault, invalid, io, lift},
    output::{self, Format, bytes},
    progress::Ticker,
};
use holdfast_core::{ErrorKind, Name};
use holdfast_net::Fault;
use holdfast_proto::v1;
use holdfast_restore::{
    Layout, OnRemoval, Problem, Progress, RestoreError, RestoreOptions, RestoreReport, Snapshot,
    postgres::{RecoverTo, Until},
    restore, shown,
};
use parking_lot::Mutex;
use serde::Serialize;
use std::{
    ffi::OsString,
    os::unix::ffi::OsStrExt as _,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// What to restore to this machine.
pub(super) struct Plan<'a> {
    pub(super) to: &'a Path,
    pub(super) paths: &'a [OsString],
    pub(super) in_place: bool,
    pub(super) delete: bool,
    pub(super) dry_run: bool,
    pub(super) layout: RestoreLayout,
    pub(super) tablespaces: &'a [OsString],
    pub(super) recover_to: Option<RecoverTo>,
    /// Recover without WAL that the cluster which is replaced may have alone.
    pub(super) accept_loss: bool,
    /// Refuse a cluster for which there seems to be no room.
    pub(super) checks_space: bool,
    /// Start the server, with these options.
    pub(super) start: Option<Option<&'a str>>,
}

/// What was restored, in its stable JSON form.
#[derive(Debug, Serialize)]
struct Restored {
    dry_run: bool,
    target: String,
    files: u64,
    dirs: u64,
    symlinks: u64,
    others: u64,
    bytes: u64,
    bytes_kept: u64,
    removed: u64,
    removed_paths: Vec<String>,
    mounts_kept: u64,
    owners_kept: u64,
    attributes_left: u64,
    problems_count: u64,
    problems: Vec<Failed>,
    #[serde(skip_serializing_if = "Option::is_none")]
    postgres: Option<postgres::Cluster>,
}

#[derive(Debug, Serialize)]
struct Failed {
    path: String,
    kind: ErrorKind,
    reason: String,
}

pub(super) async fn run(cluster: &Cluster, address: &Address, args: &RestoreArgs) -> Result<()> {
    if let Some(agent) = &args.agent {
        return on_agent(cluster, address, args, agent).await;
    }
    let is_whole = args.paths.is_empty() && args.layout == RestoreLayout::Auto;
    let recovery::Chosen {
        snapshot,
        recover_to,
        open_tail,
    } = recovery::choose(cluster, address, is_whole, &args.target).await?;
    let plan = Plan {
        to: &args.to,
        paths: &args.paths,
        in_place: args.in_place,
        delete: args.delete,
        dry_run: args.dry_run,
        layout: args.layout,
        tablespaces: &args.tablespaces,
        recover_to,
        accept_loss: args.target.accept_loss,
        checks_space: !args.target.no_space_check,
        start: args.target.start.then_some(args.target.server_options.as_deref()),
    };
    let restored = here(&snapshot, &plan, args.output.output).await;
    restored.map_err(|fault| match open_tail {
        // What is not archived may be there.
        Some(tail) if fault.kind == ErrorKind::NotFound => {
            let hint =
                format!("start the agent that may hold it ({tail}), and try again when it has sent that");
            fault.with_hint(hint)
        }
        _ => fault,
    })
}

/// Restores an opened snapshot to this machine.
pub(super) async fn here(snapshot: &Snapshot, plan: &Plan<'_>, format: Format) -> Result<()> {
    let target = std::path::absolute(plan.to).map_err(io(format!("find {}", plan.to.display())))?;
    let backup = postgres::backup_in(snapshot, plan.paths, plan.layout).await?;
    if backup.is_none() && plan.start.is_some() {
        return Err(invalid("--start is for whole PostgreSQL backups"));
    }
    if backup.is_none() && !plan.tablespaces.is_empty() {
        return Err(invalid("--tablespace is for whole PostgreSQL backups")
            .with_hint("leave out --path and --layout files, or leave out --tablespace"));
    }
    let removals = Removals::default();
    let (progress, cancel) = (Arc::new(Progress::default()), Arc::new(AtomicBool::new(false)));
    let options = RestoreOptions {
        paths: plan.paths.iter().map(|path| path.as_bytes().to_vec()).collect(),
        except: Vec::new(),
        layout: Layout::Paths,
        in_place: plan.in_place,
        delete: plan.delete,
        on_removal: removals.listener(format),
        dry_run: plan.dry_run,
        workers: None,
        progress: Arc::clone(&progress),
        cancel: Arc::clone(&cancel),
    };
    let ticker = Ticker::start("restore", progress);
    let restoring = async {
        match &backup {
            Some(backup) => postgres::restore(snapshot, backup, plan, &target, options).await,
            None => restore(snapshot, &target, options)
                .await
                .map(|report| (report, None))
                .map_err(hinted),
        }
    };
    tokio::pin!(restoring);
    let outcome = tokio::select! {
        outcome = &mut restoring => outcome,
        _ = tokio::signal::ctrl_c() => {
            // Workers finish what they hold; files are whole, or not there, or go on with the next --in-place.
            cancel.store(true, Ordering::Relaxed);
            restoring.await
        }
    };
    drop(ticker);
    let (report, mut cluster) = outcome?;
    if let (Some(options), Some(cluster)) = (plan.start, &mut cluster) {
        let until = plan.recover_to.as_ref().map_or(Until::Ready, RecoverTo::until);
        cluster.start(&target, options, until).await?;
    }
    finish(report, &target, plan.dry_run, removals.take(), cluster, format)
}

/// What to do about an error.
fn hinted(error: RestoreError) -> Fault {
    let fault = lift(error);
    match fault.kind {
        ErrorKind::Conflict => fault.with_hint(
            "choose an empty directory, or add --in-place, which also completes an interrupted restore",
        ),
        ErrorKind::Interrupted => fault.with_hint("the same command with --in-place goes on from here"),
        _ => fault,
    }
}

/// What `--delete` removes, told line by line, or kept for the one value that JSON and YAML are.
#[derive(Default)]
struct Removals(Arc<Mutex<Vec<String>>>);

impl Removals {
    fn listener(&self, format: Format) -> OnRemoval {
        let kept = Arc::clone(&self.0);
        OnRemoval::new(move |path, is_dir| {
            let mut text = shown(path);
            if is_dir {
                text.push('/');
            }
            match format {
                // Who reads may have gone away; what is deleted does not depend on it.
                Format::Table | Format::Wide | Format::Name => {
                    let _ = output::print(&format!("delete {text}\n"));
                }
                Format::Json | Format::Yaml => kept.lock().push(text),
            }
        })
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock())
    }
}

fn finish(
    report: RestoreReport,
    target: &Path,
    dry_run: bool,
    removed_paths: Vec<String>,
    cluster: Option<postgres::Cluster>,
    format: Format,
) -> Result<()> {
    let RestoreReport {
        files,
        dirs,
        symlinks,
        others,
        bytes: size,
        bytes_kept,
        removed,
        mounts_kept,
        owners_kept,
        attributes_left,
        problems,
    } = report;
    let restored = Restored {
        dry_run,
        target: target.display().to_string(),
        files,
        dirs,
        symlinks,
        others,
        bytes: size,
        bytes_kept,
        removed,
        removed_paths,
        mounts_kept,
        owners_kept,
        attributes_left,
        problems_count: problems.count,
        problems: problems
            .listed
            .into_iter()
            .map(|Problem { path, kind, reason }| Failed {
                path: shown(&path),
                kind,
                reason,
            })
            .collect(),
        postgres: cluster,
    };
    match format {
        Format::Json | Format::Yaml => output::print(&output::value(&restored, format)?)?,
        Format::Table | Format::Wide | Format::Name => {
            let verb = if dry_run { "would restore" } else { "restored" };
            output::print(&format!(
                "{verb} {files} files ({}), {dirs} directories, {symlinks} links, {others} others to {}\n",
                bytes(size),
                restored.target
            ))?;
            if bytes_kept > 0 {
                output::print(&format!("{} of it were there already\n", bytes(bytes_kept)))?;
            }
            if removed > 0 {
                let verb = if dry_run { "would delete" } else { "deleted" };
                output::print(&format!(
                    "{verb} {removed} things that the snapshot does not have\n"
                ))?;
            }
            for failed in &restored.problems {
                eprintln!("FAILED {}: {}", failed.path, failed.reason);
            }
        }
    }
    if mounts_kept > 0 {
        eprintln!(
            "note: {mounts_kept} mounted file systems were left alone; --delete does not look into them"
        );
    }
    if owners_kept > 0 {
        eprintln!("note: {owners_kept} entries belong to you, because only root can give files to others");
    }
    if attributes_left > 0 {
        eprintln!(
            "note: {attributes_left} entries lack extended attributes or flags, because only root can set them or the target's file system has none"
        );
    }
    if let Some(cluster) = &restored.postgres {
        return cluster.finish(restored.problems_count, dry_run);
    }
    match restored.problems_count {
        0 => Ok(()),
        count => Err(fault(
            ErrorKind::Partial,
            format!("{count} things could not be restored"),
        )
        .with_hint("holdfastctl verify --read-data; another snapshot may have them whole")),
    }
}

/// Has an agent restore onto its host, and waits for it.
async fn on_agent(cluster: &Cluster, address: &Address, args: &RestoreArgs, agent: &Name) -> Result<()> {
    if args.delete {
        return Err(fault(
            ErrorKind::Unsupported,
            "--delete works for restores to this machine only",
        )
        .with_hint("leave --delete out, or run holdfastctl on that host"));
    }
    if args.dry_run {
        return Err(fault(
            ErrorKind::Unsupported,
            "--dry-run works for restores to this machine only",
        )
        .with_hint("leave --agent out to see what would be restored"));
    }
    let text = |path: &std::ffi::OsStr| {
        path.to_str().map(str::to_owned).ok_or_else(|| {
            invalid(format!("{} is not UTF-8, which agents need", path.display()))
                .with_hint("restore the directory that holds it")
        })
    };
    if !args.to.is_absolute() {
        return Err(invalid(format!(
            "{} is not absolute: an agent has no current directory",
            args.to.display()
        )));
    }
    if args.target.start {
        return Err(fault(
            ErrorKind::Unsupported,
            "--start works for restores to this machine only",
        )
        .with_hint("run holdfastctl on that host"));
    }
    if !args.tablespaces.is_empty() {
        return Err(fault(
            ErrorKind::Unsupported,
            "--tablespace works for restores to this machine only",
        )
        .with_hint("run holdfastctl on that host"));
    }
    if args.paths.is_empty() && args.layout == RestoreLayout::Auto {
        // Agents would place the trees as they are, from which no server starts.
        let snapshot = data::open_address(cluster, address).await?;
        if postgres::backup_in(&snapshot, &args.paths, args.layout)
            .await?
            .is_some()
        {
            return Err(fault(
                ErrorKind::Unsupported,
                "agents do not restore whole PostgreSQL backups yet",
            )
            .with_hint(
                "run holdfastctl restore on that host, without --agent; or restore files of it with --path, or all of \
                 them as they are with --layout files",
            ));
        }
    }
    let row = cluster.resolve(address).await?;
    let spec = v1::RestoreSpec {
        snapshot: bytes_of(row.id.as_bytes()),
        target: text(args.to.as_os_str())?,
        paths: args.paths.iter().map(|path| text(path)).collect::<Result<_>>()?,
        in_place: args.in_place,
    };
    let request = v1::RunRestoreRequest {
        request_id: request_id(),
        agent: agent.to_string(),
        restore: Some(spec),
    };
    let answer = retry(|| {
        let (mut control, request) = (cluster.control(), request.clone());
        async move { control.run_restore(request).await }
    })
    .await?
    .into_inner();
    let ended = job::follow(cluster, job_id(&answer.job)?).await?;
    let done = ended.state == "succeeded";
    job::finish(ended, args.output.output)?;
    if done {
        eprintln!(
            "restored {}@{} to {} on {agent}",
            row.source,
            row.id,
            args.to.display()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_restore::Problems;

    #[test]
    fn a_restore_with_gaps_exits_with_3() {
        assert!(
            finish(
                RestoreReport::default(),
                Path::new("/x"),
                false,
                Vec::new(),
                None,
                Format::Json
            )
            .is_ok()
        );
        let problem = Problem {
            path: b"/a".to_vec(),
            kind: ErrorKind::Corrupt,
            reason: "damaged".into(),
        };
        let problems = Problems {
            listed: vec![problem],
            count: 7,
        };
        let report = RestoreReport {
            problems,
            ..RestoreReport::default()
        };
        let fault = finish(report, Path::new("/x"), false, Vec::new(), None, Format::Table).unwrap_err();
        assert_eq!(fault.kind.exit_code(), 3);
        assert!(fault.message.starts_with('7'), "{fault}");
    }
}
