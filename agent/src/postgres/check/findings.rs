//! What is wrong with a server and its host, each with the line that mends it. Pure.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

/// WAL that waits to be archived beyond this many files is named: the archiver does not keep up, or fails.
const READY_MAX: usize = 64;
/// Transactions that lie on this host alone for longer than this are named; it is the bound that users state for it.
const ARCHIVE_AGE_MAX: Duration = Duration::from_secs(15 * 60);
/// Free space below this share of the file system of the WAL, in percent, is named.
const FREE_MIN_PERCENT: u64 = 10;
/// So many more replication slots are advised: a backup needs one, and slots cost next to nothing.
const SLOTS_MORE: i64 = 10;
/// Where `wal push` looks for the agent unless told.
const DEFAULT_SOCKET: &str = "/run/holdfast/agent.sock";

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What it concerns: a setting, a path, a right.
    pub what: String,
    /// Why that is wrong.
    pub why: String,
    /// What to type, and where.
    pub fix: String,
}

/// Room where the WAL lies, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalSpace {
    /// What is free.
    pub free: u64,
    /// What there is.
    pub all: u64,
}

/// What an `archive_command` hands to whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushes {
    source: Option<String>,
    socket: PathBuf,
}

/// What was asked of a server and its host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// As the source is called on this agent.
    pub source: String,
    /// As the cluster is called in the agent's configuration.
    pub name: String,
    /// The agent's socket, if it has one.
    pub socket: Option<PathBuf>,
    /// This program.
    pub program: PathBuf,
    /// Where the cluster is.
    pub data_directory: PathBuf,
    /// It replays another server's WAL.
    pub is_standby: bool,
    /// `archive_mode`.
    pub archive_mode: String,
    /// What `archive_command` does, if it is one of ours.
    pub pushes: Option<Pushes>,
    /// The program that `archive_command` calls exists, as far as that can be seen.
    pub program_is_there: bool,
    /// The socket that `archive_command` names is the agent's.
    pub socket_is_ours: bool,
    /// `archive_library`; empty where there is none.
    pub archive_library: String,
    /// `archive_timeout`; zero for never.
    pub archive_timeout: Duration,
    /// `data_checksums`.
    pub data_checksums: bool,
    /// `full_page_writes`.
    pub full_page_writes: bool,
    /// `fsync`.
    pub fsync: bool,
    /// `max_replication_slots`.
    pub slots_max: i64,
    /// Replication slots that there are.
    pub slots_used: i64,
    /// The archiver failed last.
    pub archiver_fails: bool,
    /// Which file it failed on.
    pub last_failed: Option<String>,
    /// Files that wait to be archived.
    pub ready: usize,
    /// How long the first of them has waited.
    pub oldest_ready: Duration,
    /// Room where the WAL lies.
    pub wal_space: Option<WalSpace>,
    /// Whom the server runs as, if the configuration lets another one push.
    pub server_user: Option<String>,
    /// Paths that the configuration allows.
    pub allow: Vec<PathBuf>,
    /// Paths of the cluster that it does not allow.
    pub not_allowed: Vec<PathBuf>,
    /// Paths of the cluster that the agent cannot list, and why.
    pub unreadable: Vec<(PathBuf, String)>,
}

/// Findings so far.
#[derive(Default)]
struct Found(Vec<Finding>);

impl Found {
    fn add(&mut self, what: &str, why: impl Into<String>, fix: impl Into<String>) {
        self.0.push(Finding {
            what: what.to_owned(),
            why: why.into(),
            fix: fix.into(),
        });
    }
}

/// What is wrong.
#[must_use]
pub fn findings(facts: &Facts) -> Vec<Finding> {
    let mut found = Found::default();
    reading(facts, &mut found);
    settings(facts, &mut found);
    archiving(facts, &mut found);
    if let Some(WalSpace { free, all }) = facts.wal_space
        && free.saturating_mul(100) < all.saturating_mul(FREE_MIN_PERCENT)
    {
        found.add(
            "pg_wal",
            format!(
                "{} MiB of {} MiB are free where the WAL is: the server stops when it is full",
                free >> 20,
                all >> 20
            ),
            format!(
                "free space there, or move {} to a larger file system",
                facts.data_directory.join("pg_wal").display()
            ),
        );
    }
    found.0
}

