//! Any bytes as the agent's cache of records: it opens, answers only what was put in under that id, and
//! takes new records.

#![no_main]

use holdfast_agent::engine::{Keep, RecordCache};
use holdfast_core::ChunkId;
use holdfast_fuzz::file_of;
use libfuzzer_sys::fuzz_target;

const MAX: u64 = 1 << 20;

fuzz_target!(|bytes: &[u8]| {
    for keep in [Keep::Used, Keep::Newest] {
        let path = file_of("cache", bytes);
        let cache = RecordCache::open(&path, keep, MAX).expect("any file opens");
        let own = ChunkId([0xab; 32]);
        let asked = bytes
            .windows(32)
            .step_by(4)
            .take(64)
            .filter_map(|id| ChunkId::try_from(id).ok());
        for id in asked {
            if let Some(found) = cache.get(&id) {
                let mut record = id.0.to_vec();
                record.extend_from_slice(&found);
                let is_there = bytes.windows(record.len()).any(|window| window == record);
                assert!(is_there, "a record that the file does not hold");
            }
        }
        let had = cache.touch(&own);
        cache.put(&own, &[b"new ", b"record"]).expect("a write");
        cache.finish().expect("a write");
        let again = RecordCache::open(&path, keep, MAX).expect("its own file");
        if !had {
            assert_eq!(again.get(&own).as_deref(), Some(&b"new record"[..]));
        }
    }
});
