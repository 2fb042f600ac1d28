//! One long file of text, as a log or a dump of a database is, and small insertions at random places, each
//! of which moves all that follows.

use super::{text::Vocabulary, tree::in_parallel};
use crate::seed::{Rng, mix};
use anyhow::Context as _;
use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::unix::fs::FileExt as _,
    path::Path,
};

/// Text made at once.
const PIECE: u64 = 1 << 20;
/// Neighbouring pieces that share their common names.
const PIECES_PER_PLACE: u64 = 16;
/// Shortest and longest insertion, bytes.
const INSERTED: (u64, u64) = (10, 200);

/// What a text is made from.
#[derive(Debug, Clone, Copy)]
pub struct Spec {
    /// Decides everything.
    pub seed: u64,
    /// Length in bytes.
    pub bytes: u64,
}

impl Spec {
    /// The bench's text: 1 GiB.
    #[must_use]
    pub fn large(seed: u64) -> Self {
        Self { seed, bytes: 1 << 30 }
    }
}

/// The generator of one text.
#[derive(Debug)]
pub struct Maker {
    spec: Spec,
    words: Vocabulary,
}

impl Maker {
    /// Prepares the words.
    #[must_use]
    pub fn new(spec: Spec) -> Self {
        Self {
            spec,
            words: Vocabulary::new(spec.seed),
        }
    }

    /// Length of the original in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.spec.bytes
    }

    /// Writes the text to a new file.
    ///
    /// # Errors
    /// The file exists or cannot be written.
    pub fn make(&self, path: &Path) -> anyhow::Result<()> {
        let file = File::create_new(path).with_context(|| format!("create {}", path.display()))?;
        in_parallel(self.spec.bytes.div_ceil(PIECE), |piece, buffer| {
            let len = PIECE.min(self.spec.bytes - piece * PIECE);
            buffer.clear();
            let mut rng = Rng::part(self.spec.seed, piece);
            let place = mix(piece / PIECES_PER_PLACE);
            self.words.write_text(buffer, len as usize, place, &mut rng);
            file.write_all_at(buffer, piece * PIECE)
                .with_context(|| format!("write {}", path.display()))
        })
    }

    /// Inserts `count` short texts at random places, as editors do: into a new file that then takes the
    /// place of the old one. Returns the bytes that were inserted; `version` decides what and where.
    ///
    /// # Errors
    /// The file cannot be read, written or renamed.
    pub fn insert(&self, path: &Path, count: usize, version: u64) -> anyhow::Result<u64> {
        let old = File::open(path).with_context(|| format!("open {}", path.display()))?;
        let len = old.metadata()?.len();
        let mut rng = Rng::part(self.spec.seed ^ 0x696e_7365_7274, version);
        let mut places = BTreeSet::new();
        while places.len() < count.min(len as usize) {
            places.insert(rng.below(len));
        }
        let fresh_path = path.with_extension("new");
        let mut fresh = File::create_new(&fresh_path)?;
        let (mut at, mut inserted, mut text) = (0, 0, Vec::new());
        for place in places {
            io::copy(&mut (&old).take(place - at), &mut fresh)?;
            at = place;
            text.clear();
            let len = INSERTED.0 + rng.below(INSERTED.1 - INSERTED.0 + 1);
            self.words
                .write_text(&mut text, len as usize, mix(place), &mut rng);
            fresh.write_all(&text)?;
            inserted += text.len() as u64;
        }
        io::copy(&mut &old, &mut fresh)?;
        replace(&fresh_path, path)?;
        Ok(inserted)
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "data of a bench: nobody asks for it after a power cut"
)]
fn replace(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::rename(from, to).with_context(|| format!("replace {}", to.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn insertions_add_their_bytes_and_leave_the_rest_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("text");
        let maker = Maker::new(Spec {
            seed: 3,
            bytes: 3_000_000,
        });
        maker.make(&path).unwrap();
        let before = fs::read(&path).unwrap();
        assert_eq!(before.len(), 3_000_000);
        let packed = zstd::bulk::compress(&before, 3).unwrap().len() as f64 / before.len() as f64;
        assert!((0.1..0.5).contains(&packed), "zstd -3 leaves {packed:.3}");
        let inserted = maker.insert(&path, 20, 1).unwrap();
        assert!((200..=4000).contains(&inserted));
        let after = fs::read(&path).unwrap();
        assert_eq!(after.len() as u64, 3_000_000 + inserted);
        // What was there is a subsequence of what is there now.
        let mut rest = after.iter();
        assert!(before.iter().all(|byte| rest.any(|other| other == byte)));
    }
}
