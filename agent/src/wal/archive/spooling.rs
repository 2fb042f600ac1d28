//! Into the spool first: a file that is durable there is archived for the server, and goes to the controllers by itself.

use super::{super::spool::Spool, super::tail::Tail, Archive, PATIENCE, candidates, divergent, one};
use crate::{
    error::{AgentError, Result},
    wal::{
        cluster_files::{Candidate, ClusterFiles},
        queue::Waiting,
        spool::Fill,
    },
};
use holdfast_core::{ErrorKind, HasKind as _, SourceRef, limits::JOURNAL_NAMES_ASKED};
use holdfast_net::client::{ConnectOptions, Connection, connect};
use holdfast_postgres::WalFile;
use holdfast_proto::v1::JournalFile;
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    fs::File,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{sync::Mutex as AsyncMutex, time::Instant};
use tokio_util::sync::CancellationToken;

/// Files that are spooled before the server asks for them: it starts a program for each, so that the cores would wait.
const AHEAD_FILES: usize = 16;
/// How much of a spool these may fill: the rest is for what is asked for.
const AHEAD_SHARE: (u64, u64) = (3, 4);
/// Longest that the journal is asked whether it has files of these names. If it does not answer, it is asked when it gets them.
const ASK_PATIENCE: Duration = Duration::from_secs(2);

/// Longest that the controllers are told of an empty spool when the agent ends.
const CLOSE_PATIENCE: Duration = Duration::from_secs(3);

/// A spool and who uses it.
pub(in crate::wal) struct Spooling {
    pub(super) spool: Arc<Spool>,
    pub(super) tail: Tail,
    /// Ends all that goes on in the background.
    pub(super) stop: CancellationToken,
    /// Who holds it writes. True when nothing may be written any more.
    pub(super) writing: AsyncMutex<bool>,
    is_ahead: AtomicBool,
    /// The controllers answered last time.
    pub(super) is_reachable: AtomicBool,
    /// The controllers refused to take anything: this agent serves the source no more. What waits stays; nothing joins it.
    pub(super) is_refused: AtomicBool,
    asking: AsyncMutex<Option<Connection>>,
    /// Why nothing gets to the controllers, if so.
    pub(super) trouble: Mutex<Option<String>>,
    /// Ends what is being sent.
    pub(super) sending: Mutex<Option<Arc<AtomicBool>>>,
    fetched: AtomicU64,
    /// Directories that may be read.
    pub(super) allow: Vec<PathBuf>,
}

/// What became of a file that was to be spooled.
enum Put {
    Kept,
    /// The journal has something under that name, or the spool cannot be used: straight to the controllers.
    Straight,
    /// There is no room now.
    Full(AgentError),
}

impl Spooling {
    pub(in crate::wal) fn new(
        spool: Spool,
        tail: Tail,
        allow: Vec<PathBuf>,
        stop: CancellationToken,
    ) -> Self {
        Self {
            spool: Arc::new(spool),
            tail,
            stop,
            writing: AsyncMutex::new(false),
            is_ahead: AtomicBool::new(false),
            is_reachable: AtomicBool::new(true),
            is_refused: AtomicBool::new(false),
            asking: AsyncMutex::default(),
            trouble: Mutex::default(),
            sending: Mutex::default(),
            fetched: AtomicU64::new(0),
            allow,
        }
    }

    fn takes(&self) -> bool {
        self.spool.fill().limit > 0
    }
}

impl Archive {
    /// Whose it is.
    pub fn source(&self) -> &SourceRef {
        &self.source
    }

    /// What the controllers know the spool by.
    pub fn mark(&self) -> Option<[u8; 16]> {
        self.spooling.as_ref().and_then(|spooling| spooling.tail.mark())
    }

    /// What waits for the controllers; of the server's files, as they were when they were looked at.
    pub fn waiting(&self) -> Waiting {
        let spooling = self.spooling.as_ref();
        let ready_files = self.ready.load(Ordering::Relaxed);
        let segment = self.seen.lock().as_ref().map_or(0, |files| files.size.bytes());
        Waiting {
            fill: spooling.map_or_else(Fill::default, |spooling| spooling.spool.fill()),
            dir: spooling.map_or_else(String::new, |s| s.spool.dir().display().to_string()),
            ready_files,
            ready_bytes: ready_files.saturating_mul(u64::from(segment)),
            trouble: spooling.and_then(|spooling| spooling.trouble.lock().clone()),
        }
    }

