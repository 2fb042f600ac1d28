//! The catalog on disk: sled, one atomic batch per applied batch of entries.
//!
//! sled's `flush` is not durable and a damaged file may panic. So nothing is believed: the state
//! carries the sum of its records' hashes, checked at open; what does not agree is set aside and
//! rebuilt from the Raft snapshot and log, which are durable. Values over 4 KiB would go to files
//! that sled never syncs, so longer ones are split.

use super::{
    database::open_unlocked,
    kv::{CatalogHash, Read, Row},
};
use crate::{
    error::{Error, Result},
    raft::types::{LogId, Membership},
};
use holdfast_core::limits;
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

/// Key of what was applied. Keys of records begin at 0x10.
const STATE_KEY: &[u8] = &[0];
/// First byte of the keys of split values' parts.
const PART: u8 = 1;
/// First byte of keys that are records.
const FIRST_RECORD: u8 = 0x10;
/// A value that is stored here / in so many parts.
const INLINE: u8 = 0;
const SPLIT: u8 = 1;
/// Longest piece of a value: the limit less the marker byte.
const PIECE: usize = limits::SLED_VALUE_MAX - 1;
/// Rows of one batch while a snapshot is installed.
const INSTALL_BATCH: usize = 1000;

/// Up to where the catalog is, and what it should hash to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// The last entry applied.
    pub last: Option<LogId>,
    /// The members as of that entry.
    pub membership: Membership,
    /// Sum of the hashes of all records.
    pub hash: [u8; 32],
}

impl Applied {
    /// Index of the last entry applied, 0 for none.
    #[must_use]
    pub fn index(&self) -> u64 {
        self.last.map_or(0, |id| id.index)
    }
}

struct Inner {
    applied: Applied,
    // While a dump runs: what records were before they changed, for those not dumped yet.
    before_images: Option<MemoryImages>,
}

#[derive(Default)]
struct MemoryImages {
    cursor: Vec<u8>,
    images: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
}

/// The catalog of one node.
pub struct CatalogStore {
    tree: sled::Tree,
    db: sled::Db,
    // Held for one batch or one page of rows, never across an await: it keeps the parts of a
    // split value and the applied state together.
    inner: RwLock<Inner>,
}

impl CatalogStore {
    /// Opens the catalog in `dir`, or makes an empty one.
    ///
    /// # Errors
    /// `Corrupt` when what is there does not agree with its hash or sled cannot read it.
    pub fn open(dir: &Path) -> Result<Self> {
        remove_half_written_snapshots(dir)?;
        // sled panics on some damage.
        catch_unwind(AssertUnwindSafe(|| Self::open_checked(dir)))
            .unwrap_or_else(|_| Err(damaged(dir, "the database library gave up while opening it")))
    }

    fn open_checked(dir: &Path) -> Result<Self> {
        let db = open_unlocked(dir).map_err(|e| match e {
            // Another process or a full disk: the data may be well.
            sled::Error::Io(e) if e.kind() != std::io::ErrorKind::UnexpectedEof => {
                Error::io("open the catalog in", dir, e)
            }
            other => damaged(dir, &other.to_string()),
        })?;
        let tree = db
            .open_tree("catalog")
            .map_err(|e| damaged(dir, &e.to_string()))?;
        let applied = match tree.get(STATE_KEY).map_err(|e| damaged(dir, &e.to_string()))? {
            Some(bytes) => super::kv::decode(&bytes)?,
            None => Applied::default(),
        };
        let store = Self {
            tree,
            db,
            inner: RwLock::new(Inner {
                applied,
                before_images: None,
            }),
        };
        let found = store.compute_hash()?.to_bytes();
        let stated = store.inner.read().applied.hash;
        if found != stated {
            return Err(damaged(dir, "its records do not add up to its hash"));
        }
        Ok(store)
    }

