//! What of a tree is wanted: paths, kept as a tree of names, and what patterns find.

use crate::{
    BlobOpener, RestoreError, Result, Snapshot,
    path::{PathLink, names},
    pattern::{Pattern, Reached},
    walk::{self, Visitor, child_of},
};
use holdfast_core::ChunkId;
use holdfast_repo::{Entry, EntryKind, IndexChild};
use std::{
    collections::BTreeMap,
    rc::Rc,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

/// Most matches of patterns: their paths are held in memory while the restore runs.
const MATCHES_MAX: usize = 250_000;

/// What below a directory is wanted.
#[derive(Debug, Clone)]
pub(crate) enum Wanted {
    /// Everything.
    All,
    /// Only what these names lead to.
    Some(Rc<BTreeMap<Vec<u8>, Wanted>>),
    /// Everything but what these names lead to.
    AllBut(Rc<Exceptions>),
}

/// Names that lead to what is not wanted; where there are no further ones, nothing is.
#[derive(Debug, Clone, Default)]
pub(crate) struct Exceptions(BTreeMap<Vec<u8>, Rc<Exceptions>>);

impl Exceptions {
    fn add(&mut self, path: &[Vec<u8>]) {
        let Some((name, below)) = path.split_first() else {
            self.0.clear();
            return;
        };
        match self.0.get_mut(name) {
            // What lies below an exception is one with it.
            Some(known) if known.0.is_empty() => {}
            Some(known) => Rc::make_mut(known).add(below),
            None => {
                let mut fresh = Self::default();
                if !below.is_empty() {
                    fresh.add(below);
                }
                self.0.insert(name.clone(), Rc::new(fresh));
            }
        }
    }
}

impl Wanted {
    /// Nothing yet.
    pub(crate) fn nothing() -> Self {
        Self::Some(Rc::default())
    }

    /// The same without what those names lead to, if everything is wanted.
    pub(crate) fn except(self, paths: &[Vec<Vec<u8>>]) -> Self {
        let mut paths = paths.iter().filter(|path| !path.is_empty()).peekable();
        match self {
            Self::All if paths.peek().is_some() => {
                let mut exceptions = Exceptions::default();
                paths.for_each(|path| exceptions.add(path));
                Self::AllBut(Rc::new(exceptions))
            }
            other => other,
        }
    }

    /// Whether everything in a directory is wanted, save exceptions.
    pub(crate) fn is_whole(&self) -> bool {
        !matches!(self, Self::Some(_))
    }

    /// Also wants what lies at that path.
    pub(crate) fn add(&mut self, path: &[Vec<u8>]) {
        let mut at = self;
        for name in path {
            match at {
                // What lies below something wanted comes with it.
                Self::All | Self::AllBut(_) => return,
                Self::Some(below) => {
                    at = Rc::make_mut(below)
                        .entry(name.clone())
                        .or_insert_with(Self::nothing);
                }
            }
        }
        *at = Self::All;
    }

    /// Also wants what another one does.
    pub(crate) fn merge(&mut self, other: Self) {
        match (&mut *self, other) {
            (Self::All, _) => {}
            (_, Self::All) => *self = Self::All,
            // Exceptions are made last, when nothing is added any more.
            (Self::AllBut(_), _) => {}
            (_, other @ Self::AllBut(_)) => *self = other,
            (Self::Some(mine), Self::Some(theirs)) => {
                let mine = Rc::make_mut(mine);
                for (name, below) in theirs.iter() {
                    mine.entry(name.clone())
                        .or_insert_with(Self::nothing)
                        .merge(below.clone());
                }
            }
        }
    }

    /// What is wanted below that name; `None` when it is not.
    pub(crate) fn below(&self, name: &[u8]) -> Option<Self> {
        match self {
            Self::All => Some(Self::All),
            Self::Some(below) => below.get(name).cloned(),
            Self::AllBut(exceptions) => match exceptions.0.get(name) {
                None => Some(Self::All),
                Some(below) if below.0.is_empty() => None,
                Some(below) => Some(Self::AllBut(Rc::clone(below))),
            },
        }
    }

    /// Those children of an index node that can hold what is wanted.
    pub(crate) fn children(&self, children: Vec<IndexChild>) -> Vec<ChunkId> {
        match self {
            Self::All | Self::AllBut(_) => children.into_iter().map(|child| child.id).collect(),
            Self::Some(below) => {
                // Names are in order, and so are the children that hold them.
                let mut at: Vec<usize> = below
                    .keys()
                    .filter_map(|name| child_of(&children, name))
                    .collect();
                at.dedup();
                at.into_iter().map(|at| children[at].id).collect()
            }
        }
    }
}

/// What patterns found in the trees of a snapshot.
pub(crate) struct Matches {
    /// By the tree's place in the root: what is wanted, regular files, and their bytes.
    pub(crate) trees: BTreeMap<usize, (Wanted, u64, u64)>,
    count: usize,
}

impl Snapshot {
    /// Everything that a pattern fits, which is read as absolute first and then, if it does not begin with a
    /// slash, as relative to each tree.
    pub(crate) fn matches(
        &self,
        opener: &mut BlobOpener,
        path: &[u8],
        cancel: &AtomicBool,
    ) -> Result<Matches> {
        let pattern = Pattern::new(path);
        let mut found = Matches {
            trees: BTreeMap::new(),
            count: 0,
        };
        for relative in [false, true] {
            if relative && path.starts_with(b"/") {
                break;
            }
            for (at, tree) in self.root().sealed.trees.iter().enumerate() {
                let above = names(&tree.path);
                let mut reached = pattern.start();
                let mut whole = false;
                for name in above.iter().filter(|_| !relative) {
                    reached = pattern.next(&reached, name);
                    whole |= reached.is_match();
                }
                if whole {
                    found.add(at, &[], &tree.entry)?;
                } else if let EntryKind::Dir { node, .. } = tree.entry.kind
                    && reached.is_alive()
                {
                    let mut finder = Finder {
                        found: &mut found,
                        pattern: &pattern,
                        tree: at,
                        above: above.len(),
                        cancel,
                    };
                    let dir = (PathLink::root(&tree.path), Rc::new(reached));
                    walk::walk(opener, dir, node, Wanted::All, &mut finder)?;
                }
            }
            if found.count > 0 {
                return Ok(found);
            }
        }
        Err(RestoreError::NoMatch(path.to_vec()))
    }
}

impl Matches {
    fn add(&mut self, tree: usize, below: &[Vec<u8>], entry: &Entry) -> Result<()> {
        self.count += 1;
        if self.count > MATCHES_MAX {
            return Err(RestoreError::Invalid(
                "a pattern fits more than 250000 things: restore the directories that hold them",
            ));
        }
        let (wanted, files, bytes) = self
            .trees
            .entry(tree)
            .or_insert_with(|| (Wanted::nothing(), 0, 0));
        wanted.add(below);
        let (more_files, more_bytes) = totals(entry);
        *files = files.saturating_add(more_files);
        *bytes = bytes.saturating_add(more_bytes);
        Ok(())
    }
}

/// Regular files at and below an entry, and their bytes.
pub(crate) fn totals(entry: &Entry) -> (u64, u64) {
    match entry.kind {
        EntryKind::Dir { files, bytes, .. } => (files, bytes),
        EntryKind::File { size, .. } => (1, size),
        _ => (0, 0),
    }
}

struct Finder<'f> {
    found: &'f mut Matches,
    pattern: &'f Pattern,
    tree: usize,
    above: usize,
    cancel: &'f AtomicBool,
}

