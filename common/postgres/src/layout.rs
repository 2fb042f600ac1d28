//! What a backup of a running cluster does with each path of its data directory and of its tablespaces.
//!
//! Some of it means nothing to another server (locks, sockets, sessions' temporary files), some would mislead one
//! (labels of another backup, signals of another recovery), and some is rebuilt when a server starts. Sources: the
//! documentation, "Backing Up the Data Directory", and what `pg_basebackup` leaves out (`tests/real_server` compares
//! the two). Labels renamed to `.old` and signal files, which that keeps, are left out here.

use crate::{PgVersion, lsn::decimal_u32, relation_file::RelationFile};

/// Below the data directory: kept, but without what is in them.
const EMPTY_DIRECTORIES: [&[u8]; 8] = [
    b"pg_wal",
    b"pg_replslot",
    b"pg_dynshmem",
    b"pg_notify",
    b"pg_serial",
    b"pg_snapshots",
    b"pg_subtrans",
    b"pg_stat_tmp",
];

/// At the top of the data directory: not kept.
const OMITTED_AT_TOP: [&[u8]; 11] = [
    b"postgresql.auto.conf.tmp",
    b"current_logfiles.tmp",
    b"postmaster.pid",
    b"postmaster.opts",
    b"backup_label",
    b"backup_label.old",
    b"tablespace_map",
    b"tablespace_map.old",
    b"backup_manifest",
    b"recovery.signal",
    b"standby.signal",
];

/// Anywhere: what begins like this is not kept. Sessions' temporary files, and caches that are written again when
/// missing.
const OMITTED_PREFIXES: [&[u8]; 2] = [b"pgsql_tmp", b"pg_internal.init"];

/// Where a path begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Place {
    /// In the data directory.
    DataDirectory,
    /// In the location of a tablespace: where a link in `pg_tblspc` leads to.
    Tablespace,
}

/// What lies at a path, links not followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EntryKind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A symbolic link.
    Link,
    /// A socket, a pipe or a device.
    Special,
}

/// What to do with a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Treatment {
    /// Keep it, as what it is. What is in a directory is asked about on its own.
    Keep,
    /// Keep a directory there, whatever it is now (`pg_wal` is a link on some hosts), with nothing in it.
    KeepEmpty,
    /// Leave it out, and all below it.
    Omit,
    /// `global/pg_control`: keep it, but read it after everything else. On a standby it says how far recovery must
    /// come before the files are consistent, so no page may be read later.
    KeepLast,
    /// The link of a tablespace with that object identifier: keep it as a link, and what its target holds as
    /// [`Place::Tablespace`].
    Tablespace(u32),
}

/// The rules for clusters of one version.
#[derive(Debug, Clone)]
pub struct Layout {
    /// The one directory of a tablespace's location that belongs to this version.
    tablespace_directory: String,
}

impl Layout {
    /// The rules for that version.
    #[must_use]
    pub fn new(version: PgVersion) -> Self {
        Self {
            tablespace_directory: version.tablespace_directory(),
        }
    }

    /// What to do with a path: relative, names joined by `/`, without a slash at either end. The empty path is the
    /// place itself.
    ///
    /// Files of unlogged relations need more than their path: where [`Self::holds_relations`] is true of the
    /// directory, [`crate::UnloggedRelations`] is asked too.
    #[must_use]
    pub fn treatment(&self, place: Place, path: &[u8], kind: EntryKind) -> Treatment {
        let ancestors = path
            .iter()
            .enumerate()
            .filter(|(_, byte)| **byte == b'/')
            .filter_map(|(at, _)| path.get(..at));
        for ancestor in ancestors {
            if self.of_entry(place, ancestor, EntryKind::Directory) != Treatment::Keep {
                return Treatment::Omit;
            }
        }
        self.of_entry(place, path, kind)
    }

