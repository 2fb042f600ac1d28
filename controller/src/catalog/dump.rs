//! The whole catalog in one file: what Raft calls a snapshot. Of exactly one applied index.
//!
//! ```text
//! "HFCATSN1" len:u32 header[len] row* end
//! row = key_len:u32 value_len:u32 key value        (key_len > 0; all little-endian)
//! end = 0:u32 0:u32 rows:u64 blake3[32]            (the hash covers everything before it)
//! ```

use super::{
    kv::{CatalogHash, Row, decode, encode},
    store::{Applied, CatalogStore},
};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::{
    fs::File,
    io::{BufReader, BufWriter, Read, Write},
    path::Path,
};

const MAGIC: &[u8; 8] = b"HFCATSN1";
/// Longest header, key and value that a reader accepts.
const HEADER_MAX: usize = 1 << 20;
const KEY_MAX: usize = 4096;
const VALUE_MAX: usize = 64 << 20;

/// What a dump is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DumpHeader {
    /// Raft's name for it.
    pub snapshot_id: String,
    /// Up to where, and the catalog hash.
    pub applied: Applied,
}

/// Writes the catalog to a new file and syncs it; the caller gives it its name. Returns the header.
///
/// # Errors
/// When the disk refuses, or the records do not add up to the catalog hash.
pub fn write(store: &CatalogStore, path: &Path) -> Result<DumpHeader> {
    let file = File::create(path).map_err(|e| Error::io("create", path, e))?;
    let mut out = Hashed {
        out: BufWriter::with_capacity(1 << 20, file),
        hasher: blake3::Hasher::new(),
    };
    let mut header = None;
    let mut rows = 0_u64;
    let mut hash = CatalogHash::default();
    let failed = |e| Error::io("write", path, e);
    store.dump(|applied, row| {
        match row {
            None => {
                let index = applied.index();
                let made = DumpHeader {
                    snapshot_id: format!("{index}-{}", ulid::Ulid::generate()),
                    applied: applied.clone(),
                };
                let bytes = encode(&made)?;
                out.put(MAGIC)
                    .and_then(|()| out.put_len(bytes.len()))
                    .and_then(|()| out.put(&bytes))
                    .map_err(failed)?;
                header = Some(made);
            }
            Some((key, value)) => {
                hash.add(key, value);
                rows += 1;
                out.put_len(key.len()).map_err(failed)?;
                out.put_len(value.len()).map_err(failed)?;
                out.put(key).and_then(|()| out.put(value)).map_err(failed)?;
            }
        }
        Ok(())
    })?;
    let header = header.ok_or_else(|| Error::Internal("a dump without a header".into()))?;
    if hash.to_bytes() != header.applied.hash {
        return Err(Error::corrupt(
            "the catalog",
            "its records do not add up to its hash; restart the controller, which rebuilds it",
        ));
    }
    out.put(&[0; 8])
        .and_then(|()| out.put(&rows.to_le_bytes()))
        .map_err(failed)?;
    let trailer = out.hasher.finalize();
    out.out
        .write_all(trailer.as_bytes())
        .and_then(|()| out.out.flush())
        .map_err(failed)?;
    out.out
        .get_ref()
        .sync_all()
        .map_err(|e| Error::io("sync", path, e))?;
    Ok(header)
}

struct Hashed<W> {
    out: W,
    hasher: blake3::Hasher,
}

impl<W: Write> Hashed<W> {
    fn put(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.hasher.update(bytes);
        self.out.write_all(bytes)
    }

    fn put_len(&mut self, len: usize) -> std::io::Result<()> {
        self.put(&u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes())
    }
}

/// Reads a whole dump and checks every hash of it. Returns its header.
///
/// # Errors
/// `Corrupt` when anything is not as it was written.
pub fn verify(path: &Path) -> Result<DumpHeader> {
    let mut reader = DumpReader::open(path)?;
    let mut hash = CatalogHash::default();
    for row in reader.by_ref() {
        let (key, value) = row?;
        hash.add(&key, &value);
    }
    if hash.to_bytes() != reader.header.applied.hash {
        return Err(damaged(path, "its records do not add up to its hash"));
    }
    Ok(reader.header)
}

/// Reads a dump row by row; the last `next` fails when the file is damaged.
pub struct DumpReader {
    input: BufReader<File>,
    hasher: blake3::Hasher,
    path: std::path::PathBuf,
    rows: u64,
    is_over: bool,
    header: DumpHeader,
}

impl DumpReader {
    /// Opens a dump and reads its header.
    ///
    /// # Errors
    /// `Corrupt` when it is not a dump.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
        let mut reader = Self {
            input: BufReader::with_capacity(1 << 20, file),
            hasher: blake3::Hasher::new(),
            path: path.to_owned(),
            rows: 0,
            is_over: false,
            header: DumpHeader {
                snapshot_id: String::new(),
                applied: Applied::default(),
            },
        };
        if reader.take_bytes(8, 8)? != MAGIC {
            return Err(damaged(path, "it is not a catalog snapshot"));
        }
        let len = reader.take_len()?;
        reader.header = decode(&reader.take_bytes(len, HEADER_MAX)?)?;
        Ok(reader)
    }

    /// What it is of.
    #[must_use]
    pub fn header(&self) -> &DumpHeader {
        &self.header
    }

    fn take_bytes(&mut self, len: usize, most: usize) -> Result<Vec<u8>> {
        if len > most {
            return Err(damaged(&self.path, "a length in it is not possible"));
        }
        let mut bytes = vec![0; len];
        self.input
            .read_exact(&mut bytes)
            .map_err(|e| damaged(&self.path, &e.to_string()))?;
        self.hasher.update(&bytes);
        Ok(bytes)
    }

    fn take_len(&mut self) -> Result<usize> {
        let bytes = self.take_bytes(4, 4)?;
        Ok(bytes
            .iter()
            .rev()
            .fold(0, |value, byte| value << 8 | usize::from(*byte)))
    }

    fn row(&mut self) -> Result<Option<Row>> {
        let key_len = self.take_len()?;
        let value_len = self.take_len()?;
        if key_len > 0 {
            self.rows += 1;
            return Ok(Some((
                self.take_bytes(key_len, KEY_MAX)?,
                self.take_bytes(value_len, VALUE_MAX)?,
            )));
        }
        let stated = self.take_bytes(8, 8)?;
        let expected = self.hasher.finalize();
        if value_len != 0
            || stated != self.rows.to_le_bytes()
            || self.take_bytes(32, 32)? != expected.as_bytes()
        {
            return Err(damaged(&self.path, "its checksum is wrong"));
        }
        if self
            .input
            .read(&mut [0])
            .map_err(|e| damaged(&self.path, &e.to_string()))?
            != 0
        {
            return Err(damaged(&self.path, "there is something behind its end"));
        }
        Ok(None)
    }
}

impl Iterator for DumpReader {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_over {
            return None;
        }
        let row = self.row().transpose();
        self.is_over = !matches!(row, Some(Ok(_)));
        row
    }
}

fn damaged(path: &Path, why: &str) -> Error {
    Error::corrupt(format!("the catalog snapshot {}", path.display()), why)
}
