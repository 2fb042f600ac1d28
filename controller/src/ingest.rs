//! Ingest: a pack from the wire to the disk, the catalog and the index, in this order, then the acknowledgement.
//!
//! **Architecture invariants.** Nothing is registered before its bytes, its name and its directory are synced.
//! Nothing is indexed before it is registered: an id that the index knows belongs to a pack that the catalog keeps.

mod receive;
mod registrar;

pub use registrar::Registrar;

use crate::{
    catalog::{CatalogView, PackOutcome, PackRegistration, Queries, model::Session},
    error::{Error, Result},
    index::{ChunkIndex, sync},
    raft::Catalog,
};
use bytes::Bytes;
use futures::Stream;
use holdfast_core::{ErrorKind, HasKind, PackId, limits};
use holdfast_repo::pack::{HEADER_LEN, TRAILER_LEN};
use holdfast_store::{Finished, ObjectName, Store, Upload};
use parking_lot::Mutex;
use std::{collections::HashSet, sync::Arc};

/// What a store keeps free for commits, deletions and garbage collection, unless configured: the smaller of
/// 2 % and this.
const RESERVE_MAX: u64 = 10 << 30;
/// Shortest thing that can be a pack.
const PACK_MIN: u64 = (HEADER_LEN + TRAILER_LEN) as u64;

/// Takes packs in.
pub struct Ingest {
    store: Arc<dyn Store>,
    index: Arc<ChunkIndex>,
    view: CatalogView,
    registrar: Registrar,
    reserve: Option<u64>,
    under_way: Mutex<HashSet<PackId>>,
}

/// A pack as its sender announces it.
#[derive(Debug, Clone, Copy)]
pub struct Announced {
    /// Its id.
    pub pack: PackId,
    /// Its length in bytes.
    pub len: u64,
}

impl Ingest {
    /// Ingest into this store. `reserve` is in bytes; `None` means the smaller of 2 % and 10 GiB.
    #[must_use]
    pub fn new(
        store: Arc<dyn Store>,
        index: Arc<ChunkIndex>,
        catalog: &Catalog,
        reserve: Option<u64>,
    ) -> Self {
        Self {
            store,
            index,
            view: catalog.view(),
            registrar: Registrar::start(catalog.clone()),
            reserve,
            under_way: Mutex::default(),
        }
    }

    /// Bytes that the store keeps free.
    #[must_use]
    pub fn reserve_of(&self, total: u64) -> u64 {
        self.reserve.unwrap_or_else(|| (total / 50).min(RESERVE_MAX))
    }

    /// Receives one pack for an open session; returns whether it was there already. Acknowledge when it returns `Ok`.
    ///
    /// # Errors
    /// `NoSpace` below the reserve or on a full disk; `Invalid`, `Corrupt` and `Denied` for what is no pack of the
    /// session's vault; `Conflict` for a pack that was deleted or is being received; `Fenced` from the catalog.
    pub async fn receive<S>(&self, session: &Session, announced: Announced, frames: S) -> Result<bool>
    where
        S: Stream<Item = Result<Bytes>> + Unpin + Send,
    {
        tracing::debug!(target: "holdfast::phase", phase = "upload");
        let Announced { pack, len } = announced;
        if !(PACK_MIN..=limits::PACK_MAX as u64).contains(&len) {
            return Err(Error::refused(
                ErrorKind::Invalid,
                format!(
                    "a pack has {PACK_MIN} to {} bytes, this one {len}",
                    limits::PACK_MAX
                ),
            ));
        }
        let _under_way = UnderWay::begin(&self.under_way, pack)?;
        if self.is_kept(session, announced).await? {
            return Ok(true);
        }
        self.check_space(session, len).await?;
        let upload = self.store.begin_upload().await?;
        let received = receive::receive(upload, announced, session.vault, frames).await?;
        self.store_durably(announced, received.upload).await?;
        let outcome = self.register(session, announced).await?;
        let indexed = sync::indexed(pack, session.vault, &received.directory);
        self.index.blocking(move |index| index.add(&[indexed])).await?;
        Ok(outcome)
    }

