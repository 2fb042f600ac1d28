//! Every kind of file and everything about files goes in and comes back, compared by tools that share
//! nothing with the product: rsync, getfacl, getcap, getfattr, lsattr, find.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

use holdfast_integration::{
    harness::{Cluster, restored_root},
    seed,
};
use rustix::fs::{CWD, FileType, XattrFlags};
use std::{
    ffi::OsStr,
    fs::{self, File},
    os::unix::{
        ffi::OsStrExt as _,
        fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, lchown, symlink},
        net::UnixListener,
    },
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// What a tool says about a tree, run in it.
fn tool(dir: &Path, program: &str, args: &[&str]) -> String {
    let output = Command::new(program)
        .args(args)
        .current_dir(dir)
        .env("LC_ALL", "C")
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}; integration/run.sh installs it"));
    assert!(
        output.status.success(),
        "{program} {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Trees with immutable files in them; freed in the end, so that they can be removed.
struct Freed(Vec<PathBuf>);

impl Drop for Freed {
    fn drop(&mut self) {
        for path in &self.0 {
            let _ = Command::new("chattr")
                .args(["-R", "-f", "-i", "-a"])
                .arg(path)
                .status();
        }
    }
}

fn make_tree(root: &Path) {
    let at = |name: &str| root.join(name);
    for dir in ["dir", "dir/deep", "listed", "empty", "capable", "flagged"] {
        fs::create_dir_all(at(dir)).unwrap();
    }
    let mut rng = seed::Rng::new(7);
    for (name, len) in [("small", 100), ("middle", 300_000), ("dir/large", 11 << 20)] {
        let mut bytes = vec![0; len];
        rng.fill(&mut bytes);
        fs::write(at(name), &bytes).unwrap();
    }
    fs::write(root.join(OsStr::from_bytes(b"any \xff\n bytes")), b"odd").unwrap();
    fs::write(at("zeros"), vec![0; 200_000]).unwrap();
    // Sparse: small, large, and cut into segments of fixed length.
    for (name, len, islands) in [
        ("sparse-small", 1_u64 << 20, &[500_000_u64][..]),
        ("sparse-large", 90 << 20, &[0, 44 << 20, (90 << 20) - 9]),
        ("sparse.db", 70 << 20, &[100_000, 33_333_333]),
        ("hollow", 30 << 20, &[]),
    ] {
        let file = File::create(at(name)).unwrap();
        file.set_len(len).unwrap();
        if name.ends_with(".db") {
            file.write_all_at(b"SQLite format 3\0", 0).unwrap();
        }
        islands
            .iter()
            .for_each(|place| file.write_all_at(b"an island", *place).unwrap());
    }
    for (name, mode) in [("set-uid", 0o4755), ("set-gid", 0o2711), ("locked", 0o400)] {
        fs::write(at(name), name).unwrap();
        fs::set_permissions(at(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    fs::set_permissions(at("empty"), fs::Permissions::from_mode(0o3777)).unwrap();
    symlink("small", at("link")).unwrap();
    symlink("/nowhere\u{e4}", at("dangling")).unwrap();
    rustix::fs::mknodat(CWD, at("pipe"), FileType::Fifo, 0o620.into(), 0).unwrap();
    // Names of one file, in one directory and across several.
    for (file, name) in [
        ("small", "small-2"),
        ("small", "dir/deep/small-3"),
        ("dir/large", "aaa-large"),
        ("middle", "flagged/middle-2"),
        ("pipe", "dir/pipe-2"),
        ("sparse.db", "dir/sparse.db"),
    ] {
        fs::hard_link(at(file), at(name)).unwrap();
    }
    rustix::fs::linkat(
        CWD,
        at("link"),
        CWD,
        at("dir/link-2"),
        rustix::fs::AtFlags::empty(),
    )
    .unwrap();
    let set = |name: &str, xattr: &str, value: &[u8]| {
        rustix::fs::lsetxattr(at(name), xattr, value, XattrFlags::empty()).unwrap();
    };
    set("small", "user.comment", b"on three names");
    set("dir", "user.dir", b"\0\xffbinary");
    set("locked", "user.empty", b"");
    set("dir/large", "user.long", &[b'x'; 2500]);
    tool(root, "setfacl", &["-m", "u:7:rwx,g:8:r,m:rx", "middle"]);
    tool(root, "setfacl", &["-m", "u:7:rwx", "listed"]);
    tool(root, "setfacl", &["-d", "-m", "u:9:rx,g:8:-", "listed"]);
    fs::write(at("listed/inherits"), b"a list of its own").unwrap();
    fs::create_dir(at("listed/below")).unwrap();
    fs::write(at("listed/below/plain"), b"x").unwrap();
    tool(root, "setfacl", &["-b", "listed/below/plain"]);
    if is_root() {
        make_what_only_root_can(root);
    }
    for (name, time) in [
        ("middle", SystemTime::UNIX_EPOCH - Duration::new(86_400, 5)),
        (
            "set-uid",
            SystemTime::UNIX_EPOCH + Duration::new(4_102_444_800, 999_999_999),
        ),
        ("dir", SystemTime::UNIX_EPOCH + Duration::from_nanos(1)),
    ] {
        File::open(at(name)).unwrap().set_modified(time).unwrap();
    }
}

fn make_what_only_root_can(root: &Path) {
    let at = |name: &str| root.join(name);
    lchown(at("link"), Some(1), Some(2)).unwrap();
    lchown(at("zeros"), Some(12_345), Some(54_321)).unwrap();
    lchown(at("empty"), Some(3), Some(4)).unwrap();
    for (name, kind, device) in [
        ("char", FileType::CharacterDevice, rustix::fs::makedev(1, 3)),
        ("block", FileType::BlockDevice, rustix::fs::makedev(7, 200)),
    ] {
        rustix::fs::mknodat(CWD, at(name), kind, 0o604.into(), device).unwrap();
    }
    for name in ["link", "pipe", "char", "dir/deep"] {
        rustix::fs::lsetxattr(at(name), "trusted.holdfast", name.as_bytes(), XattrFlags::empty()).unwrap();
    }
    fs::write(at("capable/ping"), b"a program").unwrap();
    lchown(at("capable/ping"), Some(5), Some(6)).unwrap();
    tool(root, "setcap", &["cap_net_raw,cap_net_admin+ep", "capable/ping"]);
    tool(root, "setcap", &["cap_chown+i", "small"]);
    for (name, flags) in [
        ("flagged/append", "+a"),
        ("flagged/fixed", "+i"),
        ("flagged/undumped", "+dAS"),
        ("flagged/dir", "+iD"),
    ] {
        if flags.contains('D') {
            fs::create_dir(at(name)).unwrap();
            fs::write(at(name).join("inner"), b"inside of what cannot change").unwrap();
        } else {
            fs::write(at(name), name).unwrap();
        }
        tool(root, "chattr", &[flags, name]);
    }
    // A file of two names, which takes no third.
    fs::write(at("flagged/two"), b"two names").unwrap();
    fs::hard_link(at("flagged/two"), at("two")).unwrap();
    tool(root, "chattr", &["+i", "two"]);
}

/// Sockets are not backed up; links and devices have no flags.
const LISTS: &str = "find . ! -type s -print0 | sort -z | xargs -0 getfacl -P --numeric";
const FLAGS: &str = r"find . \( -type f -o -type d \) -print0 | sort -z | xargs -0 lsattr -d";

/// Panics unless two trees are the same to all tools.
fn assert_same(source: &Path, restored: &Path) {
    let from = format!("{}/", source.display());
    let to = format!("{}/", restored.display());
    let changes = tool(
        source,
        "rsync",
        &[
            "-aAXHn",
            "--checksum",
            "--itemize-changes",
            "--delete",
            "--exclude=/socket",
            &from,
            &to,
        ],
    );
    assert_eq!(changes, "", "rsync would change something");
    let look = |dir: &Path| {
        let sorted = |text: String| {
            let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
            lines.sort();
            lines
        };
        let all = "%P\\t%y\\t%m\\t%U:%G\\t%n\\t%T@\\t%l\\n";
        let mut said = vec![
            sorted(tool(
                dir,
                "find",
                &[".", "-mindepth", "1", "!", "-type", "s", "-printf", all],
            )),
            sorted(tool(dir, "find", &[".", "-type", "f", "-printf", "%P\\t%s\\n"])),
            vec![tool(dir, "sh", &["-c", LISTS])],
            sorted(tool(
                dir,
                "getfattr",
                &["-R", "-P", "-h", "-d", "-m", "-", "--absolute-names", "."],
            )),
        ];
        if is_root() {
            said.push(sorted(tool(dir, "getcap", &["-r", "."])));
            said.push(vec![tool(dir, "sh", &["-c", FLAGS])]);
        }
        said
    };
    for (one, other) in look(source).into_iter().zip(look(restored)) {
        assert!(!one.is_empty());
        assert_eq!(one, other);
    }
    for name in ["sparse-small", "sparse-large", "sparse.db", "hollow"] {
        let blocks = |root: &Path| fs::metadata(root.join(name)).unwrap().blocks();
        let (one, other) = (blocks(source), blocks(restored));
        assert!(other <= one + 16, "{name}: {other} blocks instead of {one}");
    }
}

#[test]
fn all_metadata_comes_back() {
    let mut cluster = Cluster::start();
    let root = cluster.dir().join("everything");
    let targets: Vec<_> = (1..=3)
        .map(|n| cluster.dir().join(format!("target-{n}")))
        .collect();
    let _freed = Freed([std::slice::from_ref(&root), &targets[..]].concat());
    fs::create_dir(&root).unwrap();
    make_tree(&root);
    let _socket = UnixListener::bind(root.join("socket")).unwrap();
    cluster.add_agent("host", &[&root]);
    cluster.apply_source("host/everything", &root);
    let restore = |cluster: &Cluster, to: &Path| {
        let output = cluster.restore("host/everything", to).ok();
        assert!(!output.stderr.contains("note:"), "{}", output.stderr);
        assert_same(&root, &restored_root(to, &root));
        assert!(!restored_root(to, &root).join("socket").exists());
    };
    let _ = cluster.backup("host/everything").ok();
    restore(&cluster, &targets[0]);

    // Nothing changed: nothing is read, and nothing gets lost.
    let _ = cluster.backup("host/everything").ok();
    let rows = cluster.ctl(["get", "snapshots", "-o", "json"]).ok().rows();
    assert!(rows.iter().any(|row| row["stats"]["bytes_read"] == 0), "{rows:?}");
    restore(&cluster, &targets[1]);

    // Changes that leave content and times of modification as they are.
    tool(&root, "setfacl", &["-x", "u:7", "middle"]);
    tool(&root, "setfattr", &["-x", "user.comment", "small"]);
    tool(&root, "setfattr", &["-n", "user.new", "-v", "new", "dir/deep"]);
    fs::hard_link(root.join("zeros"), root.join("dir/zeros-2")).unwrap();
    fs::remove_file(root.join("small-2")).unwrap();
    if is_root() {
        tool(&root, "chattr", &["-i", "flagged/fixed"]);
        tool(&root, "setcap", &["-r", "capable/ping"]);
    }
    let _ = cluster.backup("host/everything").ok();
    restore(&cluster, &targets[2]);
}

#[test]
fn a_file_of_terabytes_that_is_mostly_hole_comes_back() {
    const TIB: u64 = 1 << 40;
    let mut cluster = Cluster::start();
    let root = cluster.dir().join("huge");
    fs::create_dir(&root).unwrap();
    let path = root.join("file");
    let file = File::create(&path).unwrap();
    if file.set_len(3 * TIB).is_err() {
        eprintln!("this file system has no files of that length");
        return;
    }
    let islands = [0, TIB - 3, 2 * TIB + 12_345, 3 * TIB - 9];
    islands
        .iter()
        .for_each(|place| file.write_all_at(b"an island", *place).unwrap());
    cluster.add_agent("host", &[&root]);
    cluster.apply_source("host/huge", &root);
    let _ = cluster.backup("host/huge").ok();
    let to = cluster.dir().join("to");
    let _ = cluster.restore("host/huge", &to).ok();
    let back = File::open(restored_root(&to, &root).join("file")).unwrap();
    let stat = back.metadata().unwrap();
    assert_eq!(stat.len(), 3 * TIB);
    assert!(
        stat.blocks() <= file.metadata().unwrap().blocks() + 64,
        "{} blocks",
        stat.blocks()
    );
    for place in islands {
        let mut found = [1; 40];
        let len = back.read_at(&mut found, place).unwrap();
        let mut expected = [0; 40];
        expected[..9].copy_from_slice(b"an island");
        assert_eq!(found[..len], expected[..len]);
    }
}
