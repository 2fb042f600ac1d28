//! What clients and the agent say to each other over the socket: a line of JSON each, and handles of open files beside it.
//!
//! A file that is fetched goes over as a handle, so that none of its bytes passes through the socket. The client hands over
//! empty files without a name first, made where the wanted one belongs: what the agent writes into one of them only needs its
//! name then.

use crate::error::{AgentError, Result};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{BorrowedFd, OwnedFd},
    path::PathBuf,
};
use tokio::{io::Interest, net::UnixStream};

/// Longest line: two paths, or an error's text.
const LINE_MAX: usize = 16 * 1024;
/// Bytes that are received at a time: nearly all lines are shorter.
const BUFFER: usize = 4096;
/// Most handles beside a line: one for the file, and those for what is fetched ahead.
pub(super) const HANDLES_MAX: usize = 5;
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
    /// Here is a handle of the file, at its beginning.
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

/// Sends one line, and handles with it.
pub(super) async fn send<T: Serialize>(
    out: &UnixStream,
    message: &T,
    handles: &[BorrowedFd<'_>],
) -> Result<()> {
    let mut line = serde_json::to_vec(message).map_err(|error| AgentError::Internal(error.to_string()))?;
    line.push(b'\n');
    let (mut left, mut handles) = (&line[..], handles);
    while !left.is_empty() {
        let sent = out
            .async_io(Interest::WRITABLE, || send_some(out, left, handles))
            .await
            .map_err(|error| broken(&format!("it does not listen any more ({error})")))?;
        // They went with the first byte.
        (left, handles) = (&left[sent..], &[]);
    }
    Ok(())
}

fn send_some(out: &UnixStream, bytes: &[u8], handles: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(HANDLES_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    // The space has some more, for alignment.
    let is_too_many = handles.len() > HANDLES_MAX;
    if is_too_many || !(handles.is_empty() || control.push(SendAncillaryMessage::ScmRights(handles))) {
        return Err(io::Error::other("too many handles for one line"));
    }
    Ok(rustix::net::sendmsg(
        out,
        &[IoSlice::new(bytes)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?)
}

/// Receives one line, and handles with it; both are bounded.
pub(super) async fn receive<T: DeserializeOwned>(input: &UnixStream) -> Result<(T, Vec<OwnedFd>)> {
    let (mut line, mut handles) = (Vec::new(), Vec::new());
    let mut buffer = [0; BUFFER];
    let end = loop {
        let received = input
            .async_io(Interest::READABLE, || {
                receive_some(input, &mut buffer, &mut handles)
            })
            .await
            .map_err(|error| broken(&error.to_string()))?;
        let before = line.len();
        line.extend_from_slice(&buffer[..received]);
        if handles.len() > HANDLES_MAX {
            return Err(broken("it handed over more files than anybody asks for"));
        }
        if let Some(at) = line[before..].iter().position(|byte| *byte == b'\n') {
            break before + at;
        }
        if received == 0 {
            return Err(broken("it ended before it said anything whole"));
        }
        if line.len() > LINE_MAX {
            return Err(broken("it said more than fits a line"));
        }
    };
    let message = serde_json::from_slice(&line[..end])
        .map_err(|error| broken(&format!("it is not understood ({error})")))?;
    Ok((message, handles))
}

fn receive_some(input: &UnixStream, bytes: &mut [u8], handles: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(HANDLES_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(
        input,
        &mut [IoSliceMut::new(bytes)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            handles.extend(received);
        }
    }
    Ok(received.bytes)
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
    use std::{
        fs::File,
        io::{Read as _, Seek as _, Write as _},
        os::fd::AsFd as _,
    };
    use tokio::io::AsyncWriteExt as _;

    async fn heard(bytes: &[u8]) -> Result<Request> {
        let (mut from, to) = UnixStream::pair().unwrap();
        let bytes = bytes.to_vec();
        let sent = tokio::spawn(async move {
            // Who has heard enough hangs up.
            let _ = from.write_all(&bytes).await;
        });
        let heard = receive(&to).await;
        drop(to);
        sent.await.unwrap();
        heard.map(|(request, _)| request)
    }

    #[tokio::test]
    async fn what_is_sent_is_received() {
        let request = Request::Push {
            source: "main".into(),
            data: "/var/lib/pg".into(),
            path: "pg_wal/00000001000000000000000A".into(),
        };
        let (from, to) = UnixStream::pair().unwrap();
        send(&from, &request, &[]).await.unwrap();
        assert_eq!(receive::<Request>(&to).await.unwrap().0, request);
        for answer in [
            Answer::Kept,
            Answer::File { len: 3 },
            Answer::Absent,
            Answer::Failed { why: "a\nb".into() },
        ] {
            let (from, to) = UnixStream::pair().unwrap();
            send(&from, &answer, &[]).await.unwrap();
            assert_eq!(receive::<Answer>(&to).await.unwrap().0, answer);
        }
    }

    #[tokio::test]
    async fn handles_go_with_a_line_and_not_more_than_are_meant() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"WAL").unwrap();
        file.rewind().unwrap();
        let (from, to) = UnixStream::pair().unwrap();
        send(&from, &Answer::File { len: 3 }, &[file.as_fd()])
            .await
            .unwrap();
        let (_, mut handles) = receive::<Answer>(&to).await.unwrap();
        let mut text = String::new();
        File::from(handles.pop().unwrap())
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!((text.as_str(), handles.len()), ("WAL", 0));

        let many = [file.as_fd(); HANDLES_MAX + 1];
        assert!(send(&from, &Answer::Kept, &many).await.is_err());
        send(&from, &Answer::Kept, &many[1..]).await.unwrap();
        assert_eq!(receive::<Answer>(&to).await.unwrap().1.len(), HANDLES_MAX);
        // A line in two parts, with handles beside each.
        for part in [&b"\"kept"[..], b"\"\n"] {
            send_some(&from, part, &many[..3]).unwrap();
        }
        assert!(receive::<Answer>(&to).await.is_err());
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
            &[b'x'; LINE_MAX + 2 * BUFFER],
        ] {
            assert!(heard(bad).await.is_err(), "{:?}", &bad[..bad.len().min(40)]);
        }
    }
}
