//! Entry point of `holdfastctl`.
fn main() {}
