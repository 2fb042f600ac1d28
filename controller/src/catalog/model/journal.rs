//! Records of journals: what changed after a source's snapshots.

use holdfast_core::{Name, SessionId, SnapshotId, SourceRef, UnixMillis, VaultId};
use serde::{Deserialize, Serialize};

/// A source's journal: files that are kept under their names and never change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Journal {
    /// The cluster whose WAL it holds. Files of another one are refused.
    pub system_id: u64,
    /// The number that the next page gets; 1 for the first.
    pub next_page: u64,
    /// Hash of the last page's root object; zeros before the first.
    pub last_root: [u8; 32],
    /// Files with a name of their own.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The file that was kept last.
    pub last_file: String,
    /// When that was.
    pub last_at: UnixMillis,
    /// Files whose name had another content already.
    pub divergent: u64,
    /// The session that may append.
    pub open_session: Option<SessionId>,
    /// Agents that may have told their server of WAL that is not here yet. A record stays until that very agent takes it back.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tails: Vec<Tail>,
    /// Sessions of further members that may append beside `open_session`: one of each agent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub more_sessions: Vec<SessionId>,
}

impl Journal {
    /// One that holds nothing yet.
    #[must_use]
    pub fn new(system_id: u64) -> Self {
        Self {
            system_id,
            next_page: 1,
            last_root: [0; 32],
            files: 0,
            bytes: 0,
            last_file: String::new(),
            last_at: 0,
            divergent: 0,
            open_session: None,
            tails: Vec::new(),
            more_sessions: Vec::new(),
        }
    }

    /// Sessions that may append, one of each agent.
    pub fn sessions(&self) -> impl Iterator<Item = SessionId> {
        self.open_session.iter().chain(&self.more_sessions).copied()
    }

    /// Adds the session of an agent that has none.
    pub fn add_session(&mut self, session: SessionId) {
        match self.open_session {
            None => self.open_session = Some(session),
            Some(_) => self.more_sessions.push(session),
        }
    }

    /// Removes a session; whether it was one of the journal's.
    pub fn remove_session(&mut self, session: SessionId) -> bool {
        let before = self.more_sessions.len();
        self.more_sessions.retain(|other| *other != session);
        let is_first = self.open_session == Some(session);
        if is_first {
            self.open_session = None;
        }
        is_first || self.more_sessions.len() < before
    }
}

/// An agent's spool that may hold WAL of a source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tail {
    /// Whose.
    pub agent: Name,
    /// Which host of that name: a spool that is opened by another one does not replace this one.
    pub incarnation: u32,
    /// Drawn by the agent each time that it opens it.
    pub mark: [u8; 16],
    /// When that was.
    pub opened_at: UnixMillis,
}

/// A page of a journal: files that were handed in together, listed by one root object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalPage {
    /// The page.
    pub id: SnapshotId,
    /// Of which source.
    pub source: SourceRef,
    /// Where its content lies.
    pub vault: VaultId,
    /// 1, 2, 3 … of this source.
    pub number: u64,
    /// BLAKE3 of the root object.
    pub root_hash: [u8; 32],
    /// Length of the root object in bytes.
    pub root_len: u64,
    /// When it was appended.
    pub at: UnixMillis,
    /// What became of each of its files, in order.
    pub outcomes: Vec<JournalOutcome>,
}

/// What became of a file that was handed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JournalOutcome {
    /// It is kept under its name from now on.
    Kept,
    /// It was there with the same content.
    There,
    /// Its name has another content: what was handed in is kept beside it, and is not what readers get.
    Divergent,
}

/// A file of a journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalFile {
    /// Its name, without any directory.
    pub name: String,
    /// Bytes.
    pub len: u64,
    /// Keyed hash of its content, from the agent.
    pub content: [u8; 32],
    /// The page that lists it.
    pub page: SnapshotId,
    /// When it was kept.
    pub at: UnixMillis,
    /// Other contents that were handed in under this name, capped; the journal counts all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub divergent: Vec<Divergent>,
}

/// A content whose name was taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Divergent {
    /// Its keyed hash.
    pub content: [u8; 32],
    /// The page that lists it.
    pub page: SnapshotId,
}
