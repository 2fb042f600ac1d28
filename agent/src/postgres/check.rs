//! Whether a server is fit to be backed up and to archive its WAL: what is asked, and what is found wrong, each with the line
//! that mends it.

use super::{
    server::{Server, Tablespace},
    session::{Session, column},
    take::Order,
};
use crate::{
    error::{AgentError, Result},
    files::check_allowed,
};
use std::path::{Path, PathBuf};

/// WAL that waits to be archived beyond this many files is named: the archiver does not keep up, or fails.
const READY_MAX: i64 = 64;
/// A server without WAL archived for this long, in seconds, may lose as much; it is the bound that users state for it.
const ARCHIVE_AGE_MAX: i64 = 15 * 60;
/// Free space below this share of the file system of the WAL, in percent, is named.
const FREE_MIN_PERCENT: u64 = 10;

const SETTINGS: &str = "SELECT current_setting('archive_mode'), current_setting('archive_command'), \
    current_setting('archive_timeout')::text, current_setting('data_checksums'), current_setting('full_page_writes'), \
    current_setting('max_replication_slots')::int8 - (SELECT count(*) FROM pg_replication_slots), \
    current_setting('fsync')";
/// Only from 15 on.
const LIBRARY: &str = "SELECT current_setting('archive_library', true)";
const ARCHIVER: &str = "SELECT failed_count, last_failed_wal, \
    last_failed_time IS NOT NULL AND (last_archived_time IS NULL OR last_failed_time > last_archived_time), \
    extract(epoch FROM clock_timestamp() - last_archived_time)::int8 FROM pg_stat_archiver";

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

/// What was asked of a server and its host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// As the source is called on this agent.
    pub source: String,
    /// The agent's socket, if it has one.
    pub socket: Option<PathBuf>,
    /// This program.
    pub program: PathBuf,
    /// `archive_mode`.
    pub archive_mode: String,
    /// `archive_command`.
    pub archive_command: String,
    /// `archive_library`; empty where there is none.
    pub archive_library: String,
    /// `data_checksums`.
    pub data_checksums: bool,
    /// `full_page_writes`.
    pub full_page_writes: bool,
    /// `fsync`.
    pub fsync: bool,
    /// Replication slots that can still be made.
    pub free_slots: i64,
    /// The archiver failed last.
    pub archiver_fails: bool,
    /// Which file it failed on.
    pub last_failed: Option<String>,
    /// Seconds since something was archived.
    pub archived_ago: Option<i64>,
    /// Files that wait to be archived.
    pub ready: i64,
    /// Free and all bytes of the file system that holds the WAL.
    pub wal_space: Option<(u64, u64)>,
    /// Paths that this agent may not read by its configuration, or cannot.
    pub unreadable: Vec<(PathBuf, String)>,
}

/// Asks the server, and looks at its directories. What keeps a backup from being taken at all is an error, with its own
/// remedy.
///
/// # Errors
/// As for a backup.
pub async fn ask(order: &Order, source: &str, socket: Option<&Path>) -> Result<Facts> {
    let session = Session::open(&order.settings, &order.cancel).await?;
    let server = Server::ask(&session).await?;
    let action = "ask the PostgreSQL server for its settings";
    let row = session.row(action, SETTINGS, &[]).await?;
    let library = session.row(action, LIBRARY, &[]).await?;
    let archiver = session.row(action, ARCHIVER, &[]).await?;
    let text = |row: &tokio_postgres::Row, at: usize| column::<&str>(row, at).map(str::to_owned);
    let is_on = |at| Ok::<_, AgentError>(column::<&str>(&row, at)? == "on");
    let library: Option<&str> = column(&library, 0)?;
    let last_failed: Option<&str> = column(&archiver, 1)?;
    let wal = server.data_directory.join("pg_wal");
    Ok(Facts {
        source: source.to_owned(),
        socket: socket.map(Path::to_owned),
        program: std::env::current_exe().unwrap_or_else(|_| PathBuf::from("/usr/bin/holdfast-agent")),
        archive_mode: text(&row, 0)?,
        archive_command: text(&row, 1)?,
        archive_library: library.unwrap_or_default().to_owned(),
        data_checksums: is_on(3)?,
        full_page_writes: is_on(4)?,
        fsync: is_on(6)?,
        free_slots: column(&row, 5)?,
        archiver_fails: column(&archiver, 2)?,
        last_failed: last_failed.map(str::to_owned),
        archived_ago: column(&archiver, 3)?,
        ready: count_ready(&wal.join("archive_status")),
        wal_space: space(&wal),
        unreadable: unreadable(order, &server, &Server::tablespaces(&session).await?),
    })
}

