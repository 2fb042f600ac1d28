//! Typed questions to the catalog, the same for `apply`, services and tools.

use super::{
    keys,
    kv::{Read, decode},
    model::{
        Agent, Audit, GcRun, Job, JournalFile, JournalPage, Meta, Pack, Session, Snapshot, Source, Store,
        Token, Vault, VaultUse,
    },
    store::CatalogStore,
};
use crate::error::Result;
use holdfast_core::{JobId, Name, PackId, SessionId, SnapshotId, SourceRef, UnixMillis, VaultId};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::sync::Arc;

/// Where a pack's record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackPlace {
    /// Whose.
    pub vault: VaultId,
    /// Index of the entry that registered it.
    pub index: u64,
    /// Which of that entry's packs.
    pub ordinal: u32,
}

/// Part of a list, and the key to go on from.
#[derive(Debug, Clone)]
pub struct Page<T> {
    /// The records.
    pub items: Vec<T>,
    /// Give it as `after` for what follows; none at the end.
    pub next: Option<Vec<u8>>,
}

/// The catalog as one node has applied it, now: each call sees the state of its moment.
#[derive(Clone)]
pub struct CatalogView {
    store: Arc<CatalogStore>,
}

impl CatalogView {
    /// A view of this store.
    #[must_use]
    pub fn new(store: Arc<CatalogStore>) -> Self {
        Self { store }
    }

    /// Index of the last entry applied.
    #[must_use]
    pub fn applied_index(&self) -> u64 {
        self.store.applied_index()
    }

    /// The catalog hash at that index, both of one moment.
    #[must_use]
    pub fn hash(&self) -> (u64, String) {
        let (index, hash) = self.store.index_and_hash();
        (index, hash.to_string())
    }
}

impl Read for CatalogView {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        self.store.get(key)
    }

    fn page(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Result<Vec<super::kv::Row>> {
        self.store.page(prefix, after, limit)
    }
}

