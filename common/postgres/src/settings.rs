//! A server's settings files, `postgresql.auto.conf` before all: what is set, and how to set it otherwise.
//!
//! Lines are kept byte for byte unless they set what is removed or set anew. A setting is one line: a name, perhaps
//! `=`, a value and perhaps a comment; strings cannot go over a line's end. The last line with a name counts, and
//! case does not matter in names. Files that a line includes are not followed. Sources: the documentation,
//! "Parameter Interaction via the Configuration File", and files written by `ALTER SYSTEM` (`tests/real_server`).

use crate::error::{PgError, bounded, not_one};
use holdfast_core::limits::PG_SETTINGS_MAX;

const WHAT: &str = "a file of settings";

/// A settings file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SettingsFile {
    text: Vec<u8>,
}

impl SettingsFile {
    /// Takes the content of a file. Lines that are no settings are left alone: the server judges them.
    ///
    /// # Errors
    /// `TooLarge`.
    pub fn parse(bytes: &[u8]) -> Result<Self, PgError> {
        bounded(WHAT, bytes.len(), PG_SETTINGS_MAX)?;
        Ok(Self { text: bytes.to_vec() })
    }

    /// The content of the file.
    #[must_use]
    pub fn render(&self) -> &[u8] {
        &self.text
    }

    fn lines(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.text.split_inclusive(|byte| *byte == b'\n')
    }

    /// The value that counts of a setting, without its quotes; none where it is not set, or not readable. What is
    /// not UTF-8 in it is replaced.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<String> {
        self.lines()
            .rev()
            .filter_map(split_name)
            .find(|(found, _)| found.eq_ignore_ascii_case(name.as_bytes()))
            .and_then(|(_, rest)| value(rest))
            .map(|value| String::from_utf8_lossy(&value).into_owned())
    }

    /// The names that are set, in lower case, in the order of the file.
    pub fn names(&self) -> impl Iterator<Item = String> {
        self.lines()
            .filter_map(split_name)
            .map(|(name, _)| String::from_utf8_lossy(name).to_ascii_lowercase())
    }

    /// Removes the lines of all settings whose name, in lower case, is one of them.
    pub fn remove(&mut self, is_removed: impl Fn(&str) -> bool) {
        let is_kept = |line: &&[u8]| {
            split_name(line)
                .is_none_or(|(name, _)| !is_removed(&String::from_utf8_lossy(name).to_ascii_lowercase()))
        };
        self.text = self.lines().filter(is_kept).collect::<Vec<_>>().concat();
    }

    /// Sets a value: earlier lines with that name are removed, and one is appended.
    ///
    /// # Errors
    /// `NotOne` for what is no name of a setting or cannot be a value, `TooLarge`. The file is unchanged then.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), PgError> {
        if !is_plain_name(name) {
            return Err(not_one(
                "the name of a setting",
                name,
                "it has letters of lower case, digits and _",
            ));
        }
        let line = format!("{name} = {}\n", quote_setting(value)?);
        bounded(WHAT, self.text.len() + line.len() + 1, PG_SETTINGS_MAX)?;
        self.remove(|found| found == name);
        if self.text.last().is_some_and(|last| *last != b'\n') {
            self.text.push(b'\n');
        }
        self.text.extend_from_slice(line.as_bytes());
        Ok(())
    }
}

/// A value in quotes, so that the server reads exactly that back.
///
/// # Errors
/// `NotOne` for a value with a line break or a zero byte, which no line can hold.
pub fn quote_setting(value: &str) -> Result<String, PgError> {
    if value.contains(['\n', '\0']) {
        return Err(not_one(
            "a value of a setting",
            value,
            "it has a line break or a zero byte",
        ));
    }
    Ok(format!("'{}'", value.replace('\\', "\\\\").replace('\'', "''")))
}

/// `name`, or `extension.name`.
fn is_plain_name(name: &str) -> bool {
    let is_part = |part: &str| {
        part.starts_with(|first: char| first.is_ascii_lowercase() || first == '_')
            && part
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
    };
    !name.is_empty() && name.split('.').count() <= 2 && name.split('.').all(is_part)
}

const fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r')
}

/// The name that a line sets, and what follows it; none for comments and empty lines.
fn split_name(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let begin = line.iter().position(|byte| !is_space(*byte))?;
    let line = line.get(begin..)?;
    let is_letter = |byte: u8| byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80;
    if !is_letter(*line.first()?) {
        return None;
    }
    let is_of_name = |byte: u8| is_letter(byte) || byte.is_ascii_digit() || matches!(byte, b'$' | b'.');
    let end = line
        .iter()
        .position(|byte| !is_of_name(*byte))
        .unwrap_or(line.len());
    line.split_at_checked(end)
}

/// The value after a name.
fn value(rest: &[u8]) -> Option<Vec<u8>> {
    let skip = |bytes: &[u8]| bytes.iter().take_while(|byte| is_space(**byte)).count();
    let rest = rest.get(skip(rest)..)?;
    let rest = match rest.strip_prefix(b"=") {
        Some(rest) => rest.get(skip(rest)..)?,
        None => rest,
    };
    match rest.strip_prefix(b"'") {
        Some(quoted) => unquote(quoted),
        None => {
            let is_end = |byte: &u8| is_space(*byte) || matches!(byte, b'#' | b'\n');
            let end = rest.iter().position(is_end).unwrap_or(rest.len());
            rest.get(..end)
                .filter(|value| !value.is_empty())
                .map(<[u8]>::to_vec)
        }
    }
}

