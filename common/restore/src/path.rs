//! Paths of a snapshot: bytes, absolute, `/` between names.

use std::{fmt::Write as _, sync::Arc};

/// A path as text for people: invalid UTF-8 replaced, control characters escaped, so that a hostile
/// name cannot write to the terminal or forge a line of a log.
#[must_use]
pub fn shown(path: &[u8]) -> String {
    let mut text = String::with_capacity(path.len());
    for character in String::from_utf8_lossy(path).chars() {
        if character.is_control() {
            let _ = write!(text, "{}", character.escape_default());
        } else {
            text.push(character);
        }
    }
    text
}

/// A path and a name below it.
#[must_use]
pub fn join_path(path: &[u8], name: &[u8]) -> Vec<u8> {
    let mut joined = Vec::with_capacity(path.len() + 1 + name.len());
    joined.extend_from_slice(path);
    if !joined.ends_with(b"/") {
        joined.push(b'/');
    }
    joined.extend_from_slice(name);
    joined
}

/// The names of a path; empty ones and `.` say nothing and are left out.
#[must_use]
pub fn names(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|byte| *byte == b'/')
        .filter(|name| !name.is_empty() && *name != b".")
        .map(<[u8]>::to_vec)
        .collect()
}

/// A path that shares its beginning with its siblings: a million files do not hold a million copies.
#[derive(Debug, Clone)]
pub(crate) struct PathLink(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    above: Option<PathLink>,
    name: Vec<u8>,
}

impl PathLink {
    /// A beginning: a whole absolute path.
    pub(crate) fn root(path: &[u8]) -> Self {
        Self(Arc::new(Inner {
            above: None,
            name: path.to_vec(),
        }))
    }

    /// A name below this one.
    pub(crate) fn below(&self, name: &[u8]) -> Self {
        Self(Arc::new(Inner {
            above: Some(self.clone()),
            name: name.to_vec(),
        }))
    }

    /// The whole path.
    pub(crate) fn path(&self) -> Vec<u8> {
        let mut parts = vec![&self.0.name];
        let mut link = &self.0;
        while let Some(above) = &link.above {
            parts.push(&above.0.name);
            link = &above.0;
        }
        let mut parts = parts.into_iter().rev();
        let first = parts.next().cloned().unwrap_or_default();
        parts.fold(first, |path, name| join_path(&path, name))
    }

    /// The path of a name below this one.
    pub(crate) fn path_of(&self, name: &[u8]) -> Vec<u8> {
        join_path(&self.path(), name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_make_whole_paths() {
        let root = PathLink::root(b"/srv");
        assert_eq!(root.path(), b"/srv");
        assert_eq!(root.below(b"a").below(b"b").path_of(b"c"), b"/srv/a/b/c");
        assert_eq!(PathLink::root(b"/").below(b"etc").path(), b"/etc");
    }

    #[test]
    fn hostile_names_are_shown_harmless() {
        assert_eq!(shown(b"a\x1b[2J\nb\xff"), "a\\u{1b}[2J\\nb\u{fffd}");
        assert_eq!(names(b"//a/./b/"), [b"a".to_vec(), b"b".to_vec()]);
    }
}
