//! Sealed copies of the catalog at the stores: a convenience for recovery, never an authority.

use crate::{
    catalog::{
        CatalogView, Queries as _,
        model::{Agent, Meta, Snapshot, Source, Vault},
    },
    error::{Error, Result},
    raft::Catalog,
};
use holdfast_core::{HasKind as _, limits};
use holdfast_net::{keys::SealingRecipient, sealed::age_seal};
use holdfast_store::{Area, ObjectName, Store};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// First bytes of a copy.
pub const MAGIC: [u8; 8] = *b"HFCAT\0\0\x01";
/// Bytes of the hash behind a copy.
pub const TRAILER_LEN: usize = 32;
/// Copies that are kept.
const KEPT: usize = 3;

/// What a copy holds: enough to find one's way, nothing that could not be rebuilt from roots.
#[derive(Debug, Serialize, Deserialize)]
pub struct CatalogCopy {
    /// Version of this form.
    pub version: u32,
    /// Index of the last entry applied.
    pub applied_index: u64,
    /// The cluster.
    pub meta: Option<Meta>,
    /// All vaults.
    pub vaults: Vec<Vault>,
    /// All agents.
    pub agents: Vec<Agent>,
    /// All sources.
    pub sources: Vec<Source>,
    /// All snapshots.
    pub snapshots: Vec<Snapshot>,
}

/// Checks a copy's frame: magic and hash. Needs no key.
#[must_use]
pub fn is_whole(bytes: &[u8]) -> bool {
    match bytes.split_last_chunk::<TRAILER_LEN>() {
        Some((body, trailer)) => body.starts_with(&MAGIC) && blake3::hash(body).as_bytes() == trailer,
        None => false,
    }
}

/// Writes a copy whenever a snapshot became visible, coalesced, until told to stop. A copy that
/// cannot be written is told in the log and tried again with the next change.
pub async fn keep_copies(catalog: Catalog, store: Arc<dyn Store>, stop: CancellationToken) {
    let mut applied = catalog.subscribe();
    let mut written = None;
    loop {
        applied.borrow_and_update();
        let newest = catalog
            .view()
            .snapshots(None, 1)
            .ok()
            .and_then(|page| page.items.first().map(|s| s.id));
        if newest != written && newest.is_some() {
            match write_copy(&catalog, store.as_ref()).await {
                Ok(()) => written = newest,
                Err(error) => tracing::warn!(%error, "the catalog's copy could not be written"),
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = applied.changed() => if changed.is_err() { return },
        }
    }
}

async fn write_copy(catalog: &Catalog, store: &dyn Store) -> Result<()> {
    let view = catalog.view();
    let bytes = tokio::task::spawn_blocking(move || encode(&view))
        .await
        .map_err(|error| Error::Internal(error.to_string()))??;
    let name = ObjectName::catalog(*holdfast_core::RequestId::generate().as_bytes());
    store.put(&name, bytes.into()).await?;
    let there = store.list(Area::Catalog, None, limits::LIST_PAGE).await?;
    // Names sort by time.
    for old in there.iter().rev().skip(KEPT) {
        store.delete(&old.name).await?;
    }
    Ok(())
}

fn encode(view: &CatalogView) -> Result<Vec<u8>> {
    let Some(meta) = view.meta()? else {
        return Err(Error::Unavailable("the cluster is not founded".into()));
    };
    let recipient: SealingRecipient = meta
        .recovery_recipient
        .parse()
        .map_err(|error: holdfast_net::NetError| Error::refused(error.kind(), error.to_string()))?;
    let copy = CatalogCopy {
        version: 1,
        applied_index: view.applied_index(),
        meta: Some(meta),
        vaults: view.vaults()?,
        agents: collect(|after| view.agents(after, limits::LIST_PAGE))?,
        sources: collect(|after| view.sources(after, limits::LIST_PAGE))?,
        snapshots: collect(|after| view.snapshots(after, limits::LIST_PAGE))?,
    };
    let plain = rmp_serde::to_vec_named(&copy).map_err(|error| Error::Internal(error.to_string()))?;
    let sealed =
        age_seal(&plain, &[recipient]).map_err(|error| Error::refused(error.kind(), error.to_string()))?;
    let mut out = MAGIC.to_vec();
    out.extend_from_slice(&sealed);
    let hash = blake3::hash(&out);
    out.extend_from_slice(hash.as_bytes());
    Ok(out)
}

fn collect<T>(page: impl Fn(Option<&[u8]>) -> Result<crate::catalog::Page<T>>) -> Result<Vec<T>> {
    let (mut all, mut after) = (Vec::new(), None);
    loop {
        let next = page(after.as_deref())?;
        all.extend(next.items);
        after = next.next;
        if after.is_none() {
            return Ok(all);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copys_frame_shows_every_flip_and_cut() {
        let mut copy = MAGIC.to_vec();
        copy.extend_from_slice(b"sealed part");
        let hash = blake3::hash(&copy);
        copy.extend_from_slice(hash.as_bytes());
        assert!(is_whole(&copy));
        for at in 0..copy.len() {
            assert!(!is_whole(&copy[..at]));
            let mut flipped = copy.clone();
            flipped[at] ^= 1;
            assert!(!is_whole(&flipped));
        }
    }
}
