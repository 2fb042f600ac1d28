//! Restoring into a directory.
//!
//! Where things go: a tree that was backed up from `/srv/www` goes to `TARGET/srv/www`, whatever is
//! chosen of it, so that several trees never meet and a path tells where it came from;
//! [`Layout::Content`] puts the content of a single tree into the target itself.
//!
//! Everything is opened relative to handles of directories that this restore made or entered, by single
//! names, and never through a link: neither a link that the snapshot itself made nor one that someone
//! puts in the way meanwhile can lead out of the target. Content gets its final name only whole
//! (`in_place`), or loses it again when it could not be completed.

mod attributes;
mod big_file;
mod dir;
mod hard_links;
mod planner;
mod sparse;
mod target;
mod worker;

use crate::{
    BlobOpener, ChunkReader, Problems, Progress, RestoreError, RestoreReport, Result, Snapshot,
    bounds::CONTENT_IN_FLIGHT,
    path::{PathLink, names},
    pool::{Pool, worker_count},
    tree::Chosen,
    verify::CancelOnDrop,
    walk::{self, Visitor, Wanted},
};
use dir::Dir;
use holdfast_core::ChunkId;
use holdfast_repo::{Entry, EntryKind, RootTree};
use planner::Planner;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};
use target::Target;
use worker::Worker;

/// How places below the target follow from paths in the snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Layout {
    /// `TARGET/` and the absolute path.
    #[default]
    Paths,
    /// The content of the only tree, straight in the target.
    Content,
}

/// What to restore, and how.
#[derive(Debug, Clone, Default)]
pub struct RestoreOptions {
    /// Paths as [`Snapshot::lookup`] reads them; none for everything. Directories on the way to them
    /// come back with their attributes and nothing else in them.
    pub paths: Vec<Vec<u8>>,
    /// Where things go.
    pub layout: Layout,
    /// The target may hold something: files, links and devices are replaced one by one, each at once;
    /// directories are merged; what the snapshot does not have stays.
    pub in_place: bool,
    /// Only count: nothing is written, and no content is read.
    pub dry_run: bool,
    /// Threads; twice the number of cores unless set.
    pub workers: Option<usize>,
    /// Moved while the restore runs.
    pub progress: Arc<Progress>,
    /// Set it to stop; dropping the future sets it too.
    pub cancel: Arc<AtomicBool>,
}

/// Restores a snapshot into the directory `target`, which must be empty or absent unless `in_place`.
/// What was written is on disk when it returns. Content that cannot be had right, and whatever the file
/// system refuses, is a problem in the report, and the rest is restored.
///
/// # Errors
/// `Conflict` for a target that is not empty, `NotFound` for a path that the snapshot does not have,
/// `NoSpace`, `Unavailable`, `Interrupted`, and `Io` where going on makes no sense.
pub async fn restore(snapshot: &Snapshot, target: &Path, options: RestoreOptions) -> Result<RestoreReport> {
    let (snapshot, target) = (snapshot.clone(), target.to_path_buf());
    let guard = CancelOnDrop(Some(Arc::clone(&options.cancel)));
    let reader = snapshot.reader().clone();
    let outcome = reader
        .blocking(move |opener| run(opener, &snapshot, target, &options))
        .await;
    guard.disarm();
    outcome
}

/// What is wanted of one tree.
struct Part<'s> {
    tree: &'s RootTree,
    wanted: Vec<Vec<Vec<u8>>>,
}

fn run(
    opener: &mut BlobOpener,
    snapshot: &Snapshot,
    target: PathBuf,
    options: &RestoreOptions,
) -> Result<RestoreReport> {
    let trees = &snapshot.root().sealed.trees;
    let parts = choose(opener, snapshot, options)?;
    if options.layout == Layout::Content && trees.len() != 1 {
        return Err(RestoreError::Invalid(
            "only a snapshot of one tree can be restored without its path",
        ));
    }
    if options.dry_run {
        return count(opener, &parts, &options.cancel);
    }
    // Trees that contain each other meet in the target; the later one replaces the same by the same.
    let overlap = trees.iter().enumerate().any(|(at, tree)| {
        let path = names(&tree.path);
        trees[at + 1..].iter().any(|other| {
            let other = names(&other.path);
            other.starts_with(&path) || path.starts_with(&other)
        })
    });
    let target = Target::open(&target, options.in_place, overlap, Arc::clone(&options.progress))?;
    let placed = place(opener, snapshot.reader(), &parts, &target, options);
    target.links.finish(&target);
    placed?;
    target.sync()?;
    Ok(target.report())
}

