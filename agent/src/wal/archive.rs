//! The archive of one source: keeps files, one page after the other.

mod drain;
mod spooling;

pub(super) use spooling::Spooling;

use super::{
    cluster_files::{Candidate, ClusterFiles, Stamp},
    sealing::{SealedFile, Sealing},
};
use crate::{
    error::{AgentError, Result},
    limits::JobLimits,
    remote::{GrpcRemote, data_client},
    state::State,
};
use bytes::Bytes;
use holdfast_core::{
    ErrorKind, HasKind as _, HostLimits, SnapshotId, SourceRef,
    limits::{self, JOURNAL_PAGE_FILES},
};
use holdfast_net::{
    Fault,
    client::{ClientTls, ConnectOptions, Connection, connect_pool},
};
use holdfast_postgres::{SystemId, WalFile};
use holdfast_proto::v1::{
    AppendJournalRequest, AppendJournalResponse, CloseSessionRequest, FindJournalRequest, JournalEntry,
    JournalFile, OpenJournalRequest, OpenJournalResponse, RenewLeaseRequest, SessionRef,
};
use holdfast_repo::{Links, Root, RootClear, RootSealed};
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{sync::Mutex as AsyncMutex, time::Instant};

/// Bytes of segments that go into one page, if there are as many ready: one alone if it is larger.
const PAGE_BYTES: u64 = 64 << 20;
/// Files that the server has ready and that are taken along.
const READY_MAX: usize = JOURNAL_PAGE_FILES - 1;
/// Files taken along that the server was not told of yet. It asks for them next.
const AHEAD_MAX: usize = 4 * JOURNAL_PAGE_FILES;
/// Connections to the controllers.
const CONNECTIONS: usize = 2;
/// A session that nothing is appended to for so long is closed: nothing should wait for it, and it is quickly opened.
const IDLE: Duration = Duration::from_secs(30);
/// Times that a page is handed in again when its session was over or controllers lacked chunks.
const TRIES: usize = 3;
/// How long it is tried while no controller answers, before the server is told to try again: after three refusals it waits
/// for a minute.
const PATIENCE: Duration = Duration::from_secs(20);
/// Longest for a page of several files; after that the wanted one goes alone.
const TOGETHER: Duration = Duration::from_secs(40);
/// Between these tries.
const PAUSE: Duration = Duration::from_millis(500);

/// Keeps files of one source, one page at a time.
pub(super) struct Archive {
    source: SourceRef,
    state: Arc<State>,
    tls: ClientTls,
    sealing: Sealing,
    /// Kept with an earlier page, and not asked for yet.
    ahead: Mutex<HashMap<WalFile, Stamp>>,
    /// Who holds it appends.
    turn: AsyncMutex<Option<Opened>>,
    /// The server's files, as the last client named them.
    seen: Mutex<Option<Arc<ClusterFiles>>>,
    /// Files that the server had ready when it was looked at.
    ready: AtomicU64,
    /// Where files wait for the controllers, if they may.
    spooling: Option<Spooling>,
}

/// An open journal.
struct Opened {
    connections: Vec<Connection>,
    session: SessionRef,
    system_id: SystemId,
    next_page: u64,
    previous: [u8; 32],
    now: u64,
    at: Instant,
    used: Instant,
    /// Ends its renewal.
    over: Arc<AtomicBool>,
    renewal: tokio::task::JoinHandle<()>,
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.renewal.abort();
    }
}

impl Archive {
    pub fn new(
        source: SourceRef,
        state: Arc<State>,
        tls: ClientTls,
        sealing: Sealing,
        spooling: Option<Spooling>,
    ) -> Self {
        Self {
            source,
            state,
            tls,
            sealing,
            ahead: Mutex::default(),
            turn: AsyncMutex::new(None),
            seen: Mutex::default(),
            ready: AtomicU64::new(0),
            spooling,
        }
    }

