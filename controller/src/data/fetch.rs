//! Fetch: blobs by id, read with few reads and streamed in the order asked.

use super::{Data, access, wire};
use crate::{
    catalog::Queries as _,
    error::{Error, Result},
    index::{ChunkIndex, Location},
};
use bytes::Bytes;
use futures::Stream;
use holdfast_core::{ChunkId, ErrorKind, PackId, VaultId, limits};
use holdfast_net::status::to_status;
use holdfast_proto::v1 as pb;
use holdfast_repo::BlobHeader;
use holdfast_store::{Store, read_places};
use std::{collections::HashSet, sync::Arc};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tracing::Instrument;

/// Bytes of blobs read ahead of what is sent: enough for neighbours to be read together.
const WINDOW: u64 = 8 * 1024 * 1024;
/// A message is sent once it holds this much.
const MESSAGE_TARGET: usize = 1024 * 1024;
/// Messages that wait for the network.
const MESSAGES_READY: usize = 2;
/// Bytes of one pair of an id and a pack.
const PAIR: usize = ChunkId::LEN + PackId::LEN;
/// Most pairs to avoid: a few for each id.
const AVOID_MAX: usize = 8 * limits::IDS_PER_QUERY;

type Sender = mpsc::Sender<Result<pb::FetchResponse, Status>>;

impl Data {
    pub(super) fn fetch_blobs(
        &self,
        reader: &access::Reader,
        request: pb::FetchRequest,
    ) -> Result<impl Stream<Item = Result<pb::FetchResponse, Status>> + use<>> {
        let vault: VaultId = wire::id(&request.vault)?;
        let view = self.parts.catalog.view();
        if !reader.may_read(&view, vault)? {
            return Err(Error::refused(
                ErrorKind::Denied,
                "this vault is not yours to read",
            ));
        }
        if view.vault(vault)?.is_none() {
            return Err(Error::refused(
                ErrorKind::NotFound,
                format!("there is no vault {vault}"),
            ));
        }
        let fetch = Fetch {
            store: Arc::clone(&self.parts.store),
            index: Arc::clone(&self.parts.index),
            vault,
            ids: wire::chunk_ids(&request.ids)?,
            avoid: avoided(&request.avoid)?,
            only_headers: request.nodes_only_header,
            only_places: request.read_here[..] == self.parts.store.id().as_bytes()[..],
        };
        let (sender, receiver) = mpsc::channel(MESSAGES_READY);
        tokio::spawn(
            async move {
                if let Err(error) = fetch.run(&sender).await {
                    // Nobody listens any more: nothing is lost.
                    let _ = sender.send(Err(to_status(&error))).await;
                }
            }
            .in_current_span(),
        );
        Ok(ReceiverStream::new(receiver))
    }
}

fn avoided(bytes: &Bytes) -> Result<HashSet<(ChunkId, PackId)>> {
    let (pairs, rest) = bytes.as_chunks::<PAIR>();
    if !rest.is_empty() || pairs.len() > AVOID_MAX {
        return Err(Error::refused(
            ErrorKind::Invalid,
            format!("what to avoid is at most {AVOID_MAX} pairs of {PAIR} bytes"),
        ));
    }
    let half = |bytes: &[u8]| {
        let mut array = [0; 32];
        array.copy_from_slice(bytes);
        array
    };
    Ok(pairs
        .iter()
        .map(|pair| (ChunkId(half(&pair[..32])), PackId(half(&pair[32..]))))
        .collect())
}

struct Fetch {
    store: Arc<dyn Store>,
    index: Arc<ChunkIndex>,
    vault: VaultId,
    ids: Vec<ChunkId>,
    avoid: HashSet<(ChunkId, PackId)>,
    only_headers: bool,
    /// The caller reads the store itself.
    only_places: bool,
}

