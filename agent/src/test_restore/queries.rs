//! What a scratch server is asked: which constraints and indexes are not valid, and how many rows every table has.

use super::{findings::Findings, settings};
use crate::{
    error::{AgentError, Result},
    postgres::{Session, column},
};
use holdfast_core::{ErrorKind, HasKind as _};
use holdfast_proto::v1::TableRows;
use std::{
    path::Path,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};
use tokio_postgres::Config;

/// Tables with most rows that are listed.
const LARGEST_MAX: usize = 16;
/// Tables of one database that are counted: a bound on what is held of them.
const TABLES_MAX: i64 = 200_000;
/// Longest wait for a connection: the server is here and idle.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(60);
/// The role that is there in most clusters.
const USUAL_ROLE: &str = "postgres";

/// The one that `initdb` made, which is a superuser for ever, and whether it may log in.
const FIRST_ROLE: &str = "SELECT rolname::text, rolcanlogin FROM pg_roles WHERE oid = 10";
const VERSION: &str = "SELECT current_setting('server_version'), \
    (extract(epoch FROM pg_last_xact_replay_timestamp()) * 1000)::int8";
const DATABASES: &str = "SELECT datname::text, datallowconn FROM pg_database ORDER BY datname";
const CONSTRAINTS: &str = "SELECT conname::text, CASE WHEN conrelid <> 0 THEN conrelid::regclass::text \
    ELSE 'domain ' || contypid::regtype::text END FROM pg_constraint WHERE NOT convalidated ORDER BY 2, 1";
const INDEXES: &str = "SELECT indexrelid::regclass::text, indrelid::regclass::text FROM pg_index WHERE NOT indisvalid ORDER BY 1";
const TABLES: &str = "SELECT c.oid::regclass::text, n.nspname || '.' || c.relname, c.relpersistence = 'u' \
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
    WHERE c.relkind IN ('r', 'm') AND c.relispopulated AND c.relpersistence <> 't' \
    AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast') ORDER BY 2 LIMIT ";

/// What was counted.
#[derive(Debug, Default)]
pub struct Counted {
    /// All of them, those that take no connections too.
    pub databases: u32,
    /// Of users.
    pub tables: u64,
    /// Rows in them.
    pub rows: u64,
    /// Tables with most rows.
    pub largest: Vec<TableRows>,
}

/// The server in a scratch directory.
pub struct Server<'a> {
    /// Where its socket is.
    pub socket: &'a Path,
    /// Its port.
    pub port: u16,
    /// Ends every query.
    pub cancel: &'a Arc<AtomicBool>,
}

/// What a server says of itself.
#[derive(Debug)]
pub struct Known {
    /// A superuser who may log in.
    pub role: String,
    /// Its version.
    pub version: String,
    /// When the last transaction was committed that it replayed, in milliseconds since 1970.
    pub last_commit_at: Option<i64>,
}

