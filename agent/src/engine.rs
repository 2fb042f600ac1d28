//! The backup engine of an agent: worker threads that walk, read, chunk, hash, compress, seal and
//! pack, with bounded memory; the network is behind [`Remote`].

mod attributes;
mod buffers;
mod build;
mod classify;
mod directory;
mod large_file;
mod linked_files;
mod listing;
mod old_entries;
mod old_file;
mod packer;
mod piece;
mod queue;
mod reader;
mod record_cache;
mod section;
mod settled;
mod stats;
mod store_chunk;
mod worker;

pub use record_cache::{Keep, RecordCache};
pub use stats::{Progress, Stats};

use crate::{
    error::{AgentError, Result},
    files::Selection,
    limits::JobLimits,
    remote::Remote,
};
use attributes::{LongHeld, RootRoom};
use buffers::Buffers;
use directory::{Directory, Finished};
use holdfast_core::{
    ChunkId,
    limits::{LISTED_PROBLEMS_MAX, UPLOADS_IN_FLIGHT},
};
use holdfast_proto::v1::Problem;
use holdfast_repo::{Chunker, DirBuilder, Entry, EntryKind, RootTree, VaultKeys};
use linked_files::LinkedFiles;
use listing::{NAMES_HELD_MAX, NamesHeld};
use packer::Packer;
use parking_lot::Mutex;
use queue::Queue;
use std::{
    collections::{BTreeSet, HashSet},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use store_chunk::{Seen, Sink};

/// What one run needs.
pub struct Settings {
    /// The vault's keys.
    pub keys: Arc<VaultKeys>,
    /// What to read.
    pub selection: Arc<Selection>,
    /// Trees of the parent snapshot.
    pub parent: Vec<RootTree>,
    /// Whether this host's files were read for it: only then are those unchanged that look as they did.
    pub is_parent_of_here: bool,
    /// Threads; at least 1.
    pub workers: usize,
    /// How hard to compress.
    pub levels: Levels,
    /// Chunks that the controllers turned out not to have although we thought so.
    pub missing: HashSet<ChunkId>,
    /// What the run may take of this host; may change while it goes on.
    pub limits: Arc<JobLimits>,
    /// How wide directories are taken.
    pub width: Width,
    /// Most chunks that a segment of a file which is rewritten in place is put together from; 1 stores it whole
    /// whenever it changed.
    pub segment_chunks: usize,
}

/// zstd levels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Levels {
    /// Of what is cut by its content, and of nodes.
    pub content: i32,
    /// Of whole segments of files that are rewritten in place. What is rewritten later is stored as patches at
    /// the other level.
    pub segments: i32,
}

/// How much of wide directories is held at once. It changes memory and order, never the snapshot.
#[derive(Debug, Clone, Copy)]
pub struct Width {
    /// Most entries of a section: of each directory on the way down at most four sections are open.
    pub section: usize,
    /// Bytes of names that all directories under way hold together; wider ones are read more than once.
    pub names_held: usize,
}

impl Default for Width {
    fn default() -> Self {
        Self {
            section: SECTION_LEN,
            names_held: NAMES_HELD_MAX,
        }
    }
}

/// Enough that most directories are one section, and that nodes of the parent which are read for two of them
/// count little; about 1.5 MiB of entries.
const SECTION_LEN: usize = 4096;

/// What earlier runs left on this host; both may be empty.
pub struct Caches {
    /// Sealed nodes of the parent snapshot.
    pub nodes: RecordCache,
    /// Signatures of segments.
    pub signatures: RecordCache,
}

