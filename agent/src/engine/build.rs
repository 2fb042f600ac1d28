//! A directory while it is put together: sections end in any order and become its nodes in that of their names.

use super::{Shared, directory::Slot, listing::Listing};
use crate::error::Result;
use holdfast_repo::{DirBuilder, EntryKind, NodeDraft, VaultKeys};
use std::{collections::BTreeMap, ops::Range, sync::Arc};

/// Sections of one directory that are begun and not yet in its nodes, at most: enough for all workers while one
/// of them waits for a large file or a deep subdirectory.
const SECTIONS_OPEN: usize = 4;

/// How far a directory is.
#[derive(Default)]
pub(super) struct Build {
    /// Names that are in no section yet, as far as they are read.
    ahead: Option<Ahead>,
    /// A further section will begin.
    has_more: bool,
    begun: usize,
    /// Sections in the builder.
    built: usize,
    /// Sections that ended before an earlier one.
    waiting: BTreeMap<usize, Vec<Slot>>,
    builder: Option<DirBuilder<Arc<VaultKeys>>>,
    /// The next section is to begin once an earlier one is in the nodes.
    is_paused: bool,
}

/// Where the next section begins.
struct Ahead {
    listing: Arc<Listing>,
    at: usize,
}

/// A section that begins.
pub(super) struct Begun {
    pub number: usize,
    pub listing: Arc<Listing>,
    pub range: Range<usize>,
    /// Another one may begin at once.
    pub has_next: bool,
}

/// What the end of a section brought.
pub(super) struct Ended {
    /// Nodes to be stored.
    pub nodes: Vec<NodeDraft>,
    /// The directory, if that was its last part.
    pub kind: Option<EntryKind>,
    /// The next section may begin now.
    pub resumes: bool,
}

impl Ahead {
    fn is_used_up(&self) -> bool {
        self.at >= self.listing.names.len()
    }
}

impl Build {
    /// Of a directory of one section.
    pub fn begin_only(&mut self) {
        self.begun = 1;
    }

    /// Of a directory of several; or the next names of one.
    pub fn begin(&mut self, listing: Arc<Listing>) {
        self.ahead = Some(Ahead { listing, at: 0 });
        self.has_more = true;
    }

    /// The last name that was read, once all up to it are in sections and more are to be read. They are let go.
    pub fn read_up_to(&mut self) -> Option<Vec<u8>> {
        let ahead = self.ahead.take_if(|ahead| ahead.is_used_up())?;
        Some(ahead.listing.names.last().unwrap_or_default().to_vec())
    }

    /// The next section, of at most so many names. It may have none.
    pub fn next(&mut self, len: usize) -> Option<Begun> {
        let ahead = self.ahead.as_mut()?;
        let listing = Arc::clone(&ahead.listing);
        let range = ahead.at..listing.names.len().min(ahead.at + len.max(1));
        ahead.at = range.end;
        let number = self.begun;
        self.begun += 1;
        self.has_more = !ahead.is_used_up() || listing.names.is_cut();
        if !self.has_more {
            self.ahead = None;
        }
        let has_room = self.begun - self.built < SECTIONS_OPEN;
        self.is_paused = self.has_more && !has_room;
        Some(Begun {
            number,
            listing,
            range,
            has_next: self.has_more && has_room,
        })
    }

    /// A section ended: what is complete in front goes into nodes.
    pub fn end(&mut self, shared: &Shared, number: usize, slots: Vec<Slot>) -> Result<Ended> {
        let mut nodes = Vec::new();
        if number != self.built {
            self.waiting.insert(number, slots);
            return Ok(Ended {
                nodes,
                kind: None,
                resumes: false,
            });
        }
        let keys = &shared.settings.keys;
        let builder = self
            .builder
            .get_or_insert_with(|| DirBuilder::new(Arc::clone(keys)));
        let mut next = Some(slots);
        while let Some(slots) = next {
            for entry in slots.iter().flatten() {
                builder.push(entry)?;
                shared.long_held.release(entry);
            }
            nodes.append(&mut builder.take_nodes());
            self.built += 1;
            next = self.waiting.remove(&self.built);
        }
        let mut kind = None;
        if !self.has_more
            && self.built == self.begun
            && let Some(builder) = self.builder.take()
        {
            let built = builder.finish()?;
            nodes.extend(built.nodes);
            kind = Some(EntryKind::Dir {
                node: built.id,
                files: built.files,
                bytes: built.bytes,
            });
        }
        let resumes = self.is_paused && self.begun - self.built < SECTIONS_OPEN;
        self.is_paused &= !resumes;
        Ok(Ended { nodes, kind, resumes })
    }
}
