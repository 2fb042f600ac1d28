//! `tablespace_map` with other places: a server that starts from a backup makes its links by this file.

use super::{PostgresError, TablespaceTarget};
use std::os::unix::ffi::OsStrExt as _;

/// The map with the places of tablespaces that were moved; every other line stays byte for byte.
///
/// # Errors
/// `Invalid` when a moved tablespace is not in it: replay would make it at its own place after all.
pub(super) fn moved(
    map: Option<&[u8]>,
    tablespaces: &[TablespaceTarget],
) -> Result<Option<Vec<u8>>, PostgresError> {
    let mut left: Vec<&TablespaceTarget> = tablespaces.iter().filter(|target| target.moved).collect();
    let mut written = Vec::new();
    for line in map.map(lines).unwrap_or_default() {
        let oid = line.split(|byte| *byte == b' ').next().unwrap_or_default();
        let found = left
            .iter()
            .position(|target| target.oid.to_string().as_bytes() == oid);
        match found.map(|at| left.swap_remove(at)) {
            Some(target) => {
                // Nothing in it needs to be escaped: that is seen to where mappings are read.
                written.extend_from_slice(oid);
                written.push(b' ');
                written.extend_from_slice(target.dir.as_os_str().as_bytes());
                written.push(b'\n');
            }
            None => written.extend_from_slice(line),
        }
    }
    match left.first() {
        Some(target) => Err(PostgresError::Mapping(format!(
            "tablespace {} cannot be moved: it was made while the backup ran, so that replaying the WAL makes it at its \
             own place; restore it there, or from a later backup",
            target.name
        ))),
        None => Ok(map.is_some().then_some(written)),
    }
}

/// The lines with their ends. A line break behind a backslash belongs to a path.
fn lines(map: &[u8]) -> Vec<&[u8]> {
    let mut lines = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (at, byte) in map.iter().enumerate() {
        if *byte == b'\n' && !escaped {
            lines.push(&map[start..=at]);
            start = at + 1;
        }
        escaped = *byte == b'\\' && !escaped;
    }
    if start < map.len() {
        lines.push(&map[start..]);
    }
    lines
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
        let map = b"16384 /srv/a\n16385 /srv/b\\\n16386 c\n16386 /srv/d".as_slice();
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
