//! The trait that every store implements.

use crate::{Area, ObjectName, StoreError};
use async_trait::async_trait;
use bytes::Bytes;
use holdfast_core::StoreId;

/// An object in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub name: ObjectName,
    /// Its length in bytes.
    pub len: u64,
}

/// Room at a store, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// All of it.
    pub total: u64,
    /// What this process can still fill.
    pub free: u64,
}

/// How a write ended; either way the object is on disk under its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finished {
    /// This write made it.
    Created,
    /// An object of that name was there before and was left as it is.
    AlreadyThere,
}

/// A place that holds objects. Objects are written once and never changed.
#[async_trait]
pub trait Store: Send + Sync {
    /// Who it is, wherever it is mounted.
    fn id(&self) -> StoreId;

    /// Its directory, for who may be able to read it there: nobody else knows whether that is the same host.
    fn directory(&self) -> Option<&std::path::Path> {
        None
    }

    /// Writes an object whose bytes are known. Durable when it returns; an object that exists stays as it is.
    async fn put(&self, name: &ObjectName, body: Bytes) -> Result<Finished, StoreError> {
        let mut upload = self.begin_upload().await?;
        upload.write(body).await?;
        upload.finish(name).await
    }

    /// Begins an object whose name is known only at its end.
    async fn begin_upload(&self) -> Result<Box<dyn Upload>, StoreError>;

    /// Exactly `len` bytes from `offset`. Errors: [`StoreError::NotFound`], [`StoreError::Short`].
    async fn get_range(&self, name: &ObjectName, offset: u64, len: usize) -> Result<Bytes, StoreError>;

    /// A whole object of at most `max` bytes. Errors: [`StoreError::NotFound`], [`StoreError::TooLarge`].
    async fn get(&self, name: &ObjectName, max: usize) -> Result<Bytes, StoreError>;

    /// The object's length, or `None` when it is not there.
    async fn head(&self, name: &ObjectName) -> Result<Option<u64>, StoreError>;

    /// At most `limit` objects of one area in the order of their names, beginning behind `after`.
    async fn list(
        &self,
        area: Area,
        after: Option<&ObjectName>,
        limit: usize,
    ) -> Result<Vec<Listed>, StoreError>;

    /// At most `limit` things in the store that are no object of its layout (temporary files left out).
    async fn strays(&self, limit: usize) -> Result<Vec<String>, StoreError>;

    /// Removes an object durably. One that is not there is no error.
    async fn delete(&self, name: &ObjectName) -> Result<(), StoreError>;

    /// How much room there is.
    async fn space(&self) -> Result<Space, StoreError>;
}

/// An object under way. Dropped unfinished it leaves nothing behind.
#[async_trait]
pub trait Upload: Send {
    /// Adds bytes. After an error the upload is of no more use.
    async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError>;

    /// Makes it durable under its name: data first, then the name, then the directory.
    async fn finish(self: Box<Self>, name: &ObjectName) -> Result<Finished, StoreError>;

    /// Gives it up and removes what was written.
    async fn abort(self: Box<Self>);
}
