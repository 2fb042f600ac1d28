//! What a walk on another thread finds, held in memory up to a bound.

use crate::error::{Result, fault};
use holdfast_core::ErrorKind;
use parking_lot::Mutex;
use std::{ops::ControlFlow, sync::Arc};

/// Most things of one listing.
const LISTED_MAX: usize = 2_000_000;

/// The things found so far.
pub(super) struct Gathered<T>(Arc<Mutex<Vec<T>>>);

impl<T: Send + 'static> Gathered<T> {
    pub(super) fn new() -> Self {
        Self(Arc::default())
    }

    /// For the walk: takes what it finds, and ends it past the bound.
    pub(super) fn sink(&self) -> impl FnMut(T) -> ControlFlow<()> + Send + use<T> {
        let found = Arc::clone(&self.0);
        move |thing| {
            let mut found = found.lock();
            found.push(thing);
            if found.len() > LISTED_MAX {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        }
    }

    /// All that was found, once the walk is over.
    pub(super) fn take(&self) -> Vec<T> {
        std::mem::take(&mut *self.0.lock())
    }
}

/// Refuses a list beyond the bound. `what` it is a list of.
pub(super) fn bounded<T>(list: Vec<T>, what: &str) -> Result<Vec<T>> {
    if list.len() > LISTED_MAX {
        return Err(fault(
            ErrorKind::TooLarge,
            format!("more than {LISTED_MAX} {what}"),
        ));
    }
    Ok(list)
}