    /// Whether the pack is registered, on disk and in the index; an index that lacks it gets it.
    async fn is_kept(&self, session: &Session, announced: Announced) -> Result<bool> {
        let Announced { pack, len } = announced;
        if self.view.pack_deleted_at(pack)?.is_some() {
            return Err(Error::refused(
                ErrorKind::Conflict,
                format!("pack {pack} was deleted for ever; seal its content anew"),
            ));
        }
        let Some(known) = self.view.pack(pack)? else {
            return Ok(false);
        };
        if known.vault != session.vault || known.len != len {
            return Err(Error::refused(
                ErrorKind::Denied,
                format!("pack {pack} is registered for another vault or length"),
            ));
        }
        // One that the disk has lost is taken again: that heals it.
        if self.store.head(&ObjectName::pack(&pack)).await? != Some(len) {
            return Ok(false);
        }
        if !self.index.blocking(move |index| index.has_pack(pack)).await? {
            let read = sync::read_pack(&*self.store, pack, known.vault, len).await?;
            self.index.blocking(move |index| index.add(&[read])).await?;
        }
        Ok(true)
    }

    async fn check_space(&self, session: &Session, len: u64) -> Result<()> {
        let space = self.store.space().await?;
        let reserve = self.reserve_of(space.total);
        let kept = kept_free(reserve, session.is_journal);
        if space.free >= kept.saturating_add(len) {
            return Ok(());
        }
        let what = if session.is_journal {
            "even WAL is refused, which may use half of that"
        } else {
            "new data is refused"
        };
        Err(Error::refused(
            ErrorKind::NoSpace,
            format!(
                "the store has {} MiB free and keeps a reserve of {} MiB: {what}; free space with \
                 `holdfastctl snapshot delete` and `holdfastctl gc`, or make the store larger",
                space.free >> 20,
                reserve >> 20
            ),
        ))
    }

    async fn store_durably(&self, announced: Announced, upload: Box<dyn Upload>) -> Result<()> {
        let name = ObjectName::pack(&announced.pack);
        if upload.finish(&name).await? == Finished::Created {
            return Ok(());
        }
        // Left by an earlier attempt, or registered and damaged since: only good bytes may stay.
        let there = match self.store.get(&name, limits::PACK_MAX).await {
            Err(error) if error.kind() == ErrorKind::TooLarge => Bytes::new(),
            other => other?,
        };
        let good = tokio::task::spawn_blocking(move || receive::is_pack(&there, announced))
            .await
            .map_err(|_| Error::Internal("a hashing worker ended abnormally".into()))?;
        if good {
            return Ok(());
        }
        tracing::warn!(%name, "a damaged pack lay under the name of one that was sent; removing it");
        self.store.delete(&name).await?;
        Err(Error::Unavailable(format!(
            "a damaged {name} was in the way and is removed now; send the pack again"
        )))
    }

    async fn register(&self, session: &Session, announced: Announced) -> Result<bool> {
        let registration = PackRegistration {
            session: session.id,
            fence: session.fence,
            pack: announced.pack,
            vault: session.vault,
            len: announced.len,
        };
        match self.registrar.register(registration).await? {
            PackOutcome::Registered => Ok(false),
            PackOutcome::AlreadyThere => Ok(true),
            PackOutcome::Refused(refusal) => {
                // Nobody will ever ask for it; what a crash leaves here is removed by gc.
                if self.view.pack(announced.pack)?.is_none() {
                    self.store.delete(&ObjectName::pack(&announced.pack)).await?;
                }
                Err(Error::Refused(refusal))
            }
        }
    }
}

/// What a session must leave free of a store. WAL may use half of the reserve: a backup can be taken again when there is room,
/// while a server whose WAL nobody takes fills its own disk and stops.
fn kept_free(reserve: u64, is_journal: bool) -> u64 {
    if is_journal { reserve / 2 } else { reserve }
}

/// Marks a pack as being received: two streams of one pack would meet in the store.
struct UnderWay<'a> {
    packs: &'a Mutex<HashSet<PackId>>,
    pack: PackId,
}

impl<'a> UnderWay<'a> {
    fn begin(packs: &'a Mutex<HashSet<PackId>>, pack: PackId) -> Result<Self> {
        if !packs.lock().insert(pack) {
            return Err(Error::Unavailable(format!(
                "pack {pack} is being received already"
            )));
        }
        Ok(Self { packs, pack })
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.packs.lock().remove(&self.pack);
    }
}

#[cfg(test)]
mod tests;