    /// Looks at what the server has ready, and what lies aside. Blocks.
    pub fn look(&self) {
        let seen = self.seen.lock().clone();
        if let Some(files) = seen {
            self.ready.store(files.ready_count(), Ordering::Relaxed);
        }
        if let Some(spooling) = &self.spooling
            && let Err(error) = spooling.spool.look_aside()
        {
            tracing::warn!(%error, source = %self.source, "what lies aside is not known");
        }
    }

    /// Whether the spool has the file now; false when it has to go to the controllers at once.
    ///
    /// # Errors
    /// When it is there with another content; when the spool is full for long, and why.
    pub(super) async fn into_spool(
        self: &Arc<Self>,
        spooling: &Spooling,
        files: &Arc<ClusterFiles>,
        wanted: &Candidate,
    ) -> Result<bool> {
        let deadline = Instant::now() + PATIENCE;
        let mut changes = spooling.spool.changes();
        loop {
            changes.borrow_and_update();
            let full = match self.put(spooling, files, wanted).await? {
                Put::Kept => {
                    self.go_ahead(spooling, files, wanted.name);
                    return Ok(true);
                }
                Put::Straight => return Ok(false),
                Put::Full(error) => error,
            };
            // In order: nothing overtakes what waits. With nothing there, the spool has no say.
            if spooling.spool.is_drained() {
                return Ok(false);
            }
            tracing::debug!(error = %full, source = %self.source, "the spool is full");
            let waited = tokio::time::timeout_at(deadline, changes.changed()).await;
            if !matches!(waited, Ok(Ok(()))) {
                let why = spooling.trouble.lock().clone();
                let why = why.map_or_else(String::new, |why| format!(" ({why})"));
                return Err(AgentError::Server {
                    action: "archive WAL",
                    message: format!("{full}, and the controllers take nothing{why}; the server tries again"),
                    kind: ErrorKind::Unavailable,
                });
            }
        }
    }

    async fn put(
        self: &Arc<Self>,
        spooling: &Spooling,
        files: &Arc<ClusterFiles>,
        wanted: &Candidate,
    ) -> Result<Put> {
        let mut changes = spooling.spool.changes();
        let writing = loop {
            changes.borrow_and_update();
            if self.is_held(spooling, files, wanted).await? {
                return Ok(Put::Kept);
            }
            // Who writes now may write this very file.
            tokio::select! {
                writing = spooling.writing.lock() => break writing,
                _ = changes.changed() => {}
            }
        };
        if self.is_held(spooling, files, wanted).await? {
            return Ok(Put::Kept);
        }
        if *writing {
            return Err(unavailable("the agent ends"));
        }
        if spooling.is_refused.load(Ordering::Relaxed) {
            let why = spooling.trouble.lock().clone().unwrap_or_default();
            return Err(AgentError::NotAllowed(format!(
                "the controllers do not take what waits in the spool: {why}"
            )));
        }
        if !spooling.takes() || !spooling.spool.could_take(wanted.len) {
            return Ok(if spooling.spool.is_drained() {
                Put::Straight
            } else {
                Put::Full(unavailable(
                    "the spool takes nothing in any more, and is not drained yet",
                ))
            });
        }
        if let Err(error) = self.announced(spooling, files).await {
            if error.kind() == ErrorKind::Conflict || !spooling.spool.is_drained() {
                return Err(error);
            }
            tracing::info!(%error, source = %self.source, "the spool cannot be used yet");
            return Ok(Put::Straight);
        }
        let name = wanted.name.to_string();
        let known = self.in_journal(spooling, vec![name.clone()]).await;
        if known.contains_key(&name) {
            return Ok(Put::Straight);
        }
        let file = one(files, wanted.name).await?;
        self.write(spooling, files, vec![file]).await
    }