impl Finder<'_> {
    fn add(&mut self, dir: &PathLink, entry: &Entry) -> Result<()> {
        let path = names(&dir.path_of(&entry.name));
        self.found.add(self.tree, &path[self.above..], entry)
    }
}

impl Visitor for Finder<'_> {
    type Dir = (PathLink, Rc<Reached>);

    fn wants(&mut self, (dir, reached): &Self::Dir, entry: &Entry) -> Result<bool> {
        let next = self.pattern.next(reached, &entry.name);
        if next.is_match() {
            self.add(dir, entry)?;
            return Ok(false);
        }
        Ok(next.is_alive())
    }

    fn enter(&mut self, (dir, reached): &Self::Dir, entry: &Entry) -> Result<Option<Self::Dir>> {
        let next = self.pattern.next(reached, &entry.name);
        Ok(Some((dir.below(&entry.name), Rc::new(next))))
    }

    fn entry(&mut self, _opener: &mut BlobOpener, (dir, reached): &Self::Dir, entry: Entry) -> Result<()> {
        if self.pattern.next(reached, &entry.name).is_match() {
            self.add(dir, &entry)?;
        }
        Ok(())
    }

    fn damaged(&mut self, (dir, _): &Self::Dir, _node: ChunkId, error: RestoreError) -> Result<()> {
        // What cannot be read might fit: better nothing than less than was asked for.
        Err(error.at(&dir.path()))
    }

    fn check(&self) -> Result<()> {
        if self.cancel.load(Relaxed) {
            Err(RestoreError::Interrupted)
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(path: &str) -> Vec<Vec<u8>> {
        names(path.as_bytes())
    }

    #[test]
    fn exceptions_end_what_is_wanted() {
        let wanted = Wanted::All.except(&[
            way("pg_wal"),
            way("global/pg_control"),
            way("global/x/y"),
            way("pg_wal/more"),
        ]);
        let below = |path: &str| {
            let path = way(path);
            path.iter()
                .try_fold(wanted.clone(), |wanted, name| wanted.below(name))
        };
        assert!(below("pg_wal").is_none() && below("global/pg_control").is_none());
        assert!(matches!(below("base"), Some(Wanted::All)));
        assert!(matches!(below("global/1262"), Some(Wanted::All)));
        assert!(matches!(below("global"), Some(Wanted::AllBut(_))));
        assert!(below("global/x").is_some() && below("global/x/y").is_none());
        assert!(wanted.is_whole() && !Wanted::nothing().is_whole());
        assert!(matches!(Wanted::All.except(&[]), Wanted::All));
    }
}
