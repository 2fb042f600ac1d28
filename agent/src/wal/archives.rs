//! The archives of all sources of this agent: made when they are first needed, watched as long as the agent runs.

use super::{
    archive::{Archive, Spooling},
    queue::{Alert, Gauges, Waiting},
    sealing::Sealing,
    spool::Spool,
    tail::Tail,
};
use crate::{
    config::Config,
    error::{AgentError, Result},
    postgres::section_of,
    state::{State, source_called},
};
use holdfast_core::SourceRef;
use holdfast_net::{client::ClientTls, metrics::Metrics};
use holdfast_proto::v1::{Queue, QueueReport};
use parking_lot::Mutex;
use std::{collections::BTreeMap, fs, path::PathBuf, sync::Arc, time::Duration};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

/// Below the agent's state: a directory per source.
const SPOOLS: &str = "spool";
/// How often it is looked at what waits.
const WATCH_EVERY: Duration = Duration::from_secs(5);
/// How often the same is said again in the log.
const SAID_EVERY: Duration = Duration::from_secs(60);

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct Archives {
    inner: Arc<Inner>,
}

struct Inner {
    state: Arc<State>,
    config: Arc<Config>,
    tls: ClientTls,
    stop: CancellationToken,
    archives: Mutex<BTreeMap<SourceRef, Arc<Archive>>>,
    gauges: Gauges,
    changes: watch::Sender<u64>,
}

/// What was said in the log, by source and kind, and when.
type Said = BTreeMap<(SourceRef, &'static str), Instant>;

impl Archives {
    /// The archives whose spools are there, whatever the configuration says now: what waits in them is sent. Others are made
    /// when their servers push.
    ///
    /// # Errors
    /// When a spool cannot be read.
    pub fn start(
        state: Arc<State>,
        config: Arc<Config>,
        tls: ClientTls,
        metrics: &Metrics,
        stop: CancellationToken,
    ) -> Result<Self> {
        let this = Self {
            inner: Arc::new(Inner {
                state,
                config,
                tls,
                stop,
                archives: Mutex::default(),
                gauges: Gauges::register(metrics),
                changes: watch::Sender::new(0),
            }),
        };
        for source in this.inner.spools()? {
            this.archive(&source)?;
        }
        let watched = this.clone();
        tokio::spawn(async move { watched.watch().await });
        Ok(this)
    }

    /// The archive of a source.
    ///
    /// # Errors
    /// When its spool cannot be made or read.
    pub(super) fn archive(&self, source: &SourceRef) -> Result<Arc<Archive>> {
        let mut archives = self.inner.archives.lock();
        if let Some(archive) = archives.get(source) {
            return Ok(Arc::clone(archive));
        }
        let archive = self.inner.make(source)?;
        archives.insert(source.clone(), Arc::clone(&archive));
        drop(archives);
        tokio::spawn(Arc::clone(&archive).drain());
        Ok(archive)
    }

    /// The archive of a source, if there is one.
    pub(super) fn existing(&self, source: &SourceRef) -> Option<Arc<Archive>> {
        self.inner.archives.lock().get(source).cloned()
    }

    /// All of them.
    pub(super) fn all(&self) -> Vec<Arc<Archive>> {
        self.inner.archives.lock().values().cloned().collect()
    }

    /// What waits now, for the controllers.
    #[must_use]
    pub fn report(&self, question: u64) -> QueueReport {
        let archives = self.inner.archives.lock();
        let queues = archives.iter().map(|(source, archive)| {
            let waiting = archive.waiting();
            Queue {
                source: self.inner.called(source),
                spool_files: waiting.fill.files,
                spool_bytes: waiting.fill.bytes,
                spool_limit: waiting.fill.limit,
                oldest_ms: waiting.fill.oldest_ms,
                ready_files: waiting.ready_files,
                ready_bytes: waiting.ready_bytes,
                aside_files: waiting.fill.aside,
                alerts: waiting.alerts().into_iter().map(|alert| alert.text).collect(),
                mark: archive
                    .mark()
                    .map_or_else(Default::default, |mark| mark.to_vec().into()),
            }
        });
        QueueReport {
            question,
            queues: queues.collect(),
        }
    }

    /// Changes when the controllers should hear what waits.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.inner.changes.subscribe()
    }

    /// Ends all of them, because the agent ends.
    pub async fn close(&self) {
        for archive in self.all() {
            archive.close().await;
        }
    }

    /// Looks at what waits, until the agent ends.
    async fn watch(self) {
        let (mut said, mut told) = (Said::new(), None);
        let mut tick = tokio::time::interval(WATCH_EVERY);
        loop {
            tokio::select! {
                () = self.inner.stop.cancelled() => return,
                _ = tick.tick() => {}
            }
            for archive in self.all() {
                let looked = Arc::clone(&archive);
                // A directory of the server's may be long, and its disk slow.
                let looked = tokio::task::spawn_blocking(move || looked.look()).await;
                if let Err(error) = looked {
                    tracing::warn!(%error, "what waits to be archived could not be looked at");
                }
                let waiting = archive.waiting();
                let source = archive.source();
                self.inner.gauges.set(&self.inner.called(source), &waiting);
                say(source, &waiting, &mut said);
            }
            let now = self.report(0);
            if told.as_ref() != Some(&now) {
                told = Some(now);
                self.inner.changes.send_modify(|count| *count += 1);
            }
        }
    }
}