impl Server<'_> {
    async fn session(&self, role: &str, database: &str) -> Result<Session> {
        let mut settings = self.settings(role, database);
        settings.options(settings::SESSION);
        Session::open(&settings, self.cancel).await
    }

    fn settings(&self, role: &str, database: &str) -> Config {
        let mut settings = Config::new();
        settings
            .host_path(self.socket)
            .port(self.port)
            .user(role)
            .dbname(database)
            .application_name("holdfast")
            .connect_timeout(CONNECT_TIMEOUT);
        settings
    }

    /// Asks who the superuser is, as any role that there is.
    ///
    /// # Errors
    /// When none of these roles is let in, or the first role may not log in.
    pub async fn known(&self, roles: &[String]) -> Result<Known> {
        let mut roles: Vec<&str> = roles.iter().map(String::as_str).collect();
        roles.push(USUAL_ROLE);
        let mut last = None;
        for role in roles {
            for database in ["postgres", "template1"] {
                let opened = match self.session(role, database).await {
                    // One that is no superuser.
                    Err(error) if error.kind() == ErrorKind::Denied => {
                        Session::open(&self.settings(role, database), self.cancel).await
                    }
                    opened => opened,
                };
                match opened {
                    Ok(session) => return ask(&session).await,
                    Err(error) if error.kind() == ErrorKind::Interrupted => return Err(error),
                    Err(error) => last = Some(error),
                }
            }
        }
        Err(last.unwrap_or_else(|| AgentError::Internal("no role was tried".into())))
    }

    /// Looks through all databases.
    ///
    /// # Errors
    /// When it was cancelled. What cannot be asked is a finding, or a check that was not run.
    pub async fn look_through(&self, role: &str, findings: &mut Findings) -> Result<Counted> {
        let mut counted = Counted::default();
        let mut open = Vec::new();
        match self.databases(role).await {
            Ok(databases) => {
                counted.databases = u32::try_from(databases.len()).unwrap_or(u32::MAX);
                open.extend(
                    databases
                        .into_iter()
                        .filter(|(_, open)| *open)
                        .map(|(name, _)| name),
                );
            }
            Err(error) => {
                let why = unless_interrupted(error)?;
                for name in ["constraints", "indexes", "rows"] {
                    findings.not_run(name, format!("the databases cannot be listed: {why}"));
                }
                return Ok(counted);
            }
        }
        let (checked, closed) = (open.len(), counted.databases as usize - open.len());
        let of = format!("{checked} databases, {closed} that take no connections left out");
        self.not_valid(role, &open, &of, "constraints", CONSTRAINTS, findings)
            .await?;
        self.not_valid(role, &open, &of, "indexes", INDEXES, findings)
            .await?;
        self.count(role, &open, &of, &mut counted, findings).await?;
        Ok(counted)
    }

    async fn databases(&self, role: &str) -> Result<Vec<(String, bool)>> {
        let session = self.session(role, "template1").await?;
        let rows = session.rows("list the databases", DATABASES).await?;
        rows.iter()
            .map(|row| Ok((column(row, 0)?, column(row, 1)?)))
            .collect()
    }

    /// One kind of object that says of itself that it is not valid.
    async fn not_valid(
        &self,
        role: &str,
        databases: &[String],
        of: &str,
        name: &str,
        query: &str,
        findings: &mut Findings,
    ) -> Result<()> {
        let before = findings.count;
        let mut failed = None;
        for database in databases {
            let found = async {
                let session = self.session(role, database).await?;
                let rows = session.rows("look for what is not valid", query).await?;
                let named = rows.iter().map(|row| Ok((column(row, 0)?, column(row, 1)?)));
                named.collect::<Result<Vec<(String, String)>>>()
            };
            match found.await {
                Ok(found) => {
                    for (object, table) in found {
                        let (what, why, fix) = told(name, database, &object, &table);
                        findings.add(what, why, fix);
                    }
                }
                Err(error) => note_failure(error, database, findings, &mut failed)?,
            }
        }
        match failed {
            Some(why) => findings.not_run(name, format!("not in all of {of}: {why}")),
            None => findings.checked(name, before, of),
        }
        Ok(())
    }

    async fn count(
        &self,
        role: &str,
        databases: &[String],
        of: &str,
        counted: &mut Counted,
        findings: &mut Findings,
    ) -> Result<()> {
        let before = findings.count;
        let (mut failed, mut unlogged) = (None, 0_u64);
        for database in databases {
            let looked = async {
                let session = self.session(role, database).await?;
                let tables = session
                    .rows("list the tables", &format!("{TABLES}{}", TABLES_MAX + 1))
                    .await?;
                let tables = tables
                    .iter()
                    .map(|row| Ok((column(row, 0)?, column(row, 1)?, column(row, 2)?)));
                let tables = tables.collect::<Result<Vec<(String, String, bool)>>>()?;
                Ok::<_, AgentError>((session, tables))
            };
            let (mut session, mut tables) = match looked.await {
                Ok(looked) => looked,
                Err(error) => {
                    note_failure(error, database, findings, &mut failed)?;
                    continue;
                }
            };
            if tables.len() as i64 > TABLES_MAX {
                tables.pop();
                failed = Some(format!("{database} has more than {TABLES_MAX} tables"));
            }
            for (quoted, table, is_unlogged) in tables {
                counted.tables += 1;
                unlogged += u64::from(is_unlogged);
                let query = format!("SELECT count(*) FROM ONLY {quoted}");
                let rows = match session.row("count the rows", &query, &[]).await {
                    Ok(row) => column::<i64>(&row, 0)?,
                    Err(error) => {
                        let place = format!("{database}, {table}");
                        note_failure(error, &place, findings, &mut failed)?;
                        // What ended the query may have ended the session.
                        match self.session(role, database).await {
                            Ok(fresh) => session = fresh,
                            Err(error) => {
                                note_failure(error, database, findings, &mut failed)?;
                                break;
                            }
                        }
                        continue;
                    }
                };
                counted.add(database, table, rows.unsigned_abs());
            }
        }
        let mut detail = format!("every row of every table read, {of}");
        if unlogged > 0 {
            detail.push_str(&format!(
                "; {unlogged} unlogged tables are empty after any recovery"
            ));
        }
        match failed {
            Some(why) => findings.not_run("rows", format!("not of all tables: {why}")),
            None => findings.checked("rows", before, detail),
        }
        Ok(())
    }
}

