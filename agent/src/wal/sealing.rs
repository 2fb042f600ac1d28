//! From files to sealed packs at the controllers: pieces side by side on a few threads, in bounded memory.

use super::cluster_files::Candidate;
use crate::{
    error::{AgentError, Result},
    remote::Remote,
};
use bytes::Bytes;
use holdfast_core::{
    ChunkId,
    limits::{CHUNK_MAX, PACK_TARGET},
};
use holdfast_repo::{
    ChunkRef, Entry, EntryKind, FileBuilder, PackWriter, RootTree, Sealer, Strategy, Timestamp, VaultKeys,
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::{
    os::unix::fs::{FileExt as _, MetadataExt as _},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

/// Pieces into which a file is cut, so that all of them stand in its entry and one answer brings them back.
const PIECES: u64 = 8;
/// Shortest piece: below it a second thread gains nothing.
const PIECE_MIN: u64 = 1 << 20;

/// A file whose content is at the controllers.
#[derive(Debug)]
pub(super) struct SealedFile {
    /// Its tree in the page's root: `/NAME`.
    pub tree: RootTree,
    /// Equal for equal content, and for nothing else, as long as the vault's naming key is the same.
    pub content: [u8; 32],
    /// Bytes.
    pub len: u64,
    /// Its pieces.
    pub ids: Vec<ChunkId>,
    /// What the system said of it.
    pub about: About,
}

impl SealedFile {
    /// The file again, from what was noted of it. Nodes are in the packs that were made of it.
    ///
    /// # Errors
    /// When these are not the pieces of a file of that length.
    pub fn again(keys: &VaultKeys, name: &str, len: u64, ids: Vec<ChunkId>, about: About) -> Result<Self> {
        let lengths: Vec<usize> = lengths_of(len).collect();
        if lengths.len() != ids.len() {
            return Err(AgentError::Invalid(format!(
                "{name} of {len} bytes has not {} pieces",
                ids.len()
            )));
        }
        let mut builder = FileBuilder::default();
        for (id, len) in ids.iter().zip(lengths) {
            let len = u32::try_from(len).unwrap_or(u32::MAX);
            builder.push(keys, ChunkRef { id: *id, len })?;
        }
        let (content, _) = builder.finish(keys)?;
        Ok(Self {
            tree: tree(name, len, about, content),
            content: content_of(keys, len, &ids),
            len,
            ids,
            about,
        })
    }
}

/// What the system says of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct About {
    mode: u32,
    uid: u32,
    gid: u32,
    secs: i64,
    nanos: u32,
    inode: u64,
}

impl About {
    fn of(file: &Candidate) -> Result<Self> {
        let about = file
            .file
            .metadata()
            .map_err(AgentError::io("look at", file.name.to_string().as_ref()))?;
        Ok(Self {
            mode: about.mode() & 0o777,
            uid: about.uid(),
            gid: about.gid(),
            secs: about.mtime(),
            nanos: u32::try_from(about.mtime_nsec()).unwrap_or(0),
            inode: about.ino(),
        })
    }
}

/// How files are sealed.
#[derive(Clone)]
pub(super) struct Sealing {
    /// The vault's keys.
    pub keys: Arc<VaultKeys>,
    /// zstd level.
    pub level: i32,
    /// Threads.
    pub workers: usize,
}

/// Where one piece is.
#[derive(Debug, Clone, Copy)]
struct Piece {
    file: usize,
    offset: u64,
    len: usize,
}

/// Bytes of each piece of a file, in order.
pub(super) fn lengths_of(len: u64) -> impl Iterator<Item = usize> {
    pieces_of(0, len).map(|piece| piece.len)
}

/// Bytes of each piece of a file but the last: it depends on the file's length alone.
fn piece_len(len: u64) -> u64 {
    len.div_ceil(PIECES).clamp(PIECE_MIN, CHUNK_MAX as u64)
}

fn pieces_of(file: usize, len: u64) -> impl Iterator<Item = Piece> {
    let piece = piece_len(len);
    (0..len.div_ceil(piece)).map(move |n| Piece {
        file,
        offset: n * piece,
        len: usize::try_from(piece.min(len - n * piece)).unwrap_or(CHUNK_MAX),
    })
}

/// The hash by which contents are compared, without reading anything.
fn content_of(keys: &VaultKeys, len: u64, ids: &[ChunkId]) -> [u8; 32] {
    let mut all = len.to_le_bytes().to_vec();
    ids.iter().for_each(|id| all.extend_from_slice(id.as_bytes()));
    *keys.data_id(&all).as_bytes()
}

impl Sealing {
    /// The hash by which the content of a file is compared.
    ///
    /// # Errors
    /// When it cannot be read, or changes.
    pub fn content(&self, file: &Candidate) -> Result<[u8; 32]> {
        let mut ids = Vec::new();
        let mut raw = Vec::new();
        for piece in pieces_of(0, file.len) {
            read(file, piece, &mut raw)?;
            ids.push(self.keys.data_id(&raw));
        }
        Ok(content_of(&self.keys, file.len, &ids))
    }

    /// Seals the files and sends them; every pack is acknowledged when it returns. Blocks.
    ///
    /// # Errors
    /// When a file cannot be read or changes meanwhile, or a pack cannot be sent.
    pub fn send(&self, files: &[&Candidate], remote: &dyn Remote) -> Result<Vec<SealedFile>> {
        let pieces: Vec<Piece> = files
            .iter()
            .enumerate()
            .flat_map(|(at, file)| pieces_of(at, file.len))
            .collect();
        let run = Run {
            sealing: self,
            files,
            pieces: &pieces,
            remote,
            next: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            ids: Mutex::new(vec![ChunkId([0; 32]); pieces.len()]),
            open: Mutex::new(PackWriter::new(self.keys.vault(), Vec::new())),
            spare: Mutex::default(),
            sending: Mutex::default(),
            failure: Mutex::new(None),
        };
        let workers = self.workers.min(pieces.len()).max(1);
        std::thread::scope(|scope| {
            for _ in 1..workers {
                scope.spawn(|| run.work());
            }
            run.work();
        });
        run.finish()
    }
}

struct Run<'a> {
    sealing: &'a Sealing,
    files: &'a [&'a Candidate],
    pieces: &'a [Piece],
    remote: &'a dyn Remote,
    next: AtomicUsize,
    stop: AtomicBool,
    ids: Mutex<Vec<ChunkId>>,
    open: Mutex<PackWriter>,
    /// The buffer of a pack that was sent.
    spare: Mutex<Vec<u8>>,
    /// Who holds it sends: one pack is under way while another one is filled, and no third is in memory.
    sending: Mutex<()>,
    failure: Mutex<Option<AgentError>>,
}