    /// Keeps a file, and takes along what else is ready.
    ///
    /// # Errors
    /// When it is not kept, and why.
    pub async fn keep(self: &Arc<Self>, files: Arc<ClusterFiles>, name: WalFile) -> Result<()> {
        let wanted = one(&files, name).await?;
        *self.seen.lock() = Some(Arc::clone(&files));
        if self.was_ahead(&wanted) {
            return Ok(());
        }
        if let Some(spooling) = &self.spooling
            && self.into_spool(spooling, &files, &wanted).await?
        {
            return Ok(());
        }
        let mut turn = self.turn.lock().await;
        if self.was_ahead(&wanted) {
            return Ok(());
        }
        let batch = self.batch(&files, wanted).await?;
        let mut batch = Arc::new(batch);
        let (deadline, mut left) = (Instant::now() + PATIENCE, TRIES);
        loop {
            let kept = if batch.len() > 1 {
                // What was taken along must not keep the wanted file from being kept: it may be unreadable, or too much.
                let kept = tokio::time::timeout(TOGETHER, self.keep_batch(&mut turn, &files, &batch)).await;
                match kept {
                    Ok(Err(error)) if !is_over(&error) && !error.kind().is_transient() => {
                        tracing::info!(%error, source = %self.source, "WAL is kept file by file");
                        batch = Arc::new(vec![one(&files, name).await?]);
                        continue;
                    }
                    Ok(kept) => kept,
                    Err(_) => {
                        // Its session may be in the middle of an append.
                        *turn = None;
                        batch = Arc::new(vec![one(&files, name).await?]);
                        continue;
                    }
                }
            } else {
                self.keep_batch(&mut turn, &files, &batch).await
            };
            match kept {
                Err(error) if left > 0 && is_over(&error) => {
                    tracing::info!(%error, source = %self.source, "the journal is opened anew");
                    *turn = None;
                    left -= 1;
                }
                Err(error) if error.kind().is_transient() && Instant::now() + PAUSE < deadline => {
                    tracing::info!(%error, source = %self.source, "WAL cannot be kept yet; trying again");
                    tokio::time::sleep(PAUSE).await;
                }
                other => return other,
            }
        }
    }

    /// Whether it was kept with an earlier page; it is forgotten then.
    fn was_ahead(&self, file: &Candidate) -> bool {
        let mut ahead = self.ahead.lock();
        let is_kept = ahead.get(&file.name) == Some(&file.stamp());
        if is_kept {
            ahead.remove(&file.name);
        }
        is_kept
    }

    /// The file and what is ready beside it, within bounds. What cannot be read of the latter is left to its own turn.
    async fn batch(&self, files: &Arc<ClusterFiles>, wanted: Candidate) -> Result<Vec<Candidate>> {
        let (listed, name) = (Arc::clone(files), wanted.name);
        let ready = tokio::task::spawn_blocking(move || listed.ready(name, READY_MAX))
            .await
            .map_err(|error| AgentError::Internal(error.to_string()))?;
        let ready = {
            let mut ahead = self.ahead.lock();
            if ahead.len() >= AHEAD_MAX {
                // The server does not ask for them any more; if it does, the journal tells.
                ahead.clear();
            }
            let is_new = |name: &WalFile| !ahead.contains_key(name);
            let room = AHEAD_MAX.saturating_sub(ahead.len());
            ready.into_iter().filter(is_new).take(room).collect()
        };
        let mut left = PAGE_BYTES.saturating_sub(wanted.len);
        let mut batch = vec![wanted];
        for candidate in candidates(Arc::clone(files), ready).await?.into_iter().flatten() {
            if candidate.len > left {
                break;
            }
            left -= candidate.len;
            batch.push(candidate);
        }
        Ok(batch)
    }

    async fn keep_batch(
        &self,
        turn: &mut Option<Opened>,
        files: &ClusterFiles,
        batch: &Arc<Vec<Candidate>>,
    ) -> Result<()> {
        let system_id = files.cluster.system_id;
        if turn
            .as_ref()
            .is_some_and(|open| open.system_id != system_id || open.over.load(Ordering::Relaxed))
        {
            *turn = None;
        }
        let open = match turn {
            Some(open) => open,
            None => turn.insert(self.open(system_id).await?),
        };
        let names = batch.iter().map(|file| file.name.to_string()).collect();
        let known = self.known(&open.connections[0], names).await?;
        let new = self.judge(known, batch).await?;
        if new.is_empty() {
            return Ok(());
        }
        tracing::debug!(target: "holdfast::phase", phase = "wal-seal");
        let sealed = self.seal(open, batch, &new).await?;
        tracing::debug!(target: "holdfast::phase", phase = "wal-append");
        let answer = self.append(open, &sealed).await?;
        open.used = Instant::now();
        tracing::debug!(target: "holdfast::phase", phase = "wal-kept");
        self.note(batch, &new, &answer)
    }

    /// What the journal holds of these names.
    async fn known(
        &self,
        connection: &Connection,
        names: Vec<String>,
    ) -> Result<HashMap<String, JournalFile>> {
        let request = FindJournalRequest {
            source: Some(wire(&self.source)),
            names,
            with_tails: false,
        };
        let answer = data_client(connection.clone())
            .find_journal(request)
            .await
            .map_err(Fault::from)?
            .into_inner();
        Ok(answer
            .files
            .into_iter()
            .map(|file| (file.name.clone(), file))
            .collect())
    }