    /// The rules for an entry of a directory that is kept.
    fn of_entry(&self, place: Place, path: &[u8], kind: EntryKind) -> Treatment {
        let names: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
        let (directory, name) = match names.split_last() {
            Some((name, directory)) if !path.is_empty() => (directory, *name),
            _ => return Treatment::Keep,
        };
        if OMITTED_PREFIXES.iter().any(|prefix| name.starts_with(prefix)) || kind == EntryKind::Special {
            return Treatment::Omit;
        }
        if self.is_database(place, directory)
            && RelationFile::parse(name).is_some_and(RelationFile::is_temporary)
        {
            return Treatment::Omit;
        }
        match (place, directory) {
            (Place::DataDirectory, []) => at_top(name, kind),
            (Place::DataDirectory, [b"global"]) if name == b"pg_control" => Treatment::KeepLast,
            (Place::DataDirectory, [b"pg_tblspc"]) => match decimal_u32(name) {
                Some(oid) if kind == EntryKind::Link && oid != 0 => Treatment::Tablespace(oid),
                _ => Treatment::Keep,
            },
            // `allow_in_place_tablespaces` makes directories where links would be, and recovery needs it on then.
            (Place::DataDirectory, [b"pg_tblspc", _]) | (Place::Tablespace, []) => {
                if name == self.tablespace_directory.as_bytes() {
                    Treatment::Keep
                } else {
                    Treatment::Omit
                }
            }
            _ => Treatment::Keep,
        }
    }

    /// Whether a directory holds the relations of one database, so that [`crate::UnloggedRelations`] must hear all
    /// its names before anything in it is read.
    #[must_use]
    pub fn holds_relations(&self, place: Place, directory: &[u8]) -> bool {
        let names: Vec<&[u8]> = directory.split(|byte| *byte == b'/').collect();
        self.is_database(place, &names)
    }

    fn is_database(&self, place: Place, directory: &[&[u8]]) -> bool {
        let version_directory = self.tablespace_directory.as_bytes();
        let database = match (place, directory) {
            (Place::DataDirectory, [b"base", database]) => database,
            (Place::DataDirectory, [b"pg_tblspc", _, version, database])
            | (Place::Tablespace, [version, database])
                if *version == version_directory =>
            {
                database
            }
            _ => return false,
        };
        decimal_u32(database).is_some_and(|oid| oid != 0)
    }

    /// The relation whose pages a file holds; none for a file that does not consist of pages. Temporary relations
    /// have pages, but their files are left out.
    #[must_use]
    pub fn relation_file(&self, place: Place, path: &[u8]) -> Option<RelationFile> {
        let names: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
        let (name, directory) = names.split_last()?;
        let is_global = place == Place::DataDirectory && directory == [b"global"];
        if is_global || self.is_database(place, directory) {
            RelationFile::parse(name)
        } else {
            None
        }
    }
}

