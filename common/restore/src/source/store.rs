//! Blobs straight from a store, with no controller: an index of one vault is built from its packs.

use super::{BlobSource, Fetched};
use crate::{
    RestoreError, Result,
    bounds::{PACKS_IN_FLIGHT, READ_GAP, READ_MAX},
};
use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, stream};
use holdfast_core::{
    ChunkId, PackId, VaultId,
    limits::{LIST_PAGE, PACK_MAX},
};
use holdfast_repo::pack::{HEADER_LEN, PackDirectory, PackEntry, TRAILER_LEN, Trailer, pack_vault};
use holdfast_store::{Area, ObjectKind, ObjectName, Store, StoreError};
use std::{collections::HashMap, sync::Arc};
use tokio::sync::OnceCell;

/// Blobs of one vault from one store. Damaged packs give what can be found in them.
pub struct StoreSource {
    store: Arc<dyn Store>,
    packs: Vec<(PackId, u64)>,
    index: Index,
    /// Found by reading every pack whole, once something was not found otherwise: a flipped bit in a
    /// pack's directory hides a blob that still lies there.
    salvaged: OnceCell<Index>,
    damaged: usize,
}

/// Where one blob lies. Packs are numbered, so that a location takes 12 bytes instead of 40.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Location {
    pack: u32,
    offset: u32,
    len: u32,
}

/// Locations by id; nearly every id has one.
#[derive(Default)]
struct Index {
    first: HashMap<ChunkId, Location>,
    more: HashMap<ChunkId, Vec<Location>>,
}

impl Index {
    fn add(&mut self, pack: usize, entries: &[PackEntry]) {
        self.first.reserve(entries.len());
        for entry in entries {
            let location = Location {
                pack: pack as u32,
                offset: entry.offset,
                len: entry.len,
            };
            if let Some(first) = self.first.get(&entry.id) {
                if *first != location {
                    self.more.entry(entry.id).or_default().push(location);
                }
            } else {
                self.first.insert(entry.id, location);
            }
        }
    }

    fn all(&self, id: &ChunkId) -> impl Iterator<Item = Location> {
        let more = self.more.get(id).into_iter().flatten();
        self.first.get(id).into_iter().chain(more).copied()
    }
}

impl StoreSource {
    /// Reads the directories of all packs of that vault.
    ///
    /// # Errors
    /// Those of the store; damaged packs are no error.
    pub async fn open(store: Arc<dyn Store>, vault: VaultId) -> Result<Self> {
        let mut packs = Vec::new();
        let mut last = None;
        loop {
            let page = store.list(Area::Packs, last.as_ref(), LIST_PAGE).await?;
            let Some(end) = page.last() else { break };
            last = Some(end.name.clone());
            packs.extend(page.into_iter().filter_map(|listed| match listed.name.kind() {
                Some(ObjectKind::Pack(id)) => Some((id, listed.len)),
                _ => None,
            }));
        }
        let mut index = Index::default();
        let mut damaged = 0;
        let mut read = stream::iter(packs.iter().copied().enumerate())
            .map(|(at, (id, len))| {
                let store = &store;
                async move { (at, id, directory(store.as_ref(), id, len, vault).await) }
            })
            .buffer_unordered(PACKS_IN_FLIGHT);
        while let Some((at, id, outcome)) = read.next().await {
            match outcome? {
                Contents::Whole(directory) => index.add(at, &directory.entries),
                Contents::Salvaged(directory) => {
                    tracing::warn!(pack = %id, blobs = directory.entries.len(), "a damaged pack was read past its damage");
                    damaged += 1;
                    index.add(at, &directory.entries);
                }
                Contents::Foreign => {}
            }
        }
        drop(read);
        Ok(Self {
            store,
            packs,
            index,
            salvaged: OnceCell::new(),
            damaged,
        })
    }

    /// Packs whose directory could not be read.
    #[must_use]
    pub fn damaged_packs(&self) -> usize {
        self.damaged
    }

    /// Blobs that were found.
    #[must_use]
    pub fn blobs(&self) -> usize {
        self.index.first.len()
    }

    async fn salvaged(&self) -> &Index {
        self.salvaged
            .get_or_init(|| async {
                tracing::warn!("blobs are missing from the packs' directories: every pack is searched");
                let mut index = Index::default();
                let mut read = stream::iter(self.packs.iter().copied().enumerate())
                    .map(|(at, (id, _))| async move { (at, salvage(self.store.as_ref(), id).await) })
                    .buffer_unordered(2);
                while let Some((at, outcome)) = read.next().await {
                    match outcome {
                        Ok(directory) => index.add(at, &directory.entries),
                        Err(error) => {
                            tracing::warn!(pack = %self.packs[at].0, %error, "a pack cannot be read");
                        }
                    }
                }
                index
            })
            .await
    }

    /// The blob from the first place that can be read and is not to be avoided.
    async fn fetch_one(&self, id: ChunkId, bad: &[PackId]) -> Result<Option<Fetched>> {
        if let Some(found) = self.read_from(&self.index, id, bad).await {
            return Ok(Some(found));
        }
        Ok(self.read_from(self.salvaged().await, id, bad).await)
    }

    async fn read_from(&self, index: &Index, id: ChunkId, bad: &[PackId]) -> Option<Fetched> {
        for location in index.all(&id) {
            let pack = self.packs[location.pack as usize].0;
            if bad.contains(&pack) {
                continue;
            }
            let name = ObjectName::pack(&pack);
            match self
                .store
                .get_range(&name, location.offset.into(), location.len as usize)
                .await
            {
                Ok(blob) => return Some((blob, Some(pack))),
                Err(error) => tracing::warn!(chunk = %id, %error, "a copy of a blob cannot be read"),
            }
        }
        None
    }
}