    /// Whether the spool has that file, undamaged.
    ///
    /// # Errors
    /// `Conflict` when it has another content.
    async fn is_held(
        &self,
        spooling: &Spooling,
        files: &Arc<ClusterFiles>,
        wanted: &Candidate,
    ) -> Result<bool> {
        let name = wanted.name.to_string();
        let Some(held) = spooling.spool.held(&name).filter(|held| !held.is_damaged) else {
            return Ok(false);
        };
        let is_same = held.stamp == Some(wanted.stamp())
            || held.content == Some(self.content_of(files, wanted.name).await?);
        if !is_same {
            return Err(divergent(wanted.name));
        }
        spooling.spool.note_stamp(&name, wanted.stamp());
        Ok(true)
    }

    /// The controllers know that WAL of this cluster may wait here.
    async fn announced(&self, spooling: &Spooling, files: &ClusterFiles) -> Result<()> {
        let system_id = files.cluster.system_id;
        if spooling.tail.is_known(system_id) {
            return Ok(());
        }
        if spooling.tail.mark().is_some() && !spooling.spool.is_drained() {
            return Err(AgentError::Server {
                action: "spool WAL",
                message: format!(
                    "WAL of another cluster than {system_id} waits in {}; a new cluster needs a source of its own",
                    spooling.spool.dir().display()
                ),
                kind: ErrorKind::Conflict,
            });
        }
        spooling.tail.announce(system_id, files.place.clone()).await
    }

    /// Writes these files, in their order as far as it goes.
    async fn write(&self, spooling: &Spooling, files: &ClusterFiles, these: Vec<Candidate>) -> Result<Put> {
        let (spool, sealing) = (Arc::clone(&spooling.spool), self.sealing.clone());
        let system_id = files.cluster.system_id.0;
        let stop = spooling.stop.clone();
        let is_ahead = these.len() > 1;
        tracing::debug!(target: "holdfast::phase", phase = "spool-seal");
        let (_, failed) = tokio::task::spawn_blocking(move || {
            // What somebody waits for is written all the same.
            spool.put_all(&sealing, &these, system_id, &|| is_ahead && stop.is_cancelled())
        })
        .await
        .map_err(|error| AgentError::Internal(error.to_string()))?;
        match failed {
            None => Ok(Put::Kept),
            Some(error) if matches!(error.kind(), ErrorKind::NoSpace | ErrorKind::Io) => {
                tracing::info!(%error, source = %self.source, "WAL cannot be spooled now");
                Ok(Put::Full(error))
            }
            Some(error) => Err(error),
        }
    }

    async fn content_of(&self, files: &Arc<ClusterFiles>, name: WalFile) -> Result<[u8; 32]> {
        let (candidate, sealing) = (one(files, name).await?, self.sealing.clone());
        tokio::task::spawn_blocking(move || sealing.content(&candidate))
            .await
            .map_err(|error| AgentError::Internal(error.to_string()))?
    }

    /// What the journal has of these names, as far as it answers soon. Where it does not, the answer comes when it gets them.
    async fn in_journal(&self, spooling: &Spooling, names: Vec<String>) -> HashMap<String, JournalFile> {
        debug_assert!(names.len() <= JOURNAL_NAMES_ASKED);
        if !spooling.is_reachable.load(Ordering::Relaxed) {
            return HashMap::new();
        }
        let mut asking = spooling.asking.lock().await;
        let asked = async {
            let connection = match &*asking {
                Some(connection) => connection.clone(),
                None => {
                    connect(
                        &self.state.membership.addresses,
                        &self.tls,
                        &ConnectOptions::default(),
                    )
                    .await?
                }
            };
            let known = self.known(&connection, names).await?;
            Ok::<_, AgentError>((connection, known))
        };
        match tokio::time::timeout(ASK_PATIENCE, asked).await {
            Ok(Ok((connection, known))) => {
                *asking = Some(connection);
                known
            }
            Ok(Err(_)) | Err(_) => {
                *asking = None;
                // The drain says when they are back.
                spooling.is_reachable.store(false, Ordering::Relaxed);
                HashMap::new()
            }
        }
    }

