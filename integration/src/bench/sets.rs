//! The data that is backed up, and how it changes from round to round.

use super::{peers::Step, run::Plan};
use crate::dataset::{edit, image, long_text, many, tree};
use std::path::Path;

/// One insertion into so many bytes of text between two backups: a thousand into the full text.
const BYTES_PER_INSERTION: u64 = (1 << 30) / 1_000;
/// Share of the image's pages that are rewritten between two backups.
const REWRITTEN: f64 = 0.01;

/// Data of one kind and how it changes.
#[derive(Debug)]
pub(super) enum Data {
    /// Files as a source repository has them.
    Tree(tree::Maker),
    /// A disk image of pages.
    Image(image::Spec),
    /// One long text.
    Text(long_text::Maker),
    /// Very many tiny files.
    Many(many::Spec),
}

impl Data {
    /// All kinds at the plan's scale.
    pub(super) fn all(plan: &Plan) -> Vec<Self> {
        let (seed, scaled) = (plan.seed, |full: u64| (full as f64 * plan.scale) as u64);
        vec![
            Self::Tree(tree::Maker::new(tree::Spec {
                seed,
                files: (scaled(tree::Spec::large(0).files as u64) as usize).max(100),
            })),
            Self::Image(image::Spec {
                seed,
                pages: scaled(image::Spec::large(0).pages).max(1_000),
            }),
            Self::Text(long_text::Maker::new(long_text::Spec {
                seed,
                bytes: scaled(long_text::Spec::large(0).bytes).max(1 << 20),
            })),
            Self::Many(many::Spec {
                seed,
                files: scaled(many::Spec::large(0).files).max(1_000),
            }),
        ]
    }

    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Tree(_) => "tree",
            Self::Image(_) => "image",
            Self::Text(_) => "text",
            Self::Many(_) => "many",
        }
    }

    /// Whether it is measured without peers unless some are asked for: they would take hours.
    pub(super) fn is_ours_alone(&self) -> bool {
        matches!(self, Self::Many(_))
    }

    /// Bytes that it takes on disk, about.
    pub(super) fn bytes_needed(&self) -> u64 {
        match self {
            // Mean size of a file with some room.
            Self::Tree(maker) => maker.files() * 24_000,
            Self::Image(spec) => spec.bytes(),
            Self::Text(maker) => maker.bytes(),
            Self::Many(spec) => spec.files * 4_096,
        }
    }

    /// Makes it. Returns its bytes.
    pub(super) fn make(&self, path: &Path) -> anyhow::Result<u64> {
        match self {
            Self::Tree(maker) => Ok(maker.make(path)?.bytes),
            Self::Image(spec) => image::make(*spec, path).map(|()| spec.bytes()),
            Self::Text(maker) => maker.make(path).map(|()| maker.bytes()),
            Self::Many(spec) => many::make(*spec, path),
        }
    }

    /// Returns the bytes that changed.
    pub(super) fn change(&self, path: &Path, version: u64) -> anyhow::Result<u64> {
        match self {
            Self::Tree(maker) => Ok(edit::edit(maker, path, version)?.bytes),
            Self::Image(spec) => image::rewrite(*spec, path, REWRITTEN, version),
            Self::Text(maker) => {
                let count = maker.bytes().div_ceil(BYTES_PER_INSERTION);
                maker.insert(path, count as usize, version)
            }
            Self::Many(_) => Ok(0),
        }
    }

    /// The backups of one round, in order.
    pub(super) fn backups(&self) -> &'static [Step] {
        match self {
            Self::Tree(_) => &[Step::First, Step::Unchanged, Step::Changed],
            Self::Image(_) | Self::Text(_) => &[Step::First, Step::Changed],
            Self::Many(_) => &[Step::First, Step::Unchanged],
        }
    }

    /// What the table calls a step.
    pub(super) fn step_name(&self, step: Step) -> &'static str {
        match (self, step) {
            (_, Step::First) => "first",
            (_, Step::Unchanged) => "unchanged",
            (Self::Image(_), Step::Changed) => "1 % rewritten",
            (Self::Text(_), Step::Changed) => "insertions",
            (Self::Tree(_) | Self::Many(_), Step::Changed) => "after edits",
        }
    }
}
