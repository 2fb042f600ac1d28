//! A spool on a real directory: what goes in comes out, whatever happens to the disk is seen, and it stays within its limit.

use super::*;
use holdfast_core::{HasKind as _, VaultId};
use holdfast_postgres::{SegmentSize, WalFile};
use holdfast_repo::PackDirectory;
use std::io::Read as _;

const SYSTEM: u64 = 77;

struct World {
    dir: tempfile::TempDir,
    sealing: Sealing,
}

impl World {
    fn new() -> Self {
        let keys = VaultKeys::from_secrets(VaultId([1; 16]), [2; 32], [3; 32]);
        Self {
            dir: tempfile::tempdir().unwrap(),
            sealing: Sealing {
                keys: Arc::new(keys),
                level: 1,
                workers: 2,
            },
        }
    }

    fn spool(&self, limit: u64) -> Spool {
        Spool::open(
            &self.dir.path().join("spool"),
            Arc::clone(&self.sealing.keys),
            limit,
        )
        .unwrap()
    }

    /// A file of the server's of that name, with a content that no compressor shortens.
    fn file(&self, name: &str, len: usize, seed: u8) -> Candidate {
        let path = self.dir.path().join(name);
        let mut bytes = Vec::with_capacity(len + 32);
        let mut last = [seed; 32];
        while bytes.len() < len {
            last = *self.sealing.keys.data_id(&last).as_bytes();
            bytes.extend_from_slice(&last);
        }
        bytes.truncate(len);
        fs::write(&path, &bytes).unwrap();
        let size = SegmentSize::new(16 << 20).unwrap();
        Candidate::of(WalFile::parse(name, size).unwrap(), &path)
    }

    fn original(&self, name: &str) -> Vec<u8> {
        fs::read(self.dir.path().join(name)).unwrap()
    }
}

fn out(spool: &Spool, name: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    spool.copy_out(name, 0)?.read_to_end(&mut bytes).unwrap();
    Ok(bytes)
}

const ONE: &str = "000000010000000000000001";
const TWO: &str = "000000010000000000000002";
const NEXT: &str = "000000020000000000000002";
const HISTORY: &str = "00000002.history";

#[test]
fn what_goes_in_comes_out_in_order_also_after_a_restart() {
    let world = World::new();
    let spool = world.spool(1 << 30);
    for (name, len) in [(TWO, 3 << 20), (NEXT, 5), (HISTORY, 40), (ONE, 16 << 20)] {
        spool
            .put(&world.sealing, &world.file(name, len, 1), SYSTEM)
            .unwrap();
    }
    let order = |spool: &Spool| -> Vec<String> {
        let files = spool.first(10, u64::MAX);
        files.into_iter().map(|(name, _)| name).collect()
    };
    assert_eq!(order(&spool), [ONE, TWO, HISTORY, NEXT]);
    assert_eq!(spool.first(10, 17 << 20).len(), 1);
    assert_eq!(spool.first(10, 19 << 20).len(), 2);
    let fill = spool.fill();
    drop(spool);

    fs::write(
        world.dir.path().join("spool").join(format!("{ONE}{UNFINISHED}")),
        b"half",
    )
    .unwrap();
    let spool = world.spool(1 << 30);
    assert_eq!(order(&spool), [ONE, TWO, HISTORY, NEXT]);
    let again = spool.fill();
    assert_eq!((again.files, again.bytes), (fill.files, fill.bytes));
    for name in [ONE, TWO, HISTORY, NEXT] {
        assert!(out(&spool, name).unwrap() == world.original(name), "{name}");
        let (spooled, held) = (spool.read(name).unwrap(), spool.held(name).unwrap());
        assert_eq!(spooled.note.system_id, SYSTEM);
        let sealed = spooled.sealed().unwrap();
        assert_eq!(Some(sealed.content), held.content);
        let own = world
            .sealing
            .content(&world.file(name, held.len as usize, 1))
            .unwrap();
        assert_eq!(sealed.content, own);
        for at in 0..spooled.packs() {
            let (id, bytes) = spooled.pack(at).unwrap();
            let (other, anew) = spooled.pack_anew(at).unwrap();
            assert_ne!(id, other);
            let vault = world.sealing.keys.vault();
            let ids = |bytes: &[u8], id| -> Vec<_> {
                let entries = PackDirectory::verify(bytes, id, vault).unwrap().entries;
                entries.iter().map(|entry| entry.id).collect()
            };
            let (before, after) = (ids(&bytes, id), ids(&anew, other));
            assert_eq!(before[..], after[..before.len()]);
        }
        spool.remove(name, held.generation).unwrap();
        assert_eq!(spool.copy_out(name, 0).unwrap_err().kind(), ErrorKind::NotFound);
    }
    assert!(spool.is_empty());
    assert_eq!(spool.fill().bytes, 0);
}

