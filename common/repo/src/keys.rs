//! A vault's keys and what derives from them.

use crate::{
    blob::Kind,
    codec::{Reader, put_varint},
    error::{RepoError, malformed},
};
use aws_lc_rs::rand;
use holdfast_core::{ChunkId, VaultId};
use std::fmt;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

const MAGIC: &[u8; 4] = b"HFVK";
const VERSION: u16 = 1;
/// Most generations or epochs of one vault: a rotation a month for 75 years, and both lists together
/// still fit a key object (`limits::KEY_OBJECT_MAX`).
const KEYS_MAX: usize = 900;
/// Bytes of one numbered key as encoded.
const KEY_ENCODED_LEN: usize = 33;

/// The keys of one vault: generations of the key that names chunks, and the epoch keys that seal
/// blobs. The newest of each is used for writing, all of them for reading.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct VaultKeys {
    #[zeroize(skip)]
    vault: VaultId,
    id_keys: Vec<Key>,
    epochs: Vec<Key>,
    derived: Derived,
}

#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
struct Key {
    number: u32,
    secret: [u8; 32],
}

/// Keys used for every chunk, derived once.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop, Default)]
struct Derived {
    data: [u8; 32],
    file: [u8; 32],
    dir: [u8; 32],
    gear: [u8; 32],
    mac: [u8; 32],
    endorse: [u8; 32],
}

impl Derived {
    fn of(id_key: &[u8; 32]) -> Self {
        Self {
            data: blake3::derive_key("holdfast v1 chunk id data", id_key),
            file: blake3::derive_key("holdfast v1 chunk id file node", id_key),
            dir: blake3::derive_key("holdfast v1 chunk id dir node", id_key),
            gear: blake3::derive_key("holdfast v1 gear table", id_key),
            mac: blake3::derive_key("holdfast v1 root mac", id_key),
            endorse: blake3::derive_key("holdfast v1 agent keys mac", id_key),
        }
    }
}

impl VaultKeys {
    /// New keys for a new vault: generation 1, epoch 1.
    ///
    /// # Errors
    /// When the system gives no random bytes.
    pub fn generate(vault: VaultId) -> Result<Self, RepoError> {
        let mut id_key = Key {
            number: 1,
            secret: [0; 32],
        };
        let mut epoch = Key {
            number: 1,
            secret: [0; 32],
        };
        for key in [&mut id_key, &mut epoch] {
            rand::fill(&mut key.secret).map_err(|_| RepoError::Primitive("the random source"))?;
        }
        Ok(Self::assemble(vault, vec![id_key], vec![epoch]))
    }

    /// Fixed keys, for golden files and tests: never for data that matters.
    #[must_use]
    pub fn from_secrets(vault: VaultId, id_key: [u8; 32], epoch: [u8; 32]) -> Self {
        Self::assemble(
            vault,
            vec![Key {
                number: 1,
                secret: id_key,
            }],
            vec![Key {
                number: 1,
                secret: epoch,
            }],
        )
    }

    fn assemble(vault: VaultId, id_keys: Vec<Key>, epochs: Vec<Key>) -> Self {
        let derived = id_keys
            .last()
            .map(|key| Derived::of(&key.secret))
            .unwrap_or_default();
        Self {
            vault,
            id_keys,
            epochs,
            derived,
        }
    }

    /// The secret form that grants and key objects carry.
    #[must_use]
    pub fn encode(&self) -> Zeroizing<Vec<u8>> {
        let keys = self.id_keys.len() + self.epochs.len();
        let mut out = Zeroizing::new(Vec::with_capacity(64 + keys * (KEY_ENCODED_LEN + 4)));
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(self.vault.as_bytes());
        for list in [&self.id_keys, &self.epochs] {
            put_varint(&mut out, list.len() as u64);
            for key in list {
                put_varint(&mut out, u64::from(key.number));
                out.extend_from_slice(&key.secret);
            }
        }
        out
    }