    /// Opens the catalog; a damaged one is renamed to `<dir>.damaged` first and an empty one made.
    ///
    /// # Errors
    /// When not even that works, or the disk refuses.
    pub fn open_or_set_aside(dir: &Path) -> Result<Self> {
        match Self::open(dir) {
            Err(Error::Corrupt { what, why }) => {
                let aside = aside_path(dir);
                tracing::error!(%what, %why, aside = %aside.display(), "set a damaged catalog aside; it is rebuilt from snapshot and log");
                if aside.exists() {
                    std::fs::remove_dir_all(&aside).map_err(|e| Error::io("remove", &aside, e))?;
                }
                crate::raft::files::rename_durably(dir, &aside)?;
                Self::open(dir)
            }
            other => other,
        }
    }

    /// Up to where this catalog is.
    #[must_use]
    pub fn applied(&self) -> Applied {
        self.inner.read().applied.clone()
    }

    /// Index of the last entry applied, 0 for none.
    #[must_use]
    pub fn applied_index(&self) -> u64 {
        self.inner.read().applied.index()
    }

    /// Index and catalog hash of one moment.
    #[must_use]
    pub fn index_and_hash(&self) -> (u64, CatalogHash) {
        let inner = self.inner.read();
        (
            inner.applied.index(),
            CatalogHash::from_bytes(&inner.applied.hash),
        )
    }

    /// Bytes on disk.
    #[must_use]
    pub fn size_on_disk(&self) -> u64 {
        self.db.size_on_disk().unwrap_or(0)
    }

    /// Writes changes and the state after them, atomically.
    ///
    /// # Errors
    /// When sled fails; the caller must not go on with this store.
    pub fn write(&self, changes: BTreeMap<Vec<u8>, Option<Vec<u8>>>, applied: Applied) -> Result<()> {
        let mut inner = self.inner.write();
        let mut batch = sled::Batch::default();
        if let Some(images) = &mut inner.before_images {
            for key in changes.keys().filter(|key| **key > images.cursor) {
                if !images.images.contains_key(key) {
                    images.images.insert(key.clone(), self.read_value(key)?);
                }
            }
        }
        for (key, value) in &changes {
            self.stage(&mut batch, key, value.as_deref())?;
        }
        batch.insert(STATE_KEY, super::kv::encode(&applied)?);
        self.tree.apply_batch(batch).map_err(sled_error)?;
        inner.applied = applied;
        Ok(())
    }

    /// Replaces everything by what `rows` gives. A crash meanwhile leaves a catalog that `open` calls damaged
    /// or empty; the snapshot that the rows come from is durable, so it is installed again.
    ///
    /// # Errors
    /// When rows cannot be read, or do not add up to `applied.hash`.
    pub fn replace(&self, rows: impl Iterator<Item = Result<Row>>, applied: Applied) -> Result<()> {
        let mut inner = self.inner.write();
        inner.before_images = None;
        inner.applied = Applied::default();
        self.tree.clear().map_err(sled_error)?;
        let mut hash = CatalogHash::default();
        let mut batch = sled::Batch::default();
        let mut staged = 0;
        for row in rows {
            let (key, value) = row?;
            hash.add(&key, &value);
            stage_value(&mut batch, &key, &value)?;
            staged += 1;
            if staged == INSTALL_BATCH {
                self.tree
                    .apply_batch(std::mem::take(&mut batch))
                    .map_err(sled_error)?;
                staged = 0;
            }
        }
        if hash.to_bytes() != applied.hash {
            return Err(Error::corrupt(
                "a catalog snapshot",
                "its records do not add up to its hash",
            ));
        }
        batch.insert(STATE_KEY, super::kv::encode(&applied)?);
        self.tree.apply_batch(batch).map_err(sled_error)?;
        inner.applied = applied;
        Ok(())
    }

