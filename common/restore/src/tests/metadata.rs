//! Extended attributes, hard links, flags and holes come back, and cannot be used against the target.

use crate::{RestoreOptions, RestoreReport, Snapshot, restore, testing::*};
use holdfast_repo::{Attributes, HardLink};
use rustix::fs::XattrFlags;
use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

async fn whole(snapshot: &Snapshot, to: &Path) -> RestoreReport {
    let report = restore(snapshot, to, RestoreOptions::default()).await.unwrap();
    assert_eq!(report.problems.listed, [], "{}", report.problems.count);
    report
}

fn in_place() -> RestoreOptions {
    RestoreOptions {
        in_place: true,
        ..Default::default()
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn more(item: Item, inode: u64, attributes: Attributes) -> Item {
    Item::More(Box::new(item), inode, attributes)
}

/// A name of a file that has so many.
fn name_of(item: Item, inode: u64, names: u64) -> Item {
    let hard_link = Some(HardLink { device: 5, names });
    let attributes = Attributes {
        hard_link,
        ..Default::default()
    };
    more(item, inode, attributes)
}

fn with_xattrs(item: Item, inode: u64, xattrs: &[(&str, &[u8])]) -> Item {
    let xattrs = xattrs
        .iter()
        .map(|(name, value)| (name.as_bytes().to_vec(), value.to_vec()));
    let attributes = Attributes {
        xattrs: xattrs.collect(),
        ..Default::default()
    };
    more(item, inode, attributes)
}

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 65_536];
    let len = rustix::fs::lgetxattr(path, name, &mut value[..]).ok()?;
    value.truncate(len);
    Some(value)
}

/// user::rw-, user:7:rw-, group::r--, mask::rw-, other::---
const LIST: &[u8] = b"\x02\0\0\0\
    \x01\0\x06\0\xff\xff\xff\xff\x02\0\x06\0\x07\0\0\0\x04\0\x04\0\xff\xff\xff\xff\
    \x10\0\x06\0\xff\xff\xff\xff\x20\0\0\0\xff\xff\xff\xff";

#[tokio::test(flavor = "multi_thread")]
async fn extended_attributes_come_back_on_everything() {
    let long = vec![7; 3000];
    let tree = dir([
        (
            "file",
            with_xattrs(
                Item::File(0o444, b"x".to_vec()),
                1,
                &[("user.a", b"1"), ("user.empty", b"")],
            ),
        ),
        (
            "large",
            with_xattrs(file(noise(1, 9 << 20)), 2, &[("user.long", &long)]),
        ),
        (
            "list",
            with_xattrs(
                Item::File(0o660, b"y".to_vec()),
                3,
                &[("system.posix_acl_access", LIST)],
            ),
        ),
        (
            "dir",
            with_xattrs(
                dir([("inner", file("z"))]),
                4,
                &[("user.d", b"d"), ("system.posix_acl_default", LIST)],
            ),
        ),
    ]);
    let mut items = tree.clone();
    if let (true, Item::Dir(_, items)) = (is_root(), &mut items) {
        items.insert(
            b"link".to_vec(),
            with_xattrs(link("file"), 5, &[("trusted.l", b"on a link")]),
        );
        items.insert(
            b"pipe".to_vec(),
            with_xattrs(Item::Fifo(0o640), 6, &[("trusted.p", b"on a pipe")]),
        );
        // cap_net_raw+ep, version 2.
        let raw = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
        items.insert(
            b"ping".to_vec(),
            with_xattrs(
                Item::File(0o755, b"p".to_vec()),
                7,
                &[("security.capability", raw)],
            ),
        );
    }
    let (snapshot, _) = snapshot(&mut Repo::new(), &[("/t", items.clone())]).await;
    let to = tempfile::tempdir().unwrap();
    let report = whole(&snapshot, to.path()).await;
    assert_eq!(report.attributes_left, 0);
    let root = to.path().join("t");
    assert_same(&root, &items);
    let Item::Dir(_, items) = items else {
        panic!("a directory")
    };
    for (name, item) in items {
        let Item::More(_, _, attributes) = item else {
            panic!("{name:?}")
        };
        for (xattr_name, value) in attributes.xattrs.iter() {
            let path = root.join(std::str::from_utf8(&name).unwrap());
            let found = xattr(&path, std::str::from_utf8(xattr_name).unwrap());
            assert_eq!(found.as_deref(), Some(value), "{} {xattr_name:?}", path.display());
        }
    }
    let inner = root.join("dir/inner");
    assert_eq!(
        xattr(&inner, "system.posix_acl_access"),
        None,
        "the directory's default was set too early"
    );
}

