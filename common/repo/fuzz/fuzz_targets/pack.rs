//! Any bytes as a pack, a trailer, a directory: whatever is found lies inside of the bytes, and a pack made
//! again from what is salvaged verifies.

#![no_main]

use holdfast_core::{PackId, limits};
use holdfast_repo::{
    PackDirectory, PackWriter,
    pack::{TRAILER_LEN, Trailer, pack_vault},
};
use holdfast_repo_fuzz::VAULT;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let total = bytes.len() as u64;
    let _ = Trailer::decode(bytes, total);
    let _ = PackDirectory::decode(bytes, 32);
    assert!(PackDirectory::verify(bytes, PackId([7; 32]), VAULT).is_err());
    if let Some((id, mended)) = with_right_hash(bytes)
        && let Ok(vault) = pack_vault(&mended)
        && let Ok(directory) = PackDirectory::verify(&mended, id, vault)
    {
        let found = PackDirectory::salvage(&mended);
        assert_eq!(found.entries, directory.entries, "a sound pack is salvaged whole");
    }
    let salvaged = PackDirectory::salvage(bytes);
    assert!(salvaged.entries.len() <= limits::PACK_BLOBS_MAX);
    let mut writer = PackWriter::new(VAULT, Vec::new());
    for entry in &salvaged.entries {
        let (from, to) = (entry.offset as usize, entry.offset as usize + entry.len as usize);
        writer
            .push_verbatim(&bytes[from..to])
            .expect("a blob that was found");
    }
    let (id, pack) = writer.finish();
    let again = PackDirectory::verify(&pack, id, VAULT).expect("a pack of what was found");
    assert_eq!(again.entries.len(), salvaged.entries.len());
});

/// The same bytes with the length and hash that a pack of them ends in.
fn with_right_hash(bytes: &[u8]) -> Option<(PackId, Vec<u8>)> {
    let at = bytes.len().checked_sub(TRAILER_LEN)? + 8;
    let mut mended = bytes.to_vec();
    mended
        .get_mut(at..at + 8)?
        .copy_from_slice(&(bytes.len() as u64).to_le_bytes());
    let id = PackId(*blake3::hash(mended.get(..at + 8)?).as_bytes());
    mended.get_mut(at + 8..)?.copy_from_slice(&id.0);
    Some((id, mended))
}