    /// Calls `each` with every record as of one applied index, which is returned, while writes go on.
    /// One dump at a time.
    ///
    /// # Errors
    /// When reading fails, `each` fails, or a snapshot was installed meanwhile.
    pub fn dump(&self, mut each: impl FnMut(&Applied, Option<&Row>) -> Result<()>) -> Result<()> {
        let applied = {
            let mut inner = self.inner.write();
            inner.before_images = Some(MemoryImages::default());
            inner.applied.clone()
        };
        each(&applied, None)?;
        let result = self.dump_rows(&applied, &mut each);
        self.inner.write().before_images = None;
        result
    }

    fn dump_rows(
        &self,
        applied: &Applied,
        each: &mut impl FnMut(&Applied, Option<&Row>) -> Result<()>,
    ) -> Result<()> {
        let mut after: Option<Vec<u8>> = None;
        loop {
            let rows = {
                let mut inner = self.inner.write();
                let Some(images) = &mut inner.before_images else {
                    return Err(Error::Unavailable(
                        "a snapshot was installed while one was built".into(),
                    ));
                };
                let (rows, last) = self.rows_before(images, after.as_deref())?;
                if let Some(last) = &last {
                    // What is dumped needs no image any more.
                    images.images = images.images.split_off(last);
                    images.images.remove(last);
                    images.cursor.clone_from(last);
                }
                after = last;
                rows
            };
            for row in &rows {
                each(applied, Some(row))?;
            }
            if after.is_none() {
                return Ok(());
            }
        }
    }

    /// The next rows as they were when the dump began, and the key up to which that is; none at the end.
    fn rows_before(
        &self,
        images: &MemoryImages,
        after: Option<&[u8]>,
    ) -> Result<(Vec<Row>, Option<Vec<u8>>)> {
        let live = self.rows_after(&[], after, INSTALL_BATCH)?;
        let last = if live.len() < INSTALL_BATCH {
            None
        } else {
            live.last().map(|(key, _)| key.clone())
        };
        let mut rows: BTreeMap<Vec<u8>, Vec<u8>> = live.into_iter().collect();
        for (key, image) in &images.images {
            if last.as_ref().is_some_and(|last| key > last) {
                break;
            }
            match image {
                Some(value) => rows.insert(key.clone(), value.clone()),
                None => rows.remove(key),
            };
        }
        Ok((rows.into_iter().collect(), last))
    }

    fn compute_hash(&self) -> Result<CatalogHash> {
        let mut hash = CatalogHash::default();
        self.scan(&[], |key, value| {
            hash.add(key, value);
            Ok(true)
        })?;
        Ok(hash)
    }

    fn stage(&self, batch: &mut sled::Batch, key: &[u8], value: Option<&[u8]>) -> Result<()> {
        if let Some(old) = self.tree.get(key).map_err(sled_error)?
            && let Some(parts) = part_count(&old)
        {
            for part in 0..parts {
                batch.remove(part_key(key, part));
            }
        }
        match value {
            Some(value) => stage_value(batch, key, value)?,
            None => batch.remove(key),
        }
        Ok(())
    }

    fn read_value(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        match self.tree.get(key).map_err(sled_error)? {
            Some(stored) => self.join(key, &stored).map(Some),
            None => Ok(None),
        }
    }

    fn join(&self, key: &[u8], stored: &[u8]) -> Result<Vec<u8>> {
        if let Some(parts) = part_count(stored) {
            let mut value = Vec::with_capacity(parts as usize * PIECE);
            for part in 0..parts {
                let piece = self
                    .tree
                    .get(part_key(key, part))
                    .map_err(sled_error)?
                    .ok_or_else(|| Error::corrupt("the catalog", "part of a record is missing"))?;
                value.extend_from_slice(&piece);
            }
            return Ok(value);
        }
        match stored.split_first() {
            Some((&INLINE, value)) => Ok(value.to_vec()),
            _ => Err(Error::corrupt("the catalog", "a record has an unknown form")),
        }
    }

