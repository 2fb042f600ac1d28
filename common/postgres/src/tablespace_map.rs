//! `tablespace_map`: where the links in `pg_tblspc` led when a backup was taken. The server makes them anew from it.
//!
//! A line holds the tablespace's object identifier, a space, and its path, in which a backslash precedes each line
//! break, carriage return and backslash. (PostgreSQL 13 leaves backslashes as they are: paths with one are refused
//! here, or read without it where they look escaped.) Sources: the documentation of `pg_backup_stop`, and maps of
//! real servers.

use crate::{
    error::{PgError, bounded, malformed},
    lsn::decimal_u32,
};
use holdfast_core::limits::PG_TABLESPACE_MAP_MAX;

const WHAT: &str = "a tablespace map";

/// One tablespace and its location.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MappedTablespace {
    /// Its object identifier, which is the name of its link.
    pub oid: u32,
    /// Where the link leads: an absolute path, as bytes.
    pub path: Vec<u8>,
}

/// All tablespaces outside the data directory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TablespaceMap {
    tablespaces: Vec<MappedTablespace>,
}

impl TablespaceMap {
    /// A map of those tablespaces, in that order: what a restore to other locations puts in place of the original.
    ///
    /// # Errors
    /// `Malformed` for an identifier that is zero or stands twice and for a path that is not absolute; `TooLarge`.
    pub fn new(tablespaces: Vec<MappedTablespace>) -> Result<Self, PgError> {
        let map = Self::checked(tablespaces)?;
        bounded(WHAT, map.render().len(), PG_TABLESPACE_MAP_MAX)?;
        Ok(map)
    }

    /// Reads a map as the server gave it. Without tablespaces it is empty.
    ///
    /// # Errors
    /// `TooLarge`, or `Malformed` for what no server writes.
    pub fn parse(bytes: &[u8]) -> Result<Self, PgError> {
        bounded(WHAT, bytes.len(), PG_TABLESPACE_MAP_MAX)?;
        let mut tablespaces = Vec::new();
        let mut line = Vec::new();
        let mut rest = bytes.iter().copied();
        while let Some(byte) = rest.next() {
            match byte {
                b'\\' => match rest.next() {
                    Some(escaped @ (b'\\' | b'\n' | b'\r')) => line.push(escaped),
                    _ => return Err(malformed(WHAT, "it has a backslash before what needs none")),
                },
                b'\n' => tablespaces.push(tablespace(&std::mem::take(&mut line))?),
                b'\r' => return Err(malformed(WHAT, "it has a carriage return without a backslash")),
                byte => line.push(byte),
            }
        }
        if line.is_empty() {
            Self::checked(tablespaces)
        } else {
            Err(malformed(WHAT, "it does not end with a whole line"))
        }
    }

    fn checked(tablespaces: Vec<MappedTablespace>) -> Result<Self, PgError> {
        let is_path = |path: &[u8]| path.starts_with(b"/") && !path.contains(&0);
        if !tablespaces.iter().all(|tablespace| is_path(&tablespace.path)) {
            return Err(malformed(WHAT, "a path in it is not absolute"));
        }
        let mut oids: Vec<u32> = tablespaces.iter().map(|tablespace| tablespace.oid).collect();
        oids.sort_unstable();
        if oids.first() == Some(&0) || oids.windows(2).any(|pair| pair.first() == pair.last()) {
            return Err(malformed(WHAT, "an identifier in it is zero or stands twice"));
        }
        Ok(Self { tablespaces })
    }

    /// The text of the file.
    #[must_use]
    pub fn render(&self) -> Vec<u8> {
        let mut text = Vec::new();
        for MappedTablespace { oid, path } in &self.tablespaces {
            text.extend_from_slice(oid.to_string().as_bytes());
            text.push(b' ');
            for byte in path {
                if matches!(byte, b'\\' | b'\n' | b'\r') {
                    text.push(b'\\');
                }
                text.push(*byte);
            }
            text.push(b'\n');
        }
        text
    }

