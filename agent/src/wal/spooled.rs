//! One file in a spool: packs as they will be sent, then a sealed note of what they are.
//!
//! ```text
//! pack … pack, note (a sealed blob), id of the note (32 bytes), length of that blob (4, little endian), magic (8)
//! ```
//! The end is written last and read first, so half a file has none. Everything is sealed with the vault's keys; the note holds the
//! packs' ids, which are their hashes: what was changed on the disk is seen before any of it is sent or given out.

use super::{
    cluster_files::Candidate,
    past_cache::PastCache,
    sealing::{About, SealedFile, Sealing, lengths_of},
};
use crate::{
    error::{AgentError, Result},
    remote::Remote,
};
use bytes::Bytes;
use holdfast_core::{ChunkId, ErrorKind, PackId, SnapshotId, limits::PACK_MAX};
use holdfast_repo::{
    Opener, PackDirectory, PackWriter, Sealer, VaultKeys,
    pack::{TRAILER_LEN as PACK_TRAILER_LEN, Trailer},
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    fs::{self, File},
    io::Write,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

const MAGIC: [u8; 8] = *b"HFSPOOL\x01";
const TRAILER_LEN: usize = 32 + 4 + 8;
/// Longest note as stored: of the largest segments, which have 256 pieces, it takes a tenth.
const NOTE_MAX: usize = 256 << 10;
/// Files are for the agent alone.
const MODE: u32 = 0o600;

/// What a spooled file is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Note {
    /// Its name.
    pub name: String,
    /// The cluster.
    pub system_id: u64,
    /// Bytes.
    pub len: u64,
    /// By which it is compared with others of its name.
    pub content: [u8; 32],
    /// When it was taken in, in milliseconds since 1970.
    pub spooled_at: u64,
    ids: Vec<ChunkId>,
    about: About,
    packs: Vec<(PackId, u64)>,
}

/// Writes a file's packs into a new file at `path`, all of it on disk when it returns.
///
/// # Errors
/// When it cannot be read or written, or changes meanwhile; then nothing is left.
pub(super) fn write(sealing: &Sealing, from: &Candidate, system_id: u64, path: &Path) -> Result<Note> {
    let written = written(sealing, from, system_id, path);
    if written.is_err() {
        let _ = fs::remove_file(path);
    }
    written
}

fn written(sealing: &Sealing, from: &Candidate, system_id: u64, path: &Path) -> Result<Note> {
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(MODE)
        .open(path)
        .map_err(AgentError::io("make", path))?;
    let sink = Sink {
        path: path.to_owned(),
        written: Mutex::new((PastCache::new(file), Vec::new())),
    };
    let sealed = sealing.send(&[from], &sink)?.pop();
    let SealedFile {
        tree: _,
        content,
        len,
        ids,
        about,
    } = sealed.ok_or_else(|| AgentError::Internal("a file got lost".into()))?;
    let (mut file, packs) = sink.written.into_inner();
    let note = Note {
        name: from.name.to_string(),
        system_id,
        len,
        content,
        spooled_at: now_millis(),
        ids,
        about,
        packs,
    };
    tracing::debug!(target: "holdfast::phase", phase = "spool-note");
    let end = sealed_note(sealing, &note)?;
    file.write_all(&end).map_err(AgentError::io("write", path))?;
    let file = file.finish().map_err(AgentError::io("write", path))?;
    tracing::debug!(target: "holdfast::phase", phase = "spool-sync");
    file.sync_data().map_err(AgentError::io("sync", path))?;
    Ok(note)
}

fn sealed_note(sealing: &Sealing, note: &Note) -> Result<Vec<u8>> {
    let raw = serde_json::to_vec(note).map_err(|error| AgentError::Internal(error.to_string()))?;
    let id = sealing.keys.data_id(&raw);
    let mut sealer = Sealer::new(Arc::clone(&sealing.keys), sealing.level)?;
    let blob = sealer.seal_data(id, &raw)?;
    let mut end = [blob.header_bytes, blob.sealed].concat();
    let len = u32::try_from(end.len()).unwrap_or(u32::MAX);
    end.extend_from_slice(id.as_bytes());
    end.extend_from_slice(&len.to_le_bytes());
    end.extend_from_slice(&MAGIC);
    Ok(end)
}

