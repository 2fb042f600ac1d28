//! Packs: files of blobs of one vault, verifiable by anyone without a key.

use crate::{
    blob::{BLOB_MAX, BlobHeader, FIXED_LEN, Kind},
    codec::Reader,
    error::{RepoError, malformed},
    seal::SealedBlob,
};
use holdfast_core::{
    ChunkId, PackId, VaultId,
    limits::{PACK_BLOBS_MAX, PACK_MAX, PACK_TARGET},
};

/// First bytes of a pack.
pub const MAGIC: [u8; 8] = *b"HFPACK\0\x01";
/// First bytes of its directory.
pub const DIRECTORY_MAGIC: [u8; 8] = *b"HFPDIR\0\x01";
/// Bytes before the first blob.
pub const HEADER_LEN: usize = 32;
/// Bytes of one directory entry.
pub const ENTRY_LEN: usize = 64;
/// Bytes before the first directory entry.
pub const DIRECTORY_HEADER_LEN: usize = 16;
/// Bytes behind the directory: its offset, the pack's length, the pack's hash.
pub const TRAILER_LEN: usize = 8 + 8 + 32;
/// Longest directory: what a reader may have to hold beside a blob.
pub const DIRECTORY_MAX: usize = DIRECTORY_HEADER_LEN + PACK_BLOBS_MAX * ENTRY_LEN;
/// Version of the layout.
pub const VERSION: u16 = 1;

/// One blob as a pack's directory lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackEntry {
    /// The chunk.
    pub id: ChunkId,
    /// Where its header begins, from the start of the pack.
    pub offset: u32,
    /// Bytes of header and sealed part.
    pub len: u32,
    /// What it is.
    pub kind: Kind,
    /// How many links its header holds.
    pub links: u16,
    /// First half of the BLAKE3 hash of the whole blob.
    pub check: [u8; 16],
}

impl PackEntry {
    /// Whether these bytes are the blob that the directory lists.
    #[must_use]
    pub fn matches(&self, blob: &[u8]) -> bool {
        blob.len() == self.len as usize && short_hash(blob) == self.check
    }
}

fn short_hash(blob: &[u8]) -> [u8; 16] {
    let mut short = [0; 16];
    short.copy_from_slice(&blake3::hash(blob).as_bytes()[..16]);
    short
}

/// Collects blobs into a pack, in memory.
pub struct PackWriter {
    bytes: Vec<u8>,
    hasher: blake3::Hasher,
    entries: Vec<PackEntry>,
}

impl PackWriter {
    /// An empty pack of that vault. `buffer` is emptied and used, to save the allocation.
    #[must_use]
    pub fn new(vault: VaultId, mut buffer: Vec<u8>) -> Self {
        buffer.clear();
        buffer.extend_from_slice(&MAGIC);
        buffer.extend_from_slice(vault.as_bytes());
        buffer.extend_from_slice(&VERSION.to_le_bytes());
        buffer.extend_from_slice(&[0; 6]); // must-understand bits, reserved
        Self {
            bytes: buffer,
            hasher: blake3::Hasher::new(),
            entries: Vec::new(),
        }
    }

    /// Makes room at once for what is known to come.
    pub fn reserve(&mut self, bytes: usize) {
        self.bytes.reserve(bytes.saturating_sub(self.bytes.len()));
    }

    /// Adds a sealed blob.
    pub fn push(&mut self, blob: &SealedBlob<'_>) {
        let offset = self.bytes.len();
        self.bytes.extend_from_slice(blob.header_bytes);
        self.bytes.extend_from_slice(blob.sealed);
        self.list(
            blob.header.id,
            blob.header.kind,
            blob.header.links.0.len(),
            offset,
        );
    }

    /// Adds a blob verbatim, as when packs are rewritten without keys.
    ///
    /// # Errors
    /// `Malformed` when it is not exactly one blob; `TooLarge` when no reader would take the pack.
    pub fn push_verbatim(&mut self, blob: &[u8]) -> Result<(), RepoError> {
        let header = BlobHeader::decode(blob)?;
        if header.blob_len() != blob.len() {
            return Err(malformed("a blob", "its length is not what its header says"));
        }
        let offset = self.bytes.len();
        let entries = self.entries.len() + 1;
        let rest = DIRECTORY_HEADER_LEN + entries * ENTRY_LEN + TRAILER_LEN;
        if entries > PACK_BLOBS_MAX || offset + blob.len() + rest > PACK_MAX {
            return Err(RepoError::TooLarge {
                what: "a pack",
                limit: PACK_MAX,
            });
        }
        self.bytes.extend_from_slice(blob);
        self.list(header.id, header.kind, header.links.0.len(), offset);
        Ok(())
    }

