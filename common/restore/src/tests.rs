//! Tests on real packs in real stores.

mod damage;
mod hostile;
mod metadata;
mod place;
mod reading;
mod recovery;

mod wire;
