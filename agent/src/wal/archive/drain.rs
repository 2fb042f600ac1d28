//! Out of the spool: file after file into pages of the journal, in the order of timelines and segments.
//!
//! A file leaves the spool when the controllers have said that they hold it. One that the journal refuses for having another
//! content under its name, or that the disk has damaged and the server has no more, goes aside: it keeps nobody else waiting,
//! and somebody has to look at it.

use super::{Archive, Opened, Spooling, TRIES, candidates, is_over, limits};
use crate::{
    error::{AgentError, Result},
    limits::JobLimits,
    remote::{GrpcRemote, Remote as _},
    wal::{
        cluster_files::{Candidate, ClusterFiles},
        spool::{Fill, Held, Spool},
        spooled::Spooled,
    },
};
use bytes::Bytes;
use holdfast_core::{ErrorKind, HasKind as _, HostLimits};
use holdfast_postgres::{SystemId, WalFile};
use holdfast_proto::v1::JournalFile;
use parking_lot::Mutex;
use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{sync::watch, time::Instant};

/// Files and bytes of one page: its two syncs and its entry in the catalog are shared by several segments.
const PAGE_FILES: usize = 4;
const PAGE_BYTES: u64 = 64 << 20;
/// Packs that are sent side by side; each is in memory whole.
const SENDERS: usize = 2;
/// Pauses while no controller takes anything: the first and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));
/// Longest that the drain stands back while file after file comes into an empty spool: both would share the same cores and
/// disk, and what the server waits for is what keeps its own disk from filling up.
const STAND_BACK: Duration = Duration::from_secs(5);
/// Nothing came for so long: that was all for now.
const QUIET: Duration = Duration::from_millis(150);
/// Where this share of the spool is full, room is made at once.
const STAND_BACK_SHARE: u64 = 4;
/// How often it is said that nothing can be sent.
const SAID_EVERY: Duration = Duration::from_secs(60);

/// Lets a server that hands in file after file go first, for a short while.
async fn stand_back(spooling: &Spooling, changes: &mut watch::Receiver<u64>) {
    let end = Instant::now() + STAND_BACK;
    loop {
        changes.borrow_and_update();
        let Fill { bytes, limit, .. } = spooling.spool.fill();
        if bytes > limit / STAND_BACK_SHARE || Instant::now() >= end {
            return;
        }
        let more = tokio::select! {
            () = spooling.stop.cancelled() => return,
            more = tokio::time::timeout(QUIET, changes.changed()) => more,
        };
        // One that takes long is still coming.
        if more.is_err() && spooling.writing.try_lock().is_ok() {
            return;
        }
    }
}

/// A file on its way.
struct Sending {
    name: String,
    held: Held,
    spooled: Spooled,
}

/// What kept files from being sent.
enum Stopped {
    /// This one is damaged.
    Damaged(usize, AgentError),
    Failed(AgentError),
}

impl Archive {
    /// Sends what is spooled, until the agent ends. A spool that takes nothing more is given up once it is empty.
    pub async fn drain(self: Arc<Self>) {
        let Some(spooling) = &self.spooling else { return };
        let mut changes = spooling.spool.changes();
        let (mut pause, mut said) = (PAUSES.0, None::<Instant>);
        while !spooling.stop.is_cancelled() {
            changes.borrow_and_update();
            match self.drain_some(spooling).await {
                Ok(has_more) => {
                    pause = PAUSES.0;
                    *spooling.trouble.lock() = None;
                    spooling.is_refused.store(false, Ordering::Relaxed);
                    if has_more {
                        spooling.is_reachable.store(true, Ordering::Relaxed);
                        continue;
                    }
                    said = None;
                    if self.is_given_up(spooling).await {
                        return;
                    }
                    tokio::select! {
                        () = spooling.stop.cancelled() => return,
                        _ = changes.changed() => {}
                    }
                    stand_back(spooling, &mut changes).await;
                }
                Err(error) => {
                    if error.kind().is_transient() {
                        spooling.is_reachable.store(false, Ordering::Relaxed);
                    }
                    if said.is_none_or(|said| said.elapsed() >= SAID_EVERY) {
                        let fill = spooling.spool.fill();
                        tracing::warn!(
                            %error, source = %self.source, files = fill.files, bytes = fill.bytes,
                            "spooled WAL does not get to the controllers; trying again"
                        );
                        said = Some(Instant::now());
                    }
                    *spooling.trouble.lock() = Some(error.to_string());
                    if error.kind() == ErrorKind::Denied {
                        spooling.is_refused.store(true, Ordering::Relaxed);
                    }
                    tokio::select! {
                        () = spooling.stop.cancelled() => return,
                        () = tokio::time::sleep(pause) => {}
                    }
                    pause = (pause * 2).min(PAUSES.1);
                }
            }
        }
    }

