//! What a file is made of, in order: whole chunks, segments put together from parts of chunks, and holes.

use crate::{
    blob::Link,
    codec::{Reader, put_varint},
    entry::{ChunkRef, is_chunk_len, next_link},
    error::RepoError,
    keys::VaultKeys,
};
use holdfast_core::{
    ChunkId,
    limits::{CHUNK_MAX, SEGMENT_CHUNKS_MAX, SEGMENT_EXTENTS_MAX},
};
use std::collections::{HashMap, HashSet};

/// Kinds of entries in a leaf.
const WHOLE: u8 = 0;
const PARTS: u8 = 1;
const HOLE: u8 = 2;

/// A consecutive piece of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Segment {
    /// One chunk.
    Whole(ChunkRef),
    /// Put together from parts of chunks.
    Parts(Parts),
    /// So many zeros that the file system does not store.
    Hole(u64),
}

/// A segment without a chunk of its own: an rsync-style delta, flat, over ordinary chunks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parts {
    /// The id that the segment would have as a whole chunk; whoever puts it together checks that.
    pub hash: ChunkId,
    /// Its parts in order.
    pub extents: Vec<Extent>,
}

/// A range of a data chunk's raw content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// The chunk.
    pub chunk: ChunkId,
    /// Where the range begins in it.
    pub offset: u32,
    /// How long it is; never 0.
    pub len: u32,
}

impl Parts {
    /// Bytes of the segment.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "a segment is never empty")]
    pub fn len(&self) -> u32 {
        self.extents.iter().map(|extent| extent.len).sum()
    }

    /// The different chunks that it is made of, in the order of their first use.
    #[must_use]
    pub fn chunks(&self) -> Vec<ChunkId> {
        let mut seen = HashSet::new();
        let chunks = self.extents.iter().map(|extent| extent.chunk);
        chunks.filter(|chunk| seen.insert(*chunk)).collect()
    }

    /// Puts the segment together from the contents of its chunks, and checks it.
    ///
    /// # Errors
    /// `WrongContent` when a chunk is absent or too short, or the result is not what was recorded.
    pub fn assemble<'c>(
        &self,
        keys: &VaultKeys,
        content: impl Fn(&ChunkId) -> Option<&'c [u8]>,
        out: &mut Vec<u8>,
    ) -> Result<(), RepoError> {
        out.clear();
        for extent in &self.extents {
            let from = extent.offset as usize;
            let part = content(&extent.chunk).and_then(|raw| raw.get(from..from + extent.len as usize));
            let Some(part) = part else {
                out.clear();
                return Err(RepoError::WrongContent(extent.chunk));
            };
            out.extend_from_slice(part);
        }
        if keys.is_content(&self.hash, out) {
            return Ok(());
        }
        out.clear();
        Err(RepoError::WrongContent(self.hash))
    }

    /// Whether a reader would take it.
    fn check(&self) -> Result<(), RepoError> {
        let bad = |why| Err(crate::error::malformed("a segment", why));
        let total: u64 = self.extents.iter().map(|extent| u64::from(extent.len)).sum();
        if self.extents.is_empty() || self.extents.len() > SEGMENT_EXTENTS_MAX {
            bad("its parts are none or too many")
        } else if self.extents.iter().any(|extent| {
            extent.len == 0 || u64::from(extent.offset) + u64::from(extent.len) > CHUNK_MAX as u64
        }) {
            bad("a part lies outside of any chunk")
        } else if total > CHUNK_MAX as u64 {
            bad("it is longer than a segment may be")
        } else if self.chunks().len() > SEGMENT_CHUNKS_MAX {
            bad("it is made of too many chunks")
        } else {
            Ok(())
        }
    }
}

impl Segment {
    /// Bytes of the file that it stands for.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "a segment is never empty")]
    pub fn len(&self) -> u64 {
        match self {
            Self::Whole(chunk) => chunk.len.into(),
            Self::Parts(parts) => parts.len().into(),
            Self::Hole(len) => *len,
        }
    }

