//! Which snapshots damage affects: those that reach a lost blob of which there is no other place.

use super::{AFFECTED_MAX, Verify, packs::DamagedPack};
use crate::{
    catalog::{CatalogView, Queries, model::SnapshotState},
    data::{
        links::{LinkReader, NODES_AT_ONCE},
        root_object,
    },
    error::Result,
};
use holdfast_core::{ChunkId, PackId, SnapshotId, VaultId, limits};
use holdfast_repo::{Link, RootClear};
use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

/// Damaged packs of one run whose snapshots are looked for; beyond, they are named without.
const PACKS_TRACED: usize = 256;
/// Snapshots walked, newest first, to find affected ones.
const SNAPSHOTS_WALKED: usize = 200;

/// The damage of a run.
pub(super) struct Damage<'a> {
    verify: &'a Verify,
    view: &'a CatalogView,
    packs: Vec<(DamagedPack, BTreeSet<SnapshotId>)>,
}

/// What is lost in one vault: chunk → numbers of the packs that lost it; and packs that are lost as a whole.
#[derive(Default)]
struct Lost {
    chunks: HashMap<ChunkId, Vec<usize>>,
    packs: HashMap<PackId, usize>,
}

impl<'a> Damage<'a> {
    pub fn new(verify: &'a Verify, view: &'a CatalogView) -> Self {
        Self {
            verify,
            view,
            packs: Vec::new(),
        }
    }

    pub fn add(&mut self, found: DamagedPack) {
        self.packs.push((found, BTreeSet::new()));
    }

    /// All damaged packs with the snapshots that they affect, as far as these were looked for.
    pub async fn judge(mut self) -> Result<Vec<(DamagedPack, BTreeSet<SnapshotId>)>> {
        let mut vaults: HashMap<VaultId, Lost> = HashMap::new();
        for (number, (found, _)) in self.packs.iter().enumerate().take(PACKS_TRACED) {
            let lost = vaults.entry(found.pack.vault).or_default();
            match &found.lost {
                Some(entries) => {
                    for entry in entries {
                        lost.chunks.entry(entry.id).or_default().push(number);
                    }
                }
                None => {
                    lost.packs.insert(found.pack.id, number);
                }
            }
        }
        for (vault, lost) in vaults {
            if !lost.chunks.is_empty() || !lost.packs.is_empty() {
                self.trace(vault, &lost).await?;
            }
        }
        Ok(self.packs)
    }

    async fn trace(&mut self, vault: VaultId, lost: &Lost) -> Result<()> {
        let reader = LinkReader {
            store: Arc::clone(&self.verify.store),
            index: Arc::clone(&self.verify.index),
            vault,
        };
        let mut walked = 0;
        let mut after = None;
        loop {
            let page = self.view.snapshots(after.as_deref(), limits::LIST_PAGE)?;
            for snapshot in page
                .items
                .iter()
                .filter(|s| s.vault == vault && s.state == SnapshotState::Visible)
            {
                walked += 1;
                if walked > SNAPSHOTS_WALKED || self.packs.iter().all(|(_, s)| s.len() >= AFFECTED_MAX) {
                    return Ok(());
                }
                // A root that cannot be read is a finding of its own.
                let Ok(bytes) = root_object(&*self.verify.store, snapshot).await else {
                    continue;
                };
                let Ok(root) = RootClear::decode(&bytes) else {
                    continue;
                };
                for number in walk(&reader, lost, root.links.0).await? {
                    self.packs[number].1.insert(snapshot.id);
                }
            }
            after = page.next;
            if after.is_none() {
                return Ok(());
            }
        }
    }
}

/// Numbers of the damaged packs that something below these links needs.
async fn walk(reader: &LinkReader, lost: &Lost, links: Vec<Link>) -> Result<BTreeSet<usize>> {
    let mut seen: HashSet<ChunkId> = HashSet::new();
    let mut hit = BTreeSet::new();
    let mut nodes: Vec<ChunkId> = Vec::new();
    let mut links = links;
    loop {
        links.retain(|link| seen.insert(link.id));
        for part in links.chunks(limits::IDS_PER_QUERY) {
            let (vault, ids) = (reader.vault, part.iter().map(|link| link.id).collect::<Vec<_>>());
            let places = reader
                .index
                .blocking(move |index| index.locate(vault, &ids))
                .await?;
            for (link, places) in part.iter().zip(places) {
                let none = Vec::new();
                let numbers = lost.chunks.get(&link.id).unwrap_or(&none);
                let whole: Vec<usize> = places
                    .iter()
                    .filter_map(|place| lost.packs.get(&place.pack).copied())
                    .collect();
                // One good place is enough.
                if !places.is_empty() && numbers.len() + whole.len() >= places.len() {
                    hit.extend(numbers.iter().chain(&whole));
                }
            }
        }
        nodes.extend(links.iter().filter(|link| link.is_node).map(|link| link.id));
        let batch = nodes.split_off(nodes.len().saturating_sub(NODES_AT_ONCE));
        if batch.is_empty() {
            return Ok(hit);
        }
        links = reader
            .links(&batch)
            .await?
            .into_iter()
            .flatten()
            .flatten()
            .collect();
    }
}
