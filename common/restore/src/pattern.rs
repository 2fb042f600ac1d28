//! Patterns of paths: `*` and `?` within a name, `**` for any number of directories, `\` before a
//! character that is meant as it is. What is no UTF-8 counts byte by byte.

/// One step of a pattern, from a directory to what is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    /// A name that fits.
    Name(Vec<u8>),
    /// Any number of directories, also none.
    AnyDepth,
}

/// A pattern over the names of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(Vec<Step>);

/// How far along a pattern a path may have come: several places at once because of `**`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reached {
    at: Vec<usize>,
    end: bool,
}

impl Reached {
    /// The path fits as a whole.
    #[must_use]
    pub fn is_match(&self) -> bool {
        self.end
    }

    /// Something below the path may fit.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        !self.at.is_empty()
    }
}

/// Whether a path has something in it that only patterns have.
#[must_use]
pub fn is_pattern(path: &[u8]) -> bool {
    path.iter().any(|byte| matches!(byte, b'*' | b'?' | b'\\'))
}

impl Pattern {
    /// The pattern of a path that holds wildcards or not.
    #[must_use]
    pub fn new(path: &[u8]) -> Self {
        let mut steps: Vec<Step> = Vec::new();
        for name in crate::path::names(path) {
            if name != b"**" {
                steps.push(Step::Name(name));
            } else if steps.last() != Some(&Step::AnyDepth) {
                steps.push(Step::AnyDepth);
            }
        }
        // Everything below a directory, but not the directory.
        if steps.last() == Some(&Step::AnyDepth) {
            steps.push(Step::Name(b"*".to_vec()));
        }
        Self(steps)
    }

    /// Where every path begins.
    #[must_use]
    pub fn start(&self) -> Reached {
        self.reached([0])
    }

    /// Where a path gets to with one more name.
    #[must_use]
    pub fn next(&self, from: &Reached, name: &[u8]) -> Reached {
        let places = from.at.iter().filter_map(|at| match self.0.get(*at)? {
            Step::AnyDepth => Some(*at),
            Step::Name(pattern) => fits(pattern, name).then_some(at + 1),
        });
        self.reached(places)
    }

    fn reached(&self, places: impl IntoIterator<Item = usize>) -> Reached {
        let mut at = Vec::new();
        for place in places {
            at.push(place);
            if self.0.get(place) == Some(&Step::AnyDepth) {
                at.push(place + 1);
            }
        }
        at.sort_unstable();
        at.dedup();
        let end = at.last() == Some(&self.0.len());
        if end {
            at.pop();
        }
        Reached { at, end }
    }
}

/// Whether a name fits: the usual walk that goes back to the last star only. It goes by whole characters of the
/// name: from the middle of one, each of its bytes would pass for a character.
fn fits(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    loop {
        let matched = match pattern.get(p) {
            Some(b'*') => {
                star = Some((p + 1, n));
                p += 1;
                continue;
            }
            None => n == name.len(),
            Some(_) if n == name.len() => false,
            Some(b'?') => {
                n += first_char(&name[n..]).len();
                p += 1;
                continue;
            }
            Some(byte) => {
                // At the very end there is nothing that a backslash could stand before.
                let at = p + usize::from(*byte == b'\\' && p + 1 < pattern.len());
                let literal = first_char(&pattern[at..]);
                if literal == first_char(&name[n..]) {
                    n += literal.len();
                    p = at + literal.len();
                    continue;
                }
                false
            }
        };
        if matched {
            return true;
        }
        match &mut star {
            Some((after, from)) if *from < name.len() => {
                *from += first_char(&name[*from..]).len();
                (p, n) = (*after, *from);
            }
            _ => return false,
        }
    }
}

/// The first character; what is no UTF-8 counts byte by byte.
fn first_char(text: &[u8]) -> &[u8] {
    let len = match text.first() {
        Some(0xc0..=0xdf) => 2,
        Some(0xe0..=0xef) => 3,
        Some(0xf0..=0xf7) => 4,
        _ => 1,
    };
    match text.get(..len) {
        Some(char) if std::str::from_utf8(char).is_ok() => char,
        _ => text.get(..1).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, path: &str) -> bool {
        let pattern = Pattern::new(pattern.as_bytes());
        let names = crate::path::names(path.as_bytes());
        let end = names
            .iter()
            .fold(pattern.start(), |at, name| pattern.next(&at, name));
        end.is_match()
    }

    #[test]
    fn names_fit_or_not() {
        for (pattern, name, expected) in [
            ("*", "anything", true),
            ("*.log", "a.log", true),
            ("*.log", ".log", true),
            ("*.log", "a.log.1", false),
            ("a*b*c", "a__b__b_c", true),
            ("a*b*c", "a__c__b", false),
            ("?", "x", true),
            ("?", "", false),
            ("?", "xy", false),
            ("?", "\u{fc}", true),
            ("a?c", "a\u{1f30a}c", true),
            ("*??", "\u{1f30a}", false),
            ("*??", "a\u{1f30a}", true),
            ("\\\u{fc}", "\u{fc}", true),
            ("\\*", "*", true),
            ("\\*", "x", false),
            ("\\?", "?", true),
            ("plain", "plain", true),
            ("plain", "plain2", false),
            ("**a", "ba", true),
            ("*a*a*a*a*b", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", false),
        ] {
            assert_eq!(
                fits(pattern.as_bytes(), name.as_bytes()),
                expected,
                "{pattern} {name}"
            );
        }
    }

    #[test]
    fn paths_match_or_not() {
        for (pattern, path, expected) in [
            ("/srv/*/log", "/srv/www/log", true),
            ("/srv/*/log", "/srv/www/x/log", false),
            ("/srv/**/log", "/srv/log", true),
            ("/srv/**/log", "/srv/a/b/log", true),
            ("**/*.log", "/x.log", true),
            ("**/*.log", "/a/b/c.log", true),
            ("/srv/**", "/srv", false),
            ("/srv/**", "/srv/a", true),
            ("/srv/**", "/srv/a/b", true),
            ("/a/**/b/**/c", "/a/b/c", true),
            ("/a/**/b/**/c", "/a/x/b/y/z/c", true),
            ("/a/**/b/**/c", "/a/c/b", false),
            ("*", "/a/b", false),
        ] {
            assert_eq!(matches(pattern, path), expected, "{pattern} {path}");
        }
    }

    #[test]
    fn branches_that_cannot_match_are_known() {
        let pattern = Pattern::new(b"/srv/*/log");
        let start = pattern.start();
        assert!(!pattern.next(&start, b"etc").is_alive());
        let srv = pattern.next(&start, b"srv");
        assert!(srv.is_alive() && !srv.is_match());
        let log = pattern.next(&pattern.next(&srv, b"www"), b"log");
        assert!(log.is_match() && !log.is_alive());
    }
}