impl Fetch {
    async fn run(&self, sender: &Sender) -> Result<()> {
        let (vault, ids) = (self.vault, self.ids.clone());
        let mut located = self
            .index
            .blocking(move |index| index.locate(vault, &ids))
            .await?;
        for (id, places) in self.ids.iter().zip(&mut located) {
            places.retain(|place| !self.avoid.contains(&(*id, place.pack)));
        }
        let mut message = Message::default();
        if self.only_places {
            for places in located {
                let place = places.first().map(place);
                if !message.push(place.unwrap_or_default(), sender).await {
                    return Ok(());
                }
            }
            message.flush(sender).await;
            return Ok(());
        }
        let mut from = 0;
        while from < self.ids.len() {
            let mut to = from;
            let mut bytes = 0;
            while to < self.ids.len() && (to == from || bytes < WINDOW) {
                bytes += located[to].first().map_or(0, |place| u64::from(place.len));
                to += 1;
            }
            for blob in self.window(&self.ids[from..to], &located[from..to]).await? {
                if !message.push(blob, sender).await {
                    return Ok(());
                }
            }
            from = to;
        }
        message.flush(sender).await;
        Ok(())
    }

    /// Reads the first place of each id, and others only where that one is no good.
    async fn window(&self, ids: &[ChunkId], located: &[Vec<Location>]) -> Result<Vec<pb::FetchedBlob>> {
        let firsts: Vec<(usize, Location)> = located
            .iter()
            .enumerate()
            .filter_map(|(at, places)| Some((at, *places.first()?)))
            .collect();
        let places: Vec<Location> = firsts.iter().map(|(_, place)| *place).collect();
        let read = read_places(&*self.store, &places).await?;
        let mut blobs = vec![pb::FetchedBlob::default(); ids.len()];
        for ((at, place), bytes) in firsts.into_iter().zip(read) {
            blobs[at] = match bytes.map(|bytes| self.judge(ids[at], bytes)) {
                Some((bytes, true)) => found(bytes, place),
                first => {
                    self.elsewhere(ids[at], &located[at][1..], first.map(|(bytes, _)| (bytes, place)))
                        .await?
                }
            };
        }
        Ok(blobs)
    }

    /// Tries the other places. When none is good, damaged bytes are better than none: the reader finds out by its
    /// own check and says so, which 'not stored' would hide.
    async fn elsewhere(
        &self,
        id: ChunkId,
        others: &[Location],
        damaged: Option<(Bytes, Location)>,
    ) -> Result<pb::FetchedBlob> {
        let mut damaged = damaged;
        for place in others {
            let read = read_places(&*self.store, &[*place]).await?.pop().flatten();
            match read.map(|bytes| self.judge(id, bytes)) {
                Some((bytes, true)) => return Ok(found(bytes, *place)),
                Some((bytes, false)) => damaged = damaged.or(Some((bytes, *place))),
                None => {}
            }
        }
        Ok(damaged
            .map(|(bytes, place)| found(bytes, place))
            .unwrap_or_default())
    }

    /// The part of a blob that is sent, and whether its header is the one that was asked for.
    fn judge(&self, id: ChunkId, bytes: Bytes) -> (Bytes, bool) {
        match BlobHeader::decode(&bytes) {
            Ok(header) if header.id == id && header.blob_len() == bytes.len() => {
                let len = if self.only_headers {
                    header.encoded_len()
                } else {
                    bytes.len()
                };
                (bytes.slice(..len), true)
            }
            _ => (bytes, false),
        }
    }
}

fn found(blob: Bytes, place: Location) -> pb::FetchedBlob {
    pb::FetchedBlob {
        blob,
        pack: Bytes::copy_from_slice(place.pack.as_bytes()),
        ..pb::FetchedBlob::default()
    }
}

fn place(place: &Location) -> pb::FetchedBlob {
    pb::FetchedBlob {
        blob: Bytes::new(),
        pack: Bytes::copy_from_slice(place.pack.as_bytes()),
        offset: place.offset,
        len: place.len,
    }
}

#[derive(Default)]
struct Message {
    blobs: Vec<pb::FetchedBlob>,
    len: usize,
}

impl Message {
    /// Adds a blob; false when nobody listens any more.
    async fn push(&mut self, blob: pb::FetchedBlob, sender: &Sender) -> bool {
        self.len += blob.blob.len() + blob.pack.len();
        self.blobs.push(blob);
        self.len < MESSAGE_TARGET || self.flush(sender).await
    }

    async fn flush(&mut self, sender: &Sender) -> bool {
        self.len = 0;
        let blobs = std::mem::take(&mut self.blobs);
        blobs.is_empty() || sender.send(Ok(pb::FetchResponse { blobs })).await.is_ok()
    }
}
