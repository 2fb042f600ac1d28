//! Open packs, one for data and one for nodes, and the hand-over of full ones to the remote side.

use super::stats::{Stats, add};
use crate::{error::Result, remote::Remote};
use bytes::Bytes;
use holdfast_core::{VaultId, limits};
use holdfast_repo::{PackWriter, SealedBlob};
use parking_lot::{Condvar, Mutex};

/// Node packs are closed earlier: a small run has few nodes, and what is open is memory.
const NODE_PACK_TARGET: usize = limits::PACK_TARGET / 4;

/// Collects blobs into packs. The thread that fills a pack sends it, so that a slow network slows
/// the readers instead of filling memory.
pub(super) struct Packer {
    vault: VaultId,
    data: Mutex<PackWriter>,
    nodes: Mutex<PackWriter>,
    /// The buffer of the last data pack that was sent. Allocated anew for each pack, such large ones would
    /// leave holes in the heap that nothing else fits.
    spare: Mutex<Option<Vec<u8>>>,
    /// Packs that may still be begun to send.
    permits: Mutex<usize>,
    freed: Condvar,
}

impl Packer {
    pub fn new(vault: VaultId) -> Self {
        Self {
            vault,
            data: Mutex::new(PackWriter::new(vault, Vec::new())),
            nodes: Mutex::new(PackWriter::new(vault, Vec::new())),
            spare: Mutex::new(None),
            permits: Mutex::new(limits::UPLOADS_IN_FLIGHT),
            freed: Condvar::new(),
        }
    }

    /// Adds a blob; sends the pack if that filled it.
    pub fn push(&self, blob: &SealedBlob<'_>, remote: &dyn Remote, stats: &Stats) -> Result<()> {
        let is_node = blob.header.kind.is_node();
        let mut open = if is_node {
            self.nodes.lock()
        } else {
            self.data.lock()
        };
        if open.is_empty() && !is_node {
            if let Some(spare) = self.spare.lock().take() {
                *open = PackWriter::new(self.vault, spare);
            }
            open.reserve(limits::PACK_TARGET + limits::CHUNK_MAX);
        }
        open.push(blob);
        if !(open.is_full() || is_node && open.len() >= NODE_PACK_TARGET) {
            return Ok(());
        }
        // Taken while the pack is still open: nobody fills the next one before this one may leave.
        self.take_permit();
        let full = std::mem::replace(&mut *open, PackWriter::new(self.vault, Vec::new()));
        drop(open);
        let sent = send(full, remote, stats);
        let outcome = sent.map(|buffer| {
            // Unique: taken over, not copied.
            if !is_node && buffer.is_unique() {
                *self.spare.lock() = Some(Vec::from(buffer));
            }
        });
        self.give_permit();
        outcome
    }

    /// Sends what is left.
    pub fn flush(&self, remote: &dyn Remote, stats: &Stats) -> Result<()> {
        for open in [&self.data, &self.nodes] {
            let rest = std::mem::replace(&mut *open.lock(), PackWriter::new(self.vault, Vec::new()));
            if !rest.is_empty() {
                send(rest, remote, stats)?;
            }
        }
        Ok(())
    }

    fn take_permit(&self) {
        let mut permits = self.permits.lock();
        while *permits == 0 {
            self.freed.wait(&mut permits);
        }
        *permits -= 1;
    }

    fn give_permit(&self) {
        *self.permits.lock() += 1;
        self.freed.notify_one();
    }
}

/// Sends a pack; returns its bytes.
fn send(pack: PackWriter, remote: &dyn Remote, stats: &Stats) -> Result<Bytes> {
    let (id, bytes) = pack.finish();
    tracing::debug!(target: "holdfast::phase", phase = "upload", pack = %id, len = bytes.len());
    let len = bytes.len() as u64;
    let bytes = Bytes::from(bytes);
    remote.upload(id, bytes.clone())?;
    add(&stats.bytes_stored, len);
    add(&stats.packs, 1);
    Ok(bytes)
}