    /// The tablespaces, in the order of the map.
    #[must_use]
    pub fn tablespaces(&self) -> &[MappedTablespace] {
        &self.tablespaces
    }

    /// The location of a tablespace.
    #[must_use]
    pub fn path(&self, oid: u32) -> Option<&[u8]> {
        self.tablespaces
            .iter()
            .find(|tablespace| tablespace.oid == oid)
            .map(|tablespace| tablespace.path.as_slice())
    }
}

fn tablespace(line: &[u8]) -> Result<MappedTablespace, PgError> {
    let space = line.iter().position(|byte| *byte == b' ');
    space
        .and_then(|at| {
            Some(MappedTablespace {
                oid: decimal_u32(line.get(..at)?)?,
                path: line.get(at + 1..)?.to_vec(),
            })
        })
        .ok_or_else(|| malformed(WHAT, "it has a line that is not an identifier and a path"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn mapped(oid: u32, path: &[u8]) -> MappedTablespace {
        MappedTablespace {
            oid,
            path: path.to_vec(),
        }
    }

    #[test]
    fn maps_say_where_each_tablespace_is() {
        let map = TablespaceMap::parse(b"16390 /srv/fast disk\n16400 /srv/a\\\nb\\\\c\\\r\n").unwrap();
        let expected = [mapped(16390, b"/srv/fast disk"), mapped(16400, b"/srv/a\nb\\c\r")];
        assert_eq!(map.tablespaces(), expected);
        assert_eq!(map.path(16390), Some(&b"/srv/fast disk"[..]));
        assert_eq!(map.path(1), None);
        assert_eq!(TablespaceMap::parse(b"").unwrap(), TablespaceMap::default());
    }

    #[test]
    fn what_no_server_writes_is_refused() {
        for text in [
            &b"\n"[..],
            b"16390 /a",
            b"16390 /a\\",
            b"16390\n",
            b"16390 \n",
            b"16390 a\n",
            b"16390  /a\n",
            b" 16390 /a\n",
            b"0 /a\n",
            b"x /a\n",
            b"4294967296 /a\n",
            b"16390 /a\\b\n",
            b"16390 /a\0b\n",
            b"16390 /a\n16390 /b\n",
            b"16390 /a\n\n",
            b"16390 /a\r\n",
        ] {
            assert!(TablespaceMap::parse(text).is_err(), "{}", text.escape_ascii());
        }
    }

    #[test]
    fn a_map_beyond_its_bound_is_refused() {
        let long = vec![b'/'; PG_TABLESPACE_MAP_MAX];
        let made = TablespaceMap::new(vec![mapped(1, &long)]);
        assert!(matches!(made, Err(PgError::TooLarge { .. })));
        let text = vec![b'\n'; PG_TABLESPACE_MAP_MAX + 1];
        assert!(matches!(
            TablespaceMap::parse(&text),
            Err(PgError::TooLarge { .. })
        ));
    }

    proptest! {
        #[test]
        fn every_map_reads_back(
            paths in proptest::collection::btree_map(1..=u32::MAX, "/[a-b \\\\\n\r/é]{0,8}", 0..4),
        ) {
            let made = paths.iter().map(|(oid, path)| mapped(*oid, path.as_bytes())).collect();
            let map = TablespaceMap::new(made).unwrap();
            prop_assert_eq!(TablespaceMap::parse(&map.render()).unwrap(), map);
        }

        #[test]
        fn what_is_read_is_written_the_same(text in "([1-9] /[ab\\\\\n\r]{0,4}\n){0,3}") {
            if let Ok(map) = TablespaceMap::parse(text.as_bytes()) {
                prop_assert_eq!(map.render(), text.as_bytes());
            }
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>) {
            let _ = TablespaceMap::parse(&bytes);
        }
    }
}
