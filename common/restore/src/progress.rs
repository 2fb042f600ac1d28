//! Counters that a restore or a verification moves while it runs, for whoever shows them.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Totals and what is done of them; zero totals mean that they are not known yet.
#[derive(Debug, Default)]
pub struct Progress {
    files_total: AtomicU64,
    bytes_total: AtomicU64,
    files_done: AtomicU64,
    bytes_done: AtomicU64,
}

impl Progress {
    /// (files done, files in all).
    #[must_use]
    pub fn files(&self) -> (u64, u64) {
        (self.files_done.load(Relaxed), self.files_total.load(Relaxed))
    }

    /// (bytes of content done, bytes in all).
    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        (self.bytes_done.load(Relaxed), self.bytes_total.load(Relaxed))
    }

    pub(crate) fn add_totals(&self, files: u64, bytes: u64) {
        self.files_total.fetch_add(files, Relaxed);
        self.bytes_total.fetch_add(bytes, Relaxed);
    }

    pub(crate) fn add_files(&self, files: u64) {
        self.files_done.fetch_add(files, Relaxed);
    }

    pub(crate) fn add_bytes(&self, bytes: u64) {
        self.bytes_done.fetch_add(bytes, Relaxed);
    }
}
