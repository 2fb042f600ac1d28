//! How to reach a cluster: a section of `agent.toml`.

use crate::{
    config::Config,
    error::{AgentError, Result},
};
use holdfast_core::{Name, Size, SourceRef};
use serde::Deserialize;
use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio_postgres::config::Host;
use zeroize::Zeroizing;

/// Where servers put their socket unless told otherwise.
const SOCKET_DIR: &str = "/var/run/postgresql";
/// Role and database unless named: they are there in every cluster.
const DEFAULT: &str = "postgres";
/// Longest wait for the server to take the connection, unless named.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest password file.
const PASSWORD_MAX: usize = 4096;

/// The section `[postgres.NAME]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterConfig {
    /// As libpq has it, for example `host=/var/run/postgresql port=5433 user=holdfast`. Without a host the usual socket
    /// directory, without a user or database `postgres`.
    #[serde(default)]
    pub connection: String,
    /// A file that holds the role's password, and nothing else but a line end.
    pub password_file: Option<PathBuf>,
    /// Whom the server runs as, by name or number: the only one besides root who may push and fetch its WAL. `postgres`
    /// unless named.
    pub user: Option<String>,
    /// The source whose cluster this server is one of, as AGENT/NAME, if that is another agent's: this agent is a member of it.
    pub source: Option<SourceRef>,
    /// Sources of other agents in this vault, as AGENT/NAME, whose WAL that user may fetch too: for standbys and copies here.
    #[serde(default)]
    pub fetch: Vec<SourceRef>,
    /// Most bytes of WAL that may wait in the agent's state directory for the controllers, while the server is told that it is
    /// archived; as "1GiB". Nothing waits there unless named.
    pub spool: Option<Size>,
}

/// Bounds of a spool: a few segments make it worth it, and beyond the other nobody means it.
const SPOOL: std::ops::RangeInclusive<u64> = 32 << 20..=4 << 40;

impl ClusterConfig {
    /// The settings of a connection, still without a password.
    ///
    /// # Errors
    /// What is wrong with them, without repeating any value.
    pub fn settings(&self) -> std::result::Result<tokio_postgres::Config, String> {
        let mut settings: tokio_postgres::Config = self.connection.parse().map_err(|error| {
            let why = std::error::Error::source(&error).map_or_else(String::new, |why| format!(": {why}"));
            format!("its connection is not understood{why}")
        })?;
        if settings.get_password().is_some() {
            return Err(
                "its connection holds a password: write it to a file and name that in password_file".into(),
            );
        }
        if settings.get_hosts().len() > 1 || settings.get_hostaddrs().len() > 1 {
            return Err(
                "its connection names several hosts: an agent backs up the server on its own host".into(),
            );
        }
        let is_here = settings.get_hosts().iter().all(is_this_host)
            && settings.get_hostaddrs().iter().all(IpAddr::is_loopback);
        if !is_here {
            return Err(
                "its connection leads to another host: an agent reads the files of a server on its own host; name the \
                 directory of the server's socket, or localhost"
                    .into(),
            );
        }
        if settings.get_hosts().is_empty() && settings.get_hostaddrs().is_empty() {
            settings.host_path(SOCKET_DIR);
        }
        if settings.get_user().is_none() {
            settings.user(DEFAULT);
        }
        if settings.get_dbname().is_none() {
            settings.dbname(DEFAULT);
        }
        if settings.get_connect_timeout().is_none() {
            settings.connect_timeout(CONNECT_TIMEOUT);
        }
        settings.application_name("holdfast");
        Ok(settings)
    }

    /// What is wrong with the spool.
    ///
    /// # Errors
    /// A size out of bounds.
    pub fn check_spool(&self) -> std::result::Result<(), String> {
        match self.spool {
            Some(Size(bytes)) if !SPOOL.contains(&bytes) => Err(format!(
                "spool of {bytes} bytes: it must be 32MiB to 4TiB, or left out for none"
            )),
            _ => Ok(()),
        }
    }

    /// The same with the password, if a file holds one.
    ///
    /// # Errors
    /// `Invalid`, or when the file cannot be read.
    pub fn settings_with_password(&self) -> Result<tokio_postgres::Config> {
        let mut settings = self.settings().map_err(AgentError::Invalid)?;
        if let Some(path) = &self.password_file {
            settings.password(password(path)?.as_slice());
        }
        Ok(settings)
    }
}

fn is_this_host(host: &Host) -> bool {
    match host {
        Host::Unix(_) => true,
        Host::Tcp(name) => {
            name == "localhost" || name.parse().is_ok_and(|address: IpAddr| address.is_loopback())
        }
    }
}

fn password(path: &Path) -> Result<Zeroizing<Vec<u8>>> {
    let mut password = Zeroizing::new(holdfast_net::durable::read(path, PASSWORD_MAX)?);
    while password.last().is_some_and(|byte| matches!(byte, b'\n' | b'\r')) {
        password.pop();
    }
    Ok(password)
}

/// The section of `agent.toml` whose server a source is of, with its name: for another agent's source one that says so, for one
/// of our own the section of that name, or the only one that says nothing else.
#[must_use]
pub fn section_of<'c>(
    config: &'c Config,
    own: &Name,
    source: &SourceRef,
) -> Option<(&'c Name, &'c ClusterConfig)> {
    let mut said = config
        .postgres
        .iter()
        .filter(|(_, section)| section.source.as_ref() == Some(source));
    if let Some(section) = said.next() {
        return Some(section);
    }
    if source.agent != *own {
        return None;
    }
    let mut silent = config
        .postgres
        .iter()
        .filter(|(_, section)| section.source.is_none());
    let named = silent.clone().find(|(name, _)| **name == source.source);
    named.or_else(|| silent.next().filter(|_| config.postgres.len() == 1))
}

