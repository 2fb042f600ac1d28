//! The database below the index: fjall, an LSM tree, with its tables and how it is opened.
//!
//! Why fjall: see "Chunk index" in `ARCHITECTURE.md`. Nothing is synced per change: after a power cut the newest
//! packs may be missing, together with their record, and are indexed again at the start.

use super::rows::{self, Live, Row};
use crate::{
    error::{Error, Result},
    raft::files,
};
use fjall::{
    Database as Fjall, Keyspace, KeyspaceCreateOptions,
    config::{CompressionPolicy, HashRatioPolicy},
};
use holdfast_core::{ChunkId, PackId, VaultId};
use std::{
    fs, io,
    ops::Bound,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

/// Bounds of the index.
#[derive(Debug, Clone)]
pub struct IndexOptions {
    /// Bytes of blocks kept in memory. Filters, the index of blocks and memtables come on top:
    /// about 60 MiB at 10 million chunks.
    pub cache_bytes: u64,
}

impl Default for IndexOptions {
    fn default() -> Self {
        Self {
            cache_bytes: 64 << 20,
        }
    }
}

/// Written when damage was met while running: the next start does not trust the database.
const DAMAGED: &str = "damaged";
/// Layout of the tables; another one is rebuilt.
const VERSION: u32 = 1;
/// Rows gathered in memory before they are written out. Up to five such tables are held, each about twice as
/// long in memory as its rows, before a writer has to wait.
const MEMTABLE_BYTES: u64 = 8 << 20;
/// The least that fjall allows; bounds what is read again at a start.
const JOURNAL_BYTES: u64 = 64 << 20;

pub(super) struct Database {
    db: Fjall,
    /// All rows in one tree, told apart by their first byte. In a tree of their own the list of packs and
    /// the chunks could be lost one without the other.
    rows: Keyspace,
}

/// vault number, chunk id → places
const CHUNK: u8 = rows::CHUNK;
/// pack id → number
const PACK: u8 = b'p';
/// number → pack id
const NUMBER: u8 = b'n';
/// vault id → number
const VAULT: u8 = b'v';
/// name → number
const META: u8 = b'm';

fn key(table: u8, rest: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + rest.len());
    key.push(table);
    key.extend_from_slice(rest);
    key
}

/// Opens the database; when that fails for any reason but a lack of rights or space, begins a new one.
pub(super) fn open_or_set_aside(dir: &Path, options: &IndexOptions) -> Result<(Database, Live)> {
    let why = if dir.join(DAMAGED).exists() {
        "damage was met while it ran".to_owned()
    } else {
        match catch_unwind(AssertUnwindSafe(|| open(dir, options))) {
            Ok(Ok(opened)) => return Ok(opened),
            Ok(Err(Error::Io { source, action, path })) if is_in_the_way(&source) => {
                return Err(Error::Io { action, path, source });
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "opening it failed abnormally".to_owned(),
        }
    };
    tracing::warn!(why, "setting the chunk index aside; it is rebuilt from the packs");
    let aside = dir.with_extension("damaged");
    match fs::remove_dir_all(&aside) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(Error::io("remove", &aside, e)),
        _ => {}
    }
    files::rename_durably(dir, &aside)?;
    open(dir, options)
}

pub(super) fn mark_damaged(dir: &Path) {
    if let Err(error) = fs::write(dir.join(DAMAGED), b"") {
        tracing::warn!(%error, "cannot note that the chunk index is damaged");
    }
}

