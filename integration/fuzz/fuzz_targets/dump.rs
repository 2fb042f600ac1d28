//! Any bytes as a copy of the whole catalog: an error, or rows that end where the file ends.

#![no_main]

use holdfast_controller::catalog::dump::{self, DumpReader};
use holdfast_fuzz::file_of;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    read(bytes);
    if let Some((body, _)) = bytes.split_last_chunk::<32>() {
        read(&[body, blake3::hash(body).as_bytes()].concat());
    }
});

fn read(bytes: &[u8]) {
    let path = file_of("dump", bytes);
    if let Ok(reader) = DumpReader::open(&path) {
        let mut length = 0;
        for row in reader {
            let Ok((key, value)) = row else { break };
            length += 8 + key.len() + value.len();
            assert!(!key.is_empty() && length <= bytes.len());
        }
    }
    let _ = dump::verify(&path);
}
