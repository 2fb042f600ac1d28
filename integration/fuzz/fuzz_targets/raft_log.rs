//! Any bytes as a segment of the Raft log, and any entries cut anywhere: what is read is what was written up
//! to the cut, and lies inside of the bytes.

#![no_main]

use holdfast_controller::raft::frame::{
    Frame, SEGMENT_HEADER_LEN, Scan, encode_entries, encode_void_from, record_header, scan, segment_header,
};
use libfuzzer_sys::fuzz_target;

const NUMBER: u64 = 7;

fuzz_target!(|bytes: &[u8]| {
    for is_last in [false, true] {
        check(bytes, scan(bytes, NUMBER, is_last));
        let with_header = [&segment_header(NUMBER)[..], bytes].concat();
        check(&with_header, scan(&with_header, NUMBER, is_last));
    }
    written(bytes);
});

fn check(bytes: &[u8], found: Result<Option<Scan>, holdfast_controller::Error>) {
    let Ok(Some(found)) = found else { return };
    assert!((SEGMENT_HEADER_LEN..=bytes.len()).contains(&found.end));
    let mut again = segment_header(NUMBER).to_vec();
    for frame in &found.frames {
        match frame {
            Frame::VoidFrom(index) => again.extend_from_slice(&encode_void_from(*index)),
            Frame::Entries(places) => {
                let records: Vec<&[u8]> = places.iter().map(|(at, len)| &bytes[*at..at + len]).collect();
                let starts = places.iter().map(|(at, _)| *at);
                let (frame, offsets) = encode_entries(&records).expect("a frame that was read");
                assert!(starts.eq(offsets.iter().map(|offset| again.len() + offset)));
                again.extend_from_slice(&frame);
            }
        }
    }
    assert_eq!(again.len(), found.end, "frames follow each other");
}

/// The bytes as a script: entries of these lengths, and where the disk ended.
fn written(script: &[u8]) {
    let [cut, lengths @ ..] = script else { return };
    let mut segment = segment_header(NUMBER).to_vec();
    let mut ends = vec![segment.len()];
    for batch in lengths.chunks(3).take(8) {
        let entries: Vec<Vec<u8>> = batch.iter().map(|len| vec![*len; usize::from(*len)]).collect();
        let (frame, offsets) = encode_entries(&entries).expect("short entries");
        for (entry, offset) in entries.iter().zip(offsets) {
            assert_eq!(frame[offset - 8..offset], record_header(entry));
        }
        segment.extend_from_slice(&frame);
        ends.push(segment.len());
    }
    let cut = SEGMENT_HEADER_LEN + (segment.len() - SEGMENT_HEADER_LEN) * usize::from(*cut) / 255;
    let whole = ends.iter().filter(|end| **end <= cut).count() - 1;
    let found = scan(&segment[..cut], NUMBER, true)
        .expect("only torn")
        .expect("a header");
    assert_eq!((found.frames.len(), found.end), (whole, ends[whole]));
}
