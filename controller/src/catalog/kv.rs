//! Reading and writing typed records over plain keys and values; transactions that know their hash.

use crate::error::{Error, Result};
use serde::{Serialize, de::DeserializeOwned};
use std::collections::BTreeMap;

/// Version byte in front of every persisted record.
const RECORD_VERSION: u8 = 1;
/// Rows that a scan takes at a time, so that no lock is held over a whole table.
const SCAN_PAGE: usize = 1000;

/// A key and its value.
pub type Row = (Vec<u8>, Vec<u8>);

/// New values of keys; none = the key goes.
pub type Changes = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// Something that records can be read from.
pub trait Read {
    /// The value of `key`.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>>;

    /// At most `limit` rows whose keys begin with `prefix` and are greater than `after`, in order.
    fn page(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Result<Vec<Row>>;

    /// The record at `key`.
    fn record<T: DeserializeOwned>(&self, key: &[u8]) -> Result<Option<T>> {
        self.get(key)?.map(|value| decode(&value)).transpose()
    }

    /// Calls `each` with every row of `prefix`, in order, until it answers `false`.
    fn scan(&self, prefix: &[u8], mut each: impl FnMut(&[u8], &[u8]) -> Result<bool>) -> Result<()>
    where
        Self: Sized,
    {
        let mut after: Option<Vec<u8>> = None;
        loop {
            let rows = self.page(prefix, after.as_deref(), SCAN_PAGE)?;
            let is_last = rows.len() < SCAN_PAGE;
            for (key, value) in &rows {
                if !each(key, value)? {
                    return Ok(());
                }
            }
            if is_last {
                return Ok(());
            }
            after = rows.into_iter().next_back().map(|(key, _)| key);
        }
    }
}

/// A record as stored: version byte, then MessagePack with named fields.
pub fn encode<T: Serialize>(record: &T) -> Result<Vec<u8>> {
    let mut bytes = vec![RECORD_VERSION];
    rmp_serde::encode::write_named(&mut bytes, record)
        .map_err(|e| Error::Internal(format!("cannot encode a record: {e}")))?;
    Ok(bytes)
}

/// The record that [`encode`] made.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    match bytes.split_first() {
        Some((&RECORD_VERSION, rest)) => {
            rmp_serde::from_slice(rest).map_err(|e| Error::corrupt("a catalog record", e.to_string()))
        }
        Some((version, _)) => Err(Error::corrupt(
            "a catalog record",
            format!(
                "its version is {version}, this program knows {RECORD_VERSION}; use a newer holdfast-controller"
            ),
        )),
        None => Err(Error::corrupt("a catalog record", "it is empty")),
    }
}

/// Sum modulo 2^256 of the hashes of all records: changes with any of them, whatever their order.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct CatalogHash([u64; 4]);

impl CatalogHash {
    /// Adds a record.
    pub fn add(&mut self, key: &[u8], value: &[u8]) {
        let mut carry = false;
        for (sum, word) in self.0.iter_mut().zip(record_words(key, value)) {
            let (partial, over) = sum.overflowing_add(word);
            let (total, over_carry) = partial.overflowing_add(u64::from(carry));
            *sum = total;
            carry = over || over_carry;
        }
    }

    /// Takes a record away that was added before.
    pub fn remove(&mut self, key: &[u8], value: &[u8]) {
        let mut borrow = false;
        for (sum, word) in self.0.iter_mut().zip(record_words(key, value)) {
            let (partial, under) = sum.overflowing_sub(word);
            let (total, under_borrow) = partial.overflowing_sub(u64::from(borrow));
            *sum = total;
            borrow = under || under_borrow;
        }
    }

    /// 32 bytes, lowest first.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 32] {
        let mut bytes = [0; 32];
        for (chunk, word) in bytes.chunks_exact_mut(8).zip(self.0) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// What [`Self::to_bytes`] gave.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; 32]) -> Self {
        let mut words = [0; 4];
        for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            let mut le = [0; 8];
            le.copy_from_slice(chunk);
            *word = u64::from_le_bytes(le);
        }
        Self(words)
    }
}

impl std::fmt::Display for CatalogHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex::encode(self.to_bytes()))
    }
}

impl std::fmt::Debug for CatalogHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CatalogHash({self})")
    }
}

fn record_words(key: &[u8], value: &[u8]) -> [u64; 4] {
    let mut hasher = blake3::Hasher::new();
    // The length keeps (key, value) apart from another split of the same bytes.
    hasher.update(&(key.len() as u64).to_le_bytes());
    hasher.update(key);
    hasher.update(value);
    CatalogHash::from_bytes(hasher.finalize().as_bytes()).0
}

/// Changes over something readable, kept apart until they are written together.
pub struct Txn<'a, R: Read> {
    base: &'a R,
    changes: Changes,
    // Set while a command runs: what it changed goes away again when it is refused.
    savepoint: Option<Changes>,
}

impl<'a, R: Read> Txn<'a, R> {
    /// No changes yet.
    pub fn new(base: &'a R) -> Self {
        Self {
            base,
            changes: BTreeMap::new(),
            savepoint: None,
        }
    }

    /// Writes the record at `key`.
    pub fn put<T: Serialize>(&mut self, key: Vec<u8>, record: &T) -> Result<()> {
        let value = encode(record)?;
        self.put_raw(key, Some(value));
        Ok(())
    }

