//! Finding, without the old bytes, which parts of a segment its earlier version already holds.
//!
//! Two ways, as a file is cut. Segments of fixed length are compared block by block at the same place:
//! the chaining values of 8 KiB blocks are inner nodes of the BLAKE3 tree whose root is the segment's own
//! hash, so a list of them proves itself. Content that moved is found as rsync does it (rolling checksum
//! and MD4, by `fast_rsync`), and a match counts only if a keyed 256-bit hash of the block agrees:
//! content crafted to collide under MD4 must not make a snapshot that cannot be restored.

use crate::{error::RepoError, keys::VaultKeys};
use blake3::hazmat::{HasherExt as _, Mode, merge_subtrees_non_root, merge_subtrees_root};
use fast_rsync::{IndexedSignature, Signature as Rsync, SignatureOptions};
use holdfast_core::{ChunkId, limits::CHUNK_MAX};
use std::ops::Range;

/// Length of the blocks that are compared: a page of PostgreSQL, and a power of two of BLAKE3's chunks.
pub const BLOCK_LEN: usize = 8 * 1024;
/// Bytes of MD4 that are kept: the keyed hash decides.
const MD4_LEN: usize = 8;
/// Rolling checksum and MD4 of one block.
const RSYNC_LEN: usize = 4 + MD4_LEN;
const HASH_LEN: usize = 32;
/// What `fast_rsync` puts before the blocks of a signature: magic, length of blocks, length of hashes.
const RSYNC_MAGIC: [u8; 4] = 0x7273_0136_u32.to_be_bytes();
/// Longest encoded signature.
pub const SIGNATURE_MAX: usize = 1 + CHUNK_MAX / BLOCK_LEN * (RSYNC_LEN + HASH_LEN) + HASH_LEN;

/// What is remembered of a segment, to recognise its blocks in the next version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Signature {
    /// Chaining values of the blocks at their places.
    Aligned(Vec<[u8; HASH_LEN]>),
    /// Of whole blocks only.
    Shifted {
        /// Rolling checksum and MD4 of each.
        rsync: Vec<u8>,
        /// Keyed hash of each.
        strong: Vec<[u8; HASH_LEN]>,
    },
}

/// A part of a new segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The same bytes as in the old segment of that number.
    Old {
        /// Index into the list that was given.
        segment: usize,
        /// Where in that segment.
        offset: u32,
        /// How many.
        len: u32,
    },
    /// New bytes, at this place of the new segment.
    New {
        /// Where.
        offset: u32,
        /// How many.
        len: u32,
    },
}

const ALIGNED: u8 = 0;
const SHIFTED: u8 = 1;

impl Signature {
    /// The id of a segment, and the signature by which the next version is compared at the same places.
    #[must_use]
    pub fn aligned(keys: &VaultKeys, segment: &[u8]) -> (ChunkId, Self) {
        let blocks = segment.chunks(BLOCK_LEN).enumerate();
        let values: Vec<_> = blocks
            .map(|(at, block)| {
                let mut hasher = blake3::Hasher::new_keyed(keys.data_key());
                hasher.set_input_offset((at * BLOCK_LEN) as u64);
                hasher.update(block);
                hasher.finalize_non_root()
            })
            .collect();
        let id = merged(keys, &values).unwrap_or_else(|| keys.data_id(segment));
        (id, Self::Aligned(values))
    }

    /// The signature by which the next version is searched for this content, wherever it moved.
    #[must_use]
    pub fn shifted(keys: &VaultKeys, segment: &[u8]) -> Self {
        let blocks = segment.len() / BLOCK_LEN;
        let whole = &segment[..blocks * BLOCK_LEN];
        let options = SignatureOptions {
            block_size: BLOCK_LEN as u32,
            crypto_hash_size: MD4_LEN as u32,
        };
        let header = RSYNC_MAGIC.len() + 8;
        let rsync = Rsync::calculate(whole, options).into_serialized();
        Self::Shifted {
            rsync: rsync.get(header..).unwrap_or_default().to_vec(),
            strong: whole
                .chunks(BLOCK_LEN)
                .map(|block| keys.data_id(block).0)
                .collect(),
        }
    }