    /// Whether nothing more is to be spooled, and the controllers know that there is nothing.
    async fn is_given_up(&self, spooling: &Spooling) -> bool {
        if spooling.spool.fill().limit > 0 || !spooling.spool.is_empty() {
            return false;
        }
        match spooling.tail.take_back().await {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(%error, source = %self.source, "the controllers do not know that the spool is empty");
                // Told again when the agent starts.
                true
            }
        }
    }

    /// Sends one page's files; whether there were any.
    async fn drain_some(&self, spooling: &Spooling) -> Result<bool> {
        let next = spooling.spool.first(PAGE_FILES, PAGE_BYTES);
        let Some((name, held)) = next.first().cloned() else {
            return Ok(false);
        };
        if held.is_damaged {
            self.rescue(spooling, &name, &held).await?;
            return Ok(true);
        }
        let spool = Arc::clone(&spooling.spool);
        let run = blocking(move || Ok(sound(&spool, next))).await?;
        let Some(first) = run.first() else {
            // It was found to be damaged just now.
            return Ok(true);
        };
        let system_id = SystemId(first.spooled.note.system_id);
        let run = Arc::new(run);
        let mut turn = self.turn.lock().await;
        let mut left = TRIES;
        loop {
            match self.send_run(&mut turn, spooling, system_id, &run).await {
                Ok(()) => return Ok(true),
                Err(Stopped::Damaged(at, error)) => {
                    let Sending { name, held, .. } = &run[at];
                    tracing::error!(%error, source = %self.source, file = %name, "spooled WAL is damaged");
                    spooling.spool.note_damage(name, held.generation);
                    return Ok(true);
                }
                Err(Stopped::Failed(error))
                    if left > 0 && is_over(&error) && !spooling.stop.is_cancelled() =>
                {
                    tracing::info!(%error, source = %self.source, "the journal is opened anew");
                    *turn = None;
                    left -= 1;
                }
                Err(Stopped::Failed(error)) => {
                    // Whatever it was, the next try begins with connections of its own.
                    *turn = None;
                    return Err(error);
                }
            }
        }
    }

    async fn send_run(
        &self,
        turn: &mut Option<Opened>,
        spooling: &Spooling,
        system_id: SystemId,
        run: &Arc<Vec<Sending>>,
    ) -> std::result::Result<(), Stopped> {
        let is_other = |open: &Opened| open.system_id != system_id || open.over.load(Ordering::Relaxed);
        if turn.as_ref().is_some_and(is_other) {
            *turn = None;
        }
        let open = match turn {
            Some(open) => open,
            None => turn.insert(self.open(system_id).await.map_err(Stopped::Failed)?),
        };
        *spooling.sending.lock() = Some(Arc::clone(&open.over));
        let names = run.iter().map(|file| file.name.clone()).collect();
        let known = self
            .known(&open.connections[0], names)
            .await
            .map_err(Stopped::Failed)?;
        let mut new = Vec::new();
        for (at, file) in run.iter().enumerate() {
            match known
                .get(&file.name)
                .map_or(Known::Absent, |kept| compare(kept, file))
            {
                Known::Same => self.sent(spooling, file)?,
                Known::Other => self.refused(spooling, file)?,
                Known::Absent => new.push(at),
            }
        }
        if new.is_empty() {
            return Ok(());
        }
        tracing::debug!(target: "holdfast::phase", phase = "drain-send");
        let remote = Arc::new(GrpcRemote::new(
            tokio::runtime::Handle::current(),
            open.connections.clone(),
            open.session.clone(),
            self.state.membership.vault,
            true,
            Arc::new(JobLimits::new(&HostLimits::default())),
            Arc::clone(&open.over),
        ));
        let (files, chosen) = (Arc::clone(run), new.clone());
        let uploaded = tokio::task::spawn_blocking(move || upload(&files, &chosen, &remote)).await;
        uploaded.map_err(|error| Stopped::Failed(AgentError::Internal(error.to_string())))??;
        let mut sealed = Vec::with_capacity(new.len());
        for at in &new {
            let file = run[*at].spooled.sealed();
            sealed.push(file.map_err(|error| Stopped::Damaged(*at, error))?);
        }
        tracing::debug!(target: "holdfast::phase", phase = "drain-append");
        let answer = self.append(open, &sealed).await.map_err(Stopped::Failed)?;
        open.used = Instant::now();
        tracing::debug!(target: "holdfast::phase", phase = "drain-kept");
        if answer.outcomes.len() != new.len() {
            let why = "the controllers answered for another number of files".into();
            return Err(Stopped::Failed(AgentError::Internal(why)));
        }
        for (at, outcome) in new.iter().zip(&answer.outcomes) {
            match outcome.state.as_str() {
                "kept" | "there" => self.sent(spooling, &run[*at])?,
                _ => self.refused(spooling, &run[*at])?,
            }
        }
        Ok(())
    }

    fn sent(&self, spooling: &Spooling, file: &Sending) -> std::result::Result<(), Stopped> {
        tracing::debug!(source = %self.source, file = %file.name, "spooled WAL is kept");
        spooling
            .spool
            .remove(&file.name, file.held.generation)
            .map_err(Stopped::Failed)
    }

    fn refused(&self, spooling: &Spooling, file: &Sending) -> std::result::Result<(), Stopped> {
        tracing::error!(
            source = %self.source, file = %file.name, dir = %spooling.spool.dir().display(),
            "spooled WAL is in the journal with another content already, which stays; the spooled one is set aside. Two servers \
             must not archive into one source"
        );
        spooling
            .spool
            .set_aside(&file.name, file.held.generation)
            .map_err(Stopped::Failed)
    }

    /// The spooled copy of a file is damaged: the server's own, if it still has it, goes in its place.
    async fn rescue(&self, spooling: &Spooling, name: &str, held: &Held) -> Result<()> {
        let found = match self.server_files(spooling).await {
            Ok(files) => server_copy(&files, name, held, &self.sealing)
                .await
                .map(|copy| (files, copy)),
            Err(error) => Err(error),
        };
        let (files, copy) = match found {
            Ok(found) => found,
            Err(error) if error.kind() == ErrorKind::Io => return Err(error),
            Err(error) => {
                tracing::error!(
                    %error, source = %self.source, file = name, dir = %spooling.spool.dir().display(),
                    "spooled WAL is damaged and the server has it no more; it is set aside, and the journal lacks it"
                );
                return spooling.spool.set_aside(name, held.generation);
            }
        };
        let mut turn = self.turn.lock().await;
        let batch = Arc::new(vec![copy]);
        match self.keep_batch(&mut turn, &files, &batch).await {
            Ok(()) => {
                tracing::warn!(source = %self.source, file = name, "spooled WAL was damaged; the server's own copy was kept");
                spooling.spool.remove(name, held.generation)
            }
            Err(error) if error.kind() == ErrorKind::Conflict => {
                tracing::error!(%error, source = %self.source, file = name, "spooled WAL is set aside");
                spooling.spool.set_aside(name, held.generation)
            }
            Err(error) => {
                *turn = None;
                Err(error)
            }
        }
    }

    /// The server's files: as the last client said, or one before the agent's last start.
    async fn server_files(&self, spooling: &Spooling) -> Result<Arc<ClusterFiles>> {
        if let Some(files) = self.seen.lock().clone() {
            return Ok(files);
        }
        let (data, uid): (PathBuf, u32) = spooling.tail.place().ok_or_else(|| {
            AgentError::Invalid("where the server's files are is not known any more".into())
        })?;
        let allow = spooling.allow.clone();
        blocking(move || ClusterFiles::open(&data, uid, &allow).map(Arc::new)).await
    }
}