    fn list(&mut self, id: ChunkId, kind: Kind, links: usize, offset: usize) {
        let blob = &self.bytes[offset..];
        self.entries.push(PackEntry {
            id,
            offset: offset as u32,
            len: blob.len() as u32,
            kind,
            links: links as u16,
            check: short_hash(blob),
        });
    }

    /// Whether nothing was added.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether it is time to close it.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.bytes.len() >= PACK_TARGET || self.entries.len() >= PACK_BLOBS_MAX
    }

    /// Closes the pack: its id and its bytes.
    #[must_use]
    pub fn finish(mut self) -> (PackId, Vec<u8>) {
        let directory_offset = self.bytes.len() as u64;
        self.bytes.extend_from_slice(&DIRECTORY_MAGIC);
        self.bytes
            .extend_from_slice(&(self.entries.len() as u32).to_le_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        for entry in &self.entries {
            encode_entry(entry, &mut self.bytes);
        }
        self.bytes.extend_from_slice(&directory_offset.to_le_bytes());
        let total = self.bytes.len() as u64 + 8 + 32;
        self.bytes.extend_from_slice(&total.to_le_bytes());
        self.hasher.update(&self.bytes);
        let id = PackId(*self.hasher.finalize().as_bytes());
        self.bytes.extend_from_slice(id.as_bytes());
        (id, self.bytes)
    }
}

impl std::fmt::Debug for PackWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "PackWriter({} blobs, {} bytes)",
            self.entries.len(),
            self.bytes.len()
        )
    }
}

fn encode_entry(entry: &PackEntry, out: &mut Vec<u8>) {
    out.extend_from_slice(entry.id.as_bytes());
    out.extend_from_slice(&entry.offset.to_le_bytes());
    out.extend_from_slice(&entry.len.to_le_bytes());
    out.extend_from_slice(&entry.links.to_le_bytes());
    out.extend_from_slice(&[entry.kind as u8, 0, 0, 0, 0, 0]);
    out.extend_from_slice(&entry.check);
}

/// A pack's trailer: enough to fetch its directory with one more read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trailer {
    /// Where the directory begins.
    pub directory_offset: u64,
    /// Bytes of the directory with its head.
    pub directory_len: u64,
    /// The pack's id as it stands in its last bytes.
    pub id: PackId,
}

impl Trailer {
    /// Reads the last `TRAILER_LEN` bytes of a pack that is `total` bytes long.
    ///
    /// # Errors
    /// `Malformed` when they do not fit that length.
    pub fn decode(bytes: &[u8], total: u64) -> Result<Self, RepoError> {
        let mut reader = Reader::new("a pack's trailer", bytes);
        let (directory_offset, stated_total) = (reader.u64()?, reader.u64()?);
        let id = PackId(reader.array()?);
        reader.end()?;
        let end = total.checked_sub(TRAILER_LEN as u64);
        let directory_len = end.and_then(|end| end.checked_sub(directory_offset));
        match directory_len {
            Some(directory_len)
                if stated_total == total
                    && total <= PACK_MAX as u64
                    && directory_offset >= HEADER_LEN as u64
                    && directory_len >= DIRECTORY_HEADER_LEN as u64
                    && directory_len <= DIRECTORY_MAX as u64 =>
            {
                Ok(Self {
                    directory_offset,
                    directory_len,
                    id,
                })
            }
            _ => Err(reader.bad("its lengths do not fit the file")),
        }
    }
}

/// What a pack holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackDirectory {
    /// Its blobs in the order of their offsets.
    pub entries: Vec<PackEntry>,
}

