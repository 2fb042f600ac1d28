//! Recovery without controllers: a store and the recovery kit give everything back.
//!
//! The store is not trusted: keys count only with the signature of an admin whom the kit names, roots
//! only with the MAC of their vault, blobs only by their ids. What fails is refused and reported.

use crate::{ChunkReader, Journal, JournalFile, JournalRoots, RestoreError, Result, Snapshot, StoreSource};
use async_trait::async_trait;
use holdfast_core::{
    ErrorKind, HasKind, SnapshotId, SourceRef, UnixMillis, VaultId,
    limits::{KEY_OBJECT_MAX, LIST_PAGE, ROOT_MAX},
};
use holdfast_net::{
    kit::RecoveryKit,
    sealed::{self, SealedKind},
};
use holdfast_repo::{EntryKind, Root, VaultKeys};
use holdfast_store::{Area, Listed, ObjectKind, ObjectName, Store};
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

/// An object of the store that is not believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Its name in the store.
    pub object: String,
    /// The kind of the reason.
    pub kind: ErrorKind,
    /// Why.
    pub reason: String,
}

/// A snapshot whose root is genuine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoveredSnapshot {
    /// The snapshot.
    pub id: SnapshotId,
    /// Its vault.
    pub vault: VaultId,
    /// Its source.
    pub source: SourceRef,
    /// 1, 2, 3 … of this source.
    pub sequence: u64,
    /// When the run began.
    pub started_at: UnixMillis,
    /// When its content was complete.
    pub finished_at: UnixMillis,
    /// Some of the source could not be read.
    pub partial: bool,
    /// The host's name for itself; bytes, not UTF-8.
    pub hostname: Vec<u8>,
    /// Paths of its trees.
    pub paths: Vec<Vec<u8>>,
    /// Regular files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What a store and a recovery kit give.
pub struct Recovery {
    store: Arc<dyn Store>,
    keys: HashMap<VaultId, (u32, Arc<VaultKeys>)>,
    roots: BTreeMap<SnapshotId, Root>,
    /// Pages of journals.
    pages: BTreeMap<SnapshotId, Root>,
    refused: Vec<Refused>,
}

impl Recovery {
    /// Reads the keys and roots of a store.
    ///
    /// # Errors
    /// Those of the store. What is forged or damaged in it is no error here; see [`Self::refused`].
    pub async fn open(store: Arc<dyn Store>, kit: &RecoveryKit) -> Result<Self> {
        let mut this = Self {
            store,
            keys: HashMap::new(),
            roots: BTreeMap::new(),
            pages: BTreeMap::new(),
            refused: Vec::new(),
        };
        for listed in this.list(Area::Keys).await? {
            if let Some(ObjectKind::Key(vault, _)) = listed.name.kind() {
                let outcome = this.key(&listed.name, vault, kit).await;
                this.note(&listed.name, outcome);
            }
        }
        for listed in this.list(Area::Roots).await? {
            if let Some(ObjectKind::Root(vault, snapshot)) = listed.name.kind() {
                let outcome = this.root(&listed.name, vault, snapshot).await;
                this.note(&listed.name, outcome);
            }
        }
        Ok(this)
    }

    /// Snapshots by source and sequence.
    #[must_use]
    pub fn snapshots(&self) -> Vec<RecoveredSnapshot> {
        let mut snapshots: Vec<_> = self.roots.values().map(describe).collect();
        snapshots.sort_by(|a, b| (&a.source, a.sequence, a.id).cmp(&(&b.source, b.sequence, b.id)));
        snapshots
    }

    /// What was refused, and why. Show it: nothing in an honest and healthy store is refused.
    #[must_use]
    pub fn refused(&self) -> &[Refused] {
        &self.refused
    }

    /// Opens one snapshot; reads the directories of its vault's packs.
    ///
    /// # Errors
    /// `NotFound`; when its root was refused, the reason; those of the store.
    pub async fn snapshot(&self, id: SnapshotId) -> Result<Snapshot> {
        let Some(root) = self.roots.get(&id) else {
            let suffix = format!("/{id}");
            return Err(
                match self
                    .refused
                    .iter()
                    .find(|refused| refused.object.ends_with(&suffix))
                {
                    Some(refused) => RestoreError::Refused {
                        object: refused.object.clone(),
                        reason: refused.reason.clone(),
                        kind: refused.kind,
                    },
                    None => RestoreError::NoSuchSnapshot(id),
                },
            );
        };
        let (_, keys) = self
            .keys
            .get(&root.clear.vault)
            .ok_or(RestoreError::NoSuchSnapshot(id))?;
        let source = StoreSource::open(Arc::clone(&self.store), root.clear.vault).await?;
        Ok(Snapshot::new(root.clone(), Arc::new(source), Arc::clone(keys)))
    }