pub(super) fn now_millis() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Takes packs as controllers would.
struct Sink {
    path: PathBuf,
    written: Mutex<(PastCache, Vec<(PackId, u64)>)>,
}

impl Remote for Sink {
    fn known(&self, ids: &[ChunkId]) -> Result<Vec<bool>> {
        Ok(vec![false; ids.len()])
    }

    fn fetch(&self, ids: &[ChunkId]) -> Result<Vec<Option<Bytes>>> {
        Ok(vec![None; ids.len()])
    }

    fn upload(&self, pack: PackId, bytes: Bytes) -> Result<()> {
        tracing::debug!(target: "holdfast::phase", phase = "spool-write");
        let mut written = self.written.lock();
        written
            .0
            .write_all(&bytes)
            .map_err(AgentError::io("write", &self.path))?;
        written.1.push((pack, bytes.len() as u64));
        Ok(())
    }
}

/// A file of a spool, open for reading.
pub(super) struct Spooled {
    /// What it is.
    pub note: Note,
    path: PathBuf,
    file: File,
    keys: Arc<VaultKeys>,
}

impl Spooled {
    /// Opens a file and reads what it is.
    ///
    /// # Errors
    /// `Corrupt` when it is damaged; `Io`.
    pub fn open(path: &Path, keys: &Arc<VaultKeys>) -> Result<Self> {
        let file = File::open(path).map_err(AgentError::io("open", path))?;
        let len = file.metadata().map_err(AgentError::io("look at", path))?.len();
        let note = read_note(&file, len, keys).map_err(|why| damaged(path, &why))?;
        Ok(Self {
            note,
            path: path.to_owned(),
            file,
            keys: Arc::clone(keys),
        })
    }

    /// The file for a page of a journal.
    ///
    /// # Errors
    /// `Corrupt` when its pieces are not those of such a file.
    pub fn sealed(&self) -> Result<SealedFile> {
        let Note {
            name,
            len,
            ids,
            about,
            ..
        } = self.note.clone();
        SealedFile::again(&self.keys, &name, len, ids, about)
            .map_err(|error| self.damaged(&error.to_string()))
    }

    /// How many packs it has.
    pub fn packs(&self) -> usize {
        self.note.packs.len()
    }

    /// One of its packs, checked against its id.
    ///
    /// # Errors
    /// `Corrupt` when it is damaged.
    pub fn pack(&self, at: usize) -> Result<(PackId, Vec<u8>)> {
        let (id, offset, len) = self.place(at)?;
        let mut bytes = vec![0; len];
        self.read(&mut bytes, offset)?;
        PackDirectory::verify(&bytes, id, self.keys.vault())
            .map_err(|error| self.damaged(&error.to_string()))?;
        Ok((id, bytes))
    }

    /// The same blobs as another pack, in place of one whose id was given up for ever. A few random bytes beside them make the
    /// difference; nothing links to them, so that garbage collection takes them.
    ///
    /// # Errors
    /// `Corrupt` when it is damaged.
    pub fn pack_anew(&self, at: usize) -> Result<(PackId, Vec<u8>)> {
        let (id, bytes) = self.pack(at)?;
        let directory = PackDirectory::verify(&bytes, id, self.keys.vault())
            .map_err(|error| self.damaged(&error.to_string()))?;
        let mut anew = PackWriter::new(self.keys.vault(), Vec::new());
        for entry in &directory.entries {
            anew.push_verbatim(&bytes[entry.offset as usize..][..entry.len as usize])?;
        }
        let salt = SnapshotId::generate();
        let mut sealer = Sealer::new(Arc::clone(&self.keys), 1)?;
        anew.push(&sealer.seal_data(self.keys.data_id(salt.as_bytes()), salt.as_bytes())?);
        Ok(anew.finish())
    }

    /// Writes the file as the server had it; every piece is checked.
    ///
    /// # Errors
    /// `Corrupt` when it is damaged.
    pub fn copy_to(&self, out: &mut File) -> Result<()> {
        let places = self.pieces()?;
        let mut opener = Opener::new(Arc::clone(&self.keys))?;
        let (mut blob, mut raw) = (Vec::new(), Vec::new());
        for (id, expected) in self.note.ids.iter().zip(lengths_of(self.note.len)) {
            let (offset, len) = places
                .get(id)
                .ok_or_else(|| self.damaged("a piece is in none of its packs"))?;
            blob.resize(*len, 0);
            self.read(&mut blob, *offset)?;
            opener
                .open(*id, &blob, &mut raw)
                .map_err(|error| self.damaged(&error.to_string()))?;
            if raw.len() != expected {
                return Err(self.damaged("a piece is of another length"));
            }
            out.write_all(&raw).map_err(AgentError::io("write", &self.path))?;
        }
        Ok(())
    }

