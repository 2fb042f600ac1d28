//! The repository engine: chunking, hashing, compression, sealing, packs, trees and roots.
//!
//! Pure: no I/O, no network, no clock and no threads of its own. `FORMAT.md` beside this crate
//! gives every byte of what it writes.

#![forbid(unsafe_code)]
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        reason = "tests fail by panicking"
    )
)]

mod attributes;
pub mod blob;
pub mod chunker;
mod codec;
pub mod delta;
mod dir_node;
mod dir_search;
mod entry;
mod error;
mod file_node;
mod keys;
mod node;
pub mod pack;
pub mod root;
mod seal;
mod segment;

pub use attributes::{Attributes, HardLink, Xattrs};
pub use blob::{BlobHeader, Codec, Kind, Link, Links};
pub use chunker::Chunker;
pub use dir_node::{BuiltDir, DirBuilder, DirNode, IndexChild};
pub use dir_search::{DirSearch, Sought};
pub use entry::{ChunkRef, Content, Entry, EntryKind, Strategy, Timestamp};
pub use error::RepoError;
pub use file_node::{FileBuilder, FileNode};
pub use keys::VaultKeys;
pub use node::{Node, NodeDraft};
pub use pack::{PackDirectory, PackEntry, PackWriter};
pub use root::{Root, RootClear, RootSealed, RootTree, SigningKey};
pub use seal::{Opener, SealedBlob, Sealer};
pub use segment::{Extent, Parts, Segment};
