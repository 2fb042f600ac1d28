//! The links of nodes, read from their clear headers: how a controller walks a tree without its keys.

use crate::{
    error::Result,
    index::{ChunkIndex, Location},
};
use holdfast_core::{ChunkId, VaultId, limits::NODE_LINKS_MAX};
use holdfast_repo::{BlobHeader, Link, Links, blob};
use holdfast_store::{Store, read_places};
use std::{collections::HashSet, sync::Arc};

/// Longest header of a node.
const HEADER_MAX: usize = blob::FIXED_LEN + NODE_LINKS_MAX * 32 + NODE_LINKS_MAX / 8 + blob::CRC_LEN;
/// Nodes read together: bounds what a walker holds to 256 headers, 16 MiB at worst.
pub const NODES_AT_ONCE: usize = 256;

/// Reads nodes of one vault.
#[derive(Clone)]
pub struct LinkReader {
    /// Where the packs are.
    pub store: Arc<dyn Store>,
    /// Where the nodes are in them.
    pub index: Arc<ChunkIndex>,
    /// Whose.
    pub vault: VaultId,
}

impl LinkReader {
    /// The links of each node, at most [`NODES_AT_ONCE`] of them; none where no blob of it can be read. Of an id with
    /// several blobs the union of their links: any of them may be the one that a reader ends up with.
    ///
    /// # Errors
    /// When the index or the store fails as a whole.
    pub async fn links(&self, ids: &[ChunkId]) -> Result<Vec<Option<Vec<Link>>>> {
        let (vault, asked) = (self.vault, ids.to_vec());
        let located = self
            .index
            .blocking(move |index| index.locate(vault, &asked))
            .await?;
        let mut places = Vec::new();
        let mut owners = Vec::new();
        for (at, locations) in located.into_iter().enumerate() {
            for location in locations {
                let len = location.len.min(HEADER_MAX as u32);
                places.push(Location { len, ..location });
                owners.push(at);
            }
        }
        let headers = read_places(&*self.store, &places).await?;
        let mut found: Vec<Option<Vec<Link>>> = vec![None; ids.len()];
        for ((at, place), bytes) in owners.into_iter().zip(&places).zip(headers) {
            let Some(bytes) = bytes else { continue };
            match BlobHeader::decode(&bytes) {
                Ok(header) if header.id == ids[at] && header.kind.is_node() => {
                    add(&mut found[at], header.links)
                }
                Ok(_) => {
                    tracing::error!(pack = %place.pack, id = %ids[at], "another blob lies where a node was indexed")
                }
                Err(error) => {
                    tracing::error!(pack = %place.pack, id = %ids[at], %error, "a node's header is damaged")
                }
            }
        }
        Ok(found)
    }
}

fn add(found: &mut Option<Vec<Link>>, links: Links) {
    match found {
        None => *found = Some(links.0),
        Some(known) => {
            let there: HashSet<Link> = known.iter().copied().collect();
            known.extend(links.0.into_iter().filter(|link| !there.contains(link)));
        }
    }
}