impl Caches {
    /// Opens the caches of one source, whose files begin with `path`. Without a parent snapshot nothing in
    /// them is known to be stored, so they begin empty.
    ///
    /// # Errors
    /// When they cannot be opened.
    pub fn open(path: &Path, has_parent: bool) -> Result<Self> {
        let (nodes, signatures) = (path.with_extension("nodes"), path.with_extension("signatures"));
        if !has_parent {
            let _ = std::fs::remove_file(&nodes);
        }
        Ok(Self {
            nodes: RecordCache::open(&nodes, Keep::Used, NODES_MAX)?,
            signatures: RecordCache::open(&signatures, Keep::Newest, SIGNATURES_MAX)?,
        })
    }
}

/// Most bytes of cached nodes; beyond it they are fetched.
const NODES_MAX: u64 = 1 << 30;
/// Most bytes of cached signatures: enough for 256 GiB of files that are rewritten in place. What is beyond
/// it is stored whole when it changed.
const SIGNATURES_MAX: u64 = 1 << 30;

/// Counts something that could not be had, and lists it while the list is short.
pub(crate) fn report(stats: &Stats, problems: &mut Vec<Problem>, path: Vec<u8>, reason: &str) {
    stats::add(&stats.unreadable, 1);
    if problems.len() < LISTED_PROBLEMS_MAX {
        problems.push(Problem {
            path: path.into(),
            reason: reason.to_owned(),
        });
    }
}

/// What a run brought.
#[derive(Debug)]
pub struct Outcome {
    /// The new trees.
    pub trees: Vec<RootTree>,
    /// What could not be read, capped; the count in the statistics is exact.
    pub problems: Vec<Problem>,
    /// Owners that occur.
    pub uids: BTreeSet<u32>,
    /// Groups that occur.
    pub gids: BTreeSet<u32>,
}

/// What all workers share.
struct Shared {
    settings: Settings,
    chunker: Chunker,
    remote: Arc<dyn Remote>,
    nodes: RecordCache,
    signatures: RecordCache,
    buffers: Buffers,
    seen: Seen,
    /// The node of a directory without entries, for mount points and what cannot be listed.
    empty_dir: EntryKind,
    root_room: RootRoom,
    long_held: LongHeld,
    linked_files: LinkedFiles,
    names_held: NamesHeld,
    /// The controllers lost something: whatever the cache holds is sent again where it is missing.
    distrust_cache: bool,
    packer: Packer,
    queue: Queue,
    stats: Arc<Stats>,
    cancel: Arc<AtomicBool>,
    problems: Mutex<Vec<Problem>>,
    owners: Mutex<(BTreeSet<u32>, BTreeSet<u32>)>,
    failure: Mutex<Option<AgentError>>,
}

impl Shared {
    /// Stops everyone; the first reason is kept.
    fn fail(&self, error: AgentError) {
        self.failure.lock().get_or_insert(error);
        self.cancel.store(true, Ordering::Relaxed);
        self.queue.stop();
        self.packer.stop();
    }

    /// Bytes were read from a file: waits for as long as the limit says.
    fn pay_for_reading(&self, bytes: usize) {
        self.settings.limits.read.pay(bytes, &self.cancel);
    }

    fn check_cancelled(&self) -> Result<()> {
        if self.cancel.load(Ordering::Relaxed) {
            return Err(AgentError::Interrupted(
                "the run was cancelled or its lease ended".into(),
            ));
        }
        Ok(())
    }
}

