//! Extended attributes, hard links and flags go in, and are read again only where something changed.

use crate::host::{Host, spec};
use holdfast_proto::v1::FilesSpec;
use holdfast_repo::{Attributes, Entry, EntryKind, Timestamp};
use rustix::fs::{CWD, FileType, IFlags, XattrFlags};
use std::{collections::BTreeMap, fs, os::unix::fs::symlink, path::Path};

fn set(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, XattrFlags::empty()).unwrap();
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// All entries below the first root by their paths, and the root's own under the empty one.
fn entries(host: &Host) -> BTreeMap<String, Entry> {
    fn visit(host: &Host, path: &str, entry: &Entry, out: &mut BTreeMap<String, Entry>) {
        out.insert(path.to_owned(), entry.clone());
        if let EntryKind::Dir { node, .. } = entry.kind {
            for child in host.entries(node) {
                let name = String::from_utf8(child.name.clone()).unwrap();
                let path = if path.is_empty() {
                    name
                } else {
                    format!("{path}/{name}")
                };
                visit(host, &path, &child, out);
            }
        }
    }
    let mut out = BTreeMap::new();
    visit(host, "", &host.parent[0].entry, &mut out);
    out
}

fn xattrs(entry: &Entry) -> Vec<(String, Vec<u8>)> {
    let attributes = entry.attributes.as_deref().cloned().unwrap_or_default();
    let found = attributes.xattrs.iter();
    // Labels of the host are none of the test's business.
    let ours = found.filter(|(name, _)| !name.starts_with(b"security.selinux"));
    ours.map(|(name, value)| (String::from_utf8(name.to_vec()).unwrap(), value.to_vec()))
        .collect()
}

fn pair(name: &str, value: &[u8]) -> (String, Vec<u8>) {
    (name.to_owned(), value.to_vec())
}

#[test]
fn attributes_go_in_and_unchanged_ones_are_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("sub")).unwrap();
    fs::write(at("sub/small"), b"small").unwrap();
    fs::write(at("sub/large"), vec![7; 3 << 20]).unwrap();
    fs::write(at("plain"), b"plain").unwrap();
    symlink("plain", at("link")).unwrap();
    rustix::fs::mknodat(CWD, at("pipe"), FileType::Fifo, 0o600.into(), 0).unwrap();
    let long = vec![5; 2000];
    set(dir.path(), "user.root", b"r");
    set(&at("sub"), "user.dir", b"d");
    set(&at("sub/small"), "user.a", b"1");
    set(&at("sub/small"), "user.empty", b"");
    set(&at("sub/large"), "user.long", &long);
    if is_root() {
        set(&at("link"), "trusted.link", b"l");
        set(&at("pipe"), "trusted.pipe", b"p");
    }
    let mut host = Host::new();
    let (first, stats) = host.back_up(&spec(dir.path()));
    assert_eq!(stats.snapshot().unreadable, 0);
    let found = entries(&host);
    assert_eq!(xattrs(&found[""]), [pair("user.root", b"r")]);
    assert_eq!(xattrs(&found["sub"]), [pair("user.dir", b"d")]);
    assert_eq!(
        xattrs(&found["sub/small"]),
        [pair("user.a", b"1"), pair("user.empty", b"")]
    );
    assert_eq!(xattrs(&found["sub/large"]), [pair("user.long", &long)]);
    assert_eq!(xattrs(&found["plain"]), []);
    if is_root() {
        assert_eq!(xattrs(&found["link"]), [pair("trusted.link", b"l")]);
        assert_eq!(xattrs(&found["pipe"]), [pair("trusted.pipe", b"p")]);
    }
    let (again, stats) = host.back_up(&spec(dir.path()));
    assert_eq!(again.trees, first.trees);
    let counts = stats.snapshot();
    assert_eq!(
        (counts.files_unchanged, counts.symlinks, counts.others),
        (3, 1, 1)
    );

    set(&at("sub/small"), "user.a", b"2");
    rustix::fs::removexattr(at("sub"), "user.dir").unwrap();
    host.back_up(&spec(dir.path()));
    let found = entries(&host);
    assert_eq!(
        xattrs(&found["sub/small"]),
        [pair("user.a", b"2"), pair("user.empty", b"")]
    );
    assert_eq!(xattrs(&found["sub"]), []);
    assert_eq!(xattrs(&found["sub/large"]), [pair("user.long", &long)]);
}

