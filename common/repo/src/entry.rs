//! One directory entry: what a snapshot knows about a file, directory, link or device.

use crate::{
    attributes::Attributes,
    blob::Link,
    codec::{Reader, put_bytes, put_signed, put_varint},
    error::{RepoError, malformed},
};
use holdfast_core::{
    ChunkId,
    limits::{CHUNK_MAX, FILE_NAME_MAX},
};

/// Most chunks that stand in the directory itself; files with more get a node of their own.
pub const INLINE_CHUNKS_MAX: usize = 8;
/// Longest target of a symbolic link: PATH_MAX on Linux.
const SYMLINK_MAX: usize = 4096;

/// Seconds and nanoseconds since 1970-01-01 UTC, as the file system gives them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Timestamp {
    /// Whole seconds; negative before 1970.
    pub secs: i64,
    /// 0 to 999 999 999.
    pub nanos: u32,
}

/// A data chunk and how long its content is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkRef {
    /// The chunk.
    pub id: ChunkId,
    /// Raw bytes.
    pub len: u32,
}

/// How a file was cut; recorded, and kept for its later versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Strategy {
    /// Content-defined boundaries.
    #[default]
    ContentDefined,
    /// Segments of `limits::SEGMENT_LEN`.
    Fixed,
}

/// A file's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// The chunks themselves, at most `INLINE_CHUNKS_MAX` (8); none for an empty file.
    Inline(Vec<ChunkRef>),
    /// The top file node.
    Node(ChunkId),
}

/// What an entry is, with what only that kind has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file.
    File {
        /// Bytes of content.
        size: u64,
        /// How it was cut.
        strategy: Strategy,
        /// Where its content is.
        content: Content,
    },
    /// A directory.
    Dir {
        /// Its top node.
        node: ChunkId,
        /// Regular files in and below it.
        files: u64,
        /// Their bytes together.
        bytes: u64,
    },
    /// A symbolic link.
    Symlink {
        /// Where it points; any bytes.
        target: Vec<u8>,
    },
    /// A named pipe.
    Fifo,
    /// A character device.
    CharDevice {
        /// Its number as the kernel encodes it.
        rdev: u64,
    },
    /// A block device.
    BlockDevice {
        /// Its number as the kernel encodes it.
        rdev: u64,
    },
}

/// One entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Any bytes but `/` and NUL; not `.` or `..`. Empty only for the root of a tree.
    pub name: Vec<u8>,
    /// Permission bits, with set-uid, set-gid and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last change of content.
    pub mtime: Timestamp,
    /// Last change of the inode: tells a changed file from an unchanged one, is never restored.
    pub ctime: Timestamp,
    /// Inode number, likewise.
    pub inode: u64,
    /// The file could not be read in a consistent state and is stored as it was read.
    pub changed_while_read: bool,
    /// The file system stored less than its length: blocks of zeros come back as holes.
    pub is_sparse: bool,
    /// What only that kind of entry has.
    pub kind: EntryKind,
    /// What few entries have: extended attributes, further names, flags.
    pub attributes: Option<Box<Attributes>>,
}

const TYPE_FILE: u8 = 0;
const TYPE_DIR: u8 = 1;
const TYPE_SYMLINK: u8 = 2;
const TYPE_FIFO: u8 = 3;
const TYPE_CHAR: u8 = 4;
const TYPE_BLOCK: u8 = 5;

/// Permission bits with set-uid, set-gid and sticky.
const MODE_MAX: u32 = 0o7777;
const NANOS_MAX: u32 = 999_999_999;

/// Set in the flags of an entry whose file changed while it was read.
const FLAG_CHANGED: u64 = 1;
/// Set in the flags of a file that had holes.
const FLAG_SPARSE: u64 = 2;
/// Flags that this version understands.
const FLAGS_KNOWN: u64 = FLAG_CHANGED | FLAG_SPARSE;

impl Entry {
    /// Whether a name may stand in a directory.
    #[must_use]
    pub fn is_safe_name(name: &[u8]) -> bool {
        !name.is_empty()
            && name.len() <= FILE_NAME_MAX
            && name != b"."
            && name != b".."
            && !name.iter().any(|byte| matches!(byte, 0 | b'/'))
    }

    /// Bytes of a regular file, 0 for anything else.
    #[must_use]
    pub fn size(&self) -> u64 {
        if let EntryKind::File { size, .. } = self.kind {
            size
        } else {
            0
        }
    }

