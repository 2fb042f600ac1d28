//! `holdfastctl`: what operators type.
//!
//! Data goes to standard output, everything else to standard error; exit codes follow the kind of the error.
//! What reads text that people wrote is public for the fuzz targets (`integration/fuzz`).

#![forbid(unsafe_code)]
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        reason = "tests fail by panicking"
    )
)]

pub mod address;
mod cli;
mod cluster;
mod commands;
mod context;
pub mod document;
mod error;
mod keyring;
mod output;
mod progress;
mod rows;

use clap::Parser as _;
use holdfast_core::ErrorKind;
use holdfast_net::telemetry::{self, TelemetryConfig};
use std::process::ExitCode;

/// Parses the arguments, runs the command, reports its error; returns the exit code.
#[must_use]
pub fn run() -> ExitCode {
    let cli = match cli::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are answers, not errors.
            let code = if error.use_stderr() {
                ErrorKind::Invalid.exit_code()
            } else {
                0
            };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(e) => {
            error::report(&error::io("start")(e));
            return ExitCode::FAILURE;
        }
    };
    // Commands say what matters themselves; HOLDFAST_LOG shows the rest.
    let quiet = TelemetryConfig {
        level: Some("warn".into()),
        ..TelemetryConfig::default()
    };
    let outcome = runtime.block_on(async {
        let guard = telemetry::init(&quiet, "holdfastctl").map_err(error::lift)?;
        let outcome = commands::dispatch(cli).await;
        guard.shutdown().await;
        outcome
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            error::report(&fault);
            ExitCode::from(fault.kind.exit_code())
        }
    }
}