/// Runs a backup of the selection to its last acknowledged pack.
///
/// `cancel` may be set from outside at any time; the run then ends with `Interrupted`.
///
/// # Errors
/// When the remote side fails for good, the run is cancelled, or a root cannot be read at all.
pub fn run(
    settings: Settings,
    remote: Arc<dyn Remote>,
    caches: Caches,
    stats: Arc<Stats>,
    cancel: Arc<AtomicBool>,
) -> Result<Outcome> {
    let empty = DirBuilder::new(Arc::clone(&settings.keys)).finish()?;
    let shared = Shared {
        seen: Seen::default(),
        root_room: RootRoom::default(),
        long_held: LongHeld::default(),
        linked_files: LinkedFiles::default(),
        names_held: NamesHeld::default(),
        empty_dir: EntryKind::Dir {
            node: empty.id,
            files: 0,
            bytes: 0,
        },
        distrust_cache: !settings.missing.is_empty(),
        chunker: Chunker::new(settings.keys.gear_key()),
        packer: Packer::new(settings.keys.vault()),
        queue: Queue::default(),
        remote,
        nodes: caches.nodes,
        signatures: caches.signatures,
        buffers: Buffers::default(),
        stats,
        cancel,
        problems: Mutex::default(),
        owners: Mutex::default(),
        failure: Mutex::default(),
        settings,
    };
    let mut sink = Sink::new(&shared)?;
    for node in empty.nodes {
        sink.store_node(&shared, node)?;
    }
    drop(sink);
    let (top, first_tasks) = Directory::top(&shared);
    shared.queue.push_tasks(first_tasks);
    work(&shared);
    if let Some(error) = shared.failure.lock().take() {
        return Err(error);
    }
    shared.check_cancelled()?;
    let entries = top
        .take_finished()
        .ok_or_else(|| AgentError::Internal("the walk did not end".into()))?;
    shared.nodes.finish()?;
    shared.signatures.finish()?;
    let trees = pair_with_paths(&shared.settings.selection, entries);
    let (uids, gids) = std::mem::take(&mut *shared.owners.lock());
    let problems = std::mem::take(&mut *shared.problems.lock());
    Ok(Outcome {
        trees,
        problems,
        uids,
        gids,
    })
}

/// Runs the workers, and beside them the threads that send what they fill, until all is sent or one failed.
fn work(shared: &Shared) {
    let span = tracing::Span::current();
    std::thread::scope(|scope| {
        let start = |name: String, work: fn(&Shared)| {
            let span = &span;
            let thread = std::thread::Builder::new().name(name);
            thread.spawn_scoped(scope, move || {
                let _guard = StopOnPanic(shared);
                span.in_scope(|| work(shared));
            })
        };
        let senders = (0..UPLOADS_IN_FLIGHT).map(|n| start(format!("send-{n}"), packer::run));
        let senders: Vec<_> = senders.collect();
        // One of each is enough to go on with.
        let workers: Vec<_> = if senders.iter().any(Result::is_ok) {
            let workers = 0..shared.settings.workers.max(1);
            workers
                .map(|n| start(format!("backup-{n}"), worker::run))
                .collect()
        } else {
            Vec::new()
        };
        if !workers.iter().any(Result::is_ok) {
            let failed = senders
                .iter()
                .chain(&workers)
                .find_map(|thread| thread.as_ref().err());
            let why = failed.map_or_else(String::new, |error| format!(": {error}"));
            shared.fail(AgentError::Internal(format!("no thread can be started{why}")));
        }
        // One that panicked has stopped everyone and said so.
        for worker in workers.into_iter().flatten() {
            let _ = worker.join();
        }
        shared.packer.close();
        for sender in senders.into_iter().flatten() {
            let _ = sender.join();
        }
    });
}

/// Ends the others when a thread dies, which would otherwise wait for it for ever.
struct StopOnPanic<'s>(&'s Shared);

impl Drop for StopOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let name = std::thread::current().name().unwrap_or_default().to_owned();
            self.0.fail(AgentError::Internal(format!(
                "thread {name} ended abnormally; see the log"
            )));
        }
    }
}

/// The top's entries, in the order of the roots; roots that could not be read have none.
fn pair_with_paths(selection: &Selection, entries: Finished) -> Vec<RootTree> {
    let paths = selection.roots.iter().map(|root| root.path.clone());
    paths
        .zip(entries)
        .filter_map(|(path, entry)| entry.map(|entry| (path, entry)))
        .map(|(path, entry)| RootTree {
            path,
            entry: Entry {
                name: Vec::new(),
                ..entry
            },
        })
        .collect()
}
