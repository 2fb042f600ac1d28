//! Rules of a root: what of it is read, and how.

use crate::postgres::{ClusterRules, RelationPages};
use ignore::gitignore::Gitignore;
use rustix::fs::FileType;
use std::{collections::BTreeSet, os::fd::OwnedFd, os::unix::ffi::OsStrExt as _, path::Path};

/// What of a root is read.
#[derive(Debug)]
pub enum Rules {
    /// Everything but what these patterns leave out.
    Ignore(Gitignore),
    /// What belongs into a backup of the running PostgreSQL cluster whose directory it is.
    Cluster(ClusterRules),
    /// Regular files of these names in the root itself, nothing else.
    Only(BTreeSet<Vec<u8>>),
}

/// What becomes of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is read.
    Take,
    /// An empty directory stands for it, whatever it is.
    Empty,
    /// As if it were not there.
    Leave,
}

impl Rules {
    /// Whether anything at all can be left out.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Ignore(rules) if rules.is_empty())
    }

    /// What becomes of a path, relative to the root, which names something of that kind in `dir`.
    #[must_use]
    pub fn fate(&self, path: &Path, kind: FileType, dir: &OwnedFd) -> Fate {
        let is_left_out = match self {
            Self::Ignore(rules) => rules.matched(path, kind.is_dir()).is_ignore(),
            Self::Cluster(rules) => return rules.fate(path, kind, dir),
            Self::Only(names) => !kind.is_file() || !names.contains(path.as_os_str().as_bytes()),
        };
        if is_left_out { Fate::Leave } else { Fate::Take }
    }

    /// Whether files change under the reader as a matter of course, and their owner has a log that repairs what was
    /// read of them: they are read once.
    #[must_use]
    pub fn is_live(&self) -> bool {
        matches!(self, Self::Cluster(_))
    }

    /// What is known of a file that a database rewrites page by page.
    #[must_use]
    pub fn relation(&self, path: &Path) -> Option<RelationPages<'_>> {
        match self {
            Self::Cluster(rules) => rules.relation(path),
            Self::Ignore(_) | Self::Only(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn of_named_files_nothing_else_is_taken() {
        let dir = OwnedFd::from(File::open("/").unwrap());
        let rules = Rules::Only([b"a".to_vec(), b"dir".to_vec()].into());
        let fate = |path: &str, kind| rules.fate(Path::new(path), kind, &dir);
        assert_eq!(fate("a", FileType::RegularFile), Fate::Take);
        for (path, kind) in [
            ("b", FileType::RegularFile),
            ("dir", FileType::Directory),
            ("a", FileType::Symlink),
            ("sub/a", FileType::RegularFile),
        ] {
            assert_eq!(fate(path, kind), Fate::Leave, "{path}");
        }
        assert!(!rules.is_live() && rules.relation(Path::new("a")).is_none());
    }
}