    /// The stored form of a segment's signature; its end binds it to the segment and to the vault's key.
    #[must_use]
    pub fn encode(&self, keys: &VaultKeys, segment: &ChunkId) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::Aligned(values) => {
                out.push(ALIGNED);
                values.iter().for_each(|value| out.extend_from_slice(value));
            }
            Self::Shifted { rsync, strong } => {
                out.push(SHIFTED);
                out.extend_from_slice(rsync);
                strong.iter().for_each(|hash| out.extend_from_slice(hash));
            }
        }
        let seal = keys.signature_mac(segment, &out);
        out.extend_from_slice(&seal);
        out
    }

    /// Reads the stored form; `None` for anything that was not stored for this segment under this key.
    #[must_use]
    pub fn decode(keys: &VaultKeys, segment: &ChunkId, bytes: &[u8]) -> Option<Self> {
        let (body, seal) = bytes.split_last_chunk::<HASH_LEN>()?;
        if keys.signature_mac(segment, body) != *seal {
            return None;
        }
        let (kind, rest) = body.split_first()?;
        match *kind {
            ALIGNED => {
                let (values, rest) = rest.as_chunks::<HASH_LEN>();
                rest.is_empty().then(|| Self::Aligned(values.to_vec()))
            }
            SHIFTED => {
                let blocks = rest.len() / (RSYNC_LEN + HASH_LEN);
                let (rsync, strong) = rest.split_at_checked(blocks * RSYNC_LEN)?;
                let (strong, rest) = strong.as_chunks::<HASH_LEN>();
                (rest.is_empty() && strong.len() == blocks).then(|| Self::Shifted {
                    rsync: rsync.to_vec(),
                    strong: strong.to_vec(),
                })
            }
            _ => None,
        }
    }
}

/// The keyed hash of a segment from the chaining values of its blocks; `None` for a single block, whose
/// value is no inner node.
fn merged(keys: &VaultKeys, values: &[[u8; HASH_LEN]]) -> Option<ChunkId> {
    let mode = Mode::KeyedHash(keys.data_key());
    let mut level = values.to_vec();
    // The left side of each node is the largest power of two: pairing neighbours gives just that tree,
    // since an odd one at the end goes up as it is.
    while level.len() > 2 {
        let pairs = level.chunks(2);
        level = pairs
            .map(|pair| match pair {
                [left, right] => merge_subtrees_non_root(left, right, mode),
                rest => rest[0],
            })
            .collect();
    }
    match level[..] {
        [left, right] => Some(ChunkId(*merge_subtrees_root(&left, &right, mode).as_bytes())),
        _ => None,
    }
}

/// Compares two versions of one segment of the same length, block by block.
#[must_use]
pub fn compare_aligned(old: &[[u8; HASH_LEN]], new: &[[u8; HASH_LEN]], len: usize) -> Vec<Part> {
    let mut parts = Parts::default();
    for (at, value) in new.iter().enumerate() {
        let (start, end) = (at * BLOCK_LEN, len.min((at + 1) * BLOCK_LEN));
        let is_old = old.len() == new.len() && old.get(at) == Some(value);
        parts.add(is_old.then_some((0, start)), start..end);
    }
    parts.0
}

