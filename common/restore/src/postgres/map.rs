//! `tablespace_map` with other places: a server that starts from a backup makes its links by this file.

use super::{PostgresError, TablespaceTarget};
use holdfast_postgres::{MappedTablespace, TablespaceMap};
use std::os::unix::ffi::OsStrExt as _;

/// The map with the places of tablespaces that were moved. Without any it stays byte for byte.
///
/// # Errors
/// `Invalid` when a moved tablespace is not in it: replay would make it at its own place after all. `Corrupt` for what
/// no server writes.
pub(super) fn moved(
    map: Option<&[u8]>,
    tablespaces: &[TablespaceTarget],
) -> Result<Option<Vec<u8>>, PostgresError> {
    let bad = |source| PostgresError::File {
        what: "the backup's tablespace_map".into(),
        source,
    };
    let moved: Vec<&TablespaceTarget> = tablespaces.iter().filter(|target| target.moved).collect();
    if moved.is_empty() {
        return Ok(map.map(<[u8]>::to_vec));
    }
    let known = TablespaceMap::parse(map.unwrap_or_default()).map_err(bad)?;
    if let Some(target) = moved.iter().find(|target| known.path(target.oid).is_none()) {
        return Err(PostgresError::Mapping(format!(
            "tablespace {} cannot be moved: it was made while the backup ran, so that replaying the WAL makes it at its \
             own place; restore it there, or from a later backup",
            target.name
        )));
    }
    let place = |known: &MappedTablespace| {
        let target = moved.iter().find(|target| target.oid == known.oid);
        target.map_or_else(
            || known.clone(),
            |target| MappedTablespace {
                oid: known.oid,
                path: target.dir.as_os_str().as_bytes().to_vec(),
            },
        )
    };
    let map = TablespaceMap::new(known.tablespaces().iter().map(place).collect()).map_err(bad)?;
    Ok(Some(map.render()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(oid: u32, dir: &str, moved: bool) -> TablespaceTarget {
        TablespaceTarget {
            oid,
            name: format!("t{oid}"),
            dir: dir.into(),
            moved,
            in_use: false,
        }
    }

    #[test]
    fn only_moved_tablespaces_change_their_line() {
        let map = b"16384 /srv/a\n16385 /srv/b\\\n16386 c\n16386 /srv/d\n".as_slice();
        let all = [
            target(16384, "/new/a", true),
            target(16385, "/srv/b\n16386 c", false),
            target(16386, "/new d", true),
        ];
        let moved_map = moved(Some(map), &all).unwrap().unwrap();
        assert_eq!(
            moved_map.escape_ascii().to_string(),
            "16384 /new/a\\n16385 /srv/b\\\\\\n16386 c\\n16386 /new d\\n"
        );
        let none = all.map(|target| TablespaceTarget {
            moved: false,
            ..target
        });
        assert_eq!(moved(Some(map), &none).unwrap().unwrap(), map);
        assert_eq!(moved(None, &none).unwrap(), None);
        let unknown = [target(16387, "/new", true)];
        assert!(moved(Some(map), &unknown).is_err() && moved(None, &unknown).is_err());
    }
}
