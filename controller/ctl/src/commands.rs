//! One file per command; each reads as what the command does.

mod admin;
mod apply;
mod audit;
mod backup;
mod browse;
mod check;
mod compare;
mod data;
mod doctor;
mod gather;
mod gc;
mod get;
mod init;
mod job;
mod recover;
mod restore;
mod snapshot;
mod status;
mod token;
mod verify;

use crate::{
    address::Address,
    cli::{AdminCommand, BackupCommand, Cli, Command, DiffArgs, JobCommand, SnapshotCommand, TokenCommand},
    cluster::Cluster,
    context::{self, Context},
    error::{Result, lift_display},
};
use holdfast_core::SourceRef;
use std::path::PathBuf;

/// Runs a command to its end.
pub(crate) async fn dispatch(cli: Cli) -> Result<()> {
    let Cli { config_dir, command } = cli;
    match command {
        // Those that must work without a cluster.
        Command::Init(args) => init::run(context::directory(config_dir)?, &args),
        Command::Admin(AdminCommand::Renew { kit }) => admin::renew(context::directory(config_dir)?, &kit),
        Command::Doctor(args) => doctor::run(context::directory(config_dir)?, args.output).await,
        Command::Recover(args) => recover::run(&args).await,

        Command::Token(TokenCommand::Create(args)) => token::create(&connect(config_dir).await?, &args).await,
        Command::Apply(args) => apply::apply(&connect(config_dir).await?, &args.file).await,
        Command::Diff(DiffArgs {
            before: Some(before),
            after: Some(after),
            output,
            ..
        }) => {
            let (before, after): (Address, Address) = (before.parse()?, after.parse()?);
            compare::run(&connect(config_dir).await?, &before, &after, output.output).await
        }
        Command::Diff(args) => {
            let file = args.file.unwrap_or_else(|| PathBuf::from("-"));
            apply::diff(&connect(config_dir).await?, &file).await
        }
        Command::Delete { kind, name } => apply::delete(&connect(config_dir).await?, kind, &name).await,
        Command::Get(args) => get::get(&connect(config_dir).await?, &args).await,
        Command::Describe(args) => get::describe(&connect(config_dir).await?, &args).await,
        Command::Backup(BackupCommand::Run {
            source,
            agent,
            wait,
            output,
        }) => {
            let wanted = backup::Wanted { source, agent };
            backup::run(&connect(config_dir).await?, &wanted, wait, output.output).await
        }
        // What is written wrong is said before anyone is asked.
        Command::Restore(args) => {
            let address: Address = args.source.parse()?;
            restore::run(&connect(config_dir).await?, &address, &args).await
        }
        Command::Ls {
            source,
            path,
            recursive,
            output,
        } => {
            let address: Address = source.parse()?;
            browse::ls(
                &connect(config_dir).await?,
                &address,
                path.as_deref(),
                recursive,
                output.output,
            )
            .await
        }
        Command::Cat { source, path } => {
            let address: Address = source.parse()?;
            browse::cat(&connect(config_dir).await?, &address, &path).await
        }
        Command::Verify {
            source: Some(source),
            test_restore: true,
            agent,
            wait,
            output,
            read_data: _,
        } => {
            let address: Address = source.parse()?;
            let cluster = connect(config_dir).await?;
            verify::test_restore::run(&cluster, &address, agent.as_ref(), wait, output.output).await
        }
        Command::Verify {
            source,
            read_data,
            output,
            ..
        } => {
            let source = source.map(|source| source.parse().map_err(lift_display));
            let source: Option<SourceRef> = source.transpose()?;
            verify::run(
                &connect(config_dir).await?,
                source.as_ref(),
                read_data,
                output.output,
            )
            .await
        }
        Command::Check { source, output } => {
            check::run(&connect(config_dir).await?, &source, output.output).await
        }
        Command::Snapshot(SnapshotCommand::Delete { snapshot }) => {
            snapshot::delete(&connect(config_dir).await?, &snapshot).await
        }
        Command::Snapshot(SnapshotCommand::Undelete { snapshot }) => {
            snapshot::undelete(&connect(config_dir).await?, &snapshot).await
        }
        Command::Status(args) => status::run(&connect(config_dir).await?, args.output).await,
        Command::Gc {
            dry_run,
            ignore_undo_period,
            output,
        } => {
            gc::run(
                &connect(config_dir).await?,
                dry_run,
                ignore_undo_period,
                output.output,
            )
            .await
        }
        Command::Job(JobCommand::Cancel { job }) => job::cancel(&connect(config_dir).await?, &job).await,
        Command::Job(JobCommand::Watch { job, output }) => {
            job::watch(&connect(config_dir).await?, &job, output.output).await
        }
        Command::Audit(args) => audit::run(&connect(config_dir).await?, args.output).await,
    }
}

async fn connect(config_dir: Option<PathBuf>) -> Result<Cluster> {
    Cluster::connect(Context::load(context::directory(config_dir)?)?).await
}
