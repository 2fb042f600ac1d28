//! Data sets from a seed, the same on every machine: a tree of source-code-like files, an image of mixed
//! pages, a long text, and the changes to each; and a tree of very many tiny files.

pub mod edit;
pub mod image;
pub mod long_text;
pub mod many;
mod text;
pub mod tree;