fn at_top(name: &[u8], kind: EntryKind) -> Treatment {
    let may_be_directory = matches!(kind, EntryKind::Directory | EntryKind::Link);
    if may_be_directory && EMPTY_DIRECTORIES.contains(&name) {
        Treatment::KeepEmpty
    } else if OMITTED_AT_TOP.contains(&name) {
        Treatment::Omit
    } else {
        Treatment::Keep
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relation_file::Fork;
    use EntryKind::{Directory, File, Link, Special};
    use Treatment::{Keep, KeepEmpty, KeepLast, Omit, Tablespace};
    use proptest::prelude::*;

    fn layout() -> Layout {
        Layout::new(PgVersion::V15)
    }

    fn data(path: &str, kind: EntryKind) -> Treatment {
        layout().treatment(Place::DataDirectory, path.as_bytes(), kind)
    }

    fn tablespace(path: &str, kind: EntryKind) -> Treatment {
        layout().treatment(Place::Tablespace, path.as_bytes(), kind)
    }

    #[test]
    fn content_of_the_cluster_is_kept() {
        for directory in [
            "",
            "base",
            "base/5",
            "global",
            "pg_xact",
            "pg_tblspc",
            "log",
            "pg_logical/snapshots",
        ] {
            assert_eq!(data(directory, Directory), Keep, "{directory}");
        }
        for file in [
            "PG_VERSION",
            "postgresql.conf",
            "postgresql.auto.conf",
            "current_logfiles",
            "base/5/PG_VERSION",
            "base/5/pg_filenode.map",
            "base/5/2619",
            "base/5/2619_fsm",
            "base/5/16384.1",
            "base/5/16384_init",
            "global/1262",
            "global/pg_filenode.map",
            "pg_xact/0000",
            "pg_multixact/members/0000",
            "log/postgresql.log",
            // Only where they would be the server's own.
            "log/postmaster.pid",
            "extension/backup_label",
            "extension/pg_notify/file",
            "extension/t3_16384",
            "pg_control",
        ] {
            assert_eq!(data(file, File), Keep, "{file}");
        }
        assert_eq!(data("postgresql.conf", Link), Keep);
    }

    #[test]
    fn directories_of_a_running_server_are_kept_empty() {
        for directory in [
            "pg_wal",
            "pg_replslot",
            "pg_dynshmem",
            "pg_notify",
            "pg_serial",
            "pg_snapshots",
            "pg_subtrans",
            "pg_stat_tmp",
        ] {
            assert_eq!(data(directory, Directory), KeepEmpty);
            assert_eq!(data(directory, Link), KeepEmpty);
            assert_eq!(data(&format!("{directory}/x"), File), Omit);
            assert_eq!(data(&format!("{directory}/x/y"), Directory), Omit);
            assert_eq!(data(&format!("{directory}_archive/x"), File), Keep);
        }
        assert_eq!(data("pg_wal/000000010000000000000001", File), Omit);
        assert_eq!(data("pg_wal/archive_status", Directory), Omit);
    }

    #[test]
    fn what_belongs_to_this_server_alone_is_left_out() {
        for file in [
            "postmaster.pid",
            "postmaster.opts",
            "postgresql.auto.conf.tmp",
            "current_logfiles.tmp",
            "backup_label",
            "backup_label.old",
            "tablespace_map",
            "tablespace_map.old",
            "backup_manifest",
            "recovery.signal",
            "standby.signal",
            "global/pg_internal.init",
            "base/5/pg_internal.init",
            "base/5/pg_internal.init.1234",
            "base/5/t3_16384",
            "base/5/t3_16384_fsm",
            "base/5/t12_16384_vm.1",
            "base/pgsql_tmp/pgsql_tmp1234.0",
            "base/pgsql_tmp1234.0",
        ] {
            assert_eq!(data(file, File), Omit, "{file}");
        }
        assert_eq!(data("base/pgsql_tmp", Directory), Omit);
        assert_eq!(data(".s.PGSQL.5432", Special), Omit);
    }

    #[test]
    fn pg_control_is_taken_last() {
        assert_eq!(data("global/pg_control", File), KeepLast);
        assert_eq!(data("base/5/pg_control", File), Keep);
        assert_eq!(tablespace("global/pg_control", File), Omit);
    }

    #[test]
    fn links_of_tablespaces_are_told_with_their_number() {
        assert_eq!(data("pg_tblspc/16390", Link), Tablespace(16390));
        assert_eq!(data("pg_tblspc/4294967296", Link), Keep);
        assert_eq!(data("pg_tblspc/016390", Link), Keep);
        assert_eq!(data("pg_tblspc/0", Link), Keep);
        assert_eq!(data("pg_tblspc/old", Link), Keep);
        assert_eq!(data("other/16390", Link), Keep);
        // Tablespaces in place are directories.
        assert_eq!(data("pg_tblspc/16390", Directory), Keep);
        assert_eq!(data("pg_tblspc/16390/PG_15_202209061/5/16384", File), Keep);
        assert_eq!(data("pg_tblspc/16390/PG_15_202209061/5/t3_16384", File), Omit);
        assert_eq!(data("pg_tblspc/16390/PG_14_202107181", Directory), Omit);
    }

    #[test]
    fn of_a_tablespace_only_this_versions_directory_is_kept() {
        assert_eq!(tablespace("", Directory), Keep);
        assert_eq!(tablespace("PG_15_202209061", Directory), Keep);
        assert_eq!(tablespace("PG_15_202209061/5/16384", File), Keep);
        assert_eq!(tablespace("PG_15_202209061/5/t3_16384", File), Omit);
        assert_eq!(tablespace("PG_15_202209061/pgsql_tmp", Directory), Omit);
        assert_eq!(tablespace("PG_15_202209061/5/pg_internal.init", File), Omit);
        for path in [
            "PG_14_202107181",
            "PG_15_202209062",
            "PG_15_202209061x",
            "lost+found",
            "base",
        ] {
            assert_eq!(tablespace(path, Directory), Omit, "{path}");
            assert_eq!(tablespace(&format!("{path}/5/16384"), File), Omit, "{path}");
        }
        let newer = Layout::new(PgVersion::V17);
        assert_eq!(
            newer.treatment(Place::Tablespace, b"PG_17_202406281", Directory),
            Keep
        );
    }

    #[test]
    fn directories_of_databases_are_known() {
        let holds = |place, path: &str| layout().holds_relations(place, path.as_bytes());
        assert!(holds(Place::DataDirectory, "base/5"));
        assert!(holds(Place::DataDirectory, "pg_tblspc/16390/PG_15_202209061/5"));
        assert!(holds(Place::Tablespace, "PG_15_202209061/5"));
        for path in [
            "",
            "base",
            "base/pgsql_tmp",
            "base/5/5",
            "global",
            "pg_tblspc/16390/PG_14_202107181/5",
            "base/0",
        ] {
            assert!(!holds(Place::DataDirectory, path), "{path}");
        }
        assert!(!holds(Place::Tablespace, "base/5"));
        assert!(!holds(Place::Tablespace, "PG_14_202107181/5"));
    }

    #[test]
    fn files_with_pages_are_known_by_their_place() {
        let file = |place, path: &str| layout().relation_file(place, path.as_bytes());
        let found = file(Place::DataDirectory, "base/5/16384_vm.3").unwrap();
        assert_eq!(
            (found.relation, found.fork, found.segment),
            (16384, Fork::Visibility, 3)
        );
        assert!(file(Place::DataDirectory, "global/1262").is_some());
        assert!(file(Place::Tablespace, "PG_15_202209061/5/16384").is_some());
        for path in [
            "1262",
            "global/pg_control",
            "pg_xact/0000",
            "pg_xact/1234",
            "base/5/PG_VERSION",
            "base/5/x/1262",
        ] {
            assert_eq!(file(Place::DataDirectory, path), None, "{path}");
        }
        assert_eq!(file(Place::Tablespace, "global/1262"), None);
    }

    fn any_path() -> impl Strategy<Value = String> {
        let name = prop_oneof![
            proptest::sample::select(vec![
                "base",
                "global",
                "5",
                "16384",
                "16384_init",
                "t3_16384",
                "pg_wal",
                "pg_tblspc",
                "pgsql_tmp",
                "pg_control",
                "PG_15_202209061",
                "postmaster.pid",
                "pg_notify",
                "log",
            ])
            .prop_map(str::to_owned),
            "[a-z0-9_.]{0,5}",
        ];
        proptest::collection::vec(name, 0..6).prop_map(|names| names.join("/"))
    }

    proptest! {
        /// Whether a walker descends into what is left out or not, the outcome is the same.
        #[test]
        fn below_what_is_left_out_all_is(path in any_path(), below in any_path(), in_tablespace: bool) {
            let place = if in_tablespace { Place::Tablespace } else { Place::DataDirectory };
            let above = layout().treatment(place, path.as_bytes(), Directory);
            if above != Keep {
                let all = format!("{path}/{below}");
                for kind in [Directory, File, Link, Special] {
                    prop_assert_eq!(layout().treatment(place, all.as_bytes(), kind), Omit);
                }
            }
        }

        #[test]
        fn any_path_is_treated_without_panic(path: Vec<u8>) {
            for place in [Place::DataDirectory, Place::Tablespace] {
                for kind in [Directory, File, Link, Special] {
                    let _ = layout().treatment(place, &path, kind);
                }
                let _ = layout().holds_relations(place, &path);
                let _ = layout().relation_file(place, &path);
            }
        }
    }
}
