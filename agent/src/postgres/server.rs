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

impl Server {
    /// Asks it.
    ///
    /// # Errors
    /// `Unsupported` for unknown versions, `Invalid` and `Denied` for what must be set or granted first.
    pub async fn ask(session: &Session) -> Result<Self> {
        let action = "ask the PostgreSQL server what it is";
        let row = session.row(action, ABOUT, &[]).await?;
        let number: i32 = column(&row, 0)?;
        let version = PgVersion::from_server_version_num(u32::try_from(number).unwrap_or(0))?;
        let wal_level: &str = column(&row, 3)?;
        if wal_level == "minimal" {
            return Err(refused(
                ErrorKind::Invalid,
                "the server's wal_level is minimal, with which no backup can be taken; set wal_level = replica in \
                 postgresql.conf and restart the server"
                    .into(),
            ));
        }
        let functions: &[&str] = &functions(version);
        let may_execute = session.row(action, MAY_EXECUTE, &[&functions]).await?;
        let has_rights = column(&row, 6)? && column(&row, 7)? && column(&may_execute, 0)?;
        if !has_rights {
            let role: &str = column(&row, 4)?;
            return Err(refused(ErrorKind::Denied, grants(role, functions)));
        }
        let directory = session.row(action, DATA_DIRECTORY, &[]).await?;
        let (text, system_id): (&str, i64) = (column(&row, 1)?, column(&row, 5)?);
        let directory: &str = column(&directory, 0)?;
        Ok(Self {
            version,
            version_text: text.split(' ').next().unwrap_or_default().to_owned(),
            // SQL has no unsigned numbers.
            system_id: SystemId(system_id.cast_unsigned()),
            data_directory: directory.into(),
            is_standby: column(&row, 2)?,
        })
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

fn refused(kind: ErrorKind, message: String) -> AgentError {
    AgentError::Server {
        action: "back the PostgreSQL server up",
        message,
        kind,
    }
}

/// What a superuser would have to do.
fn grants(role: &str, functions: &[&str]) -> String {
    let role = format!("\"{}\"", role.replace('"', "\"\""));
    format!(
        "its role {role} may not; let a superuser run in the database that is connected to: ALTER ROLE {role} REPLICATION; GRANT \
         pg_read_all_settings TO {role}; GRANT EXECUTE ON FUNCTION {} TO {role};",
        functions.join(", ")
    )
}