    /// Where each blob lies in the file.
    fn pieces(&self) -> Result<HashMap<ChunkId, (u64, usize)>> {
        let bad = |error: holdfast_repo::RepoError| self.damaged(&error.to_string());
        let mut places = HashMap::new();
        for at in 0..self.packs() {
            let (_, start, len) = self.place(at)?;
            let end = len
                .checked_sub(PACK_TRAILER_LEN)
                .ok_or_else(|| self.damaged("a pack is too short"))?;
            let mut trailer = [0; PACK_TRAILER_LEN];
            self.read(&mut trailer, start + end as u64)?;
            let trailer = Trailer::decode(&trailer, len as u64).map_err(bad)?;
            let mut directory = vec![0; usize::try_from(trailer.directory_len).unwrap_or(0)];
            self.read(&mut directory, start + trailer.directory_offset)?;
            let directory = PackDirectory::decode(&directory, trailer.directory_offset).map_err(bad)?;
            for entry in directory.entries {
                places.insert(entry.id, (start + u64::from(entry.offset), entry.len as usize));
            }
        }
        Ok(places)
    }

    fn place(&self, at: usize) -> Result<(PackId, u64, usize)> {
        let packs = &self.note.packs;
        let (id, len) = *packs
            .get(at)
            .ok_or_else(|| AgentError::Internal("there is no such pack".into()))?;
        let offset = packs.iter().take(at).map(|(_, len)| *len).sum();
        let len = usize::try_from(len).ok().filter(|len| *len <= PACK_MAX);
        Ok((id, offset, len.ok_or_else(|| self.damaged("a pack is too long"))?))
    }

    fn read(&self, into: &mut [u8], offset: u64) -> Result<()> {
        self.file
            .read_exact_at(into, offset)
            .map_err(|error| self.damaged(&error.to_string()))
    }

    fn damaged(&self, why: &str) -> AgentError {
        damaged(&self.path, why)
    }
}

fn read_note(file: &File, len: u64, keys: &Arc<VaultKeys>) -> std::result::Result<Note, String> {
    let end = len.checked_sub(TRAILER_LEN as u64).ok_or("it ends too early")?;
    let mut trailer = [0; TRAILER_LEN];
    file.read_exact_at(&mut trailer, end)
        .map_err(|error| error.to_string())?;
    let (id, rest) = trailer.split_first_chunk::<32>().ok_or("it ends too early")?;
    let (blob_len, magic) = rest.split_first_chunk::<4>().ok_or("it ends too early")?;
    if *magic != MAGIC {
        return Err("its end is not that of a spooled file".into());
    }
    let blob_len = u32::from_le_bytes(*blob_len);
    let start = end.checked_sub(u64::from(blob_len));
    let (Some(start), true) = (start, blob_len as usize <= NOTE_MAX) else {
        return Err("its note is too long".into());
    };
    let mut blob = vec![0; blob_len as usize];
    file.read_exact_at(&mut blob, start)
        .map_err(|error| error.to_string())?;
    let mut raw = Vec::new();
    Opener::new(Arc::clone(keys))
        .and_then(|mut opener| opener.open(ChunkId(*id), &blob, &mut raw))
        .map_err(|error| error.to_string())?;
    let note: Note = serde_json::from_slice(&raw).map_err(|error| error.to_string())?;
    let packed = note
        .packs
        .iter()
        .try_fold(0_u64, |sum, (_, len)| sum.checked_add(*len));
    if packed == Some(start) {
        Ok(note)
    } else {
        Err("its packs are not as long as its note says".into())
    }
}

fn damaged(path: &Path, why: &str) -> AgentError {
    AgentError::Server {
        action: "read the WAL spool",
        message: format!("{} is damaged: {why}", path.display()),
        kind: ErrorKind::Corrupt,
    }
}
