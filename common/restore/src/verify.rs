//! Reading everything that snapshots reach, without writing anything.

use crate::{
    BlobOpener, ChunkReader, Progress, RestoreError, Result, Snapshot,
    bounds::{CONTENT_IN_FLIGHT, REGION_BYTES},
    content::{PartsCache, SegmentReader},
    file_segments::{self, SegmentVisitor},
    path::PathLink,
    pool::{Pool, worker_count},
    report::{ProblemList, Problems},
    walk::{self, Visitor},
    wanted::Wanted,
};
use holdfast_core::{ChunkId, limits::IDS_PER_QUERY};
use holdfast_repo::{Entry, EntryKind, RootTree, Segment};
use parking_lot::Mutex;
use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

/// What a verification saw.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Nodes that were opened and checked.
    pub nodes: u64,
    /// Data chunks likewise.
    pub chunks: u64,
    /// Their raw bytes.
    pub bytes: u64,
    /// What is damaged or missing, each with the first path that needs it.
    pub findings: Problems,
}

/// Verifies snapshots of one vault; what several of them share is read once.
pub struct Verifier {
    read_data: bool,
    progress: Arc<Progress>,
    cancel: Arc<AtomicBool>,
    /// First halves of the ids seen: enough to tell honest ids apart, and half of the memory.
    seen: Arc<Mutex<HashSet<[u8; 16]>>>,
}

impl Verifier {
    /// Reads nodes, and data only if asked. Set `cancel` to stop.
    #[must_use]
    pub fn new(read_data: bool, progress: Arc<Progress>, cancel: Arc<AtomicBool>) -> Self {
        Self {
            read_data,
            progress,
            cancel,
            seen: Arc::default(),
        }
    }

    /// Verifies one snapshot, but for what an earlier one of the same vault shared with it.
    ///
    /// # Errors
    /// `Interrupted`; those of a source that is away. Damage is a finding, no error.
    pub async fn verify(&self, snapshot: &Snapshot) -> Result<VerifyReport> {
        let trees = snapshot.root().sealed.trees.clone();
        let (read_data, progress) = (self.read_data, Arc::clone(&self.progress));
        let (cancel, seen) = (Arc::clone(&self.cancel), Arc::clone(&self.seen));
        let reader = snapshot.reader().clone();
        let guard = CancelOnDrop(Some(Arc::clone(&self.cancel)));
        let report = snapshot
            .reader()
            .blocking(move |opener| verify(opener, &reader, &trees, read_data, &progress, &cancel, &seen))
            .await;
        guard.disarm();
        report
    }
}

/// Stops blocking work when the future that waits for it is dropped.
pub(crate) struct CancelOnDrop(pub(crate) Option<Arc<AtomicBool>>);

impl CancelOnDrop {
    pub(crate) fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        if let Some(cancel) = &self.0 {
            cancel.store(true, Relaxed);
        }
    }
}

/// Segments to read, each with the file that needs it.
type Batch = Vec<(Segment, PathLink)>;

#[derive(Default)]
struct Tally {
    nodes: AtomicU64,
    chunks: AtomicU64,
    bytes: AtomicU64,
    findings: ProblemList,
}

fn verify(
    opener: &mut BlobOpener,
    reader: &ChunkReader,
    trees: &[RootTree],
    read_data: bool,
    progress: &Progress,
    cancel: &AtomicBool,
    seen: &Mutex<HashSet<[u8; 16]>>,
) -> Result<VerifyReport> {
    let tally = Tally::default();
    for tree in trees {
        match tree.entry.kind {
            EntryKind::Dir { files, bytes, .. } => progress.add_totals(files, bytes),
            _ => progress.add_totals(1, tree.entry.size()),
        }
    }
    let threads = worker_count();
    let cache = Arc::new(PartsCache::default());
    let work = |state: &mut (SegmentReader, Vec<u8>), batch: Batch, pool: &Pool<'_, Batch>| {
        let _held = pool.hold(
            batch.iter().map(|(segment, _)| segment.len() as usize).sum(),
            CONTENT_IN_FLIGHT,
        );
        check(state, batch, &tally, progress)
    };
    Pool::run(
        threads,
        threads,
        CONTENT_IN_FLIGHT,
        cancel,
        || Ok((SegmentReader::new(reader, Arc::clone(&cache))?, Vec::new())),
        work,
        |pool| {
            let mut scan = Scan {
                pool,
                tally: &tally,
                seen,
                read_data,
                batch: Vec::new(),
                bytes: 0,
                progress,
            };
            for tree in trees {
                let path = PathLink::root(&tree.path);
                if let EntryKind::Dir { node, .. } = tree.entry.kind {
                    walk::walk(opener, path, node, Wanted::All, &mut scan)?;
                } else {
                    scan.file(opener, &tree.entry, &path)?;
                }
            }
            scan.flush()
        },
    )?;
    Ok(VerifyReport {
        nodes: tally.nodes.load(Relaxed),
        chunks: tally.chunks.load(Relaxed),
        bytes: tally.bytes.load(Relaxed),
        findings: tally.findings.take(),
    })
}

