//! What a directory holds, by name alone: read once, or several times where there are so many names that only
//! some of them fit into memory.

use super::{Shared, directory::Directory};
use holdfast_core::Names;
use rustix::fs::Dir;
use std::{
    ffi::OsStr,
    os::{fd::OwnedFd, unix::ffi::OsStrExt as _},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

/// Bytes of names that directories which are under way hold together: about two million short names. A
/// directory takes at most half of what is left of it, so that those below it have some too.
pub(super) const NAMES_HELD_MAX: usize = 32 * 1024 * 1024;
/// What each may take in any case, to get on.
const NAMES_MIN: usize = 128 * 1024;
/// A worker's own names are used again for the next directory up to this.
const REUSED_MAX: usize = 512 * 1024;

/// Bytes of names that are held.
#[derive(Default)]
pub(super) struct NamesHeld(Arc<AtomicUsize>);

/// Names of a directory that is too wide for one section, or some of them. Sections share it.
pub(super) struct Listing {
    pub names: Names,
    counted: usize,
    held: Arc<AtomicUsize>,
}

impl Drop for Listing {
    fn drop(&mut self) {
        self.held.fetch_sub(self.counted, Ordering::Relaxed);
    }
}

impl Listing {
    /// Counts the names as held until the listing is dropped.
    pub fn keep(shared: &Shared, mut names: Names) -> Arc<Self> {
        names.shrink();
        let (counted, held) = (names.capacity(), Arc::clone(&shared.names_held.0));
        held.fetch_add(counted, Ordering::Relaxed);
        Arc::new(Self { names, counted, held })
    }
}

/// Reads the names behind `after`, in order, as many as there is room for.
pub(super) fn read_names(
    shared: &Shared,
    directory: &Directory,
    dir: &OwnedFd,
    after: Option<&[u8]>,
    names: &mut Names,
) -> rustix::io::Result<()> {
    let held = shared.names_held.0.load(Ordering::Relaxed);
    let left = shared.settings.width.names_held.saturating_sub(held);
    names.begin((left / 2).max(shared.settings.width.names_held.min(NAMES_MIN)));
    for item in Dir::read_from(dir)? {
        let item = item?;
        let name = item.file_name().to_bytes();
        if matches!(name, b"." | b"..") || after.is_some_and(|after| name <= after) {
            continue;
        }
        if !names.push(name, 0) {
            let path = directory.path.join(OsStr::from_bytes(name));
            directory.report(shared, &path, "its name is too long");
        }
    }
    names.finish();
    Ok(())
}

/// The same memory for the next directory, unless it is large.
pub(super) fn reusable(names: Names) -> Names {
    if names.capacity() <= REUSED_MAX {
        names
    } else {
        Names::default()
    }
}
