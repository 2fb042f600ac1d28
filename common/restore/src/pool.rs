//! Plain threads that work on a bounded queue, and a bound on the bytes they hold together.

use crate::{RestoreError, Result};
use parking_lot::{Condvar, Mutex};
use std::{
    collections::VecDeque,
    sync::atomic::{AtomicBool, Ordering},
};

/// Work for a pool. Tells everyone to stop after the first error, or when asked from outside.
pub(crate) struct Pool<'c, T> {
    queue: Mutex<Queue<T>>,
    changed: Condvar,
    room: usize,
    cancel: &'c AtomicBool,
    failure: Mutex<Option<RestoreError>>,
    free: Mutex<usize>,
    freed: Condvar,
}

struct Queue<T> {
    tasks: VecDeque<T>,
    closed: bool,
}

impl<'c, T: Send> Pool<'c, T> {
    /// Runs `produce` here and `work` on so many threads until all that was pushed is done.
    /// `bytes` bounds what [`Pool::hold`] gives out at once.
    pub(crate) fn run<W>(
        threads: usize,
        room: usize,
        bytes: usize,
        cancel: &'c AtomicBool,
        worker: impl Fn() -> Result<W> + Sync,
        work: impl Fn(&mut W, T, &Self) -> Result<()> + Sync,
        produce: impl FnOnce(&Self) -> Result<()>,
    ) -> Result<()> {
        let pool = Self {
            queue: Mutex::new(Queue {
                tasks: VecDeque::with_capacity(room),
                closed: false,
            }),
            changed: Condvar::new(),
            room,
            cancel,
            failure: Mutex::new(None),
            free: Mutex::new(bytes),
            freed: Condvar::new(),
        };
        std::thread::scope(|scope| {
            for n in 0..threads {
                let (pool, worker, work) = (&pool, &worker, &work);
                let body = move || {
                    let _guard = StopOnPanic(pool);
                    if let Err(error) = worker().and_then(|mut state| pool.serve(&mut state, work)) {
                        pool.fail(error);
                    }
                };
                if std::thread::Builder::new()
                    .name(format!("restore-{n}"))
                    .spawn_scoped(scope, body)
                    .is_err()
                    && n == 0
                {
                    pool.fail(RestoreError::Worker);
                }
            }
            let _guard = StopOnPanic(&pool);
            if let Err(error) = produce(&pool) {
                pool.fail(error);
            }
            pool.close();
        });
        let failure = pool.failure.into_inner();
        match failure {
            Some(error) => Err(error),
            None if cancel.load(Ordering::Relaxed) => Err(RestoreError::Interrupted),
            None => Ok(()),
        }
    }

    fn serve<W>(&self, state: &mut W, work: &impl Fn(&mut W, T, &Self) -> Result<()>) -> Result<()> {
        while let Some(task) = self.pop() {
            self.check()?;
            work(state, task, self)?;
        }
        Ok(())
    }

    /// Adds work; waits while the queue is full.
    pub(crate) fn push(&self, task: T) -> Result<()> {
        let mut queue = self.queue.lock();
        while queue.tasks.len() >= self.room && !queue.closed {
            self.changed.wait(&mut queue);
        }
        if queue.closed || self.cancel.load(Ordering::Relaxed) {
            return Err(RestoreError::Interrupted);
        }
        queue.tasks.push_back(task);
        drop(queue);
        self.changed.notify_all();
        Ok(())
    }

    fn pop(&self) -> Option<T> {
        let mut queue = self.queue.lock();
        loop {
            if let Some(task) = queue.tasks.pop_front() {
                drop(queue);
                self.changed.notify_all();
                return Some(task);
            }
            if queue.closed {
                return None;
            }
            self.changed.wait(&mut queue);
        }
    }

    /// An error once someone asked to stop or another worker failed.
    pub(crate) fn check(&self) -> Result<()> {
        if self.cancel.load(Ordering::Relaxed) || self.failure.lock().is_some() {
            Err(RestoreError::Interrupted)
        } else {
            Ok(())
        }
    }

    fn fail(&self, error: RestoreError) {
        let mut failure = self.failure.lock();
        // "Interrupted" is what everyone else sees after the first failure.
        if failure.is_none() || matches!(*failure, Some(RestoreError::Interrupted)) {
            *failure = Some(error);
        }
        drop(failure);
        let mut queue = self.queue.lock();
        queue.closed = true;
        let left = std::mem::take(&mut queue.tasks);
        drop(queue);
        drop(left);
        self.changed.notify_all();
    }

    fn close(&self) {
        self.queue.lock().closed = true;
        self.changed.notify_all();
    }

    /// Waits until so many bytes may be held. More than there are in all counts as all.
    pub(crate) fn hold(&self, bytes: usize, all: usize) -> Held<'_, 'c, T> {
        let bytes = bytes.min(all);
        let mut free = self.free.lock();
        while *free < bytes {
            self.freed.wait(&mut free);
        }
        *free -= bytes;
        Held { pool: self, bytes }
    }
}

/// Bytes that are held until this is dropped.
pub(crate) struct Held<'p, 'c, T: Send> {
    pool: &'p Pool<'c, T>,
    bytes: usize,
}

impl<T: Send> Drop for Held<'_, '_, T> {
    fn drop(&mut self) {
        *self.pool.free.lock() += self.bytes;
        self.pool.freed.notify_all();
    }
}

/// Ends the others when a thread dies, which would otherwise wait for it for ever.
struct StopOnPanic<'p, 'c, T: Send>(&'p Pool<'c, T>);

impl<T: Send> Drop for StopOnPanic<'_, '_, T> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail(RestoreError::Worker);
        }
    }
}

/// Threads for work that waits for fetches more than half of the time.
pub(crate) fn worker_count() -> usize {
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    (3 * cores).min(crate::bounds::WORKERS_MAX)
}
