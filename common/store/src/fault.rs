//! Faults for tests: any chosen write, sync, rename or deletion fails, is cut short, or happens unanswered.

use crate::{Area, Finished, Listed, ObjectName, Space, Store, StoreError, Upload};
use async_trait::async_trait;
use bytes::Bytes;
use holdfast_core::StoreId;
use parking_lot::Mutex;
use std::{collections::HashMap, io, sync::Arc};

/// A step at which a fault can strike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// A temporary file is made.
    Begin,
    /// Bytes are written.
    Write,
    /// The file's data is synced.
    Sync,
    /// The file gets its name.
    Rename,
    /// The directory is synced.
    SyncDir,
    /// An object is removed.
    Delete,
    /// Bytes are read.
    Read,
}

/// What happens at a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It fails with an I/O error and does nothing.
    Fails,
    /// It fails for want of space and does nothing.
    NoSpace,
    /// A write: half of it happens, then it fails. Elsewhere like [`Fault::Fails`].
    Cut,
    /// It happens, and yet an error is returned, as when the machine dies before the answer.
    Unanswered,
}

impl Fault {
    pub(crate) fn error(self) -> io::Error {
        match self {
            Self::NoSpace => io::Error::from(io::ErrorKind::StorageFull),
            _ => io::Error::other("a fault of the test"),
        }
    }
}

#[derive(Default)]
struct Plan {
    chosen: Vec<(Step, u64, Fault)>,
    seeded: Option<(u64, u64)>,
    seen: HashMap<Step, u64>,
    struck: u64,
}

/// A plan of faults, shared by a store and the test that watches it.
#[derive(Clone, Default)]
pub struct Faults(Arc<Mutex<Plan>>);

impl Faults {
    /// No faults yet; counts steps all the same.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Adds a fault at the `nth` step of its kind from now on (1 is the next one).
    pub fn at(&self, step: Step, nth: u64, fault: Fault) {
        let mut plan = self.0.lock();
        let seen = plan.seen.get(&step).copied().unwrap_or(0);
        plan.chosen.push((step, seen + nth, fault));
    }

    /// Strikes about one of `one_in` steps, drawn from `seed`.
    pub fn at_random(&self, seed: u64, one_in: u64) {
        self.0.lock().seeded = Some((seed, one_in.max(1)));
    }

    /// No more faults from now on.
    pub fn clear(&self) {
        let mut plan = self.0.lock();
        plan.chosen.clear();
        plan.seeded = None;
    }

    /// How many steps of this kind were taken.
    #[must_use]
    pub fn count(&self, step: Step) -> u64 {
        self.0.lock().seen.get(&step).copied().unwrap_or(0)
    }

    /// How many faults struck.
    #[must_use]
    pub fn struck(&self) -> u64 {
        self.0.lock().struck
    }

    /// Takes a step and says which fault strikes it.
    pub(crate) fn take(&self, step: Step) -> Option<Fault> {
        let mut plan = self.0.lock();
        let seen = plan.seen.entry(step).or_insert(0);
        *seen += 1;
        let n = *seen;
        let chosen = plan.chosen.iter().find(|c| c.0 == step && c.1 == n).map(|c| c.2);
        let fault = chosen.or_else(|| {
            let (state, one_in) = plan.seeded.as_mut()?;
            *state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let draw = *state >> 33;
            let kinds = [Fault::Fails, Fault::NoSpace, Fault::Cut, Fault::Unanswered];
            (draw % *one_in == 0).then(|| kinds[usize::try_from(draw / *one_in % 4).unwrap_or(0)])
        });
        plan.struck += u64::from(fault.is_some());
        fault
    }

    /// Runs an action with the fault that strikes this step.
    pub(crate) fn run<T>(&self, step: Step, action: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        match self.take(step) {
            None => action(),
            Some(Fault::Unanswered) => action().and_then(|_| Err(Fault::Unanswered.error())),
            Some(fault) => Err(fault.error()),
        }
    }
}

/// A store whose steps fail as planned; the store below sees whole, well-formed calls only.
pub struct FaultStore<S> {
    inner: S,
    faults: Faults,
}

impl<S: Store> FaultStore<S> {
    /// Lays the plan over a store.
    #[must_use]
    pub fn new(inner: S, faults: Faults) -> Self {
        Self { inner, faults }
    }

    /// The store below.
    #[must_use]
    pub fn inner(&self) -> &S {
        &self.inner
    }

    fn check(&self, step: Step) -> Result<(), StoreError> {
        self.faults.run(step, || Ok(())).map_err(planned)
    }
}

fn planned(error: io::Error) -> StoreError {
    StoreError::io("a planned fault", "the test's store", error)
}

