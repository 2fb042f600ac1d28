//! A piece of a large file on its way into packs: what its old version holds already is referred to,
//! the rest is stored.

use super::{
    Shared,
    large_file::{Draft, DraftPart, LargeFile},
    old_file::Placed,
    store_chunk::Sink,
};
use crate::error::Result;
use holdfast_core::{ChunkId, limits::SEGMENT_EXTENTS_MAX};
use holdfast_repo::{
    ChunkRef, Segment, Strategy,
    delta::{self, Part, Signature},
};
use std::{
    collections::HashSet,
    sync::{Arc, atomic::Ordering},
};

/// Some consecutive segments of a large file, in memory.
pub(super) struct Piece {
    pub file: Arc<LargeFile>,
    pub number: u32,
    /// Where it begins in the file.
    pub offset: u64,
    pub bytes: Vec<u8>,
    pub lens: Vec<u32>,
    pub strategy: Strategy,
    /// What stood there, or near there, in the previous version.
    pub old: Vec<Placed>,
    /// Whether signatures of its segments are worth keeping.
    pub is_signed: bool,
}

/// What came of comparing a segment.
enum Found {
    /// It is there, or can be put together from what is.
    Draft(Draft),
    /// It is to be stored whole, under this id.
    New(ChunkId),
}

impl Piece {
    /// Bytes that it holds.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Recognises or stores its segments; the last piece finishes the file.
    pub fn store(mut self, shared: &Shared, sink: &mut Sink) -> Result<()> {
        let bytes = std::mem::take(&mut self.bytes);
        let drafts = self.drafts(shared, sink, &bytes)?;
        shared.buffers.give(bytes);
        self.file.end_piece(shared, sink, self.number, drafts)
    }

    fn drafts(&self, shared: &Shared, sink: &mut Sink, bytes: &[u8]) -> Result<Vec<Draft>> {
        let mut rest = bytes;
        let mut offset = self.offset;
        let (mut drafts, mut whole) = (Vec::with_capacity(self.lens.len()), Vec::new());
        for len in &self.lens {
            let (segment, tail) = rest.split_at(*len as usize);
            rest = tail;
            let draft = match self.strategy {
                Strategy::Fixed => self.compare_in_place(shared, offset, segment)?,
                Strategy::ContentDefined => self.search(shared, offset, segment)?,
            };
            drafts.push(match draft {
                Found::Draft(draft) => draft,
                Found::New(id) => {
                    whole.push((id, segment));
                    Draft::Done(Segment::Whole(ChunkRef { id, len: *len }))
                }
            });
            offset += u64::from(*len);
        }
        match self.strategy {
            Strategy::Fixed => sink.store_segments(shared, &whole)?,
            Strategy::ContentDefined => sink.store_chunks(shared, &whole)?,
        }
        Ok(drafts)
    }

    /// A segment of a file that is rewritten in place: compared with what stood there.
    fn compare_in_place(&self, shared: &Shared, offset: u64, bytes: &[u8]) -> Result<Found> {
        let keys = &shared.settings.keys;
        let (id, signature) = Signature::aligned(keys, bytes);
        let is_there =
            |placed: &&Placed| placed.offset == offset && placed.segment.len() == bytes.len() as u64;
        let old = self.old.iter().find(is_there);
        if let Some(old) = old
            && old.segment.hash() == Some(id)
            && is_kept(shared, &old.segment)
        {
            shared.signatures.touch(&id);
            return Ok(Found::Draft(Draft::Done(Segment::clone(&old.segment))));
        }
        if !self.is_signed {
            return Ok(Found::New(id));
        }
        let mut draft = None;
        if let Some(old) = old
            && let Some(Signature::Aligned(before)) = self.signature(shared, old)
            && let Signature::Aligned(now) = &signature
        {
            let parts = delta::compare_aligned(&before, now, bytes.len());
            draft = self.draft(shared, id, std::slice::from_ref(old), &parts, bytes);
        }
        let record = signature.encode(keys, &id);
        shared.signatures.put(&id, &[&record])?;
        Ok(draft.map_or(Found::New(id), Found::Draft))
    }

    /// A segment of a file whose content moves: searched for in what stood near there.
    fn search(&self, shared: &Shared, offset: u64, bytes: &[u8]) -> Result<Found> {
        let keys = &shared.settings.keys;
        let id = keys.data_id(bytes);
        let is_same = |placed: &&Placed| placed.segment.hash() == Some(id);
        if let Some(old) = self.old.iter().find(is_same)
            && is_kept(shared, &old.segment)
        {
            let shift = (offset as i64).wrapping_sub(old.offset as i64);
            self.file.shift.store(shift, Ordering::Relaxed);
            shared.signatures.touch(&id);
            return Ok(Found::Draft(Draft::Done(Segment::clone(&old.segment))));
        }
        if !self.is_signed {
            return Ok(Found::New(id));
        }
        if !shared.signatures.touch(&id) {
            let record = Signature::shifted(keys, bytes).encode(keys, &id);
            shared.signatures.put(&id, &[&record])?;
        }
        let signed: Vec<_> = self
            .old
            .iter()
            .filter_map(|placed| Some((self.signature(shared, placed)?, placed.clone())))
            .collect();
        if signed.is_empty() {
            return Ok(Found::New(id));
        }
        let signatures: Vec<&Signature> = signed.iter().map(|(signature, _)| signature).collect();
        let parts = delta::compare_shifted(keys, &signatures, bytes)?;
        let old: Vec<Placed> = signed.iter().map(|(_, placed)| placed.clone()).collect();
        let draft = self.draft(shared, id, &old, &parts, bytes);
        Ok(draft.map_or(Found::New(id), Found::Draft))
    }

    fn signature(&self, shared: &Shared, old: &Placed) -> Option<Signature> {
        let hash = old.segment.hash()?;
        let record = shared.signatures.get(&hash)?;
        Signature::decode(&shared.settings.keys, &hash, &record)
    }

    /// The segment as parts, if that pays and its reader will not need too many chunks.
    fn draft(
        &self,
        shared: &Shared,
        hash: ChunkId,
        old: &[Placed],
        parts: &[Part],
        bytes: &[u8],
    ) -> Option<Draft> {
        let (mut drafts, mut literals, mut chunks) = (Vec::new(), Vec::new(), HashSet::new());
        for part in parts {
            match *part {
                Part::New { offset, len } => {
                    literals.extend_from_slice(bytes.get(offset as usize..(offset + len) as usize)?);
                    drafts.push(DraftPart::New(len));
                }
                Part::Old { segment, offset, len } => {
                    for extent in old.get(segment)?.segment.slice(offset, len)? {
                        if shared.settings.missing.contains(&extent.chunk) {
                            return None;
                        }
                        chunks.insert(extent.chunk);
                        drafts.push(DraftPart::Old(extent));
                    }
                }
            }
            if literals.len() > bytes.len() / 2 || drafts.len() > SEGMENT_EXTENTS_MAX {
                return None;
            }
        }
        // One more for the patch.
        (chunks.len() < shared.settings.segment_chunks).then_some(Draft::Delta {
            hash,
            parts: drafts,
            literals,
        })
    }
}

/// Whether nothing of a segment is known to be lost.
fn is_kept(shared: &Shared, segment: &Segment) -> bool {
    let missing = &shared.settings.missing;
    missing.is_empty()
        || match segment {
            Segment::Whole(chunk) => !missing.contains(&chunk.id),
            Segment::Parts(parts) => parts
                .extents
                .iter()
                .all(|extent| !missing.contains(&extent.chunk)),
            Segment::Hole(_) => true,
        }
}
