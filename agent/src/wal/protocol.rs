//! What clients and the agent say to each other over the socket: a line of JSON each, then the bytes of a file.

use crate::error::{AgentError, Result};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::path::PathBuf;
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// Longest line: two paths, or an error's text.
const LINE_MAX: usize = 16 * 1024;
/// Longest error that is told.
pub(super) const TEXT_MAX: usize = 1000;

/// What a client asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) enum Request {
    /// Keep a file.
    Push {
        /// Name of the source on this agent.
        source: String,
        /// The server's data directory: where it runs its commands.
        data: PathBuf,
        /// The file, absolute or relative to the data directory.
        path: PathBuf,
    },
    /// Give a file.
    Fetch {
        /// Name of the source: `NAME` on this agent, or `AGENT/NAME`.
        source: String,
        /// The file's name.
        name: String,
        /// How long to try, in milliseconds.
        patience_ms: u64,
        /// Absent is absent, also where an agent may hold it that cannot be asked.
        #[serde(default)]
        accept_loss: bool,
    },
}

/// What it is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) enum Answer {
    /// It is kept.
    Kept,
    /// So many bytes of the file follow.
    File {
        /// Bytes.
        len: u64,
    },
    /// The catalog is sure that there is no such file.
    Absent,
    /// It could not be done.
    Failed {
        /// Why, and what to do.
        why: String,
    },
}

/// Sends one line.
pub(super) async fn send<T: Serialize>(out: &mut (impl AsyncWrite + Unpin), message: &T) -> Result<()> {
    let mut line = serde_json::to_vec(message).map_err(|error| AgentError::Internal(error.to_string()))?;
    line.push(b'\n');
    let sent = async {
        out.write_all(&line).await?;
        out.flush().await
    };
    sent.await
        .map_err(|error| broken(&format!("it does not listen any more ({error})")))
}

/// Receives one line, bounded.
pub(super) async fn receive<T: DeserializeOwned>(input: &mut (impl AsyncBufRead + Unpin)) -> Result<T> {
    let mut line = Vec::new();
    input
        .take(LINE_MAX as u64)
        .read_until(b'\n', &mut line)
        .await
        .map_err(|error| broken(&error.to_string()))?;
    if line.last() != Some(&b'\n') {
        return Err(broken(if line.len() < LINE_MAX {
            "it ended before it said anything whole"
        } else {
            "it said more than fits a line"
        }));
    }
    serde_json::from_slice(&line).map_err(|error| broken(&format!("it is not understood ({error})")))
}

fn broken(why: &str) -> AgentError {
    AgentError::Server {
        action: "talk to the other end of the agent's socket",
        message: why.to_owned(),
        kind: holdfast_core::ErrorKind::Unavailable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::BufReader;

    async fn heard(bytes: &[u8]) -> Result<Request> {
        receive(&mut BufReader::new(bytes)).await
    }

    #[tokio::test]
    async fn what_is_sent_is_received() {
        let request = Request::Push {
            source: "main".into(),
            data: "/var/lib/pg".into(),
            path: "pg_wal/00000001000000000000000A".into(),
        };
        let mut line = Vec::new();
        send(&mut line, &request).await.unwrap();
        assert_eq!(heard(&line).await.unwrap(), request);
        for answer in [
            Answer::Kept,
            Answer::File { len: 3 },
            Answer::Absent,
            Answer::Failed { why: "a\nb".into() },
        ] {
            let mut line = Vec::new();
            send(&mut line, &answer).await.unwrap();
            let back: Answer = receive(&mut BufReader::new(&line[..])).await.unwrap();
            assert_eq!(back, answer);
        }
    }

    #[tokio::test]
    async fn what_is_no_request_is_refused_within_bounds() {
        for bad in [
            &b""[..],
            b"{",
            b"\n",
            b"{\"push\":{}}\n",
            b"{\"fetch\":{\"source\":\"main\",\"name\":\"x\",\"patience_ms\":1,\"more\":1}}\n",
            b"{\"push\":{\"source\":\"a\",\"data\":\"/\",\"path\":\"b\"}}",
            &[b'x'; LINE_MAX + 10],
        ] {
            assert!(heard(bad).await.is_err(), "{:?}", &bad[..bad.len().min(40)]);
        }
    }
}
