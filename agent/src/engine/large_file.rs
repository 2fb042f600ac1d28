//! A large file while it is stored: pieces come back from any worker in any order, and become the
//! segments of the file in theirs.

use super::{Shared, linked_files::LinkKey, section::Section, stats::add, store_chunk::Sink};
use crate::error::{AgentError, Result};
use holdfast_core::{ChunkId, limits::CHUNK_MAX};
use holdfast_repo::{Entry, EntryKind, Extent, FileBuilder, NodeDraft, Parts, Segment, VaultKeys};
use parking_lot::Mutex;
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicUsize, Ordering},
    },
};

/// A patch chunk is stored once it holds so much: large enough to compress well and to be few, small enough that
/// a restore can keep the patches of a segment and its neighbours, 64 of each, at hand.
const PATCH_TARGET: usize = 128 * 1024;
/// Pieces that may wait for a patch to fill up before it is stored as it is.
const WAITING_MAX: usize = 256;

/// A segment as a worker found it.
pub(super) enum Draft {
    /// Stored, or known to be.
    Done(Segment),
    /// Parts of old chunks and new bytes.
    Delta {
        /// The id that it would have as a whole.
        hash: ChunkId,
        /// In order.
        parts: Vec<DraftPart>,
        /// The new bytes, one after the other.
        literals: Vec<u8>,
    },
}

/// A part of a changed segment.
pub(super) enum DraftPart {
    /// Of an old chunk.
    Old(Extent),
    /// So many of the new bytes.
    New(u32),
}

/// A file whose pieces are on their way.
pub(super) struct LargeFile {
    section: Arc<Section>,
    index: u32,
    /// Set when other names of the file may wait for it.
    link: Option<LinkKey>,
    /// How far content stood behind its old place where it was last recognised.
    pub shift: AtomicI64,
    /// Set by the reader once it is through.
    final_entry: Mutex<Option<Entry>>,
    assembly: Mutex<Assembly>,
    /// Pieces not stored yet, and the reader itself.
    pending: AtomicUsize,
}

impl LargeFile {
    pub fn new(section: &Arc<Section>, index: u32, link: Option<LinkKey>) -> Arc<Self> {
        Arc::new(Self {
            section: Arc::clone(section),
            index,
            link,
            shift: AtomicI64::new(0),
            final_entry: Mutex::default(),
            assembly: Mutex::default(),
            pending: AtomicUsize::new(1),
        })
    }

    /// One more piece is on its way.
    pub fn begin_piece(&self) {
        self.pending.fetch_add(1, Ordering::AcqRel);
    }

    /// A piece is through; the last one finishes the file.
    pub fn end_piece(&self, shared: &Shared, sink: &mut Sink, number: u32, drafts: Vec<Draft>) -> Result<()> {
        self.add(shared, sink, number, drafts)?;
        self.part_done(shared, sink)
    }

    /// Takes the segments of a piece over.
    pub fn add(&self, shared: &Shared, sink: &mut Sink, number: u32, drafts: Vec<Draft>) -> Result<()> {
        let keys = &shared.settings.keys;
        let mut assembly = self.assembly.lock();
        let patches = assembly.add(keys, number, drafts)?;
        let nodes = assembly.builder.take_nodes();
        drop(assembly);
        store(shared, sink, patches, nodes)
    }

    /// Gives the file its final entry and reports the reader's part as done.
    pub fn finish_reading(&self, shared: &Shared, sink: &mut Sink, entry: Entry) -> Result<()> {
        *self.final_entry.lock() = Some(entry);
        self.part_done(shared, sink)
    }

