//! Messages to the service manager (systemd's NOTIFY_SOCKET); without one they do nothing.

use sd_notify::NotifyState;
use tokio_util::sync::CancellationToken;

/// The service is up.
pub fn ready() {
    send(&[NotifyState::Ready]);
}

/// The service is on its way down.
pub fn stopping() {
    send(&[NotifyState::Stopping]);
}

/// One line for `systemctl status`.
pub fn status(text: &str) {
    send(&[NotifyState::Status(text)]);
}

/// Sends signs of life at half the interval that the manager asked for (WATCHDOG_USEC), as long as `alive` says so.
/// The task runs on the same runtime as everything else: a runtime that is stuck stops them too.
pub fn spawn_watchdog(stop: CancellationToken, alive: impl Fn() -> bool + Send + 'static) {
    let Some(interval) = sd_notify::watchdog_enabled() else {
        return;
    };
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval((interval / 2).max(std::time::Duration::from_millis(1)));
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {
                    if alive() {
                        send(&[NotifyState::Watchdog]);
                    }
                }
            }
        }
    });
}

fn send(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}
