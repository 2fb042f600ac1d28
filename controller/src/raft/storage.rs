//! The log as openraft wants it: one thread writes, groups what waits under one sync, and stops the
//! process when the disk fails, because a node that cannot trust its log may not vote.

use super::{
    log::{self, EntryPlace, Log},
    types::{Entry, LogId, StorageError, TypeConfig, Vote},
};
use crate::error::{Error, Result};
use holdfast_core::{ErrorKind, HasKind};
use openraft::{
    ErrorSubject, ErrorVerb, LogState, OptionalSend, RaftLogReader, StorageIOError,
    storage::{LogFlushed, RaftLogStorage},
};
use parking_lot::Mutex;
use std::{
    collections::BTreeMap,
    fmt::Debug,
    fs::{File, OpenOptions},
    ops::{Bound, RangeBounds},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::sync::{mpsc, oneshot};

/// Writes that wait for the disk; openraft waits when there are more.
const QUEUE: usize = 256;
/// Most appends that share one sync.
const GROUP: usize = 64;
/// Most entries read at a time.
const READ_BATCH: u64 = 512;
/// Pause before a full disk is tried again.
const FULL_DISK_PAUSE: Duration = Duration::from_secs(1);

enum Op {
    Append(Vec<(LogId, Vec<u8>)>, LogFlushed<TypeConfig>),
    Truncate(u64, oneshot::Sender<()>),
    Purge(LogId, oneshot::Sender<()>),
    Vote(Vote, oneshot::Sender<()>),
}

/// What readers and the writer share. Sections under the lock are short and do no I/O but the writer's own.
struct Shared {
    log: Mutex<Log>,
    // Entries that are handed over but not on disk yet: they must be readable already.
    waiting: Mutex<BTreeMap<u64, Entry>>,
    written_bytes: AtomicU64,
    disk_full: AtomicBool,
}

/// openraft's view of the log of this node.
#[derive(Clone)]
pub struct LogStore {
    shared: Arc<Shared>,
    ops: mpsc::Sender<Op>,
    vote_path: PathBuf,
    committed: Arc<File>,
    committed_path: PathBuf,
    last: Arc<Mutex<Option<LogId>>>,
}

impl LogStore {
    /// Opens the log, vote and committed files in `dir` and starts the writing thread, which ends when the last
    /// handle is dropped.
    ///
    /// # Errors
    /// `Corrupt` when anything that was acknowledged is damaged or missing.
    pub fn open(dir: &Path) -> Result<Self> {
        super::files::create_dir(dir)?;
        let log = Log::open(&dir.join("log"))?;
        let committed_path = dir.join("committed");
        let committed = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&committed_path)
            .map_err(|e| Error::io("open", &committed_path, e))?;
        let vote_path = dir.join("vote");
        // Damage is better found now than in an election.
        log::read_small::<Vote>(&vote_path)?;
        let last = log.last();
        let shared = Arc::new(Shared {
            log: Mutex::new(log),
            waiting: Mutex::new(BTreeMap::new()),
            written_bytes: AtomicU64::new(0),
            disk_full: AtomicBool::new(false),
        });
        let (ops, queue) = mpsc::channel(QUEUE);
        let writer = Writer {
            shared: shared.clone(),
            queue,
            vote_path: vote_path.clone(),
        };
        std::thread::Builder::new()
            .name("raft-log".into())
            .spawn(move || writer.run())
            .map_err(|e| Error::io("start the log's thread for", dir, e))?;
        let store = Self {
            shared,
            ops,
            vote_path,
            committed: Arc::new(committed),
            committed_path,
            last: Arc::new(Mutex::new(last)),
        };
        if let Some(committed) = store.load_committed()
            && store.last.lock().is_none_or(|last| last.index < committed.index)
        {
            return Err(Error::corrupt(
                "the Raft log",
                format!(
                    "entry {} was committed, but the log ends before it; restore the node from its peers or a backup",
                    committed.index
                ),
            ));
        }
        Ok(store)
    }

    /// Bytes of entries written since the process began.
    #[must_use]
    pub fn written_bytes(&self) -> u64 {
        self.shared.written_bytes.load(Ordering::Relaxed)
    }

    /// Bytes of the log on disk.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        self.shared.log.lock().len_bytes()
    }

    /// Whether appends wait for space.
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        self.shared.disk_full.load(Ordering::Relaxed)
    }

    async fn run(&self, op: impl FnOnce(oneshot::Sender<()>) -> Op) -> Result<(), StorageError> {
        let (done, wait) = oneshot::channel();
        let gone = || storage_error(ErrorSubject::Logs, ErrorVerb::Write, "the log's thread has ended");
        self.ops.send(op(done)).await.map_err(|_| gone())?;
        wait.await.map_err(|_| gone())
    }

    fn load_committed(&self) -> Option<LogId> {
        let bytes = std::fs::read(&self.committed_path).ok()?;
        let len = usize::from(u16::from_le_bytes(bytes.get(..2)?.try_into().ok()?));
        let content = bytes.get(6..6 + len)?;
        if crc32c::crc32c(content).to_le_bytes()[..] != bytes[2..6] {
            return None;
        }
        crate::catalog::kv::decode(content).ok()
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(start) => start.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(end) => end.saturating_add(1),
            Bound::Excluded(end) => *end,
            Bound::Unbounded => u64::MAX,
        };
        if start >= end {
            return Ok(Vec::new());
        }
        // Waiting first: what leaves it while we look is on disk by then.
        let waiting: BTreeMap<u64, Entry> = self
            .shared
            .waiting
            .lock()
            .range(start..end)
            .map(|(index, entry)| (*index, entry.clone()))
            .collect();
        let from_disk_end = waiting.first_key_value().map_or(end, |(first, _)| *first);
        let places: Vec<(u64, EntryPlace)> = if start < from_disk_end {
            let shared = self.shared.clone();
            // The writer holds the lock while it syncs.
            tokio::task::spawn_blocking(move || shared.log.lock().places(start..from_disk_end))
                .await
                .map_err(|e| storage_error(ErrorSubject::Logs, ErrorVerb::Read, &e.to_string()))?
        } else {
            Vec::new()
        };
        let mut entries = Vec::with_capacity(places.len() + waiting.len());
        for (_, place) in places {
            // A leader that read on after this could damage its followers.
            entries.push(place.read().unwrap_or_else(|e| die(&e)));
        }
        entries.extend(waiting.into_values());
        Ok(entries)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, StorageError> {
        self.try_get_log_entries(start..end.min(start.saturating_add(READ_BATCH)))
            .await
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, StorageError> {
        let last_purged_log_id = {
            let shared = self.shared.clone();
            tokio::task::spawn_blocking(move || shared.log.lock().purged())
                .await
                .map_err(|e| storage_error(ErrorSubject::Logs, ErrorVerb::Read, &e.to_string()))?
        };
        Ok(LogState {
            last_purged_log_id,
            last_log_id: *self.last.lock(),
        })
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        self.run(|done| Op::Vote(*vote, done)).await
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        log::read_small(&self.vote_path)
            .map_err(|e| storage_error(ErrorSubject::Vote, ErrorVerb::Read, &e.to_string()))
    }

    /// Written in place, without a sync: losing it costs nothing, since what is committed is found anew in the
    /// log; but when it is there, an end of the log that went missing is noticed at open.
    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        let Some(committed) = committed else { return Ok(()) };
        let failed = |text: String| storage_error(ErrorSubject::Store, ErrorVerb::Write, &text);
        let content = crate::catalog::kv::encode(&committed).map_err(|e| failed(e.to_string()))?;
        let mut bytes = u16::try_from(content.len())
            .unwrap_or(u16::MAX)
            .to_le_bytes()
            .to_vec();
        bytes.extend_from_slice(&crc32c::crc32c(&content).to_le_bytes());
        bytes.extend_from_slice(&content);
        // A full disk must not stop the node for this.
        if let Err(e) = self.committed.write_all_at(&bytes, 0) {
            tracing::warn!(error = %e, path = %self.committed_path.display(), "cannot note what is committed");
        }
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        Ok(self.load_committed())
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<TypeConfig>) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut encoded = Vec::new();
        {
            let mut waiting = self.shared.waiting.lock();
            for entry in entries {
                let bytes = log::encode_entry(&entry)
                    .map_err(|e| storage_error(ErrorSubject::Logs, ErrorVerb::Write, &e.to_string()))?;
                encoded.push((entry.log_id, bytes));
                waiting.insert(entry.log_id.index, entry);
            }
        }
        if let Some((newest, _)) = encoded.last() {
            *self.last.lock() = Some(*newest);
        }
        self.ops
            .send(Op::Append(encoded, callback))
            .await
            .map_err(|_| storage_error(ErrorSubject::Logs, ErrorVerb::Write, "the log's thread has ended"))
    }

    async fn truncate(&mut self, log_id: LogId) -> Result<(), StorageError> {
        self.run(|done| Op::Truncate(log_id.index, done)).await?;
        let shared = self.shared.clone();
        let last = tokio::task::spawn_blocking(move || shared.log.lock().last())
            .await
            .map_err(|e| storage_error(ErrorSubject::Logs, ErrorVerb::Read, &e.to_string()))?;
        *self.last.lock() = last;
        Ok(())
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), StorageError> {
        self.run(|done| Op::Purge(log_id, done)).await?;
        let mut last = self.last.lock();
        if last.is_none_or(|last| last.index < log_id.index) {
            *last = Some(log_id);
        }
        Ok(())
    }
}