    /// Reads the secret form.
    ///
    /// # Errors
    /// `Malformed` for anything that `encode` does not write; `TooNew` for later versions.
    pub fn decode(bytes: &[u8]) -> Result<Self, RepoError> {
        let mut reader = Reader::new("a vault key", bytes);
        if reader.take(4)? != MAGIC {
            return Err(reader.bad("it does not begin like one"));
        }
        let version = reader.u16()?;
        if version != VERSION {
            return Err(RepoError::TooNew {
                what: "a vault key",
                version,
                flags: 0,
            });
        }
        let vault = VaultId(reader.array()?);
        let id_keys = read_keys(&mut reader)?;
        let epochs = read_keys(&mut reader)?;
        reader.end()?;
        Ok(Self::assemble(vault, id_keys, epochs))
    }

    /// The vault these keys belong to.
    #[must_use]
    pub fn vault(&self) -> VaultId {
        self.vault
    }

    /// Number of the epoch key that new blobs are sealed with.
    #[must_use]
    pub fn current_epoch(&self) -> u32 {
        self.epochs.last().map_or(0, |key| key.number)
    }

    /// The id of a data chunk.
    #[must_use]
    pub fn data_id(&self, content: &[u8]) -> ChunkId {
        ChunkId(*blake3::keyed_hash(&self.derived.data, content).as_bytes())
    }

    /// The key of data ids, for who computes parts of that hash.
    pub(crate) fn data_key(&self) -> &[u8; 32] {
        &self.derived.data
    }

    /// Binds a stored signature to its segment.
    pub(crate) fn signature_mac(&self, segment: &ChunkId, signature: &[u8]) -> [u8; 32] {
        let key = blake3::derive_key("holdfast v1 segment signature", &self.derived.data);
        let mut hasher = blake3::Hasher::new_keyed(&key);
        hasher.update(segment.as_bytes());
        hasher.update(signature);
        *hasher.finalize().as_bytes()
    }

    /// The id of a node: covers its links section and its payload.
    #[must_use]
    pub fn node_id(&self, kind: Kind, links_section: &[u8], payload: &[u8]) -> ChunkId {
        let key = if kind == Kind::Dir {
            &self.derived.dir
        } else {
            &self.derived.file
        };
        let mut hasher = blake3::Hasher::new_keyed(key);
        hasher.update(&(links_section.len() as u32).to_le_bytes());
        hasher.update(links_section);
        hasher.update(payload);
        ChunkId(*hasher.finalize().as_bytes())
    }

    /// Every id that the content may have been given, newest generation first.
    pub(crate) fn matches_id(&self, kind: Kind, id: &ChunkId, links_section: &[u8], payload: &[u8]) -> bool {
        let of = |keys: &Self| match kind {
            Kind::Data => keys.data_id(payload),
            Kind::File | Kind::Dir => keys.node_id(kind, links_section, payload),
        };
        if of(self) == *id {
            return true;
        }
        let older = self.id_keys.iter().rev().skip(1);
        older
            .map(|key| Self::assemble(self.vault, vec![key.clone()], Vec::new()))
            .any(|keys| of(&keys) == *id)
    }

    /// Whether data content belongs to an id, of any generation.
    #[must_use]
    pub fn is_content(&self, id: &ChunkId, content: &[u8]) -> bool {
        self.matches_id(Kind::Data, id, &[], content)
    }

    /// Key from which the chunker's gear table derives.
    #[must_use]
    pub fn gear_key(&self) -> &[u8; 32] {
        &self.derived.gear
    }

    /// MAC of a root object's bytes: only holders of the vault's key can make one.
    #[must_use]
    pub(crate) fn root_mac(&self, bytes: &[u8]) -> [u8; 32] {
        *blake3::keyed_hash(&self.derived.mac, bytes).as_bytes()
    }

    /// Whether the MAC was made with any generation of this vault's key.
    pub(crate) fn root_mac_holds(&self, bytes: &[u8], mac: &[u8; 32]) -> bool {
        self.id_keys.iter().any(|key| {
            let derived = Derived::of(&key.secret);
            // Comparison of `blake3::Hash` is constant-time.
            blake3::keyed_hash(&derived.mac, bytes) == blake3::Hash::from_bytes(*mac)
        })
    }

