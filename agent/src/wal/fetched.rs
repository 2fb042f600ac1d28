//! Files out of journals, for servers that recover: the one that is asked for, and those that will be asked for next.

use super::archive::wire;
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
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{sync::watch, time::Instant};

/// Segments fetched before they are asked for: a server reads them faster than one after the other comes.
const AHEAD: usize = 4;
/// Connections to the controllers.
const CONNECTIONS: usize = 2;
/// Below the agent's state: files that were not asked for yet.
const DIR: &str = "wal-ahead";
/// Pauses between tries while no controller answers: the first and the longest.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// What became of a request.
pub(super) enum Found {
    /// The catalog is sure that there is none.
    Absent,
    /// The file, checked, from its beginning.
    File {
        /// Open for reading.
        file: File,
        /// Bytes.
        len: u64,
    },
}

/// How a fetch ahead ended; none while it goes on.
type Ended = Option<std::result::Result<PathBuf, String>>;

/// Fetches files of journals.
pub(super) struct Fetcher {
    inner: Arc<Inner>,
}

struct Inner {
    state: Arc<State>,
    tls: ClientTls,
    dir: PathBuf,
    connections: tokio::sync::Mutex<Option<Vec<Connection>>>,
    ahead: Mutex<HashMap<(SourceRef, String), watch::Receiver<Ended>>>,
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
    pub async fn fetch(
        &self,
        source: &SourceRef,
        name: &str,
        patience: Duration,
        accept_loss: bool,
    ) -> Result<Found> {
        let deadline = Instant::now() + patience;
        if let Some(found) = self.was_ahead(source, name, deadline).await {
            self.go_ahead(source, name, &found);
            return Ok(found);
        }
        let mut pause = PAUSE.0;
        loop {
            let error = match self.inner.fetch(source, name, accept_loss).await {
                Ok(found) => {
                    self.go_ahead(source, name, &found);
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

    /// The file, if it was fetched ahead or just is.
    async fn was_ahead(&self, source: &SourceRef, name: &str, deadline: Instant) -> Option<Found> {
        let key = (source.clone(), name.to_owned());
        let mut ended = self.inner.ahead.lock().remove(&key)?;
        let path = {
            let waited = tokio::time::timeout_at(deadline, ended.wait_for(Option::is_some)).await;
            waited.ok()?.ok()?.clone()?.ok()?
        };
        let file = File::open(&path).ok()?;
        let _ = fs::remove_file(&path);
        let len = file.metadata().ok()?.len();
        Some(Found::File { file, len })
    }

    /// Begins to fetch the segments after that one. What was fetched ahead elsewhere goes.
    fn go_ahead(&self, source: &SourceRef, name: &str, found: &Found) {
        let next = match found {
            Found::File { len, .. } => following(name, *len),
            Found::Absent => Vec::new(),
        };
        let mut ahead = self.inner.ahead.lock();
        ahead.retain(|(of, name), ended| {
            let is_needed = of != source || next.contains(name);
            if !is_needed && let Some(Ok(path)) = &*ended.borrow() {
                let _ = fs::remove_file(path);
            }
            is_needed
        });
        for name in next {
            let key = (source.clone(), name.clone());
            if ahead.contains_key(&key) {
                continue;
            }
            let (tell, ended) = watch::channel(None);
            ahead.insert(key, ended);
            let (inner, source) = (Arc::clone(&self.inner), source.clone());
            tokio::spawn(async move {
                let fetched = match inner.locate(&source, &name, true).await {
                    Ok(Some(file)) => inner.download(&source, &file).await,
                    Ok(None) => Err(AgentError::Invalid("there is none yet".into())),
                    Err(error) => Err(error),
                };
                let fetched = fetched.map_err(|error| error.to_string());
                if let Err(watch::error::SendError(Some(Ok(path)))) = tell.send(Some(fetched)) {
                    // Nobody wants it any more.
                    let _ = fs::remove_file(path);
                }
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
    async fn fetch(&self, source: &SourceRef, name: &str, accept_loss: bool) -> Result<Found> {
        let Some(file) = self.locate(source, name, accept_loss).await? else {
            return Ok(Found::Absent);
        };
        tracing::debug!(target: "holdfast::phase", phase = "wal-fetch");
        let path = self.download(source, &file).await?;
        let opened = File::open(&path).map_err(AgentError::io("open", &path))?;
        let _ = fs::remove_file(&path);
        Ok(Found::File {
            file: opened,
            len: file.len,
        })
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

    /// Brings a file into a file of ours; every chunk of it is checked.
    async fn download(&self, source: &SourceRef, file: &JournalFile) -> Result<PathBuf> {
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
        let path = self
            .dir
            .join(self.made.fetch_add(1, Ordering::Relaxed).to_string());
        let out = File::create_new(&path).map_err(AgentError::io("make", &path))?;
        let read = opened.read_file(format!("/{}", file.name).as_bytes(), out).await;
        match read {
            Ok(len) if len == file.len => Ok(path),
            Ok(_) => {
                gone(&path);
                Err(AgentError::Remote(Fault::new(
                    ErrorKind::Corrupt,
                    format!("{} is of another length than the catalog says", file.name),
                )))
            }
            Err(error) => {
                gone(&path);
                Err(lift(error))
            }
        }
    }
}

fn gone(path: &Path) {
    let _ = fs::remove_file(path);
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
