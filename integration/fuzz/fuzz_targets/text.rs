//! Any text as a name, an object of a store, a configuration file: an error, or what reads the same when it is written
//! again.

#![no_main]

use holdfast_core::{ChunkId, Name, PackId, SnapshotId, SourceRef};
use holdfast_fuzz::file_of;
use holdfast_store::ObjectName;
use libfuzzer_sys::fuzz_target;
use std::{fmt::Display, str::FromStr};

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    same::<Name>(text);
    same::<SourceRef>(text);
    same::<ObjectName>(text);
    same::<ChunkId>(text);
    same::<PackId>(text);
    same::<SnapshotId>(text);
    let path = file_of("config", bytes);
    if let Ok(config) = holdfast_agent::config::Config::load(&path) {
        assert!(config.state_dir.is_absolute());
        assert!(config.allow.iter().all(|dir| dir.is_absolute()));
        assert!(config.pipeline.workers() > 0);
    }
    let _ = holdfast_controller::config::Config::load(&path);
});

fn same<T: FromStr + Display + PartialEq>(text: &str) {
    if let Ok(read) = text.parse::<T>() {
        let again = read.to_string().parse::<T>();
        assert!(again.is_ok_and(|again| again == read), "{text:?}");
    }
}
