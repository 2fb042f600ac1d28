//! What directory and file nodes have in common: a draft to be sealed, and the payload's head.

use crate::{
    blob::{Kind, Links},
    codec::{Reader, put_varint},
    dir_node::DirNode,
    error::RepoError,
    file_node::FileNode,
    keys::VaultKeys,
};
use holdfast_core::{ChunkId, limits::NODE_LINKS_MAX};

/// Version of the payloads.
pub(crate) const NODE_VERSION: u8 = 1;
/// A node that lists content.
pub(crate) const LEAF: u8 = 0;
/// A node that lists further nodes of the same kind.
pub(crate) const INDEX: u8 = 1;

/// A node with its id, not yet sealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeDraft {
    /// Keyed hash of kind, links and payload.
    pub id: ChunkId,
    /// Directory or file.
    pub kind: Kind,
    /// What it links to, in the order of use.
    pub links: Links,
    /// The encoded payload.
    pub payload: Vec<u8>,
}

impl NodeDraft {
    pub(crate) fn new(keys: &VaultKeys, kind: Kind, links: Links, payload: Vec<u8>) -> Self {
        let mut section = Vec::with_capacity(Links::section_len(links.0.len()));
        links.encode_into(&mut section);
        Self {
            id: keys.node_id(kind, &section, &payload),
            kind,
            links,
            payload,
        }
    }
}

/// A decoded node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// Of a directory.
    Dir(DirNode),
    /// Of a file.
    File(FileNode),
}

impl Node {
    /// Reads the payload of an opened node.
    ///
    /// # Errors
    /// `Malformed` when it is not a node of that kind; `TooNew` for later versions.
    pub fn decode(kind: Kind, links: &Links, payload: &[u8]) -> Result<Self, RepoError> {
        match kind {
            Kind::Dir => DirNode::decode(links, payload).map(Self::Dir),
            Kind::File => FileNode::decode(links, payload).map(Self::File),
            Kind::Data => Err(crate::error::malformed("a node", "it is a data chunk")),
        }
    }
}

/// Begins a payload.
pub(crate) fn put_head(out: &mut Vec<u8>, shape: u8, count: usize) {
    out.extend_from_slice(&[NODE_VERSION, shape]);
    put_varint(out, count as u64);
}

/// Reads what [`put_head`] wrote: shape and count.
pub(crate) fn read_head(reader: &mut Reader<'_>) -> Result<(u8, usize), RepoError> {
    let version = reader.u8()?;
    if version != NODE_VERSION {
        return Err(RepoError::TooNew {
            what: "a node",
            version: version.into(),
            flags: 0,
        });
    }
    let shape = reader.u8()?;
    if shape > INDEX {
        return Err(reader.bad("its shape is unknown"));
    }
    Ok((shape, reader.count(2, NODE_LINKS_MAX)?))
}
