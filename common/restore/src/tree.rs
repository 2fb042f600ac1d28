//! A snapshot's trees: look up, list, read and iterate, reading only the nodes on the way.

mod compare;
mod ordered;
mod resolve;
mod search;

pub use compare::{Change, Difference, compare};
pub(crate) use search::Search;

use crate::{
    BlobOpener, BlobSource, ChunkReader, RestoreError, Result, content::SegmentReader, file_segments,
    path::join_path,
};
use holdfast_core::limits::IDS_PER_QUERY;
use holdfast_repo::{Content, DirNode, Entry, EntryKind, Node, Root, Segment, VaultKeys};
use std::{
    io::{Read as _, Write},
    ops::ControlFlow,
    sync::Arc,
};

/// An entry and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeEntry {
    /// Absolute path in the snapshot; bytes, not UTF-8.
    pub path: Vec<u8>,
    /// The entry; its name is empty for a tree's own directory or file.
    pub entry: Entry,
}

/// Opens a root object: nothing in it is believed before its signature and its MAC hold.
///
/// # Errors
/// `Denied` when it is forged, `Corrupt` when it is damaged.
pub fn open_root(bytes: &[u8], keys: &VaultKeys) -> Result<Root> {
    Ok(Root::open(bytes, keys)?)
}

/// A snapshot that can be read.
#[derive(Clone)]
pub struct Snapshot {
    root: Arc<Root>,
    reader: ChunkReader,
}

impl Snapshot {
    /// The snapshot of an opened root. Call it from within a tokio runtime.
    #[must_use]
    pub fn new(root: Root, source: Arc<dyn BlobSource>, keys: Arc<VaultKeys>) -> Self {
        Self {
            root: Arc::new(root),
            reader: ChunkReader::new(source, keys),
        }
    }

    /// The snapshot of a root object. Call it from within a tokio runtime.
    ///
    /// # Errors
    /// As [`open_root`].
    pub fn open(root: &[u8], source: Arc<dyn BlobSource>, keys: Arc<VaultKeys>) -> Result<Self> {
        Ok(Self::new(open_root(root, &keys)?, source, keys))
    }

    /// A root whose chunks that reader reads.
    pub(crate) fn of_reader(root: Root, reader: ChunkReader) -> Self {
        Self {
            root: Arc::new(root),
            reader,
        }
    }

    /// The same source under another root.
    #[cfg(test)]
    pub(crate) fn with_root(self, root: Root) -> Self {
        Self {
            root: Arc::new(root),
            ..self
        }
    }

    /// The root.
    #[must_use]
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// What reads its chunks.
    #[must_use]
    pub fn reader(&self) -> &ChunkReader {
        &self.reader
    }

    /// The entry at a path: absolute, or relative to a tree.
    ///
    /// # Errors
    /// `NotFound`; those of reading nodes.
    pub async fn lookup(&self, path: &[u8]) -> Result<TreeEntry> {
        let (this, path) = (self.clone(), path.to_vec());
        self.reader
            .blocking(move |opener| this.lookup_blocking(opener, &path))
            .await
    }

    /// The entries of a directory in the order of their names; a file lists itself. Above the trees,
    /// the trees below that path.
    ///
    /// # Errors
    /// As [`Self::lookup`].
    pub async fn list(&self, path: &[u8]) -> Result<Vec<TreeEntry>> {
        let (this, path) = (self.clone(), path.to_vec());
        self.reader
            .blocking(move |opener| this.list_blocking(opener, &path))
            .await
    }

    pub(crate) fn list_blocking(&self, opener: &mut BlobOpener, path: &[u8]) -> Result<Vec<TreeEntry>> {
        let found = match self.lookup_blocking(opener, path) {
            Err(RestoreError::NoSuchPath(_)) if !self.trees_below(path).is_empty() => {
                return Ok(self.trees_below(path));
            }
            outcome => outcome?,
        };
        let EntryKind::Dir { node, .. } = found.entry.kind else {
            return Ok(vec![found]);
        };
        let mut entries = Vec::new();
        ordered::entries(opener, node, 1, &mut |entry| {
            entries.push(TreeEntry {
                path: join_path(&found.path, &entry.name),
                entry,
            });
        })?;
        Ok(entries)
    }

    /// The content of a file of at most `max` bytes; none where there is no file.
    ///
    /// # Errors
    /// `Corrupt` for a longer one; those of reading.
    pub(crate) fn read_small(
        &self,
        opener: &mut BlobOpener,
        path: &[u8],
        max: usize,
    ) -> Result<Option<Vec<u8>>> {
        let found = match self.lookup_blocking(opener, path) {
            Err(RestoreError::NoSuchPath(_)) => return Ok(None),
            outcome => outcome?,
        };
        let EntryKind::File { size, content, .. } = &found.entry.kind else {
            return Ok(None);
        };
        if *size > max as u64 {
            return Err(RestoreError::BadTree("a file that is read whole is too long").at(path));
        }
        let mut bytes = Vec::new();
        write_content(opener, content, *size, path, &mut bytes)?;
        Ok(Some(bytes))
    }

