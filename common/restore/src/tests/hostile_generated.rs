//! Invariant 8 with generated snapshots and targets: whatever they hold, nothing outside of the target
//! changes, nothing hangs, and memory stays bounded. `HOLDFAST_SEED` repeats a run.

use crate::{RestoreOptions, Snapshot, StoreSource, restore, testing::*};
use holdfast_core::{ChunkId, SnapshotId, StoreId};
use holdfast_repo::{ChunkRef, Content, EntryKind, Extent, FileBuilder, Parts, Segment, Strategy};
use holdfast_store::DirStore;
use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt, symlink},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// Snapshots that are made and restored.
const CASES: u64 = 240;

struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn pick<'a, T: ?Sized>(&mut self, all: &[&'a T]) -> &'a T {
        all[self.below(all.len() as u64) as usize]
    }
}

fn seed() -> u64 {
    let seed = std::env::var("HOLDFAST_SEED")
        .ok()
        .and_then(|text| text.trim().parse().ok());
    let seed = seed.unwrap_or_else(|| {
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap();
        now.as_nanos() as u64 >> 8
    });
    eprintln!("hostile_generated: HOLDFAST_SEED={seed}");
    seed
}

fn lie(size: u64, content: Content) -> Item {
    Item::Raw(EntryKind::File {
        size,
        strategy: Strategy::Fixed,
        content,
    })
}

/// A file of these segments, whatever is wrong with them.
fn segmented(repo: &mut Repo, size: u64, segments: impl IntoIterator<Item = Segment>) -> Item {
    let keys = Arc::clone(&repo.keys);
    let mut builder = FileBuilder::default();
    for segment in segments {
        builder.push(&keys, segment).unwrap();
    }
    let (content, nodes) = builder.finish(&keys).unwrap();
    nodes.into_iter().for_each(|node| {
        repo.node(node);
    });
    lie(size, content)
}

fn parts(chunks: &[(ChunkId, u32, u32)], hash: ChunkId) -> Segment {
    let extents = chunks.iter().map(|(chunk, offset, len)| Extent {
        chunk: *chunk,
        offset: *offset,
        len: *len,
    });
    Segment::Parts(Parts {
        hash,
        extents: extents.collect(),
    })
}

/// One thing that is not what it should be.
fn hostile_item(repo: &mut Repo, rng: &mut Rng, outside: &Path, depth: u32) -> Item {
    let chunk = repo.chunk(&noise(rng.below(4) as u8, 5000));
    let wrong = ChunkId([rng.below(255) as u8; 32]);
    let up = |name: &str| outside.join(name).to_str().unwrap().to_owned();
    match rng.below(18) {
        0 => {
            let names: &[&[u8]] = &[
                b"..",
                b".",
                b"",
                b"/",
                b"a/b",
                b"../x",
                b"/etc/passwd",
                b"nul\0",
                b"../outside/planted",
            ];
            dir_of(repo.crafted(&[(rng.pick(names), Crafted::EmptyFile)]))
        }
        // The same name twice: a link and then something through it.
        1 => dir_of(repo.crafted(&[
            (b"x", Crafted::Link(up("").into_bytes())),
            (b"x", Crafted::EmptyFile),
        ])),
        2 => link(&up("precious")),
        3 => link(rng.pick(&[
            "..",
            "../..",
            "../../outside",
            "/",
            ".",
            "//",
            "../../../../../../tmp",
        ])),
        4 => Item::Raw(EntryKind::CharDevice { rdev: rng.next() }),
        5 => Item::Raw(EntryKind::BlockDevice {
            rdev: rng.below(1 << 20),
        }),
        6 => Item::Fifo(rng.below(0o10000) as u32),
        // Set-id programs, and modes that lock us out.
        7 => Item::File(rng.below(0o10000) as u32, b"#!/bin/sh\n".to_vec()),
        8 => Item::Dir(
            rng.below(0o10000) as u32,
            BTreeMap::from([(b"in".to_vec(), file("in"))]),
        ),
        // Lengths that are not those of the content.
        9 => {
            let len = 1 + rng.below(4 << 20) as u32;
            lie(len.into(), Content::Inline(vec![ChunkRef { len, ..chunk }]))
        }
        10 => lie(5000, Content::Inline(vec![ChunkRef { id: wrong, len: 5000 }])),
        11 => lie(
            rng.next() >> rng.below(60),
            Content::Node(rng.pick(&[&chunk.id, &wrong]).to_owned()),
        ),
        // Parts from outside of a chunk, with a wrong hash, of what is no data.
        12 => {
            let from = rng.below(4 << 20) as u32;
            let part = parts(&[(chunk.id, from.min(4_190_000), 4000)], chunk.id);
            segmented(repo, 4000, [part])
        }
        13 => {
            let part = parts(&[(chunk.id, 0, 100), (chunk.id, 50, 100)], wrong);
            segmented(repo, 200, [part])
        }
        14 => {
            let node = repo.crafted(&[(b"n", Crafted::EmptyFile)]);
            let part = parts(&[(node, 0, 10)], wrong);
            segmented(repo, 10, [part])
        }
        // Holes that no disk could hold.
        15 => {
            let len = 1 << (20 + rng.below(43));
            segmented(repo, len, [Segment::Hole(len)])
        }
        16 => {
            let holes = [
                Segment::Hole(1 << 62),
                Segment::Hole(1 << 62),
                Segment::Whole(chunk),
            ];
            segmented(repo, rng.next(), holes)
        }
        _ if depth > 0 => {
            let items = (0..rng.below(5)).map(|n| {
                let name = format!("i{n}").into_bytes();
                (name, hostile_item(repo, rng, outside, depth - 1))
            });
            Item::Dir(0o755, items.collect())
        }
        _ => link(&up("dir")),
    }
}