    fn part_done(&self, shared: &Shared, sink: &mut Sink) -> Result<()> {
        if self.pending.fetch_sub(1, Ordering::AcqRel) != 1 {
            return Ok(());
        }
        let keys = &shared.settings.keys;
        let mut assembly = std::mem::take(&mut *self.assembly.lock());
        let patch = assembly.seal_patch(keys);
        assembly.drain(keys)?;
        if !assembly.waiting.is_empty() {
            return Err(AgentError::Internal("a piece of a file was lost".into()));
        }
        let (content, nodes) = assembly.builder.finish(keys)?;
        store(shared, sink, patch.into_iter().collect(), nodes)?;
        let entry = self.final_entry.lock().take();
        let mut entry = entry.ok_or_else(|| AgentError::Internal("a file ended before its reader".into()))?;
        if let EntryKind::File {
            content: place, size, ..
        } = &mut entry.kind
        {
            *place = content;
            add(&shared.stats.bytes, *size);
        }
        add(&shared.stats.files, 1);
        if let Some(key) = self.link {
            shared.linked_files.end(shared, sink, key, Some(&entry))?;
        }
        self.section.fill(self.index, Some(entry));
        self.section.part_done(shared, sink)
    }
}

type Patch = (ChunkId, Vec<u8>);

fn store(shared: &Shared, sink: &mut Sink, patches: Vec<Patch>, nodes: Vec<NodeDraft>) -> Result<()> {
    for (id, bytes) in &patches {
        sink.store_chunks(shared, &[(*id, bytes)])?;
    }
    nodes
        .into_iter()
        .try_for_each(|node| sink.store_node(shared, node))
}

/// Segments in the order of the file, as far as they are complete.
#[derive(Default)]
struct Assembly {
    next: u32,
    waiting: BTreeMap<u32, Vec<Pending>>,
    builder: FileBuilder,
    patch: Vec<u8>,
    /// Ids of the patches that are stored, by number.
    patches: Vec<ChunkId>,
}

enum Pending {
    Done(Segment),
    Delta { hash: ChunkId, parts: Vec<PendingPart> },
}

enum PendingPart {
    Old(Extent),
    Patch { number: usize, offset: u32, len: u32 },
}

impl Assembly {
    /// Adds a piece; returns the patches that are full.
    fn add(&mut self, keys: &VaultKeys, number: u32, drafts: Vec<Draft>) -> Result<Vec<Patch>> {
        let mut full = Vec::new();
        let mut pending = Vec::with_capacity(drafts.len());
        for draft in drafts {
            pending.push(match draft {
                Draft::Done(segment) => Pending::Done(segment),
                Draft::Delta {
                    hash,
                    parts,
                    literals,
                } => {
                    if self.patch.len() + literals.len() > CHUNK_MAX {
                        full.extend(self.seal_patch(keys));
                    }
                    let parts = self.place(parts);
                    self.patch.extend_from_slice(&literals);
                    Pending::Delta { hash, parts }
                }
            });
        }
        self.waiting.insert(number, pending);
        if self.patch.len() >= PATCH_TARGET || self.waiting.len() > WAITING_MAX {
            full.extend(self.seal_patch(keys));
        }
        self.drain(keys)?;
        Ok(full)
    }

    /// Where the new bytes of parts will stand, from the end of the patch on.
    fn place(&self, parts: Vec<DraftPart>) -> Vec<PendingPart> {
        let mut offset = self.patch.len() as u32;
        let placed = parts.into_iter().map(|part| match part {
            DraftPart::Old(extent) => PendingPart::Old(extent),
            DraftPart::New(len) => {
                offset += len;
                PendingPart::Patch {
                    number: self.patches.len(),
                    offset: offset - len,
                    len,
                }
            }
        });
        placed.collect()
    }

    /// Ends the patch that is being filled.
    fn seal_patch(&mut self, keys: &VaultKeys) -> Option<Patch> {
        if self.patch.is_empty() {
            return None;
        }
        let bytes = std::mem::take(&mut self.patch);
        let id = keys.data_id(&bytes);
        self.patches.push(id);
        Some((id, bytes))
    }