/// Whether the agent may and can read the cluster.
fn reading(facts: &Facts, found: &mut Found) {
    if !facts.not_allowed.is_empty() {
        let shown: Vec<String> = facts
            .not_allowed
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        let all = facts.allow.iter().chain(&facts.not_allowed);
        let all = all.map(|path| toml::Value::String(path.display().to_string()));
        found.add(
            "allow",
            format!("agent.toml does not let the agent read {}", shown.join(", ")),
            format!(
                "let this line of agent.toml, before its first section, take the place of the one that is there, and restart the \
                 agent:\nallow = {}",
                toml::Value::Array(all.collect())
            ),
        );
    }
    for (path, why) in &facts.unreadable {
        found.add(
            &path.display().to_string(),
            format!("the agent cannot read it: {why}"),
            "see that it is there, and let the agent run as its owner or as root (`User=` in the agent's unit)",
        );
    }
}

fn settings(facts: &Facts, found: &mut Found) {
    if facts.slots_used >= facts.slots_max {
        found.add(
            "max_replication_slots",
            "no replication slot is free, by which a backup keeps the WAL that it needs",
            format!(
                "ALTER SYSTEM SET max_replication_slots = {}; then restart the server",
                facts.slots_used + SLOTS_MORE
            ),
        );
    }
    if !facts.full_page_writes {
        found.add(
            "full_page_writes",
            "it is off: pages that are torn while they are copied could not be repaired",
            "ALTER SYSTEM SET full_page_writes = on; SELECT pg_reload_conf();",
        );
    }
    if !facts.fsync {
        found.add(
            "fsync",
            "it is off: after a power cut the server's own files may be damaged, and so every backup of them",
            "ALTER SYSTEM SET fsync = on; SELECT pg_reload_conf();",
        );
    }
    if !facts.data_checksums {
        let data = word(&facts.data_directory.display().to_string());
        found.add(
            "data_checksums",
            "pages have no checksums, so that damage in the cluster itself is backed up unseen",
            format!("stop the server, run this line as the server's user, and start it again:\npg_checksums --enable -D {data}"),
        );
    }
}

fn archiving(facts: &Facts, found: &mut Found) {
    let Some(socket) = &facts.socket else {
        // Where the server looks for it already, if it does.
        let socket = facts.pushes.as_ref().map(|pushes| pushes.socket.as_path());
        let socket = socket.unwrap_or(Path::new(DEFAULT_SOCKET));
        found.add(
            "socket",
            "the agent does not listen for this host's servers, so that no WAL can be archived",
            format!(
                "add this line to agent.toml, before its first section, and restart the agent:\nsocket = {}",
                toml::Value::String(socket.display().to_string())
            ),
        );
        return;
    };
    if let Some(user) = &facts.server_user {
        found.add(
            "user",
            format!("the server runs as {user}, whom agent.toml does not let push or fetch WAL"),
            format!(
                "let this line of agent.toml stand in the section [postgres.{}], and restart the agent:\nuser = {}",
                facts.name,
                toml::Value::String(user.clone())
            ),
        );
    }
    let line = push_line(facts, socket);
    if facts.archive_mode == "off" {
        found.add(
            "archive_mode",
            "it is off: nothing after a backup can be recovered",
            "ALTER SYSTEM SET archive_mode = on; then restart the server",
        );
        return;
    }
    if !facts.archive_library.is_empty() {
        found.add(
            "archive_library",
            format!(
                "it is {:?}, which takes the place of archive_command",
                facts.archive_library
            ),
            "ALTER SYSTEM SET archive_library = ''; SELECT pg_reload_conf();",
        );
    } else if let Some(why) = wrong_command(facts) {
        let set = line.replace('\'', "''");
        found.add(
            "archive_command",
            why,
            format!("ALTER SYSTEM SET archive_command = '{set}'; SELECT pg_reload_conf();"),
        );
    }
    progress(facts, &line, found);
}