/// The only one who writes.
struct Writer {
    shared: Arc<Shared>,
    queue: mpsc::Receiver<Op>,
    vote_path: PathBuf,
}

impl Writer {
    fn run(mut self) {
        let mut next = self.queue.blocking_recv();
        while let Some(op) = next.take() {
            match op {
                Op::Append(entries, callback) => {
                    let mut batch = entries;
                    let mut callbacks = vec![callback];
                    while callbacks.len() < GROUP {
                        match self.queue.try_recv() {
                            Ok(Op::Append(more, callback)) => {
                                batch.extend(more);
                                callbacks.push(callback);
                            }
                            Ok(other) => {
                                next = Some(other);
                                break;
                            }
                            Err(_) => break,
                        }
                    }
                    self.append(&batch);
                    for callback in callbacks {
                        callback.log_io_completed(Ok(()));
                    }
                }
                Op::Truncate(index, done) => {
                    self.until_space(|log| log.truncate(index));
                    // Whoever asked may be gone; what was asked is done all the same.
                    let _ = done.send(());
                }
                Op::Purge(upto, done) => {
                    self.until_space(|log| log.purge(upto));
                    let _ = done.send(());
                }
                Op::Vote(vote, done) => {
                    let path = self.vote_path.clone();
                    self.until_space(|_| log::write_small(&path, &vote));
                    let _ = done.send(());
                }
            }
            if next.is_none() {
                next = self.queue.blocking_recv();
            }
        }
    }