    /// Whether a reader would take this entry back. Checked before anything is written: an entry that no
    /// reader accepts would make its whole directory unreadable, and nobody would know until a restore.
    pub(crate) fn check(&self) -> Result<(), RepoError> {
        let bad = |why| Err(malformed("a directory entry", why));
        if self.mode > MODE_MAX {
            return bad("its mode has bits beyond permissions");
        }
        if [self.mtime, self.ctime].iter().any(|time| time.nanos > NANOS_MAX) {
            return bad("a time has more than a second of nanoseconds");
        }
        if let Some(attributes) = &self.attributes {
            attributes.check(matches!(self.kind, EntryKind::Dir { .. }))?;
        }
        match &self.kind {
            EntryKind::File {
                size,
                content: Content::Inline(chunks),
                ..
            } => {
                if chunks.len() > INLINE_CHUNKS_MAX {
                    bad("more chunks stand inline than may")
                } else if chunks.iter().any(|chunk| !is_chunk_len(chunk.len)) {
                    bad("a chunk's length is beyond its bound")
                } else if !sums_to(chunks, *size) {
                    bad("the file's chunks are not as long as the file")
                } else {
                    Ok(())
                }
            }
            EntryKind::Symlink { target } if target.len() > SYMLINK_MAX || target.contains(&0) => {
                bad("a link's target is too long or holds a zero byte")
            }
            _ => Ok(()),
        }
    }

    /// Appends the encoded entry to a payload, and its links to the node's links.
    pub(crate) fn encode_into(&self, out: &mut Vec<u8>, links: &mut Vec<Link>) {
        put_bytes(out, &self.name);
        out.push(match self.kind {
            EntryKind::File { .. } => TYPE_FILE,
            EntryKind::Dir { .. } => TYPE_DIR,
            EntryKind::Symlink { .. } => TYPE_SYMLINK,
            EntryKind::Fifo => TYPE_FIFO,
            EntryKind::CharDevice { .. } => TYPE_CHAR,
            EntryKind::BlockDevice { .. } => TYPE_BLOCK,
        });
        let changed = u64::from(self.changed_while_read) * FLAG_CHANGED;
        put_varint(out, changed | (u64::from(self.is_sparse) * FLAG_SPARSE));
        put_varint(out, self.mode.into());
        put_varint(out, self.uid.into());
        put_varint(out, self.gid.into());
        for time in [self.mtime, self.ctime] {
            put_signed(out, time.secs);
            put_varint(out, time.nanos.into());
        }
        put_varint(out, self.inode);
        match &self.kind {
            EntryKind::File {
                size,
                strategy,
                content,
            } => {
                put_varint(out, *size);
                out.push(*strategy as u8);
                match content {
                    Content::Inline(chunks) => {
                        put_varint(out, chunks.len() as u64);
                        for chunk in chunks {
                            put_varint(out, chunk.len.into());
                            links.push(Link {
                                id: chunk.id,
                                is_node: false,
                            });
                        }
                    }
                    Content::Node(id) => {
                        put_varint(out, INLINE_CHUNKS_MAX as u64 + 1);
                        links.push(Link {
                            id: *id,
                            is_node: true,
                        });
                    }
                }
            }
            EntryKind::Dir { node, files, bytes } => {
                put_varint(out, *files);
                put_varint(out, *bytes);
                links.push(Link {
                    id: *node,
                    is_node: true,
                });
            }
            EntryKind::Symlink { target } => put_bytes(out, target),
            EntryKind::Fifo => {}
            EntryKind::CharDevice { rdev } | EntryKind::BlockDevice { rdev } => put_varint(out, *rdev),
        }
        Attributes::encode_into(self.attributes.as_deref(), out);
    }

