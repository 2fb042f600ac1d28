//! One backup run: session, engine, root, commit.

use crate::{
    engine::{self, Caches, Outcome, Settings, Width},
    error::{AgentError, Result},
    files::Selection,
    jobs::{JobContext, Phase},
    postgres::{self, Held, Order, Part, Passes, Taken},
    remote::{GrpcRemote, data_client},
};
use holdfast_core::{ChunkId, ErrorKind, SnapshotId, SourceRef, limits};
use holdfast_net::{Fault, client::Connection};
use holdfast_proto::v1::{
    CheckFinding, CheckWork, CloseSessionRequest, CommitRequest, FilesSpec, JobResult, OpenSessionRequest,
    OpenSessionResponse, PostgresSpec, RenewLeaseRequest, RunStats,
};
use holdfast_repo::{Links, Root, RootClear, RootSealed};
use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    path::Path,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

/// A session of an earlier, lost attempt may stand in the way until its lease ends.
const OPEN_PATIENCE: Duration = Duration::from_secs(2 * limits::LEASE_TTL.as_secs());
const OPEN_PAUSE: Duration = Duration::from_secs(1);

/// What a run left behind.
#[derive(Debug)]
pub struct Done {
    /// The new snapshot.
    pub snapshot: SnapshotId,
    /// Counters.
    pub stats: RunStats,
    /// Something could not be read.
    pub partial: bool,
}

/// What a source is.
#[derive(Debug)]
pub enum Work {
    /// Directory trees and files.
    Files(FilesSpec),
    /// A running PostgreSQL cluster.
    Postgres(PostgresSpec),
}

/// What is to be read, found to be allowed.
enum Source {
    Files(Arc<Selection>),
    Postgres(Box<Order>),
}

/// Backs a source up.
///
/// # Errors
/// When it is not allowed here, the controllers refuse, the lease is lost or the run is cancelled.
pub async fn run(context: &JobContext, source: &SourceRef, work: Work) -> Result<Done> {
    let reads = match work {
        Work::Files(spec) => files(context, spec).await?,
        Work::Postgres(spec) => Source::Postgres(Box::new(order(context, source, &spec)?)),
    };
    let connections = context.connect_data().await?;
    let system_id = match &reads {
        Source::Files(_) => 0,
        Source::Postgres(order) => postgres::system_id(order).await?.0,
    };
    let opened = open_session(context, &connections[0], source, system_id).await?;
    let renewal = renew_lease(context, connections[0].clone(), &opened);
    let run = Run {
        context,
        source,
        connections,
        opened,
        reads,
    };
    let done = run.execute().await;
    renewal.abort();
    if let Err(error) = &done {
        run.close(&error.to_string()).await;
    }
    done
}

/// Looks whether a source can be backed up as it should be.
///
/// # Errors
/// When that cannot be found out, or no backup could be taken at all.
pub async fn check(context: &JobContext, source: &SourceRef, work: &CheckWork) -> Result<JobResult> {
    let spec = work.postgres.as_ref().ok_or_else(|| {
        AgentError::Invalid("this agent does not know how to check that kind of source; update it".into())
    })?;
    let order = order(context, source, spec)?;
    let (config, own) = (&context.config, &context.state.membership.name);
    // What the server's commands name: of another agent's source its section here.
    let section = postgres::section_of(config, own, source).filter(|_| source.agent != *own);
    let (pushed_as, name) = section.map_or((source.source.as_str(), spec.cluster.as_str()), |(name, _)| {
        (name.as_str(), name.as_str())
    });
    let asked = postgres::Asked {
        source: pushed_as,
        name,
        cluster: postgres::cluster_of(config, own, source, &spec.cluster)?,
        config,
    };
    let found = postgres::check(&order, asked).await?;
    let findings = found.into_iter().map(|finding| {
        let postgres::Finding { what, why, fix } = finding;
        CheckFinding { what, why, fix }
    });
    Ok(JobResult {
        state: "succeeded".into(),
        findings: findings.collect(),
        ..JobResult::default()
    })
}

async fn files(context: &JobContext, spec: FilesSpec) -> Result<Source> {
    let allow = context.config.allow.clone();
    let own = vec![context.state.dir().to_owned()];
    let selection = tokio::task::spawn_blocking(move || Selection::open(&spec, &allow, &own))
        .await
        .map_err(|error| AgentError::Internal(error.to_string()))??;
    Ok(Source::Files(Arc::new(selection)))
}