/// Finds everything that is asked for before anything is written, and counts it for the progress.
fn choose<'s>(
    opener: &mut BlobOpener,
    snapshot: &'s Snapshot,
    options: &RestoreOptions,
) -> Result<Vec<Part<'s>>> {
    let trees = &snapshot.root().sealed.trees;
    let mut wanted: BTreeMap<usize, Vec<Chosen>> = BTreeMap::new();
    for path in &options.paths {
        for chosen in snapshot.choose(opener, path)? {
            wanted.entry(chosen.tree).or_default().push(chosen);
        }
    }
    if options.paths.is_empty() {
        for (tree, root) in trees.iter().enumerate() {
            let chosen = Chosen {
                tree,
                below: Vec::new(),
                entry: root.entry.clone(),
            };
            wanted.entry(tree).or_default().push(chosen);
        }
    }
    let mut parts = Vec::new();
    for (tree, mut chosen) in wanted {
        chosen.sort_by(|a, b| a.below.cmp(&b.below));
        // What lies below something chosen comes with it.
        chosen.dedup_by(|next, first| next.below.starts_with(&first.below));
        for one in &chosen {
            match one.entry.kind {
                EntryKind::Dir { files, bytes, .. } => options.progress.add_totals(files, bytes),
                EntryKind::File { size, .. } => options.progress.add_totals(1, size),
                _ => {}
            }
        }
        parts.push(Part {
            tree: &trees[tree],
            wanted: chosen.into_iter().map(|one| one.below).collect(),
        });
    }
    Ok(parts)
}

fn place(
    opener: &mut BlobOpener,
    reader: &ChunkReader,
    parts: &[Part<'_>],
    target: &Arc<Target>,
    options: &RestoreOptions,
) -> Result<()> {
    let threads = options.workers.unwrap_or_else(worker_count).max(1);
    let room = threads * crate::bounds::QUEUED_PER_WORKER;
    let cache = Arc::default();
    Pool::run(
        threads,
        room,
        CONTENT_IN_FLIGHT,
        &options.cancel,
        || Worker::new(reader, &cache),
        |worker, task, pool| worker.work(task, pool),
        |pool| {
            let mut planner = Planner::new(pool, target, threads + room);
            for part in parts {
                let path = &part.tree.path;
                match place_tree(opener, part, target, options.layout, &mut planner) {
                    Err(error) if error.is_local() => target.problems.add(path.clone(), &error),
                    outcome => outcome?,
                }
            }
            planner.finish(opener)
        },
    )
}

fn place_tree(
    opener: &mut BlobOpener,
    part: &Part<'_>,
    target: &Arc<Target>,
    layout: Layout,
    planner: &mut Planner<'_>,
) -> Result<()> {
    let tree = part.tree;
    let mut above = names(&tree.path);
    let last = above.pop();
    let is_dir = matches!(tree.entry.kind, EntryKind::Dir { .. });
    let into_target = is_dir && (layout == Layout::Content || last.is_none());
    if layout == Layout::Content {
        above.clear();
    }
    let mut dir = Dir::of_target(target, into_target.then_some((&tree.path, &tree.entry)))?;
    for name in &above {
        dir = dir.passage(name)?;
    }
    let name = last.unwrap_or_default();
    let entry = Entry {
        name,
        ..tree.entry.clone()
    };
    let EntryKind::Dir { node, .. } = entry.kind else {
        return planner.entry(opener, &dir, entry);
    };
    if !into_target {
        // Its path is known from the tree, whatever lies between the target and it.
        dir = dir.enter(&entry, PathLink::root(&tree.path))?;
    }
    walk::walk(opener, dir, node, Wanted::paths(part.wanted.clone()), planner)
}

/// A dry run.
fn count(opener: &mut BlobOpener, parts: &[Part<'_>], cancel: &AtomicBool) -> Result<RestoreReport> {
    let mut counter = Counter {
        report: RestoreReport::default(),
        problems: Default::default(),
        cancel,
    };
    for part in parts {
        let path = PathLink::root(&part.tree.path);
        if let EntryKind::Dir { node, .. } = part.tree.entry.kind {
            counter.report.dirs += 1;
            walk::walk(
                opener,
                path,
                node,
                Wanted::paths(part.wanted.clone()),
                &mut counter,
            )?;
        } else {
            counter.entry(opener, &path, part.tree.entry.clone())?;
        }
    }
    let problems: Problems = counter.problems.take();
    Ok(RestoreReport {
        problems,
        ..counter.report
    })
}

struct Counter<'c> {
    report: RestoreReport,
    problems: crate::report::ProblemList,
    cancel: &'c AtomicBool,
}

impl Visitor for Counter<'_> {
    type Dir = PathLink;

    fn enter(&mut self, above: &PathLink, entry: &Entry) -> Result<Option<PathLink>> {
        self.report.dirs += 1;
        Ok(Some(above.below(&entry.name)))
    }

    fn entry(&mut self, _opener: &mut BlobOpener, _dir: &PathLink, entry: Entry) -> Result<()> {
        match entry.kind {
            EntryKind::File { size, .. } => {
                self.report.files += 1;
                self.report.bytes += size;
            }
            EntryKind::Symlink { .. } => self.report.symlinks += 1,
            _ => self.report.others += 1,
        }
        Ok(())
    }

    fn damaged(&mut self, dir: &PathLink, _node: ChunkId, error: RestoreError) -> Result<()> {
        self.problems.add(dir.path(), &error);
        Ok(())
    }

    fn check(&self) -> Result<()> {
        if self.cancel.load(Relaxed) {
            Err(RestoreError::Interrupted)
        } else {
            Ok(())
        }
    }
}
