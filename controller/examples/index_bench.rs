//! Measures the chunk index as it is shipped, and the two databases it was chosen from: rebuild, look-ups after
//! reopening, memory, disk.
//!
//! `index_bench index|redb|fjall build|lookup DIR [CACHE_MIB] [THREADS]`; `build` and `lookup` are separate
//! processes so that the second one opens a database whose memory is cold. `index` is the index itself, with
//! its list of packs, and its own cache unless one is given; the others are bare databases.

use holdfast_controller::index::{ChunkIndex, IndexOptions, IndexedPack};
use holdfast_core::{ChunkId, PackId, VaultId};

use std::{
    error::Error,
    path::Path,
    time::{Duration, Instant},
};

const IDS: u64 = 10_000_000;
const IDS_PER_PACK: u64 = 1_000;
const PACKS_PER_BATCH: u64 = 100;
const QUERY: usize = 1_024;
/// Of the bare databases.
const CACHE_MIB: usize = 128;
const RUN_FOR: Duration = Duration::from_secs(6);
const VAULT: VaultId = VaultId([1; 16]);
const CHUNKS: redb::TableDefinition<&[u8; 36], &[u8]> = redb::TableDefinition::new("chunks");

/// Looks up sorted keys and counts the hits.
type LookUp = Box<dyn Fn(&[[u8; 36]]) -> Fallible<usize> + Send + Sync>;
type Fallible<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// A bijective mixer (splitmix64), so that every id is distinct and any can be made again.
fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

fn key(n: u64) -> [u8; 36] {
    let mut key = [0; 36];
    key[3] = 1;
    for word in 0..4 {
        key[4 + word * 8..12 + word * 8].copy_from_slice(&mix(n * 4 + word as u64).to_be_bytes());
    }
    key
}

fn value(n: u64) -> [u8; 12] {
    let mut value = [0; 12];
    value[..4].copy_from_slice(&u32::try_from(n / IDS_PER_PACK).unwrap_or(0).to_be_bytes());
    value[8..].copy_from_slice(&u32::try_from(n % IDS_PER_PACK).unwrap_or(0).to_be_bytes());
    value
}

/// Half of the ids of a query exist, in sorted order, as the index service asks.
fn query(round: u64) -> Vec<[u8; 36]> {
    let mut keys: Vec<_> = (0..QUERY as u64)
        .map(|i| {
            let n = mix(round * QUERY as u64 + i) % IDS;
            key(if i % 2 == 0 { n } else { n + IDS })
        })
        .collect();
    keys.sort_unstable();
    keys
}

fn batch(number: u64) -> Vec<([u8; 36], [u8; 12])> {
    let first = number * PACKS_PER_BATCH * IDS_PER_PACK;
    let mut rows: Vec<_> = (first..first + PACKS_PER_BATCH * IDS_PER_PACK)
        .map(|n| (key(n), value(n)))
        .collect();
    rows.sort_unstable();
    rows
}

fn memory(when: &str) -> Fallible<()> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let rows: Vec<_> = status
        .lines()
        .filter(|l| l.starts_with("Rss") || l.starts_with("VmHWM"))
        .map(|l| l.replace('\t', " "))
        .collect();
    println!("{when}: {}", rows.join(", "));
    Ok(())
}

fn disk(dir: &Path) -> Fallible<u64> {
    let mut sum = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        sum += if meta.is_dir() {
            disk(&entry.path())?
        } else {
            std::os::unix::fs::MetadataExt::blocks(&meta) * 512
        };
    }
    Ok(sum)
}

fn id(key: &[u8; 36]) -> ChunkId {
    let mut id = [0; 32];
    id.copy_from_slice(&key[4..]);
    ChunkId(id)
}

fn index_open(dir: &Path, cache_mib: Option<usize>) -> Fallible<ChunkIndex> {
    let mut options = IndexOptions::default();
    if let Some(mib) = cache_mib {
        options.cache_bytes = mib as u64 * 1024 * 1024;
    }
    Ok(ChunkIndex::open(dir, options)?)
}

/// The packs of one batch, as a rebuild adds them.
fn packs(number: u64) -> Vec<IndexedPack> {
    let first = number * PACKS_PER_BATCH;
    let blobs =
        |pack: u64| (pack * IDS_PER_PACK..(pack + 1) * IDS_PER_PACK).map(|n| (id(&key(n)), n as u32, 9));
    let pack = |pack: u64| {
        let mut id = [0; 32];
        id[..8].copy_from_slice(&mix(pack).to_be_bytes());
        IndexedPack {
            id: PackId(id),
            vault: VAULT,
            blobs: blobs(pack).collect(),
        }
    };
    (first..first + PACKS_PER_BATCH).map(pack).collect()
}

fn fjall_open(dir: &Path, cache_mib: usize) -> Fallible<(fjall::Database, fjall::Keyspace)> {
    let db = fjall::Database::builder(dir)
        .cache_size(cache_mib as u64 * 1024 * 1024)
        .open()?;
    // Keys are hashes: nothing in them can be compressed.
    let options = || {
        fjall::KeyspaceCreateOptions::default()
            .data_block_compression_policy(fjall::config::CompressionPolicy::disabled())
            .data_block_hash_ratio_policy(fjall::config::HashRatioPolicy::all(8.0))
    };
    let chunks = db.keyspace("chunks", options)?;
    Ok((db, chunks))
}