    /// Takes the record at `key` away.
    pub fn delete(&mut self, key: Vec<u8>) {
        self.put_raw(key, None);
    }

    fn put_raw(&mut self, key: Vec<u8>, value: Option<Vec<u8>>) {
        self.savepoint
            .as_mut()
            .unwrap_or(&mut self.changes)
            .insert(key, value);
    }

    /// From here on, [`Self::roll_back`] forgets changes.
    pub fn begin_command(&mut self) {
        self.savepoint = Some(BTreeMap::new());
    }

    /// Keeps what the command changed.
    pub fn keep(&mut self) {
        if let Some(inner) = self.savepoint.take() {
            self.changes.extend(inner);
        }
    }

    /// Forgets what the command changed.
    pub fn roll_back(&mut self) {
        self.savepoint = None;
    }

    /// The changes, and the hash of the state after them, given the one before.
    pub fn finish(self, mut hash: CatalogHash) -> Result<(Changes, CatalogHash)> {
        let mut changes = self.changes;
        if let Some(inner) = self.savepoint {
            changes.extend(inner);
        }
        for (key, value) in &changes {
            if let Some(old) = self.base.get(key)? {
                hash.remove(key, &old);
            }
            if let Some(new) = value {
                hash.add(key, new);
            }
        }
        Ok((changes, hash))
    }

    fn changed(&self, key: &[u8]) -> Option<&Option<Vec<u8>>> {
        self.savepoint
            .as_ref()
            .and_then(|inner| inner.get(key))
            .or_else(|| self.changes.get(key))
    }
}

impl<R: Read> Read for Txn<'_, R> {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        match self.changed(key) {
            Some(value) => Ok(value.clone()),
            None => self.base.get(key),
        }
    }

    fn page(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Result<Vec<Row>> {
        let from = std::ops::Bound::Excluded(after.map_or_else(|| prefix.to_vec(), <[u8]>::to_vec));
        let range = (
            if after.is_none() {
                std::ops::Bound::Included(prefix.to_vec())
            } else {
                from
            },
            std::ops::Bound::Unbounded,
        );
        let mut overlay: BTreeMap<&Vec<u8>, &Option<Vec<u8>>> = BTreeMap::new();
        for map in std::iter::once(&self.changes).chain(self.savepoint.as_ref()) {
            overlay.extend(
                map.range(range.clone())
                    .take_while(|(key, _)| key.starts_with(prefix)),
            );
        }
        // Each change can hide at most one row below it.
        let below = self
            .base
            .page(prefix, after, limit.saturating_add(overlay.len()))?;
        let mut rows: BTreeMap<Vec<u8>, Vec<u8>> = below.into_iter().collect();
        for (key, value) in overlay {
            match value {
                Some(value) => rows.insert(key.clone(), value.clone()),
                None => rows.remove(key),
            };
        }
        Ok(rows.into_iter().take(limit).collect())
    }
}

/// A catalog in memory, for tests and for tools that read a dump.
#[derive(Debug, Clone, Default)]
pub struct MemoryKv(pub BTreeMap<Vec<u8>, Vec<u8>>);

impl Read for MemoryKv {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(self.0.get(key).cloned())
    }

    fn page(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Result<Vec<Row>> {
        Ok(self
            .0
            .range(prefix.to_vec()..)
            .take_while(|(key, _)| key.starts_with(prefix))
            .filter(|(key, _)| after.is_none_or(|after| key.as_slice() > after))
            .take(limit)
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect())
    }
}

impl MemoryKv {
    /// Writes changes.
    pub fn write(&mut self, changes: Changes) {
        for (key, value) in changes {
            match value {
                Some(value) => self.0.insert(key, value),
                None => self.0.remove(&key),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_is_a_sum() {
        let mut a = CatalogHash::default();
        a.add(b"k1", b"v1");
        a.add(b"k2", b"v2");
        let mut b = CatalogHash::default();
        b.add(b"k2", b"v2");
        b.add(b"k3", b"v3");
        b.add(b"k1", b"v1");
        b.remove(b"k3", b"v3");
        assert_eq!(a, b);
        assert_eq!(CatalogHash::from_bytes(&a.to_bytes()), a);
        b.remove(b"k1", b"v1");
        b.add(b"k", b"1v1");
        assert_ne!(a, b);
    }

    #[test]
    fn transactions_overlay_and_roll_back() {
        let mut base = MemoryKv::default();
        for n in 0_u8..6 {
            base.0.insert(vec![1, n], encode(&n).unwrap());
        }
        let mut txn = Txn::new(&base);
        txn.delete(vec![1, 1]);
        txn.put(vec![1, 9], &9_u8).unwrap();
        txn.begin_command();
        txn.put(vec![1, 7], &7_u8).unwrap();
        txn.delete(vec![1, 0]);
        let keys = |txn: &Txn<'_, MemoryKv>| -> Vec<u8> {
            txn.page(&[1], None, 100)
                .unwrap()
                .into_iter()
                .map(|(key, _)| key[1])
                .collect()
        };
        assert_eq!(keys(&txn), [2, 3, 4, 5, 7, 9]);
        let second = txn.page(&[1], Some(&[1, 3]), 2).unwrap();
        assert_eq!(second.iter().map(|(key, _)| key[1]).collect::<Vec<_>>(), [4, 5]);
        txn.roll_back();
        assert_eq!(keys(&txn), [0, 2, 3, 4, 5, 9]);
    }
}
