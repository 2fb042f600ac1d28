//! Orderly shutdown on SIGTERM and SIGINT.

use crate::error::{NetError, Result};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Exit code of a program that a second signal ends at once.
const INTERRUPTED: i32 = 130;

#[expect(
    clippy::disallowed_methods,
    reason = "a second signal asks to end at once, wherever the program is stuck"
)]
/// A token that is cancelled by the first SIGTERM or SIGINT; the second ends the process at once, for an operator
/// who does not want to wait. Whatever is durable by then stays so.
///
/// # Errors
/// `Io` when the system refuses the handlers.
pub fn on_signals() -> Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate()).map_err(NetError::io("watch for SIGTERM"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(NetError::io("watch for SIGINT"))?;
    let token = CancellationToken::new();
    let cancel = token.clone();
    tokio::spawn(async move {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        tracing::info!(signal = name, "stopping");
        cancel.cancel();
        tokio::select! {
            _ = terminate.recv() => {},
            _ = interrupt.recv() => {},
        }
        std::process::exit(INTERRUPTED);
    });
    Ok(token)
}
