//! The chunk index: (vault, chunk) → where its blobs lie. Derived from the packs, rebuilt at need.
//!
//! **Architecture invariants.** The catalog says which packs exist, the packs say what they hold; the index says
//! nothing of its own. A location whose pack is not in the index's list of packs is never answered. Only packs
//! that the catalog has registered are added: an unregistered pack could vanish under a snapshot that relies on it.

mod database;
pub mod rows;
pub mod sync;

pub use database::IndexOptions;

use crate::error::{Error, Result};
use database::Database;
use holdfast_core::{ChunkId, PackId, VaultId};
use parking_lot::{Mutex, RwLock};
use rows::{Live, Row};
use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    sync::Arc,
};

pub use holdfast_store::Location;

/// What a pack holds, as it is added.
#[derive(Debug, Clone)]
pub struct IndexedPack {
    /// The pack.
    pub id: PackId,
    /// Whose.
    pub vault: VaultId,
    /// (chunk, offset, length) of each blob.
    pub blobs: Vec<(ChunkId, u32, u32)>,
}

/// The index. All calls block on files; look-ups run side by side, changes one after the other.
pub struct ChunkIndex {
    dir: PathBuf,
    options: IndexOptions,
    /// `None` only while it is opened anew after a failed write.
    database: RwLock<Option<Database>>,
    live: RwLock<Live>,
    changing: Mutex<()>,
}

/// Rows looked at between two releases of the change lock while sweeping.
const SWEEP_BATCH: usize = 4096;

impl ChunkIndex {
    /// Opens the index in `dir`. One that cannot be read is set aside, and an empty one takes its place.
    ///
    /// # Errors
    /// `Io` when the directory cannot be used at all.
    pub fn open(dir: &Path, options: IndexOptions) -> Result<Self> {
        let (database, live) = database::open_or_set_aside(dir, &options)?;
        Ok(Self {
            dir: dir.to_owned(),
            options,
            database: RwLock::new(Some(database)),
            live: RwLock::new(live),
            changing: Mutex::new(()),
        })
    }

    /// For each id whether a blob of it is stored. Sorted ids are looked up fastest.
    ///
    /// # Errors
    /// `Corrupt` when the database is damaged; it is rebuilt at the next start.
    pub fn contains(&self, vault: VaultId, ids: &[ChunkId]) -> Result<Vec<bool>> {
        self.reading(|database| {
            let Some(vault) = database.vault_number(vault)? else {
                return Ok(vec![false; ids.len()]);
            };
            ids.iter()
                .map(|id| {
                    let Some(value) = database.row(vault, id)? else {
                        return Ok(false);
                    };
                    let live = self.live.read();
                    Ok(rows::decode(&value)?.iter().any(|row| live.has(row.pack)))
                })
                .collect()
        })
    }

    /// For each id all its locations, the oldest pack first; empty when it is not stored.
    ///
    /// # Errors
    /// As [`Self::contains`].
    pub fn locate(&self, vault: VaultId, ids: &[ChunkId]) -> Result<Vec<Vec<Location>>> {
        self.reading(|database| {
            let Some(vault) = database.vault_number(vault)? else {
                return Ok(vec![Vec::new(); ids.len()]);
            };
            let mut packs: HashMap<u32, Option<PackId>> = HashMap::new();
            ids.iter()
                .map(|id| {
                    let Some(value) = database.row(vault, id)? else {
                        return Ok(Vec::new());
                    };
                    let mut locations = Vec::new();
                    for row in rows::decode(&value)? {
                        if !self.live.read().has(row.pack) {
                            continue;
                        }
                        let pack = match packs.get(&row.pack) {
                            Some(pack) => *pack,
                            None => *packs
                                .entry(row.pack)
                                .or_insert(database.pack_of_number(row.pack)?),
                        };
                        // None: removed between the two looks.
                        locations.extend(pack.map(|pack| Location {
                            pack,
                            offset: row.offset,
                            len: row.len,
                        }));
                    }
                    Ok(locations)
                })
                .collect()
        })
    }

    /// Adds packs, each whole or not at all. Those that are there already stay as they are.
    ///
    /// # Errors
    /// `NoSpace` and `Io` from the file system; the index goes on with what it had.
    pub fn add(&self, packs: &[IndexedPack]) -> Result<()> {
        let _changing = self.changing.lock();
        let added = self.writing(|database| {
            let mut batch = database.batch();
            let mut changed: BTreeMap<Vec<u8>, Vec<Row>> = BTreeMap::new();
            let mut added = Vec::new();
            let mut next = database.next_pack()?;
            for pack in packs {
                if database.pack_number(pack.id)?.is_some() || added.iter().any(|(id, _)| *id == pack.id) {
                    continue;
                }
                let vault = database.vault_number_or_new(pack.vault)?;
                for (id, offset, len) in &pack.blobs {
                    let key = rows::key(vault, id);
                    let row = Row {
                        pack: next,
                        offset: *offset,
                        len: *len,
                    };
                    match changed.get_mut(&key) {
                        Some(rows) => rows.push(row),
                        None => {
                            let mut rows = match database.row(vault, id)? {
                                Some(value) => rows::decode(&value)?,
                                None => Vec::new(),
                            };
                            rows.push(row);
                            changed.insert(key, rows);
                        }
                    }
                }
                added.push((pack.id, next));
                next = next
                    .checked_add(1)
                    .ok_or_else(|| Error::Internal("pack numbers are used up".into()))?;
            }
            for (key, rows) in &changed {
                batch.put_row(key, &rows::encode(rows));
            }
            for (id, number) in &added {
                batch.put_pack(*id, *number);
            }
            batch.put_next_pack(next);
            batch.commit()?;
            Ok(added)
        })?;
        let mut live = self.live.write();
        for (_, number) in added {
            live.set(number);
        }
        Ok(())
    }

