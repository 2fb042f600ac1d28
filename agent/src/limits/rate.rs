//! A rate that threads and tasks keep to: the waiting around a [`Bucket`].

use super::bucket::Bucket;
use parking_lot::{Condvar, Mutex};
use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};
use tokio::sync::Notify;

/// How long a thread that waits goes without a look at whether it should stop.
const CANCEL_LOOK: Duration = Duration::from_millis(100);
/// Pieces per second that a limited stream moves in, roughly: even enough for whoever shares the line or the disk.
const PIECES_PER_SECOND: u64 = 20;
/// Smaller pieces cost more than they smooth.
const PIECE_MIN: u64 = 4 * 1024;

/// Bytes per second; no limit to begin with. Without one it costs a look at an atomic number.
#[derive(Debug)]
pub struct Rate {
    /// The bucket's rate, 0 for none.
    rate: AtomicU64,
    bucket: Mutex<Bucket>,
    changed: Condvar,
    changed_async: Notify,
    began: Instant,
}

impl Default for Rate {
    fn default() -> Self {
        Self {
            rate: AtomicU64::new(0),
            bucket: Mutex::default(),
            changed: Condvar::new(),
            changed_async: Notify::new(),
            began: Instant::now(),
        }
    }
}

impl Rate {
    /// Another rate from now on, for those too who wait already.
    pub(super) fn set(&self, rate: Option<u64>) {
        let mut bucket = self.bucket.lock();
        if bucket.rate() == rate {
            return;
        }
        bucket.set_rate(rate, self.began.elapsed());
        self.rate.store(rate.unwrap_or(0), Relaxed);
        drop(bucket);
        self.changed.notify_all();
        self.changed_async.notify_waiters();
    }

    /// The rate that holds now.
    pub(super) fn in_force(&self) -> Option<u64> {
        self.bucket.lock().rate()
    }

    /// How much to move at once, at most `most`: all of it when nothing is limited.
    #[must_use]
    pub fn piece(&self, most: usize) -> usize {
        match self.rate.load(Relaxed) {
            0 => most,
            rate => {
                let piece = (rate / PIECES_PER_SECOND).max(PIECE_MIN);
                usize::try_from(piece).map_or(most, |piece| piece.min(most))
            }
        }
    }

    /// Waits until so many bytes may have moved, or `cancel` is set.
    pub fn pay(&self, bytes: usize, cancel: &AtomicBool) {
        if self.rate.load(Relaxed) == 0 {
            return;
        }
        let mut bucket = self.bucket.lock();
        let ticket = bucket.ask(bytes as u64, self.began.elapsed());
        while let Some(wait) = bucket.wait(ticket, self.began.elapsed()) {
            if cancel.load(Relaxed) {
                return;
            }
            self.changed.wait_for(&mut bucket, wait.min(CANCEL_LOOK));
        }
    }

    /// Waits until so many bytes may move. Dropping it gives up, and the bytes count as moved.
    pub async fn paid(&self, bytes: usize) {
        if self.rate.load(Relaxed) == 0 {
            return;
        }
        let ticket = self.bucket.lock().ask(bytes as u64, self.began.elapsed());
        loop {
            let changed = self.changed_async.notified();
            tokio::pin!(changed);
            // Before the look, so that no change falls between the two.
            changed.as_mut().enable();
            let wait = self.bucket.lock().wait(ticket, self.began.elapsed());
            let Some(wait) = wait else { return };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = changed => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    /// So slow that only a change ends the wait.
    const HARDLY: Option<u64> = Some(1);

    #[test]
    fn a_thread_that_waits_hears_of_a_new_rate_and_of_the_end() {
        let rate = Arc::new(Rate::default());
        let cancel = Arc::new(AtomicBool::new(false));
        rate.pay(usize::MAX, &cancel);
        rate.set(HARDLY);
        for lift in [true, false] {
            let waiting = {
                let (rate, cancel) = (Arc::clone(&rate), Arc::clone(&cancel));
                std::thread::spawn(move || rate.pay(1 << 30, &cancel))
            };
            if lift {
                rate.set(None);
            } else {
                cancel.store(true, Relaxed);
            }
            waiting.join().unwrap();
            rate.set(HARDLY);
        }
    }

    #[tokio::test]
    async fn a_task_that_waits_hears_of_a_new_rate() {
        let rate = Arc::new(Rate::default());
        rate.paid(usize::MAX).await;
        rate.set(HARDLY);
        let waiting = {
            let rate = Arc::clone(&rate);
            tokio::spawn(async move { rate.paid(1 << 30).await })
        };
        tokio::task::yield_now().await;
        rate.set(None);
        waiting.await.unwrap();
    }

    #[test]
    fn pieces_are_small_where_the_rate_is() {
        let rate = Rate::default();
        assert_eq!(rate.piece(512 * 1024), 512 * 1024);
        rate.set(Some(1 << 20));
        assert_eq!(rate.piece(512 * 1024), (1 << 20) / 20);
        rate.set(Some(1024));
        assert_eq!((rate.piece(512 * 1024), rate.piece(100)), (4096, 100));
        rate.set(Some(1 << 30));
        assert_eq!(rate.piece(512 * 1024), 512 * 1024);
    }
}