/// A target that is not what it should be either.
fn litter(root: &Path, rng: &mut Rng, outside: &Path) {
    fs::create_dir_all(root).unwrap();
    for n in 0..6 {
        let path = root.join(format!("i{n}"));
        let _ = match rng.below(8) {
            0 => symlink(outside, &path),
            1 => symlink(outside.join("precious"), &path),
            2 => fs::hard_link(outside.join("precious"), &path),
            3 => fs::create_dir_all(path.join("full/of")),
            4 => fs::write(&path, noise(n, 5000)),
            5 => symlink(&path, &path),
            6 => rustix::fs::mknodat(
                rustix::fs::CWD,
                &path,
                rustix::fs::FileType::Fifo,
                0o600.into(),
                0,
            )
            .map_err(Into::into),
            _ => Ok(()),
        };
    }
}

/// Path, inode, type, length, times and content of everything.
fn picture(root: &Path) -> Vec<(std::path::PathBuf, u64, u64, i64, i64, Vec<u8>)> {
    let mut all = Vec::new();
    let mut stack = vec![root.to_path_buf()];
    while let Some(path) = stack.pop() {
        let stat = fs::symlink_metadata(&path).unwrap();
        let content = if stat.is_file() {
            fs::read(&path).unwrap()
        } else {
            Vec::new()
        };
        if stat.is_dir() {
            stack.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        // Not ctime: a hard link to it moves that, and its end too.
        all.push((
            path,
            stat.ino(),
            stat.mode().into(),
            stat.mtime(),
            stat.mtime_nsec(),
            content,
        ));
    }
    all.sort();
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_outside_changes_whatever_a_snapshot_holds() {
    let seed = seed();
    let above = tempfile::tempdir().unwrap();
    let outside = above.path().join("outside");
    fs::create_dir_all(outside.join("dir")).unwrap();
    fs::write(outside.join("precious"), "precious").unwrap();
    fs::write(outside.join("dir/inner"), "precious").unwrap();
    let before = picture(&outside);
    let (mut restored, mut refused) = (0, 0);
    for case in 0..CASES {
        let mut rng = Rng(seed.wrapping_add(case));
        let mut repo = Repo::new();
        let items = (0..6).map(|n| {
            let name = format!("i{n}").into_bytes();
            (name, hostile_item(&mut repo, &mut rng, &outside, 2))
        });
        let tree = Item::Dir(0o755, items.collect());
        let trees: Vec<(&str, Item)> = match rng.below(4) {
            // Trees that meet, below what may be a link of the first.
            0 => vec![
                ("/t", tree),
                ("/t/i0", dir([("planted", file("planted"))])),
                ("/t/i1/dir", dir([])),
            ],
            1 => vec![("/", dir([("t", tree)]))],
            _ => vec![("/t", tree)],
        };
        let (snapshot, _store) = snapshot(&mut repo, &trees).await;
        let to = above.path().join("to");
        let in_place = rng.below(3) > 0;
        if in_place {
            litter(&to.join("t"), &mut rng, &outside);
        }
        let stop = Arc::new(AtomicBool::new(false));
        let swapper = (in_place && rng.below(3) == 0).then(|| swap(&to.join("t"), &outside, &stop));
        for _ in 0..if in_place { 2 } else { 1 } {
            let options = RestoreOptions {
                in_place,
                delete: in_place && rng.below(2) == 0,
                ..Default::default()
            };
            match restore(&snapshot, &to, options).await {
                Ok(report) => {
                    restored += report.files;
                    refused += report.problems.count;
                }
                // What ends a restore must say why; a disk that is full would be one that was filled.
                Err(error) => assert!(!error.to_string().contains("No space"), "case {case}: {error}"),
            }
        }
        stop.store(true, Ordering::Relaxed);
        swapper.into_iter().for_each(|swapper| swapper.join().unwrap());
        assert_eq!(
            before,
            picture(&outside),
            "case {case} of seed {seed} wrote outside"
        );
        let names: Vec<_> = fs::read_dir(above.path())
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(names.len(), 2, "case {case} of seed {seed}: {names:?}");
        remove(&to);
    }
    eprintln!("{CASES} hostile snapshots: {restored} files restored, {refused} things refused");
    assert!(restored > 0 && refused > 0);
}

/// Exchanges directories of the target for links that lead out, again and again.
fn swap(root: &Path, outside: &Path, stop: &Arc<AtomicBool>) -> std::thread::JoinHandle<()> {
    let (root, outside, stop) = (root.to_path_buf(), outside.to_path_buf(), Arc::clone(stop));
    std::thread::spawn(move || {
        let mut n = 0_u64;
        while !stop.load(Ordering::Relaxed) {
            for i in 0..6 {
                let path = root.join(format!("i{i}"));
                n += 1;
                if rustix::fs::rename(&path, root.join(format!("moved{i}"))).is_ok() {
                    let to = if n.is_multiple_of(2) {
                        outside.clone()
                    } else {
                        outside.join("precious")
                    };
                    let _ = symlink(to, &path);
                }
            }
        }
    })
}

/// Removes a target, whatever modes its directories have.
fn remove(root: &Path) {
    let mut stack = vec![root.to_path_buf()];
    while let Some(path) = stack.pop() {
        if fs::symlink_metadata(&path).is_ok_and(|stat| stat.is_dir()) {
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
            let _ = fs::set_permissions(&path, mode);
            stack.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    if root.exists() {
        fs::remove_dir_all(root).unwrap();
    }
}

#[tokio::test]
async fn a_device_or_pipe_in_the_way_is_not_opened() {
    let content = noise(1, 9 << 20);
    let tree = dir([("small", file("x")), ("large", file(content))]);
    let (snapshot, _) = snapshot(&mut Repo::new(), &[("/t", tree.clone())]).await;
    let to = tempfile::tempdir().unwrap();
    fs::create_dir(to.path().join("t")).unwrap();
    for name in ["small", "large"] {
        let path = to.path().join("t").join(name);
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            0o600.into(),
            0,
        )
        .unwrap();
        assert!(fs::symlink_metadata(&path).unwrap().file_type().is_fifo());
    }
    let options = RestoreOptions {
        in_place: true,
        ..Default::default()
    };
    let report = restore(&snapshot, to.path(), options).await.unwrap();
    assert_eq!(report.problems.listed, []);
    assert_same(&to.path().join("t"), &tree);
}

/// What a restore may take beyond the test's own needs: content in flight, caches, and blobs of a fetch.
const MEMORY_MAX: u64 = 320 << 20;

/// Where [`bombs_made`] and [`bombs_restored`] work.
const BOMBS_DIR: &str = "HOLDFAST_TEST_BOMBS";

/// In processes of their own, where nothing else takes memory.
#[test]
fn bombs_take_bounded_memory() {
    let dir = tempfile::tempdir().unwrap();
    let run = |test: &str| {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "--nocapture"])
            .arg(format!("tests::hostile_generated::{test}"))
            .env(BOMBS_DIR, dir.path())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{text}");
        text
    };
    run("bombs_made");
    let text = run("bombs_restored");
    let took = text.lines().find_map(|line| line.strip_prefix("bombs took "));
    let took: u64 = took.unwrap().trim().parse().unwrap();
    eprintln!("bombs took {} MiB", took >> 20);
    assert!(took < MEMORY_MAX, "{took} bytes");
}

fn bombs_dir() -> std::path::PathBuf {
    std::env::var_os(BOMBS_DIR).expect("run by another test").into()
}

fn status(key: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(key)).unwrap();
    let kib: u64 = line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap();
    kib << 10
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by bombs_take_bounded_memory"]
async fn bombs_made() {
    let mut repo = Repo::new();
    let len = 1 << 20;
    let chunks: Vec<ChunkRef> = (0..200).map(|n| repo.chunk(&noise(n, len))).collect();
    // 2000 segments, each of 64 different chunks, of which few are in the cache when they are needed.
    let many = (0..2000).map(|n| {
        let of = |k: usize| chunks[(n * 7 + k * 3) % chunks.len()].id;
        let all: Vec<_> = (0..64).map(|k| (of(k), (n % 100) as u32, 16)).collect();
        let content: Vec<u8> = (0..64_usize)
            .flat_map(|k| noise(((n * 7 + k * 3) % chunks.len()) as u8, 128)[n % 100..][..16].to_vec())
            .collect();
        parts(&all, repo.keys.data_id(&content))
    });
    // As many as take a second, each of them fetched anew.
    let many: Vec<Segment> = many.take(60).collect();
    let size = many.len() as u64 * 64 * 16;
    let right = segmented(&mut repo, size, many);
    // Chunks said to be of one byte, which are a million.
    let short = (0..2000).map(|n| {
        Segment::Whole(ChunkRef {
            len: 1,
            ..chunks[n % chunks.len()]
        })
    });
    let short = segmented(&mut repo, 2000, short);
    // 64 chunks in each of 2000 segments with a wrong hash.
    let wrong = (0..2000).map(|n: usize| {
        let all: Vec<_> = (0..64)
            .map(|k| (chunks[(n + k * 3) % chunks.len()].id, 0, 1))
            .collect();
        parts(&all, ChunkId([n as u8; 32]))
    });
    let wrong = segmented(&mut repo, 2000 * 64, wrong);
    // Links of a node to itself cannot be made; very many entries can.
    let tiny = (0..20_000).map(|n| (format!("{n}").into_bytes(), file("")));
    let tree = dir([
        ("right", right),
        ("short", short),
        ("wrong", wrong),
        ("tiny", Item::Dir(0o755, tiny.collect())),
    ]);
    let root = repo.root(SnapshotId([3; 16]), &[("/t", tree)]);
    let store = DirStore::create(&bombs_dir().join("store"), StoreId([1; 16])).unwrap();
    repo.put_packs(&store).await;
    fs::write(bombs_dir().join("root"), root).unwrap();
    fs::write(bombs_dir().join("size"), size.to_string()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by bombs_take_bounded_memory"]
async fn bombs_restored() {
    let dir = bombs_dir();
    let store = DirStore::open(&dir.join("store")).unwrap();
    let source = StoreSource::open(Arc::new(store), VAULT).await.unwrap();
    let root = fs::read(dir.join("root")).unwrap();
    let snapshot = Snapshot::open(&root, Arc::new(source), Repo::new().keys).unwrap();
    let to = dir.join("to");
    let report = restore(&snapshot, &to, RestoreOptions::default()).await.unwrap();
    eprintln!("bombs took {}", status("VmHWM:"));
    assert_eq!(report.problems.count, 2, "{:?}", report.problems);
    let size: u64 = fs::read_to_string(dir.join("size")).unwrap().parse().unwrap();
    assert_eq!(fs::metadata(to.join("t/right")).unwrap().len(), size);
    assert!(!to.join("t/wrong").exists() && !to.join("t/short").exists());
}
