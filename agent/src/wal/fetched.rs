//! Files out of journals, for servers that recover: the one that is asked for, and those that will be asked for next.

use super::{archive::wire, blank::Blank, protocol::HANDLES_MAX};
use crate::{
    error::{AgentError, Result},
    remote::data_client,
    state::State,
};
use holdfast_core::{ErrorKind, HasKind as _, SnapshotId, SourceRef, limits};
use holdfast_net::{
    Fault,
    client::{ClientTls, ConnectOptions, Connection, connect_pool},
};
use holdfast_postgres::{Segment, SegmentSize};
use holdfast_proto::v1::{FindJournalRequest, JournalFile};
use holdfast_restore::{GrpcSource, RestoreError, Snapshot};
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    fs::{self, File},
    io::Seek as _,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{sync::watch, time::Instant};

/// Segments fetched before they are asked for: a server reads them faster than one after the other comes.
const AHEAD: usize = HANDLES_MAX - 1;
/// How long they are kept for a server that asks for nothing more: they take its disk's room.
const AHEAD_KEPT: Duration = Duration::from_secs(120);
/// Connections to the controllers.
const CONNECTIONS: usize = 2;
/// Below the agent's state: files of servers that hand over no empty ones.
const DIR: &str = "wal-ahead";
/// Pauses between tries while no controller answers: the first and the longest.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// What is asked for.
pub(super) struct Wanted<'a> {
    /// The file's name.
    pub name: &'a str,
    /// Who asks.
    pub caller: u32,
    /// How long it is tried.
    pub patience: Duration,
    /// What may wait in a spool that nobody can ask counts as absent.
    pub accept_loss: bool,
    /// Where the file, and those after it, may be written.
    pub blanks: Vec<Blank>,
}

/// What became of a request.
#[derive(Debug)]
pub(super) enum Found {
    /// The catalog is sure that there is none.
    Absent,
    /// The file, checked, from its beginning.
    File {
        /// Open for reading; it has no name.
        file: Arc<File>,
        /// Bytes.
        len: u64,
    },
}

/// A file that is fetched before it is asked for. It goes with its last handle.
struct Ahead {
    /// How that ended; none while it goes on.
    ended: watch::Receiver<Option<Option<Arc<File>>>>,
    /// Whose file it was written into, if it is not ours. Nobody else gets it: its owner could still change it.
    owner: Option<u32>,
    since: Instant,
}

/// Fetches files of journals.
pub(super) struct Fetcher {
    inner: Arc<Inner>,
}

struct Inner {
    state: Arc<State>,
    tls: ClientTls,
    dir: PathBuf,
    connections: tokio::sync::Mutex<Option<Vec<Connection>>>,
    ahead: Mutex<HashMap<(SourceRef, String), Ahead>>,
    /// Numbers files of this process.
    made: AtomicU64,
}