/// Logs what somebody should look at: at once when it is new, and then now and again.
fn say(source: &SourceRef, waiting: &Waiting, said: &mut Said) {
    let alerts = waiting.alerts();
    said.retain(|(of, kind), _| of != source || alerts.iter().any(|alert| alert.kind == *kind));
    for Alert { kind, text } in alerts {
        let is_due = |at: &Instant| at.elapsed() >= SAID_EVERY;
        let key = (source.clone(), kind);
        if said.get(&key).is_none_or(is_due) {
            tracing::warn!(%source, alert = kind, "{text}");
            said.insert(key, Instant::now());
        }
    }
}

impl Inner {
    fn dir(&self, source: &SourceRef) -> PathBuf {
        self.state.dir().join(SPOOLS).join(self.state.local_name(source))
    }

    /// What the controllers and collectors know a source by: our own ones by their names.
    fn called(&self, source: &SourceRef) -> String {
        if source.agent == self.state.membership.name {
            source.source.to_string()
        } else {
            source.to_string()
        }
    }

    /// Sources whose spools are there.
    fn spools(&self) -> Result<Vec<SourceRef>> {
        let dir = self.state.dir().join(SPOOLS);
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(AgentError::io("list", &dir)(error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(AgentError::io("list", &dir))?;
            let own = &self.state.membership.name;
            names.extend(
                entry
                    .file_name()
                    .to_str()
                    .and_then(|name| source_called(own, name)),
            );
        }
        Ok(names)
    }

    fn make(&self, source: &SourceRef) -> Result<Arc<Archive>> {
        let pipeline = &self.config.pipeline;
        let sealing = Sealing {
            keys: Arc::clone(&self.state.keys),
            level: pipeline.levels().segments,
            workers: pipeline.workers(),
        };
        let section = section_of(&self.config, &self.state.membership.name, source);
        let limit = section
            .and_then(|(_, section)| section.spool)
            .map_or(0, |size| size.0);
        let dir = self.dir(source);
        let spooling = if limit > 0 || dir.exists() {
            let spool = Spool::open(&dir, Arc::clone(&self.state.keys), limit)?;
            let (state, tls) = (Arc::clone(&self.state), self.tls.clone());
            let tail = Tail::open(&dir, source.clone(), state, tls);
            let (allow, stop) = (self.config.allow.clone(), self.stop.child_token());
            Some(Spooling::new(spool, tail, allow, stop))
        } else {
            None
        };
        let (state, tls) = (Arc::clone(&self.state), self.tls.clone());
        Ok(Arc::new(Archive::new(
            source.clone(),
            state,
            tls,
            sealing,
            spooling,
        )))
    }
}