pub(super) fn open(dir: &Path, options: &IndexOptions) -> Result<(Database, Live)> {
    files::create_dir(dir)?;
    let db = Fjall::builder(dir)
        .cache_size(options.cache_bytes)
        .worker_threads(1)
        .max_journaling_size(JOURNAL_BYTES)
        .open()
        .map_err(|e| failed(dir, e))?;
    // Keys are hashes: nothing in them compresses, and a hash index in each block finds them fastest.
    let options = || {
        KeyspaceCreateOptions::default()
            .data_block_compression_policy(CompressionPolicy::disabled())
            .data_block_hash_ratio_policy(HashRatioPolicy::all(8.0))
            .max_memtable_size(MEMTABLE_BYTES)
    };
    let rows = db.keyspace("rows", options).map_err(|e| failed(dir, e))?;
    let database = Database { db, rows };
    match database.meta_number("version")? {
        Some(VERSION) => {}
        None if database.next_pack()? == 0 => {
            database
                .rows
                .insert(key(META, b"version"), VERSION.to_be_bytes())
                .map_err(|e| failed(dir, e))?;
        }
        version => {
            return Err(Error::corrupt(
                "the chunk index",
                format!("its layout is {version:?}, not {VERSION}"),
            ));
        }
    }
    let mut live = Live::default();
    let next = database.next_pack()?;
    for item in database.rows.prefix([NUMBER]) {
        let key = item.key().map_err(|e| failed(dir, e))?;
        let number = number(&key[1..])?;
        // Also bounds the memory that the numbers take: one bit for each that was given out.
        if number >= next {
            return Err(Error::corrupt(
                "the chunk index",
                format!("pack {number} was never added, the next one is {next}"),
            ));
        }
        live.set(number);
    }
    Ok((database, live))
}

/// A full disk or a missing right is not damage; everything else that the database says of its files is.
fn failed(dir: &Path, error: fjall::Error) -> Error {
    match error {
        fjall::Error::Io(source) if !is_damage(&source) => Error::io("use the chunk index", dir, source),
        fjall::Error::Storage(fjall::LsmError::Io(source)) if !is_damage(&source) => {
            Error::io("use the chunk index", dir, source)
        }
        fjall::Error::Poisoned => Error::io(
            "write to the chunk index",
            dir,
            io::Error::other("an earlier write failed; see the log"),
        ),
        fjall::Error::Locked => Error::io(
            "lock the chunk index",
            dir,
            io::Error::new(io::ErrorKind::ResourceBusy, "another process uses it"),
        ),
        other => Error::corrupt("the chunk index", other.to_string()),
    }
}

/// Errors at opening that a new, empty database would meet too.
fn is_in_the_way(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::PermissionDenied
            | io::ErrorKind::ReadOnlyFilesystem
            | io::ErrorKind::ResourceBusy
    )
}

/// I/O errors that wrong bytes or missing files lead to.
fn is_damage(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof
            | io::ErrorKind::InvalidData
            | io::ErrorKind::InvalidInput
            | io::ErrorKind::NotFound
            | io::ErrorKind::NotADirectory
            | io::ErrorKind::IsADirectory
    )
}

fn number(bytes: &[u8]) -> Result<u32> {
    <[u8; 4]>::try_from(bytes)
        .map(u32::from_be_bytes)
        .map_err(|_| Error::corrupt("the chunk index", "a number has the wrong length"))
}

impl Database {
    fn get(&self, key: &[u8]) -> Result<Option<fjall::UserValue>> {
        self.rows.get(key).map_err(|e| failed(self.path(), e))
    }

    fn path(&self) -> &Path {
        self.rows.path()
    }

    fn get_number(&self, table: u8, rest: &[u8]) -> Result<Option<u32>> {
        self.get(&key(table, rest))?
            .map(|value| number(&value))
            .transpose()
    }

    fn meta_number(&self, name: &str) -> Result<Option<u32>> {
        self.get_number(META, name.as_bytes())
    }

    pub fn row(&self, vault: u32, id: &ChunkId) -> Result<Option<fjall::UserValue>> {
        self.get(&rows::key(vault, id))
    }

    pub fn raw_row(&self, key: &[u8]) -> Result<Option<fjall::UserValue>> {
        self.get(key)
    }

    pub fn vault_number(&self, vault: VaultId) -> Result<Option<u32>> {
        self.get_number(VAULT, vault.as_bytes())
    }

    pub fn vault_number_or_new(&self, vault: VaultId) -> Result<u32> {
        if let Some(number) = self.vault_number(vault)? {
            return Ok(number);
        }
        let next = self.meta_number("next-vault")?.unwrap_or(0);
        let after = next
            .checked_add(1)
            .ok_or_else(|| Error::corrupt("the chunk index", "vault numbers are used up"))?;
        let mut batch = self.batch();
        batch.put(VAULT, vault.as_bytes(), &next.to_be_bytes());
        batch.put_next_vault(after);
        batch.commit()?;
        Ok(next)
    }

