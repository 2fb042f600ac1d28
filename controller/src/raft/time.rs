//! Catalog time: what entries are stamped with. It never goes back.

use holdfast_core::{Clock, UnixMillis};
use parking_lot::Mutex;
use std::sync::Arc;

/// The leader's idea of now: anchored once to the wall clock, then carried by the boot clock, so
/// that a step of the wall clock expires and deletes nothing.
pub struct CatalogTime {
    clock: Arc<dyn Clock>,
    anchor: Mutex<Anchor>,
}

struct Anchor {
    catalog: UnixMillis,
    boot_millis: u64,
}

impl CatalogTime {
    /// Starts at the wall clock or at `last`, the newest time that the catalog has seen, whichever is later.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>, last: UnixMillis) -> Self {
        let anchor = Anchor {
            catalog: clock.wall().max(last),
            boot_millis: boot_millis(&*clock),
        };
        Self {
            clock,
            anchor: Mutex::new(anchor),
        }
    }

    /// Now, not before anything returned or observed earlier.
    #[must_use]
    pub fn now(&self) -> UnixMillis {
        let anchor = self.anchor.lock();
        anchor
            .catalog
            .saturating_add(boot_millis(&*self.clock).saturating_sub(anchor.boot_millis))
    }

    /// A time that another leader stamped: now is not before it.
    pub fn observe(&self, seen: UnixMillis) {
        let mut anchor = self.anchor.lock();
        let boot = boot_millis(&*self.clock);
        let now = anchor
            .catalog
            .saturating_add(boot.saturating_sub(anchor.boot_millis));
        if seen > now {
            *anchor = Anchor {
                catalog: seen,
                boot_millis: boot,
            };
        }
    }

    /// Milliseconds by which the wall clock is ahead of (positive) or behind catalog time.
    #[must_use]
    pub fn wall_offset_millis(&self) -> i64 {
        i64::try_from(i128::from(self.clock.wall()) - i128::from(self.now())).unwrap_or(i64::MAX)
    }

    /// The clocks below.
    #[must_use]
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }
}

fn boot_millis(clock: &dyn Clock) -> u64 {
    u64::try_from(clock.boot().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_core::ManualClock;
    use std::time::Duration;

    #[test]
    fn wall_steps_do_not_move_it_and_it_never_goes_back() {
        let clock = Arc::new(ManualClock::new(1_000));
        let time = CatalogTime::new(clock.clone(), 5_000);
        assert_eq!(time.now(), 5_000);
        clock.set_wall(1_000_000_000);
        clock.advance(Duration::from_millis(7));
        assert_eq!(time.now(), 5_007);
        clock.set_wall(0);
        assert_eq!(time.now(), 5_007);
        time.observe(9_000);
        time.observe(8_000);
        assert_eq!(time.now(), 9_000);
    }
}