/// Typed questions. A page's `after` is the `next` of the page before.
pub trait Queries: Read + Sized {
    /// At most `limit` records under `prefix`.
    fn list<T: DeserializeOwned>(
        &self,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Page<T>> {
        let rows = self.page(prefix, after, limit)?;
        let next = if rows.len() < limit {
            None
        } else {
            rows.last().map(|(key, _)| key.clone())
        };
        let items = rows
            .iter()
            .map(|(_, value)| decode(value))
            .collect::<Result<_>>()?;
        Ok(Page { items, next })
    }

    /// Every record under `prefix`; only for tables that are known to be short.
    fn all<T: DeserializeOwned>(&self, prefix: &[u8]) -> Result<Vec<T>> {
        let mut items = Vec::new();
        self.scan(prefix, |_, value| {
            items.push(decode(value)?);
            Ok(true)
        })?;
        Ok(items)
    }

    /// What the cluster is; none before it is founded.
    fn meta(&self) -> Result<Option<Meta>> {
        self.record(&[keys::META])
    }

    /// Catalog time of the last entry.
    fn catalog_time(&self) -> Result<UnixMillis> {
        Ok(self.record(&[keys::CLOCK])?.unwrap_or(0))
    }

    /// The garbage collection that runs.
    fn gc_run(&self) -> Result<Option<GcRun>> {
        self.record(&[keys::GC])
    }

    /// A vault.
    fn vault(&self, id: VaultId) -> Result<Option<Vault>> {
        self.record(&keys::vault(id))
    }

    /// The job that backed a PostgreSQL cluster up last.
    fn cluster_job(&self, system_id: u64) -> Result<Option<JobId>> {
        self.record(&keys::cluster_job(system_id))
    }

    /// The vault of that name.
    fn vault_by_name(&self, name: &Name) -> Result<Option<Vault>> {
        match self.record::<VaultId>(&keys::vault_name(name))? {
            Some(id) => self.vault(id),
            None => Ok(None),
        }
    }

    /// All vaults.
    fn vaults(&self) -> Result<Vec<Vault>> {
        self.all(&[keys::VAULT])
    }

    /// A vault's key objects, oldest first.
    fn key_objects(&self, id: VaultId) -> Result<Vec<Vec<u8>>> {
        let objects: Vec<serde_bytes::ByteBuf> = self.all(&keys::key(keys::VAULT_KEY, &[id.as_bytes()]))?;
        Ok(objects.into_iter().map(serde_bytes::ByteBuf::into_vec).collect())
    }

    /// What a vault holds.
    fn vault_use(&self, id: VaultId) -> Result<VaultUse> {
        Ok(self.record(&keys::vault_use(id))?.unwrap_or_default())
    }

    /// An agent.
    fn agent(&self, name: &Name) -> Result<Option<Agent>> {
        self.record(&keys::agent(name))
    }

    /// Agents by name.
    fn agents(&self, after: Option<&[u8]>, limit: usize) -> Result<Page<Agent>> {
        self.list(&[keys::AGENT], after, limit)
    }

    /// The token that this hash belongs to.
    fn token(&self, auth_hash: &[u8; 32]) -> Result<Option<Token>> {
        self.record(&keys::token(auth_hash))
    }

    /// A source.
    fn source(&self, source: &SourceRef) -> Result<Option<Source>> {
        self.record(&keys::source(source))
    }

    /// Sources by name.
    fn sources(&self, after: Option<&[u8]>, limit: usize) -> Result<Page<Source>> {
        self.list(&[keys::SOURCE], after, limit)
    }

    /// A job.
    fn job(&self, id: JobId) -> Result<Option<Job>> {
        self.record(&keys::job(id))
    }

    /// Jobs, newest first.
    fn jobs(&self, after: Option<&[u8]>, limit: usize) -> Result<Page<Job>> {
        self.list(&[keys::JOB], after, limit)
    }

    /// Jobs that are not over, of one agent or of all; oldest first within an agent.
    fn active_jobs(&self, agent: Option<&Name>) -> Result<Vec<Job>> {
        let prefix = agent.map_or_else(|| vec![keys::JOB_ACTIVE], keys::job_active_prefix);
        let ids: Vec<JobId> = self.all(&prefix)?;
        ids.into_iter()
            .filter_map(|id| self.job(id).transpose())
            .collect()
    }

    /// A session.
    fn session(&self, id: SessionId) -> Result<Option<Session>> {
        self.record(&keys::session(id))
    }

    /// Sessions that may write, oldest first.
    fn open_sessions(&self) -> Result<Vec<Session>> {
        let ids: Vec<SessionId> = self.all(&[keys::SESSION_OPEN])?;
        ids.into_iter()
            .filter_map(|id| self.session(id).transpose())
            .collect()
    }

    /// A snapshot.
    fn snapshot(&self, id: SnapshotId) -> Result<Option<Snapshot>> {
        self.record(&keys::snapshot(id))
    }

    /// Snapshots of all sources, newest first, deleted ones too.
    fn snapshots(&self, after: Option<&[u8]>, limit: usize) -> Result<Page<Snapshot>> {
        self.list(&[keys::SNAPSHOT], after, limit)
    }

    /// Snapshots of one source, newest first, deleted ones too.
    fn snapshots_of(&self, source: &SourceRef, after: Option<&[u8]>, limit: usize) -> Result<Page<Snapshot>> {
        let ids = self.list::<SnapshotId>(&keys::snapshot_by_source_prefix(source), after, limit)?;
        let items = ids
            .items
            .into_iter()
            .filter_map(|id| self.snapshot(id).transpose())
            .collect::<Result<Vec<_>>>()?;
        Ok(Page {
            items,
            next: ids.next,
        })
    }

    /// A page of a journal.
    fn journal_page(&self, id: SnapshotId) -> Result<Option<JournalPage>> {
        self.record(&keys::journal_page(id))
    }

    /// Pages of all journals.
    fn journal_pages(&self, after: Option<&[u8]>, limit: usize) -> Result<Page<JournalPage>> {
        self.list(&[keys::JOURNAL_PAGE], after, limit)
    }

    /// The file of that name in a source's journal.
    fn journal_file(&self, source: &SourceRef, name: &str) -> Result<Option<JournalFile>> {
        self.record(&keys::journal_file(source, name))
    }

    /// Files of a source's journal by name.
    fn journal_files(
        &self,
        source: &SourceRef,
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Page<JournalFile>> {
        self.list(&keys::journal_file_prefix(source), after, limit)
    }

    /// A pack that is registered and not deleted.
    fn pack(&self, id: PackId) -> Result<Option<Pack>> {
        match self.record::<PackPlace>(&keys::pack_place(id))? {
            Some(place) => self.record(&keys::pack(place.vault, place.index, place.ordinal)),
            None => Ok(None),
        }
    }

    /// Whether the pack is registered and not deleted.
    fn pack_exists(&self, id: PackId) -> Result<bool> {
        Ok(self.get(&keys::pack_place(id))?.is_some())
    }

    /// Index of the entry that deleted the pack for ever; none when it never was.
    fn pack_deleted_at(&self, id: PackId) -> Result<Option<u64>> {
        self.record(&keys::pack_deleted(id))
    }

    /// Packs of one vault in the order of registration.
    fn packs_of(&self, vault: VaultId, after: Option<&[u8]>, limit: usize) -> Result<Page<Pack>> {
        self.list(&keys::pack_prefix(vault), after, limit)
    }

    /// Packs of all vaults, vault by vault.
    fn packs(&self, after: Option<&[u8]>, limit: usize) -> Result<Page<Pack>> {
        self.list(&[keys::PACK], after, limit)
    }

    /// Packs that a session registered, oldest first.
    fn packs_of_session(&self, session: &Session) -> Result<Vec<Pack>> {
        let mut found = Vec::new();
        // Nothing of a session is older than its fence.
        let mut after = Some(keys::pack(session.vault, session.fence, 0));
        while let Some(from) = after {
            let page = self.packs_of(session.vault, Some(&from), 1000)?;
            found.extend(
                page.items
                    .into_iter()
                    .filter(|pack| pack.session == Some(session.id)),
            );
            after = page.next;
        }
        Ok(found)
    }

    /// All stores.
    fn stores(&self) -> Result<Vec<Store>> {
        self.all(&[keys::STORE])
    }

    /// Audit records, newest first.
    fn audit(&self, after: Option<&[u8]>, limit: usize) -> Result<Page<Audit>> {
        self.list(&[keys::AUDIT], after, limit)
    }
}

impl<R: Read> Queries for R {}
