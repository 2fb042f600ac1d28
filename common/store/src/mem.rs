//! A store in memory, for tests and for trying things out.

use crate::{Area, Finished, Listed, ObjectName, Space, Store, StoreError, Upload};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use holdfast_core::StoreId;
use parking_lot::Mutex;
use std::{collections::BTreeMap, ops::Bound, sync::Arc};

/// Objects in a map, with an optional bound on all their bytes together.
#[derive(Clone)]
pub struct MemStore {
    id: StoreId,
    capacity: u64,
    objects: Arc<Mutex<BTreeMap<ObjectName, Bytes>>>,
}

impl MemStore {
    /// An empty store that takes up to `capacity` bytes.
    #[must_use]
    pub fn new(id: StoreId, capacity: u64) -> Self {
        Self {
            id,
            capacity,
            objects: Arc::default(),
        }
    }

    /// Replaces an object's bytes, as a failing disk would.
    pub fn damage(&self, name: &ObjectName, body: Bytes) {
        self.objects.lock().insert(name.clone(), body);
    }

    fn used(objects: &BTreeMap<ObjectName, Bytes>) -> u64 {
        objects.values().map(|body| body.len() as u64).sum()
    }

    fn object(&self, name: &ObjectName) -> Result<Bytes, StoreError> {
        self.objects
            .lock()
            .get(name)
            .cloned()
            .ok_or_else(|| StoreError::NotFound(name.clone()))
    }
}

#[async_trait]
impl Store for MemStore {
    fn id(&self) -> StoreId {
        self.id
    }

    async fn begin_upload(&self) -> Result<Box<dyn Upload>, StoreError> {
        Ok(Box::new(MemUpload {
            store: self.clone(),
            body: BytesMut::new(),
        }))
    }

    async fn get_range(&self, name: &ObjectName, offset: u64, len: usize) -> Result<Bytes, StoreError> {
        let body = self.object(name)?;
        let start = usize::try_from(offset).ok();
        let range = start.and_then(|start| Some(start..start.checked_add(len)?));
        match range.filter(|range| range.end <= body.len()) {
            Some(range) => Ok(body.slice(range)),
            None => Err(StoreError::Short {
                name: name.clone(),
                offset,
                len: len as u64,
                has: body.len() as u64,
            }),
        }
    }

    async fn get(&self, name: &ObjectName, max: usize) -> Result<Bytes, StoreError> {
        let body = self.object(name)?;
        if body.len() > max {
            return Err(StoreError::TooLarge {
                name: name.clone(),
                len: body.len() as u64,
                max: max as u64,
            });
        }
        Ok(body)
    }

    async fn head(&self, name: &ObjectName) -> Result<Option<u64>, StoreError> {
        Ok(self.objects.lock().get(name).map(|body| body.len() as u64))
    }

    async fn list(
        &self,
        area: Area,
        after: Option<&ObjectName>,
        limit: usize,
    ) -> Result<Vec<Listed>, StoreError> {
        let objects = self.objects.lock();
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        Ok(objects
            .range::<ObjectName, _>((from, Bound::Unbounded))
            .filter(|(name, _)| name.area() == area)
            .take(limit)
            .map(|(name, body)| Listed {
                name: name.clone(),
                len: body.len() as u64,
            })
            .collect())
    }

    async fn strays(&self, _limit: usize) -> Result<Vec<String>, StoreError> {
        Ok(Vec::new())
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        self.objects.lock().remove(name);
        Ok(())
    }

    async fn space(&self) -> Result<Space, StoreError> {
        let used = Self::used(&self.objects.lock());
        Ok(Space {
            total: self.capacity,
            free: self.capacity.saturating_sub(used),
        })
    }
}

struct MemUpload {
    store: MemStore,
    body: BytesMut,
}

#[async_trait]
impl Upload for MemUpload {
    async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        let used = MemStore::used(&self.store.objects.lock());
        if used + (self.body.len() + bytes.len()) as u64 > self.store.capacity {
            return Err(StoreError::NoSpace {
                doing: "writing an object",
                path: "memory".into(),
            });
        }
        self.body.extend_from_slice(&bytes);
        Ok(())
    }

    async fn finish(self: Box<Self>, name: &ObjectName) -> Result<Finished, StoreError> {
        let mut objects = self.store.objects.lock();
        if objects.contains_key(name) {
            return Ok(Finished::AlreadyThere);
        }
        objects.insert(name.clone(), self.body.freeze());
        Ok(Finished::Created)
    }

    async fn abort(self: Box<Self>) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn keeps_the_contract() {
        crate::contract::run(&MemStore::new(StoreId([1; 16]), 64 << 20)).await;
    }

    #[tokio::test]
    async fn says_when_it_is_full() {
        crate::contract::full(&MemStore::new(StoreId([1; 16]), 100_000)).await;
    }
}