/// Whether the archiver works, and keeps up.
fn progress(facts: &Facts, line: &str, found: &mut Found) {
    if !facts.is_standby && (facts.archive_timeout.is_zero() || facts.archive_timeout > ARCHIVE_AGE_MAX) {
        found.add(
            "archive_timeout",
            format!(
                "it is {}: while little is written, transactions lie on this host alone until a segment is full",
                match facts.archive_timeout.as_secs() {
                    0 => "off".to_owned(),
                    seconds => format!("{} minutes", seconds / 60),
                }
            ),
            "ALTER SYSTEM SET archive_timeout = '5min'; SELECT pg_reload_conf();",
        );
    }
    if facts.archiver_fails {
        let file = facts.last_failed.as_deref().unwrap_or("its last file");
        let by_hand = facts.last_failed.as_ref().map_or_else(String::new, |file| {
            let data = word(&facts.data_directory.display().to_string());
            let push = line.replace("%p", &format!("pg_wal/{file}")).replace("%%", "%");
            format!("\nIf it fails again, this says why, run as the server's user:\ncd {data} && {push}")
        });
        found.add(
            "archiver",
            format!("the server could not archive {file}; its log says why"),
            // Told to read its settings again, an archiver tries at once instead of within a minute.
            format!("once that is mended, let it try again at once:\nSELECT pg_reload_conf();{by_hand}"),
        );
    } else if facts.ready > READY_MAX || facts.oldest_ready > ARCHIVE_AGE_MAX {
        found.add(
            "archive_status",
            format!(
                "{} files of WAL wait to be archived, the first for {} minutes",
                facts.ready,
                facts.oldest_ready.as_secs() / 60
            ),
            "the archiver catches up by itself while the controllers take WAL; this line lets it begin at once:\nSELECT pg_reload_conf();",
        );
    }
}

/// What the server must call.
fn push_line(facts: &Facts, socket: &Path) -> String {
    let socket = socket.display().to_string();
    let arguments = ["wal", "push", "--source", &facts.source, "--socket", &socket];
    holdfast_postgres::archive_command(&facts.program.display().to_string(), &arguments).map_or_else(
        |_| format!("holdfast-agent wal push --source {} %p", facts.source),
        |line| line.strip_suffix(" %f").unwrap_or(&line).to_owned(),
    )
}

fn word(text: &str) -> String {
    holdfast_postgres::command_word(text).map_or_else(|_| text.to_owned(), |word| word.replace("%%", "%"))
}

fn wrong_command(facts: &Facts) -> Option<&'static str> {
    let is_source = facts
        .pushes
        .as_ref()
        .is_some_and(|pushes| pushes.source.as_ref() == Some(&facts.source));
    if !is_source {
        Some("it does not hand WAL to this agent for this source")
    } else if !facts.program_is_there {
        Some("the program that it calls is not there")
    } else if !facts.socket_is_ours {
        Some("the socket that it names is not this agent's")
    } else {
        None
    }
}

impl Pushes {
    /// Of a command of ours; none for any other.
    #[must_use]
    pub fn of(command: &str) -> Option<Self> {
        let words: Vec<&str> = command.split_whitespace().collect();
        let is_ours = words.windows(2).any(|pair| pair == ["wal", "push"]) && command.contains("%p");
        is_ours.then(|| Self {
            source: option(&words, "--source").map(str::to_owned),
            socket: option(&words, "--socket").unwrap_or(DEFAULT_SOCKET).into(),
        })
    }
}

/// The socket that a command of ours names.
pub(super) fn socket_of(command: &str) -> Option<PathBuf> {
    Pushes::of(command).map(|pushes| pushes.socket)
}

/// The program that a command calls, if that can be told.
pub(super) fn program_of(command: &str) -> Option<PathBuf> {
    let first = unquoted(command.split_whitespace().next()?);
    first.starts_with('/').then(|| first.into())
}

/// The value of an option, as `--name value` or `--name=value`.
fn option<'w>(words: &[&'w str], name: &str) -> Option<&'w str> {
    let apart = words.windows(2).find(|pair| pair[0] == name).map(|pair| pair[1]);
    let joined = || {
        words
            .iter()
            .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
    };
    apart.or_else(joined).map(unquoted)
}

