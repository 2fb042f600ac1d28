//! The state machine as openraft wants it: `apply` over the catalog, snapshots as files.

use super::{
    files,
    storage::storage_error,
    time::CatalogTime,
    types::{Entry, LogId, Membership, SnapshotFile, StorageError, TypeConfig},
};
use crate::{
    catalog::{
        Queries, Reply,
        apply::apply,
        dump::{self, DumpHeader, DumpReader},
        kv::{CatalogHash, Txn},
        store::{Applied, CatalogStore},
    },
    error::{Error, Result},
};
use openraft::{
    EntryPayload, ErrorSubject, ErrorVerb, OptionalSend, RaftSnapshotBuilder, Snapshot, SnapshotMeta,
    storage::RaftStateMachine,
};
use parking_lot::Mutex;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::sync::watch;

/// The catalog under openraft.
#[derive(Clone)]
pub struct Machine {
    store: Arc<CatalogStore>,
    snapshots: PathBuf,
    applied: Arc<watch::Sender<u64>>,
    // Other nodes' entries carry time too: our own clock must not fall behind it.
    time: Arc<Mutex<Option<Arc<CatalogTime>>>>,
    building: Arc<Mutex<()>>,
}

impl Machine {
    /// Opens the catalog in `catalog` with its snapshots in `snapshots`; a damaged catalog, or one that is behind
    /// the newest snapshot, is rebuilt from that snapshot. The log gives the rest.
    ///
    /// # Errors
    /// When the snapshot is damaged too, or the disk refuses.
    pub fn open(catalog: &Path, snapshots: &Path) -> Result<Self> {
        files::create_dir(catalog)?;
        files::create_dir(snapshots)?;
        remove_leftovers(snapshots)?;
        let store = Arc::new(CatalogStore::open_or_set_aside(catalog)?);
        if let Some(path) = newest_snapshot(snapshots)? {
            let reader = DumpReader::open(&path)?;
            let header = reader.header().clone();
            if store.applied().last < header.applied.last {
                tracing::warn!(
                    index = header.applied.index(),
                    "rebuild the catalog from its snapshot"
                );
                dump::verify(&path)?;
                store.replace(reader, header.applied)?;
            }
        }
        let applied = Arc::new(watch::Sender::new(store.applied_index()));
        Ok(Self {
            store,
            snapshots: snapshots.to_owned(),
            applied,
            time: Arc::new(Mutex::new(None)),
            building: Arc::new(Mutex::new(())),
        })
    }

    /// The catalog below.
    #[must_use]
    pub fn store(&self) -> &Arc<CatalogStore> {
        &self.store
    }

    /// Told the applied index after every batch.
    #[must_use]
    pub fn applied(&self) -> watch::Receiver<u64> {
        self.applied.subscribe()
    }

