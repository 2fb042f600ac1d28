//! What of a cluster's directories goes into a backup, and which of their files consist of pages.

use crate::{files::Fate, postgres::pages::PageWatch};
use holdfast_postgres::{EntryKind, Fork, Layout, PgVersion, Place, RelationFile, Treatment};
use rustix::fs::{Access, AtFlags, FileType};
use std::{
    os::{fd::OwnedFd, unix::ffi::OsStrExt as _},
    path::Path,
    sync::Arc,
};

/// Rules of one directory of a running cluster.
#[derive(Debug)]
pub struct ClusterRules {
    layout: Layout,
    place: Place,
    /// What its files are called in the list of damaged pages, before their path.
    name: String,
    blocks_per_file: u32,
    /// None where pages carry no checksums.
    watch: Option<Arc<PageWatch>>,
}

/// A file of pages.
#[derive(Debug)]
pub struct RelationPages<'r> {
    pub(super) watch: Option<&'r PageWatch>,
    /// As it is called in the list of damaged pages.
    pub(super) name: String,
    /// Of its first page, within its fork.
    pub(super) first_block: u32,
}

impl ClusterRules {
    /// Of a directory that is called `name` in the list of damaged pages.
    #[must_use]
    pub fn new(
        version: PgVersion,
        place: Place,
        name: String,
        blocks_per_file: u32,
        watch: Option<Arc<PageWatch>>,
    ) -> Self {
        Self {
            layout: Layout::new(version),
            place,
            name,
            blocks_per_file,
            watch,
        }
    }

    /// What becomes of a path that names something of that kind in `dir`.
    pub(crate) fn fate(&self, path: &Path, kind: FileType, dir: &OwnedFd) -> Fate {
        let path = path.as_os_str().as_bytes();
        let kind = match kind {
            FileType::Directory => EntryKind::Directory,
            FileType::RegularFile => EntryKind::File,
            FileType::Symlink => EntryKind::Link,
            _ => EntryKind::Special,
        };
        match self.layout.treatment(self.place, path, kind) {
            Treatment::Keep if kind == EntryKind::File && self.is_reset(path, dir) => Fate::Leave,
            Treatment::Keep | Treatment::Tablespace(_) => Fate::Take,
            Treatment::KeepEmpty => Fate::Empty,
            // pg_control is read by itself, once all else was.
            Treatment::Omit | Treatment::KeepLast => Fate::Leave,
        }
    }

    /// Whether it is part of an unlogged relation, which recovery makes anew from its `_init` fork. Asked of the directory
    /// name by name: that holds no list, however many relations there are.
    fn is_reset(&self, path: &[u8], dir: &OwnedFd) -> bool {
        let Some(slash) = path.iter().rposition(|byte| *byte == b'/') else {
            return false;
        };
        let (directory, name) = (&path[..slash], &path[slash + 1..]);
        let Some(file) = RelationFile::parse(name).filter(|file| file.fork != Fork::Init) else {
            return false;
        };
        let init = format!("{}_init", file.relation);
        self.layout.holds_relations(self.place, directory)
            && rustix::fs::accessat(dir, init, Access::EXISTS, AtFlags::empty()).is_ok()
    }

    /// The file of pages at that path, if it is one.
    pub(crate) fn relation(&self, path: &Path) -> Option<RelationPages<'_>> {
        let file = self
            .layout
            .relation_file(self.place, path.as_os_str().as_bytes())?;
        Some(RelationPages {
            watch: self.watch.as_deref(),
            name: format!("{}/{}", self.name, path.display()),
            first_block: file.first_block(self.blocks_per_file)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, fs::File};

    fn rules(place: Place) -> ClusterRules {
        ClusterRules::new(PgVersion::V15, place, "data".into(), 131_072, None)
    }

    #[test]
    fn relations_with_an_init_fork_are_left_out_but_for_that() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["16384", "16384_fsm", "16384.1", "16384_init", "16385"] {
            fs::write(dir.path().join(name), b"").unwrap();
        }
        let open = OwnedFd::from(File::open(dir.path()).unwrap());
        let rules = rules(Place::DataDirectory);
        let fate = |path: &str| rules.fate(Path::new(path), FileType::RegularFile, &open);
        for name in ["16384", "16384_fsm", "16384.1"] {
            assert_eq!(fate(&format!("base/5/{name}")), Fate::Leave, "{name}");
        }
        for path in ["base/5/16384_init", "base/5/16385", "other/16384", "16384"] {
            assert_eq!(fate(path), Fate::Take, "{path}");
        }
    }

    #[test]
    fn pages_are_numbered_within_their_fork() {
        let rules = rules(Place::DataDirectory);
        let file = rules.relation(Path::new("base/5/16384_vm.2")).unwrap();
        assert_eq!(
            (file.first_block, file.name.as_str()),
            (262_144, "data/base/5/16384_vm.2")
        );
        assert!(rules.relation(Path::new("base/5/PG_VERSION")).is_none());
        assert!(rules.relation(Path::new("pg_xact/0000")).is_none());
    }
}
