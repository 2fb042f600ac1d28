//! A file's attributes, looked at only once the clock has left the tick of its last change.
//!
//! The kernel stamps changes with a clock that moves in ticks of some milliseconds. A file that was changed, read, and
//! changed again within one tick would look to the next run as it was read. Whatever is done to a file after such a
//! look gets a later ctime.

use rustix::{
    fd::AsFd,
    fs::Stat,
    time::{ClockId, Timespec, clock_gettime},
};
use std::time::{Duration, Instant};

/// How often the clock is looked at while it stands.
const LOOK: Duration = Duration::from_millis(1);
/// Longest wait for the next tick, which is 10 ms away at most: a file that is written all the time is never settled.
const PATIENCE: Duration = Duration::from_millis(25);
/// The same on file systems that only know seconds.
const PATIENCE_OF_SECONDS: Duration = Duration::from_millis(1025);

/// How long ago the last change of a file must be that is looked at without waiting. Longer than a tick: the kernel stamps
/// a change before it copies the bytes, and a writer that is held up in between changes the file without a new stamp.
const QUIET: Duration = Duration::from_secs(2);

const NANOS_PER_SECOND: i128 = 1_000_000_000;

/// What `fstat` says of a file.
pub(super) struct Look {
    pub stat: Stat,
    /// Any later change will show.
    pub is_settled: bool,
}

impl Look {
    /// Without waiting, for files that change all the time and are simply read again by the next run.
    pub fn at_once(fd: impl AsFd) -> rustix::io::Result<Self> {
        let now = clock_gettime(ClockId::RealtimeCoarse);
        let stat = rustix::fs::fstat(&fd)?;
        Ok(Self {
            is_settled: is_quiet(&stat, now),
            stat,
        })
    }

    /// Waits, within bounds, until the last change is not of this tick.
    pub fn at(fd: impl AsFd) -> rustix::io::Result<Self> {
        let began = Instant::now();
        loop {
            // Before the look, as the clock is: a thread that is held up in between must not give up on what it saw
            // before. What changes the file after the look is stamped with this tick or a later one.
            let waited = began.elapsed();
            let now = clock_gettime(ClockId::RealtimeCoarse);
            let stat = rustix::fs::fstat(&fd)?;
            let is_settled = is_over(&stat, now);
            if is_settled || waited >= patience(&stat) {
                return Ok(Self { stat, is_settled });
            }
            // A worker is a thread of its own, which nobody unparks.
            std::thread::park_timeout(LOOK);
        }
    }
}

/// No fraction: most likely the file system has none.
fn has_seconds_only(stat: &Stat) -> bool {
    stat.st_ctime_nsec == 0
}

fn patience(stat: &Stat) -> Duration {
    if has_seconds_only(stat) {
        PATIENCE_OF_SECONDS
    } else {
        PATIENCE
    }
}

/// Whether the last change is long over.
fn is_quiet(stat: &Stat, now: Timespec) -> bool {
    nanos(now) - changed_at(stat) > QUIET.as_nanos() as i128
}

/// Whether the tick of the file's last change is over. A tick that is far ahead was stamped by a clock that was set
/// back since: that very tick does not come again in time to hide a change.
fn is_over(stat: &Stat, now: Timespec) -> bool {
    let (changed, now) = (changed_at(stat), nanos(now));
    let tick = if has_seconds_only(stat) {
        NANOS_PER_SECOND - 1
    } else {
        0
    };
    now > changed + tick || changed - now > PATIENCE_OF_SECONDS.as_nanos() as i128
}

/// Since 1970.
fn changed_at(stat: &Stat) -> i128 {
    i128::from(stat.st_ctime) * NANOS_PER_SECOND + i128::from(stat.st_ctime_nsec)
}

fn nanos(time: Timespec) -> i128 {
    i128::from(time.tv_sec) * NANOS_PER_SECOND + i128::from(time.tv_nsec)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        fs::File,
        io::Write as _,
        os::unix::fs::MetadataExt as _,
        path::Path,
        sync::atomic::{AtomicBool, Ordering},
    };

    fn write(path: &Path, bytes: &[u8]) {
        let mut file = File::options().write(true).open(path).unwrap();
        file.write_all(bytes).unwrap();
    }

    #[test]
    fn whatever_is_written_after_the_look_has_another_ctime() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for _ in 0..50 {
            write(file.path(), b"one");
            let seen = Look::at(file.as_file()).unwrap();
            write(file.path(), b"two");
            let after = file.as_file().metadata().unwrap();
            assert!(seen.is_settled);
            assert_ne!(
                (seen.stat.st_ctime, seen.stat.st_ctime_nsec as i64),
                (after.ctime(), after.ctime_nsec())
            );
        }
    }

    #[test]
    fn without_waiting_only_what_rests_for_a_while_is_settled() {
        let file = tempfile::NamedTempFile::new().unwrap();
        write(file.path(), b"one");
        let mut stat = Look::at_once(file.as_file()).unwrap().stat;
        (stat.st_ctime, stat.st_ctime_nsec) = (100, 500);
        let at = |tv_sec| Timespec { tv_sec, tv_nsec: 500 };
        assert!(!is_quiet(&stat, at(100)) && !is_quiet(&stat, at(102)) && !is_quiet(&stat, at(90)));
        assert!(is_quiet(&stat, at(103)));
    }

    #[test]
    fn a_file_that_is_written_all_the_time_is_not_waited_for_for_ever() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    write(file.path(), b"again");
                }
            });
            Look::at(file.as_file()).unwrap();
            done.store(true, Ordering::Relaxed);
        });
    }

    #[test]
    fn clocks_of_seconds_are_waited_out_and_clocks_far_ahead_are_not() {
        let file = tempfile::tempfile().unwrap();
        let mut stat = rustix::fs::fstat(&file).unwrap();
        let at = |tv_sec, tv_nsec| Timespec { tv_sec, tv_nsec };
        (stat.st_ctime, stat.st_ctime_nsec) = (100, 500);
        assert!(!is_over(&stat, at(100, 500)));
        assert!(is_over(&stat, at(100, 501)));
        assert!(is_over(&stat, at(98, 0)));
        (stat.st_ctime, stat.st_ctime_nsec) = (100, 0);
        assert!(!is_over(&stat, at(100, 999_999_999)));
        assert!(is_over(&stat, at(101, 0)));
        assert!(is_over(&stat, at(98, 0)));
    }
}