#[test]
fn it_never_grows_beyond_its_limit() {
    let world = World::new();
    let spool = world.spool(3 << 20);
    let mut kept = 0;
    let refused = loop {
        let name = format!("0000000100000000000000{:02X}", kept + 1);
        match spool.put(&world.sealing, &world.file(&name, 1 << 20, kept), SYSTEM) {
            Ok(()) => kept += 1,
            Err(error) => break error,
        }
        assert!(spool.fill().bytes <= 3 << 20);
    };
    assert_eq!((kept, refused.kind()), (2, ErrorKind::NoSpace));
    assert!(spool.could_take(1 << 20) && !spool.could_take(3 << 20));
    // What lies aside takes room as well.
    let (name, held) = spool.first(1, 0).pop().unwrap();
    spool.set_aside(&name, held.generation).unwrap();
    let fill = spool.fill();
    assert_eq!((fill.files, fill.aside), (1, 1));
    assert!(!spool.is_empty() && !spool.is_drained());
    let third = world.file(NEXT, 1 << 20, 9);
    assert_eq!(
        spool.put(&world.sealing, &third, SYSTEM).unwrap_err().kind(),
        ErrorKind::NoSpace
    );
    // Somebody took it away.
    for (_, path, _) in listed(&spool.dir().join(ASIDE)).unwrap() {
        fs::remove_file(path).unwrap();
    }
    spool.look_aside().unwrap();
    assert_eq!(spool.fill().aside, 0);
    spool.put(&world.sealing, &third, SYSTEM).unwrap();
}

#[test]
fn a_later_file_of_the_name_is_not_removed_for_an_earlier_one() {
    let world = World::new();
    let spool = world.spool(1 << 30);
    spool
        .put(&world.sealing, &world.file(ONE, 100, 1), SYSTEM)
        .unwrap();
    let first = spool.held(ONE).unwrap().generation;
    spool
        .put(&world.sealing, &world.file(ONE, 200, 2), SYSTEM)
        .unwrap();
    spool.remove(ONE, first).unwrap();
    assert_eq!(out(&spool, ONE).unwrap().len(), 200);
}

#[test]
fn a_changed_byte_is_always_seen() {
    let world = World::new();
    let spool = world.spool(1 << 30);
    spool
        .put(&world.sealing, &world.file(ONE, 3 << 20, 1), SYSTEM)
        .unwrap();
    let path = spool.dir().join(ONE);
    let good = fs::read(&path).unwrap();
    let len = good.len();
    // Everywhere in the last kilobyte, where the ends of everything are, and here and there before it.
    let near_end = len - 1024..len;
    let before = (0..len - 1024).step_by(50_021);
    for at in before.chain(near_end) {
        let mut bad = good.clone();
        bad[at] ^= 4;
        fs::write(&path, &bad).unwrap();
        let sent = spool.read(ONE).and_then(|spooled| {
            spooled.sealed()?;
            (0..spooled.packs()).try_for_each(|pack| spooled.pack(pack).map(|_| ()))
        });
        assert_eq!(sent.unwrap_err().kind(), ErrorKind::Corrupt, "byte {at}");
        if let Ok(bytes) = out(&spool, ONE) {
            assert!(bytes == world.original(ONE), "byte {at}");
        }
    }
    for cut in [0, 1, len / 2, len - 1] {
        fs::write(&path, &good[..cut]).unwrap();
        assert_eq!(
            spool.read(ONE).err().map(|e| e.kind()),
            Some(ErrorKind::Corrupt),
            "{cut}"
        );
    }
    drop(spool);
    // A restart finds it as well, and keeps it.
    let spool = world.spool(1 << 30);
    assert!(spool.held(ONE).unwrap().is_damaged);
    // A file under another's name is not that other.
    fs::write(&path, &good).unwrap();
    fs::copy(&path, spool.dir().join(TWO)).unwrap();
    assert_eq!(spool.read(TWO).err().map(|e| e.kind()), Some(ErrorKind::Corrupt));
}