fn order(context: &JobContext, source: &SourceRef, spec: &PostgresSpec) -> Result<Order> {
    let own = &context.state.membership.name;
    let cluster = postgres::cluster_of(&context.config, own, source, &spec.cluster)?;
    Ok(Order {
        settings: cluster.settings_with_password()?,
        allow: context.config.allow.clone(),
        state_dir: context.state.dir().to_owned(),
        run: format!("{}_{}", hex::encode(context.job.as_bytes()), context.attempt),
        label: format!("holdfast {source}"),
        fast_checkpoint: spec.fast_checkpoint,
        cancel: Arc::clone(&context.cancel),
        stats: Arc::clone(&context.stats),
    })
}

async fn open_session(
    context: &JobContext,
    connection: &Connection,
    source: &SourceRef,
    system_id: u64,
) -> Result<OpenSessionResponse> {
    let request = OpenSessionRequest {
        source: Some(holdfast_proto::v1::SourceRef {
            agent: source.agent.to_string(),
            source: source.source.to_string(),
        }),
        job: context.job.as_bytes().to_vec().into(),
        attempt: context.attempt,
        system_id,
    };
    let deadline = Instant::now() + OPEN_PATIENCE;
    loop {
        let fault = match data_client(connection.clone())
            .open_session(request.clone())
            .await
        {
            Ok(answer) => return Ok(answer.into_inner()),
            Err(status) => Fault::from(status),
        };
        let may_pass = fault.kind == ErrorKind::Conflict || fault.kind.is_transient();
        if !may_pass || Instant::now() > deadline || context.is_cancelled() {
            return Err(fault.into());
        }
        tracing::debug!(%fault, "waiting to open a session");
        tokio::time::sleep(OPEN_PAUSE).await;
    }
}

/// Renews the lease until aborted; a lease that is lost stops the run at once.
fn renew_lease(
    context: &JobContext,
    connection: Connection,
    opened: &OpenSessionResponse,
) -> tokio::task::JoinHandle<()> {
    let session = opened.session.clone();
    let every = Duration::from_millis((opened.lease_ttl_ms / 3).max(100));
    let cancel = Arc::clone(&context.cancel);
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(every).await;
            let request = RenewLeaseRequest {
                session: session.clone(),
            };
            if let Err(status) = data_client(connection.clone()).renew_lease(request).await {
                let fault = Fault::from(status);
                tracing::warn!(%fault, "the lease was not renewed");
                if fault.kind == ErrorKind::Fenced || fault.kind == ErrorKind::Denied {
                    cancel.store(true, Ordering::Relaxed);
                    return;
                }
            }
        }
    })
}

struct Run<'a> {
    context: &'a JobContext,
    source: &'a SourceRef,
    connections: Vec<Connection>,
    opened: OpenSessionResponse,
    reads: Source,
}

/// What was read and stored, and what must last until it is committed.
struct Stored {
    outcome: Outcome,
    _held: Option<Held>,
}