    /// What the store holds of a source's journal, for restores of a snapshot that `reader` reads. Of a name that came twice the
    /// first content counts, as in the catalog.
    #[must_use]
    pub fn journal(&self, source: &SourceRef, reader: ChunkReader) -> Journal {
        let mut pages: Vec<&Root> = self
            .pages
            .values()
            .filter(|page| page.clear.source == *source)
            .collect();
        pages.sort_by_key(|page| page.clear.sequence);
        let mut files = BTreeMap::new();
        for page in &pages {
            for tree in &page.sealed.trees {
                let name = tree
                    .path
                    .strip_prefix(b"/")
                    .and_then(|name| std::str::from_utf8(name).ok());
                if let Some(name) = name {
                    files.entry(name.to_owned()).or_insert(JournalFile {
                        len: tree.entry.size(),
                        page: page.clear.snapshot,
                        kept_at: page.clear.finished_at,
                    });
                }
            }
        }
        let roots = pages.into_iter().map(|page| (page.clear.snapshot, page.clone()));
        Journal::new(source.clone(), files, Arc::new(Stored(roots.collect())), reader)
    }

    async fn list(&self, area: Area) -> Result<Vec<Listed>> {
        let mut all: Vec<Listed> = Vec::new();
        loop {
            let page = self
                .store
                .list(area, all.last().map(|listed| &listed.name), LIST_PAGE)
                .await?;
            if page.is_empty() {
                return Ok(all);
            }
            all.extend(page);
        }
    }

    /// Takes a vault's keys from one object, if it is newer than what we have.
    async fn key(&mut self, name: &ObjectName, vault: VaultId, kit: &RecoveryKit) -> Result<()> {
        let bytes = self.store.get(name, KEY_OBJECT_MAX).await?;
        let (header, plain) = sealed::open(
            &bytes,
            &kit.recovery_key,
            &kit.admin_keys,
            vault,
            SealedKind::VaultKeys,
        )?;
        let keys = VaultKeys::decode(&plain)?;
        if keys.vault() != vault {
            return Err(RestoreError::Invalid("it holds the keys of another vault"));
        }
        if self
            .keys
            .get(&vault)
            .is_none_or(|(number, _)| *number < header.number)
        {
            self.keys.insert(vault, (header.number, Arc::new(keys)));
        }
        Ok(())
    }

    async fn root(&mut self, name: &ObjectName, vault: VaultId, snapshot: SnapshotId) -> Result<()> {
        let (_, keys) = self.keys.get(&vault).cloned().ok_or(RestoreError::Invalid(
            "the store holds no genuine key of its vault",
        ))?;
        let bytes = self.store.get(name, ROOT_MAX).await?;
        let root = Root::open(&bytes, &keys)?;
        if root.clear.snapshot != snapshot {
            return Err(RestoreError::Invalid("it is the root of another snapshot"));
        }
        if root.clear.is_journal {
            self.pages.insert(snapshot, root);
        } else {
            self.roots.insert(snapshot, root);
        }
        Ok(())
    }

    fn note(&mut self, name: &ObjectName, outcome: Result<()>) {
        if let Err(error) = outcome {
            tracing::warn!(object = %name, %error, "an object of the store is refused");
            // Whatever it is, the object is not what its name says.
            let kind = match error.kind() {
                ErrorKind::Invalid | ErrorKind::NotFound => ErrorKind::Denied,
                kind => kind,
            };
            self.refused.push(Refused {
                object: name.to_string(),
                kind,
                reason: error.to_string(),
            });
        }
    }
}

/// Pages that were read already.
struct Stored(BTreeMap<SnapshotId, Root>);

#[async_trait]
impl JournalRoots for Stored {
    async fn root(&self, page: SnapshotId) -> Result<Root> {
        self.0
            .get(&page)
            .cloned()
            .ok_or(RestoreError::NoSuchSnapshot(page))
    }
}

fn describe(root: &Root) -> RecoveredSnapshot {
    let (clear, sealed) = (&root.clear, &root.sealed);
    let counts = |f: fn(&EntryKind) -> u64| sealed.trees.iter().map(|tree| f(&tree.entry.kind)).sum();
    RecoveredSnapshot {
        id: clear.snapshot,
        vault: clear.vault,
        source: clear.source.clone(),
        sequence: clear.sequence,
        started_at: clear.started_at,
        finished_at: clear.finished_at,
        partial: clear.partial,
        hostname: sealed.hostname.clone(),
        paths: sealed.trees.iter().map(|tree| tree.path.clone()).collect(),
        files: counts(|kind| match kind {
            EntryKind::Dir { files, .. } => *files,
            EntryKind::File { .. } => 1,
            _ => 0,
        }),
        bytes: counts(|kind| match kind {
            EntryKind::Dir { bytes, .. } => *bytes,
            EntryKind::File { size, .. } => *size,
            _ => 0,
        }),
    }
}
