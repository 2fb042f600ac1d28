//! Opening the catalog's database.

use std::{
    path::Path,
    time::{Duration, Instant},
};

/// Bytes that sled may keep in memory.
const CACHE_BYTES: u64 = 64 << 20;
/// How long another process may hold the catalog before that is an error: one that was told to stop may
/// still be closing it.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// Opens the database, once whoever holds it lets go.
pub(super) fn open_unlocked(dir: &Path) -> sled::Result<sled::Db> {
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        let opened = sled::Config::new().path(dir).cache_capacity(CACHE_BYTES).open();
        match opened {
            Err(error) if is_held(&error) && Instant::now() < deadline => {
                std::thread::park_timeout(LOCK_PAUSE)
            }
            outcome => return outcome,
        }
    }
}

/// sled says it in words only.
fn is_held(error: &sled::Error) -> bool {
    matches!(error, sled::Error::Io(e) if e.to_string().contains("could not acquire lock"))
}
