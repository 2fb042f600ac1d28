//! Walks a data directory by the rules of `Layout`: what a backup would keep, and where the pages are.

use holdfast_postgres::{
    ControlFile, EntryKind, Layout, PAGE_LEN, PageCheck, PgVersion, Place, RelationFile, Treatment,
    UnloggedRelations,
};
use std::{
    collections::BTreeMap,
    fs,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

/// Path from the top, and what to do with it; nothing that is left out.
pub type Kept = BTreeMap<PathBuf, Treatment>;

pub fn layout() -> Layout {
    Layout::new(PgVersion::V15)
}

pub fn control_file(data: &Path) -> ControlFile {
    ControlFile::decode(&fs::read(data.join("global/pg_control")).unwrap()).unwrap()
}

/// What is kept of a place.
pub fn kept(top: &Path, place: Place) -> Kept {
    let mut kept = Kept::new();
    walk(top, place, Path::new(""), &mut kept);
    kept
}

fn walk(top: &Path, place: Place, below: &Path, kept: &mut Kept) {
    let layout = layout();
    let names: Vec<_> = fs::read_dir(top.join(below))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    let mut unlogged = UnloggedRelations::default();
    if layout.holds_relations(place, below.as_os_str().as_bytes()) {
        for name in &names {
            unlogged.see(name.as_bytes()).unwrap();
        }
    }
    for name in names {
        let path = below.join(&name);
        let file_type = fs::symlink_metadata(top.join(&path)).unwrap().file_type();
        let kind = if file_type.is_dir() {
            EntryKind::Directory
        } else if file_type.is_symlink() {
            EntryKind::Link
        } else if file_type.is_file() {
            EntryKind::File
        } else {
            EntryKind::Special
        };
        let treatment = layout.treatment(place, path.as_os_str().as_bytes(), kind);
        if treatment == Treatment::Omit || unlogged.omits(name.as_bytes()) {
            continue;
        }
        kept.insert(path.clone(), treatment);
        if treatment == Treatment::Keep && kind == EntryKind::Directory {
            walk(top, place, &path, kept);
        }
    }
}

/// All files below, whatever they are, links to directories followed.
pub fn everything(top: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![PathBuf::new()];
    while let Some(below) = open.pop() {
        for entry in fs::read_dir(top.join(&below)).unwrap() {
            let path = below.join(entry.unwrap().file_name());
            if fs::metadata(top.join(&path)).unwrap().is_dir() {
                open.push(path.clone());
            }
            found.push(path);
        }
    }
    found.sort();
    found
}

/// How many files with pages and how many pages there are, and which are bad: `path block`.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Pages {
    pub files: u64,
    pub pages: u64,
    pub bad: Vec<(PathBuf, u32)>,
}

/// Checks all pages of a cluster that stands still, tablespaces too.
pub fn check_pages(data: &Path) -> Pages {
    let control = control_file(data);
    let check = PageCheck::new(&control).unwrap();
    let mut pages = Pages::default();
    for path in everything(data) {
        let Some(file) = relation_at(&path) else {
            continue;
        };
        let bytes = fs::read(data.join(&path)).unwrap();
        let first = file.first_block(control.blocks_per_file).unwrap();
        pages.files += 1;
        pages.pages += (bytes.len() / PAGE_LEN) as u64;
        let bad = check.bad_pages(&bytes, first).unwrap();
        pages.bad.extend(bad.map(|bad| (path.clone(), bad.block)));
    }
    pages
}

/// The relation of a file, by its path in the data directory or, through a link in `pg_tblspc`, in a tablespace.
fn relation_at(path: &Path) -> Option<RelationFile> {
    let mut names = path.components();
    let (place, path) = if path.starts_with("pg_tblspc") {
        names.by_ref().take(2).for_each(drop);
        (Place::Tablespace, names.as_path())
    } else {
        (Place::DataDirectory, path)
    };
    layout().relation_file(place, path.as_os_str().as_bytes())
}