    /// Reads one entry; takes its links from the front of `links`.
    pub(crate) fn decode(
        reader: &mut Reader<'_>,
        links: &mut std::slice::Iter<'_, Link>,
        is_tree_root: bool,
    ) -> Result<Self, RepoError> {
        let name = reader.bytes(FILE_NAME_MAX)?.to_vec();
        if !(Self::is_safe_name(&name) || is_tree_root && name.is_empty()) {
            return Err(reader.bad("a name is not one that a directory can hold"));
        }
        let kind = reader.u8()?;
        let flags = reader.varint()?;
        if flags & !FLAGS_KNOWN != 0 {
            return Err(RepoError::TooNew {
                what: "a directory entry",
                version: 1,
                flags: flags as u16,
            });
        }
        let mode = reader.varint_u32()?;
        let (uid, gid) = (reader.varint_u32()?, reader.varint_u32()?);
        let mut times = [Timestamp::default(); 2];
        for time in &mut times {
            *time = Timestamp {
                secs: reader.signed()?,
                nanos: reader.varint_u32()?,
            };
            if time.nanos > NANOS_MAX {
                return Err(reader.bad("a time has more than a second of nanoseconds"));
            }
        }
        let inode = reader.varint()?;
        let kind = decode_kind(kind, reader, links)?;
        let attributes = Attributes::decode(reader, matches!(kind, EntryKind::Dir { .. }))?;
        if mode > MODE_MAX {
            return Err(reader.bad("a mode has bits beyond permissions"));
        }
        let [mtime, ctime] = times;
        let changed_while_read = flags & FLAG_CHANGED != 0;
        let is_sparse = flags & FLAG_SPARSE != 0;
        Ok(Self {
            name,
            mode,
            uid,
            gid,
            mtime,
            ctime,
            inode,
            changed_while_read,
            is_sparse,
            kind,
            attributes,
        })
    }
}

fn decode_kind(
    kind: u8,
    reader: &mut Reader<'_>,
    links: &mut std::slice::Iter<'_, Link>,
) -> Result<EntryKind, RepoError> {
    match kind {
        TYPE_FILE => decode_file(reader, links),
        TYPE_DIR => {
            let (files, bytes) = (reader.varint()?, reader.varint()?);
            Ok(EntryKind::Dir {
                node: next_link(reader, links, true)?,
                files,
                bytes,
            })
        }
        TYPE_SYMLINK => {
            let target = reader.bytes(SYMLINK_MAX)?.to_vec();
            if target.contains(&0) {
                return Err(reader.bad("a link's target holds a zero byte"));
            }
            Ok(EntryKind::Symlink { target })
        }
        TYPE_FIFO => Ok(EntryKind::Fifo),
        TYPE_CHAR => Ok(EntryKind::CharDevice {
            rdev: reader.varint()?,
        }),
        TYPE_BLOCK => Ok(EntryKind::BlockDevice {
            rdev: reader.varint()?,
        }),
        _ => Err(RepoError::TooNew {
            what: "a directory entry",
            version: 1,
            flags: kind.into(),
        }),
    }
}

fn decode_file(
    reader: &mut Reader<'_>,
    links: &mut std::slice::Iter<'_, Link>,
) -> Result<EntryKind, RepoError> {
    let size = reader.varint()?;
    let strategy = match reader.u8()? {
        0 => Strategy::ContentDefined,
        1 => Strategy::Fixed,
        _ => return Err(reader.bad("a chunking strategy is unknown")),
    };
    let count = usize::try_from(reader.varint()?).unwrap_or(usize::MAX);
    let content = if count == INLINE_CHUNKS_MAX + 1 {
        Content::Node(next_link(reader, links, true)?)
    } else if count <= INLINE_CHUNKS_MAX {
        let mut chunks = Vec::with_capacity(count);
        for _ in 0..count {
            let len = reader.varint_u32()?;
            if !is_chunk_len(len) {
                return Err(reader.bad("a chunk's length is beyond its bound"));
            }
            chunks.push(ChunkRef {
                id: next_link(reader, links, false)?,
                len,
            });
        }
        if !sums_to(&chunks, size) {
            return Err(reader.bad("a file's chunks are not as long as the file"));
        }
        Content::Inline(chunks)
    } else {
        return Err(reader.bad("a file has more chunks than stand inline"));
    };
    Ok(EntryKind::File {
        size,
        strategy,
        content,
    })
}

/// Whether a chunk may be that long.
pub(crate) fn is_chunk_len(len: u32) -> bool {
    (1..=CHUNK_MAX as u64).contains(&u64::from(len))
}

fn sums_to(chunks: &[ChunkRef], size: u64) -> bool {
    chunks.iter().map(|chunk| u64::from(chunk.len)).sum::<u64>() == size
}

/// The next link, which must be of the kind that the payload says.
pub(crate) fn next_link(
    reader: &Reader<'_>,
    links: &mut std::slice::Iter<'_, Link>,
    is_node: bool,
) -> Result<ChunkId, RepoError> {
    let link = links
        .next()
        .ok_or_else(|| reader.bad("it uses more links than it has"))?;
    if link.is_node == is_node {
        Ok(link.id)
    } else {
        Err(reader.bad("a link is of another kind"))
    }
}
