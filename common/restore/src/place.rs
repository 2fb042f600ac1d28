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
mod delete;
mod dir;
mod direct;
mod existing;
mod hard_links;
mod leftovers;
mod parts;
mod planner;
mod rewrite;
mod sparse;
mod target;
mod worker;

use crate::{
    BlobOpener, ChunkReader, Problems, Progress, RestoreError, RestoreReport, Result, Snapshot,
    bounds::CONTENT_IN_FLIGHT,
    path::{PathLink, names},
    pool::{Pool, worker_count},
    verify::CancelOnDrop,
    walk::{self, Visitor},
};
pub use delete::OnRemoval;
use dir::Dir;
use holdfast_core::ChunkId;
use holdfast_repo::{Entry, EntryKind};
use parts::{Part, Place, choose};
use planner::Planner;
use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};
use target::Target;
pub(crate) use target::{Destination, open_below};
use worker::Worker;

/// How places below the target follow from paths in the snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Layout {
    /// `TARGET/` and the absolute path.
    #[default]
    Paths,
    /// The content of the only tree, straight in the target.
    Content,
    /// One tree of several, alone. Who asks for this knows what the trees mean: what the snapshot lacks may be removed
    /// even if the snapshot is partial.
    Tree {
        /// The tree's path.
        path: Vec<u8>,
        /// Names that lead from the target to the directory that takes its content. Without any it is the target
        /// itself, which then gets the tree's attributes too.
        below: Vec<Vec<u8>>,
    },
}

/// What to restore, and how.
#[derive(Debug, Clone, Default)]
pub struct RestoreOptions {
    /// Paths as [`Snapshot::lookup`] reads them; none for everything. Directories on the way to them
    /// come back with their attributes and nothing else in them.
    pub paths: Vec<Vec<u8>>,
    /// Names below each tree that lead to what is left as it is, neither placed nor removed. Only without `paths`.
    pub except: Vec<Vec<Vec<u8>>>,
    /// Where things go.
    pub layout: Layout,
    /// The target may hold something: files, links and devices are replaced one by one, each at once;
    /// directories are merged; what the snapshot does not have stays. Content that is there already is
    /// neither fetched nor written, and files beyond [`crate::bounds::REWRITE_MIN`] are rewritten where they
    /// are: what was interrupted goes on where it was.
    pub in_place: bool,
    /// Before anything is placed, what is in the restored directories and not in the snapshot is removed;
    /// in a dry run only told. Needs `in_place`.
    pub delete: bool,
    /// Is told of each removal.
    pub on_removal: OnRemoval,
    /// Only count: nothing is written, and no content is read.
    pub dry_run: bool,
    /// Threads; three times the number of cores unless set.
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
    let (snapshot, target) = (snapshot.clone(), Destination::path(target));
    let guard = CancelOnDrop(Some(Arc::clone(&options.cancel)));
    let reader = snapshot.reader().clone();
    let outcome = reader
        .blocking(move |opener| run(opener, &snapshot, &target, &options))
        .await;
    guard.disarm();
    outcome
}

/// [`restore`], on a thread that may wait.
pub(crate) fn run(
    opener: &mut BlobOpener,
    snapshot: &Snapshot,
    target: &Destination,
    options: &RestoreOptions,
) -> Result<RestoreReport> {
    let trees = &snapshot.root().sealed.trees;
    let parts = choose(opener, snapshot, options)?;
    // Trees that contain each other meet in the target; the later one replaces the same by the same.
    let overlap = trees.iter().enumerate().any(|(at, tree)| {
        let path = names(&tree.path);
        trees[at + 1..].iter().any(|other| {
            let other = names(&other.path);
            other.starts_with(&path) || path.starts_with(&other)
        })
    });
    if options.delete {
        check_delete(snapshot, options, overlap)?;
    }
    if options.dry_run {
        let counted = count(opener, &parts, &options.cancel)?;
        return match Target::look(target)? {
            Some(handle) if options.delete => delete::preview(opener, &parts, handle, options, counted),
            _ => Ok(counted),
        };
    }
    let target = Target::open(target, options.in_place, overlap, Arc::clone(&options.progress))?;
    if options.delete {
        delete::remove(opener, &parts, &target, options)?;
    }
    let placed = place(opener, snapshot.reader(), &parts, &target, options);
    target.links.finish(&target);
    placed?;
    target.sync()?;
    Ok(target.report())
}

/// Removing needs to be meant, and a snapshot that knows everything.
fn check_delete(snapshot: &Snapshot, options: &RestoreOptions, overlap: bool) -> Result<()> {
    if !options.in_place {
        return Err(RestoreError::Invalid(
            "what the snapshot does not have can only be deleted in a restore in place",
        ));
    }
    if overlap {
        // To each of them, what only the other one has would be too much.
        return Err(RestoreError::Invalid(
            "trees of this snapshot contain each other, so what is in none of them is not known well enough to delete",
        ));
    }
    if snapshot.root().clear.partial && !matches!(options.layout, Layout::Tree { .. }) {
        return Err(RestoreError::Invalid(
            "this snapshot is partial: what could not be read when it was made would be deleted; choose a \
             complete one, or leave --delete out",
        ));
    }
    Ok(())
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
                match place_tree(opener, part, target, &mut planner) {
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
    planner: &mut Planner<'_>,
) -> Result<()> {
    let tree = part.tree;
    let is_target = part.place == Place::Target;
    let mut dir = Dir::of_target(target, is_target.then_some((&tree.path, &tree.entry)))?;
    for name in &part.way {
        dir = dir.passage(name)?;
    }
    let mut entry = tree.entry.clone();
    if let Place::Under(name) = &part.place {
        entry.name.clone_from(name);
    }
    let EntryKind::Dir { node, .. } = entry.kind else {
        return planner.entry(opener, &dir, entry);
    };
    if matches!(part.place, Place::Under(_)) {
        // Its path is known from the tree, whatever lies between the target and it.
        dir = dir.enter(&entry, PathLink::root(&tree.path))?;
    }
    walk::walk(opener, dir, node, part.wanted.clone(), planner)
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
            walk::walk(opener, path, node, part.wanted.clone(), &mut counter)?;
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