impl PackDirectory {
    /// Reads a directory's bytes (from `Trailer::directory_offset`).
    ///
    /// # Errors
    /// `Malformed` for anything but blobs that follow each other without gap or overlap from the
    /// pack's header to the directory.
    pub fn decode(bytes: &[u8], directory_offset: u64) -> Result<Self, RepoError> {
        let mut reader = Reader::new("a pack's directory", bytes);
        if reader.array()? != DIRECTORY_MAGIC {
            return Err(reader.bad("it does not begin like one"));
        }
        let count = reader.u32()? as usize;
        if reader.u32()? != 0 || count > PACK_BLOBS_MAX || reader.remaining() != count * ENTRY_LEN {
            return Err(reader.bad("its count does not fit its length"));
        }
        let mut entries = Vec::with_capacity(count);
        let mut next = HEADER_LEN as u64;
        for _ in 0..count {
            let entry = decode_entry(&mut reader)?;
            let header_min = FIXED_LEN + usize::from(entry.links) * 32;
            if u64::from(entry.offset) != next
                || (entry.len as usize) < header_min
                || entry.len as usize > BLOB_MAX
                || (entry.links > 0 && !entry.kind.is_node())
            {
                return Err(reader.bad("its entries do not follow each other"));
            }
            next += u64::from(entry.len);
            entries.push(entry);
        }
        if next != directory_offset {
            return Err(reader.bad("its entries do not end where it begins"));
        }
        Ok(Self { entries })
    }

    /// Checks a whole pack in memory: header, hash, directory, and that every listed blob's header
    /// says the same as the directory. No key is needed.
    ///
    /// # Errors
    /// `Malformed` for any damage, `Forged` when the hash is not `id`.
    pub fn verify(bytes: &[u8], id: PackId, vault: VaultId) -> Result<Self, RepoError> {
        let body = bytes
            .len()
            .checked_sub(TRAILER_LEN)
            .ok_or(malformed("a pack", "it ends too early"))?;
        let hash = blake3::hash(&bytes[..bytes.len() - 32]);
        if hash.as_bytes() != id.as_bytes() || bytes[bytes.len() - 32..] != id.0 {
            return Err(RepoError::Forged {
                what: "a pack",
                why: "its hash is not its id",
            });
        }
        if pack_vault(bytes)? != vault {
            return Err(RepoError::Forged {
                what: "a pack",
                why: "it belongs to another vault",
            });
        }
        let trailer = Trailer::decode(&bytes[body..], bytes.len() as u64)?;
        let start = trailer.directory_offset as usize;
        let directory = Self::decode(&bytes[start..body], trailer.directory_offset)?;
        for entry in &directory.entries {
            let blob = &bytes[entry.offset as usize..][..entry.len as usize];
            entry.check_header(&BlobHeader::decode(blob)?, blob)?;
        }
        Ok(directory)
    }

    /// Finds blobs by their headers in a pack whose directory or parts are damaged: whatever parses
    /// and whose sealed part lies whole inside. Their content is still checked when it is opened.
    #[must_use]
    pub fn salvage(bytes: &[u8]) -> Self {
        // Nothing longer is a pack, and offsets are 32 bits.
        let bytes = &bytes[..bytes.len().min(PACK_MAX)];
        let mut entries = Vec::new();
        let mut at = HEADER_LEN;
        while let Some(rest) = bytes.get(at..) {
            match BlobHeader::decode(rest) {
                Ok(header) if header.blob_len() <= rest.len() && entries.len() < PACK_BLOBS_MAX => {
                    let blob = &rest[..header.blob_len()];
                    entries.push(PackEntry {
                        id: header.id,
                        offset: at as u32,
                        len: blob.len() as u32,
                        kind: header.kind,
                        links: header.links.0.len() as u16,
                        check: short_hash(blob),
                    });
                    at += blob.len();
                }
                _ => {
                    let next = rest
                        .windows(4)
                        .skip(1)
                        .position(|window| window == crate::blob::MAGIC);
                    match next {
                        Some(skip) => at += skip + 1,
                        None => break,
                    }
                }
            }
        }
        Self { entries }
    }
}

impl PackEntry {
    fn check_header(&self, header: &BlobHeader, blob: &[u8]) -> Result<(), RepoError> {
        let same = header.id == self.id
            && header.kind == self.kind
            && header.links.0.len() == usize::from(self.links)
            && header.blob_len() == self.len as usize
            && self.matches(blob);
        if same {
            Ok(())
        } else {
            Err(malformed("a pack", "a blob is not what the directory lists"))
        }
    }
}