#[test]
fn names_of_one_file_are_known_as_such() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("sub")).unwrap();
    fs::write(at("a"), b"shared").unwrap();
    fs::write(at("large"), vec![9; 5 << 20]).unwrap();
    symlink("a", at("link")).unwrap();
    fs::write(at("alone"), b"alone").unwrap();
    fs::hard_link(at("a"), at("sub/b")).unwrap();
    fs::hard_link(at("large"), at("sub/large")).unwrap();
    fs::hard_link(at("link"), at("sub/link")).unwrap();
    let mut host = Host::new();
    let (_, stats) = host.back_up(&spec(dir.path()));
    assert!(
        stats.snapshot().bytes_read <= (5 << 20) + 100,
        "a large file is read by one name"
    );
    let check = |found: &BTreeMap<String, Entry>| {
        let link = |path: &str| found[path].attributes.as_ref().and_then(|more| more.hard_link);
        for (one, other) in [("a", "sub/b"), ("large", "sub/large"), ("link", "sub/link")] {
            assert_eq!(link(one).unwrap().names, 2);
            assert_eq!(link(one), link(other));
            assert_eq!(found[one].inode, found[other].inode);
            assert_eq!(found[one].kind, found[other].kind);
        }
        assert_eq!(link("alone"), None);
        assert_eq!((link(""), link("sub")), (None, None));
    };
    check(&entries(&host));
    let (_, stats) = host.back_up(&spec(dir.path()));
    assert_eq!(stats.snapshot().bytes_read, 0);
    check(&entries(&host));
    fs::remove_file(at("sub/b")).unwrap();
    host.back_up(&spec(dir.path()));
    assert_eq!(entries(&host)["a"].attributes, None);
}

#[test]
fn flags_are_known_where_the_file_system_has_them() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    fs::write(&path, b"x").unwrap();
    let file = fs::File::open(&path).unwrap();
    if rustix::fs::ioctl_setflags(&file, IFlags::NODUMP).is_err() {
        eprintln!("no flags on this file system");
        return;
    }
    let mut host = Host::new();
    host.back_up(&spec(dir.path()));
    let flags = Attributes {
        flags: IFlags::NODUMP.bits(),
        ..Attributes::default()
    };
    assert_eq!(entries(&host)["file"].attributes, flags.boxed());
}

/// Ten extended attributes of 60 000 bytes; `false` where the file system does not take so much.
fn fill(path: &Path) -> bool {
    let value = vec![3; 60_000];
    // Only those of root have no bound on tmpfs.
    let name = |n: usize| format!("{}.{n:04}", if is_root() { "trusted" } else { "user" });
    (0..10).all(|n| rustix::fs::setxattr(path, name(n), &value, XattrFlags::empty()).is_ok())
}

#[test]
fn what_does_not_fit_is_reported_every_time() {
    // Most file systems on disk keep a few KiB for each file at most.
    let memory = Path::new("/dev/shm");
    let Ok(dir) = tempfile::tempdir_in(memory) else {
        return;
    };
    let path = dir.path().join("file");
    fs::write(&path, b"x").unwrap();
    if !fill(&path) {
        eprintln!("extended attributes do not grow so long here");
        return;
    }
    let mut host = Host::new();
    for _ in 0..2 {
        let (outcome, stats) = host.back_up(&spec(dir.path()));
        assert_eq!(stats.snapshot().unreadable, 1, "the run is partial");
        assert!(
            outcome.problems[0].reason.contains("does not fit"),
            "{:?}",
            outcome.problems
        );
        assert_eq!(outcome.problems[0].path, path.to_str().unwrap().as_bytes());
        let entry = &entries(&host)["file"];
        assert_eq!(xattrs(entry).len(), 4);
        assert_eq!(entry.ctime, Timestamp::default());
    }
}

#[test]
fn many_roots_with_long_attributes_fit_into_one_root_object() {
    let dir = tempfile::tempdir().unwrap();
    let roots: Vec<_> = (0..40)
        .map(|n| {
            let root = dir.path().join(format!("root-{n}"));
            if n % 2 == 0 {
                fs::create_dir(&root).unwrap();
            } else {
                fs::write(&root, b"a file").unwrap();
            }
            set(&root, "user.long", &[1; 3000]);
            root.to_str().unwrap().to_owned()
        })
        .collect();
    let mut host = Host::new();
    let (outcome, stats) = host.back_up(&FilesSpec {
        roots,
        ..FilesSpec::default()
    });
    let kept: Vec<_> = outcome
        .trees
        .iter()
        .filter(|tree| !xattrs(&tree.entry).is_empty())
        .collect();
    assert_eq!(kept.len() as u64 + stats.snapshot().unreadable, 40);
    assert!((15..25).contains(&kept.len()), "{}", kept.len());
}
