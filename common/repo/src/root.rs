//! Roots: the signed beginning of a snapshot. What controllers need is in the clear; the rest is
//! sealed; a MAC shows that a holder of the vault's key made it, a signature which agent.

use crate::{
    blob::{Link, Links, NONCE_LEN, TAG_LEN},
    codec::{Reader, put_bytes, put_varint},
    entry::Entry,
    error::{RepoError, malformed},
    keys::VaultKeys,
    seal::cipher,
};
use aws_lc_rs::{
    aead::{Aad, Nonce},
    rand,
    signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey},
};
use holdfast_core::{
    ChunkId, Name, SnapshotId, SourceRef, UnixMillis, VaultId,
    limits::{NODE_LINKS_MAX, ROOT_MAX},
};
use std::collections::BTreeMap;
use zeroize::Zeroizing;

/// First bytes of a root object.
pub const MAGIC: [u8; 8] = *b"HFROOT\0\x01";
/// Version of the layout.
pub const VERSION: u16 = 1;
const MAC_LEN: usize = 32;
const SIGNATURE_LEN: usize = 64;
const NAME_MAX: usize = 63;
/// Longest path of a tree: PATH_MAX on Linux.
const PATH_MAX: usize = 4096;
/// Most trees of one source, and most named owners kept with a snapshot.
const TREES_MAX: usize = 1024;
const OWNERS_MAX: usize = 2048;
/// Bits of the clear flags.
const FLAG_PARTIAL: u16 = 1;
const FLAG_JOURNAL: u16 = 2;
/// Flags that this version understands.
const FLAGS_KNOWN: u16 = FLAG_PARTIAL | FLAG_JOURNAL;

/// An Ed25519 key that signs roots. Debug output hides it.
pub struct SigningKey {
    pair: Ed25519KeyPair,
    pkcs8: Zeroizing<Vec<u8>>,
}

impl SigningKey {
    /// A new key.
    ///
    /// # Errors
    /// When the system gives no random bytes.
    pub fn generate() -> Result<Self, RepoError> {
        let document =
            Ed25519KeyPair::generate_pkcs8(&aws_lc_rs::rand::SystemRandom::new()).map_err(|_| bad_key())?;
        Self::from_pkcs8(document.as_ref())
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// When it is not an Ed25519 key.
    pub fn from_pkcs8(bytes: &[u8]) -> Result<Self, RepoError> {
        let pair = Ed25519KeyPair::from_pkcs8(bytes).map_err(|_| bad_key())?;
        Ok(Self {
            pair,
            pkcs8: Zeroizing::new(bytes.to_vec()),
        })
    }

    /// The form to store (secret).
    #[must_use]
    pub fn pkcs8(&self) -> &[u8] {
        &self.pkcs8
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> [u8; 32] {
        let mut public = [0; 32];
        public.copy_from_slice(self.pair.public_key().as_ref());
        public
    }
}

fn bad_key() -> RepoError {
    RepoError::Primitive("the signing key")
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SigningKey")
    }
}

/// What everyone may see of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootClear {
    /// The vault its chunks are in.
    pub vault: VaultId,
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// The source.
    pub source: SourceRef,
    /// 1, 2, 3 … of this source.
    pub sequence: u64,
    /// BLAKE3 of the previous root object of this source; zeros for the first.
    pub previous: [u8; 32],
    /// When the run began.
    pub started_at: UnixMillis,
    /// When its content was complete.
    pub finished_at: UnixMillis,
    /// Some of the source could not be read.
    pub partial: bool,
    /// A page of the source's journal, not a snapshot: its trees are the files of that page. Pages have numbers and a
    /// chain of their own.
    pub is_journal: bool,
    /// Ed25519 public key of the agent that signed it.
    pub signer: [u8; 32],
    /// The epoch key that seals the private part.
    pub epoch: u32,
    /// Links of the private part: where a walk begins.
    pub links: Links,
}

/// One of the paths that a source consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootTree {
    /// Absolute path on the host.
    pub path: Vec<u8>,
    /// The directory or file itself; its name is empty.
    pub entry: Entry,
}

/// What only holders of the vault's keys see.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RootSealed {
    /// Name of the host as it called itself.
    pub hostname: Vec<u8>,
    /// The trees, in the order of the source's settings.
    pub trees: Vec<RootTree>,
    /// Names of the owners that occur, for restores onto other hosts.
    pub users: BTreeMap<u32, Vec<u8>>,
    /// Names of the groups that occur.
    pub groups: BTreeMap<u32, Vec<u8>>,
}

