//! What the targets share: fixed keys, and objects sealed by hand, so that the fuzzer gets past checksums,
//! ciphers and MACs to the decoders behind them.

#![forbid(unsafe_code)]

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey},
    signature::{Ed25519KeyPair, KeyPair as _},
};
use holdfast_core::{ChunkId, SnapshotId, SourceRef, VaultId};
use holdfast_repo::{BlobHeader, Codec, Kind, Link, Links, SigningKey, VaultKeys};

/// The vault of the golden files.
pub const VAULT: VaultId = VaultId([0x11; 16]);
/// Names its chunks.
pub const ID_KEY: [u8; 32] = [0x22; 32];
/// Seals its blobs.
pub const EPOCH_KEY: [u8; 32] = [0x33; 32];
/// The snapshot of [`forged_root`].
const SNAPSHOT: SnapshotId = SnapshotId([0x44; 16]);

/// The keys of the golden files.
#[must_use]
pub fn keys() -> VaultKeys {
    VaultKeys::from_secrets(VAULT, ID_KEY, EPOCH_KEY)
}

/// PKCS #8 of an Ed25519 seed, by hand.
fn pkcs8() -> Vec<u8> {
    let mut pkcs8 = vec![
        0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20,
    ];
    pkcs8.extend_from_slice(&[7; 32]);
    pkcs8
}

/// The agent that signs.
///
/// # Panics
/// Never: the key is fixed.
#[must_use]
pub fn signer() -> SigningKey {
    SigningKey::from_pkcs8(&pkcs8()).expect("a fixed key")
}

/// So many different links; bit `n % 8` of `nodes` says whether link `n` is a node.
#[must_use]
pub fn links(count: u8, nodes: u8) -> Links {
    let link = |n: u8| Link {
        id: ChunkId([n; 32]),
        is_node: nodes >> (n % 8) & 1 == 1,
    };
    Links((0..count).map(link).collect())
}

fn seal(label: &[u8], id: &[u8], aad: &[u8], plain: &[u8]) -> Vec<u8> {
    let key = blake3::keyed_hash(&EPOCH_KEY, &[label, id].concat());
    let key = UnboundKey::new(&AES_256_GCM, key.as_bytes()).expect("32 bytes are a key");
    let mut body = plain.to_vec();
    LessSafeKey::new(key)
        .seal_in_place_append_tag(Nonce::assume_unique_for_key([0; 12]), Aad::from(aad), &mut body)
        .expect("sealing");
    [&[0; 12][..], &body].concat()
}

/// A data blob that opens up to its codec: `coded` stands where the content as encoded belongs.
#[must_use]
pub fn forged_blob(codec: Codec, raw_len: u32, coded: &[u8]) -> (ChunkId, Vec<u8>) {
    let id = ChunkId([0xee; 32]);
    let header = BlobHeader {
        codec,
        kind: Kind::Data,
        epoch: 1,
        id,
        size_class: BlobHeader::size_class_of(raw_len as usize),
        sealed_len: (12 + 4 + coded.len() + 16) as u32,
        links: Links::default(),
    };
    let mut blob = Vec::new();
    header.encode_into(&mut blob);
    let sealed = seal(b"blob", &id.0, &blob, &[&raw_len.to_le_bytes(), coded].concat());
    blob.extend_from_slice(&sealed);
    (id, blob)
}

/// A root whose private part is `plain`, with MAC and signature in order.
#[must_use]
pub fn forged_root(links: &Links, plain: &[u8]) -> Vec<u8> {
    let source: SourceRef = "web1/uploads".parse().expect("a name");
    let pair = Ed25519KeyPair::from_pkcs8(&pkcs8()).expect("a fixed key");
    let mut out = b"HFROOT\0\x01\x01\0\0\0\0\0".to_vec();
    out.extend_from_slice(&VAULT.0);
    out.extend_from_slice(&SNAPSHOT.0);
    for name in [source.agent.as_str(), source.source.as_str()] {
        out.push(name.len() as u8);
        out.extend_from_slice(name.as_bytes());
    }
    out.extend_from_slice(&7_u64.to_le_bytes());
    out.extend_from_slice(&[0x55; 32]);
    out.extend_from_slice(&[0; 16]);
    out.extend_from_slice(pair.public_key().as_ref());
    out.extend_from_slice(&1_u32.to_le_bytes());
    out.extend_from_slice(&(links.0.len() as u32).to_le_bytes());
    links.encode_into(&mut out);
    let sealed = seal(b"root", &SNAPSHOT.0, &out, plain);
    out.extend_from_slice(&(sealed.len() as u32).to_le_bytes());
    out.extend_from_slice(&sealed);
    let mac_key = blake3::derive_key("holdfast v1 root mac", &ID_KEY);
    let mac = blake3::keyed_hash(&mac_key, &out);
    out.extend_from_slice(mac.as_bytes());
    let signature = pair.sign(&out);
    out.extend_from_slice(signature.as_ref());
    out
}

/// A cached signature of any content, bound to `segment` as its owner would.
#[must_use]
pub fn forged_signature(segment: &ChunkId, body: &[u8]) -> Vec<u8> {
    let data = blake3::derive_key("holdfast v1 chunk id data", &ID_KEY);
    let key = blake3::derive_key("holdfast v1 segment signature", &data);
    let mut hasher = blake3::Hasher::new_keyed(&key);
    hasher.update(&segment.0);
    hasher.update(body);
    [body, hasher.finalize().as_bytes()].concat()
}
