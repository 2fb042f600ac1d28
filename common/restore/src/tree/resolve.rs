//! From what people write to places in a snapshot's trees.

use super::{Snapshot, TreeEntry, child};
use crate::{
    BlobOpener, RestoreError, Result,
    path::{join_path, names},
};
use holdfast_repo::{Entry, EntryKind};

/// A part of one tree.
#[derive(Debug, Clone)]
pub(crate) struct Chosen {
    /// Which tree, by its place in the root.
    pub(crate) tree: usize,
    /// Names below the tree's own path; none for all of it.
    pub(crate) below: Vec<Vec<u8>>,
    /// What is there.
    pub(crate) entry: Entry,
}

impl Snapshot {
    /// Everything that a path means: one entry, or all trees below it.
    pub(crate) fn choose(&self, opener: &mut BlobOpener, path: &[u8]) -> Result<Vec<Chosen>> {
        match self.find(opener, path) {
            Err(RestoreError::NoSuchPath(_)) => {}
            outcome => return outcome.map(|chosen| vec![chosen]),
        }
        let wanted = names(path);
        let trees = self.root.sealed.trees.iter().enumerate();
        let below: Vec<Chosen> = trees
            .filter(|(_, tree)| names(&tree.path).starts_with(&wanted))
            .map(|(at, tree)| Chosen {
                tree: at,
                below: Vec::new(),
                entry: tree.entry.clone(),
            })
            .collect();
        if below.is_empty() {
            Err(RestoreError::NoSuchPath(path.to_vec()))
        } else {
            Ok(below)
        }
    }

    /// The one entry that a path means. Read as absolute first, whether or not it begins with a slash
    /// (in the innermost tree that holds it); then, without one, as relative to each tree.
    pub(super) fn find(&self, opener: &mut BlobOpener, path: &[u8]) -> Result<Chosen> {
        let wanted = names(path);
        let trees = &self.root.sealed.trees;
        let mut places: Vec<(usize, Vec<Vec<u8>>)> = Vec::new();
        for (at, tree) in trees.iter().enumerate() {
            if let Some(below) = wanted.strip_prefix(&names(&tree.path)[..]) {
                places.push((at, below.to_vec()));
            }
        }
        places.sort_by_key(|(_, below)| below.len());
        if !path.starts_with(b"/") && !wanted.is_empty() {
            places.extend((0..trees.len()).map(|at| (at, wanted.clone())));
        }
        for (tree, below) in places {
            if let Some(entry) =
                descend(opener, trees[tree].entry.clone(), &below).map_err(|error| error.at(path))?
            {
                return Ok(Chosen { tree, below, entry });
            }
        }
        Err(RestoreError::NoSuchPath(path.to_vec()))
    }

    pub(crate) fn lookup_blocking(&self, opener: &mut BlobOpener, path: &[u8]) -> Result<TreeEntry> {
        let found = self.find(opener, path)?;
        let tree = self.root.sealed.trees[found.tree].path.clone();
        let path = found.below.iter().fold(tree, |path, name| join_path(&path, name));
        Ok(TreeEntry {
            path,
            entry: found.entry,
        })
    }

    /// The trees at or below a path.
    pub(super) fn trees_below(&self, path: &[u8]) -> Vec<TreeEntry> {
        let wanted = names(path);
        let trees = self.root.sealed.trees.iter();
        trees
            .filter(|tree| names(&tree.path).starts_with(&wanted))
            .map(|tree| TreeEntry {
                path: tree.path.clone(),
                entry: tree.entry.clone(),
            })
            .collect()
    }
}

fn descend(opener: &mut BlobOpener, start: Entry, below: &[Vec<u8>]) -> Result<Option<Entry>> {
    let mut entry = start;
    for name in below {
        let EntryKind::Dir { node, .. } = entry.kind else {
            return Ok(None);
        };
        match child(opener, node, name)? {
            Some(found) => entry = found,
            None => return Ok(None),
        }
    }
    Ok(Some(entry))
}
