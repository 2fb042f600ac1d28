//! One file per command; each reads as what the command does.

mod apply;
mod audit;
mod backup;
mod doctor;
mod gc;
mod get;
mod init;
mod job;
mod snapshot;
mod status;
mod token;

use crate::{
    cli::{BackupCommand, Cli, Command, JobCommand, SnapshotCommand, TokenCommand},
    cluster::Cluster,
    context::{self, Context},
    error::Result,
};
use std::path::PathBuf;

/// Runs a command to its end.
pub(crate) async fn dispatch(cli: Cli) -> Result<()> {
    let Cli { config_dir, command } = cli;
    match command {
        Command::Init(args) => init::run(context::directory(config_dir)?, &args),
        Command::Doctor(args) => doctor::run(context::directory(config_dir)?, args.output).await,
        Command::Recover(_) | Command::Restore(_) | Command::Ls { .. } | Command::Cat { .. } => Ok(()),
        Command::Verify { .. } => Ok(()),
        other => with_cluster(connect(config_dir).await?, other).await,
    }
}

async fn connect(config_dir: Option<PathBuf>) -> Result<Cluster> {
    Cluster::connect(Context::load(context::directory(config_dir)?)?).await
}

async fn with_cluster(cluster: Cluster, command: Command) -> Result<()> {
    match command {
        Command::Token(TokenCommand::Create(args)) => token::create(&cluster, &args).await,
        Command::Apply(args) => apply::apply(&cluster, &args.file).await,
        Command::Diff(args) => apply::diff(&cluster, &args.file).await,
        Command::Delete { kind, name } => apply::delete(&cluster, kind, &name).await,
        Command::Get(args) => get::get(&cluster, &args).await,
        Command::Describe(args) => get::describe(&cluster, &args).await,
        Command::Backup(BackupCommand::Run { source, wait, output }) => {
            backup::run(&cluster, &source, wait, output.output).await
        }
        Command::Snapshot(SnapshotCommand::Delete { snapshot }) => {
            snapshot::delete(&cluster, &snapshot).await
        }
        Command::Snapshot(SnapshotCommand::Undelete { snapshot }) => {
            snapshot::undelete(&cluster, &snapshot).await
        }
        Command::Status(args) => status::run(&cluster, args.output).await,
        Command::Gc {
            dry_run,
            ignore_undo_period,
            output,
        } => gc::run(&cluster, dry_run, ignore_undo_period, output.output).await,
        Command::Job(JobCommand::Cancel { job }) => job::cancel(&cluster, &job).await,
        Command::Job(JobCommand::Watch { job, output }) => job::watch(&cluster, &job, output.output).await,
        Command::Audit(args) => audit::run(&cluster, args.output).await,
        Command::Init(_)
        | Command::Doctor(_)
        | Command::Recover(_)
        | Command::Restore(_)
        | Command::Ls { .. }
        | Command::Cat { .. }
        | Command::Verify { .. } => Ok(()),
    }
}
