//! What a job may take of this host: two rates, and the priority of its worker threads. Everything can change
//! while the job runs, and what is in force is read back, not remembered.

mod bucket;
mod priority;
mod rate;

pub use rate::Rate;

use holdfast_core::{HostLimits, IoClass, limits::LIMIT_WARNINGS_MAX, nice_of_weight, weight_of_nice};
use holdfast_net::host_limits;
use holdfast_proto::v1::LimitsInForce;
use parking_lot::Mutex;
use priority::{io_of, nice_of, set_io, set_nice};
use rustix::thread::{Pid, gettid};
use tokio::sync::Notify;

/// The limits of one job.
#[derive(Debug, Default)]
pub struct JobLimits {
    /// What leaves this host, or comes to it for a restore.
    pub send: Rate,
    /// What is read from files.
    pub read: Rate,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    asked: HostLimits,
    workers: Vec<Worker>,
    /// What was refused when the limits were last applied.
    refused: Vec<String>,
    /// What was read last while there were threads.
    last: Found,
}

/// A worker thread and how it began.
#[derive(Debug)]
struct Worker {
    thread: Pid,
    nice: i32,
    /// Read before it is changed for the first time.
    io: Option<IoClass>,
}

/// What the kernel says of the worker threads.
#[derive(Debug, Clone, Default)]
struct Found {
    threads: usize,
    /// Of the most favoured one.
    nice: i32,
    /// When it was last applied; none as long as it never was.
    io: Option<IoClass>,
    /// Threads that are not as they should be.
    stray: Option<String>,
}

impl JobLimits {
    /// Limits from the job's beginning on.
    #[must_use]
    pub fn new(limits: &HostLimits) -> Self {
        let new = Self::default();
        new.set(limits);
        new
    }

    /// Other limits from now on, for what runs too.
    pub fn set(&self, limits: &HostLimits) {
        let mut state = self.state.lock();
        state.asked = *limits;
        self.send.set(limits.bandwidth);
        self.read.set(limits.read_rate);
        state.refused.clear();
        state.apply(0);
        drop(state);
        self.changed.notify_one();
    }

    /// Returns after the limits were set anew.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// The calling thread works for the job until the guard is dropped.
    #[must_use]
    pub fn enter(&self) -> Working<'_> {
        let thread = gettid();
        let mut state = self.state.lock();
        match nice_of(thread) {
            Ok(nice) => {
                let new = state.workers.len();
                state.workers.push(Worker {
                    thread,
                    nice,
                    io: None,
                });
                state.apply(new);
            }
            Err(why) => state.refuse(why),
        }
        drop(state);
        Working { limits: self, thread }
    }

    /// What holds now.
    #[must_use]
    pub fn in_force(&self) -> LimitsInForce {
        let mut state = self.state.lock();
        let Found {
            threads,
            nice,
            io,
            stray,
        } = state.look();
        let mut warnings = state.refused.clone();
        if warnings.is_empty() {
            warnings.extend(stray);
        }
        LimitsInForce {
            asked: Some(host_limits::to_wire(&state.asked)),
            bandwidth: self.send.in_force().unwrap_or(0),
            read_rate: self.read.in_force().unwrap_or(0),
            threads: u32::try_from(threads).unwrap_or(u32::MAX),
            nice,
            cpu_weight: weight_of_nice(nice),
            io_class: io.map_or_else(String::new, |class| class.as_str().into()),
            io_priority: io.and_then(IoClass::priority).unwrap_or(0),
            warnings,
        }
    }
}

impl State {
    /// Gives the workers from that one on what is asked, and reads back.
    fn apply(&mut self, from: usize) {
        let asked = self.asked;
        for at in from..self.workers.len() {
            let Worker { thread, nice, .. } = self.workers[at];
            let wanted = asked.cpu_weight.map_or(nice, nice_of_weight);
            if let Err(why) = set_nice(thread, wanted) {
                self.refuse(why);
            }
        }
        if let Err(why) = self.apply_io(from) {
            self.refuse(why);
        }
        let _ = self.look();
    }

    fn apply_io(&mut self, from: usize) -> Result<(), String> {
        let workers = &mut self.workers[from..];
        let Some(first) = workers.first() else {
            return Ok(());
        };
        let threads: Vec<Pid> = workers.iter().map(|worker| worker.thread).collect();
        // All threads begin alike, as the agent was started.
        let wanted = match (self.asked.io, first.io) {
            (Some(asked), Some(_)) => asked,
            (Some(asked), None) => {
                for (worker, class) in workers.iter_mut().zip(io_of(&threads)?) {
                    worker.io.get_or_insert(class);
                }
                asked
            }
            (None, Some(began)) => began,
            (None, None) => return Ok(()),
        };
        self.last.io = set_io(&threads, wanted)?.first().copied();
        Ok(())
    }

    /// Told once, though every thread meets it.
    fn refuse(&mut self, why: String) {
        if !self.refused.contains(&why) && self.refused.len() < LIMIT_WARNINGS_MAX {
            tracing::warn!(why, "a limit could not be applied");
            self.refused.push(why);
        }
    }

    /// Reads nice values back; what was read last when no thread works.
    fn look(&mut self) -> Found {
        let mut found = Found {
            io: self.last.io,
            ..Found::default()
        };
        for worker in &self.workers {
            let Ok(nice) = nice_of(worker.thread) else {
                continue;
            };
            let wanted = self.asked.cpu_weight.map_or(worker.nice, nice_of_weight);
            if nice != wanted {
                found.stray = Some(format!("a thread runs at nice {nice} instead of {wanted}"));
            }
            if found.threads == 0 || nice < found.nice {
                found.nice = nice;
            }
            found.threads += 1;
        }
        if found.threads > 0 {
            self.last = found;
        }
        self.last.clone()
    }
}

/// A thread at work.
#[derive(Debug)]
pub struct Working<'l> {
    limits: &'l JobLimits,
    thread: Pid,
}

impl Drop for Working<'_> {
    fn drop(&mut self) {
        let mut state = self.limits.state.lock();
        state.workers.retain(|worker| worker.thread != self.thread);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, mpsc};

    fn limits(weight: u32, io: IoClass) -> HostLimits {
        HostLimits {
            cpu_weight: Some(weight),
            io: Some(io),
            ..HostLimits::default()
        }
    }

    #[test]
    fn what_is_in_force_is_read_back_from_the_threads() {
        let job = Arc::new(JobLimits::new(&HostLimits {
            bandwidth: Some(1 << 20),
            ..limits(50, IoClass::BestEffort(6))
        }));
        let before = job.in_force();
        assert_eq!(
            (before.threads, before.bandwidth, before.read_rate),
            (0, 1 << 20, 0)
        );
        let (ready, begun) = mpsc::sync_channel(1);
        let (end, ended) = mpsc::sync_channel::<()>(1);
        let worker = {
            let job = Arc::clone(&job);
            std::thread::spawn(move || {
                let _working = job.enter();
                ready.send(()).unwrap();
                let _ = ended.recv();
            })
        };
        begun.recv().unwrap();
        let first = job.in_force();
        assert_eq!((first.threads, first.nice, first.cpu_weight), (1, 3, 51));
        assert_eq!((first.io_class.as_str(), first.io_priority), ("best-effort", 6));
        job.set(&limits(1, IoClass::Idle));
        let second = job.in_force();
        assert_eq!(
            (second.nice, second.io_class.as_str(), second.bandwidth),
            (19, "idle", 0)
        );
        assert_eq!(second.warnings, Vec::<String>::new());
        drop(end);
        worker.join().unwrap();
        assert_eq!(job.in_force(), second, "what was read last stays");
    }
}