#[async_trait]
impl<S: Store> Store for FaultStore<S> {
    fn id(&self) -> StoreId {
        self.inner.id()
    }

    async fn begin_upload(&self) -> Result<Box<dyn Upload>, StoreError> {
        self.check(Step::Begin)?;
        Ok(Box::new(FaultUpload {
            inner: self.inner.begin_upload().await?,
            faults: self.faults.clone(),
        }))
    }

    async fn get_range(&self, name: &ObjectName, offset: u64, len: usize) -> Result<Bytes, StoreError> {
        self.check(Step::Read)?;
        self.inner.get_range(name, offset, len).await
    }

    async fn get(&self, name: &ObjectName, max: usize) -> Result<Bytes, StoreError> {
        self.check(Step::Read)?;
        self.inner.get(name, max).await
    }

    async fn head(&self, name: &ObjectName) -> Result<Option<u64>, StoreError> {
        self.check(Step::Read)?;
        self.inner.head(name).await
    }

    async fn list(
        &self,
        area: Area,
        after: Option<&ObjectName>,
        limit: usize,
    ) -> Result<Vec<Listed>, StoreError> {
        self.check(Step::Read)?;
        self.inner.list(area, after, limit).await
    }

    async fn strays(&self, limit: usize) -> Result<Vec<String>, StoreError> {
        self.inner.strays(limit).await
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        match self.faults.take(Step::Delete) {
            None => self.inner.delete(name).await,
            Some(fault) => {
                if fault == Fault::Unanswered {
                    self.inner.delete(name).await?;
                }
                Err(planned(fault.error()))
            }
        }
    }

    async fn space(&self) -> Result<Space, StoreError> {
        self.inner.space().await
    }
}

struct FaultUpload {
    inner: Box<dyn Upload>,
    faults: Faults,
}

#[async_trait]
impl Upload for FaultUpload {
    async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        match self.faults.take(Step::Write) {
            None => self.inner.write(bytes).await,
            Some(fault) => {
                let kept = match fault {
                    Fault::Cut => bytes.len() / 2,
                    Fault::Unanswered => bytes.len(),
                    _ => 0,
                };
                self.inner.write(bytes.slice(..kept)).await?;
                Err(planned(fault.error()))
            }
        }
    }

    async fn finish(self: Box<Self>, name: &ObjectName) -> Result<Finished, StoreError> {
        for step in [Step::Sync, Step::Rename, Step::SyncDir] {
            if let Some(fault) = self.faults.take(step) {
                // A name that is there although its directory was not synced is the worst case: keep it.
                let named = step == Step::SyncDir || (step == Step::Rename && fault == Fault::Unanswered);
                if named {
                    self.inner.finish(name).await?;
                } else {
                    self.inner.abort().await;
                }
                return Err(planned(fault.error()));
            }
        }
        self.inner.finish(name).await
    }

    async fn abort(self: Box<Self>) {
        self.inner.abort().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemStore;
    use holdfast_core::PackId;

    fn store() -> FaultStore<MemStore> {
        FaultStore::new(MemStore::new(StoreId([1; 16]), 64 << 20), Faults::none())
    }

    #[tokio::test]
    async fn without_faults_keeps_the_contract() {
        crate::contract::run(&store()).await;
    }

    #[tokio::test]
    async fn the_chosen_step_fails_and_no_other() {
        let store = store();
        let name = ObjectName::pack(&PackId([1; 32]));
        store.faults.at(Step::Sync, 2, Fault::Fails);
        store.put(&name, Bytes::from_static(b"a")).await.unwrap();
        store.delete(&name).await.unwrap();
        assert!(store.put(&name, Bytes::from_static(b"a")).await.is_err());
        assert_eq!(store.head(&name).await.unwrap(), None);
        assert_eq!(
            store.put(&name, Bytes::from_static(b"a")).await.unwrap(),
            Finished::Created
        );
        assert_eq!(store.faults.struck(), 1);
    }

    #[tokio::test]
    async fn an_unanswered_rename_leaves_the_object() {
        let store = store();
        let name = ObjectName::pack(&PackId([1; 32]));
        store.faults.at(Step::Rename, 1, Fault::Unanswered);
        assert!(store.put(&name, Bytes::from_static(b"a")).await.is_err());
        assert_eq!(store.head(&name).await.unwrap(), Some(1));
    }

    #[test]
    fn a_seed_gives_the_same_faults_again() {
        let draw = |seed| {
            let faults = Faults::none();
            faults.at_random(seed, 5);
            (0..100).map(|_| faults.take(Step::Write)).collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        assert!(draw(7).iter().any(Option::is_some));
    }
}
