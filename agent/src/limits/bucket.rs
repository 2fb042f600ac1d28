//! A token bucket: pure arithmetic, the time is passed in.
//!
//! Whoever wants to move bytes asks for them and gets a place in the line; the bucket says when the line has come
//! so far. All bytes that may move by a time are thus at most the rate times that time and one burst, whatever the
//! sizes asked for and however the rate changes meanwhile.

use std::time::Duration;

/// What an idle time may save up: as much as the rate gives in this. It makes up for the pause between two packs,
/// in which the controller syncs the first.
pub(super) const BURST: Duration = Duration::from_millis(500);

const NANOS: u128 = 1_000_000_000;

/// A place in the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ticket(u128);

/// Bytes are counted in billionths, so that no rounding adds up.
#[derive(Debug, Default)]
pub(super) struct Bucket {
    /// Bytes per second; none = no limit.
    rate: Option<u64>,
    /// All that was ever asked for.
    asked: u128,
    /// How much of it may move; up to one burst beyond what was asked for.
    covered: u128,
    /// When that was so.
    at: Duration,
}

impl Bucket {
    pub(super) fn rate(&self) -> Option<u64> {
        self.rate
    }

    /// Another rate from now on; those who wait are served by it. A limit begins with an empty bucket.
    pub(super) fn set_rate(&mut self, rate: Option<u64>, now: Duration) {
        self.refill(now);
        self.rate = rate;
        self.cap();
    }

    /// The place behind all that was asked for before.
    pub(super) fn ask(&mut self, bytes: u64, now: Duration) -> Ticket {
        self.refill(now);
        self.asked = self.asked.saturating_add(u128::from(bytes) * NANOS);
        Ticket(self.asked)
    }

    /// How long it takes until that place is served; none = it is.
    pub(super) fn wait(&mut self, Ticket(place): Ticket, now: Duration) -> Option<Duration> {
        self.refill(now);
        let rate = u128::from(self.rate?.max(1));
        let left = place.checked_sub(self.covered).filter(|left| *left > 0)?;
        Some(Duration::from_nanos(
            u64::try_from(left.div_ceil(rate)).unwrap_or(u64::MAX),
        ))
    }

