//! Entry point of `holdfast-controller`.
fn main() {}
