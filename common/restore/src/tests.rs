//! Tests on real packs in real stores.

mod comparing;
mod damage;
mod deletion;
mod hostile;
mod hostile_generated;
mod in_place;
mod metadata;
mod patterns;
mod place;
mod postgres;
mod reading;
mod recovery;

mod wire;
