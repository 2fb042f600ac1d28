//! The command line of `holdfast-agent`.

use crate::{
    config::Config,
    daemon,
    error::{AgentError, Result},
    join::{Join, join},
    wal,
};
use clap::{Parser, Subcommand};
use holdfast_core::HasKind as _;
use std::{path::PathBuf, process::ExitCode};

/// Backs up this host to a Holdfast cluster.
#[derive(Debug, Parser)]
#[command(name = "holdfast-agent", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Turn a token into this host's identity, and write a configuration if there is none.
    Join {
        /// File that holds the token, or - for standard input.
        #[arg(long, value_name = "FILE")]
        token_file: PathBuf,
        /// Directory that may be backed up; repeat for more.
        #[arg(long, value_name = "DIR")]
        allow: Vec<PathBuf>,
        /// Configuration to write unless it exists.
        #[arg(long, default_value = "/etc/holdfast/agent.toml")]
        config: PathBuf,
        /// Where identity, keys and caches are kept.
        #[arg(long, default_value = "/var/lib/holdfast-agent")]
        state_dir: PathBuf,
    },
    /// Serve: connect to the controllers and do what they ask and the configuration allows.
    Run {
        /// The configuration.
        #[arg(long, default_value = "/etc/holdfast/agent.toml")]
        config: PathBuf,
        /// Only check the configuration.
        #[arg(long)]
        check: bool,
    },
    /// Archive the WAL of a PostgreSQL server on this host: its archive_command and restore_command.
    #[command(subcommand)]
    Wal(WalCommand),
}

#[derive(Debug, Subcommand)]
enum WalCommand {
    /// Hand a file to the running agent; done once the controllers keep it. archive_command = 'holdfast-agent wal push --source
    /// NAME %p'
    Push {
        /// The source on this agent.
        #[arg(long, value_name = "NAME")]
        source: String,
        /// Where the agent listens.
        #[arg(long, default_value = SOCKET)]
        socket: PathBuf,
        /// The file: %p.
        path: PathBuf,
    },
    /// Get a file from the running agent. restore_command = 'holdfast-agent wal fetch --source NAME %f %p'
    Fetch {
        /// The source: NAME on this agent, or AGENT/NAME.
        #[arg(long, value_name = "NAME")]
        source: String,
        /// Where the agent listens.
        #[arg(long, default_value = SOCKET)]
        socket: PathBuf,
        /// Seconds to try while no controller answers.
        #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u64).range(..=MONTH))]
        fetch_timeout: u64,
        /// The server is a standby, which asks again by itself: what cannot be had now ends nothing.
        #[arg(long)]
        standby: bool,
        /// Also call a file absent that may still wait in the spool of an agent which is away: what it holds is given up.
        #[arg(long)]
        accept_loss: bool,
        /// The file's name: %f.
        name: String,
        /// Where it goes: %p.
        path: PathBuf,
    },
}

/// Seconds; nobody waits longer.
const MONTH: u64 = 30 * 24 * 3600;

/// Where agents listen for servers on their host, if their configuration says so.
const SOCKET: &str = "/run/holdfast/agent.sock";

/// Runs the program.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // To a server that recovers, the usual code of wrong arguments says that there is no such file.
            let is_fetch = std::env::args_os().skip(1).take(2).eq(["wal", "fetch"]);
            let _ = error.print();
            return match error.exit_code() {
                0 => ExitCode::SUCCESS,
                _ if is_fetch => ExitCode::from(126),
                code => ExitCode::from(u8::try_from(code).unwrap_or(2)),
            };
        }
    };
    if let Command::Wal(command) = cli.command {
        return ExitCode::from(serve_wal(command));
    }
    if matches!(cli.command, Command::Run { check: false, .. }) {
        holdfast_core::give_freed_buffers_back();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .thread_name("agent")
        .worker_threads(2)
        .enable_all()
        .build();
    let done = match runtime {
        Ok(runtime) => runtime.block_on(run(cli.command)),
        Err(error) => Err(AgentError::Internal(format!("start the runtime: {error}"))),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("holdfast-agent: {error}");
            if let AgentError::Remote(fault) = &error
                && let Some(hint) = &fault.hint
            {
                eprintln!("  {hint}");
            }
            ExitCode::from(error.kind().exit_code())
        }
    }
}

/// Servers give the exit codes a meaning of their own: of a fetch, everything but the catalog's own 'no' is 126, also when this
/// program itself fails.
fn serve_wal(command: WalCommand) -> u8 {
    let failed: u8 = match &command {
        WalCommand::Push { .. } | WalCommand::Fetch { standby: true, .. } => 1,
        WalCommand::Fetch { .. } => 126,
    };
    let served = std::panic::catch_unwind(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.map(|runtime| runtime.block_on(run_wal(command)))
    });
    match served {
        Ok(Ok(code)) => code,
        Ok(Err(_)) | Err(_) => failed,
    }
}

async fn run_wal(command: WalCommand) -> u8 {
    match command {
        WalCommand::Push { source, socket, path } => wal::push(wal::Push { socket, source, path }).await,
        WalCommand::Fetch {
            source,
            socket,
            fetch_timeout,
            standby,
            accept_loss,
            name,
            path,
        } => {
            wal::fetch(wal::Fetch {
                socket,
                source,
                name,
                path,
                patience: std::time::Duration::from_secs(fetch_timeout),
                standby,
                accept_loss,
            })
            .await
        }
    }
}

async fn run(command: Command) -> Result<()> {
    match command {
        Command::Wal(_) => Err(AgentError::Internal("WAL is served elsewhere".into())),
        Command::Join {
            token_file,
            allow,
            config,
            state_dir,
        } => {
            let absolute =
                |path: PathBuf| std::path::absolute(&path).map_err(AgentError::io("resolve", &path));
            let allow = allow.into_iter().map(absolute).collect::<Result<Vec<_>>>()?;
            let request = Join {
                token_file,
                allow,
                config: absolute(config)?,
                state_dir: absolute(state_dir)?,
            };
            let (membership, written) = join(&request).await?;
            println!("joined as {} (vault {})", membership.name, membership.vault_name);
            let what = if written { "wrote" } else { "kept the existing" };
            println!("{what} {}", request.config.display());
            println!("next: holdfast-agent run --config {}", request.config.display());
            Ok(())
        }
        Command::Run { config, check: true } => {
            Config::load(&config)?;
            println!("{} is valid", config.display());
            Ok(())
        }
        Command::Run { config, check: false } => daemon::run(Config::load(&config)?).await,
    }
}
