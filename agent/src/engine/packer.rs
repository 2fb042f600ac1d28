//! Open packs, one for data and one for nodes, and the hand-over of full ones to the threads that send them.

use super::{
    Shared,
    stats::{Stats, add},
};
use crate::{error::Result, remote::Remote};
use bytes::Bytes;
use holdfast_core::{VaultId, limits};
use holdfast_repo::{PackWriter, SealedBlob};
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;

/// Node packs are closed earlier: a small run has few nodes, and what is open is memory.
const NODE_PACK_TARGET: usize = limits::PACK_TARGET / 4;
/// Buffers of data packs: those under way and the one that is filled.
const BUFFERS: usize = limits::UPLOADS_IN_FLIGHT + 1;

/// Collects blobs into packs. Workers go on while full packs are sent; who fills one when as many as may be
/// under way are, waits. So a slow network slows the readers instead of filling memory.
pub(super) struct Packer {
    vault: VaultId,
    data: Mutex<PackWriter>,
    nodes: Mutex<PackWriter>,
    /// Buffers of data packs that were sent. Allocated anew for each pack, such large ones would leave holes in
    /// the heap that nothing else fits.
    spares: Mutex<Vec<Vec<u8>>>,
    full: Mutex<Full>,
    changed: Condvar,
}

/// Packs that are full.
#[derive(Default)]
struct Full {
    waiting: VecDeque<Pack>,
    /// Waiting or being sent; at most [`limits::UPLOADS_IN_FLIGHT`].
    under_way: usize,
    /// No more will come.
    closed: bool,
    /// The run failed: what is there is dropped, and nobody waits any more.
    stopped: bool,
}

struct Pack {
    writer: PackWriter,
    is_pooled: bool,
}

impl Packer {
    pub fn new(vault: VaultId) -> Self {
        Self {
            vault,
            data: Mutex::new(PackWriter::new(vault, Vec::new())),
            nodes: Mutex::new(PackWriter::new(vault, Vec::new())),
            spares: Mutex::new(Vec::with_capacity(BUFFERS)),
            full: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// Adds a blob; hands the pack over if that filled it.
    pub fn push(&self, blob: &SealedBlob<'_>) {
        let is_node = blob.header.kind.is_node();
        let mut open = if is_node {
            self.nodes.lock()
        } else {
            self.data.lock()
        };
        if open.is_empty() && !is_node {
            if let Some(spare) = self.spares.lock().pop() {
                *open = PackWriter::new(self.vault, spare);
            }
            open.reserve(limits::PACK_TARGET + limits::CHUNK_MAX);
        }
        open.push(blob);
        if open.is_full() || is_node && open.len() >= NODE_PACK_TARGET {
            // Handed over while it is locked: nobody fills the next one before this one may leave.
            self.hand_over(&mut open, !is_node);
        }
    }

    /// No more blobs will come: hands over what is left, and lets the sending threads end after it.
    pub fn close(&self) {
        for (open, is_pooled) in [(&self.data, true), (&self.nodes, false)] {
            let mut open = open.lock();
            if !open.is_empty() {
                self.hand_over(&mut open, is_pooled);
            }
        }
        self.full.lock().closed = true;
        self.changed.notify_all();
    }

    fn hand_over(&self, open: &mut PackWriter, is_pooled: bool) {
        let mut full = self.full.lock();
        while full.under_way >= limits::UPLOADS_IN_FLIGHT && !full.stopped {
            self.changed.wait(&mut full);
        }
        let writer = std::mem::replace(open, PackWriter::new(self.vault, Vec::new()));
        if full.stopped {
            return;
        }
        full.under_way += 1;
        full.waiting.push_back(Pack { writer, is_pooled });
        drop(full);
        self.changed.notify_all();
    }

    /// Lets everyone go on to their end.
    pub fn stop(&self) {
        self.full.lock().stopped = true;
        self.changed.notify_all();
    }

    fn next(&self) -> Option<Pack> {
        let mut full = self.full.lock();
        loop {
            if full.stopped {
                return None;
            }
            if let Some(pack) = full.waiting.pop_front() {
                return Some(pack);
            }
            if full.closed {
                return None;
            }
            self.changed.wait(&mut full);
        }
    }

    fn done(&self) {
        self.full.lock().under_way -= 1;
        self.changed.notify_all();
    }

    fn keep(&self, buffer: Vec<u8>) {
        let mut spares = self.spares.lock();
        if spares.len() < BUFFERS {
            spares.push(buffer);
        }
    }
}

/// A sending thread: sends packs until there will be no more, and stops everyone at the first failure.
pub(super) fn run(shared: &Shared) {
    let _working = shared.settings.limits.enter();
    let packer = &shared.packer;
    while let Some(Pack { writer, is_pooled }) = packer.next() {
        let sent = shared
            .check_cancelled()
            .and_then(|()| send(writer, shared.remote.as_ref(), &shared.stats));
        match sent {
            // Unique: taken over, not copied.
            Ok(bytes) if is_pooled && bytes.is_unique() => packer.keep(Vec::from(bytes)),
            Ok(_) => {}
            Err(error) => shared.fail(error),
        }
        packer.done();
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
