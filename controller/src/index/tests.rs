//! Tests of the index on a real database.

use super::*;
use holdfast_core::{ErrorKind, HasKind};
use tempfile::TempDir;

const VAULT: VaultId = VaultId([1; 16]);
const OTHER: VaultId = VaultId([2; 16]);

fn id(n: u64) -> ChunkId {
    ChunkId(*blake3::hash(&n.to_le_bytes()).as_bytes())
}

fn pack(n: u8, vault: VaultId, ids: std::ops::Range<u64>) -> IndexedPack {
    let blobs = ids
        .enumerate()
        .map(|(i, n)| (id(n), i as u32 * 100, 100))
        .collect();
    IndexedPack {
        id: PackId([n; 32]),
        vault,
        blobs,
    }
}

fn open(dir: &TempDir) -> ChunkIndex {
    ChunkIndex::open(&dir.path().join("index"), IndexOptions { cache_bytes: 8 << 20 }).unwrap()
}

fn known(index: &ChunkIndex, vault: VaultId, ids: std::ops::Range<u64>) -> usize {
    let ids: Vec<_> = ids.map(id).collect();
    index
        .contains(vault, &ids)
        .unwrap()
        .into_iter()
        .filter(|known| *known)
        .count()
}

#[test]
fn finds_what_was_added_and_nothing_else_after_reopening_too() {
    let dir = tempfile::tempdir().unwrap();
    let index = open(&dir);
    index
        .add(&[pack(1, VAULT, 0..1000), pack(2, OTHER, 500..600)])
        .unwrap();
    for _ in 0..2 {
        let index = open_again(&dir, &index);
        assert_eq!(known(&index, VAULT, 0..2000), 1000);
        assert_eq!(
            known(&index, OTHER, 0..2000),
            100,
            "vaults do not see each other's chunks"
        );
        assert_eq!(known(&index, VaultId([9; 16]), 0..10), 0);
        let places = index.locate(VAULT, &[id(7), id(5000)]).unwrap();
        assert_eq!(
            places,
            [
                vec![Location {
                    pack: PackId([1; 32]),
                    offset: 700,
                    len: 100
                }],
                vec![]
            ]
        );
        assert_eq!(index.pack_count(), 2);
    }
}

/// The first index cannot be open beside the second; this closes it by replacing its database.
fn open_again(dir: &TempDir, index: &ChunkIndex) -> ChunkIndex {
    index.database.write().take();
    open(dir)
}

#[test]
fn keeps_all_places_oldest_first() {
    let dir = tempfile::tempdir().unwrap();
    let index = open(&dir);
    for n in [5, 3, 4] {
        index.add(&[pack(n, VAULT, 0..3)]).unwrap();
    }
    let packs: Vec<u8> = index.locate(VAULT, &[id(1)]).unwrap()[0]
        .iter()
        .map(|l| l.pack.0[0])
        .collect();
    assert_eq!(packs, [5, 3, 4]);
}

#[test]
fn one_pack_may_hold_a_chunk_twice_and_is_added_once() {
    let dir = tempfile::tempdir().unwrap();
    let index = open(&dir);
    let mut twice = pack(1, VAULT, 0..2);
    twice.blobs.push((id(0), 900, 50));
    index.add(&[twice.clone(), twice.clone()]).unwrap();
    index.add(&[twice]).unwrap();
    let places = index.locate(VAULT, &[id(0)]).unwrap();
    assert_eq!(places[0].iter().map(|l| l.offset).collect::<Vec<_>>(), [0, 900]);
    assert_eq!(index.pack_count(), 1);
}

#[test]
fn removed_packs_answer_nothing_before_and_after_the_sweep() {
    let dir = tempfile::tempdir().unwrap();
    let index = open(&dir);
    index
        .add(&[pack(1, VAULT, 0..10_000), pack(2, VAULT, 5_000..15_000)])
        .unwrap();
    index.remove(&[PackId([1; 32]), PackId([77; 32])]).unwrap();
    assert_eq!((known(&index, VAULT, 0..20_000), index.pack_count()), (10_000, 1));
    assert!(index.needs_sweep().unwrap() && !index.has_pack(PackId([1; 32])).unwrap());
    assert_eq!(index.sweep().unwrap(), 10_000);
    assert_eq!(index.sweep().unwrap(), 0);
    assert!(!index.needs_sweep().unwrap());
    assert_eq!(known(&index, VAULT, 0..20_000), 10_000);
    let index = open_again(&dir, &index);
    assert_eq!(known(&index, VAULT, 0..20_000), 10_000);
    // A number is not given out again: rows of the old pack must not come back to life.
    index.add(&[pack(3, VAULT, 20_000..20_001)]).unwrap();
    assert_eq!(known(&index, VAULT, 0..5_000), 0);
}

#[test]
fn packs_are_listed_by_pages() {
    let dir = tempfile::tempdir().unwrap();
    let index = open(&dir);
    index
        .add(&(0..10).map(|n| pack(n, VAULT, 0..1)).collect::<Vec<_>>())
        .unwrap();
    let first = index.packs(None, 7).unwrap();
    let rest = index.packs(first.last().copied(), 7).unwrap();
    assert_eq!((first.len(), rest.len(), rest[2]), (7, 3, PackId([9; 32])));
}