    /// Hands what is complete on to the builder.
    fn drain(&mut self, keys: &VaultKeys) -> Result<()> {
        while let Some(first) = self.waiting.first_entry() {
            let is_complete = |pending: &Pending| match pending {
                Pending::Done(_) => true,
                Pending::Delta { parts, .. } => parts.iter().all(|part| match part {
                    PendingPart::Old(_) => true,
                    PendingPart::Patch { number, .. } => *number < self.patches.len(),
                }),
            };
            if *first.key() != self.next || !first.get().iter().all(is_complete) {
                return Ok(());
            }
            self.next += 1;
            for pending in first.remove() {
                let segment = match pending {
                    Pending::Done(segment) => segment,
                    Pending::Delta { hash, parts } => Segment::Parts(Parts {
                        hash,
                        extents: parts.into_iter().filter_map(|part| self.extent(part)).collect(),
                    }),
                };
                self.builder.push(keys, segment)?;
            }
        }
        Ok(())
    }

    fn extent(&self, part: PendingPart) -> Option<Extent> {
        match part {
            PendingPart::Old(extent) => Some(extent),
            PendingPart::Patch { number, offset, len } => Some(Extent {
                chunk: *self.patches.get(number)?,
                offset,
                len,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_core::VaultId;
    use holdfast_repo::{ChunkRef, Content, FileNode, Node};

    fn whole(n: u8) -> Draft {
        Draft::Done(Segment::Whole(ChunkRef {
            id: ChunkId([n; 32]),
            len: 10,
        }))
    }

    fn delta(n: u8, literals: usize) -> Draft {
        let old = Extent {
            chunk: ChunkId([n; 32]),
            offset: 0,
            len: 100,
        };
        Draft::Delta {
            hash: ChunkId([n + 100; 32]),
            parts: vec![DraftPart::Old(old), DraftPart::New(literals as u32)],
            literals: vec![n; literals],
        }
    }

    #[test]
    fn pieces_in_any_order_become_segments_in_theirs() {
        let keys = VaultKeys::from_secrets(VaultId([1; 16]), [2; 32], [3; 32]);
        let mut assembly = Assembly::default();
        let mut patches = Vec::new();
        for (number, drafts) in [
            (2, vec![delta(2, 200_000)]),
            (0, vec![whole(0), delta(1, 300_000)]),
            (3, vec![whole(3)]),
            (1, vec![delta(4, 5)]),
        ] {
            patches.extend(assembly.add(&keys, number, drafts).unwrap());
        }
        patches.extend(assembly.seal_patch(&keys));
        assembly.drain(&keys).unwrap();
        assert!(assembly.waiting.is_empty());
        let (content, nodes) = assembly.builder.finish(&keys).unwrap();
        assert_eq!(content, Content::Node(nodes[0].id));
        let node = Node::decode(nodes[0].kind, &nodes[0].links, &nodes[0].payload).unwrap();
        let Node::File(FileNode::Leaf(segments)) = node else {
            panic!("{node:?}")
        };
        let hashes: Vec<u8> = segments.iter().map(|s| s.hash().unwrap().0[0]).collect();
        assert_eq!(hashes, [0, 101, 104, 102, 3]);
        for segment in segments {
            let Segment::Parts(parts) = segment else { continue };
            let [old, new] = parts.extents[..] else {
                panic!("{parts:?}")
            };
            let patch = patches.iter().find(|(id, _)| *id == new.chunk);
            let bytes = &patch.unwrap().1[new.offset as usize..(new.offset + new.len) as usize];
            assert!(bytes.iter().all(|byte| *byte == old.chunk.0[0]));
        }
    }

    #[test]
    fn many_pieces_do_not_wait_for_a_patch_that_hardly_fills() {
        let keys = VaultKeys::from_secrets(VaultId([1; 16]), [2; 32], [3; 32]);
        let mut assembly = Assembly::default();
        let mut patches = assembly.add(&keys, 0, vec![delta(1, 9)]).unwrap();
        for number in 1..=WAITING_MAX as u32 {
            patches.extend(assembly.add(&keys, number, vec![whole(1)]).unwrap());
        }
        assert_eq!((patches.len(), assembly.waiting.len()), (1, 0));
    }
}