/// What the journal has under a file's name.
enum Known {
    Absent,
    Same,
    Other,
}

fn compare(kept: &JournalFile, file: &Sending) -> Known {
    let note = &file.spooled.note;
    if kept.len == note.len && kept.content[..] == note.content {
        return Known::Same;
    }
    // Kept beside it already, or there are enough: nothing is handed in that would only lie there.
    let is_listed = kept.divergent.iter().any(|other| other[..] == note.content);
    if is_listed || kept.divergent.len() >= limits::JOURNAL_DIVERGENT_LISTED {
        Known::Other
    } else {
        Known::Absent
    }
}

/// Opens these files up to the first that is damaged, or of another cluster; what is gone meanwhile is left out.
fn sound(spool: &Spool, files: Vec<(String, Held)>) -> Vec<Sending> {
    let mut run: Vec<Sending> = Vec::new();
    for (name, held) in files {
        if held.is_damaged {
            break;
        }
        match spool.read(&name) {
            Ok(spooled) => {
                let is_other = |first: &Sending| first.spooled.note.system_id != spooled.note.system_id;
                if run.first().is_some_and(is_other) {
                    break;
                }
                run.push(Sending { name, held, spooled });
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => {
                tracing::error!(%error, file = %name, "spooled WAL is damaged");
                spool.note_damage(&name, held.generation);
                break;
            }
        }
    }
    run
}

/// Sends the packs of these files, each checked right before. Blocks.
fn upload(run: &[Sending], chosen: &[usize], remote: &GrpcRemote) -> std::result::Result<(), Stopped> {
    let packs: Vec<(usize, usize)> = chosen
        .iter()
        .flat_map(|at| (0..run[*at].spooled.packs()).map(|pack| (*at, pack)))
        .collect();
    let next = AtomicUsize::new(0);
    let stopped = Mutex::new(None);
    let work = || {
        while stopped.lock().is_none() {
            let Some((at, pack)) = packs.get(next.fetch_add(1, Ordering::Relaxed)).copied() else {
                break;
            };
            if let Err(why) = upload_pack(&run[at].spooled, at, pack, remote) {
                stopped.lock().get_or_insert(why);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..SENDERS.min(packs.len()) {
            scope.spawn(work);
        }
        work();
    });
    stopped.into_inner().map_or(Ok(()), Err)
}

fn upload_pack(
    spooled: &Spooled,
    at: usize,
    pack: usize,
    remote: &GrpcRemote,
) -> std::result::Result<(), Stopped> {
    let damaged = |error| Stopped::Damaged(at, error);
    let (id, bytes) = spooled.pack(pack).map_err(damaged)?;
    match remote.upload(id, Bytes::from(bytes)) {
        Err(error) if error.kind() == ErrorKind::Conflict => {
            // It came to them before, no page listed it in time, and garbage collection took it: that id is gone for ever.
            tracing::info!(%error, "a pack of the spool is sent anew");
            let (id, bytes) = spooled.pack_anew(pack).map_err(damaged)?;
            remote.upload(id, Bytes::from(bytes)).map_err(Stopped::Failed)
        }
        other => other.map_err(Stopped::Failed),
    }
}

/// The server's own copy of a file, if it is the same as far as that is known.
async fn server_copy(
    files: &Arc<ClusterFiles>,
    name: &str,
    held: &Held,
    sealing: &super::Sealing,
) -> Result<Candidate> {
    let parsed = WalFile::parse(name, files.size)?;
    let open = async || -> Result<Candidate> {
        let opened = candidates(Arc::clone(files), vec![parsed]).await?.pop();
        opened.ok_or_else(|| AgentError::Internal("a file got lost".into()))?
    };
    if let Some(content) = held.content {
        let (candidate, sealing) = (open().await?, sealing.clone());
        let own = blocking(move || sealing.content(&candidate)).await?;
        if own != content {
            return Err(AgentError::Invalid("the server's own copy is another one".into()));
        }
    }
    open().await
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| AgentError::Internal(error.to_string()))?
}