#[tokio::test]
async fn what_was_there_before_does_not_stay() {
    let tree = dir([("file", file("new")), ("dir", dir([("inner", file("x"))]))]);
    let (snapshot, _) = snapshot(&mut Repo::new(), &[("/t", tree.clone())]).await;
    let to = tempfile::tempdir().unwrap();
    let set = |path: &Path, name: &str, value: &[u8]| {
        rustix::fs::setxattr(path, name, value, XattrFlags::empty()).unwrap();
    };
    // A target that gives a list to whatever is made in it …
    let mut list = LIST.to_vec();
    list[6] = 7; // user::rwx, so that not only root gets into the directories
    set(to.path(), "system.posix_acl_default", &list);
    whole(&snapshot, to.path()).await;
    for path in ["t", "t/file", "t/dir", "t/dir/inner"] {
        let path = to.path().join(path);
        for name in ["system.posix_acl_access", "system.posix_acl_default"] {
            assert_eq!(xattr(&path, name), None, "{} {name}", path.display());
        }
    }
    assert_same(&to.path().join("t"), &tree);
    // … and directories that had something of their own.
    set(&to.path().join("t/dir"), "user.old", b"x");
    set(&to.path().join("t/file"), "user.old", b"x");
    restore(&snapshot, to.path(), in_place()).await.unwrap();
    assert_eq!(xattr(&to.path().join("t/dir"), "user.old"), None);
    assert_eq!(xattr(&to.path().join("t/file"), "user.old"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_of_one_file_are_one_file_again() {
    let large = noise(1, 9 << 20);
    let one = || name_of(file("shared"), 10, 4);
    let mut many = BTreeMap::new();
    for n in 0..2000_u64 {
        let inode = 100 + n / 4;
        many.insert(
            format!("{n:04}").into_bytes(),
            name_of(file(inode.to_string()), inode, 4),
        );
    }
    let tree = dir([
        ("a", one()),
        ("b", dir([("c", one()), ("d", dir([("e", one())]))])),
        ("other", dir([("one", file("shared")), ("three", one())])),
        ("large-1", name_of(file(&large), 11, 3)),
        ("large-2", name_of(file(&large), 11, 3)),
        ("z", dir([("large-3", name_of(file(&large), 11, 3))])),
        ("link-1", name_of(link("a"), 12, 2)),
        ("link-2", name_of(link("a"), 12, 2)),
        ("pipe-1", name_of(Item::Fifo(0o600), 13, 9)),
        ("pipe-2", name_of(Item::Fifo(0o600), 13, 9)),
        ("many", Item::Dir(0o700, many)),
        ("alone", name_of(file("alone"), 14, 2)),
    ]);
    let (snapshot, _) = snapshot(&mut Repo::new(), &[("/srv/t", tree.clone())]).await;
    let to = tempfile::tempdir().unwrap();
    let root = to.path().join("srv/t");
    let check = |report: &RestoreReport| {
        assert_same(&root, &tree);
        let inode = |path: &str| fs::symlink_metadata(root.join(path)).unwrap().ino();
        let names = |path: &str| fs::symlink_metadata(root.join(path)).unwrap().nlink();
        for group in [
            &["a", "b/c", "b/d/e", "other/three"][..],
            &["large-1", "large-2", "z/large-3"],
            &["link-1", "link-2"],
            &["pipe-1", "pipe-2"],
            &["alone"],
        ] {
            assert_eq!(names(group[0]), group.len() as u64, "{group:?}");
            assert!(
                group.iter().all(|name| inode(name) == inode(group[0])),
                "{group:?}"
            );
        }
        assert_ne!(inode("other/one"), inode("a"));
        for n in 0..2000 {
            assert_eq!(names(&format!("many/{n:04}")), 4);
            assert_eq!(
                inode(&format!("many/{n:04}")),
                inode(&format!("many/{:04}", n / 4 * 4))
            );
        }
        assert_eq!((report.files, report.symlinks, report.others), (2009, 2, 2));
    };
    check(&whole(&snapshot, to.path()).await);
    let again = restore(&snapshot, to.path(), in_place()).await.unwrap();
    assert_eq!(again.problems.listed, []);
    check(&again);

    let other = tempfile::tempdir().unwrap();
    let options = RestoreOptions {
        paths: vec![b"b/c".to_vec()],
        ..Default::default()
    };
    restore(&snapshot, other.path(), options).await.unwrap();
    let stat = fs::metadata(other.path().join("srv/t/b/c")).unwrap();
    assert_eq!((stat.nlink(), stat.len()), (1, 6));
}

#[tokio::test]
async fn names_whose_first_cannot_be_made_or_linked_to_get_the_content_all_the_same() {
    let shared = || name_of(file("shared"), 10, 3);
    let tree = dir([("a", shared()), ("b", shared()), ("c", shared())]);
    let (snapshot, _) = snapshot(&mut Repo::new(), &[("/t", tree)]).await;
    let to = tempfile::tempdir().unwrap();
    // A directory, which is never removed to make room.
    fs::create_dir_all(to.path().join("t/a/full")).unwrap();
    let report = restore(&snapshot, to.path(), in_place()).await.unwrap();
    assert_eq!(report.problems.count, 1, "{:?}", report.problems);
    assert_eq!(report.problems.listed[0].path, b"/t/a");
    let (b, c) = (to.path().join("t/b"), to.path().join("t/c"));
    assert_eq!(fs::read(&b).unwrap(), b"shared");
    assert_eq!(fs::metadata(&b).unwrap().ino(), fs::metadata(&c).unwrap().ino());
    let names = fs::read_dir(to.path().join("t")).unwrap().count();
    assert_eq!(names, 3, "temporary names are left");
}

#[tokio::test]
async fn entries_that_only_claim_to_be_one_file_come_back_as_they_are() {
    let mut repo = Repo::new();
    let tree = dir([
        ("file", name_of(file("first"), 10, 2)),
        ("longer", name_of(file("another"), 10, 2)),
        ("link", name_of(link("/etc/passwd"), 10, 2)),
        ("pipe", name_of(Item::Fifo(0o600), 10, 2)),
        (
            "device",
            more(
                file("first"),
                10,
                Attributes {
                    hard_link: Some(HardLink { device: 6, names: 2 }),
                    ..Default::default()
                },
            ),
        ),
        ("lost", name_of(missing_file(), 20, 2)),
        ("lost-too", name_of(missing_file(), 20, 2)),
    ]);
    let (snapshot, _) = snapshot(&mut repo, &[("/t", tree)]).await;
    let to = tempfile::tempdir().unwrap();
    let report = restore(&snapshot, to.path(), RestoreOptions::default())
        .await
        .unwrap();
    assert_eq!(report.problems.count, 2, "{:?}", report.problems);
    let at = |name: &str| to.path().join("t").join(name);
    for name in ["file", "longer", "link", "pipe", "device"] {
        assert_eq!(fs::symlink_metadata(at(name)).unwrap().nlink(), 1, "{name}");
    }
    assert_eq!(fs::read(at("longer")).unwrap(), b"another");
    assert!(!at("lost").exists() && !at("lost-too").exists());
}

/// Someone swaps what was made for links that lead out: nothing outside gets a further name.
#[tokio::test(flavor = "multi_thread")]
async fn no_name_is_given_to_what_the_restore_did_not_make() {
    let outside = tempfile::tempdir().unwrap();
    let precious = outside.path().join("precious");
    fs::write(&precious, "precious").unwrap();
    let dirs = (0..60_u64).map(|n| {
        let files = (0..8).map(|m: u64| (format!("f{m}").into_bytes(), name_of(file("mine"), m, 60)));
        (format!("d{n}").into_bytes(), Item::Dir(0o755, files.collect()))
    });
    let tree = Item::Dir(0o755, dirs.collect());
    let (snapshot, _) = snapshot(&mut Repo::new(), &[("/t", tree)]).await;
    let to = tempfile::tempdir().unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let swapper = {
        let (stop, root, precious) = (Arc::clone(&stop), to.path().join("t"), precious.clone());
        let outside = outside.path().to_path_buf();
        std::thread::spawn(move || {
            let mut swaps = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                for m in 0..8 {
                    let path = root.join(format!("d0/f{m}"));
                    if rustix::fs::unlink(&path).is_ok() {
                        swaps += 1;
                        let _ = symlink(&precious, &path);
                    }
                }
                let dir = root.join("d1");
                if rustix::fs::rename(&dir, root.join(format!("moved-{swaps}"))).is_ok() {
                    swaps += 1;
                    let _ = symlink(&outside, &dir);
                }
            }
            swaps
        })
    };
    for _ in 0..5 {
        let _ = restore(&snapshot, to.path(), in_place()).await.unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    assert!(swapper.join().unwrap() > 0, "nothing was swapped");
    let stat = fs::metadata(&precious).unwrap();
    assert_eq!((stat.nlink(), stat.len()), (1, 8));
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
}

#[tokio::test]
async fn flags_come_back_behind_everything_else() {
    use rustix::fs::IFlags;
    let flagged = |item, inode, flags: IFlags, names: u64| {
        let attributes = Attributes {
            hard_link: (names > 1).then_some(HardLink { device: 1, names }),
            flags: flags.bits(),
            ..Default::default()
        };
        more(item, inode, attributes)
    };
    let fixed = IFlags::IMMUTABLE;
    let tree = dir([
        ("append", flagged(file("a"), 1, IFlags::APPEND, 1)),
        ("immutable", flagged(file("b"), 2, fixed | IFlags::NODUMP, 1)),
        ("dir", flagged(dir([("inner", file("c"))]), 3, fixed, 1)),
        ("two-1", flagged(file("d"), 4, fixed, 2)),
        ("two-2", flagged(file("d"), 4, fixed, 2)),
        ("one-of-two", flagged(file("e"), 5, fixed, 2)),
        ("large", flagged(file(noise(3, 9 << 20)), 6, fixed, 1)),
        // Not for us to set: it says how a file system stores the file.
        (
            "other",
            flagged(file("f"), 7, IFlags::from_bits_retain(0x8000_0000), 1),
        ),
    ]);
    let (snapshot, _) = snapshot(&mut Repo::new(), &[("/t", tree.clone())]).await;
    let to = tempfile::tempdir().unwrap();
    let report = whole(&snapshot, to.path()).await;
    let root = to.path().join("t");
    let flags = |name: &str| {
        let file = fs::File::open(root.join(name)).unwrap();
        rustix::fs::ioctl_getflags(&file).map_or(IFlags::empty(), |flags| {
            flags & (IFlags::APPEND | IFlags::IMMUTABLE | IFlags::NODUMP)
        })
    };
    let names = [
        "append",
        "immutable",
        "dir",
        "two-1",
        "two-2",
        "one-of-two",
        "large",
        "other",
    ];
    let found = names.map(flags);
    // The directory could not be removed otherwise.
    for name in names {
        let file = fs::File::open(root.join(name)).unwrap();
        let _ = rustix::fs::ioctl_setflags(&file, IFlags::empty());
    }
    assert_same(&root, &tree);
    if report.attributes_left == 0 {
        let nodump = fixed | IFlags::NODUMP;
        assert_eq!(
            found,
            [
                IFlags::APPEND,
                nodump,
                fixed,
                fixed,
                fixed,
                fixed,
                fixed,
                IFlags::empty()
            ]
        );
    } else {
        assert!(!is_root() || found == [IFlags::empty(); 8], "{found:?}");
    }
}

#[tokio::test]
async fn blocks_of_zeros_of_sparse_files_are_holes() {
    let mut content = vec![0; 3 << 20];
    content[1_500_000..1_500_010].copy_from_slice(b"an island!");
    let mut repo = Repo::new();
    let sparse = |repo: &mut Repo, content: &[u8]| holdfast_repo::Entry {
        is_sparse: true,
        ..repo.entry(b"", &file(content))
    };
    let small = sparse(&mut repo, &content);
    let large: Vec<u8> = content.iter().copied().cycle().take(20 << 20).collect();
    let large = (sparse(&mut repo, &large), large);
    for (entry, content) in [(small, content), large] {
        let (snapshot_of, _) = snapshot(&mut repo, &[("/f", file(&content))]).await;
        let mut root = snapshot_of.root().clone();
        root.sealed.trees[0].entry = entry;
        let to = tempfile::tempdir().unwrap();
        whole(&snapshot_of.with_root(root), to.path()).await;
        let path = to.path().join("f");
        assert!(fs::read(&path).unwrap() == content);
        let stored = fs::metadata(&path).unwrap().blocks() * 512;
        assert!(
            stored <= 8 * 8192,
            "{stored} bytes are stored of {}",
            content.len()
        );
    }
}

#[tokio::test]
async fn a_list_that_cannot_be_set_gives_nobody_more_than_it_said() {
    // The group gets what the list gave it, not the most that anyone named in it got.
    let list = &LIST[..LIST.len() - 1];
    let tree = dir([(
        "file",
        with_xattrs(
            Item::File(0o660, b"x".to_vec()),
            1,
            &[("system.posix_acl_access", list)],
        ),
    )]);
    let (snapshot, _) = snapshot(&mut Repo::new(), &[("/t", tree)]).await;
    let to = tempfile::tempdir().unwrap();
    let report = restore(&snapshot, to.path(), RestoreOptions::default())
        .await
        .unwrap();
    // Not a list: the kernel refuses it, and that is said.
    assert_eq!(report.problems.count, 1, "{:?}", report.problems);
    assert!(
        report.problems.listed[0]
            .reason
            .contains("system.posix_acl_access")
    );
    let mode = fs::metadata(to.path().join("t/file"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o640);
}