fn unquoted(word: &str) -> &str {
    word.trim_matches(['\'', '"'])
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMAND: &str = "/usr/bin/holdfast-agent wal push --source main --socket /run/h.sock %p";

    fn fit() -> Facts {
        Facts {
            source: "main".into(),
            name: "main".into(),
            socket: Some("/run/h.sock".into()),
            program: "/usr/bin/holdfast-agent".into(),
            data_directory: "/srv/pg data".into(),
            is_standby: false,
            archive_mode: "on".into(),
            pushes: Pushes::of(COMMAND),
            program_is_there: true,
            socket_is_ours: true,
            archive_library: String::new(),
            archive_timeout: Duration::from_secs(60),
            data_checksums: true,
            full_page_writes: true,
            fsync: true,
            slots_max: 10,
            slots_used: 1,
            archiver_fails: false,
            last_failed: None,
            ready: 0,
            oldest_ready: Duration::ZERO,
            wal_space: Some(WalSpace { free: 50, all: 100 }),
            server_user: None,
            allow: vec!["/srv/pg data".into()],
            not_allowed: Vec::new(),
            unreadable: Vec::new(),
        }
    }

    fn whats(facts: &Facts) -> Vec<String> {
        findings(facts).into_iter().map(|finding| finding.what).collect()
    }

    #[test]
    fn each_thing_that_is_wrong_is_found_alone() {
        assert!(whats(&fit()).is_empty());
        type Spoil = fn(&mut Facts);
        let spoils: [(&str, Spoil); 18] = [
            ("socket", |f| f.socket = None),
            ("user", |f| f.server_user = Some("pg".into())),
            ("archive_mode", |f| f.archive_mode = "off".into()),
            ("archive_library", |f| f.archive_library = "basic_archive".into()),
            ("archive_command", |f| f.pushes = Pushes::of("/bin/true")),
            ("archive_command", |f| {
                f.pushes = Pushes::of("holdfast-agent wal push --source other %p");
            }),
            ("archive_command", |f| f.program_is_there = false),
            ("archive_command", |f| f.socket_is_ours = false),
            ("archiver", |f| f.archiver_fails = true),
            ("archive_status", |f| f.ready = 1000),
            ("archive_status", |f| f.oldest_ready = Duration::from_secs(3600)),
            ("archive_timeout", |f| f.archive_timeout = Duration::ZERO),
            ("full_page_writes", |f| f.full_page_writes = false),
            ("data_checksums", |f| f.data_checksums = false),
            ("max_replication_slots", |f| f.slots_max = 1),
            ("pg_wal", |f| f.wal_space = Some(WalSpace { free: 5, all: 100 })),
            ("allow", |f| f.not_allowed = vec!["/srv/ts".into()]),
            ("/srv/ts", |f| {
                f.unreadable = vec![("/srv/ts".into(), "denied".into())];
            }),
        ];
        for (what, spoil) in spoils {
            let mut facts = fit();
            spoil(&mut facts);
            assert_eq!(whats(&facts), [what]);
        }
        let standby = Facts {
            is_standby: true,
            archive_timeout: Duration::ZERO,
            ..fit()
        };
        assert!(whats(&standby).is_empty(), "its primary ends segments");
    }

    #[test]
    fn the_command_that_is_advised_is_one_that_is_accepted() {
        let facts = Facts {
            pushes: None,
            ..fit()
        };
        let fix = &findings(&facts)[0].fix;
        assert_eq!(fix.split('\'').nth(1), Some(COMMAND), "{fix}");
        let joined = "'/usr/bin/holdfast-agent' wal push --socket=/run/h.sock --source=main %p";
        assert_eq!(Pushes::of(joined), Pushes::of(COMMAND));
        assert_eq!(program_of(joined), Some("/usr/bin/holdfast-agent".into()));
        assert_eq!(program_of("cp %p /x"), None);
        assert_eq!(
            socket_of("holdfast-agent wal push --source a %p"),
            Some(DEFAULT_SOCKET.into())
        );
    }

    #[test]
    fn the_lines_that_are_advised_lose_nothing_that_was_set() {
        let facts = Facts {
            socket: None,
            not_allowed: vec!["/srv/ts".into()],
            slots_max: 40,
            slots_used: 40,
            ..fit()
        };
        let fixes: Vec<String> = findings(&facts).into_iter().map(|finding| finding.fix).collect();
        assert!(
            fixes[0].ends_with("\nallow = [\"/srv/pg data\", \"/srv/ts\"]"),
            "{}",
            fixes[0]
        );
        assert!(fixes[1].contains("= 50;"), "{}", fixes[1]);
        assert!(fixes[2].ends_with("\nsocket = \"/run/h.sock\""), "{}", fixes[2]);
        let facts = Facts {
            archiver_fails: true,
            last_failed: Some("000000010000000000000007".into()),
            ..fit()
        };
        let fix = &findings(&facts)[0].fix;
        let by_hand = "cd '/srv/pg data' && /usr/bin/holdfast-agent wal push --source main --socket /run/h.sock \
                       pg_wal/000000010000000000000007";
        assert_eq!(fix.lines().last(), Some(by_hand));
    }
}