    /// Removes packs: from now on no location of theirs is answered. Their rows go with [`Self::sweep`].
    ///
    /// # Errors
    /// As [`Self::add`].
    pub fn remove(&self, packs: &[PackId]) -> Result<()> {
        let _changing = self.changing.lock();
        let mut numbers = Vec::new();
        self.writing(|database| {
            let mut batch = database.batch();
            for pack in packs {
                if let Some(number) = database.pack_number(*pack)? {
                    batch.remove_pack(*pack, number);
                    numbers.push(number);
                }
            }
            if !numbers.is_empty() {
                batch.put_unswept(true);
            }
            batch.commit()
        })?;
        let mut live = self.live.write();
        for number in numbers {
            live.clear(number);
        }
        Ok(())
    }

    /// Whether the pack is in the index.
    ///
    /// # Errors
    /// As [`Self::contains`].
    pub fn has_pack(&self, pack: PackId) -> Result<bool> {
        self.reading(|database| Ok(database.pack_number(pack)?.is_some()))
    }

    /// At most `limit` packs of the index in the order of their ids, beginning behind `after`.
    ///
    /// # Errors
    /// As [`Self::contains`].
    pub fn packs(&self, after: Option<PackId>, limit: usize) -> Result<Vec<PackId>> {
        self.reading(|database| database.packs(after, limit))
    }

    /// Number of packs in the index.
    #[must_use]
    pub fn pack_count(&self) -> u64 {
        self.live.read().count()
    }

    /// Whether rows of removed packs still take up room.
    ///
    /// # Errors
    /// As [`Self::contains`].
    pub fn needs_sweep(&self) -> Result<bool> {
        self.reading(Database::unswept)
    }

    /// Removes the rows of removed packs and says how many there were. Look-ups and additions go on beside it.
    ///
    /// # Errors
    /// As [`Self::add`].
    pub fn sweep(&self) -> Result<u64> {
        let mut removed = 0;
        let mut after: Option<Vec<u8>> = None;
        loop {
            let keys = self.reading(|database| {
                database.keys_where(after.as_deref(), SWEEP_BATCH, |rows| {
                    let live = self.live.read();
                    rows.iter().any(|row| !live.has(row.pack))
                })
            })?;
            let _changing = self.changing.lock();
            removed += self.writing(|database| {
                let mut batch = database.batch();
                let mut removed = 0;
                for key in &keys {
                    let Some(value) = database.raw_row(key)? else {
                        continue;
                    };
                    let rows = rows::decode(&value)?;
                    let live = self.live.read();
                    let kept: Vec<Row> = rows.iter().filter(|row| live.has(row.pack)).copied().collect();
                    removed += (rows.len() - kept.len()) as u64;
                    if kept.is_empty() {
                        batch.remove_row(key);
                    } else {
                        batch.put_row(key, &rows::encode(&kept));
                    }
                }
                if keys.len() < SWEEP_BATCH {
                    batch.put_unswept(false);
                }
                batch.commit()?;
                Ok(removed)
            })?;
            if keys.len() < SWEEP_BATCH {
                return Ok(removed);
            }
            after = keys.into_iter().next_back();
        }
    }

    /// Runs a blocking look-up or change off the async threads.
    ///
    /// # Errors
    /// Those of `work`; `Internal` when it dies.
    pub async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let index = Arc::clone(self);
        tokio::task::spawn_blocking(move || work(&index))
            .await
            .map_err(|_| Error::Internal("an index worker ended abnormally".into()))?
    }

    fn reading<T>(&self, work: impl FnOnce(&Database) -> Result<T>) -> Result<T> {
        let database = self.database.read();
        let database = database
            .as_ref()
            .ok_or_else(|| Error::Unavailable("the chunk index is closed".into()))?;
        let result = work(database);
        self.note_damage(&result);
        result
    }

    /// Runs a change. A database that failed a write takes no more of them until it is opened anew,
    /// so that happens here: a full disk must not need a restart.
    fn writing<T>(&self, work: impl FnOnce(&Database) -> Result<T>) -> Result<T> {
        if self.database.read().is_none() {
            self.reopen()?;
        }
        let result = {
            let database = self.database.read();
            let database = database
                .as_ref()
                .ok_or_else(|| Error::Unavailable("the chunk index is closed".into()))?;
            work(database)
        };
        self.note_damage(&result);
        if let Err(error @ Error::Io { .. }) = &result {
            tracing::warn!(%error, "a write to the chunk index failed; opening it anew");
            self.reopen()?;
        }
        result
    }

    fn reopen(&self) -> Result<()> {
        let mut place = self.database.write();
        // The old one must be closed first: it holds the directory's lock.
        place.take();
        let opened = database::open(&self.dir, &self.options);
        self.note_damage(&opened);
        let (database, live) = opened?;
        *self.live.write() = live;
        *place = Some(database);
        Ok(())
    }

    /// What is damaged now must not be trusted after a restart either.
    fn note_damage<T>(&self, result: &Result<T>) {
        if let Err(error @ Error::Corrupt { .. }) = result {
            tracing::error!(%error, "the chunk index is damaged; it is rebuilt at the next start");
            database::mark_damaged(&self.dir);
        }
    }
}

#[cfg(test)]
mod tests;
