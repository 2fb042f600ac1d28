//! Data sets from a seed, the same on every machine: a tree of source-code-like files, an image of mixed
//! pages, and the changes to both.

pub mod edit;
pub mod image;
mod text;
pub mod tree;