/// Blobs of one pack that are read together: (their places in the answer, locations), by offset.
type Run = Vec<(usize, Location)>;

#[async_trait]
impl BlobSource for StoreSource {
    async fn fetch(&self, ids: &[ChunkId]) -> Result<Vec<Option<Fetched>>> {
        self.fetch_within(ids, usize::MAX).await
    }

    async fn fetch_within(&self, ids: &[ChunkId], bytes: usize) -> Result<Vec<Option<Fetched>>> {
        let mut left = bytes;
        let mut beyond = vec![false; ids.len()];
        let mut wanted: Run = ids
            .iter()
            .enumerate()
            .filter_map(|(at, id)| self.index.first.get(id).map(|location| (at, *location)))
            .filter(|(at, location)| {
                let rest = left.checked_sub(location.len as usize);
                beyond[*at] = rest.is_none();
                left = rest.unwrap_or(left);
                rest.is_some()
            })
            .collect();
        wanted.sort_unstable_by_key(|(_, location)| (location.pack, location.offset));
        let mut runs: Vec<Run> = Vec::new();
        for next in wanted {
            match runs.last_mut() {
                Some(run) if joins(run, next.1) => run.push(next),
                _ => runs.push(vec![next]),
            }
        }
        let mut answers: Vec<Option<Fetched>> = vec![None; ids.len()];
        let mut reads = stream::iter(runs.into_iter().map(|run| self.read_run(run))).buffer_unordered(4);
        while let Some(found) = reads.next().await {
            found
                .into_iter()
                .for_each(|(at, fetched)| answers[at] = Some(fetched));
        }
        drop(reads);
        for (at, id) in ids.iter().enumerate() {
            if answers[at].is_none() && !beyond[at] {
                answers[at] = self.fetch_one(*id, &[]).await?;
            }
        }
        Ok(answers)
    }

    async fn fetch_avoiding(&self, id: ChunkId, bad: &[PackId]) -> Result<Option<Fetched>> {
        self.fetch_one(id, bad).await
    }
}

fn joins(run: &Run, next: Location) -> bool {
    match (run.first(), run.last()) {
        (Some((_, first)), Some((_, last))) => {
            let end = u64::from(last.offset) + u64::from(last.len);
            first.pack == next.pack
                && u64::from(next.offset).saturating_sub(end) <= READ_GAP
                && u64::from(next.offset) + u64::from(next.len) - u64::from(first.offset) <= READ_MAX
        }
        _ => false,
    }
}

impl StoreSource {
    /// What a run holds; nothing when it cannot be read, and then its blobs are tried one by one.
    async fn read_run(&self, run: Run) -> Vec<(usize, Fetched)> {
        let Some(first) = run.first().map(|(_, location)| *location) else {
            return Vec::new();
        };
        let start = u64::from(first.offset);
        let end = run
            .iter()
            .map(|(_, l)| u64::from(l.offset) + u64::from(l.len))
            .max()
            .unwrap_or(start);
        let pack = self.packs[first.pack as usize].0;
        match self
            .store
            .get_range(&ObjectName::pack(&pack), start, (end - start) as usize)
            .await
        {
            Ok(bytes) => run
                .into_iter()
                .map(|(at, location)| {
                    let from = (u64::from(location.offset) - start) as usize;
                    (at, (bytes.slice(from..from + location.len as usize), Some(pack)))
                })
                .collect(),
            Err(error) => {
                tracing::warn!(%pack, %error, "a part of a pack cannot be read");
                Vec::new()
            }
        }
    }
}

enum Contents {
    Whole(PackDirectory),
    Salvaged(PackDirectory),
    Foreign,
}

/// What a pack's directory lists, or what can be found without it.
async fn directory(store: &dyn Store, id: PackId, len: u64, vault: VaultId) -> Result<Contents> {
    match listed(store, id, len, vault).await {
        Ok(Some(directory)) => Ok(Contents::Whole(directory)),
        Ok(None) => Ok(Contents::Foreign),
        Err(RestoreError::Store(error @ StoreError::Offline { .. })) => Err(error.into()),
        Err(error) => {
            tracing::warn!(pack = %id, %error, "a pack's directory is damaged");
            let found = salvage(store, id).await;
            Ok(Contents::Salvaged(
                found.unwrap_or(PackDirectory { entries: Vec::new() }),
            ))
        }
    }
}

async fn listed(store: &dyn Store, id: PackId, len: u64, vault: VaultId) -> Result<Option<PackDirectory>> {
    let name = ObjectName::pack(&id);
    let head: Bytes = store.get_range(&name, 0, HEADER_LEN).await?;
    if pack_vault(&head)? != vault {
        return Ok(None);
    }
    let trailer_at = len.saturating_sub(TRAILER_LEN as u64);
    let trailer = store.get_range(&name, trailer_at, TRAILER_LEN).await?;
    let trailer = Trailer::decode(&trailer, len)?;
    let bytes = store
        .get_range(&name, trailer.directory_offset, trailer.directory_len as usize)
        .await?;
    Ok(Some(PackDirectory::decode(&bytes, trailer.directory_offset)?))
}

async fn salvage(store: &dyn Store, id: PackId) -> Result<PackDirectory> {
    let bytes = store.get(&ObjectName::pack(&id), PACK_MAX).await?;
    tokio::task::spawn_blocking(move || PackDirectory::salvage(&bytes))
        .await
        .map_err(|_| RestoreError::Worker)
}
