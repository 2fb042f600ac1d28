//! Any bytes as a record of the catalog or an entry of the Raft log: an error, or a record that is written
//! again so that it reads the same.

#![no_main]

use holdfast_controller::{
    catalog::{Proposal, Reply, kv, model, store::Applied},
    raft::types::{Entry, LogId, Vote},
};
use libfuzzer_sys::fuzz_target;
use serde::{Serialize, de::DeserializeOwned};

fuzz_target!(|bytes: &[u8]| {
    let [which, record @ ..] = bytes else { return };
    match which % 20 {
        0 => again::<Entry>(record),
        1 => again::<Proposal>(record),
        2 => again::<Reply>(record),
        3 => again::<Applied>(record),
        4 => again::<Option<LogId>>(record),
        5 => again::<Vote>(record),
        6 => again::<model::Meta>(record),
        7 => again::<model::Vault>(record),
        8 => again::<model::VaultUse>(record),
        9 => again::<model::Agent>(record),
        10 => again::<model::Token>(record),
        11 => again::<model::Source>(record),
        12 => again::<model::Job>(record),
        13 => again::<model::Session>(record),
        14 => again::<model::Snapshot>(record),
        15 => again::<model::Pack>(record),
        16 => again::<model::Store>(record),
        17 => again::<model::GcRun>(record),
        18 => again::<model::Audit>(record),
        _ => again::<model::AdminKey>(record),
    }
});

fn again<T: Serialize + DeserializeOwned>(bytes: &[u8]) {
    let Ok(record) = kv::decode::<T>(bytes) else {
        return;
    };
    let encoded = kv::encode(&record).expect("what was read");
    let decoded: T = kv::decode(&encoded).expect("what was written");
    assert_eq!(kv::encode(&decoded).expect("the same"), encoded);
}