/// Counted by the agent: the server tells it to superusers only.
fn count_ready(dir: &Path) -> i64 {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return 0;
    };
    let ready = entries.flatten().filter(|entry| {
        entry
            .path()
            .extension()
            .is_some_and(|extension| extension == "ready")
    });
    i64::try_from(ready.count()).unwrap_or(i64::MAX)
}

fn space(dir: &Path) -> Option<(u64, u64)> {
    let about = rustix::fs::statvfs(dir).ok()?;
    Some((about.f_bavail * about.f_frsize, about.f_blocks * about.f_frsize))
}

fn unreadable(order: &Order, server: &Server, tablespaces: &[Tablespace]) -> Vec<(PathBuf, String)> {
    let data = &server.data_directory;
    let places = [data.clone(), data.join("pg_wal")]
        .into_iter()
        .chain(tablespaces.iter().map(|tablespace| tablespace.location.clone()));
    let why = |place: &Path| {
        let real = place.canonicalize().map_err(AgentError::io("open", place))?;
        check_allowed(&real, &order.allow)?;
        std::fs::read_dir(&real).map_err(AgentError::io("list", &real))?;
        Ok::<_, AgentError>(())
    };
    places
        .filter_map(|place| why(&place).err().map(|error| (place, error.to_string())))
        .collect()
}

/// What is wrong.
#[must_use]
pub fn findings(facts: &Facts) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut add = |what: &str, why: String, fix: String| {
        found.push(Finding {
            what: what.to_owned(),
            why,
            fix,
        });
    };
    for (path, why) in &facts.unreadable {
        add(
            &path.display().to_string(),
            format!("the agent cannot read it: {why}"),
            format!(
                "add it to `allow` in agent.toml, and restart the agent:\nallow = [{:?}]",
                path.display().to_string()
            ),
        );
    }
    if facts.free_slots < 1 {
        add(
            "max_replication_slots",
            "no replication slot is free, by which a backup keeps the WAL that it needs".into(),
            "ALTER SYSTEM SET max_replication_slots = 20; then restart the server".into(),
        );
    }
    if !facts.full_page_writes {
        add(
            "full_page_writes",
            "it is off: pages that are torn while they are copied could not be repaired".into(),
            "ALTER SYSTEM SET full_page_writes = on; SELECT pg_reload_conf();".into(),
        );
    }
    if !facts.fsync {
        add(
            "fsync",
            "it is off: after a power cut the server's own files may be damaged, and so every backup of them"
                .into(),
            "ALTER SYSTEM SET fsync = on; SELECT pg_reload_conf();".into(),
        );
    }
    if !facts.data_checksums {
        add(
            "data_checksums",
            "pages have no checksums, so that damage in the cluster itself is backed up unseen".into(),
            "stop the server, then: pg_checksums --enable -D DATA_DIRECTORY".into(),
        );
    }
    archiving(facts, &mut add);
    if let Some((free, all)) = facts.wal_space
        && free.saturating_mul(100) < all.saturating_mul(FREE_MIN_PERCENT)
    {
        add(
            "pg_wal",
            format!(
                "{} MiB of {} MiB are free where the WAL is: the server stops when it is full",
                free >> 20,
                all >> 20
            ),
            "free space there, or move pg_wal to a larger file system".into(),
        );
    }
    found
}