    fn rows_after(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Result<Vec<Row>> {
        use std::ops::Bound::{Excluded, Included, Unbounded};
        let start = match after {
            Some(after) => Excluded(after.to_vec()),
            None if prefix.is_empty() => Included(vec![FIRST_RECORD]),
            None => Included(prefix.to_vec()),
        };
        let mut rows = Vec::new();
        for item in self.tree.range((start, Unbounded)).take(limit) {
            let (key, stored) = item.map_err(sled_error)?;
            if !key.starts_with(prefix) {
                break;
            }
            let value = self.join(&key, &stored)?;
            rows.push((key.to_vec(), value));
        }
        Ok(rows)
    }
}

impl Read for CatalogStore {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let _together = self.inner.read();
        self.read_value(key)
    }

    fn page(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Result<Vec<Row>> {
        let _together = self.inner.read();
        self.rows_after(prefix, after, limit)
    }
}

fn stage_value(batch: &mut sled::Batch, key: &[u8], value: &[u8]) -> Result<()> {
    if value.len() <= PIECE {
        let mut stored = Vec::with_capacity(value.len() + 1);
        stored.push(INLINE);
        stored.extend_from_slice(value);
        batch.insert(key, stored);
        return Ok(());
    }
    let parts = u16::try_from(value.len().div_ceil(PIECE)).map_err(|_| {
        Error::refused(
            holdfast_core::ErrorKind::TooLarge,
            "a catalog record is far too large",
        )
    })?;
    let mut stored = vec![SPLIT];
    stored.extend_from_slice(&parts.to_be_bytes());
    batch.insert(key, stored);
    for (part, piece) in (0..parts).zip(value.chunks(PIECE)) {
        batch.insert(part_key(key, part), piece);
    }
    Ok(())
}

fn part_count(stored: &[u8]) -> Option<u16> {
    match stored {
        [SPLIT, high, low] => Some(u16::from_be_bytes([*high, *low])),
        _ => None,
    }
}

fn part_key(key: &[u8], part: u16) -> Vec<u8> {
    let mut full = Vec::with_capacity(key.len() + 5);
    full.push(PART);
    // The length keeps the parts of a key apart from those of a longer one.
    full.extend_from_slice(&u16::try_from(key.len()).unwrap_or(u16::MAX).to_be_bytes());
    full.extend_from_slice(key);
    full.extend_from_slice(&part.to_be_bytes());
    full
}

/// A crash while sled writes its own snapshot leaves a file that would make it fail to open.
fn remove_half_written_snapshots(dir: &Path) -> Result<()> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::io("list", dir, e)),
    };
    for entry in entries {
        let entry = entry.map_err(|e| Error::io("list", dir, e))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("snap.") && name.ends_with(".generating") {
            std::fs::remove_file(entry.path()).map_err(|e| Error::io("remove", &entry.path(), e))?;
        }
    }
    Ok(())
}

fn aside_path(dir: &Path) -> PathBuf {
    let mut name = dir.as_os_str().to_owned();
    name.push(".damaged");
    PathBuf::from(name)
}

fn damaged(dir: &Path, why: &str) -> Error {
    Error::corrupt(format!("the catalog in {}", dir.display()), why)
}