    /// MAC over an agent's public keys, by which clients tell them from keys that a captured
    /// controller slipped in.
    #[must_use]
    pub fn endorse(&self, signing_key: &[u8], sealing_key: &[u8]) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_keyed(&self.derived.endorse);
        hasher.update(&(signing_key.len() as u64).to_le_bytes());
        hasher.update(signing_key);
        hasher.update(sealing_key);
        *hasher.finalize().as_bytes()
    }

    /// Whether an endorsement holds.
    #[must_use]
    pub fn is_endorsed(&self, signing_key: &[u8], sealing_key: &[u8], mac: &[u8]) -> bool {
        <[u8; 32]>::try_from(mac).is_ok_and(|mac| {
            blake3::Hash::from_bytes(self.endorse(signing_key, sealing_key)) == blake3::Hash::from_bytes(mac)
        })
    }

    /// The key of one blob: one key for one content, so that a random nonce never repeats under it
    /// in practice and blobs can move between packs.
    pub(crate) fn blob_key(&self, epoch: u32, id: &[u8; 32]) -> Result<Zeroizing<[u8; 32]>, RepoError> {
        self.subkey(epoch, b"blob", id)
    }

    /// The key that seals the private part of one root.
    pub(crate) fn root_key(&self, epoch: u32, snapshot: &[u8; 16]) -> Result<Zeroizing<[u8; 32]>, RepoError> {
        self.subkey(epoch, b"root", snapshot)
    }

    fn subkey(&self, epoch: u32, label: &[u8], id: &[u8]) -> Result<Zeroizing<[u8; 32]>, RepoError> {
        let key = self
            .epochs
            .iter()
            .find(|key| key.number == epoch)
            .ok_or(RepoError::UnknownKey { number: epoch })?;
        let mut hasher = blake3::Hasher::new_keyed(&key.secret);
        hasher.update(label);
        hasher.update(id);
        Ok(Zeroizing::new(*hasher.finalize().as_bytes()))
    }
}

fn read_keys(reader: &mut Reader<'_>) -> Result<Vec<Key>, RepoError> {
    let count = reader.count(KEY_ENCODED_LEN, KEYS_MAX)?;
    let mut keys: Vec<Key> = Vec::with_capacity(count);
    for _ in 0..count {
        let number = reader.varint_u32()?;
        if keys.last().is_some_and(|last| last.number >= number) {
            return Err(reader.bad("its keys are not in order"));
        }
        keys.push(Key {
            number,
            secret: reader.array()?,
        });
    }
    if keys.is_empty() {
        Err(malformed("a vault key", "it holds no key"))
    } else {
        Ok(keys)
    }
}

impl fmt::Debug for VaultKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VaultKeys")
            .field("vault", &self.vault)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_round_trip_and_hide_in_debug() {
        let keys = VaultKeys::generate(VaultId::generate()).unwrap();
        let decoded = VaultKeys::decode(&keys.encode()).unwrap();
        assert!(decoded == keys);
        let shown = format!("{keys:?}");
        assert!(
            !shown.contains(&format!("{:?}", &keys.id_keys[0].secret[..4])),
            "{shown}"
        );
    }

    #[test]
    fn damaged_keys_are_refused() {
        let bytes = VaultKeys::from_secrets(VaultId([1; 16]), [2; 32], [3; 32]).encode();
        for len in 0..bytes.len() {
            assert!(VaultKeys::decode(&bytes[..len]).is_err(), "{len}");
        }
        let mut longer = bytes.to_vec();
        longer.push(0);
        assert!(VaultKeys::decode(&longer).is_err());
    }

    #[test]
    fn endorsements_bind_both_keys() {
        let keys = VaultKeys::from_secrets(VaultId([1; 16]), [2; 32], [3; 32]);
        let mac = keys.endorse(b"signing", b"sealing");
        assert!(keys.is_endorsed(b"signing", b"sealing", &mac));
        assert!(!keys.is_endorsed(b"signings", b"ealing", &mac));
        assert!(!keys.is_endorsed(b"signing", b"sealing", &mac[..31]));
    }
}