/// A root, opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    /// The public part.
    pub clear: RootClear,
    /// The private part.
    pub sealed: RootSealed,
}

impl Root {
    /// Makes the root object. `clear.links`, `epoch` and `signer` are filled in here.
    ///
    /// # Errors
    /// `TooLarge` beyond the bound; `Primitive` when a primitive refuses.
    pub fn encode(&self, keys: &VaultKeys, signer: &SigningKey) -> Result<Vec<u8>, RepoError> {
        let mut links = Vec::new();
        let mut plain = self.sealed.encode(&mut links);
        // A root that no reader takes back would lose its snapshot without a sound.
        if RootSealed::decode(&plain, &Links(links.clone()))? != self.sealed {
            return Err(malformed("a root", "it does not read back as it was written"));
        }
        let clear = RootClear {
            signer: signer.public(),
            epoch: keys.current_epoch(),
            links: Links(links),
            ..self.clear.clone()
        };
        if clear.links.0.len() > NODE_LINKS_MAX {
            return Err(RepoError::TooLarge {
                what: "a root",
                limit: NODE_LINKS_MAX,
            });
        }
        let mut out = clear.encode();
        let mut nonce = [0; NONCE_LEN];
        rand::fill(&mut nonce).map_err(|_| RepoError::Primitive("the random source"))?;
        let key = keys.root_key(clear.epoch, clear.snapshot.as_bytes())?;
        cipher(&key)?
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(&out), &mut plain)
            .map_err(|_| RepoError::Primitive("the cipher"))?;
        out.extend_from_slice(&((NONCE_LEN + plain.len()) as u32).to_le_bytes());
        out.extend_from_slice(&nonce);
        out.extend_from_slice(&plain);
        let mac = keys.root_mac(&out);
        out.extend_from_slice(&mac);
        let signature = signer.pair.try_sign(&out).map_err(|_| bad_key())?;
        out.extend_from_slice(signature.as_ref());
        if out.len() > ROOT_MAX {
            return Err(RepoError::TooLarge {
                what: "a root",
                limit: ROOT_MAX,
            });
        }
        Ok(out)
    }

    /// Opens a root object: checks signature and MAC before anything in it is believed.
    ///
    /// # Errors
    /// `Forged` when it was not made by a holder of the vault's key; `Malformed` for damage.
    pub fn open(bytes: &[u8], keys: &VaultKeys) -> Result<Self, RepoError> {
        let (clear, sealed_at) = RootClear::decode_parts(bytes)?;
        let body_len = bytes.len() - MAC_LEN - SIGNATURE_LEN;
        let (body, rest) = bytes.split_at(body_len);
        let mac: &[u8; MAC_LEN] = rest
            .first_chunk()
            .ok_or(malformed("a root", "it ends too early"))?;
        if clear.vault != keys.vault() || !keys.root_mac_holds(body, mac) {
            return Err(RepoError::Forged {
                what: "a root",
                why: "its MAC was not made with this vault's key",
            });
        }
        let sealed = &body[sealed_at + 4..];
        let (nonce, cipher_text) = sealed
            .split_first_chunk::<NONCE_LEN>()
            .ok_or(malformed("a root", "it ends too early"))?;
        let key = keys.root_key(clear.epoch, clear.snapshot.as_bytes())?;
        let mut plain = cipher_text.to_vec();
        let plain = cipher(&key)?
            .open_in_place(
                Nonce::assume_unique_for_key(*nonce),
                Aad::from(&body[..sealed_at]),
                &mut plain,
            )
            .map_err(|_| RepoError::Forged {
                what: "a root",
                why: "its private part does not open",
            })?;
        let sealed = RootSealed::decode(plain, &clear.links)?;
        Ok(Self { clear, sealed })
    }

    /// The hash by which the next root of the source names this one.
    #[must_use]
    pub fn hash(bytes: &[u8]) -> [u8; 32] {
        *blake3::hash(bytes).as_bytes()
    }
}

impl RootClear {
    /// Reads the public part and checks the signature; needs no key. Whether the signer may sign
    /// for this source is the caller's to know.
    ///
    /// # Errors
    /// `Malformed` for damage, `TooNew` for later versions, `Forged` for a wrong signature.
    pub fn decode(bytes: &[u8]) -> Result<Self, RepoError> {
        Self::decode_parts(bytes).map(|(clear, _)| clear)
    }