    /// The id that its content has, or would have as a whole chunk; none for a hole.
    #[must_use]
    pub fn hash(&self) -> Option<ChunkId> {
        match self {
            Self::Whole(chunk) => Some(chunk.id),
            Self::Parts(parts) => Some(parts.hash),
            Self::Hole(_) => None,
        }
    }

    /// The parts of chunks that hold `len` bytes of it from `from`; `None` outside of it or in a hole.
    #[must_use]
    pub fn slice(&self, from: u32, len: u32) -> Option<Vec<Extent>> {
        if u64::from(from) + u64::from(len) > self.len() {
            return None;
        }
        match self {
            Self::Hole(_) => None,
            Self::Whole(chunk) => Some(vec![Extent {
                chunk: chunk.id,
                offset: from,
                len,
            }]),
            Self::Parts(parts) => {
                let (mut found, mut at, end) = (Vec::new(), 0, from + len);
                for extent in &parts.extents {
                    let (low, high) = (from.max(at), end.min(at + extent.len));
                    if low < high {
                        found.push(Extent {
                            chunk: extent.chunk,
                            offset: extent.offset + (low - at),
                            len: high - low,
                        });
                    }
                    at += extent.len;
                }
                Some(found)
            }
        }
    }
}

impl From<ChunkRef> for Segment {
    fn from(chunk: ChunkRef) -> Self {
        Self::Whole(chunk)
    }
}

/// Segments of a leaf as they are encoded one after the other.
#[derive(Debug, Default)]
pub(crate) struct Encoder {
    pub body: Vec<u8>,
    pub links: Vec<Link>,
    known: HashMap<ChunkId, usize>,
}

impl Encoder {
    /// Links that the segment would add.
    pub fn links_for(&self, segment: &Segment) -> usize {
        match segment {
            Segment::Whole(_) => 1,
            Segment::Parts(parts) => {
                let chunks = parts.chunks();
                chunks
                    .iter()
                    .filter(|chunk| !self.known.contains_key(chunk))
                    .count()
            }
            Segment::Hole(_) => 0,
        }
    }

    pub fn push(&mut self, segment: &Segment) -> Result<(), RepoError> {
        match segment {
            Segment::Whole(chunk) => {
                self.body.push(WHOLE);
                put_varint(&mut self.body, chunk.len.into());
                self.link(chunk.id);
            }
            Segment::Parts(parts) => {
                parts.check()?;
                self.body.push(PARTS);
                put_varint(&mut self.body, parts.len().into());
                self.body.extend_from_slice(parts.hash.as_bytes());
                put_varint(&mut self.body, parts.extents.len() as u64);
                for extent in &parts.extents {
                    let known = self.known.get(&extent.chunk).copied();
                    let link = known.unwrap_or_else(|| self.link(extent.chunk));
                    put_varint(&mut self.body, link as u64);
                    put_varint(&mut self.body, extent.offset.into());
                    put_varint(&mut self.body, extent.len.into());
                }
            }
            Segment::Hole(len) => {
                self.body.push(HOLE);
                put_varint(&mut self.body, *len);
            }
        }
        Ok(())
    }

    fn link(&mut self, id: ChunkId) -> usize {
        let at = self.links.len();
        self.links.push(Link { id, is_node: false });
        self.known.entry(id).or_insert(at);
        at
    }
}

