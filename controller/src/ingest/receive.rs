//! Takes the frames of a pack: writes, hashes and checks them as they come.

use super::Announced;
use crate::error::{Error, Result};
use bytes::Bytes;
use futures::{Stream, StreamExt};
use holdfast_core::{ErrorKind, PackId, VaultId};
use holdfast_repo::{
    PackDirectory,
    pack::{DIRECTORY_MAX, HEADER_LEN, TRAILER_LEN, Trailer, pack_vault},
};
use holdfast_store::Upload;
use std::collections::VecDeque;

/// Bytes hashed by one blocking task: large enough that starting it does not count.
const HASH_BATCH: usize = 1024 * 1024;
/// Bytes of the end of a pack that are kept until it is whole.
const TAIL_MAX: usize = DIRECTORY_MAX + TRAILER_LEN;
const HASH_LEN: u64 = 32;

/// A pack that is whole and is what it says.
pub struct Received {
    /// All its bytes, written.
    pub upload: Box<dyn Upload>,
    /// What it holds.
    pub directory: PackDirectory,
}

/// Receives until the stream ends. On any error the upload is given up.
pub(super) async fn receive<S>(
    mut upload: Box<dyn Upload>,
    announced: Announced,
    vault: VaultId,
    frames: S,
) -> Result<Received>
where
    S: Stream<Item = Result<Bytes>> + Unpin + Send,
{
    match take(&mut *upload, announced, vault, frames).await {
        Ok(directory) => Ok(Received { upload, directory }),
        Err(error) => {
            upload.abort().await;
            Err(error)
        }
    }
}

async fn take<S>(
    upload: &mut dyn Upload,
    announced: Announced,
    vault: VaultId,
    mut frames: S,
) -> Result<PackDirectory>
where
    S: Stream<Item = Result<Bytes>> + Unpin + Send,
{
    let mut hashing = Hashing::new(announced.len - HASH_LEN);
    let mut head = Vec::with_capacity(HEADER_LEN);
    let mut tail = Tail::default();
    let mut taken = 0_u64;
    while let Some(frame) = frames.next().await {
        let frame = frame?;
        taken += frame.len() as u64;
        if taken > announced.len {
            return Err(refused(announced.pack, "more bytes came than were announced"));
        }
        if head.len() < HEADER_LEN {
            head.extend_from_slice(&frame[..frame.len().min(HEADER_LEN - head.len())]);
            // As early as can be: a foreign pack is not worth its transfer.
            if head.len() == HEADER_LEN && pack_vault(&head)? != vault {
                return Err(Error::refused(
                    ErrorKind::Denied,
                    format!(
                        "pack {} belongs to another vault than the session",
                        announced.pack
                    ),
                ));
            }
        }
        tail.push(frame.clone());
        // Written and hashed side by side.
        let (written, hashed) = tokio::join!(upload.write(frame.clone()), hashing.push(frame));
        written?;
        hashed?;
    }
    if taken != announced.len {
        return Err(refused(
            announced.pack,
            "the stream ended before the announced length",
        ));
    }
    if hashing.finish().await? != announced.pack.0 {
        return Err(Error::corrupt(
            format!("pack {}", announced.pack),
            "its bytes are not those that its id names; it was changed on its way, send it again",
        ));
    }
    directory(&tail, announced)
}

/// Reads the directory from the end of a pack whose hash was checked.
fn directory(tail: &Tail, announced: Announced) -> Result<PackDirectory> {
    let trailer = Trailer::decode(&tail.last(TRAILER_LEN), announced.len)?;
    if trailer.id != announced.pack {
        return Err(refused(announced.pack, "its last bytes name another pack"));
    }
    // Bounded by the trailer's own check.
    let len = usize::try_from(trailer.directory_len)
        .unwrap_or(usize::MAX)
        .min(DIRECTORY_MAX);
    let end = tail.last(len + TRAILER_LEN);
    let bytes = end.get(..len).unwrap_or_default();
    Ok(PackDirectory::decode(bytes, trailer.directory_offset)?)
}

/// Whether these bytes are the announced pack, as far as its hash says.
pub(super) fn is_pack(bytes: &[u8], announced: Announced) -> bool {
    let Some(hashed) = bytes.len().checked_sub(HASH_LEN as usize) else {
        return false;
    };
    bytes.len() as u64 == announced.len
        && blake3::hash(&bytes[..hashed]).as_bytes() == announced.pack.as_bytes()
        && bytes[hashed..] == announced.pack.0
}

fn refused(pack: PackId, why: &str) -> Error {
    Error::refused(ErrorKind::Invalid, format!("pack {pack} is refused: {why}"))
}

/// Hashes all but the last bytes, off the async threads, a batch at a time.
struct Hashing {
    hasher: Option<blake3::Hasher>,
    left: u64,
    gathered: Vec<Bytes>,
    gathered_len: usize,
}

impl Hashing {
    fn new(len: u64) -> Self {
        Self {
            hasher: Some(blake3::Hasher::new()),
            left: len,
            gathered: Vec::new(),
            gathered_len: 0,
        }
    }

    async fn push(&mut self, frame: Bytes) -> Result<()> {
        let wanted = usize::try_from(self.left).unwrap_or(usize::MAX).min(frame.len());
        self.left -= wanted as u64;
        self.gathered_len += wanted;
        self.gathered.push(frame.slice(..wanted));
        if self.gathered_len >= HASH_BATCH {
            self.hash().await
        } else {
            Ok(())
        }
    }

    async fn hash(&mut self) -> Result<()> {
        let died = || Error::Internal("a hashing worker ended abnormally".into());
        let pieces = std::mem::take(&mut self.gathered);
        self.gathered_len = 0;
        let mut hasher = self.hasher.take().ok_or_else(died)?;
        let task = tokio::task::spawn_blocking(move || {
            for piece in &pieces {
                hasher.update(piece);
            }
            hasher
        });
        self.hasher = Some(task.await.map_err(|_| died())?);
        Ok(())
    }

    async fn finish(mut self) -> Result<[u8; 32]> {
        self.hash().await?;
        Ok(self
            .hasher
            .map(|hasher| *hasher.finalize().as_bytes())
            .unwrap_or_default())
    }
}

/// The last frames, as many as a directory can need.
#[derive(Default)]
struct Tail {
    frames: VecDeque<Bytes>,
    len: usize,
}

impl Tail {
    fn push(&mut self, frame: Bytes) {
        self.len += frame.len();
        self.frames.push_back(frame);
        while let Some(first) = self.frames.front() {
            if self.len - first.len() < TAIL_MAX {
                break;
            }
            self.len -= first.len();
            self.frames.pop_front();
        }
    }

    /// The last `wanted` bytes, or all where there are fewer.
    fn last(&self, wanted: usize) -> Vec<u8> {
        let mut skip = self.len.saturating_sub(wanted);
        let mut bytes = Vec::with_capacity(wanted.min(self.len));
        for frame in &self.frames {
            let skipped = skip.min(frame.len());
            skip -= skipped;
            bytes.extend_from_slice(&frame[skipped..]);
        }
        bytes
    }
}