    /// As `decode`; also where the length of the sealed part stands.
    fn decode_parts(bytes: &[u8]) -> Result<(Self, usize), RepoError> {
        if bytes.len() > ROOT_MAX {
            return Err(RepoError::TooLarge {
                what: "a root",
                limit: ROOT_MAX,
            });
        }
        let mut reader = Reader::new("a root", bytes);
        if reader.array()? != MAGIC {
            return Err(reader.bad("it does not begin like one"));
        }
        let (version, must_understand) = (reader.u16()?, reader.u16()?);
        if version != VERSION || must_understand != 0 {
            return Err(RepoError::TooNew {
                what: "a root",
                version,
                flags: must_understand,
            });
        }
        let flags = reader.u16()?;
        if flags & !FLAGS_KNOWN != 0 {
            return Err(reader.bad("an unknown flag is set"));
        }
        let vault = VaultId(reader.array()?);
        let snapshot = SnapshotId(reader.array()?);
        let source = SourceRef {
            agent: read_name(&mut reader)?,
            source: read_name(&mut reader)?,
        };
        let sequence = reader.u64()?;
        let previous = reader.array()?;
        let (started_at, finished_at) = (reader.u64()?, reader.u64()?);
        let signer = reader.array()?;
        let epoch = reader.u32()?;
        let links = reader.u32()? as usize;
        if links > NODE_LINKS_MAX {
            return Err(reader.bad("it has too many links"));
        }
        let links = Links::decode(links, reader.take(Links::section_len(links))?)?;
        let sealed_at = bytes.len() - reader.remaining();
        let sealed_len = reader.u32()? as usize;
        if sealed_len < NONCE_LEN + TAG_LEN || reader.remaining() != sealed_len + MAC_LEN + SIGNATURE_LEN {
            return Err(reader.bad("its length is not what it says"));
        }
        let (signed, signature) = bytes.split_at(bytes.len() - SIGNATURE_LEN);
        UnparsedPublicKey::new(&ED25519, &signer)
            .verify(signed, signature)
            .map_err(|_| RepoError::Forged {
                what: "a root",
                why: "its signature does not hold",
            })?;
        let clear = Self {
            vault,
            snapshot,
            source,
            sequence,
            previous,
            started_at,
            finished_at,
            partial: flags & FLAG_PARTIAL != 0,
            is_journal: flags & FLAG_JOURNAL != 0,
            signer,
            epoch,
            links,
        };
        Ok((clear, sealed_at))
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(1024);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&0_u16.to_le_bytes());
        let flags = (u16::from(self.partial) * FLAG_PARTIAL) | (u16::from(self.is_journal) * FLAG_JOURNAL);
        out.extend_from_slice(&flags.to_le_bytes());
        out.extend_from_slice(self.vault.as_bytes());
        out.extend_from_slice(self.snapshot.as_bytes());
        put_bytes(&mut out, self.source.agent.as_str().as_bytes());
        put_bytes(&mut out, self.source.source.as_str().as_bytes());
        out.extend_from_slice(&self.sequence.to_le_bytes());
        out.extend_from_slice(&self.previous);
        out.extend_from_slice(&self.started_at.to_le_bytes());
        out.extend_from_slice(&self.finished_at.to_le_bytes());
        out.extend_from_slice(&self.signer);
        out.extend_from_slice(&self.epoch.to_le_bytes());
        out.extend_from_slice(&(self.links.0.len() as u32).to_le_bytes());
        self.links.encode_into(&mut out);
        out
    }
}

impl RootSealed {
    fn encode(&self, links: &mut Vec<Link>) -> Vec<u8> {
        let mut out = Vec::new();
        put_bytes(&mut out, &self.hostname);
        put_varint(&mut out, self.trees.len() as u64);
        for tree in &self.trees {
            put_bytes(&mut out, &tree.path);
            tree.entry.encode_into(&mut out, links);
        }
        for owners in [&self.users, &self.groups] {
            put_varint(&mut out, owners.len() as u64);
            for (id, name) in owners {
                put_varint(&mut out, u64::from(*id));
                put_bytes(&mut out, name);
            }
        }
        out
    }

    fn decode(bytes: &[u8], links: &Links) -> Result<Self, RepoError> {
        let mut reader = Reader::new("a root's private part", bytes);
        let mut links = links.0.iter();
        let hostname = reader.bytes(PATH_MAX)?.to_vec();
        let mut trees = Vec::new();
        for _ in 0..reader.count(8, TREES_MAX)? {
            let path = reader.bytes(PATH_MAX)?.to_vec();
            let entry = Entry::decode(&mut reader, &mut links, true)?;
            if !path.starts_with(b"/") || path.contains(&0) || !entry.name.is_empty() {
                return Err(reader.bad("a tree's path is not absolute"));
            }
            trees.push(RootTree { path, entry });
        }
        let users = read_owners(&mut reader)?;
        let groups = read_owners(&mut reader)?;
        reader.end()?;
        if links.next().is_some() {
            return Err(malformed("a root", "it has links that it does not use"));
        }
        Ok(Self {
            hostname,
            trees,
            users,
            groups,
        })
    }
}

