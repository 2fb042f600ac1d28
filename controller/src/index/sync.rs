//! Brings the index to what the catalog says, reading no more of a pack than its directory.

use super::{ChunkIndex, IndexedPack};
use crate::{
    catalog::{CatalogView, Queries},
    error::{Error, Result},
};
use holdfast_core::{HasKind as _, PackId, VaultId, limits};
use holdfast_repo::{
    PackDirectory, RepoError,
    pack::{HEADER_LEN, TRAILER_LEN, Trailer, pack_vault},
};
use holdfast_store::{ObjectName, Store};
use std::sync::Arc;

/// Packs whose directories are read and added together.
const PACKS_AT_ONCE: usize = 64;
/// Blobs added together, whatever the number of packs: bounds the batch.
const BLOBS_AT_ONCE: usize = 128 * 1024;

/// What was done.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct SyncReport {
    /// Packs added.
    pub indexed: u64,
    /// Packs removed because the catalog does not know them any more.
    pub dropped: u64,
    /// Packs that could not be read, and why; capped. They stay out of the index.
    pub failed: Vec<(PackId, String)>,
    /// Their exact number.
    pub failed_count: u64,
}

/// Indexes every registered pack that is missing and drops what is gone. Run before the node serves.
///
/// # Errors
/// Those of the catalog, the index, and a store that is away. A single pack that cannot be read is reported instead.
pub async fn sync(index: &Arc<ChunkIndex>, view: &CatalogView, store: &dyn Store) -> Result<SyncReport> {
    let mut report = SyncReport {
        dropped: drop_gone(index, view).await?,
        ..SyncReport::default()
    };
    let mut after: Option<Vec<u8>> = None;
    let mut ready: Vec<IndexedPack> = Vec::new();
    loop {
        let page = view.packs(after.as_deref(), limits::LIST_PAGE)?;
        let ids: Vec<PackId> = page.items.iter().map(|pack| pack.id).collect();
        let known = index
            .blocking(move |index| {
                ids.iter()
                    .map(|id| index.has_pack(*id))
                    .collect::<Result<Vec<_>>>()
            })
            .await?;
        for (pack, _) in page.items.iter().zip(known).filter(|(_, known)| !known) {
            match read_pack(store, pack.id, pack.vault, pack.len).await {
                Ok(read) => ready.push(read),
                Err(Error::Store(error)) if error.kind() == holdfast_core::ErrorKind::Unavailable => {
                    return Err(error.into());
                }
                Err(error) => {
                    tracing::error!(pack = %pack.id, %error, "a registered pack cannot be indexed");
                    report.failed_count += 1;
                    if report.failed.len() < limits::LISTED_PROBLEMS_MAX {
                        report.failed.push((pack.id, error.to_string()));
                    }
                }
            }
            let blobs: usize = ready.iter().map(|pack| pack.blobs.len()).sum();
            if ready.len() >= PACKS_AT_ONCE || blobs >= BLOBS_AT_ONCE {
                report.indexed += add(index, std::mem::take(&mut ready)).await?;
            }
        }
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    report.indexed += add(index, ready).await?;
    if index.blocking(ChunkIndex::needs_sweep).await? {
        index.blocking(ChunkIndex::sweep).await?;
    }
    Ok(report)
}

async fn add(index: &Arc<ChunkIndex>, packs: Vec<IndexedPack>) -> Result<u64> {
    let count = packs.len() as u64;
    index.blocking(move |index| index.add(&packs)).await?;
    Ok(count)
}

/// Removes from the index what the catalog does not know (any more); returns how many packs that were.
///
/// # Errors
/// Those of the catalog and the index.
pub async fn drop_gone(index: &Arc<ChunkIndex>, view: &CatalogView) -> Result<u64> {
    let mut after = None;
    let mut dropped = 0;
    loop {
        let packs = index
            .blocking(move |index| index.packs(after, limits::LIST_PAGE))
            .await?;
        let Some(last) = packs.last() else {
            return Ok(dropped);
        };
        after = Some(*last);
        let mut gone = Vec::new();
        for pack in packs {
            if !view.pack_exists(pack)? {
                gone.push(pack);
            }
        }
        dropped += gone.len() as u64;
        if !gone.is_empty() {
            index.blocking(move |index| index.remove(&gone)).await?;
        }
    }
}

/// Reads what a pack holds: its trailer and directory, or, where these are damaged, the headers of its blobs.
///
/// # Errors
/// Those of the store; `Corrupt` when the pack is another vault's or another length.
pub async fn read_pack(store: &dyn Store, id: PackId, vault: VaultId, len: u64) -> Result<IndexedPack> {
    let directory = match read_directory(store, id, vault, len).await {
        Err(Error::Repo(error)) => {
            tracing::error!(pack = %id, %error, "a pack's directory is damaged; reading its blobs one by one");
            let bytes = store.get(&ObjectName::pack(&id), limits::PACK_MAX).await?;
            tokio::task::spawn_blocking(move || PackDirectory::salvage(&bytes))
                .await
                .map_err(|_| Error::Internal("a reader of packs ended abnormally".into()))?
        }
        other => other?,
    };
    Ok(indexed(id, vault, &directory))
}

/// Reads a pack's directory with two or three small reads.
///
/// # Errors
/// Those of the store; `Repo` for damage.
pub async fn read_directory(
    store: &dyn Store,
    id: PackId,
    vault: VaultId,
    len: u64,
) -> Result<PackDirectory> {
    let name = ObjectName::pack(&id);
    let has = store
        .head(&name)
        .await?
        .ok_or_else(|| holdfast_store::StoreError::NotFound(name.clone()))?;
    if has != len {
        return Err(Error::corrupt(
            name.as_str(),
            format!("it is {has} bytes long instead of {len}"),
        ));
    }
    let trailer_at = len
        .checked_sub(TRAILER_LEN as u64)
        .ok_or_else(|| Error::corrupt(name.as_str(), "it is too short for a pack"))?;
    let header = store.get_range(&name, 0, HEADER_LEN).await?;
    if pack_vault(&header)? != vault {
        return Err(RepoError::Forged {
            what: "a pack",
            why: "it belongs to another vault",
        }
        .into());
    }
    let trailer = Trailer::decode(&store.get_range(&name, trailer_at, TRAILER_LEN).await?, len)?;
    if trailer.id != id {
        return Err(RepoError::Forged {
            what: "a pack",
            why: "its last bytes name another pack",
        }
        .into());
    }
    let directory_len = usize::try_from(trailer.directory_len).unwrap_or(usize::MAX);
    let bytes = store
        .get_range(&name, trailer.directory_offset, directory_len)
        .await?;
    Ok(PackDirectory::decode(&bytes, trailer.directory_offset)?)
}

/// The part of a directory that the index keeps.
#[must_use]
pub fn indexed(id: PackId, vault: VaultId, directory: &PackDirectory) -> IndexedPack {
    let blobs = directory
        .entries
        .iter()
        .map(|entry| (entry.id, entry.offset, entry.len))
        .collect();
    IndexedPack { id, vault, blobs }
}
