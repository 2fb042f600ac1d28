//! The texts of `archive_command` and `restore_command`.
//!
//! A server first replaces `%p` by the file's path from the data directory, `%f` by its name and `%%` by `%`, then
//! gives the line to `/bin/sh`. So each word is quoted for the shell, and each `%` doubled. As a value in a settings
//! file it is quoted once more (`settings.rs`). Source: the documentation of these settings; tried with a real shell
//! and server (`tests/`).

use crate::error::{PgError, not_one};
use holdfast_core::limits::PG_COMMAND_MAX;

/// Longest that `%p` becomes, with the longest name that is archived: `pg_wal/` and a backup's note.
const PATH_LEN_MAX: usize = 7 + NAME_LEN_MAX;
/// Longest that `%f` becomes: `000000010000000000000002.00000028.backup`.
const NAME_LEN_MAX: usize = 40;

/// The command that calls a program with those arguments, followed by the path and the name of the file to archive.
///
/// # Errors
/// `NotOne` for a program that is no absolute path, and for words with a line break or a zero byte; `TooLarge` when
/// a server would cut the line.
pub fn archive_command(program: &str, arguments: &[&str]) -> Result<String, PgError> {
    line(program, arguments, "%p %f")
}

/// The command that calls a program with those arguments, followed by the name of the file to fetch and the path to
/// put it.
///
/// # Errors
/// Like [`archive_command`].
pub fn restore_command(program: &str, arguments: &[&str]) -> Result<String, PgError> {
    line(program, arguments, "%f %p")
}

/// What is asked for by `%p` and `%f` needs no quotes: servers give names of WAL files only.
fn line(program: &str, arguments: &[&str], asked: &str) -> Result<String, PgError> {
    if !program.starts_with('/') {
        return Err(not_one(
            "a program for the server to call",
            program,
            "write its absolute path: servers are started with any search path",
        ));
    }
    let mut line = command_word(program)?;
    for argument in arguments {
        line.push(' ');
        line.push_str(&command_word(argument)?);
    }
    // Servers up to 15 cut the line after its replacements, without a word.
    if line.len() + " ".len() * 2 + PATH_LEN_MAX + NAME_LEN_MAX > PG_COMMAND_MAX {
        return Err(PgError::TooLarge {
            what: "a command for the server to call",
            limit: PG_COMMAND_MAX,
        });
    }
    Ok(format!("{line} {asked}"))
}

/// One word of a command: quoted for the shell, and with every `%` doubled for the server.
///
/// # Errors
/// `NotOne` for a word with a line break or a zero byte.
pub fn command_word(word: &str) -> Result<String, PgError> {
    if word.contains(['\n', '\0']) {
        return Err(not_one(
            "a word of a command",
            word,
            "it has a line break or a zero byte",
        ));
    }
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+,:@".contains(&byte);
    if !word.is_empty() && word.bytes().all(is_plain) {
        return Ok(word.to_owned());
    }
    // Between single quotes nothing is special but their end.
    Ok(format!("'{}'", word.replace('\'', r"'\''").replace('%', "%%")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What a server makes of a command before the shell sees it.
    fn expanded(command: &str, path: &str, name: &str) -> String {
        let mut line = String::new();
        let mut rest = command.chars();
        while let Some(char) = rest.next() {
            match char {
                '%' => match rest.next() {
                    Some('p') => line.push_str(path),
                    Some('f') => line.push_str(name),
                    Some('%') => line.push('%'),
                    other => panic!("%{other:?}"),
                },
                char => line.push(char),
            }
        }
        line
    }

    #[test]
    fn commands_name_the_file_behind_the_arguments() {
        let archive = archive_command("/usr/bin/holdfast-agent", &["wal", "push", "my db"]).unwrap();
        assert_eq!(archive, "/usr/bin/holdfast-agent wal push 'my db' %p %f");
        let restore = restore_command("/opt/100% it's/agent", &[""]).unwrap();
        assert_eq!(restore, r"'/opt/100%% it'\''s/agent' '' %f %p");
        assert_eq!(
            expanded(&restore, "pg_wal/RECOVERYXLOG", "00000002.history"),
            r"'/opt/100% it'\''s/agent' '' 00000002.history pg_wal/RECOVERYXLOG"
        );
    }

    #[test]
    fn what_a_server_or_shell_would_take_otherwise_is_refused() {
        assert!(archive_command("holdfast-agent", &[]).is_err());
        assert!(archive_command("", &[]).is_err());
        assert!(archive_command("/a\nb", &[]).is_err());
        assert!(archive_command("/a", &["b\nc"]).is_err());
        assert!(archive_command("/a", &["b\0"]).is_err());
    }

    #[test]
    fn a_line_that_servers_would_cut_is_refused() {
        let longest = (1..PG_COMMAND_MAX)
            .rev()
            .find_map(|len| archive_command(&format!("/{}", "x".repeat(len)), &[]).ok())
            .unwrap();
        let name = "000000010000000000000002.00000028.backup";
        assert_eq!(name.len(), NAME_LEN_MAX);
        let line = expanded(&longest, &format!("pg_wal/{name}"), name);
        assert_eq!(line.len(), PG_COMMAND_MAX);
        let longer = format!("/{}", "x".repeat(PG_COMMAND_MAX));
        assert!(matches!(
            archive_command(&longer, &[]),
            Err(PgError::TooLarge { .. })
        ));
    }

    proptest! {
        /// Reads a word as the shell does: quotes and backslashes, nothing else may be special.
        #[test]
        fn every_word_reaches_the_program_as_it_is(word in "[^\n\0]{0,20}") {
            let quoted = expanded(&command_word(&word).unwrap(), "", "");
            let mut read = String::new();
            let (mut in_quotes, mut chars) = (false, quoted.chars());
            while let Some(char) = chars.next() {
                match char {
                    '\'' => in_quotes = !in_quotes,
                    '\\' if !in_quotes => read.extend(chars.next()),
                    char => {
                        let is_safe = char.is_ascii_alphanumeric() || "/._-+,:@".contains(char);
                        prop_assert!(in_quotes || is_safe, "{char:?} in {quoted}");
                        read.push(char);
                    }
                }
            }
            prop_assert!(!in_quotes && !quoted.is_empty());
            prop_assert_eq!(read, word);
        }
    }
}