fn read_owners(reader: &mut Reader<'_>) -> Result<BTreeMap<u32, Vec<u8>>, RepoError> {
    let mut owners = BTreeMap::new();
    for _ in 0..reader.count(2, OWNERS_MAX)? {
        let id = reader.varint_u32()?;
        if owners.last_key_value().is_some_and(|(last, _)| *last >= id) {
            return Err(reader.bad("its owners are not in order"));
        }
        owners.insert(id, reader.bytes(PATH_MAX)?.to_vec());
    }
    Ok(owners)
}

fn read_name(reader: &mut Reader<'_>) -> Result<Name, RepoError> {
    let bytes = reader.bytes(NAME_MAX)?;
    let text = std::str::from_utf8(bytes).map_err(|_| reader.bad("a name is not text"))?;
    text.parse()
        .map_err(|_| reader.bad("a name is not of the form that names have"))
}

/// All node ids at which a walk of this root begins.
impl RootClear {
    /// Ids of the top nodes.
    pub fn top_nodes(&self) -> impl Iterator<Item = ChunkId> + '_ {
        self.links
            .0
            .iter()
            .filter(|link| link.is_node)
            .map(|link| link.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::{EntryKind, Timestamp};

    fn sample() -> (Root, VaultKeys, SigningKey) {
        let keys = VaultKeys::from_secrets(VaultId([1; 16]), [2; 32], [3; 32]);
        let entry = Entry {
            name: Vec::new(),
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime: Timestamp::default(),
            ctime: Timestamp::default(),
            inode: 2,
            changed_while_read: false,
            is_sparse: false,
            attributes: None,
            kind: EntryKind::Dir {
                node: ChunkId([8; 32]),
                files: 1,
                bytes: 2,
            },
        };
        let clear = RootClear {
            vault: keys.vault(),
            snapshot: SnapshotId([4; 16]),
            source: "web1/uploads".parse().unwrap(),
            sequence: 7,
            previous: [6; 32],
            started_at: 1,
            finished_at: 2,
            partial: false,
            is_journal: false,
            signer: [0; 32],
            epoch: 0,
            links: Links::default(),
        };
        let sealed = RootSealed {
            hostname: b"web1".to_vec(),
            trees: vec![RootTree {
                path: b"/srv/uploads".to_vec(),
                entry,
            }],
            users: [(0, b"root".to_vec())].into(),
            groups: BTreeMap::new(),
        };
        (Root { clear, sealed }, keys, SigningKey::generate().unwrap())
    }

    #[test]
    fn roots_round_trip_and_show_their_links_without_keys() {
        let (root, keys, signer) = sample();
        let bytes = root.encode(&keys, &signer).unwrap();
        let back = Root::open(&bytes, &keys).unwrap();
        assert_eq!(back.sealed, root.sealed);
        assert_eq!(back.clear.signer, signer.public());
        let clear = RootClear::decode(&bytes).unwrap();
        assert_eq!(clear, back.clear);
        assert_eq!(clear.top_nodes().collect::<Vec<_>>(), [ChunkId([8; 32])]);
        assert!(
            !bytes.windows(11).any(|window| window == b"srv/uploads"),
            "paths are sealed"
        );
    }

    #[test]
    fn every_flipped_bit_and_cut_is_an_error() {
        let (root, keys, signer) = sample();
        let bytes = root.encode(&keys, &signer).unwrap();
        for at in 0..bytes.len() {
            assert!(RootClear::decode(&bytes[..at]).is_err(), "cut at {at}");
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << (at % 8);
            assert!(RootClear::decode(&flipped).is_err(), "flip at {at}");
        }
    }

    #[test]
    fn a_root_signed_by_anyone_without_the_vaults_key_is_forged() {
        let (root, keys, _) = sample();
        let other = VaultKeys::from_secrets(keys.vault(), [9; 32], [3; 32]);
        let forged = root.encode(&other, &SigningKey::generate().unwrap()).unwrap();
        assert!(RootClear::decode(&forged).is_ok(), "its own signature holds");
        assert!(matches!(
            Root::open(&forged, &keys),
            Err(RepoError::Forged { .. })
        ));
    }
}