    /// Places in the batch of files that have to be handed in. The first must be kept, or be so already.
    async fn judge(
        &self,
        known: HashMap<String, JournalFile>,
        batch: &Arc<Vec<Candidate>>,
    ) -> Result<Vec<usize>> {
        if known.is_empty() {
            return Ok((0..batch.len()).collect());
        }
        let (sealing, files) = (self.sealing.clone(), Arc::clone(batch));
        let judged = tokio::task::spawn_blocking(move || {
            let mut new = Vec::new();
            for (at, file) in files.iter().enumerate() {
                let Some(kept) = known.get(&file.name.to_string()) else {
                    new.push(at);
                    continue;
                };
                let content = sealing.content(file)?;
                if kept.len == file.len && kept.content[..] == content {
                    continue;
                }
                // A full list takes no more: nothing is handed in that would only lie there.
                let is_full = kept.divergent.len() >= limits::JOURNAL_DIVERGENT_LISTED;
                if is_full || kept.divergent.iter().any(|other| other[..] == content) {
                    if at == 0 {
                        return Err(divergent(file.name));
                    }
                } else {
                    new.push(at);
                }
            }
            Ok(new)
        });
        judged
            .await
            .map_err(|error| AgentError::Internal(error.to_string()))?
    }

    async fn seal(
        &self,
        open: &Opened,
        batch: &Arc<Vec<Candidate>>,
        new: &[usize],
    ) -> Result<Vec<SealedFile>> {
        let remote = GrpcRemote::new(
            tokio::runtime::Handle::current(),
            open.connections.clone(),
            open.session.clone(),
            self.state.membership.vault,
            true,
            Arc::new(JobLimits::new(&HostLimits::default())),
            Arc::clone(&open.over),
        );
        let (sealing, batch, new) = (self.sealing.clone(), Arc::clone(batch), new.to_vec());
        tokio::task::spawn_blocking(move || {
            let chosen: Vec<&Candidate> = new.iter().map(|at| &batch[*at]).collect();
            sealing.send(&chosen, &remote)
        })
        .await
        .map_err(|error| AgentError::Internal(error.to_string()))?
    }

    async fn append(&self, open: &mut Opened, sealed: &[SealedFile]) -> Result<AppendJournalResponse> {
        let keys = &self.state.keys;
        let now = open
            .now
            .saturating_add(u64::try_from(open.at.elapsed().as_millis()).unwrap_or(0));
        let clear = RootClear {
            vault: keys.vault(),
            snapshot: SnapshotId::generate(),
            source: self.source.clone(),
            sequence: open.next_page,
            previous: open.previous,
            started_at: now,
            finished_at: now,
            partial: false,
            is_journal: true,
            signer: [0; 32],
            epoch: 0,
            links: Links::default(),
        };
        let page = RootSealed {
            hostname: rustix::system::uname().nodename().to_bytes().to_vec(),
            trees: sealed.iter().map(|file| file.tree.clone()).collect(),
            ..RootSealed::default()
        };
        let root: Bytes = Root { clear, sealed: page }
            .encode(keys, &self.state.signing)?
            .into();
        let entries = sealed.iter().map(|file| JournalEntry {
            name: String::from_utf8_lossy(&file.tree.path[1..]).into_owned(),
            len: file.len,
            content: Bytes::copy_from_slice(&file.content),
        });
        let request = AppendJournalRequest {
            session: Some(open.session.clone()),
            root,
            files: entries.collect(),
        };
        let mut pauses = APPEND_PAUSES_MILLIS.iter();
        let answer = loop {
            // The same page again, in case its answer was lost: it acts once.
            let fault = match data_client(open.connections[0].clone())
                .append_journal(request.clone())
                .await
            {
                Ok(answer) => break answer.into_inner(),
                Err(status) => Fault::from(status),
            };
            match pauses.next() {
                Some(millis) if fault.kind.is_transient() => {
                    tokio::time::sleep(Duration::from_millis(*millis)).await;
                }
                _ => return Err(fault.into()),
            }
        };
        if !answer.missing.is_empty() {
            return Err(AgentError::Remote(Fault::new(
                ErrorKind::Fenced,
                "the controllers lack chunks of this page; it is sent again",
            )));
        }
        open.next_page = answer.next_page;
        open.previous = previous(&answer.previous);
        Ok(answer)
    }

    /// Remembers what was taken along; the first file's outcome is the answer.
    fn note(&self, batch: &[Candidate], new: &[usize], answer: &AppendJournalResponse) -> Result<()> {
        if answer.outcomes.len() != new.len() {
            return Err(AgentError::Internal(
                "the controllers answered for another number of files".into(),
            ));
        }
        let mut ahead = self.ahead.lock();
        let mut first = Ok(());
        for (at, outcome) in new.iter().zip(&answer.outcomes) {
            let file = &batch[*at];
            match outcome.state.as_str() {
                "kept" | "there" if *at == 0 => {}
                "kept" | "there" => {
                    ahead.insert(file.name, file.stamp());
                }
                _ if *at == 0 => first = Err(divergent(file.name)),
                // Its own turn tells.
                _ => {}
            }
        }
        first
    }

