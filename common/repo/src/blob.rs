//! The clear part of a stored chunk: its header with the links, readable without any key.

use crate::{
    codec::Reader,
    error::{RepoError, malformed},
};
use holdfast_core::{
    ChunkId,
    limits::{CHUNK_MAX, NODE_LINKS_MAX, NODE_PAYLOAD_MAX},
};

/// First bytes of every blob: a scan past damage finds the next blob by them.
pub const MAGIC: [u8; 4] = *b"HFB1";
/// Version of the layout.
pub const VERSION: u8 = 1;
/// The only cipher suite so far: AES-256-GCM with a key per content and a random nonce.
pub const SUITE_AES_256_GCM: u8 = 1;
/// Bytes of the header before the links.
pub const FIXED_LEN: usize = 56;
/// Bytes of the checksum behind the links.
pub const CRC_LEN: usize = 4;
/// Bytes of the nonce.
pub const NONCE_LEN: usize = 12;
/// Bytes of the authentication tag.
pub const TAG_LEN: usize = 16;
/// Bytes of the exact raw length at the front of the sealed part.
pub const RAW_LEN_LEN: usize = 4;
/// The longest blob: raw content that does not compress, with all its links.
pub const BLOB_MAX: usize = FIXED_LEN
    + NODE_LINKS_MAX * 33
    + CRC_LEN
    + NONCE_LEN
    + RAW_LEN_LEN
    + TAG_LEN
    + if CHUNK_MAX > NODE_PAYLOAD_MAX {
        CHUNK_MAX
    } else {
        NODE_PAYLOAD_MAX
    };

/// What a chunk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Content of files.
    Data = 1,
    /// A node of a file: lists chunks or further file nodes.
    File = 2,
    /// A node of a directory: lists entries or further directory nodes.
    Dir = 3,
}

impl Kind {
    /// Whether chunks of this kind have links.
    #[must_use]
    pub fn is_node(self) -> bool {
        self != Self::Data
    }

    /// Largest raw length of this kind.
    #[must_use]
    pub fn raw_max(self) -> usize {
        if self.is_node() {
            NODE_PAYLOAD_MAX
        } else {
            CHUNK_MAX
        }
    }
}

impl TryFrom<u8> for Kind {
    type Error = RepoError;
    fn try_from(byte: u8) -> Result<Self, RepoError> {
        match byte {
            1 => Ok(Self::Data),
            2 => Ok(Self::File),
            3 => Ok(Self::Dir),
            _ => Err(malformed("a blob", "its kind is unknown")),
        }
    }
}

/// How the raw content is encoded before sealing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Codec {
    /// As it is.
    Raw = 0,
    /// One zstd frame.
    Zstd = 1,
}

/// A link to another chunk: which, and whether that is a node (so that walkers need not look).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Link {
    /// The chunk.
    pub id: ChunkId,
    /// Whether it has links of its own.
    pub is_node: bool,
}

/// The links of a node, in the order in which its payload uses them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Links(pub Vec<Link>);

impl Links {
    /// The encoded section: all ids, then a bit for each that is set for nodes, lowest first.
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        for link in &self.0 {
            out.extend_from_slice(link.id.as_bytes());
        }
        for group in self.0.chunks(8) {
            let bits = group
                .iter()
                .enumerate()
                .fold(0_u8, |bits, (i, link)| bits | (u8::from(link.is_node) << i));
            out.push(bits);
        }
    }

    /// Bytes of the section for that many links.
    #[must_use]
    pub fn section_len(count: usize) -> usize {
        count * ChunkId::LEN + count.div_ceil(8)
    }

    /// Reads a section.
    ///
    /// # Errors
    /// `Malformed` when it is not exactly one.
    pub fn decode(count: usize, section: &[u8]) -> Result<Self, RepoError> {
        if count > NODE_LINKS_MAX || section.len() != Self::section_len(count) {
            return Err(malformed("a list of links", "its length does not fit its count"));
        }
        let (ids, bits) = section.split_at(count * ChunkId::LEN);
        let spare = bits.len() * 8 - count;
        if spare > 0 && bits.last().is_some_and(|last| last >> (8 - spare) != 0) {
            return Err(malformed("a list of links", "unused bits are set"));
        }
        let (ids, _) = ids.as_chunks::<32>();
        let links = ids
            .iter()
            .enumerate()
            .map(|(i, id)| Link {
                id: ChunkId(*id),
                is_node: bits[i / 8] >> (i % 8) & 1 == 1,
            })
            .collect();
        Ok(Self(links))
    }
}

/// The clear header of a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobHeader {
    /// How the content is encoded.
    pub codec: Codec,
    /// What the chunk is.
    pub kind: Kind,
    /// Number of the epoch key that seals it.
    pub epoch: u32,
    /// The chunk's id.
    pub id: ChunkId,
    /// Bits of the raw length, so that a reader can bound its memory before it decodes.
    pub size_class: u8,
    /// Bytes of nonce, sealed content and tag together.
    pub sealed_len: u32,
    /// What a node links to; empty for data.
    pub links: Links,
}

impl BlobHeader {
    /// Bits that a raw length needs.
    #[must_use]
    pub fn size_class_of(raw_len: usize) -> u8 {
        (usize::BITS - raw_len.leading_zeros()) as u8
    }

