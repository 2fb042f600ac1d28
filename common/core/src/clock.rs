//! Time as an input: a monotonic clock that counts suspended time, and the wall clock.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// Milliseconds since 1970-01-01 UTC.
pub type UnixMillis = u64;

/// A source of time. Leases use [`Clock::boot`]; only people and catalogs see [`Clock::wall`].
pub trait Clock: Send + Sync {
    /// Time since boot, suspended time included (CLOCK_BOOTTIME): never steps.
    fn boot(&self) -> Duration;
    /// Wall-clock time; may step either way.
    fn wall(&self) -> UnixMillis;
}

/// The machine's clocks.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn boot(&self) -> Duration {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
    }

    fn wall(&self) -> UnixMillis {
        let since = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }
}

/// A clock that moves only when told to, for tests.
#[derive(Debug, Default)]
pub struct ManualClock {
    boot_millis: AtomicU64,
    wall_millis: AtomicU64,
}

impl ManualClock {
    /// A clock at boot time zero and the given wall time.
    #[must_use]
    pub fn new(wall: UnixMillis) -> Self {
        Self {
            boot_millis: AtomicU64::new(0),
            wall_millis: AtomicU64::new(wall),
        }
    }

    /// Moves both clocks forward.
    pub fn advance(&self, by: Duration) {
        let millis = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
        self.boot_millis.fetch_add(millis, Ordering::SeqCst);
        self.wall_millis.fetch_add(millis, Ordering::SeqCst);
    }

    /// Steps the wall clock alone, as an administrator or a broken NTP server might.
    pub fn set_wall(&self, wall: UnixMillis) {
        self.wall_millis.store(wall, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn boot(&self) -> Duration {
        Duration::from_millis(self.boot_millis.load(Ordering::SeqCst))
    }

    fn wall(&self) -> UnixMillis {
        self.wall_millis.load(Ordering::SeqCst)
    }
}