impl Run<'_> {
    async fn execute(&self) -> Result<Done> {
        let parent = self.parent()?;
        let stats = Arc::clone(&self.context.stats);
        let started = Instant::now();
        let mut missing = HashSet::new();
        for _ in 0..=limits::COMMIT_RETRIES {
            self.context.set_phase(Phase::Walk);
            // Of a database all begins anew: what is read once its backup has ended is of another moment.
            let stored = self.read(parent.as_ref(), &missing).await?;
            let outcome = &stored.outcome;
            self.context.set_phase(Phase::Commit);
            tracing::debug!(target: "holdfast::phase", phase = "commit", source = %self.source);
            let partial = stats.unreadable.load(Ordering::Relaxed) > 0;
            let root = self.root(parent.as_ref(), outcome, partial, started)?;
            match self.commit(root, outcome, partial).await? {
                Ok(snapshot) => {
                    self.context
                        .state
                        .remember_head(self.source, self.opened.sequence)?;
                    return Ok(Done {
                        snapshot,
                        stats: stats.snapshot(),
                        partial,
                    });
                }
                Err(ids) => {
                    tracing::warn!(
                        count = ids.len(),
                        "the controllers lack chunks; reading their files again"
                    );
                    missing.extend(ids);
                }
            }
            let sent = stats.snapshot();
            stats.reset();
            stats.bytes_stored.store(sent.bytes_stored, Ordering::Relaxed);
            stats.packs.store(sent.packs, Ordering::Relaxed);
        }
        Err(AgentError::Remote(Fault::new(
            ErrorKind::Internal,
            format!(
                "the controllers still lack chunks after {} passes",
                limits::COMMIT_RETRIES + 1
            ),
        )))
    }

    /// The parent's root, if there is one and it is ours. It is a hint for speed and the link of a
    /// chain: one that does not open is an error, since the chain would break unseen.
    fn parent(&self) -> Result<Option<(Root, [u8; 32])>> {
        let seen = self.context.state.head(self.source);
        if self.opened.sequence <= seen {
            tracing::error!(
                seen,
                offered = self.opened.sequence,
                "ALARM: the controllers show an older head of {} than this agent has seen; snapshots may have been rolled back",
                self.source
            );
        }
        if self.opened.parent_root.is_empty() {
            return Ok(None);
        }
        let root = Root::open(&self.opened.parent_root, &self.context.state.keys)?;
        if root.clear.source != *self.source {
            return Err(AgentError::Invalid(
                "the parent snapshot is of another source".into(),
            ));
        }
        Ok(Some((root, Root::hash(&self.opened.parent_root))))
    }

    /// Reads the source once; all packs are acknowledged when it returns.
    async fn read(&self, parent: Option<&(Root, [u8; 32])>, missing: &HashSet<ChunkId>) -> Result<Stored> {
        match &self.reads {
            Source::Files(selection) => {
                let selection = Arc::clone(selection);
                let outcome = self.pass(parent, missing.clone(), selection, Part::Data).await?;
                Ok(Stored { outcome, _held: None })
            }
            Source::Postgres(order) => {
                let Taken { outcome, held } = postgres::take(
                    order,
                    &Passing {
                        run: self,
                        parent,
                        missing,
                    },
                )
                .await?;
                let _held = Some(held);
                Ok(Stored { outcome, _held })
            }
        }
    }

    /// Walks a selection once; of a database, one part of it.
    async fn pass(
        &self,
        parent: Option<&(Root, [u8; 32])>,
        missing: HashSet<ChunkId>,
        selection: Arc<Selection>,
        part: Part,
    ) -> Result<Outcome> {
        let context = self.context;
        let (state, source) = (&context.state, self.source);
        let caches = match part {
            Part::Data => state.caches(source),
            Part::End => state.end_caches(source),
        };
        // What the first part sent is known to the second.
        let nothing_known = self.opened.vault_empty && missing.is_empty() && part == Part::Data;
        let session = self.opened.session.clone().unwrap_or_default();
        let remote = Arc::new(GrpcRemote::new(
            tokio::runtime::Handle::current(),
            self.connections.clone(),
            session,
            context.state.membership.vault,
            nothing_known,
            Arc::clone(&context.limits),
            Arc::clone(&context.cancel),
        ));
        let settings = Settings {
            keys: Arc::clone(&context.state.keys),
            selection,
            parent: parent
                .map(|(root, _)| root.sealed.trees.clone())
                .unwrap_or_default(),
            // Times and inodes of another host's files say nothing of ours, not even of a copy's of its disk.
            is_parent_of_here: parent
                .is_some_and(|(root, _)| root.clear.signer == context.state.signing.public()),
            workers: context.config.pipeline.workers(),
            levels: context.config.pipeline.levels(),
            missing,
            limits: Arc::clone(&context.limits),
            width: Width::default(),
            segment_chunks: context.config.pipeline.segment_chunks(),
        };
        let (stats, cancel) = (Arc::clone(&context.stats), Arc::clone(&context.cancel));
        let has_parent = parent.is_some();
        let span = tracing::Span::current();
        tokio::task::spawn_blocking(move || {
            let _entered = span.entered();
            let caches = Caches::open(&caches, has_parent)?;
            engine::run(settings, remote, caches, stats, cancel)
        })
        .await
        .map_err(|error| AgentError::Internal(error.to_string()))?
    }

    fn root(
        &self,
        parent: Option<&(Root, [u8; 32])>,
        outcome: &Outcome,
        partial: bool,
        started: Instant,
    ) -> Result<Vec<u8>> {
        let keys = &self.context.state.keys;
        let snapshot = SnapshotId::try_from(&self.opened.snapshot[..])
            .map_err(|error| AgentError::Internal(error.to_string()))?;
        let elapsed = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let clear = RootClear {
            vault: keys.vault(),
            snapshot,
            source: self.source.clone(),
            sequence: self.opened.sequence,
            previous: parent.map(|(_, hash)| *hash).unwrap_or_default(),
            started_at: self.opened.now,
            finished_at: self.opened.now.saturating_add(elapsed),
            partial,
            is_journal: false,
            signer: [0; 32],
            epoch: 0,
            links: Links::default(),
        };
        let sealed = RootSealed {
            hostname: rustix::system::uname().nodename().to_bytes().to_vec(),
            trees: outcome.trees.clone(),
            users: names("/etc/passwd", &outcome.uids),
            groups: names("/etc/group", &outcome.gids),
        };
        Ok(Root { clear, sealed }.encode(keys, &self.context.state.signing)?)
    }

    /// The snapshot, or the chunks that must be sent again.
    async fn commit(
        &self,
        root: Vec<u8>,
        outcome: &Outcome,
        partial: bool,
    ) -> Result<std::result::Result<SnapshotId, Vec<ChunkId>>> {
        let request = CommitRequest {
            session: self.opened.session.clone(),
            root: root.into(),
            stats: Some(self.context.stats.snapshot()),
            problems: outcome.problems.clone(),
            partial,
        };
        let mut pauses = COMMIT_PAUSES_MILLIS.iter();
        let answer = loop {
            let fault = match data_client(self.connections[0].clone())
                .commit(request.clone())
                .await
            {
                Ok(answer) => break answer.into_inner(),
                Err(status) => Fault::from(status),
            };
            match pauses.next() {
                Some(millis) if fault.kind.is_transient() && !self.context.is_cancelled() => {
                    tokio::time::sleep(Duration::from_millis(*millis)).await;
                }
                _ => return Err(fault.into()),
            }
        };
        if answer.snapshot.is_empty() {
            let (ids, _) = answer.missing.as_chunks::<32>();
            return Ok(Err(ids.iter().copied().map(ChunkId).collect()));
        }
        let id =
            SnapshotId::try_from(&answer.snapshot[..]).map_err(|e| AgentError::Internal(e.to_string()))?;
        Ok(Ok(id))
    }

    /// Tells the controllers that the run is over, so that the next need not wait for the lease.
    async fn close(&self, reason: &str) {
        let reason = reason.chars().take(200).collect();
        let request = CloseSessionRequest {
            session: self.opened.session.clone(),
            reason,
        };
        if let Err(status) = data_client(self.connections[0].clone())
            .close_session(request)
            .await
        {
            tracing::debug!(error = %Fault::from(status), "the session could not be closed; its lease will end");
        }
    }
}