fn check(
    (reader, raw): &mut (SegmentReader, Vec<u8>),
    batch: Batch,
    tally: &Tally,
    progress: &Progress,
) -> Result<()> {
    let fetched = reader.fetch(batch.iter().map(|(segment, _)| segment))?;
    for (segment, path) in batch {
        match reader.read(&segment, &fetched, raw) {
            Ok(()) => {
                tally.chunks.fetch_add(1, Relaxed);
                tally.bytes.fetch_add(segment.len(), Relaxed);
            }
            Err(error) if error.is_local() => tally.findings.add(path.path(), &error),
            Err(error) => return Err(error),
        }
        progress.add_bytes(segment.len());
    }
    Ok(())
}

/// Walks nodes and hands out their chunks.
struct Scan<'s> {
    pool: &'s Pool<'s, Batch>,
    tally: &'s Tally,
    seen: &'s Mutex<HashSet<[u8; 16]>>,
    read_data: bool,
    batch: Batch,
    bytes: usize,
    progress: &'s Progress,
}

impl Scan<'_> {
    fn is_new(&self, id: &ChunkId) -> bool {
        let mut half = [0; 16];
        half.copy_from_slice(&id.as_bytes()[..16]);
        self.seen.lock().insert(half)
    }

    fn file(&mut self, opener: &mut BlobOpener, entry: &Entry, path: &PathLink) -> Result<()> {
        if let EntryKind::File { size, content, .. } = &entry.kind {
            let mut chunks = FileScan { scan: self, path };
            match file_segments::visit(opener, content, *size, &mut chunks) {
                Err(error) if error.is_local() => self.tally.findings.add(path.path(), &error),
                outcome => outcome?,
            }
            self.progress.add_files(1);
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        self.bytes = 0;
        let batch = std::mem::take(&mut self.batch);
        if batch.is_empty() {
            Ok(())
        } else {
            self.pool.push(batch)
        }
    }
}

struct FileScan<'f, 's> {
    scan: &'f mut Scan<'s>,
    path: &'f PathLink,
}

impl SegmentVisitor for FileScan<'_, '_> {
    fn segment(&mut self, _offset: u64, segment: Segment) -> Result<()> {
        let scan = &mut *self.scan;
        let is_new = match &segment {
            Segment::Whole(chunk) => scan.is_new(&chunk.id),
            // What it is put together from vouches for nothing by itself, nor does an equal whole chunk.
            Segment::Parts(parts) => scan.is_new(&ChunkId(parts.hash.0.map(|byte| !byte))),
            Segment::Hole(_) => false,
        };
        if !scan.read_data || !is_new {
            return Ok(());
        }
        scan.bytes += segment.len() as usize;
        scan.batch.push((segment, self.path.clone()));
        if scan.bytes >= REGION_BYTES || scan.batch.len() >= IDS_PER_QUERY {
            scan.flush()
        } else {
            Ok(())
        }
    }

    fn descend(&mut self, node: &ChunkId) -> bool {
        let new = self.scan.is_new(node);
        self.scan.tally.nodes.fetch_add(new.into(), Relaxed);
        new
    }

    fn damaged(&mut self, _node: ChunkId, error: RestoreError) -> Result<()> {
        self.scan.tally.nodes.fetch_sub(1, Relaxed);
        self.scan.tally.findings.add(self.path.path(), &error);
        Ok(())
    }
}

impl Visitor for Scan<'_> {
    type Dir = PathLink;

    fn enter(&mut self, above: &PathLink, entry: &Entry) -> Result<Option<PathLink>> {
        Ok(Some(above.below(&entry.name)))
    }

    fn entry(&mut self, opener: &mut BlobOpener, dir: &PathLink, entry: Entry) -> Result<()> {
        if matches!(entry.kind, EntryKind::File { .. }) {
            let path = dir.below(&entry.name);
            self.file(opener, &entry, &path)?;
        }
        Ok(())
    }

    fn damaged(&mut self, dir: &PathLink, _node: ChunkId, error: RestoreError) -> Result<()> {
        self.tally.nodes.fetch_sub(1, Relaxed);
        self.tally.findings.add(dir.path(), &error);
        Ok(())
    }

    fn descend(&mut self, node: &ChunkId) -> bool {
        let new = self.is_new(node);
        self.tally.nodes.fetch_add(new.into(), Relaxed);
        new
    }

    fn check(&self) -> Result<()> {
        self.pool.check()
    }
}
