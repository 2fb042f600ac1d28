//! What is wanted of each tree, and where it goes.

use super::{Layout, RestoreOptions};
use crate::{
    BlobOpener, RestoreError, Result, Snapshot,
    path::names,
    pattern,
    wanted::{Wanted, totals},
};
use holdfast_repo::{EntryKind, RootTree};
use std::collections::BTreeMap;

/// What is wanted of one tree.
pub(super) struct Part<'s> {
    pub(super) tree: &'s RootTree,
    pub(super) wanted: Wanted,
    /// Names of directories that only lead to its place.
    pub(super) way: Vec<Vec<u8>>,
    pub(super) place: Place,
}

/// Where a tree goes at the end of its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// It is an entry of that name.
    Under(Vec<u8>),
    /// It is the target itself, with its attributes; its way is empty.
    Target,
    /// Its content goes into what is there, which keeps its attributes.
    Within,
}

impl<'s> Part<'s> {
    fn new(tree: &'s RootTree, wanted: Wanted, layout: &Layout) -> Result<Self> {
        let is_dir = matches!(tree.entry.kind, EntryKind::Dir { .. });
        let mut above = names(&tree.path);
        let last = above.pop();
        let (way, place) = match (layout, last) {
            (Layout::Tree { .. }, _) if !is_dir => {
                return Err(RestoreError::BadTree("a file stands where a tree belongs"));
            }
            (Layout::Tree { below, .. }, _) if !below.is_empty() => (below.clone(), Place::Within),
            (Layout::Paths, Some(last)) => (above, Place::Under(last)),
            (Layout::Content, Some(last)) if !is_dir => (Vec::new(), Place::Under(last)),
            (_, None) if !is_dir => (Vec::new(), Place::Under(Vec::new())),
            _ => (Vec::new(), Place::Target),
        };
        Ok(Self {
            tree,
            wanted,
            way,
            place,
        })
    }
}

/// Finds everything that is asked for before anything is written, and counts it for the progress.
pub(super) fn choose<'s>(
    opener: &mut BlobOpener,
    snapshot: &'s Snapshot,
    options: &RestoreOptions,
) -> Result<Vec<Part<'s>>> {
    let trees = &snapshot.root().sealed.trees;
    if options.layout == Layout::Content && trees.len() != 1 {
        return Err(RestoreError::Invalid(
            "only a snapshot of one tree can be restored without its path",
        ));
    }
    if !options.paths.is_empty() && !options.except.is_empty() {
        return Err(RestoreError::Invalid("exceptions are of whole trees only"));
    }
    let is_meant = |tree: &RootTree| match &options.layout {
        Layout::Tree { path, .. } => tree.path == *path,
        Layout::Paths | Layout::Content => true,
    };
    let mut wanted: BTreeMap<usize, Wanted> = BTreeMap::new();
    let mut add = |tree: usize, below: &[Vec<u8>], (files, bytes): (u64, u64)| {
        wanted.entry(tree).or_insert_with(Wanted::nothing).add(below);
        options.progress.add_totals(files, bytes);
    };
    let mut patterns = Vec::new();
    let mut plain = Vec::new();
    for path in &options.paths {
        match snapshot.choose(opener, path) {
            // A name may hold a star.
            Err(RestoreError::NoSuchPath(_)) if pattern::is_pattern(path) => patterns.push(path),
            outcome => plain.extend(outcome?),
        }
    }
    plain.sort_by(|a, b| (a.tree, &a.below).cmp(&(b.tree, &b.below)));
    // What lies below something chosen comes with it.
    plain.dedup_by(|next, first| next.tree == first.tree && next.below.starts_with(&first.below));
    for chosen in &plain {
        add(chosen.tree, &chosen.below, totals(&chosen.entry));
    }
    if options.paths.is_empty() {
        for (at, tree) in trees.iter().enumerate().filter(|(_, tree)| is_meant(tree)) {
            add(at, &[], totals(&tree.entry));
        }
    }
    for pattern in patterns {
        for (tree, (found, files, bytes)) in snapshot.matches(opener, pattern, &options.cancel)?.trees {
            options.progress.add_totals(files, bytes);
            let wanted = wanted.entry(tree).or_insert_with(Wanted::nothing);
            wanted.merge(found);
        }
    }
    let wanted = wanted.into_iter().map(|(at, wanted)| (&trees[at], wanted));
    let parts: Vec<Part<'_>> = wanted
        .filter(|(tree, _)| is_meant(tree))
        .map(|(tree, wanted)| Part::new(tree, wanted.except(&options.except), &options.layout))
        .collect::<Result<_>>()?;
    if parts.is_empty()
        && let Layout::Tree { path, .. } = &options.layout
    {
        return Err(RestoreError::NoSuchPath(path.clone()));
    }
    Ok(parts)
}