impl Fetcher {
    /// Forgets what earlier processes fetched ahead.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn new(state: Arc<State>, tls: ClientTls) -> Result<Self> {
        let dir = state.dir().join(DIR);
        match fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(AgentError::io("remove", &dir)(error));
            }
            _ => {}
        }
        holdfast_net::durable::create_private_dir(&dir)?;
        let inner = Inner {
            state,
            tls,
            dir,
            connections: tokio::sync::Mutex::default(),
            ahead: Mutex::default(),
            made: AtomicU64::new(0),
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// A file of a source's journal; tries until `patience` is over, except where trying cannot help.
    ///
    /// # Errors
    /// When no controller answered for all that time; when the file is damaged; when the source is not ours to read.
    pub async fn fetch(&self, source: &SourceRef, wanted: Wanted<'_>) -> Result<Found> {
        let Wanted {
            name,
            caller,
            patience,
            accept_loss,
            mut blanks,
        } = wanted;
        let deadline = Instant::now() + patience;
        if let Some(found) = self.was_ahead(source, name, deadline, caller).await {
            self.go_ahead(source, name, &found, blanks);
            return Ok(found);
        }
        let mut pause = PAUSE.0;
        loop {
            let error = match self.inner.fetch(source, name, accept_loss, blanks.pop()).await {
                Ok(found) => {
                    self.go_ahead(source, name, &found, blanks);
                    return Ok(found);
                }
                Err(error) => error,
            };
            self.inner.connections.lock().await.take();
            if !error.kind().is_transient() || Instant::now() + pause >= deadline {
                return Err(error);
            }
            tracing::info!(%error, %source, name, "WAL cannot be fetched yet; trying again");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    /// What was fetched ahead for a server that asks no more goes.
    pub fn forget_what_nobody_wants(&self) {
        let mut ahead = self.inner.ahead.lock();
        ahead.retain(|_, ahead| ahead.since.elapsed() < AHEAD_KEPT);
    }

    /// The file, if it was fetched ahead or just is.
    async fn was_ahead(
        &self,
        source: &SourceRef,
        name: &str,
        deadline: Instant,
        caller: u32,
    ) -> Option<Found> {
        let key = (source.clone(), name.to_owned());
        let mut ahead = self.inner.ahead.lock().remove(&key)?;
        if ahead.owner.is_some_and(|owner| owner != caller) {
            return None;
        }
        let waited = tokio::time::timeout_at(deadline, ahead.ended.wait_for(Option::is_some)).await;
        let file = waited.ok()?.ok()?.clone()??;
        let len = file.metadata().ok()?.len();
        Some(Found::File { file, len })
    }

    /// Begins to fetch the segments after that one. What was fetched ahead elsewhere goes.
    fn go_ahead(&self, source: &SourceRef, name: &str, found: &Found, mut blanks: Vec<Blank>) {
        let next = match found {
            Found::File { len, .. } => following(name, *len),
            Found::Absent => Vec::new(),
        };
        let mut ahead = self.inner.ahead.lock();
        ahead.retain(|(of, name), _| of != source || next.contains(name));
        for name in next {
            let key = (source.clone(), name.clone());
            if ahead.contains_key(&key) {
                continue;
            }
            let blank = blanks.pop();
            let (tell, ended) = watch::channel(None);
            let begun = Ahead {
                ended,
                owner: blank.as_ref().map(Blank::owner),
                since: Instant::now(),
            };
            ahead.insert(key, begun);
            let (inner, source) = (Arc::clone(&self.inner), source.clone());
            tokio::spawn(async move {
                let fetched = inner.fetch_ahead(&source, &name, blank).await;
                if let Err(error) = &fetched {
                    tracing::debug!(%error, %source, name, "WAL is not fetched ahead");
                }
                // Where nobody wants it any more, it goes.
                let _ = tell.send(Some(fetched.ok().flatten()));
            });
        }
    }
}

/// Names of the segments after that one; none after what is no segment.
fn following(name: &str, len: u64) -> Vec<String> {
    let Some(first) = SegmentSize::new(len)
        .ok()
        .and_then(|size| Segment::parse(name, size).ok())
    else {
        return Vec::new();
    };
    let next = std::iter::successors(first.next(), |segment| segment.next());
    next.take(AHEAD).map(|segment| segment.to_string()).collect()
}

impl Inner {
    async fn fetch(
        &self,
        source: &SourceRef,
        name: &str,
        accept_loss: bool,
        blank: Option<Blank>,
    ) -> Result<Found> {
        let Some(file) = self.locate(source, name, accept_loss).await? else {
            return Ok(Found::Absent);
        };
        tracing::debug!(target: "holdfast::phase", phase = "wal-fetch");
        let len = file.len;
        let file = self.download(source, &file, blank).await?;
        Ok(Found::File { file, len })
    }

    /// A file that nobody has asked for yet, if the journal has it.
    async fn fetch_ahead(
        &self,
        source: &SourceRef,
        name: &str,
        blank: Option<Blank>,
    ) -> Result<Option<Arc<File>>> {
        let Some(file) = self.locate(source, name, true).await? else {
            return Ok(None);
        };
        let is_theirs = blank.is_some();
        let brought = self.download(source, &file, blank).await?;
        if is_theirs {
            // Servers wait until a segment is on the disk: it had better be by then. What cannot be synced is fetched again.
            let file = Arc::clone(&brought);
            tokio::task::spawn_blocking(move || file.sync_data())
                .await
                .map_err(|error| AgentError::Internal(error.to_string()))?
                .map_err(|error| AgentError::io("sync", name.as_ref())(error))?;
        }
        Ok(Some(brought))
    }

    async fn connections(&self) -> Result<Vec<Connection>> {
        let mut connections = self.connections.lock().await;
        if let Some(connections) = &*connections {
            return Ok(connections.clone());
        }
        let addresses = &self.state.membership.addresses;
        let made = connect_pool(addresses, &self.tls, &ConnectOptions::default(), CONNECTIONS).await?;
        Ok(connections.insert(made).clone())
    }

    /// What the journal says of a name now. 'None' is the catalog's own word, agreed upon at this moment; and unless loss is
    /// accepted, the word of each agent whose spool may hold more.
    async fn locate(&self, source: &SourceRef, name: &str, accept_loss: bool) -> Result<Option<JournalFile>> {
        if name.is_empty() || name.len() > limits::JOURNAL_NAME_MAX {
            return Err(AgentError::Invalid(format!(
                "{name:?} is not the name of a WAL file"
            )));
        }
        let request = FindJournalRequest {
            source: Some(wire(source)),
            names: vec![name.to_owned()],
            with_tails: !accept_loss,
        };
        let connection = self.connections().await?.swap_remove(0);
        let answer = data_client(connection)
            .find_journal(request)
            .await
            .map_err(Fault::from)?
            .into_inner();
        if let (true, Some(tail)) = (answer.files.is_empty(), answer.tails.first()) {
            return Err(AgentError::Server {
                action: "fetch WAL",
                message: format!(
                    "{name} is not archived, but may be at agent {}: {}. Start that agent; or, to recover without what it holds, \
                     give `wal fetch` --accept-loss",
                    tail.agent, tail.why
                ),
                kind: ErrorKind::Unavailable,
            });
        }
        match answer.files.into_iter().next() {
            Some(file) if file.name != name => Err(AgentError::Internal(
                "the controllers answered for another name".into(),
            )),
            found => Ok(found),
        }
    }

    /// Brings a file into an empty one, or one of ours; every chunk of it is checked.
    async fn download(
        &self,
        source: &SourceRef,
        file: &JournalFile,
        blank: Option<Blank>,
    ) -> Result<Arc<File>> {
        let connections = self.connections().await?;
        let page =
            SnapshotId::try_from(&file.page[..]).map_err(|error| AgentError::Invalid(error.to_string()))?;
        let (root, _) = GrpcSource::root(connections[0].clone(), page)
            .await
            .map_err(lift)?;
        let blobs = GrpcSource::new(connections, self.state.membership.vault).map_err(lift)?;
        let opened = Snapshot::open(&root, Arc::new(blobs), Arc::clone(&self.state.keys)).map_err(lift)?;
        let clear = &opened.root().clear;
        // The page itself says of what it is: nobody can hand us another source's WAL under this name.
        if !clear.is_journal || clear.source != *source || clear.snapshot != page {
            return Err(AgentError::Remote(Fault::new(
                ErrorKind::Corrupt,
                format!("the controllers gave another page than that of {}", file.name),
            )));
        }
        let out = Arc::new(match blank {
            Some(blank) => blank.into_file(),
            None => self.own_file()?,
        });
        let path = format!("/{}", file.name);
        let read = opened.read_file(path.as_bytes(), Arc::clone(&out)).await;
        if read.map_err(lift)? != file.len {
            return Err(AgentError::Remote(Fault::new(
                ErrorKind::Corrupt,
                format!("{} is of another length than the catalog says", file.name),
            )));
        }
        (&*out)
            .rewind()
            .map_err(|error| AgentError::io("rewind", file.name.as_ref())(error))?;
        Ok(out)
    }

    /// A file of ours that has no name any more.
    fn own_file(&self) -> Result<File> {
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        let path = self.dir.join(number.to_string());
        let made = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path);
        let file = made.map_err(AgentError::io("make", &path))?;
        fs::remove_file(&path).map_err(AgentError::io("remove", &path))?;
        Ok(file)
    }
}

fn lift(error: RestoreError) -> AgentError {
    AgentError::Remote(Fault::new(error.kind(), error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_follows_is_of_the_same_timeline_and_size() {
        assert_eq!(
            following("0000000200000001000000FE", 16 << 20),
            [
                "0000000200000001000000FF",
                "000000020000000200000000",
                "000000020000000200000001",
                "000000020000000200000002"
            ]
        );
        assert!(following("00000002.history", 42).is_empty());
        assert!(following("0000000200000001000000FE", 42).is_empty());
    }
}