    /// Index of the newest snapshot on disk.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn snapshot_index(&self) -> Result<Option<u64>> {
        Ok(newest_snapshot(&self.snapshots)?
            .as_deref()
            .and_then(snapshot_index))
    }

    pub(super) fn keep_time(&self, time: Arc<CatalogTime>) {
        *self.time.lock() = Some(time);
    }

    fn apply_batch(&self, entries: Vec<Entry>) -> Result<Vec<Reply>> {
        let before = self.store.applied();
        let mut membership = before.membership;
        let mut last = before.last;
        let mut txn = Txn::new(&*self.store);
        let mut replies = Vec::with_capacity(entries.len());
        let mut seen = 0;
        for entry in entries {
            last = Some(entry.log_id);
            replies.push(match entry.payload {
                EntryPayload::Blank => Reply::Done,
                EntryPayload::Membership(members) => {
                    membership = Membership::new(Some(entry.log_id), members);
                    Reply::Done
                }
                EntryPayload::Normal(proposal) => {
                    seen = seen.max(proposal.time);
                    apply(&mut txn, entry.log_id.index, &proposal)?
                }
            });
        }
        let (changes, hash) = txn.finish(CatalogHash::from_bytes(&before.hash))?;
        self.store.write(
            changes,
            Applied {
                last,
                membership,
                hash: hash.to_bytes(),
            },
        )?;
        if let Some(time) = &*self.time.lock() {
            time.observe(seen);
        }
        Ok(replies)
    }

    fn build(&self) -> Result<Snapshot<TypeConfig>> {
        let _one_at_a_time = self.building.lock();
        tracing::debug!(target: "holdfast::phase", phase = "raft-snapshot-build", index = self.store.applied_index());
        let aside = self
            .snapshots
            .join(format!("building-{}.tmp", ulid::Ulid::generate()));
        let header = match dump::write(&self.store, &aside) {
            Ok(header) => header,
            Err(e) => {
                files::remove(&aside)?;
                return Err(e);
            }
        };
        let path = self.adopt(&aside, &header)?;
        Ok(Snapshot {
            meta: meta(&header),
            snapshot: Box::new(SnapshotFile { path }),
        })
    }

    /// Gives a synced dump its name, durably, and removes older ones.
    fn adopt(&self, aside: &Path, header: &DumpHeader) -> Result<PathBuf> {
        let path = self.snapshots.join(format!(
            "{:020}-{}.snap",
            header.applied.index(),
            header.snapshot_id
        ));
        files::rename_durably(aside, &path)?;
        for older in snapshot_files(&self.snapshots)? {
            if older != path {
                files::remove(&older)?;
            }
        }
        files::sync_dir(&self.snapshots)?;
        Ok(path)
    }

    fn install(&self, meta: &SnapshotMeta<u64, openraft::BasicNode>, from: &Path) -> Result<()> {
        let header = dump::verify(from)?;
        if header.applied.last != meta.last_log_id || header.snapshot_id != meta.snapshot_id {
            return Err(Error::corrupt(
                "a received snapshot",
                "it is not the one that was announced",
            ));
        }
        let aside = self
            .snapshots
            .join(format!("installing-{}.tmp", ulid::Ulid::generate()));
        std::fs::copy(from, &aside).map_err(|e| Error::io("copy", from, e))?;
        std::fs::File::open(&aside)
            .and_then(|file| file.sync_all())
            .map_err(|e| Error::io("sync", &aside, e))?;
        let path = self.adopt(&aside, &header)?;
        self.store.replace(DumpReader::open(&path)?, header.applied)?;
        if from.starts_with(&self.snapshots) && from != path {
            files::remove(from)?;
        }
        Ok(())
    }
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, Membership), StorageError> {
        let applied = self.store.applied();
        Ok((applied.last, applied.membership))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Reply>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        let machine = self.clone();
        let replies = blocking(ErrorSubject::StateMachine, ErrorVerb::Write, move || {
            machine.apply_batch(entries)
        })
        .await?;
        self.applied.send_replace(self.store.applied_index());
        Ok(replies)
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<SnapshotFile>, StorageError> {
        let path = self
            .snapshots
            .join(format!("incoming-{}.tmp", ulid::Ulid::generate()));
        Ok(Box::new(SnapshotFile { path }))
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta<u64, openraft::BasicNode>,
        snapshot: Box<SnapshotFile>,
    ) -> Result<(), StorageError> {
        let machine = self.clone();
        let meta = meta.clone();
        blocking(ErrorSubject::Snapshot(None), ErrorVerb::Write, move || {
            machine.install(&meta, &snapshot.path)
        })
        .await?;
        if let Some(time) = &*self.time.lock() {
            let seen = self
                .store
                .catalog_time()
                .map_err(|e| storage_error(ErrorSubject::StateMachine, ErrorVerb::Read, &e.to_string()))?;
            time.observe(seen);
        }
        self.applied.send_replace(self.store.applied_index());
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<TypeConfig>>, StorageError> {
        let dir = self.snapshots.clone();
        blocking(ErrorSubject::Snapshot(None), ErrorVerb::Read, move || {
            let Some(path) = newest_snapshot(&dir)? else {
                return Ok(None);
            };
            let meta = meta(DumpReader::open(&path)?.header());
            Ok(Some(Snapshot {
                meta,
                snapshot: Box::new(SnapshotFile { path }),
            }))
        })
        .await
    }
}

impl RaftSnapshotBuilder<TypeConfig> for Machine {
    async fn build_snapshot(&mut self) -> Result<Snapshot<TypeConfig>, StorageError> {
        let machine = self.clone();
        blocking(ErrorSubject::Snapshot(None), ErrorVerb::Write, move || {
            machine.build()
        })
        .await
    }
}

async fn blocking<T: Send + 'static>(
    subject: ErrorSubject<u64>,
    verb: ErrorVerb,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T, StorageError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(e)) => {
            tracing::error!(error = %e, "the catalog failed");
            Err(storage_error(subject, verb, &e.to_string()))
        }
        Err(e) => Err(storage_error(subject, verb, &e.to_string())),
    }
}

fn meta(header: &DumpHeader) -> SnapshotMeta<u64, openraft::BasicNode> {
    SnapshotMeta {
        last_log_id: header.applied.last,
        last_membership: header.applied.membership.clone(),
        snapshot_id: header.snapshot_id.clone(),
    }
}

fn snapshot_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for item in std::fs::read_dir(dir).map_err(|e| Error::io("list", dir, e))? {
        let path = item.map_err(|e| Error::io("list", dir, e))?.path();
        if path.extension().is_some_and(|extension| extension == "snap") {
            files.push(path);
        }
    }
    // The index leads the name, so that names sort like indexes.
    files.sort();
    Ok(files)
}

fn newest_snapshot(dir: &Path) -> Result<Option<PathBuf>> {
    Ok(snapshot_files(dir)?.pop())
}

fn snapshot_index(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.split('-').next()?.parse().ok()
}

/// What a crash left half written.
fn remove_leftovers(dir: &Path) -> Result<()> {
    for item in std::fs::read_dir(dir).map_err(|e| Error::io("list", dir, e))? {
        let path = item.map_err(|e| Error::io("list", dir, e))?.path();
        if path.extension().is_some_and(|extension| extension == "tmp") {
            files::remove(&path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