fn archiving(facts: &Facts, add: &mut impl FnMut(&str, String, String)) {
    let Some(socket) = &facts.socket else {
        add(
            "socket",
            "the agent does not listen for this host's servers, so that no WAL can be archived".into(),
            "add this line to agent.toml, before its first section, and restart the agent:\nsocket = \"/run/holdfast/agent.sock\"".into(),
        );
        return;
    };
    let arguments = ["wal", "push", "--source", &facts.source, "--socket"];
    let socket = socket.display().to_string();
    let arguments: Vec<&str> = arguments.into_iter().chain([socket.as_str()]).collect();
    let line = holdfast_postgres::archive_command(&facts.program.display().to_string(), &arguments)
        .map_or_else(
            |_| format!("holdfast-agent wal push --source {} %p", facts.source),
            |line| line.strip_suffix(" %f").unwrap_or(&line).to_owned(),
        );
    let set = format!(
        "ALTER SYSTEM SET archive_command = '{}'; SELECT pg_reload_conf();",
        line.replace('\'', "''")
    );
    if facts.archive_mode == "off" {
        add(
            "archive_mode",
            "it is off: nothing after a backup can be recovered".into(),
            "ALTER SYSTEM SET archive_mode = on; then restart the server".into(),
        );
    }
    if !facts.archive_library.is_empty() {
        add(
            "archive_library",
            format!(
                "it is {:?}, which takes the place of archive_command",
                facts.archive_library
            ),
            "ALTER SYSTEM SET archive_library = ''; SELECT pg_reload_conf();".into(),
        );
    } else if facts.archive_mode != "off" && !pushes(&facts.archive_command, &facts.source) {
        add(
            "archive_command",
            "it does not hand WAL to this agent for this source".into(),
            set,
        );
    }
    if facts.archive_mode == "off" {
        return;
    }
    if facts.archiver_fails {
        let file = facts.last_failed.as_deref().unwrap_or("its last file");
        add(
            "archiver",
            format!("the server could not archive {file}; its log says why"),
            "see the server's log and `holdfastctl status`; the server tries again by itself".into(),
        );
    } else if facts.ready > READY_MAX {
        add(
            "archive_status",
            format!("{} files of WAL wait to be archived", facts.ready),
            "see the server's log; the archiver catches up by itself once the controllers take WAL".into(),
        );
    } else if facts.archived_ago.is_some_and(|ago| ago > ARCHIVE_AGE_MAX) && facts.ready > 0 {
        add(
            "archive_timeout",
            format!(
                "the last WAL was archived {} minutes ago",
                facts.archived_ago.unwrap_or(0) / 60
            ),
            "ALTER SYSTEM SET archive_timeout = '5min'; SELECT pg_reload_conf();".into(),
        );
    }
}

/// Whether a command is ours, of that source.
fn pushes(command: &str, source: &str) -> bool {
    let words: Vec<&str> = command.split_whitespace().collect();
    let is_ours = words.windows(2).any(|pair| pair == ["wal", "push"]);
    let is_source = words
        .windows(2)
        .any(|pair| pair[0] == "--source" && pair[1].trim_matches('\'') == source);
    is_ours && is_source && command.contains("%p")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fit() -> Facts {
        Facts {
            source: "main".into(),
            socket: Some("/run/holdfast/agent.sock".into()),
            program: "/usr/bin/holdfast-agent".into(),
            archive_mode: "on".into(),
            archive_command: "/usr/bin/holdfast-agent wal push --source main %p".into(),
            archive_library: String::new(),
            data_checksums: true,
            full_page_writes: true,
            fsync: true,
            free_slots: 9,
            archiver_fails: false,
            last_failed: None,
            archived_ago: Some(5),
            ready: 0,
            wal_space: Some((50, 100)),
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
        let spoils: [(&str, Spoil); 12] = [
            ("socket", |f| f.socket = None),
            ("archive_mode", |f| f.archive_mode = "off".into()),
            ("archive_library", |f| f.archive_library = "basic_archive".into()),
            ("archive_command", |f| f.archive_command = "/bin/true".into()),
            ("archive_command", |f| {
                f.archive_command = f.archive_command.replace("main", "other")
            }),
            ("archiver", |f| f.archiver_fails = true),
            ("archive_status", |f| f.ready = 1000),
            ("archive_timeout", |f| (f.archived_ago, f.ready) = (Some(3600), 1)),
            ("full_page_writes", |f| f.full_page_writes = false),
            ("data_checksums", |f| f.data_checksums = false),
            ("max_replication_slots", |f| f.free_slots = 0),
            ("pg_wal", |f| f.wal_space = Some((5, 100))),
        ];
        for (what, spoil) in spoils {
            let mut facts = fit();
            spoil(&mut facts);
            assert_eq!(whats(&facts), [what]);
        }
    }

    #[test]
    fn the_command_that_is_advised_is_one_that_is_accepted() {
        let mut facts = fit();
        facts.archive_command = String::new();
        let fix = &findings(&facts)[0].fix;
        let command = fix.split('\'').nth(1).unwrap();
        assert!(pushes(command, "main"), "{fix}");
        assert!(command.ends_with(" %p"), "{fix}");
    }
}