fn sled_error(error: sled::Error) -> Error {
    Error::corrupt(
        "the catalog",
        format!("the database failed: {error}; restart the controller, which rebuilds it"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::kv::Txn;

    fn put(store: &CatalogStore, rows: &[(u8, Option<Vec<u8>>)]) {
        let mut txn = Txn::new(store);
        for (n, value) in rows {
            match value {
                Some(value) => txn
                    .put(vec![FIRST_RECORD, *n], &serde_bytes::Bytes::new(value))
                    .unwrap(),
                None => txn.delete(vec![FIRST_RECORD, *n]),
            }
        }
        let (_, hash) = store.index_and_hash();
        let (changes, hash) = txn.finish(hash).unwrap();
        store
            .write(
                changes,
                Applied {
                    hash: hash.to_bytes(),
                    ..store.applied()
                },
            )
            .unwrap();
    }

    #[test]
    fn long_values_are_split_and_whole_again() {
        let dir = tempfile::tempdir().unwrap();
        let long = vec![7; 20_000];
        {
            let store = CatalogStore::open(dir.path()).unwrap();
            put(&store, &[(1, Some(long.clone())), (2, Some(vec![1]))]);
            put(&store, &[(1, Some(vec![9; 9_000]))]);
            put(&store, &[(1, Some(long.clone()))]);
            let longest = store
                .tree
                .iter()
                .values()
                .map(|v| v.unwrap().len())
                .max()
                .unwrap();
            assert!(longest <= limits::SLED_VALUE_MAX, "{longest}");
        }
        let store = CatalogStore::open(dir.path()).unwrap();
        let value: serde_bytes::ByteBuf = store.record(&[FIRST_RECORD, 1]).unwrap().unwrap();
        assert_eq!(value.into_vec(), long);
        put(&store, &[(1, None), (2, None)]);
        assert_eq!(store.tree.len(), 1, "only the state is left");
        assert_eq!(store.index_and_hash().1, CatalogHash::default());
    }

    #[test]
    fn a_record_changed_behind_its_hash_is_found_and_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("catalog");
        {
            let store = CatalogStore::open(&path).unwrap();
            put(&store, &[(1, Some(vec![1; 100]))]);
            store.tree.insert([FIRST_RECORD, 1], vec![INLINE, 1, 2]).unwrap();
        }
        assert!(matches!(CatalogStore::open(&path), Err(Error::Corrupt { .. })));
        let store = CatalogStore::open_or_set_aside(&path).unwrap();
        assert_eq!(store.applied(), Applied::default());
        assert!(dir.path().join("catalog.damaged").exists());
    }

    #[test]
    fn a_dump_is_of_one_moment_while_writes_go_on() {
        let dir = tempfile::tempdir().unwrap();
        let store = CatalogStore::open(dir.path()).unwrap();
        // More than one page, so that writes fall before and behind the cursor.
        for n in 0..12_u8 {
            let mut txn = Txn::new(&store);
            for m in 0..250_u8 {
                txn.put(vec![FIRST_RECORD, n, m], &u32::from(n)).unwrap();
            }
            let (changes, hash) = txn.finish(store.index_and_hash().1).unwrap();
            store
                .write(
                    changes,
                    Applied {
                        hash: hash.to_bytes(),
                        ..store.applied()
                    },
                )
                .unwrap();
        }
        let expected = store.index_and_hash().1;
        let mut hash = CatalogHash::default();
        let mut rows = 0;
        store
            .dump(|_, row| {
                if let Some((key, value)) = row {
                    hash.add(key, value);
                    rows += 1;
                    if rows % 700 == 1 {
                        put(
                            &store,
                            &[(0, Some(vec![1])), (11, Some(vec![rows.try_into().unwrap_or(9)]))],
                        );
                        let mut txn = Txn::new(&store);
                        txn.delete(vec![FIRST_RECORD, 10, 3]);
                        txn.put(vec![FIRST_RECORD, 9, 9], &9_u8).unwrap();
                        txn.put(vec![FIRST_RECORD, 9, 9, 1], &9_u8).unwrap();
                        let (changes, hash) = txn.finish(store.index_and_hash().1).unwrap();
                        store
                            .write(
                                changes,
                                Applied {
                                    hash: hash.to_bytes(),
                                    ..store.applied()
                                },
                            )
                            .unwrap();
                    }
                }
                Ok(())
            })
            .unwrap();
        assert_eq!(rows, 3000);
        assert_eq!(hash, expected);
        assert_ne!(store.index_and_hash().1, expected);
    }
}
