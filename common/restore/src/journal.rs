//! A source's journal, as restores read it: files by name, each in a page whose root object lists it.

use crate::{BlobOpener, ChunkReader, RestoreError, Result, Snapshot};
use async_trait::async_trait;
use holdfast_core::{SnapshotId, SourceRef, UnixMillis};
use holdfast_repo::Root;
use std::{collections::BTreeMap, io::Write, sync::Arc};

/// Pages opened at a time: files come in the order of their names, and so mostly page by page.
const PAGES_HELD: usize = 64;

/// Gives the roots of pages, opened with the vault's keys.
#[async_trait]
pub trait JournalRoots: Send + Sync {
    /// The root of a page.
    ///
    /// # Errors
    /// When it is not there, or not genuine.
    async fn root(&self, page: SnapshotId) -> Result<Root>;
}

/// A file of a journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JournalFile {
    /// Bytes.
    pub len: u64,
    /// The page that lists it.
    pub page: SnapshotId,
    /// When it was kept.
    pub kept_at: UnixMillis,
}

/// A journal that can be read. Cheap to clone.
#[derive(Clone)]
pub struct Journal {
    source: SourceRef,
    files: Arc<BTreeMap<String, JournalFile>>,
    roots: Arc<dyn JournalRoots>,
    reader: ChunkReader,
    opened: Arc<parking_lot::Mutex<BTreeMap<SnapshotId, Snapshot>>>,
}

impl std::fmt::Debug for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Journal({}, {} files)", self.source, self.files.len())
    }
}

impl Journal {
    /// The journal of a source with these files.
    #[must_use]
    pub fn new(
        source: SourceRef,
        files: BTreeMap<String, JournalFile>,
        roots: Arc<dyn JournalRoots>,
        reader: ChunkReader,
    ) -> Self {
        Self {
            source,
            files: Arc::new(files),
            roots,
            reader,
            opened: Arc::default(),
        }
    }

    /// How its chunks are read.
    pub(crate) fn reader(&self) -> &ChunkReader {
        &self.reader
    }

    /// Its files by name.
    #[must_use]
    pub fn files(&self) -> &BTreeMap<String, JournalFile> {
        &self.files
    }

    /// The content of a file of at most `max` bytes; on a thread that may wait.
    pub(crate) fn read(&self, opener: &mut BlobOpener, name: &str, max: usize) -> Result<Vec<u8>> {
        let page = self.page(name)?;
        let path = format!("/{name}");
        page.read_small(opener, path.as_bytes(), max)?
            .ok_or_else(|| RestoreError::NoSuchPath(path.into_bytes()))
    }

    /// Writes the content of a file; on a thread that may wait.
    pub(crate) fn write(&self, opener: &mut BlobOpener, name: &str, out: &mut dyn Write) -> Result<u64> {
        let page = self.page(name)?;
        page.write_file(opener, format!("/{name}").as_bytes(), out)
    }

    fn page(&self, name: &str) -> Result<Snapshot> {
        let file = self
            .files
            .get(name)
            .ok_or_else(|| RestoreError::NoSuchPath(name.as_bytes().to_vec()))?;
        if let Some(page) = self.opened.lock().get(&file.page) {
            return Ok(page.clone());
        }
        let root = self.reader.wait(self.roots.root(file.page))?;
        // The page itself says of what it is: nobody can hand out another source's file under this name.
        let clear = &root.clear;
        if !clear.is_journal || clear.snapshot != file.page || clear.source != self.source {
            return Err(RestoreError::Protocol(
                "another page than the one that lists a file",
            ));
        }
        let page = Snapshot::of_reader(root, self.reader.clone());
        let mut opened = self.opened.lock();
        if opened.len() >= PAGES_HELD {
            opened.pop_first();
        }
        opened.insert(file.page, page.clone());
        Ok(page)
    }
}