    /// The number that the next pack gets. Numbers are never used again: old rows may still name them.
    pub fn next_pack(&self) -> Result<u32> {
        Ok(self.meta_number("next-pack")?.unwrap_or(0))
    }

    pub fn pack_number(&self, pack: PackId) -> Result<Option<u32>> {
        self.get_number(PACK, pack.as_bytes())
    }

    pub fn pack_of_number(&self, number: u32) -> Result<Option<PackId>> {
        self.get(&key(NUMBER, &number.to_be_bytes()))?
            .map(|value| pack_id(&value))
            .transpose()
    }

    pub fn unswept(&self) -> Result<bool> {
        Ok(self.meta_number("unswept")?.unwrap_or(0) != 0)
    }

    pub fn packs(&self, after: Option<PackId>, limit: usize) -> Result<Vec<PackId>> {
        let after = after.map(|after| key(PACK, after.as_bytes()));
        self.table(PACK, after)
            .take(limit)
            .map(|item| pack_id(&item.key().map_err(|e| failed(self.path(), e))?[1..]))
            .collect()
    }

    /// The rows of one table behind a key, in order.
    fn table(&self, table: u8, after: Option<Vec<u8>>) -> fjall::Iter {
        let from = after.map_or(Bound::Included(vec![table]), Bound::Excluded);
        self.rows
            .range::<Vec<u8>, _>((from, Bound::Excluded(vec![table + 1])))
    }

    /// At most `limit` keys behind `after` whose rows satisfy a condition, in order.
    pub fn keys_where(
        &self,
        after: Option<&[u8]>,
        limit: usize,
        condition: impl Fn(&[Row]) -> bool,
    ) -> Result<Vec<Vec<u8>>> {
        let mut keys = Vec::new();
        for item in self.table(CHUNK, after.map(<[u8]>::to_vec)) {
            let (key, value) = item.into_inner().map_err(|e| failed(self.path(), e))?;
            if condition(&rows::decode(&value)?) {
                keys.push(key.to_vec());
                if keys.len() == limit {
                    break;
                }
            }
        }
        Ok(keys)
    }

    pub fn batch(&self) -> Batch<'_> {
        Batch {
            database: self,
            batch: self.db.batch(),
        }
    }
}

fn pack_id(bytes: &[u8]) -> Result<PackId> {
    PackId::try_from(bytes).map_err(|e| Error::corrupt("the chunk index", e.to_string()))
}

/// Changes that happen together or not at all.
pub(super) struct Batch<'a> {
    database: &'a Database,
    batch: fjall::OwnedWriteBatch,
}

impl Batch<'_> {
    fn put(&mut self, table: u8, rest: &[u8], value: &[u8]) {
        self.batch.insert(&self.database.rows, key(table, rest), value);
    }

    pub fn put_row(&mut self, key: &[u8], value: &[u8]) {
        self.batch.insert(&self.database.rows, key, value);
    }

    pub fn remove_row(&mut self, key: &[u8]) {
        self.batch.remove(&self.database.rows, key);
    }

    pub fn put_pack(&mut self, pack: PackId, number: u32) {
        self.put(PACK, pack.as_bytes(), &number.to_be_bytes());
        self.put(NUMBER, &number.to_be_bytes(), pack.as_bytes());
    }

    pub fn remove_pack(&mut self, pack: PackId, number: u32) {
        self.batch.remove(&self.database.rows, key(PACK, pack.as_bytes()));
        self.batch
            .remove(&self.database.rows, key(NUMBER, &number.to_be_bytes()));
    }

    pub fn put_next_vault(&mut self, next: u32) {
        self.put(META, b"next-vault", &next.to_be_bytes());
    }

    pub fn put_next_pack(&mut self, next: u32) {
        self.put(META, b"next-pack", &next.to_be_bytes());
    }

    pub fn put_unswept(&mut self, unswept: bool) {
        self.put(META, b"unswept", &u32::from(unswept).to_be_bytes());
    }

    pub fn commit(self) -> Result<()> {
        self.batch.commit().map_err(|e| failed(self.database.path(), e))
    }
}
