//! How errors end: one line that says what failed and why, one that says what to do next, and an exit code.

use holdfast_core::{ErrorKind, HasKind};
use holdfast_net::Fault;

/// Result of everything here.
pub type Result<T, E = Fault> = std::result::Result<T, E>;

/// A fault of the given kind.
pub(crate) fn fault(kind: ErrorKind, message: impl Into<String>) -> Fault {
    Fault::new(kind, message)
}

/// The caller wrote something that makes no sense.
pub(crate) fn invalid(message: impl Into<String>) -> Fault {
    fault(ErrorKind::Invalid, message)
}

/// Takes over an error of another crate, kind and all.
pub(crate) fn lift<E: HasKind>(error: E) -> Fault {
    Fault::new(error.kind(), error.to_string())
}

/// Takes over an operating system error.
pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Fault {
    let what = what.into();
    move |error| Fault::new(ErrorKind::of_io(&error), format!("{what}: {error}"))
}

/// Prints an error as the last thing a command says.
pub(crate) fn report(fault: &Fault) {
    eprintln!("error: {}", fault.message.trim_end());
    match (&fault.hint, default_hint(fault.kind)) {
        (Some(hint), _) => eprintln!("  next: {hint}"),
        (None, Some(hint)) => eprintln!("  next: {hint}"),
        (None, None) => {}
    }
}

/// What helps with most errors of a kind.
fn default_hint(kind: ErrorKind) -> Option<&'static str> {
    match kind {
        ErrorKind::Invalid => Some("holdfastctl help"),
        ErrorKind::Denied | ErrorKind::Unauthenticated => {
            Some("holdfastctl doctor  (is this the right cluster's context, and is its certificate current?)")
        }
        ErrorKind::Unavailable | ErrorKind::Timeout => {
            Some("check that the controller runs and can be reached, then: holdfastctl doctor")
        }
        ErrorKind::NoQuorum => Some("bring controllers back, then: holdfastctl get members"),
        ErrorKind::Corrupt => Some("holdfastctl verify --read-data"),
        ErrorKind::NoSpace => Some("holdfastctl gc --dry-run, or add space to the store"),
        ErrorKind::Fenced => Some("try the same command again"),
        ErrorKind::Unsupported => Some("holdfastctl --version, and update whichever side is older"),
        ErrorKind::NotFound
        | ErrorKind::Conflict
        | ErrorKind::ApprovalNeeded
        | ErrorKind::TooLarge
        | ErrorKind::Interrupted
        | ErrorKind::Partial
        | ErrorKind::Findings
        | ErrorKind::Io
        | ErrorKind::Internal => None,
    }
}

/// Takes over an error that says that the caller wrote something wrong.
pub(crate) fn lift_display<E: std::fmt::Display>(error: E) -> Fault {
    invalid(error.to_string())
}
