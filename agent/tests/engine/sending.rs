//! Packs leave while others are filled, only so many at a time, and a side that refuses them ends the run.

use crate::host::{Host, Memory, noise, spec};
use bytes::Bytes;
use holdfast_agent::{AgentError, Result, engine, remote::Remote};
use holdfast_core::{
    ChunkId, PackId,
    limits::{PACK_TARGET, UPLOADS_IN_FLIGHT},
};
use parking_lot::{Condvar, Mutex};
use std::{fs, path::Path, sync::Arc, time::Duration};

/// Packs of each run, about.
const PACKS: usize = 6;
/// Only ends a test that would hang.
const PATIENCE: Duration = Duration::from_secs(60);

fn fill(dir: &Path) {
    let files = 4 * PACKS;
    for n in 0..files {
        fs::write(dir.join(n.to_string()), noise(n as u64, PACK_TARGET / 4)).unwrap();
    }
}

/// Counts what is under way; the first pack waits for as many as may be.
#[derive(Default)]
struct Counting {
    inner: Memory,
    /// Under way now, and the most that ever were.
    counts: Mutex<(usize, usize)>,
    changed: Condvar,
}

impl Remote for Counting {
    fn known(&self, ids: &[ChunkId]) -> Result<Vec<bool>> {
        self.inner.known(ids)
    }

    fn fetch(&self, ids: &[ChunkId]) -> Result<Vec<Option<Bytes>>> {
        self.inner.fetch(ids)
    }

    fn upload(&self, pack: PackId, bytes: Bytes) -> Result<()> {
        let mut counts = self.counts.lock();
        counts.0 += 1;
        counts.1 = counts.1.max(counts.0);
        self.changed.notify_all();
        while counts.1 < UPLOADS_IN_FLIGHT {
            assert!(!self.changed.wait_for(&mut counts, PATIENCE).timed_out());
        }
        drop(counts);
        self.inner.upload(pack, bytes)?;
        self.counts.lock().0 -= 1;
        Ok(())
    }
}

#[test]
fn as_many_packs_are_under_way_as_may_be_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    fill(dir.path());
    let host = Host::new();
    let remote = Arc::new(Counting::default());
    let outcome = engine::run(
        host.settings(&spec(dir.path())),
        remote.clone(),
        host.caches(),
        Arc::default(),
        Arc::default(),
    );
    assert_eq!(outcome.unwrap().problems.len(), 0);
    assert_eq!(*remote.counts.lock(), (0, UPLOADS_IN_FLIGHT));
}

/// Refuses every pack after the first ones.
struct Refusing {
    inner: Memory,
    left: Mutex<usize>,
}

impl Remote for Refusing {
    fn known(&self, ids: &[ChunkId]) -> Result<Vec<bool>> {
        self.inner.known(ids)
    }

    fn fetch(&self, ids: &[ChunkId]) -> Result<Vec<Option<Bytes>>> {
        self.inner.fetch(ids)
    }

    fn upload(&self, pack: PackId, bytes: Bytes) -> Result<()> {
        let mut left = self.left.lock();
        *left = left
            .checked_sub(1)
            .ok_or_else(|| AgentError::Invalid("no more packs".into()))?;
        drop(left);
        self.inner.upload(pack, bytes)
    }
}

/// A remote side that dies where it is told to.
struct Dying {
    inner: Memory,
    in_upload: bool,
}

impl Remote for Dying {
    fn known(&self, ids: &[ChunkId]) -> Result<Vec<bool>> {
        assert!(self.in_upload, "planted");
        self.inner.known(ids)
    }

    fn fetch(&self, ids: &[ChunkId]) -> Result<Vec<Option<Bytes>>> {
        self.inner.fetch(ids)
    }

    fn upload(&self, _: PackId, _: Bytes) -> Result<()> {
        panic!("planted")
    }
}

#[test]
fn a_thread_that_panics_ends_the_run() {
    let dir = tempfile::tempdir().unwrap();
    fill(dir.path());
    for (in_upload, name) in [(false, "backup-"), (true, "send-")] {
        let host = Host::new();
        let remote = Arc::new(Dying {
            inner: Memory::default(),
            in_upload,
        });
        let outcome = engine::run(
            host.settings(&spec(dir.path())),
            remote,
            host.caches(),
            Arc::default(),
            Arc::default(),
        );
        let error = outcome.unwrap_err().to_string();
        assert!(error.contains(name) && error.contains("abnormally"), "{error}");
    }
}

#[test]
fn a_refused_pack_ends_the_run_with_its_reason() {
    let dir = tempfile::tempdir().unwrap();
    fill(dir.path());
    // Also the last pack, which leaves when all workers are done.
    for taken in [0, 2, PACKS - 1] {
        let host = Host::new();
        let remote = Arc::new(Refusing {
            inner: Memory::default(),
            left: Mutex::new(taken),
        });
        let outcome = engine::run(
            host.settings(&spec(dir.path())),
            remote,
            host.caches(),
            Arc::default(),
            Arc::default(),
        );
        assert_eq!(outcome.unwrap_err().to_string(), "no more packs");
    }
}
