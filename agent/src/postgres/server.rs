//! What a server says of itself before a backup, and why it might not be backed up.

use super::session::{Session, column};
use crate::error::{AgentError, Result};
use holdfast_core::ErrorKind;
use holdfast_postgres::{PgVersion, SystemId};
use std::path::PathBuf;

const ABOUT: &str = "SELECT current_setting('server_version_num')::int4, current_setting('server_version'), \
    pg_is_in_recovery(), current_setting('wal_level'), current_user::text, \
    (SELECT system_identifier FROM pg_control_system()), \
    (SELECT rolsuper OR rolreplication FROM pg_roles WHERE rolname = current_user), \
    pg_has_role('pg_read_all_settings', 'USAGE')";
const MAY_EXECUTE: &str =
    "SELECT bool_and(has_function_privilege(name, 'EXECUTE')) FROM unnest($1::text[]) AS name";
const DATA_DIRECTORY: &str = "SELECT current_setting('data_directory')";
const TABLESPACES: &str = "SELECT oid, spcname::text, pg_tablespace_location(oid) FROM pg_tablespace \
    WHERE spcname NOT IN ('pg_default', 'pg_global') ORDER BY oid";

/// A server that can be backed up.
#[derive(Debug)]
pub(super) struct Server {
    pub version: PgVersion,
    /// As people know it: `15.10`.
    pub version_text: String,
    pub system_id: SystemId,
    /// As the server names it; links in it are not followed.
    pub data_directory: PathBuf,
    /// It replays another server's WAL, and takes no writes.
    pub is_standby: bool,
}

/// A tablespace outside the data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tablespace {
    pub oid: u32,
    pub name: String,
    pub location: PathBuf,
}

/// What keeps a server from being backed up at all.
#[derive(Debug)]
pub(super) struct Unfit {
    /// A setting, or a role.
    pub what: String,
    pub why: String,
    /// What to type, and where.
    pub fix: String,
    kind: ErrorKind,
}

/// What a server says of itself to everybody who may connect.
#[derive(Debug)]
pub(super) struct About {
    version: PgVersion,
    version_text: String,
    system_id: SystemId,
    is_standby: bool,
    wal_level: String,
    role: String,
    has_rights: bool,
}

impl About {
    /// Asks it.
    ///
    /// # Errors
    /// `Unsupported` for unknown versions.
    pub async fn ask(session: &Session) -> Result<Self> {
        let action = "ask the PostgreSQL server what it is";
        let row = session.row(action, ABOUT, &[]).await?;
        let number: i32 = column(&row, 0)?;
        let version = PgVersion::from_server_version_num(u32::try_from(number).unwrap_or(0))?;
        let functions: &[&str] = &functions(version);
        let may_execute = session.row(action, MAY_EXECUTE, &[&functions]).await?;
        let text = |at| column::<&str>(&row, at).map(str::to_owned);
        let system_id: i64 = column(&row, 5)?;
        Ok(Self {
            version,
            version_text: text(1)?.split(' ').next().unwrap_or_default().to_owned(),
            // SQL has no unsigned numbers.
            system_id: SystemId(system_id.cast_unsigned()),
            is_standby: column(&row, 2)?,
            wal_level: text(3)?,
            role: text(4)?,
            has_rights: column(&row, 6)? && column(&row, 7)? && column(&may_execute, 0)?,
        })
    }

    /// Why it cannot be backed up, in the order in which that is mended.
    pub fn unfit(&self) -> Vec<Unfit> {
        let mut found = Vec::new();
        if self.wal_level == "minimal" {
            found.push(Unfit {
                what: "wal_level".into(),
                why: "it is minimal, with which no backup can be taken".into(),
                fix: "ALTER SYSTEM SET wal_level = replica; then restart the server".into(),
                kind: ErrorKind::Invalid,
            });
        }
        if !self.has_rights {
            let role = format!("\"{}\"", self.role.replace('"', "\"\""));
            found.push(Unfit {
                what: format!("role {role}"),
                why: "it may not begin a backup; let a superuser run this line in the database that the agent connects to"
                    .into(),
                fix: format!(
                    "ALTER ROLE {role} REPLICATION; GRANT pg_read_all_settings TO {role}; GRANT EXECUTE ON FUNCTION {} TO {role};",
                    functions(self.version).join(", ")
                ),
                kind: ErrorKind::Denied,
            });
        }
        found
    }

    /// Whether it tells more than that.
    pub fn has_rights(&self) -> bool {
        self.has_rights
    }

    /// Asks for the rest, which needs the rights.
    pub async fn server(self, session: &Session) -> Result<Server> {
        let action = "ask the PostgreSQL server what it is";
        let directory = session.row(action, DATA_DIRECTORY, &[]).await?;
        let directory: &str = column(&directory, 0)?;
        Ok(Server {
            version: self.version,
            version_text: self.version_text,
            system_id: self.system_id,
            data_directory: directory.into(),
            is_standby: self.is_standby,
        })
    }
}

impl Server {
    /// Asks it.
    ///
    /// # Errors
    /// `Unsupported` for unknown versions, `Invalid` and `Denied` for what must be set or granted first.
    pub async fn ask(session: &Session) -> Result<Self> {
        let about = About::ask(session).await?;
        match about.unfit().into_iter().next() {
            None => about.server(session).await,
            Some(Unfit { what, why, fix, kind }) => Err(AgentError::Server {
                action: "back the PostgreSQL server up",
                message: format!("{what}: {why}: {fix}"),
                kind,
            }),
        }
    }

    /// Its tablespaces now, but for those that lie in the data directory.
    pub async fn tablespaces(session: &Session) -> Result<Vec<Tablespace>> {
        let rows = session
            .rows("ask the PostgreSQL server for its tablespaces", TABLESPACES)
            .await?;
        let mut found = Vec::with_capacity(rows.len());
        for row in rows {
            let location: Option<&str> = column(&row, 2)?;
            // Relative, or none: in place.
            if let Some(location) = location.filter(|location| location.starts_with('/')) {
                found.push(Tablespace {
                    oid: column(&row, 0)?,
                    name: column(&row, 1)?,
                    location: location.into(),
                });
            }
        }
        Ok(found)
    }
}

/// What begins and ends a backup in that version.
fn functions(version: PgVersion) -> [&'static str; 2] {
    if version >= PgVersion::V15 {
        ["pg_backup_start(text, boolean)", "pg_backup_stop(boolean)"]
    } else {
        [
            "pg_start_backup(text, boolean, boolean)",
            "pg_stop_backup(boolean, boolean)",
        ]
    }
}