/// The section that backs a source up: for one of our own the section `name`, for another agent's the one that says so.
///
/// # Errors
/// `NotAllowed` with the lines that would allow it; `Invalid` for what is no name.
pub fn cluster_of<'c>(
    config: &'c Config,
    own: &Name,
    source: &SourceRef,
    name: &str,
) -> Result<&'c ClusterConfig> {
    if source.agent != *own {
        let section = section_of(config, own, source);
        return section
            .map(|(_, section)| section)
            .ok_or_else(|| not_a_member(source));
    }
    let section = cluster(config, name)?;
    match &section.source {
        Some(other) if other != source => Err(AgentError::NotAllowed(format!(
            "[postgres.{name}] in agent.toml on this host says that its server is of the source {other}, not of {source}"
        ))),
        _ => Ok(section),
    }
}

/// Refuses another agent's source of which no section speaks.
pub fn not_a_member(source: &SourceRef) -> AgentError {
    AgentError::NotAllowed(format!(
        "{source} is a source of another agent, and agent.toml on this host does not say that a server here is of its cluster; add \
         this line to the server's section [postgres.NAME], and restart the agent:\nsource = \"{source}\""
    ))
}

/// The section of that cluster.
///
/// # Errors
/// `NotAllowed` with the lines that would allow it; `Invalid` for what is no name.
pub fn cluster<'c>(config: &'c Config, name: &str) -> Result<&'c ClusterConfig> {
    let name: Name = name
        .parse()
        .map_err(|error: holdfast_core::NameError| AgentError::Invalid(error.to_string()))?;
    config.postgres.get(&name).ok_or_else(|| {
        let key = if name.as_str().contains('.') {
            format!("{:?}", name.as_str())
        } else {
            name.to_string()
        };
        AgentError::NotAllowed(format!(
            "the PostgreSQL cluster {name} is not allowed on this host; add these lines to agent.toml, with its data directory \
             in `allow`, and restart the agent:\n[postgres.{key}]\nconnection = \"host={SOCKET_DIR} user={DEFAULT}\""
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(connection: &str) -> std::result::Result<tokio_postgres::Config, String> {
        let connection = connection.into();
        ClusterConfig {
            connection,
            ..ClusterConfig::default()
        }
        .settings()
    }

    #[test]
    fn the_usual_socket_is_the_default() {
        let settings = settings("").unwrap();
        assert_eq!(settings.get_hosts(), [Host::Unix(SOCKET_DIR.into())]);
        assert_eq!(
            (settings.get_user(), settings.get_dbname()),
            (Some("postgres"), Some("postgres"))
        );
    }

    #[test]
    fn only_servers_of_this_host_are_reached() {
        for here in [
            "host=/tmp/x",
            "host=localhost",
            "host=127.0.0.2 port=5433",
            "host=::1",
            "hostaddr=127.0.0.1",
        ] {
            assert!(settings(here).is_ok(), "{here}");
        }
        for away in [
            "host=db.example",
            "host=10.0.0.1",
            "hostaddr=10.0.0.1",
            "host=localhost hostaddr=10.0.0.1",
        ] {
            assert!(settings(away).unwrap_err().contains("another host"), "{away}");
        }
        assert!(settings("host=/a,/b").unwrap_err().contains("several hosts"));
    }

    #[test]
    fn secrets_and_mistakes_are_refused_without_repeating_them() {
        let error = settings("host=/tmp password=hunter2").unwrap_err();
        assert!(
            error.contains("password_file") && !error.contains("hunter2"),
            "{error}"
        );
        let error = settings("host=/tmp prot=5433").unwrap_err();
        assert!(error.contains("prot"), "{error}");
    }

    fn config(text: &str) -> Config {
        toml::from_str(&format!("state_dir = '/x'\n{text}")).unwrap()
    }

    #[test]
    fn a_section_serves_the_source_that_it_names_and_no_other() {
        let own: Name = "db2".parse().unwrap();
        let find = |config: &Config, source: &str| {
            section_of(config, &own, &source.parse().unwrap()).map(|(name, _)| name.to_string())
        };
        let member = config("[postgres.main]\nsource = 'db1/main'\n[postgres.other]");
        assert_eq!(find(&member, "db1/main").as_deref(), Some("main"));
        assert_eq!(find(&member, "db2/other").as_deref(), Some("other"));
        // The section of that name serves another source, and no other section is meant.
        assert_eq!(find(&member, "db2/main"), None);
        assert_eq!(find(&member, "db1/other"), None);
        // As it was before there were members.
        let plain = config("[postgres.main]");
        assert_eq!(find(&plain, "db2/anything").as_deref(), Some("main"));
        assert_eq!(find(&plain, "db1/main"), None);
        assert_eq!(
            find(&config("[postgres.main]\nsource = 'db1/main'"), "db2/main"),
            None
        );

        let backs_up = |source: &str, name| cluster_of(&member, &own, &source.parse().unwrap(), name).is_ok();
        assert!(backs_up("db1/main", "whatever") && backs_up("db2/other", "other"));
        assert!(!backs_up("db2/main", "main") && !backs_up("db1/other", "other"));
    }

    #[test]
    fn a_password_is_the_content_of_its_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "s3cret pass\r\n").unwrap();
        assert_eq!(password(file.path()).unwrap().as_slice(), b"s3cret pass");
    }
}
