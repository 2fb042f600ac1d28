//! Entry point of `holdfast-controller`.

use clap::{Parser, Subcommand};
use holdfast_controller::{config::Config, serve};
use holdfast_core::HasKind as _;
use std::{path::PathBuf, process::ExitCode};

/// Keeps the catalog of a Holdfast cluster and the packs of its stores.
#[derive(Debug, Parser)]
#[command(name = "holdfast-controller", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve until SIGTERM.
    Run {
        /// The configuration.
        #[arg(long, default_value = "/etc/holdfast/controller.toml")]
        config: PathBuf,
        /// Only check the configuration.
        #[arg(long)]
        check: bool,
    },
}

fn main() -> ExitCode {
    holdfast_core::keep_freed_buffers();
    let Command::Run { config: path, check } = Cli::parse().command;
    let done = Config::load(&path).and_then(|config| {
        if check {
            println!("{} is valid", path.display());
            return Ok(());
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .thread_name("controller")
            .enable_all()
            .build();
        let runtime = runtime.map_err(|error| holdfast_controller::Error::Internal(error.to_string()))?;
        runtime.block_on(serve::run(config))
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("holdfast-controller: {error}");
            ExitCode::from(error.kind().exit_code())
        }
    }
}
