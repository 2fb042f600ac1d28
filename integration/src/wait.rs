//! Waiting for conditions of other processes, always with a deadline.

use std::time::{Duration, Instant};

/// Pause between two looks at a condition that cannot be waited for otherwise.
const POLL: Duration = Duration::from_millis(20);

/// A deadline that only a hang reaches, on a machine that is busy with other tests.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Pauses this thread once between two looks at another process.
pub fn pause() {
    pause_for(POLL);
}

/// Pauses this thread for all of that time: for fault injection at a random moment, and to pace a load.
pub fn pause_for(time: Duration) {
    let end = Instant::now() + time;
    // Whoever waited for threads of its own may have been left a wake-up, which ends the first of these at once.
    while let Some(left) = end
        .checked_duration_since(Instant::now())
        .filter(|left| !left.is_zero())
    {
        std::thread::park_timeout(left);
    }
}

/// Looks until `look` gives something, or `patience` is over.
pub fn poll<T>(patience: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + patience;
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if Instant::now() >= end {
            return None;
        }
        pause();
    }
}

/// Looks until `look` gives something; panics with `what` after [`PATIENCE`].
pub fn until<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    poll(PATIENCE, look).unwrap_or_else(|| panic!("waited {} s in vain for {what}", PATIENCE.as_secs()))
}
