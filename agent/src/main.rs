//! Entry point of `holdfast-agent`.
fn main() {}