impl Run<'_> {
    fn work(&self) {
        if let Err(error) = self.work_until_done() {
            self.stop.store(true, Ordering::Relaxed);
            self.failure.lock().get_or_insert(error);
        }
    }

    fn work_until_done(&self) -> Result<()> {
        let keys = &self.sealing.keys;
        let mut sealer = Sealer::new(Arc::clone(keys), self.sealing.level)?;
        let mut raw = Vec::new();
        while !self.stop.load(Ordering::Relaxed) {
            let at = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(piece) = self.pieces.get(at) else { break };
            read(self.files[piece.file], *piece, &mut raw)?;
            let id = keys.data_id(&raw);
            self.ids.lock()[at] = id;
            let blob = sealer.seal_data(id, &raw)?;
            let mut open = self.open.lock();
            if open.is_empty() {
                *open = PackWriter::new(keys.vault(), std::mem::take(&mut *self.spare.lock()));
                open.reserve(PACK_TARGET + CHUNK_MAX);
            }
            open.push(&blob);
            if open.is_full() {
                // Taken while the pack is locked: nobody fills the next one before this one may leave.
                let turn = self.sending.lock();
                let full = std::mem::replace(&mut *open, PackWriter::new(keys.vault(), Vec::new()));
                drop(open);
                self.upload(full)?;
                drop(turn);
            }
        }
        Ok(())
    }

    fn upload(&self, pack: PackWriter) -> Result<()> {
        let (id, bytes) = pack.finish();
        let bytes = Bytes::from(bytes);
        self.remote.upload(id, bytes.clone())?;
        // Unique once it was sent: taken over, not copied.
        if bytes.is_unique() {
            *self.spare.lock() = Vec::from(bytes);
        }
        Ok(())
    }

    fn finish(self) -> Result<Vec<SealedFile>> {
        if let Some(failure) = self.failure.into_inner() {
            return Err(failure);
        }
        let keys = &self.sealing.keys;
        let ids = self.ids.into_inner();
        let open = self.open.into_inner();
        // Nodes go into a pack of their own, like those of backups.
        let mut nodes = PackWriter::new(keys.vault(), Vec::new());
        let mut sealer = Sealer::new(Arc::clone(keys), self.sealing.level)?;
        let mut sealed = Vec::with_capacity(self.files.len());
        let mut at = 0;
        for (number, file) in self.files.iter().enumerate() {
            let from = at;
            let mut builder = FileBuilder::default();
            while let Some(piece) = self.pieces.get(at).filter(|piece| piece.file == number) {
                let chunk = ChunkRef {
                    id: ids[at],
                    len: u32::try_from(piece.len).unwrap_or(u32::MAX),
                };
                builder.push(keys, chunk)?;
                at += 1;
            }
            let (content, drafts) = builder.finish(keys)?;
            for draft in drafts {
                nodes.push(&sealer.seal_node(draft)?);
            }
            if !file.is_unchanged() {
                return Err(AgentError::Server {
                    action: "archive WAL",
                    message: format!("{} changed while it was read; the server tries again", file.name),
                    kind: holdfast_core::ErrorKind::Unavailable,
                });
            }
            let (ids, about) = (ids[from..at].to_vec(), About::of(file)?);
            sealed.push(SealedFile {
                tree: tree(&file.name.to_string(), file.len, about, content),
                content: content_of(keys, file.len, &ids),
                len: file.len,
                ids,
                about,
            });
        }
        for pack in [open, nodes] {
            if !pack.is_empty() {
                let (id, bytes) = pack.finish();
                self.remote.upload(id, Bytes::from(bytes))?;
            }
        }
        Ok(sealed)
    }
}

