//! Fixed keys and small objects that several tests use.

use holdfast_core::{ChunkId, SnapshotId, VaultId};
use holdfast_repo::{
    ChunkRef, Content, Entry, EntryKind, Links, Root, RootClear, RootSealed, RootTree, SealedBlob,
    SigningKey, Strategy, Timestamp, VaultKeys,
};
use std::sync::Arc;

pub const VAULT: VaultId = VaultId([0x11; 16]);
pub const ID_KEY: [u8; 32] = [0x22; 32];
pub const EPOCH_KEY: [u8; 32] = [0x33; 32];

pub fn keys() -> Arc<VaultKeys> {
    Arc::new(VaultKeys::from_secrets(VAULT, ID_KEY, EPOCH_KEY))
}

/// A key that signs the same everywhere: PKCS #8 of an Ed25519 seed, by hand.
pub fn signer(seed: u8) -> SigningKey {
    let mut pkcs8 = hex_bytes("302e020100300506032b657004220420");
    pkcs8.extend_from_slice(&[seed; 32]);
    SigningKey::from_pkcs8(&pkcs8).unwrap()
}

pub fn hex_bytes(text: &str) -> Vec<u8> {
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
        .collect()
}

pub fn blob_bytes(blob: &SealedBlob<'_>) -> Vec<u8> {
    [blob.header_bytes, blob.sealed].concat()
}

pub fn entry(name: &[u8], kind: EntryKind) -> Entry {
    Entry {
        name: name.to_vec(),
        mode: 0o640,
        uid: 1000,
        gid: 100,
        mtime: Timestamp {
            secs: 1_700_000_000,
            nanos: 5,
        },
        ctime: Timestamp { secs: -1, nanos: 0 },
        inode: 300,
        changed_while_read: false,
        is_sparse: false,
        attributes: None,
        kind,
    }
}

pub fn file(chunks: &[(ChunkId, u32)]) -> EntryKind {
    EntryKind::File {
        size: chunks.iter().map(|(_, len)| u64::from(*len)).sum(),
        strategy: Strategy::ContentDefined,
        content: Content::Inline(
            chunks
                .iter()
                .map(|(id, len)| ChunkRef { id: *id, len: *len })
                .collect(),
        ),
    }
}

pub fn root(top: ChunkId) -> Root {
    Root {
        clear: RootClear {
            vault: VAULT,
            snapshot: SnapshotId([0x44; 16]),
            source: "web1/uploads".parse().unwrap(),
            sequence: 7,
            previous: [0x55; 32],
            started_at: 1_700_000_000_000,
            finished_at: 1_700_000_060_000,
            partial: true,
            is_journal: false,
            signer: [0; 32],
            epoch: 0,
            links: Links::default(),
        },
        sealed: RootSealed {
            hostname: b"web1.example".to_vec(),
            trees: vec![RootTree {
                path: b"/srv/uploads".to_vec(),
                entry: entry(
                    b"",
                    EntryKind::Dir {
                        node: top,
                        files: 2,
                        bytes: 14,
                    },
                ),
            }],
            users: [(0, b"root".to_vec()), (1000, b"alice".to_vec())].into(),
            groups: [(100, b"users".to_vec())].into(),
        },
    }
}
