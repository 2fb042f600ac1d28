//! Asks a server, and looks at its directories, to find out whether it is fit to be backed up and to archive its WAL.

mod findings;

pub use findings::Finding;

use super::{
    cluster_config::ClusterConfig,
    server::{About, Server, Tablespace, Unfit},
    session::{Session, column},
    take::Order,
};
use crate::{
    config::Config,
    error::{AgentError, Result},
    files::check_allowed,
    wal::{check_caller, user_name},
};
use findings::{Facts, Pushes, WalSpace, findings};
use std::{
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

const SETTINGS: &str = "SELECT current_setting('archive_mode'), current_setting('archive_command'), \
    current_setting('data_checksums'), current_setting('full_page_writes'), current_setting('fsync'), \
    current_setting('max_replication_slots')::int8, (SELECT count(*) FROM pg_replication_slots), \
    extract(epoch FROM current_setting('archive_timeout')::interval)::int8";
/// Only from 15 on.
const LIBRARY: &str = "SELECT current_setting('archive_library', true)";
const ARCHIVER: &str = "SELECT last_failed_wal, \
    last_failed_time IS NOT NULL AND (last_archived_time IS NULL OR last_failed_time > last_archived_time) \
    FROM pg_stat_archiver";

/// Whose server is looked at.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// As the source is called on this agent.
    pub source: &'a str,
    /// As the cluster is called in the agent's configuration.
    pub name: &'a str,
    /// Its section.
    pub cluster: &'a ClusterConfig,
    /// All of the configuration.
    pub config: &'a Config,
}

/// Finds what is wrong.
///
/// # Errors
/// When the server cannot be asked.
pub async fn check(order: &Order, asked: Asked<'_>) -> Result<Vec<Finding>> {
    let session = Session::open(&order.settings, &order.cancel).await?;
    let about = About::ask(&session).await?;
    let has_rights = about.has_rights();
    let unfit = about.unfit().into_iter();
    let mut found: Vec<Finding> = unfit
        .map(|Unfit { what, why, fix, .. }| Finding { what, why, fix })
        .collect();
    // Without these rights the server does not even tell where its files are.
    if has_rights {
        let server = about.server(&session).await?;
        found.extend(findings(&facts(&session, &server, asked).await?));
    }
    Ok(found)
}

async fn facts(session: &Session, server: &Server, asked: Asked<'_>) -> Result<Facts> {
    let action = "ask the PostgreSQL server for its settings";
    let row = session.row(action, SETTINGS, &[]).await?;
    let library = session.row(action, LIBRARY, &[]).await?;
    let archiver = session.row(action, ARCHIVER, &[]).await?;
    let is_on = |at| Ok::<_, AgentError>(column::<&str>(&row, at)? == "on");
    let (library, last_failed): (Option<&str>, Option<&str>) = (column(&library, 0)?, column(&archiver, 0)?);
    let command = column::<&str>(&row, 1)?;
    let config = asked.config;
    let wal = server.data_directory.join("pg_wal");
    let (ready, oldest_ready) = ready(&wal.join("archive_status"));
    let (not_allowed, unreadable) = refused(config, server, &Server::tablespaces(session).await?);
    Ok(Facts {
        source: asked.source.to_owned(),
        name: asked.name.to_owned(),
        socket: config.socket.clone(),
        program: std::env::current_exe().unwrap_or_else(|_| PathBuf::from("/usr/bin/holdfast-agent")),
        data_directory: server.data_directory.clone(),
        is_standby: server.is_standby,
        archive_mode: column::<&str>(&row, 0)?.to_owned(),
        pushes: Pushes::of(command),
        program_is_there: findings::program_of(command).is_none_or(|program| program.exists()),
        socket_is_ours: is_same(findings::socket_of(command).as_deref(), config.socket.as_deref()),
        archive_library: library.unwrap_or_default().to_owned(),
        archive_timeout: Duration::from_secs(u64::try_from(column::<i64>(&row, 7)?).unwrap_or(0)),
        data_checksums: is_on(2)?,
        full_page_writes: is_on(3)?,
        fsync: is_on(4)?,
        slots_max: column(&row, 5)?,
        slots_used: column(&row, 6)?,
        archiver_fails: column(&archiver, 1)?,
        last_failed: last_failed.map(str::to_owned),
        ready,
        oldest_ready,
        wal_space: space(&wal),
        server_user: other_user(&server.data_directory, asked),
        allow: config.allow.clone(),
        not_allowed,
        unreadable,
    })
}

/// Files that wait to be archived, and for how long the first of them does. Counted by the agent: the server tells it to
/// superusers only.
fn ready(dir: &Path) -> (usize, Duration) {
    let (mut count, mut oldest) = (0, Duration::ZERO);
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry
            .path()
            .extension()
            .is_some_and(|extension| extension == "ready")
        {
            count += 1;
            let since = entry.metadata().and_then(|about| about.modified());
            let age = since.ok().and_then(|since| since.elapsed().ok());
            oldest = oldest.max(age.unwrap_or_default());
        }
    }
    (count, oldest)
}

fn space(dir: &Path) -> Option<WalSpace> {
    let about = rustix::fs::statvfs(dir).ok()?;
    Some(WalSpace {
        free: about.f_bavail * about.f_frsize,
        all: about.f_blocks * about.f_frsize,
    })
}

/// Whether two paths lead to one socket; `/run` and `/var/run` do.
fn is_same(named: Option<&Path>, ours: Option<&Path>) -> bool {
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    match (named, ours) {
        (Some(named), Some(ours)) => real(named) == real(ours),
        _ => false,
    }
}

/// Whom the server runs as, if that is not who may push and fetch.
fn other_user(data: &Path, asked: Asked<'_>) -> Option<String> {
    let owner = std::fs::metadata(data).ok()?.uid();
    let may = check_caller(owner, asked.cluster, asked.name);
    may.is_err()
        .then(|| user_name(owner).unwrap_or_else(|| owner.to_string()))
}

/// Places of the cluster that the configuration does not allow, and those that the host does not.
fn refused(
    config: &Config,
    server: &Server,
    tablespaces: &[Tablespace],
) -> (Vec<PathBuf>, Vec<(PathBuf, String)>) {
    let data = &server.data_directory;
    let places = [data.clone(), data.join("pg_wal")]
        .into_iter()
        .chain(tablespaces.iter().map(|tablespace| tablespace.location.clone()));
    let (mut not_allowed, mut unreadable) = (Vec::new(), Vec::new());
    for place in places {
        let real = match place.canonicalize() {
            Ok(real) => real,
            Err(error) => {
                unreadable.push((place, error.to_string()));
                continue;
            }
        };
        if check_allowed(&real, &config.allow).is_err() {
            not_allowed.push(real);
        } else if let Err(error) = std::fs::read_dir(&real) {
            unreadable.push((place, error.to_string()));
        }
    }
    (not_allowed, unreadable)
}