fn build(engine: &str, dir: &Path, given_cache_mib: Option<usize>) -> Fallible<()> {
    let cache_mib = given_cache_mib.unwrap_or(CACHE_MIB);
    std::fs::create_dir_all(dir)?;
    let start = Instant::now();
    let batches = IDS / (PACKS_PER_BATCH * IDS_PER_PACK);
    if engine == "index" {
        let index = index_open(dir, given_cache_mib)?;
        for number in 0..batches {
            index.add(&packs(number))?;
        }
    } else if engine == "redb" {
        let db = redb::Builder::new()
            .set_cache_size(cache_mib * 1024 * 1024)
            .create(dir.join("index.redb"))?;
        for number in 0..batches {
            let mut tx = db.begin_write()?;
            tx.set_durability(if number % 10 == 9 {
                redb::Durability::Immediate
            } else {
                redb::Durability::None
            })?;
            {
                let mut table = tx.open_table(CHUNKS)?;
                for (key, value) in batch(number) {
                    table.insert(&key, &value[..])?;
                }
            }
            tx.commit()?;
        }
    } else {
        let (db, chunks) = fjall_open(dir, cache_mib)?;
        for number in 0..batches {
            let mut batch_of = db.batch();
            for (key, value) in batch(number) {
                batch_of.insert(&chunks, key, value);
            }
            batch_of.commit()?;
        }
        db.persist(fjall::PersistMode::SyncAll)?;
    }
    println!("built {IDS} ids in {:.1} s", start.elapsed().as_secs_f64());
    memory("after the build")?;
    println!("disk: {} MiB", disk(dir)? / 1024 / 1024);
    Ok(())
}

fn lookup(engine: &str, dir: &Path, given_cache_mib: Option<usize>, threads: u64) -> Fallible<()> {
    let cache_mib = given_cache_mib.unwrap_or(CACHE_MIB);
    let start = Instant::now();
    let get: LookUp = if engine == "index" {
        let index = index_open(dir, given_cache_mib)?;
        Box::new(move |keys| {
            let ids: Vec<ChunkId> = keys.iter().map(id).collect();
            let found = index.contains(VAULT, &ids)?;
            Ok(found.into_iter().filter(|found| *found).count())
        })
    } else if engine == "redb" {
        let db = redb::Builder::new()
            .set_cache_size(cache_mib * 1024 * 1024)
            .open(dir.join("index.redb"))?;
        Box::new(move |keys| {
            let table = redb::ReadableDatabase::begin_read(&db)?.open_table(CHUNKS)?;
            let mut hits = 0;
            for key in keys {
                hits += usize::from(table.get(key)?.is_some());
            }
            Ok(hits)
        })
    } else {
        let (db, chunks) = fjall_open(dir, cache_mib)?;
        Box::new(move |keys| {
            let _open = &db;
            let mut hits = 0;
            for key in keys {
                hits += usize::from(chunks.get(key)?.is_some());
            }
            Ok(hits)
        })
    };
    println!("opened in {:.3} s", start.elapsed().as_secs_f64());
    memory("after opening")?;
    for pass in 0..2_u64 {
        let start = Instant::now();
        let counts = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads)
                .map(|thread| {
                    let get = &get;
                    scope.spawn(move || -> Fallible<(u64, Duration)> {
                        let (mut round, mut asked, mut spent) =
                            ((pass * 2 + thread) << 32, 0, Duration::ZERO);
                        while start.elapsed() < RUN_FOR {
                            let keys = query(round);
                            let begin = thread_time();
                            let hits = get(&keys)?;
                            spent += thread_time() - begin;
                            assert_eq!(
                                hits,
                                QUERY / 2,
                                "an id was not found, or one was found that is not there"
                            );
                            asked += QUERY as u64;
                            round += 1;
                        }
                        Ok((asked, spent))
                    })
                })
                .collect();
            workers.into_iter().map(|w| w.join()).collect::<Vec<_>>()
        });
        let mut rate = 0.0;
        for count in counts {
            let (asked, spent) = count.map_err(|_| "a worker panicked")??;
            rate += asked as f64 / spent.as_secs_f64();
        }
        println!(
            "pass {pass}: {threads} threads, all together {rate:.0} look-ups per second of CPU, making the keys not counted"
        );
        memory("after look-ups")?;
    }
    Ok(())
}

/// CPU time of this thread: what else the machine does must not count.
fn thread_time() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}

fn main() -> Fallible<()> {
    let args: Vec<String> = std::env::args().collect();
    let usage = "usage: index_bench index|redb|fjall build|lookup DIR [CACHE_MIB] [THREADS]";
    let [_, engine, what, dir, rest @ ..] = &args[..] else {
        return Err(usage.into());
    };
    let cache_mib = rest.first().map(|n| n.parse()).transpose()?;
    let threads = rest.get(1).map_or(Ok(1), |n| n.parse())?;
    match what.as_str() {
        "build" => build(engine, Path::new(dir), cache_mib),
        "lookup" => lookup(engine, Path::new(dir), cache_mib, threads),
        _ => Err(usage.into()),
    }
}