    /// Writes a file's content, in order; nothing of a chunk is written before it was checked.
    /// Returns its length in bytes.
    ///
    /// # Errors
    /// `Invalid` when it is not a file; `Corrupt` naming path and chunk; those of `out`.
    pub async fn read_file(&self, path: &[u8], mut out: impl Write + Send + 'static) -> Result<u64> {
        let (this, path) = (self.clone(), path.to_vec());
        self.reader
            .blocking(move |opener| {
                let found = this.lookup_blocking(opener, &path)?;
                let EntryKind::File { size, content, .. } = &found.entry.kind else {
                    return Err(RestoreError::WrongKind {
                        path: found.path,
                        wanted: "a regular file",
                    });
                };
                write_content(opener, content, *size, &found.path, &mut out)?;
                out.flush().map_err(|source| writing(&found.path, source))?;
                Ok(*size)
            })
            .await
    }

    /// The same on a thread that may wait.
    pub(crate) fn write_file(
        &self,
        opener: &mut BlobOpener,
        path: &[u8],
        out: &mut dyn Write,
    ) -> Result<u64> {
        let found = self.lookup_blocking(opener, path)?;
        let EntryKind::File { size, content, .. } = &found.entry.kind else {
            return Err(RestoreError::WrongKind {
                path: found.path,
                wanted: "a regular file",
            });
        };
        write_content(opener, content, *size, &found.path, out)?;
        out.flush().map_err(|source| writing(&found.path, source))?;
        Ok(*size)
    }

    /// All entries at and below a path (empty: all trees), directories before what is in them,
    /// everything in the order of names. `visit` runs on a blocking thread.
    ///
    /// # Errors
    /// As [`Self::lookup`].
    pub async fn walk(
        &self,
        path: &[u8],
        mut visit: impl FnMut(TreeEntry) -> ControlFlow<()> + Send + 'static,
    ) -> Result<()> {
        let (this, path) = (self.clone(), path.to_vec());
        self.reader
            .blocking(move |opener| {
                let above = this.trees_below(&path);
                let starts = match this.lookup_blocking(opener, &path) {
                    Err(RestoreError::NoSuchPath(_)) if !above.is_empty() => above,
                    outcome => vec![outcome?],
                };
                for start in starts {
                    if ordered::walk(opener, start, &mut visit)?.is_break() {
                        break;
                    }
                }
                Ok(())
            })
            .await
    }
}

fn writing(path: &[u8], source: std::io::Error) -> RestoreError {
    RestoreError::Io {
        doing: "write the content of",
        what: crate::shown(path),
        source,
    }
}

/// Bytes that a segment takes in memory.
pub(crate) fn in_memory(segment: &Segment) -> usize {
    match segment {
        Segment::Hole(_) => 0,
        _ => usize::try_from(segment.len()).unwrap_or(usize::MAX),
    }
}

/// Reads ahead by regions, so that a long file does not wait for each of its chunks.
fn write_content(
    opener: &mut BlobOpener,
    content: &Content,
    size: u64,
    path: &[u8],
    out: &mut dyn Write,
) -> Result<()> {
    // The visitor must not borrow the opener that walks the file's nodes.
    let mut reader = SegmentReader::new(opener.reader(), Arc::default())?;
    let mut region: Vec<Segment> = Vec::new();
    let mut bytes = 0;
    let mut raw = Vec::new();
    let mut write = |region: &mut Vec<Segment>| -> Result<()> {
        let fetched = reader.fetch(region.iter())?;
        for segment in region.drain(..) {
            if let Segment::Hole(len) = segment {
                let mut zeros = std::io::repeat(0).take(len);
                std::io::copy(&mut zeros, out).map_err(|source| writing(path, source))?;
                continue;
            }
            reader.read(&segment, &fetched, &mut raw)?;
            out.write_all(&raw).map_err(|source| writing(path, source))?;
        }
        Ok(())
    };
    file_segments::visit(opener, content, size, &mut |_, segment: Segment| {
        let len = in_memory(&segment);
        if bytes + len > crate::bounds::REGION_BYTES || region.len() >= IDS_PER_QUERY {
            write(&mut region)?;
            bytes = 0;
        }
        bytes += len;
        region.push(segment);
        Ok(())
    })
    .and_then(|()| write(&mut region))
    .map_err(|error| error.at(path))
}

/// The entry of that name in the directory whose top node is `node`.
pub(crate) fn child(
    opener: &mut BlobOpener,
    mut node: holdfast_core::ChunkId,
    name: &[u8],
) -> Result<Option<Entry>> {
    for _ in 0..holdfast_core::limits::NODE_DEPTH_MAX {
        let fetched = opener.fetch([node])?;
        match opener.open_node(node, fetched.get(&node))? {
            Node::Dir(DirNode::Leaf(mut entries)) => {
                let at = entries.binary_search_by(|entry| entry.name[..].cmp(name));
                return Ok(at.ok().map(|at| entries.swap_remove(at)));
            }
            Node::Dir(DirNode::Index(children)) => match crate::walk::child_of(&children, name) {
                Some(at) => node = children[at].id,
                None => return Ok(None),
            },
            Node::File(_) => {
                return Err(RestoreError::BadTree(
                    "a file's node stands where a directory belongs",
                ));
            }
        }
    }
    Err(RestoreError::BadTree("a directory's nodes are nested too deeply"))
}
