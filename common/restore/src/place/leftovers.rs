//! Temporary files of restores that were killed: the next restore in place removes those that it meets.

use super::dir::Dir;
use rustix::fs::{self, AtFlags};
use std::os::fd::BorrowedFd;

/// Beginning of every temporary name.
pub(super) const PREFIX: &str = ".holdfast-";
/// Length of a ULID as text.
const ULID_LEN: usize = 26;

/// Removes what earlier restores left in a directory. The target is locked, so none of them is running.
pub(super) fn remove(dir: &Dir) {
    for name in left_in(dir.fd(), &dir.target.temporary_prefix()) {
        tracing::info!(name = %crate::shown(&name), "a temporary file of an earlier restore is removed");
        // One that cannot be removed is only untidy.
        let _ = fs::unlinkat(dir.fd(), &name[..], AtFlags::empty());
    }
}

fn left_in(dir: BorrowedFd<'_>, own: &str) -> Vec<Vec<u8>> {
    let Ok(entries) = fs::Dir::read_from(dir) else {
        return Vec::new();
    };
    let names = entries
        .map_while(Result::ok)
        .map(|entry| entry.file_name().to_bytes().to_vec());
    names
        .filter(|name| is_temporary(name) && !name.starts_with(own.as_bytes()))
        .collect()
}

/// Whether a name has the form `.holdfast-ULID-NUMBER`.
fn is_temporary(name: &[u8]) -> bool {
    let Some(rest) = name.strip_prefix(PREFIX.as_bytes()) else {
        return false;
    };
    let Some((ulid, rest)) = rest.split_at_checked(ULID_LEN) else {
        return false;
    };
    let number = rest.strip_prefix(b"-").unwrap_or_default();
    ulid.iter()
        .all(|byte| byte.is_ascii_digit() || byte.is_ascii_uppercase())
        && !number.is_empty()
        && number.iter().all(u8::is_ascii_digit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_temporary_names_are_meant() {
        assert!(is_temporary(b".holdfast-01ARZ3NDEKTSV4RRFFQ69G5FAV-0"));
        for other in [
            &b".holdfast-01ARZ3NDEKTSV4RRFFQ69G5FAV"[..],
            b".holdfast-01ARZ3NDEKTSV4RRFFQ69G5FAV-",
            b".holdfast-01ARZ3NDEKTSV4RRFFQ69G5FAV-x",
            b".holdfast-short-0",
            b".holdfast-config",
            b"holdfast-01ARZ3NDEKTSV4RRFFQ69G5FAV-0",
        ] {
            assert!(!is_temporary(other), "{}", crate::shown(other));
        }
    }
}