fn decode_entry(reader: &mut Reader<'_>) -> Result<PackEntry, RepoError> {
    let id = ChunkId(reader.array()?);
    let (offset, len, links) = (reader.u32()?, reader.u32()?, reader.u16()?);
    let [kind, reserved @ ..] = reader.array::<6>()?;
    if reserved != [0; 5] {
        return Err(reader.bad("reserved bytes are set"));
    }
    Ok(PackEntry {
        id,
        offset,
        len,
        kind: Kind::try_from(kind)?,
        links,
        check: reader.array()?,
    })
}

/// The vault that a pack's header names.
///
/// # Errors
/// `Malformed` or `TooNew`.
pub fn pack_vault(bytes: &[u8]) -> Result<VaultId, RepoError> {
    let mut reader = Reader::new("a pack", bytes);
    if reader.array()? != MAGIC {
        return Err(reader.bad("it does not begin like one"));
    }
    let vault = VaultId(reader.array()?);
    let (version, flags) = (reader.u16()?, reader.u16()?);
    if version != VERSION || flags != 0 {
        return Err(RepoError::TooNew {
            what: "a pack",
            version,
            flags,
        });
    }
    if reader.u32()? != 0 {
        Err(reader.bad("reserved bytes are set"))
    } else {
        Ok(vault)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{keys::VaultKeys, seal::Sealer};
    use proptest::prelude::*;
    use std::sync::Arc;

    const VAULT: VaultId = VaultId([1; 16]);

    fn pack(contents: &[Vec<u8>]) -> (PackId, Vec<u8>) {
        let keys = Arc::new(VaultKeys::from_secrets(VAULT, [2; 32], [3; 32]));
        let mut sealer = Sealer::new(keys.clone(), 3).unwrap();
        let mut writer = PackWriter::new(VAULT, Vec::new());
        for content in contents {
            writer.push(&sealer.seal_data(keys.data_id(content), content).unwrap());
        }
        writer.finish()
    }

    fn contents() -> impl Strategy<Value = Vec<Vec<u8>>> {
        proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..12)
    }

    proptest! {
        #[test]
        fn packs_verify_and_list_their_blobs(contents in contents()) {
            let (id, bytes) = pack(&contents);
            let directory = PackDirectory::verify(&bytes, id, VAULT).unwrap();
            prop_assert_eq!(directory.entries.len(), contents.len());
            prop_assert_eq!(PackDirectory::salvage(&bytes), directory);
        }

        #[test]
        fn any_flipped_bit_or_cut_is_found(contents in contents(), at: proptest::sample::Index, bit in 0_u8..8) {
            let (id, mut bytes) = pack(&contents);
            let at = at.index(bytes.len());
            prop_assert!(PackDirectory::verify(&bytes[..at], id, VAULT).is_err());
            bytes[at] ^= 1 << bit;
            prop_assert!(PackDirectory::verify(&bytes, id, VAULT).is_err());
            let _ = PackDirectory::salvage(&bytes);
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>, total: u64) {
            let _ = Trailer::decode(&bytes, total);
            let _ = PackDirectory::decode(&bytes, total);
            let _ = pack_vault(&bytes);
            let _ = PackDirectory::salvage(&bytes);
        }
    }

    #[test]
    fn blobs_behind_damage_are_salvaged() {
        let contents: Vec<_> = (0..5_u8).map(|i| vec![i; 100]).collect();
        let (id, mut bytes) = pack(&contents);
        let whole = PackDirectory::verify(&bytes, id, VAULT).unwrap();
        bytes[whole.entries[1].offset as usize + 20] ^= 1;
        bytes.truncate(bytes.len() - 100);
        let found: Vec<_> = PackDirectory::salvage(&bytes)
            .entries
            .iter()
            .map(|entry| entry.id)
            .collect();
        let expected: Vec<_> = [0, 2, 3, 4].iter().map(|i| whole.entries[*i].id).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_pack_of_another_vault_is_refused() {
        let (id, bytes) = pack(&[vec![1; 10]]);
        assert!(PackDirectory::verify(&bytes, id, VaultId([9; 16])).is_err());
    }
}