/// What stands up to the closing quote; none without one.
fn unquote(quoted: &[u8]) -> Option<Vec<u8>> {
    let mut value = Vec::new();
    let mut rest = quoted.iter().copied().peekable();
    loop {
        match rest.next()? {
            b'\'' if rest.peek() == Some(&b'\'') => {
                rest.next();
                value.push(b'\'');
            }
            b'\'' => return Some(value),
            b'\n' => return None,
            b'\\' => match rest.next()? {
                b'\n' => return None,
                b'b' => value.push(8),
                b'f' => value.push(12),
                b'n' => value.push(b'\n'),
                b'r' => value.push(b'\r'),
                b't' => value.push(b'\t'),
                first @ b'0'..=b'7' => {
                    let mut byte = u32::from(first - b'0');
                    for _ in 0..2 {
                        if let Some(digit @ b'0'..=b'7') = rest.peek().copied() {
                            byte = byte * 8 + u32::from(digit - b'0');
                            rest.next();
                        }
                    }
                    // Three digits reach 511; servers keep the low byte.
                    value.push((byte & 0xff) as u8);
                }
                other => value.push(other),
            },
            byte => value.push(byte),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file(text: &str) -> SettingsFile {
        SettingsFile::parse(text.as_bytes()).unwrap()
    }

    fn text(file: &SettingsFile) -> &str {
        std::str::from_utf8(file.render()).unwrap()
    }

    const WRITTEN: &str = "# Do not edit this file manually!\n\
        # It will be overwritten by the ALTER SYSTEM command.\n\
        work_mem = '64MB'\n\
        \n\
        Recovery_Target_Time = '2026-01-01' # old\n\
        search_path = '\"$user\", public'\n\
        primary_conninfo 'host=a password=''p\\\\w'''\n\
        \tport=5433\r\n\
        work_mem = 32MB#now";

    #[test]
    fn the_last_line_with_a_name_counts() {
        let file = file(WRITTEN);
        let is = |name: &str, value: Option<&str>| assert_eq!(file.get(name).as_deref(), value, "{name}");
        is("work_mem", Some("32MB"));
        is("WORK_MEM", Some("32MB"));
        is("recovery_target_time", Some("2026-01-01"));
        is("search_path", Some("\"$user\", public"));
        is("primary_conninfo", Some("host=a password='p\\w'"));
        is("port", Some("5433"));
        is("Do", None);
        is("work", None);
        let names: Vec<String> = file.names().collect();
        assert_eq!(
            names,
            [
                "work_mem",
                "recovery_target_time",
                "search_path",
                "primary_conninfo",
                "port",
                "work_mem"
            ]
        );
    }

    #[test]
    fn values_are_read_as_servers_read_them() {
        for (line, value) in [
            ("a=b", Some("b")),
            ("a b", Some("b")),
            ("a'b'", Some("b")),
            ("a = 'b' 'c'", Some("b")),
            ("a = ''", Some("")),
            ("a = 'it''s \\'x\\' \\\\ \\101\\n\\q'", Some("it's 'x' \\ A\nq")),
            ("a = '# no comment' # a comment", Some("# no comment")),
            ("a = -1.5e3", Some("-1.5e3")),
            ("a", None),
            ("a =", None),
            ("a = #b", None),
            ("a = 'b", None),
            ("a = 'b\\", None),
            ("a = 'b\\'", None),
            ("#a = b", None),
            ("1a = b", None),
            ("a.b = c", None),
        ] {
            assert_eq!(file(line).get("a").as_deref(), value, "{line}");
            assert_eq!(file(&format!("{line}\n")).get("a").as_deref(), value, "{line}");
        }
    }

    #[test]
    fn only_lines_of_removed_settings_go() {
        let mut changed = file(WRITTEN);
        changed.remove(|name| name.starts_with("recovery_target") || name == "primary_conninfo");
        let expected: String = WRITTEN
            .split_inclusive('\n')
            .filter(|line| !line.starts_with("Recovery") && !line.starts_with("primary"))
            .collect();
        assert_eq!(text(&changed), expected);
    }

    #[test]
    fn a_value_replaces_all_that_were_set_before() {
        let mut changed = file(WRITTEN);
        changed.set("work_mem", "it's 5\\").unwrap();
        assert!(text(&changed).ends_with("\tport=5433\r\nwork_mem = 'it''s 5\\\\'\n"));
        assert_eq!(changed.names().filter(|name| name == "work_mem").count(), 1);
        assert_eq!(changed.get("work_mem").as_deref(), Some("it's 5\\"));
        // The last line had no end.
        let mut changed = file("port = 1");
        changed.set("holdfast.x", "").unwrap();
        assert_eq!(text(&changed), "port = 1\nholdfast.x = ''\n");
    }

    #[test]
    fn what_a_line_cannot_hold_is_refused_and_changes_nothing() {
        let mut changed = file(WRITTEN);
        for (name, value) in [
            ("work_mem", "a\nfsync = off"),
            ("work_mem", "a\0"),
            ("", "a"),
            ("work mem", "a"),
            ("work_mem = 1\nfsync", "a"),
            ("1a", "a"),
            ("a.b.c", "a"),
            (".a", "a"),
            ("Work_mem", "a"),
        ] {
            assert!(changed.set(name, value).is_err(), "{name:?} {value:?}");
        }
        let long = "x".repeat(PG_SETTINGS_MAX);
        assert!(matches!(
            changed.set("work_mem", &long),
            Err(PgError::TooLarge { .. })
        ));
        assert_eq!(text(&changed), WRITTEN);
        assert!(SettingsFile::parse(&vec![b'\n'; PG_SETTINGS_MAX + 1]).is_err());
    }

    proptest! {
        #[test]
        fn every_value_reads_back(value in "[^\n\0]{0,20}", before: String) {
            let mut file = file(&before);
            file.set("restore_command", &value).unwrap();
            prop_assert_eq!(file.get("restore_command"), Some(value));
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>, name: String, value: String) {
            let mut file = SettingsFile::parse(&bytes).unwrap();
            let _ = file.get(&name);
            let _ = file.set(&name, &value);
            file.remove(|_| false);
            let names: Vec<String> = file.names().collect();
            file.remove(|name| names.iter().any(|known| known == name));
            prop_assert_eq!(file.names().count(), 0);
        }
    }
}
