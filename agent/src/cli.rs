//! The command line of `holdfast-agent`.

use crate::{
    config::Config,
    daemon,
    error::{AgentError, Result},
    join::{Join, join},
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
}

/// Runs the program.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
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

async fn run(command: Command) -> Result<()> {
    match command {
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