/// Searches a new segment for blocks of old ones, which may have moved.
///
/// # Errors
/// `Primitive` when the matcher refuses its own signatures.
pub fn compare_shifted(keys: &VaultKeys, old: &[&Signature], new: &[u8]) -> Result<Vec<Part>, RepoError> {
    const FAILED: RepoError = RepoError::Primitive("the rsync matcher");
    let mut serialized = RSYNC_MAGIC.to_vec();
    serialized.extend_from_slice(&(BLOCK_LEN as u32).to_be_bytes());
    serialized.extend_from_slice(&(MD4_LEN as u32).to_be_bytes());
    let mut places = Vec::new();
    for (segment, signature) in old.iter().enumerate() {
        if let Signature::Shifted { rsync, strong } = signature {
            serialized.extend_from_slice(rsync);
            let blocks = strong.iter().enumerate();
            places.extend(blocks.map(|(at, hash)| (segment, at * BLOCK_LEN, hash)));
        }
    }
    #[expect(
        clippy::disallowed_methods,
        reason = "the head is ours, and what follows was authenticated when it was read"
    )]
    let signature = Rsync::deserialize(serialized).map_err(|_| FAILED)?;
    let index: IndexedSignature<'_> = signature.index();
    let mut delta = Vec::new();
    fast_rsync::diff(&index, new, &mut delta).map_err(|_| FAILED)?;
    let mut parts = Parts::default();
    let mut at = 0;
    for command in Commands::new(&delta).ok_or(FAILED)? {
        match command.ok_or(FAILED)? {
            Command::Literal(len) => {
                parts.add(None, at..at + len);
                at += len;
            }
            Command::Copy { offset, len } => {
                for block in 0..len / BLOCK_LEN {
                    let range = at..at + BLOCK_LEN;
                    let bytes = new.get(range.clone()).ok_or(FAILED)?;
                    let place = places.get(offset / BLOCK_LEN + block);
                    let confirmed = place.filter(|(_, _, hash)| keys.data_id(bytes).0 == **hash);
                    parts.add(confirmed.map(|(segment, offset, _)| (*segment, *offset)), range);
                    at += BLOCK_LEN;
                }
            }
        }
    }
    if at == new.len() { Ok(parts.0) } else { Err(FAILED) }
}

/// Parts as they are found; neighbours that continue each other become one.
#[derive(Default)]
struct Parts(Vec<Part>);

impl Parts {
    fn add(&mut self, old: Option<(usize, usize)>, range: Range<usize>) {
        let more = range.len() as u32;
        if more == 0 {
            return;
        }
        match (self.0.last_mut(), old) {
            (Some(Part::New { len, .. }), None) => *len += more,
            (Some(Part::Old { segment, offset, len }), Some((number, from)))
                if *segment == number && (*offset + *len) as usize == from =>
            {
                *len += more;
            }
            (_, None) => self.0.push(Part::New {
                offset: range.start as u32,
                len: more,
            }),
            (_, Some((segment, offset))) => self.0.push(Part::Old {
                segment,
                offset: offset as u32,
                len: more,
            }),
        }
    }
}

enum Command {
    Literal(usize),
    Copy { offset: usize, len: usize },
}

/// The commands of a delta in librsync's format. Yields `None` once it makes no sense.
struct Commands<'d> {
    rest: &'d [u8],
    ended: bool,
}

impl<'d> Commands<'d> {
    fn new(delta: &'d [u8]) -> Option<Self> {
        let rest = delta.strip_prefix(&0x7273_0236_u32.to_be_bytes()[..])?;
        Some(Self { rest, ended: false })
    }

    fn number(&mut self, class: u8) -> Option<usize> {
        let (bytes, rest) = self.rest.split_at_checked(1 << class)?;
        self.rest = rest;
        let value = bytes
            .iter()
            .fold(0_u64, |value, byte| value << 8 | u64::from(*byte));
        usize::try_from(value).ok()
    }

    fn literal(&mut self, len: usize) -> Option<Command> {
        self.rest = self.rest.get(len..)?;
        Some(Command::Literal(len))
    }

    fn read(&mut self) -> Option<Command> {
        let (op, rest) = self.rest.split_first()?;
        self.rest = rest;
        match *op {
            len @ 0x01..=0x40 => self.literal(len.into()),
            class @ 0x41..=0x44 => {
                let len = self.number(class - 0x41)?;
                self.literal(len)
            }
            classes @ 0x45..=0x54 => {
                let offset = self.number((classes - 0x45) / 4)?;
                let len = self.number((classes - 0x45) % 4)?;
                Some(Command::Copy { offset, len })
            }
            _ => None,
        }
    }
}

impl Iterator for Commands<'_> {
    type Item = Option<Command>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended || self.rest == [0] {
            return None;
        }
        let command = self.read();
        self.ended = command.is_none();
        Some(command)
    }
}

#[cfg(test)]
mod tests;