/// Reads one segment of a leaf. `used` are the links that the leaf has used so far; new ones come from
/// `links`.
pub(crate) fn decode(
    reader: &mut Reader<'_>,
    links: &mut std::slice::Iter<'_, Link>,
    used: &mut Vec<ChunkId>,
) -> Result<Segment, RepoError> {
    match reader.u8()? {
        WHOLE => {
            let len = reader.varint_u32()?;
            if !is_chunk_len(len) {
                return Err(reader.bad("a chunk's length is beyond its bound"));
            }
            let id = next_link(reader, links, false)?;
            used.push(id);
            Ok(Segment::Whole(ChunkRef { id, len }))
        }
        PARTS => {
            let len = reader.varint_u32()?;
            let hash = ChunkId(reader.array()?);
            let count = reader.count(3, SEGMENT_EXTENTS_MAX)?;
            let mut extents = Vec::with_capacity(count);
            for _ in 0..count {
                let link = usize::try_from(reader.varint()?).unwrap_or(usize::MAX);
                if link == used.len() {
                    used.push(next_link(reader, links, false)?);
                }
                let chunk = used.get(link).copied();
                extents.push(Extent {
                    chunk: chunk.ok_or_else(|| reader.bad("a part names a link before its turn"))?,
                    offset: reader.varint_u32()?,
                    len: reader.varint_u32()?,
                });
            }
            let parts = Parts { hash, extents };
            parts.check()?;
            if parts.len() != len {
                return Err(reader.bad("a segment's parts are not as long as it"));
            }
            Ok(Segment::Parts(parts))
        }
        HOLE => {
            let len = reader.varint()?;
            if len == 0 || len > i64::MAX as u64 {
                return Err(reader.bad("a hole's length is beyond its bound"));
            }
            Ok(Segment::Hole(len))
        }
        kind => Err(RepoError::TooNew {
            what: "a file node",
            version: 1,
            flags: kind.into(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_core::VaultId;
    use proptest::prelude::*;

    fn keys() -> VaultKeys {
        VaultKeys::from_secrets(VaultId([1; 16]), [2; 32], [3; 32])
    }

    fn extent(chunk: u8, offset: u32, len: u32) -> Extent {
        Extent {
            chunk: ChunkId([chunk; 32]),
            offset,
            len,
        }
    }

    fn round_trip(segments: &[Segment]) -> Result<Vec<Segment>, RepoError> {
        let mut encoder = Encoder::default();
        for segment in segments {
            encoder.push(segment)?;
        }
        let mut reader = Reader::new("test", &encoder.body);
        let (mut links, mut used) = (encoder.links.iter(), Vec::new());
        let mut back = Vec::new();
        while reader.remaining() > 0 {
            back.push(decode(&mut reader, &mut links, &mut used)?);
        }
        assert!(links.next().is_none());
        Ok(back)
    }

    #[test]
    fn neighbours_share_the_link_of_a_patch() {
        let parts = |hash, old| {
            Segment::Parts(Parts {
                hash: ChunkId([hash; 32]),
                extents: vec![extent(old, 0, 100), extent(99, 7, 50), extent(old, 150, 10)],
            })
        };
        let whole = Segment::Whole(ChunkRef {
            id: ChunkId([4; 32]),
            len: 9,
        });
        let segments = [
            parts(1, 4),
            whole.clone(),
            Segment::Hole(1 << 40),
            parts(2, 5),
            whole,
        ];
        assert_eq!(round_trip(&segments).unwrap(), segments);
        let mut encoder = Encoder::default();
        segments.iter().for_each(|segment| encoder.push(segment).unwrap());
        // 4, 99, 4 as a whole chunk, 5, and 4 once more: whole chunks take a link each.
        assert_eq!(encoder.links.len(), 5);
    }

    proptest! {
        #[test]
        fn any_segments_come_back(
            shape in proptest::collection::vec(
                (0_u8..3, proptest::collection::vec((0_u8..5, 0_u32..1000, 1_u32..1000), 1..40)), 0..20),
        ) {
            let segments: Vec<Segment> = shape
                .into_iter()
                .map(|(kind, parts)| match kind {
                    0 => Segment::Hole(parts[0].2.into()),
                    1 => Segment::Whole(ChunkRef { id: ChunkId([parts[0].0; 32]), len: parts[0].2 }),
                    _ => Segment::Parts(Parts {
                        hash: ChunkId([7; 32]),
                        extents: parts.into_iter().map(|(chunk, offset, len)| extent(chunk, offset, len)).collect(),
                    }),
                })
                .collect();
            prop_assert_eq!(round_trip(&segments).unwrap(), segments);
        }

        #[test]
        fn a_slice_holds_the_same_bytes(cuts in proptest::collection::vec((0_u8..4, 0_u32..200, 1_u32..50), 1..20),
            from in 0_u32..400, len in 0_u32..400) {
            let chunk = |id: u8| -> Vec<u8> { (0..250_u32).map(|i| (i as u8).wrapping_mul(id + 1)).collect() };
            let chunks: Vec<Vec<u8>> = (0..4).map(chunk).collect();
            let joined = |extents: &[Extent]| -> Vec<u8> {
                let part = |e: &Extent| &chunks[usize::from(e.chunk.0[0])][e.offset as usize..(e.offset + e.len) as usize];
                extents.iter().flat_map(part).copied().collect()
            };
            let parts = Parts {
                hash: ChunkId([0; 32]),
                extents: cuts.into_iter().map(|(c, offset, len)| extent(c, offset, len)).collect(),
            };
            let whole = joined(&parts.extents);
            let sliced = Segment::Parts(parts).slice(from, len);
            match whole.get(from as usize..(from + len) as usize) {
                Some(wanted) => prop_assert_eq!(joined(&sliced.unwrap()), wanted),
                None => prop_assert!(sliced.is_none()),
            }
        }
    }

    #[test]
    fn what_is_put_together_is_checked() {
        let keys = keys();
        let (old, patch) = (vec![1_u8; 1000], b"patched".to_vec());
        let content = [&old[..500], &patch[..], &old[507..]].concat();
        let (old_id, patch_id) = (keys.data_id(&old), keys.data_id(&patch));
        let at = |chunk, offset, len| Extent { chunk, offset, len };
        let mut parts = Parts {
            hash: keys.data_id(&content),
            extents: vec![at(old_id, 0, 500), at(patch_id, 0, 7), at(old_id, 507, 493)],
        };
        let chunks = HashMap::from([(old_id, old), (patch_id, patch)]);
        let get = |id: &ChunkId| chunks.get(id).map(Vec::as_slice);
        let mut out = Vec::new();
        parts.assemble(&keys, get, &mut out).unwrap();
        assert_eq!(out, content);
        parts.extents[2].offset -= 1;
        assert!(
            parts.assemble(&keys, get, &mut out).is_ok(),
            "the same bytes from elsewhere"
        );
        parts.extents[1].offset = 1;
        assert!(
            parts.assemble(&keys, get, &mut out).is_err() && out.is_empty(),
            "beyond the chunk"
        );
        parts.extents[1] = at(old_id, 0, 7);
        assert!(
            parts.assemble(&keys, get, &mut out).is_err() && out.is_empty(),
            "other bytes"
        );
    }

    #[test]
    fn hostile_segments_are_refused() {
        let refused = |extents: Vec<Extent>| {
            let parts = Parts {
                hash: ChunkId([0; 32]),
                extents,
            };
            assert!(round_trip(&[Segment::Parts(parts)]).is_err());
        };
        refused(Vec::new());
        refused(vec![extent(1, 0, 0)]);
        refused(vec![extent(1, u32::MAX, u32::MAX)]);
        refused(vec![extent(1, 0, CHUNK_MAX as u32), extent(1, 0, 1)]);
        refused(vec![extent(1, 0, 1); SEGMENT_EXTENTS_MAX + 1]);
        refused(
            (0..=SEGMENT_CHUNKS_MAX as u8)
                .map(|chunk| extent(chunk, 0, 1))
                .collect(),
        );
        // A link before its turn.
        let mut body = vec![PARTS, 1];
        body.extend_from_slice(&[0; 32]);
        body.extend_from_slice(&[1, 1, 0, 1]);
        let links = [Link {
            id: ChunkId([1; 32]),
            is_node: false,
        }; 2];
        let decoded = decode(
            &mut Reader::new("test", &body),
            &mut links.iter(),
            &mut Vec::new(),
        );
        assert!(decoded.is_err());
    }
}