    /// Spools what the server has ready beside that file, until it has asked for something that is not there.
    fn go_ahead(self: &Arc<Self>, spooling: &Spooling, files: &Arc<ClusterFiles>, but: WalFile) {
        if spooling.is_ahead.swap(true, Ordering::AcqRel) {
            return;
        }
        let (this, files) = (Arc::clone(self), Arc::clone(files));
        tokio::spawn(async move {
            let Some(spooling) = &this.spooling else { return };
            if let Err(error) = this.spool_ahead(spooling, &files, but).await {
                tracing::debug!(%error, source = %this.source, "nothing more is spooled ahead");
            }
            spooling.is_ahead.store(false, Ordering::Release);
        });
    }

    async fn spool_ahead(
        self: &Arc<Self>,
        spooling: &Spooling,
        files: &Arc<ClusterFiles>,
        but: WalFile,
    ) -> Result<()> {
        loop {
            let listed = Arc::clone(files);
            let ready = tokio::task::spawn_blocking(move || listed.ready(but, AHEAD_FILES))
                .await
                .map_err(|error| AgentError::Internal(error.to_string()))?;
            let is_new = |name: &WalFile| spooling.spool.held(&name.to_string()).is_none();
            let ready: Vec<WalFile> = ready.into_iter().filter(is_new).collect();
            let names = ready.iter().map(WalFile::to_string).collect();
            let known = self.in_journal(spooling, names).await;
            let writing = spooling.writing.lock().await;
            let is_known = spooling.tail.is_known(files.cluster.system_id);
            if *writing || !is_known || spooling.is_refused.load(Ordering::Relaxed) {
                return Ok(());
            }
            let is_new = |name: &WalFile| !known.contains_key(&name.to_string()) && is_new(name);
            let ready = ready.into_iter().filter(is_new).collect();
            let Fill { bytes, limit, .. } = spooling.spool.fill();
            let mut room = (limit / AHEAD_SHARE.1 * AHEAD_SHARE.0).saturating_sub(bytes);
            let mut these = Vec::new();
            // What cannot be read is left to its own turn.
            for candidate in candidates(Arc::clone(files), ready).await?.into_iter().flatten() {
                let Some(left) = room.checked_sub(candidate.len) else {
                    break;
                };
                room = left;
                these.push(candidate);
            }
            if these.is_empty() || !matches!(self.write(spooling, files, these).await?, Put::Kept) {
                return Ok(());
            }
        }
    }

    /// The file from the spool, checked, if it is there.
    ///
    /// # Errors
    /// `Corrupt` when it is damaged.
    pub async fn fetch_spooled(&self, name: &str) -> Result<Option<File>> {
        let Some(spooling) = self.spooling.as_ref().filter(|s| s.spool.held(name).is_some()) else {
            return Ok(None);
        };
        let (spool, name) = (Arc::clone(&spooling.spool), name.to_owned());
        let number = spooling.fetched.fetch_add(1, Ordering::Relaxed);
        let read = tokio::task::spawn_blocking(move || spool.copy_out(&name, number));
        match read
            .await
            .map_err(|error| AgentError::Internal(error.to_string()))?
        {
            Ok(file) => Ok(Some(file)),
            // It has come to the controllers just now.
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Ends spooling, because the agent ends. With nothing left, the controllers hear that there is nothing.
    pub(super) async fn close_spool(&self) {
        let Some(spooling) = &self.spooling else { return };
        spooling.stop.cancel();
        if let Some(sending) = &*spooling.sending.lock() {
            sending.store(true, Ordering::Relaxed);
        }
        *spooling.writing.lock().await = true;
        if spooling.spool.is_empty() {
            match tokio::time::timeout(CLOSE_PATIENCE, spooling.tail.take_back()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => {
                    tracing::info!(source = %self.source, "the controllers do not know that the spool is empty");
                }
            }
        }
    }
}

fn unavailable(why: &str) -> AgentError {
    AgentError::Server {
        action: "spool WAL",
        message: why.to_owned(),
        kind: ErrorKind::Unavailable,
    }
}