fn several(world: &World, len: usize) -> Vec<Candidate> {
    let name = |number| format!("0000000100000000000000{number:02X}");
    let file = |number| world.file(&name(number), len, number);
    (1..=8).map(file).collect()
}

fn left(spool: &Spool) -> usize {
    let names = listed(spool.dir()).unwrap();
    names
        .iter()
        .filter(|(name, _, _)| name.ends_with(UNFINISHED))
        .count()
}

#[test]
fn of_several_files_one_is_there_only_with_all_before_it() {
    let world = World::new();
    for bad in [0, 4, 7] {
        let spool = world.spool(1 << 30);
        let files = several(&world, 1 << 20);
        let name = files[bad].name.to_string();
        // The server wrote to it since it was opened.
        fs::write(world.dir.path().join(&name), b"other").unwrap();
        let (taken, failed) = spool.put_all(&world.sealing, &files, SYSTEM, &|| false);
        assert_eq!(taken, bad);
        assert!(failed.is_some());
        assert_eq!((spool.fill().files, left(&spool)), (bad as u64, 0));
        let (taken, failed) =
            spool.put_all(&world.sealing, &several(&world, 1 << 20)[bad..], SYSTEM, &|| {
                false
            });
        assert_eq!((taken, failed.is_none()), (8 - bad, true));
        for file in files {
            let name = file.name.to_string();
            assert!(out(&spool, &name).unwrap() == world.original(&name), "{name}");
        }
        assert_eq!(spool.fill().files, 8);
        let spool = world.spool(1 << 30);
        for (name, held) in spool.first(8, u64::MAX) {
            spool.remove(&name, held.generation).unwrap();
        }
    }
}

#[test]
fn several_files_stay_within_the_limit_and_stop_when_told() {
    let world = World::new();
    let spool = world.spool(5 << 20);
    let (taken, failed) = spool.put_all(&world.sealing, &several(&world, 1 << 20), SYSTEM, &|| false);
    assert!(spool.fill().bytes <= 5 << 20);
    assert_eq!(failed.unwrap().kind(), ErrorKind::NoSpace);
    assert!((2..=4).contains(&taken), "{taken}");
    assert_eq!((spool.fill().files, left(&spool)), (taken as u64, 0));

    let other = World::new();
    let spool = other.spool(1 << 30);
    let asked = std::sync::atomic::AtomicUsize::new(0);
    let is_over = || asked.fetch_add(1, Ordering::Relaxed) >= 3;
    let (taken, failed) = spool.put_all(&other.sealing, &several(&other, 1 << 20), SYSTEM, &is_over);
    assert_eq!((taken, failed.is_none(), left(&spool)), (3, true, 0));
}

#[test]
fn after_a_failed_sync_nothing_is_taken_in() {
    let world = World::new();
    let spool = world.spool(1 << 30);
    let failed = AgentError::io("sync", spool.dir())(std::io::Error::other("the disk is gone"));
    assert!(spool.synced::<()>(Err(failed)).is_err());
    let (taken, refused) = spool.put_all(&world.sealing, &several(&world, 1 << 20), SYSTEM, &|| false);
    assert_eq!((taken, refused.unwrap().kind()), (0, ErrorKind::NoSpace));
    assert_eq!((spool.fill().files, left(&spool)), (0, 0));
    assert!(!spool.could_take(1));
}