    /// Bytes of the header as encoded.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        FIXED_LEN + Links::section_len(self.links.0.len()) + CRC_LEN
    }

    /// Bytes of the whole blob.
    #[must_use]
    pub fn blob_len(&self) -> usize {
        self.encoded_len() + self.sealed_len as usize
    }

    /// Appends the encoded header.
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&[VERSION, SUITE_AES_256_GCM, self.codec as u8, self.kind as u8]);
        out.extend_from_slice(&[0, 0]); // must-understand bits
        out.extend_from_slice(&[self.size_class, 0]);
        out.extend_from_slice(&self.epoch.to_le_bytes());
        out.extend_from_slice(&self.sealed_len.to_le_bytes());
        out.extend_from_slice(&(self.links.0.len() as u32).to_le_bytes());
        out.extend_from_slice(self.id.as_bytes());
        self.links.encode_into(out);
        let crc = crc32c::crc32c(&out[start..]);
        out.extend_from_slice(&crc.to_le_bytes());
    }

    /// Length of the whole header, from its first `FIXED_LEN` bytes; for readers that fetch a
    /// header before they know how many links it has.
    ///
    /// # Errors
    /// `Malformed` or `TooNew`.
    pub fn peek_len(bytes: &[u8]) -> Result<usize, RepoError> {
        let (_, links) = decode_fixed(&mut Reader::new("a blob", bytes))?;
        Ok(FIXED_LEN + Links::section_len(links) + CRC_LEN)
    }

    /// Reads a header from the front of `bytes`, checking its CRC and all bounds.
    ///
    /// # Errors
    /// `Malformed` for damage, `TooNew` for unknown versions, suites, codecs or bits.
    pub fn decode(bytes: &[u8]) -> Result<Self, RepoError> {
        let mut reader = Reader::new("a blob", bytes);
        let (mut header, count) = decode_fixed(&mut reader)?;
        let section = reader.take(Links::section_len(count))?;
        let covered = FIXED_LEN + section.len();
        if crc32c::crc32c(&bytes[..covered]) != reader.u32()? {
            return Err(reader.bad("its header's checksum is wrong"));
        }
        header.links = Links::decode(count, section)?;
        Ok(header)
    }
}

/// The header up to the links, and how many follow.
fn decode_fixed(reader: &mut Reader<'_>) -> Result<(BlobHeader, usize), RepoError> {
    if reader.array()? != MAGIC {
        return Err(reader.bad("it does not begin like one"));
    }
    let [version, suite, codec, kind] = reader.array()?;
    let flags = reader.u16()?;
    if version != VERSION || suite != SUITE_AES_256_GCM || flags != 0 || codec > Codec::Zstd as u8 {
        return Err(RepoError::TooNew {
            what: "a blob",
            version: version.into(),
            flags,
        });
    }
    let [size_class, reserved] = reader.array()?;
    let header = BlobHeader {
        codec: if codec == 0 { Codec::Raw } else { Codec::Zstd },
        kind: Kind::try_from(kind)?,
        epoch: reader.u32()?,
        sealed_len: reader.u32()?,
        size_class,
        links: Links::default(),
        id: ChunkId([0; 32]),
    };
    let links = reader.u32()? as usize;
    let header = BlobHeader {
        id: ChunkId(reader.array()?),
        ..header
    };
    let sealed_min = NONCE_LEN + RAW_LEN_LEN + TAG_LEN;
    let sealed_max = sealed_min + header.kind.raw_max();
    if reserved != 0
        || links > NODE_LINKS_MAX
        || (links > 0 && !header.kind.is_node())
        || !(sealed_min..=sealed_max).contains(&(header.sealed_len as usize))
        || usize::from(size_class) > BlobHeader::size_class_of(header.kind.raw_max()).into()
    {
        return Err(reader.bad("a field is beyond its bound"));
    }
    Ok((header, links))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample(links: usize) -> BlobHeader {
        BlobHeader {
            codec: Codec::Zstd,
            kind: if links > 0 { Kind::Dir } else { Kind::Data },
            epoch: 3,
            id: ChunkId([5; 32]),
            size_class: 10,
            sealed_len: 700,
            links: Links(
                (0..links)
                    .map(|i| Link {
                        id: ChunkId([i as u8; 32]),
                        is_node: i % 3 == 0,
                    })
                    .collect(),
            ),
        }
    }

    proptest! {
        #[test]
        fn headers_round_trip(links in 0_usize..40) {
            let header = sample(links);
            let mut out = Vec::new();
            header.encode_into(&mut out);
            prop_assert_eq!(out.len(), header.encoded_len());
            prop_assert_eq!(BlobHeader::peek_len(&out).unwrap(), out.len());
            prop_assert_eq!(BlobHeader::decode(&out).unwrap(), header);
        }

        #[test]
        fn any_flipped_bit_is_found(links in 0_usize..20, at: proptest::sample::Index, bit in 0_u8..8) {
            let mut out = Vec::new();
            sample(links).encode_into(&mut out);
            let at = at.index(out.len());
            out[at] ^= 1 << bit;
            prop_assert!(BlobHeader::decode(&out).is_err());
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>) {
            let mut bytes = bytes;
            let _ = BlobHeader::decode(&bytes);
            bytes.splice(0..0, *b"HFB1\x01\x01\x01\x03\0\0");
            let _ = BlobHeader::decode(&bytes);
        }
    }
}