    async fn open(&self, system_id: SystemId) -> Result<Opened> {
        let addresses = &self.state.membership.addresses;
        let connections = connect_pool(addresses, &self.tls, &ConnectOptions::default(), CONNECTIONS).await?;
        let request = OpenJournalRequest {
            source: Some(wire(&self.source)),
            system_id: system_id.0,
        };
        let OpenJournalResponse {
            session,
            postgres: _,
            next_page,
            previous: last,
            lease_ttl_ms,
            now,
        } = data_client(connections[0].clone())
            .open_journal(request)
            .await
            .map_err(Fault::from)?
            .into_inner();
        let session = session.unwrap_or_default();
        let over = Arc::new(AtomicBool::new(false));
        let renewal = renew(
            connections[0].clone(),
            session.clone(),
            Duration::from_millis((lease_ttl_ms / 3).max(100)),
            Arc::clone(&over),
        );
        Ok(Opened {
            connections,
            session,
            system_id,
            next_page,
            previous: previous(&last),
            now,
            at: Instant::now(),
            used: Instant::now(),
            over,
            renewal,
        })
    }

    /// Closes a session that was not used for a while, so that nobody waits for its end.
    pub async fn close_idle(&self) {
        let mut turn = self.turn.lock().await;
        let is_idle = turn.as_ref().is_some_and(|open| open.used.elapsed() >= IDLE);
        if is_idle && let Some(open) = turn.take() {
            close(&open, "nothing to archive for a while").await;
        }
    }

    /// Closes the session because the agent ends.
    pub async fn close(&self) {
        self.close_spool().await;
        if let Ok(mut turn) = self.turn.try_lock()
            && let Some(open) = turn.take()
        {
            close(&open, "the agent ends").await;
        }
    }
}

/// Pauses between tries to append while the controllers are away: some seconds; the server tries again itself.
const APPEND_PAUSES_MILLIS: [u64; 6] = [50, 100, 200, 500, 1000, 2000];

async fn close(open: &Opened, reason: &str) {
    let request = CloseSessionRequest {
        session: Some(open.session.clone()),
        reason: reason.into(),
    };
    if let Err(status) = data_client(open.connections[0].clone())
        .close_session(request)
        .await
    {
        tracing::debug!(error = %Fault::from(status), "the journal could not be closed; its lease will end");
    }
}

/// Renews the lease until aborted; says so when it is lost.
fn renew(
    connection: Connection,
    session: SessionRef,
    every: Duration,
    over: Arc<AtomicBool>,
) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(every).await;
            let request = RenewLeaseRequest {
                session: Some(session.clone()),
            };
            if let Err(status) = data_client(connection.clone()).renew_lease(request).await {
                let fault = Fault::from(status);
                if matches!(fault.kind, ErrorKind::Fenced | ErrorKind::Denied) {
                    over.store(true, Ordering::Relaxed);
                    return;
                }
            }
        }
    })
}

/// Whether another session could do what this one cannot.
fn is_over(error: &AgentError) -> bool {
    matches!(error.kind(), ErrorKind::Fenced | ErrorKind::Interrupted)
}

fn divergent(name: WalFile) -> AgentError {
    AgentError::Server {
        action: "archive WAL",
        message: format!(
            "{name} is kept already with another content, which stays; two servers must not archive into one source. What was \
             handed in now is kept beside it; see: holdfastctl get journal"
        ),
        kind: ErrorKind::Conflict,
    }
}

/// Empty stands for the first page, before which there is none.
fn previous(hash: &[u8]) -> [u8; 32] {
    hash.try_into().unwrap_or([0; 32])
}

pub(super) fn wire(source: &SourceRef) -> holdfast_proto::v1::SourceRef {
    holdfast_proto::v1::SourceRef {
        agent: source.agent.to_string(),
        source: source.source.to_string(),
    }
}

async fn one(files: &Arc<ClusterFiles>, name: WalFile) -> Result<Candidate> {
    let opened = candidates(Arc::clone(files), vec![name]).await?.pop();
    opened.ok_or_else(|| AgentError::Internal("a file got lost".into()))?
}

/// Opens these files on a thread that may wait for the disk.
async fn candidates(files: Arc<ClusterFiles>, names: Vec<WalFile>) -> Result<Vec<Result<Candidate>>> {
    debug_assert!(names.len() <= limits::JOURNAL_PAGE_FILES);
    tokio::task::spawn_blocking(move || names.into_iter().map(|name| files.candidate(name)).collect())
        .await
        .map_err(|error| AgentError::Internal(error.to_string()))
}