    fn refill(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.at);
        self.at = self.at.max(now);
        self.covered = self.covered.saturating_add(self.gives_in(passed));
        self.cap();
    }

    fn cap(&mut self) {
        self.covered = match self.rate {
            Some(_) => self.covered.min(self.asked.saturating_add(self.gives_in(BURST))),
            None => self.asked,
        };
    }

    fn gives_in(&self, time: Duration) -> u128 {
        u128::from(self.rate.unwrap_or(0)).saturating_mul(time.as_nanos())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn limited(rate: u64) -> Bucket {
        let mut bucket = Bucket::default();
        bucket.set_rate(Some(rate), Duration::ZERO);
        bucket
    }

    #[test]
    fn bytes_move_at_the_rate_from_the_first_on() {
        let mut bucket = limited(1000);
        let ticket = bucket.ask(500, Duration::ZERO);
        assert_eq!(bucket.wait(ticket, Duration::ZERO), Some(SECOND / 2));
        let behind = bucket.ask(1000, Duration::ZERO);
        assert_eq!(bucket.wait(behind, SECOND / 4), Some(SECOND * 5 / 4));
        assert_eq!(bucket.wait(ticket, SECOND / 2), None);
        assert_eq!(bucket.wait(behind, SECOND * 3 / 2), None);
    }

    #[test]
    fn an_idle_hour_saves_up_one_burst_and_no_more() {
        let mut bucket = limited(1000);
        let hour = SECOND * 3600;
        let burst = bucket.ask(500, hour);
        assert_eq!(bucket.wait(burst, hour), None);
        let next = bucket.ask(100, hour);
        assert_eq!(bucket.wait(next, hour), Some(SECOND / 10));
    }

    #[test]
    fn who_waits_is_served_by_the_new_rate_at_once() {
        let mut bucket = limited(1000);
        let ticket = bucket.ask(1_000_000, Duration::ZERO);
        assert_eq!(bucket.wait(ticket, Duration::ZERO), Some(SECOND * 1000));
        bucket.set_rate(Some(1_000_000), Duration::ZERO);
        assert_eq!(bucket.wait(ticket, Duration::ZERO), Some(SECOND));
        bucket.set_rate(Some(10), SECOND / 2);
        assert_eq!(bucket.wait(ticket, SECOND / 2), Some(SECOND * 50_000));
        bucket.set_rate(None, SECOND);
        assert_eq!(bucket.wait(ticket, SECOND), None);
        let free = bucket.ask(u64::MAX, SECOND);
        assert_eq!(bucket.wait(free, SECOND), None);
    }

    #[test]
    fn a_clock_that_steps_back_gives_nothing() {
        let mut bucket = limited(1000);
        let ticket = bucket.ask(2000, SECOND);
        let left = bucket.wait(ticket, SECOND);
        assert_eq!(bucket.wait(ticket, Duration::ZERO), left);
    }

    proptest! {
        /// Whatever is asked for and however the rate changes: what moved in any window is no more than what the
        /// rates of that window give, and a burst of the highest.
        #[test]
        fn no_window_holds_more_than_rate_and_burst(
            steps in proptest::collection::vec((1..2000_u64, 1..200_000_u64, 1..100_000_u64, 0..8_u8), 1..60),
        ) {
            let (mut rate, mut now) = (1000_u64, Duration::ZERO);
            let mut bucket = limited(rate);
            let mut highest = rate;
            // When each piece moved, how long it was, and what the rates gave until then.
            let (mut moved, mut given) = (Vec::new(), 0_u128);
            for (idle_ms, bytes, new_rate, what) in steps {
                if what == 0 {
                    bucket.set_rate(Some(new_rate), now);
                    rate = new_rate;
                    highest = highest.max(rate);
                }
                let idle = Duration::from_millis(if what < 3 { idle_ms } else { 0 });
                now += idle;
                given += u128::from(rate) * idle.as_nanos();
                let ticket = bucket.ask(bytes, now);
                let wait = bucket.wait(ticket, now).unwrap_or_default();
                now += wait;
                given += u128::from(rate) * wait.as_nanos();
                prop_assert_eq!(bucket.wait(ticket, now), None);
                moved.push((given, bytes));
            }
            let burst = u128::from(highest) * BURST.as_nanos();
            for first in 0..moved.len() {
                let start = moved[first].0;
                let mut sum = 0;
                for (end, bytes) in &moved[first + 1..] {
                    sum += u128::from(*bytes) * NANOS;
                    prop_assert!(sum <= end - start + burst);
                }
            }
        }

        /// Who always has something to send is held up by the limit alone: nothing of the rate is lost.
        #[test]
        fn a_busy_sender_gets_the_whole_rate(
            rate in 1000..1_000_000_u64,
            sizes in proptest::collection::vec(1..100_000_u64, 1..100),
            late_ms in proptest::collection::vec(0..400_u64, 100),
        ) {
            let (mut bucket, mut now) = (limited(rate), Duration::ZERO);
            let total: u64 = sizes.iter().sum();
            let mut last_late = Duration::ZERO;
            for (bytes, late) in sizes.into_iter().zip(late_ms) {
                let ticket = bucket.ask(bytes, now);
                if let Some(wait) = bucket.wait(ticket, now) {
                    // Threads wake late; what that costs is made up for.
                    last_late = Duration::from_millis(late);
                    now += wait + last_late;
                }
            }
            let ideal = Duration::from_nanos((u128::from(total) * NANOS).div_ceil(u128::from(rate)) as u64);
            prop_assert!(now <= ideal + last_late, "{now:?} for {ideal:?}");
        }
    }
}