impl Counted {
    fn add(&mut self, database: &str, table: String, rows: u64) {
        self.rows += rows;
        let at = self.largest.partition_point(|known| known.rows >= rows);
        if at < LARGEST_MAX {
            self.largest.truncate(LARGEST_MAX - 1);
            let found = TableRows {
                database: database.into(),
                table,
                rows,
            };
            self.largest.insert(at.min(self.largest.len()), found);
        }
    }
}

async fn ask(session: &Session) -> Result<Known> {
    let role = session.row("ask for the first role", FIRST_ROLE, &[]).await?;
    let about = session
        .row("ask the server for its version", VERSION, &[])
        .await?;
    let known = Known {
        role: column(&role, 0)?,
        version: column(&about, 0)?,
        last_commit_at: column(&about, 1)?,
    };
    if column(&role, 1)? {
        return Ok(known);
    }
    Err(AgentError::Server {
        action: "connect to the scratch server as a superuser",
        message: format!(
            "the role that initdb made, {:?}, may not log in, and no other is known to be a superuser",
            known.role
        ),
        kind: ErrorKind::Denied,
    })
}

fn told(name: &str, database: &str, object: &str, table: &str) -> (String, String, String) {
    if name == "indexes" {
        return (
            format!("index {object} ({database})"),
            format!("it is not valid, so that no query of {table} uses it"),
            format!("in the cluster: REINDEX INDEX CONCURRENTLY {object};"),
        );
    }
    (
        format!("constraint {object} of {table} ({database})"),
        "it was never validated: rows from before it may break it".into(),
        match table.strip_prefix("domain ") {
            Some(domain) => {
                format!("in the cluster: ALTER DOMAIN {domain} VALIDATE CONSTRAINT \"{object}\";")
            }
            None => format!("in the cluster: ALTER TABLE {table} VALIDATE CONSTRAINT \"{object}\";"),
        },
    )
}

/// What the cluster's own data causes is a finding. What this machine lacks keeps a check from being whole.
fn note_failure(
    error: AgentError,
    place: &str,
    findings: &mut Findings,
    failed: &mut Option<String>,
) -> Result<()> {
    let kind = error.kind();
    let text = unless_interrupted(error)?;
    // A library of an extension that is not installed here.
    let is_lacking = text.contains("$libdir");
    if matches!(kind, ErrorKind::Corrupt | ErrorKind::Io) && !is_lacking {
        findings.add(place, text, "restore it from a snapshot that has it whole");
    } else {
        failed.get_or_insert(format!("{place}: {text}"));
    }
    Ok(())
}

/// Why something failed, for people; passes the wish to stop on.
fn unless_interrupted(error: AgentError) -> Result<String> {
    match error.kind() {
        ErrorKind::Interrupted => Err(error),
        _ => Ok(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_with_most_rows_are_listed() {
        let mut counted = Counted::default();
        for rows in (0..100).chain([1000, 5]) {
            counted.add("shop", format!("public.t{rows}"), rows);
        }
        assert_eq!(counted.largest.len(), LARGEST_MAX);
        let rows: Vec<u64> = counted.largest.iter().map(|table| table.rows).collect();
        assert_eq!(rows[..3], [1000, 99, 98]);
        assert!(rows.is_sorted_by(|a, b| a >= b));
        assert_eq!(counted.rows, 4950 + 1005);
    }

    #[test]
    fn damage_is_found_and_what_this_machine_lacks_is_not() {
        let failure = |kind, message: &str| AgentError::Server {
            action: "count the rows",
            message: message.into(),
            kind,
        };
        let mut findings = Findings::default();
        let mut failed = None;
        let damaged = failure(ErrorKind::Corrupt, "invalid page in block 3");
        note_failure(damaged, "shop, public.t", &mut findings, &mut failed).unwrap();
        assert_eq!((findings.count, failed.clone()), (1, None));
        let lacking = failure(ErrorKind::Io, "could not access file \"$libdir/x\"");
        note_failure(lacking, "shop, public.u", &mut findings, &mut failed).unwrap();
        assert_eq!(findings.count, 1);
        assert!(failed.unwrap().starts_with("shop, public.u: "));
        let stopped = AgentError::Interrupted("x".into());
        assert!(note_failure(stopped, "shop", &mut findings, &mut None).is_err());
    }

    #[test]
    fn what_is_not_valid_is_told_with_what_mends_it() {
        let (what, why, fix) = told("indexes", "shop", "s.i", "s.t");
        assert_eq!(what, "index s.i (shop)");
        assert!(why.contains("s.t") && fix.ends_with("CONCURRENTLY s.i;"));
        let (_, _, fix) = told("constraints", "shop", "c", "s.t");
        assert!(fix.ends_with("ALTER TABLE s.t VALIDATE CONSTRAINT \"c\";"));
        let (_, _, fix) = told("constraints", "shop", "c", "domain s.d");
        assert!(fix.contains("ALTER DOMAIN s.d "));
    }
}
