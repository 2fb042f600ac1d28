//! One session with a server, watched while it lasts.

use crate::error::{AgentError, Result};
use holdfast_core::ErrorKind;
use std::{
    error::Error as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::task::JoinHandle;
use tokio_postgres::{Client, NoTls, Row, error::SqlState, types::ToSql};
use tokio_util::sync::CancellationToken;

/// How long a query goes on before it is seen that the run was cancelled.
const CANCEL_LOOK: Duration = Duration::from_millis(100);
/// Longest wait for the server to take the wish to end a query.
const CANCEL_PATIENCE: Duration = Duration::from_secs(2);
/// Settings of roles and databases that would end a session or query of ours, as far as the server knows them; and
/// nothing is found by a path that others may write to.
const SETTINGS: &str = "SELECT set_config(name, '0', false) FROM pg_settings WHERE name IN \
    ('statement_timeout', 'lock_timeout', 'idle_session_timeout', 'idle_in_transaction_session_timeout', 'transaction_timeout'); \
    SET search_path = pg_catalog";

/// A session. The server undoes what hangs on it when it is dropped.
pub(crate) struct Session {
    client: Client,
    connection: JoinHandle<()>,
    closed: CancellationToken,
    cancel: Arc<AtomicBool>,
}

impl Drop for Session {
    fn drop(&mut self) {
        // Closes the socket at once: a farewell would wait for the query that runs.
        self.connection.abort();
    }
}

impl Session {
    /// Connects; `cancel` ends every query.
    pub async fn open(settings: &tokio_postgres::Config, cancel: &Arc<AtomicBool>) -> Result<Self> {
        let (client, connection) = settings
            .connect(NoTls)
            .await
            .map_err(|error| failure("connect to the PostgreSQL server", &error))?;
        let closed = CancellationToken::new();
        let on_end = closed.clone().drop_guard();
        let connection = tokio::spawn(async move {
            let _on_end = on_end;
            if let Err(error) = connection.await {
                tracing::warn!(%error, "the session with the PostgreSQL server broke");
            }
        });
        let session = Self {
            client,
            connection,
            closed,
            cancel: Arc::clone(cancel),
        };
        let set = session.client.batch_execute(SETTINGS);
        session.watched("set up the session", set).await?;
        Ok(session)
    }

    /// The one row that a query brings.
    pub async fn row(&self, action: &'static str, sql: &str, params: &[&(dyn ToSql + Sync)]) -> Result<Row> {
        self.watched(action, self.client.query_one(sql, params)).await
    }

    /// All rows that a query brings.
    pub async fn rows(&self, action: &'static str, sql: &str) -> Result<Vec<Row>> {
        self.watched(action, self.client.query(sql, &[])).await
    }

    /// Returns when the session has ended.
    pub async fn closed(&self) {
        self.closed.cancelled().await;
    }

    /// What to say when it ended too early.
    pub fn lost() -> AgentError {
        AgentError::Server {
            action: "hold the session with the PostgreSQL server",
            message: "it ended before the backup did; see the server's log".into(),
            kind: ErrorKind::Unavailable,
        }
    }

    /// Waits for an answer, or for the run's end, which ends the query too.
    async fn watched<T>(
        &self,
        action: &'static str,
        query: impl Future<Output = std::result::Result<T, tokio_postgres::Error>>,
    ) -> Result<T> {
        tokio::select! {
            answer = query => answer.map_err(|error| failure(action, &error)),
            () = self.cancelled() => {
                // A server that waits for a checkpoint would not notice a closed socket.
                let end = self.client.cancel_token();
                let _ = tokio::time::timeout(CANCEL_PATIENCE, end.cancel_query(NoTls)).await;
                Err(AgentError::Interrupted("the run was cancelled or its lease ended".into()))
            }
        }
    }

    async fn cancelled(&self) {
        while !self.cancel.load(Ordering::Relaxed) {
            tokio::time::sleep(CANCEL_LOOK).await;
        }
    }
}

/// A value of a row.
pub(crate) fn column<'r, T: tokio_postgres::types::FromSql<'r>>(row: &'r Row, index: usize) -> Result<T> {
    row.try_get(index)
        .map_err(|error| failure("read the PostgreSQL server's answer", &error))
}

fn failure(action: &'static str, error: &tokio_postgres::Error) -> AgentError {
    let Some(refusal) = error.as_db_error() else {
        let why = error.source().map_or_else(String::new, |why| format!(": {why}"));
        return AgentError::Server {
            action,
            message: format!("{error}{why}"),
            kind: ErrorKind::Unavailable,
        };
    };
    let mut message = refusal.message().to_owned();
    for more in [refusal.detail(), refusal.hint()].into_iter().flatten() {
        message.push_str("; ");
        message.push_str(more);
    }
    AgentError::Server {
        action,
        message,
        kind: kind_of(refusal.code()),
    }
}

/// By the classes of SQLSTATE.
fn kind_of(code: &SqlState) -> ErrorKind {
    match code.code().as_bytes() {
        [b'2', b'8', ..] | b"42501" => ErrorKind::Denied,
        b"57014" => ErrorKind::Interrupted,
        b"53100" => ErrorKind::NoSpace,
        [b'0', b'8', ..] | [b'5', b'3', ..] | [b'5', b'7', ..] => ErrorKind::Unavailable,
        [b'5', b'5', ..] => ErrorKind::Conflict,
        [b'5', b'8', ..] => ErrorKind::Io,
        [b'X', b'X', ..] => ErrorKind::Corrupt,
        _ => ErrorKind::Invalid,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_have_the_kind_of_their_class() {
        for (code, kind) in [
            (SqlState::INVALID_PASSWORD, ErrorKind::Denied),
            (SqlState::INSUFFICIENT_PRIVILEGE, ErrorKind::Denied),
            (SqlState::TOO_MANY_CONNECTIONS, ErrorKind::Unavailable),
            (SqlState::CANNOT_CONNECT_NOW, ErrorKind::Unavailable),
            (SqlState::CONFIGURATION_LIMIT_EXCEEDED, ErrorKind::Unavailable),
            (SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE, ErrorKind::Conflict),
            (SqlState::UNDEFINED_FUNCTION, ErrorKind::Invalid),
        ] {
            assert_eq!(kind_of(&code), kind, "{code:?}");
        }
    }
}
