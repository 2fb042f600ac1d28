//! Two trees, compared by a walker that shares no code with the product: names as bytes, content, type,
//! mode, owner, time to the nanosecond, link targets, device numbers.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fmt::Write as _,
    fs,
    io::Read,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::Path,
    sync::Mutex,
    sync::atomic::{AtomicUsize, Ordering},
};

/// What one entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Dir,
    /// A regular file: length and BLAKE3 of its content.
    File(u64, [u8; 32]),
    /// A symbolic link: its target, byte for byte.
    Link(Vec<u8>),
    /// A device, fifo or socket: type bits and device number.
    Other(u32, u64),
}

/// One entry of a tree with all that a restore must bring back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Type and content.
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time: seconds, nanoseconds.
    pub mtime: (i64, i64),
}

/// Path below the root (bytes, `/` between names, empty for the root itself) to entry.
pub type Tree = BTreeMap<Vec<u8>, Entry>;

/// How strictly two trees are compared.
#[derive(Debug, Clone, Copy)]
pub struct Strictness {
    /// Compare owner and group. Only root can restore them.
    pub owner: bool,
    /// Compare the root directory's own mode, owner and time.
    pub root: bool,
}

impl Strictness {
    /// Everything that this user is able to restore, below the root.
    #[must_use]
    pub fn full() -> Self {
        Self {
            owner: rustix::process::geteuid().is_root(),
            root: false,
        }
    }
}

/// Reads a whole tree. Panics on anything that cannot be read.
#[must_use]
pub fn read(root: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut to_hash = Vec::new();
    let mut pending = vec![Vec::new()];
    while let Some(relative) = pending.pop() {
        let path = join(root, &relative);
        let meta = fs::symlink_metadata(&path).unwrap_or_else(|e| panic!("stat {}: {e}", path.display()));
        let file_type = meta.file_type();
        let kind = if file_type.is_dir() {
            for entry in fs::read_dir(&path).unwrap_or_else(|e| panic!("list {}: {e}", path.display())) {
                let name = entry.unwrap().file_name();
                let mut child = relative.clone();
                if !child.is_empty() {
                    child.push(b'/');
                }
                child.extend_from_slice(name.as_bytes());
                pending.push(child);
            }
            Kind::Dir
        } else if file_type.is_symlink() {
            Kind::Link(fs::read_link(&path).unwrap().as_os_str().as_bytes().to_vec())
        } else if file_type.is_file() {
            to_hash.push(relative.clone());
            Kind::File(meta.len(), [0; 32])
        } else {
            Kind::Other(meta.mode() & 0o170_000, meta.rdev())
        };
        let entry = Entry {
            kind,
            mode: meta.mode() & 0o7777,
            uid: meta.uid(),
            gid: meta.gid(),
            mtime: (meta.mtime(), meta.mtime_nsec()),
        };
        tree.insert(relative, entry);
    }
    for (path, hash) in hash_files(root, &to_hash) {
        if let Some(Entry {
            kind: Kind::File(_, slot),
            ..
        }) = tree.get_mut(&path)
        {
            *slot = hash;
        }
    }
    tree
}

/// The absolute path of a relative byte path.
#[must_use]
pub fn join(root: &Path, relative: &[u8]) -> std::path::PathBuf {
    if relative.is_empty() {
        root.to_path_buf()
    } else {
        root.join(OsStr::from_bytes(relative))
    }
}

fn hash_files(root: &Path, files: &[Vec<u8>]) -> Vec<(Vec<u8>, [u8; 32])> {
    let next = AtomicUsize::new(0);
    let hashes = Mutex::new(Vec::with_capacity(files.len()));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                let mut buffer = vec![0; 1 << 20];
                let mut mine = Vec::new();
                while let Some(relative) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
                    mine.push((relative.clone(), hash_file(&join(root, relative), &mut buffer)));
                }
                hashes.lock().unwrap().append(&mut mine);
            });
        }
    });
    hashes.into_inner().unwrap()
}

fn hash_file(path: &Path, buffer: &mut [u8]) -> [u8; 32] {
    let mut file = fs::File::open(path).unwrap_or_else(|e| panic!("open {}: {e}", path.display()));
    let mut hasher = blake3::Hasher::new();
    loop {
        match file
            .read(buffer)
            .unwrap_or_else(|e| panic!("read {}: {e}", path.display()))
        {
            0 => return *hasher.finalize().as_bytes(),
            len => hasher.update(&buffer[..len]),
        };
    }
}

