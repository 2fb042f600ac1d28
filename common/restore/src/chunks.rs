//! From ids to checked content: fetch, open, and on damage look for another copy.

use crate::{
    BlobSource, Fetched, RestoreError, Result,
    bounds::{COPIES_TRIED, FETCH_BYTES},
};
use holdfast_core::{ChunkId, ErrorKind, HasKind as _, PackId, limits::IDS_PER_QUERY};
use holdfast_repo::{BlobHeader, ChunkRef, Kind, Node, Opener, RepoError, VaultKeys};
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};
use tokio::runtime::Handle;

/// Where blobs come from and what opens them. Cheap to clone.
#[derive(Clone)]
pub struct ChunkReader {
    source: Arc<dyn BlobSource>,
    keys: Arc<VaultKeys>,
    runtime: Handle,
}

impl ChunkReader {
    /// A reader that waits for its source on the current tokio runtime; call it from within one.
    #[must_use]
    pub fn new(source: Arc<dyn BlobSource>, keys: Arc<VaultKeys>) -> Self {
        Self {
            source,
            keys,
            runtime: Handle::current(),
        }
    }

    /// The vault's keys.
    #[must_use]
    pub fn keys(&self) -> &Arc<VaultKeys> {
        &self.keys
    }

    /// One thread's opener.
    ///
    /// # Errors
    /// When a decompressor cannot be made.
    pub fn opener(&self) -> Result<BlobOpener> {
        Ok(BlobOpener {
            reader: self.clone(),
            opener: Opener::new(Arc::clone(&self.keys))?,
            raw: Vec::new(),
        })
    }

    /// Waits on a thread that may wait, never on one of the runtime.
    pub(crate) fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// Runs blocking work on a thread that may wait and compute.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut BlobOpener) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let reader = self.clone();
        tokio::task::spawn_blocking(move || work(&mut reader.opener()?))
            .await
            .map_err(|_| RestoreError::Worker)?
    }
}

/// Opens blobs on one plain thread, never on a thread of the runtime: its calls block.
pub struct BlobOpener {
    reader: ChunkReader,
    opener: Opener,
    raw: Vec<u8>,
}

impl BlobOpener {
    /// What it reads from.
    pub(crate) fn reader(&self) -> &ChunkReader {
        &self.reader
    }

    /// Blobs by id, each asked for once. Those beyond `bounds::FETCH_BYTES` are left out; opening them
    /// fetches them.
    ///
    /// # Errors
    /// Those of the source; what is not stored is no error yet.
    pub fn fetch(&self, ids: impl IntoIterator<Item = ChunkId>) -> Result<HashMap<ChunkId, Fetched>> {
        self.fetch_within(ids, FETCH_BYTES)
    }

    /// The same with another bound on the blobs' bytes.
    pub(crate) fn fetch_within(
        &self,
        ids: impl IntoIterator<Item = ChunkId>,
        bytes: usize,
    ) -> Result<HashMap<ChunkId, Fetched>> {
        let mut seen = HashSet::new();
        let ids: Vec<ChunkId> = ids.into_iter().filter(|id| seen.insert(*id)).collect();
        let mut found = HashMap::with_capacity(ids.len());
        let mut left = bytes;
        for piece in ids.chunks(IDS_PER_QUERY) {
            let fetching = self.reader.source.fetch_within(piece, left);
            let answers = self.reader.runtime.block_on(fetching)?;
            if answers.len() != piece.len() {
                return Err(RestoreError::Protocol("another number of blobs than of ids"));
            }
            let pairs = piece.iter().zip(answers);
            let pairs = pairs.filter_map(|(id, fetched)| Some((*id, fetched?)));
            found.extend(pairs.inspect(|(_, (blob, _))| left = left.saturating_sub(blob.len())));
        }
        Ok(found)
    }

    /// One blob, however long.
    fn fetch_one(&self, id: ChunkId) -> Result<Option<Fetched>> {
        Ok(self.fetch_within([id], usize::MAX)?.remove(&id))
    }

    /// The content of a chunk whose blob was fetched, is fetched now, or of another copy of it. `raw`
    /// receives it.
    ///
    /// # Errors
    /// `Missing`, `Damaged` in every copy, or the source's.
    pub fn open(&mut self, id: ChunkId, fetched: Option<&Fetched>, raw: &mut Vec<u8>) -> Result<BlobHeader> {
        let mut bad = Vec::new();
        let mut fetched = match fetched {
            Some(fetched) => Some(fetched.clone()),
            None => self.fetch_one(id)?,
        };
        let mut last: Option<RepoError> = None;
        loop {
            let Some((blob, pack)) = fetched else {
                raw.clear();
                return Err(last.map_or(RestoreError::Missing { id }, |reason| given_up(id, bad, reason)));
            };
            let error = match self.opener.open(id, &blob, raw) {
                Ok(header) => return Ok(header),
                Err(error) => error,
            };
            raw.clear();
            if !matches!(
                error.kind(),
                ErrorKind::Corrupt | ErrorKind::NotFound | ErrorKind::Unsupported
            ) {
                return Err(error.into());
            }
            // A flipped bit may pose as a newer version or another key: another copy may still be good.
            let known = pack.is_none_or(|pack| bad.contains(&pack));
            bad.extend(pack.filter(|_| !known));
            if known || bad.len() >= COPIES_TRIED {
                return Err(given_up(id, bad, error));
            }
            tracing::warn!(chunk = %id, %error, pack = ?pack, "a copy of a blob is bad; another one is tried");
            last = Some(error);
            fetched = self
                .reader
                .runtime
                .block_on(self.reader.source.fetch_avoiding(id, &bad))?;
        }
    }

    /// The content of a data chunk, as long as its reference says.
    ///
    /// # Errors
    /// As [`Self::open`]; `BadTree` when the reference does not fit.
    pub fn open_data(
        &mut self,
        chunk: &ChunkRef,
        fetched: Option<&Fetched>,
        raw: &mut Vec<u8>,
    ) -> Result<()> {
        let header = self.open(chunk.id, fetched, raw)?;
        if header.kind == Kind::Data && raw.len() == chunk.len as usize {
            Ok(())
        } else {
            raw.clear();
            Err(RestoreError::BadTree(
                "a chunk is not of the length or kind that its file says",
            ))
        }
    }

    /// The content of a data chunk of which only parts are wanted.
    pub(crate) fn open_any_data(&mut self, id: ChunkId, fetched: Option<&Fetched>) -> Result<Vec<u8>> {
        let mut raw = Vec::new();
        let header = self.open(id, fetched, &mut raw)?;
        if header.kind == Kind::Data {
            Ok(raw)
        } else {
            Err(RestoreError::BadTree("a part of a file is no data"))
        }
    }

    /// The vault's keys.
    pub(crate) fn keys(&self) -> &VaultKeys {
        &self.reader.keys
    }

    /// A node.
    ///
    /// # Errors
    /// As [`Self::open`]; those of decoding.
    pub fn open_node(&mut self, id: ChunkId, fetched: Option<&Fetched>) -> Result<Node> {
        let mut raw = std::mem::take(&mut self.raw);
        let outcome = self
            .open(id, fetched, &mut raw)
            .and_then(|header| Ok(Node::decode(header.kind, &header.links, &raw)?));
        self.raw = raw;
        outcome
    }
}

/// What to say when no copy opens: a key that is missing is not damage, and is the same for all copies.
fn given_up(id: ChunkId, packs: Vec<PackId>, reason: RepoError) -> RestoreError {
    if reason.kind() == ErrorKind::Corrupt {
        RestoreError::Damaged { id, packs, reason }
    } else {
        reason.into()
    }
}