fn tree(name: &str, len: u64, about: About, content: holdfast_repo::Content) -> RootTree {
    let mtime = Timestamp {
        secs: about.secs,
        nanos: about.nanos,
    };
    RootTree {
        path: format!("/{name}").into_bytes(),
        entry: Entry {
            name: Vec::new(),
            mode: about.mode,
            uid: about.uid,
            gid: about.gid,
            mtime,
            ctime: mtime,
            inode: about.inode,
            changed_while_read: false,
            is_sparse: false,
            kind: EntryKind::File {
                size: len,
                strategy: Strategy::ContentDefined,
                content,
            },
            attributes: None,
        },
    }
}

fn read(file: &Candidate, piece: Piece, raw: &mut Vec<u8>) -> Result<()> {
    raw.resize(piece.len, 0);
    file.file
        .read_exact_at(raw, piece.offset)
        .map_err(AgentError::io("read", file.name.to_string().as_ref()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_a_file_once_and_the_usual_segment_needs_no_node() {
        for len in [0, 1, PIECE_MIN, PIECE_MIN + 1, 16 << 20, (16 << 20) + 1, 1 << 30] {
            let mut end = 0;
            for piece in pieces_of(3, len) {
                assert_eq!((piece.file, piece.offset), (3, end), "{len}");
                assert!(piece.len > 0 && piece.len <= CHUNK_MAX);
                end += piece.len as u64;
            }
            assert_eq!(end, len);
        }
        assert_eq!(pieces_of(0, 16 << 20).count(), 8);
    }

    #[test]
    fn contents_are_told_apart_by_length_and_pieces() {
        let keys = VaultKeys::from_secrets(holdfast_core::VaultId([1; 16]), [2; 32], [3; 32]);
        let ids = [ChunkId([1; 32]), ChunkId([2; 32])];
        let one = content_of(&keys, 10, &ids);
        assert_eq!(one, content_of(&keys, 10, &ids));
        assert_ne!(one, content_of(&keys, 11, &ids));
        assert_ne!(one, content_of(&keys, 10, &ids[..1]));
        assert_ne!(one, content_of(&keys, 10, &[ids[1], ids[0]]));
    }
}
