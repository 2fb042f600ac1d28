//! Marking: every chunk that a snapshot of a vault reaches, by the links in the clear.

use super::Gc;
use crate::{
    catalog::{
        CatalogView, Queries,
        model::{JournalPage, Snapshot},
    },
    data::{
        links::{LinkReader, NODES_AT_ONCE},
        page_object, root_object,
    },
    error::{Error, Result},
};
use holdfast_core::{ChunkId, SnapshotId, VaultId, limits};
use holdfast_repo::{Link, RootClear};
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

/// Most live chunks of one vault that are marked: 16 bytes each, so at most about 2 GiB while a collection runs.
const LIVE_MAX: usize = 64 << 20;

/// The first half of an id. Should two ids ever share it, one dead chunk stays: nothing live is lost.
type Half = [u8; 16];

fn half(id: &ChunkId) -> Half {
    let mut half = [0; 16];
    half.copy_from_slice(&id.0[..16]);
    half
}

/// What is live in one vault. Bounded by [`LIVE_MAX`]; vaults are taken one after the other.
#[derive(Default)]
pub(super) struct Live {
    ids: HashSet<Half>,
    /// Those with more than one place.
    repeated: HashSet<Half>,
}

impl Live {
    pub fn has(&self, id: &ChunkId) -> bool {
        self.ids.contains(&half(id))
    }

    pub fn is_repeated(&self, id: &ChunkId) -> bool {
        self.repeated.contains(&half(id))
    }
}

/// Of a live chunk that lies in several packs, byte for byte the same, one place is enough: the newest.
/// (A collection that was interrupted after copying leaves such pairs; keeping the copy ends it.)
#[derive(Default)]
pub(super) struct Copies(HashMap<(Half, [u8; 16]), u32>);

impl Copies {
    /// Notes that pack number `pack` holds this blob; returns the pack that held it before.
    pub fn claim(&mut self, id: &ChunkId, check: [u8; 16], pack: u32) -> Option<u32> {
        self.0.insert((half(id), check), pack)
    }

    /// Whether the place in that pack is the one that counts.
    pub fn is_kept(&self, id: &ChunkId, check: [u8; 16], pack: u32) -> bool {
        self.0.get(&(half(id), check)).is_none_or(|kept| *kept == pack)
    }
}

impl Gc {
    /// Marks from all snapshots of a vault but `without`.
    pub(super) async fn mark(
        &self,
        view: &CatalogView,
        vault: VaultId,
        without: &HashSet<SnapshotId>,
    ) -> Result<Live> {
        let reader = LinkReader {
            store: Arc::clone(&self.store),
            index: Arc::clone(&self.index),
            vault,
        };
        let mut live = Live::default();
        let mut after = None;
        loop {
            let page = view.snapshots(after.as_deref(), limits::LIST_PAGE)?;
            for snapshot in page
                .items
                .iter()
                .filter(|s| s.vault == vault && !without.contains(&s.id))
            {
                self.mark_snapshot(&reader, snapshot, &mut live).await?;
            }
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        self.mark_journals(view, &reader, &mut live).await?;
        Ok(live)
    }

    async fn mark_snapshot(&self, reader: &LinkReader, snapshot: &Snapshot, live: &mut Live) -> Result<()> {
        let whose = format!("snapshot {} of {}", snapshot.id, snapshot.source);
        let root = root_object(&*self.store, snapshot).await;
        self.mark_root(reader, &whose, root, live).await
    }

    /// Every page of a journal is kept, whatever became of its files.
    async fn mark_journals(&self, view: &CatalogView, reader: &LinkReader, live: &mut Live) -> Result<()> {
        let mut after = None;
        loop {
            let pages = view.journal_pages(after.as_deref(), limits::LIST_PAGE)?;
            for page in pages.items.iter().filter(|page| page.vault == reader.vault) {
                let JournalPage { id, source, .. } = page;
                let whose = format!("page {id} of the journal of {source}");
                let root = page_object(&*self.store, page).await;
                self.mark_root(reader, &whose, root, live).await?;
            }
            after = pages.next;
            if after.is_none() {
                return Ok(());
            }
        }
    }

    async fn mark_root(
        &self,
        reader: &LinkReader,
        whose: &str,
        root: Result<bytes::Bytes>,
        live: &mut Live,
    ) -> Result<()> {
        let root = root.and_then(|bytes| Ok(RootClear::decode(&bytes)?));
        let root = root.map_err(|error| stop(whose, &format!("its root cannot be read ({error})")))?;
        let mut nodes = self.mark_links(reader, whose, &root.links.0, live).await?;
        while !nodes.is_empty() {
            let batch = nodes.split_off(nodes.len().saturating_sub(NODES_AT_ONCE));
            for (id, links) in batch.iter().zip(reader.links(&batch).await?) {
                let links = links.ok_or_else(|| stop(whose, &format!("its node {id} cannot be read")))?;
                nodes.extend(self.mark_links(reader, whose, &links, live).await?);
            }
        }
        Ok(())
    }

    /// Marks these; returns the nodes among them that were not marked before.
    async fn mark_links(
        &self,
        reader: &LinkReader,
        whose: &str,
        links: &[Link],
        live: &mut Live,
    ) -> Result<Vec<ChunkId>> {
        let mut new: Vec<Link> = links
            .iter()
            .filter(|link| live.ids.insert(half(&link.id)))
            .copied()
            .collect();
        if live.ids.len() > LIVE_MAX {
            return Err(Error::refused(
                holdfast_core::ErrorKind::TooLarge,
                format!(
                    "a vault has more than {LIVE_MAX} live chunks; this version cannot collect its garbage"
                ),
            ));
        }
        new.sort_unstable();
        let mut nodes = Vec::new();
        for part in new.chunks(limits::IDS_PER_QUERY) {
            let (vault, ids) = (reader.vault, part.iter().map(|link| link.id).collect::<Vec<_>>());
            let places = reader
                .index
                .blocking(move |index| index.locate(vault, &ids))
                .await?;
            for (link, places) in part.iter().zip(places) {
                match places.len() {
                    0 => return Err(stop(whose, &format!("its chunk {} is in no pack", link.id))),
                    1 => {}
                    _ => {
                        live.repeated.insert(half(&link.id));
                    }
                }
                if link.is_node {
                    nodes.push(link.id);
                }
            }
        }
        Ok(nodes)
    }
}

/// Nothing is deleted from a vault that is not whole: what seems dead may be what a repair needs.
fn stop(whose: &str, why: &str) -> Error {
    Error::corrupt(
        whose,
        format!(
            "{why}; nothing of its vault is collected. See `holdfastctl verify`; restore the object from another \
             copy, or delete the snapshot"
        ),
    )
}