    fn append(&self, batch: &[(LogId, Vec<u8>)]) {
        if let (Some((first, _)), Some((last, _))) = (batch.first(), batch.last()) {
            tracing::debug!(target: "holdfast::phase", phase = "raft-append", first = first.index, last = last.index);
        }
        self.until_space(|log| log.append(batch));
        let bytes: usize = batch.iter().map(|(_, bytes)| bytes.len()).sum();
        self.shared
            .written_bytes
            .fetch_add(bytes as u64, Ordering::Relaxed);
        let mut waiting = self.shared.waiting.lock();
        for (id, _) in batch {
            waiting.remove(&id.index);
        }
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the log's own thread, and nothing can go on without space"
    )]
    /// Does it; waits while the disk is full; stops the process on any other failure.
    fn until_space(&self, mut write: impl FnMut(&mut Log) -> Result<()>) {
        loop {
            match write(&mut self.shared.log.lock()) {
                Ok(()) => {
                    self.shared.disk_full.store(false, Ordering::Relaxed);
                    return;
                }
                Err(e) if e.kind() == ErrorKind::NoSpace => {
                    if !self.shared.disk_full.swap(true, Ordering::Relaxed) {
                        tracing::error!(error = %e, "the disk of the Raft log is full; nothing is accepted until there is space");
                    }
                }
                Err(e) => die(&e),
            }
            if self.queue.is_closed() {
                // The node stops; nothing was acknowledged.
                return;
            }
            std::thread::sleep(FULL_DISK_PAUSE);
        }
    }
}

/// Ends the process at once: what it would say from now on could be wrong.
fn die(error: &Error) -> ! {
    tracing::error!(%error, "the Raft log failed; the process stops");
    eprintln!("holdfast-controller: the Raft log failed, the process stops: {error}");
    std::process::abort();
}

pub(super) fn storage_error(subject: ErrorSubject<u64>, verb: ErrorVerb, text: &str) -> StorageError {
    StorageError::IO {
        source: StorageIOError::new(subject, verb, &std::io::Error::other(text.to_owned())),
    }
}