/// The passes of one backup of a database.
struct Passing<'p> {
    run: &'p Run<'p>,
    parent: Option<&'p (Root, [u8; 32])>,
    missing: &'p HashSet<ChunkId>,
}

impl Passes for Passing<'_> {
    async fn pass(&self, selection: Selection, part: Part) -> Result<Outcome> {
        let (missing, selection) = (self.missing.clone(), Arc::new(selection));
        self.run.pass(self.parent, missing, selection, part).await
    }
}

/// Pauses between tries to commit while the controllers are away: half a minute in all.
const COMMIT_PAUSES_MILLIS: [u64; 8] = [100, 200, 500, 1000, 2000, 5000, 10_000, 10_000];

/// Longest account file that is read.
const ACCOUNTS_MAX: usize = 4 << 20;
/// Most names that are kept with a snapshot.
const NAMES_MAX: usize = 2048;

/// Names of ids from a file in the form of passwd or group. Names of remote directories are not
/// looked up: that could hang a backup.
fn names(path: &str, ids: &BTreeSet<u32>) -> BTreeMap<u32, Vec<u8>> {
    let bytes = holdfast_net::durable::read(Path::new(path), ACCOUNTS_MAX).unwrap_or_default();
    let mut names = BTreeMap::new();
    for line in bytes.split(|byte| *byte == b'\n') {
        let mut fields = line.split(|byte| *byte == b':');
        let (name, id) = (
            fields.next().unwrap_or_default(),
            fields.nth(1).unwrap_or_default(),
        );
        let id = std::str::from_utf8(id).ok().and_then(|id| id.parse().ok());
        if let Some(id) = id
            && ids.contains(&id)
            && names.len() < NAMES_MAX
            && name.len() <= 255
        {
            names.entry(id).or_insert_with(|| name.to_vec());
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_owners_come_from_account_files() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(
            file.path(),
            "root:x:0:0:root:/root:/bin/sh\nbad line\nweb:x:33:33::/:\n",
        )
        .unwrap();
        let found = names(file.path().to_str().unwrap(), &[0, 33, 99].into());
        assert_eq!(found, [(0, b"root".to_vec()), (33, b"web".to_vec())].into());
    }
}
