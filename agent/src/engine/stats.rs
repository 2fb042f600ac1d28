//! Counters of a run, read by progress reports while it goes on.

use holdfast_proto::v1::RunStats;
use std::sync::atomic::{AtomicU64, Ordering};

/// Declares the counters once: fields, addition and the wire form.
macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Counters of a run; see the wire form for their meaning.
        #[derive(Debug, Default)]
        pub struct Stats {
            $($(#[$doc])* pub $name: AtomicU64,)*
        }

        impl Stats {
            /// The counts now.
            #[must_use]
            pub fn snapshot(&self) -> RunStats {
                RunStats { $($name: self.$name.load(Ordering::Relaxed),)* }
            }

            /// Back to zero, for a second pass over the same source.
            pub fn reset(&self) {
                $(self.$name.store(0, Ordering::Relaxed);)*
            }
        }
    };
}

counters! {
    /// Regular files.
    files,
    /// Directories.
    dirs,
    /// Symbolic links.
    symlinks,
    /// Devices and pipes.
    others,
    /// Sockets, and what rules left out.
    skipped,
    /// Apparent size of all files.
    bytes,
    /// Files taken over without reading.
    files_unchanged,
    /// Bytes read.
    bytes_read,
    /// Chunks that were new.
    chunks_new,
    /// Their raw size.
    bytes_new,
    /// Bytes sent in packs.
    bytes_stored,
    /// Files that were gone when their turn came.
    files_vanished,
    /// Files stored as they were read while they changed.
    files_changing,
    /// What could not be read.
    unreadable,
    /// Packs sent.
    packs,
}

/// Adds to a counter.
pub(crate) fn add(counter: &AtomicU64, value: u64) {
    counter.fetch_add(value, Ordering::Relaxed);
}

/// What a progress report shows.
#[derive(Debug, Clone, Copy, Default)]
pub struct Progress {
    /// Files done.
    pub files: u64,
    /// Bytes done: read or taken over.
    pub bytes: u64,
    /// Bytes sent.
    pub sent: u64,
}

impl Stats {
    /// The progress now.
    #[must_use]
    pub fn progress(&self) -> Progress {
        Progress {
            files: self.files.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            sent: self.bytes_stored.load(Ordering::Relaxed),
        }
    }
}