/// The differences between two trees, at most `limit` of them spelt out; empty when equal.
#[must_use]
pub fn differences(expected: &Tree, actual: &Tree, strictness: Strictness, limit: usize) -> Vec<String> {
    let mut found = Vec::new();
    let mut count = 0usize;
    let mut note = |path: &[u8], text: String| {
        count += 1;
        if found.len() < limit {
            found.push(format!("{}: {text}", String::from_utf8_lossy(path)));
        }
    };
    for (path, want) in expected {
        match actual.get(path) {
            None => note(path, "is missing".into()),
            Some(have) => {
                let text = entry_difference(want, have, strictness, path.is_empty());
                if !text.is_empty() {
                    note(path, text);
                }
            }
        }
    }
    for path in actual.keys().filter(|path| !expected.contains_key(*path)) {
        note(path, "should not be there".into());
    }
    if count > found.len() {
        found.push(format!("… {count} differences in all"));
    }
    found
}

fn entry_difference(want: &Entry, have: &Entry, strictness: Strictness, is_root: bool) -> String {
    let mut text = String::new();
    match (&want.kind, &have.kind) {
        (Kind::File(want_len, _), Kind::File(have_len, _)) if want_len != have_len => {
            let _ = write!(text, "length {have_len} instead of {want_len}; ");
        }
        (Kind::File(..), Kind::File(..)) if want.kind != have.kind => text.push_str("other content; "),
        (want, have) if want != have => {
            let _ = write!(text, "{have:?} instead of {want:?}; ");
        }
        _ => {}
    }
    if is_root && !strictness.root {
        return text;
    }
    // A symbolic link's own mode means nothing on Linux.
    if want.mode != have.mode && !matches!(want.kind, Kind::Link(_)) {
        let _ = write!(text, "mode {:o} instead of {:o}; ", have.mode, want.mode);
    }
    if strictness.owner && (want.uid, want.gid) != (have.uid, have.gid) {
        let _ = write!(
            text,
            "owner {}:{} instead of {}:{}; ",
            have.uid, have.gid, want.uid, want.gid
        );
    }
    if want.mtime != have.mtime {
        let _ = write!(text, "mtime {:?} instead of {:?}; ", have.mtime, want.mtime);
    }
    text
}

/// Panics with the first differences when `actual` is not what was `expected`.
pub fn assert_same(what: &str, expected: &Tree, actual: &Tree) {
    let found = differences(expected, actual, Strictness::full(), 20);
    assert!(
        found.is_empty(),
        "{what}: the trees differ\n  {}",
        found.join("\n  ")
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn sample() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("d")).unwrap();
        fs::write(dir.path().join("d/file"), b"content").unwrap();
        fs::write(dir.path().join(OsStr::from_bytes(b"not-utf8-\xff")), b"x").unwrap();
        symlink("nowhere", dir.path().join("link")).unwrap();
        dir
    }

    #[test]
    fn a_tree_equals_itself_and_every_kind_of_change_is_seen() {
        type Change = fn(&Path);
        let changes: [(&str, Change); 7] = [
            ("content", |p| {
                let time = fs::metadata(p.join("d/file")).unwrap().modified().unwrap();
                fs::write(p.join("d/file"), b"c0ntent").unwrap();
                fs::File::open(p.join("d/file"))
                    .unwrap()
                    .set_modified(time)
                    .unwrap();
            }),
            ("mode", |p| {
                fs::set_permissions(p.join("d/file"), fs::Permissions::from_mode(0o600)).unwrap()
            }),
            ("time", |p| {
                let file = fs::File::open(p.join("d/file")).unwrap();
                let time = file.metadata().unwrap().modified().unwrap();
                file.set_modified(time + std::time::Duration::from_nanos(1))
                    .unwrap();
            }),
            ("link target", |p| {
                fs::remove_file(p.join("link")).unwrap();
                symlink("elsewhere", p.join("link")).unwrap();
            }),
            ("missing", |p| {
                fs::remove_file(p.join(OsStr::from_bytes(b"not-utf8-\xff"))).unwrap()
            }),
            ("extra", |p| fs::write(p.join("d/more"), b"").unwrap()),
            ("type", |p| {
                fs::remove_file(p.join("d/file")).unwrap();
                fs::create_dir(p.join("d/file")).unwrap();
            }),
        ];
        for (name, change) in changes {
            let dir = sample();
            let before = read(dir.path());
            assert_same(name, &before, &read(dir.path()));
            change(dir.path());
            assert!(
                !differences(&before, &read(dir.path()), Strictness::full(), 9).is_empty(),
                "{name} was missed"
            );
        }
    }
}