#[test]
fn a_damaged_database_is_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    let index = open(&dir);
    index.add(&[pack(1, VAULT, 0..1000)]).unwrap();
    drop(index);
    for entry in walk(&dir.path().join("index")) {
        let bytes = std::fs::read(&entry).unwrap();
        std::fs::write(&entry, bytes.iter().map(|b| !b).collect::<Vec<_>>()).unwrap();
    }
    let index = open(&dir);
    assert_eq!((index.pack_count(), known(&index, VAULT, 0..10)), (0, 0));
    assert!(dir.path().join("index.damaged").is_dir());
    index.add(&[pack(1, VAULT, 0..10)]).unwrap();
    assert_eq!(known(&index, VAULT, 0..10), 10);
}

#[test]
fn damage_that_is_met_while_running_leads_to_a_rebuild() {
    let dir = tempfile::tempdir().unwrap();
    let index = open(&dir);
    index.add(&[pack(1, VAULT, 0..10)]).unwrap();
    let key = rows::key(0, &id(0));
    index
        .writing(|database| {
            let mut batch = database.batch();
            batch.put_row(&key, b"odd");
            batch.commit()
        })
        .unwrap();
    assert_eq!(
        index.contains(VAULT, &[id(0)]).unwrap_err().kind(),
        ErrorKind::Corrupt
    );
    drop(index);
    assert_eq!(
        open(&dir).pack_count(),
        0,
        "it is empty, to be filled from the packs"
    );
}

#[test]
fn numbers_that_were_never_given_out_are_damage() {
    let dir = tempfile::tempdir().unwrap();
    let index = open(&dir);
    index.add(&[pack(1, VAULT, 0..10)]).unwrap();
    index
        .writing(|database| {
            let mut batch = database.batch();
            // It would take half a gigabyte of memory to remember that this one counts.
            batch.put_pack(PackId([9; 32]), u32::MAX);
            batch.commit()
        })
        .unwrap();
    drop(index);
    let index = open(&dir);
    assert_eq!(index.pack_count(), 0, "it is empty, to be filled from the packs");
    index.add(&[pack(1, VAULT, 0..10)]).unwrap();
    index
        .writing(|database| {
            let mut batch = database.batch();
            batch.put_next_vault(u32::MAX);
            batch.commit()
        })
        .unwrap();
    let error = index.add(&[pack(2, OTHER, 0..10)]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert_eq!(
        known(&index, OTHER, 0..10),
        0,
        "another vault's number is not taken"
    );
}

#[test]
fn a_failed_write_does_not_need_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let index = open(&dir);
    index.add(&[pack(1, VAULT, 0..10)]).unwrap();
    let full = || {
        Error::io(
            "write",
            dir.path(),
            std::io::Error::from(std::io::ErrorKind::StorageFull),
        )
    };
    let error = index.writing(|_| -> Result<()> { Err(full()) }).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    index.add(&[pack(2, VAULT, 10..20)]).unwrap();
    assert_eq!(known(&index, VAULT, 0..30), 20);
}

/// What a power cut may leave of files that nobody synced. The start may lose packs, which are then indexed again;
/// it must not say that it has a pack of which chunks are gone.
#[test]
fn a_lost_or_cut_file_never_leaves_a_pack_without_its_chunks() {
    let dir = tempfile::tempdir().unwrap();
    let index = open(&dir);
    for n in 0..40_u8 {
        index
            .add(&[pack(n, VAULT, u64::from(n) * 1000..u64::from(n) * 1000 + 500)])
            .unwrap();
        if n % 16 == 15 {
            index.reopen().unwrap();
        }
    }
    drop(index);
    let home = dir.path().join("index");
    let good = dir.path().join("good");
    crate::raft::files::rename_durably(&home, &good).unwrap();
    let files = walk(&good);
    assert!(files.len() > 5, "{files:?}");
    for file in &files {
        let len = usize::try_from(file.metadata().unwrap().len()).unwrap();
        for keep in [None, Some(0), Some(len / 2), Some(len.saturating_sub(1))] {
            copy(&good, &home);
            let victim = home.join(file.strip_prefix(&good).unwrap());
            match keep {
                None => std::fs::remove_file(&victim).unwrap(),
                Some(keep) => std::fs::File::options()
                    .write(true)
                    .open(&victim)
                    .unwrap()
                    .set_len(keep as u64)
                    .unwrap(),
            }
            let index = open(&dir);
            for n in 0..40_u8 {
                let ids: Vec<_> = (u64::from(n) * 1000..u64::from(n) * 1000 + 500).map(id).collect();
                let found = index
                    .has_pack(PackId([n; 32]))
                    .and_then(|has| Ok((has, index.contains(VAULT, &ids)?)));
                match found {
                    Ok((true, known)) => {
                        let lost = known.iter().filter(|known| !**known).count();
                        assert_eq!(lost, 0, "{} cut to {keep:?}: pack {n}", victim.display());
                    }
                    Ok((false, _)) => {}
                    Err(error) => assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}"),
                }
            }
        }
    }
}

fn copy(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    let _ = std::fs::remove_dir_all(to.with_extension("damaged"));
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn walk(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(walk(&path));
        } else {
            files.push(path);
        }
    }
    files
}
