//! Writes where the fuzzer begins, `corpus/TARGET/seed-*`: the golden files of the format and a few objects
//! made here. `cargo run --example seeds` beside this workspace's manifest.

#![forbid(unsafe_code)]

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use holdfast_repo::{
    RootClear,
    delta::{BLOCK_LEN, Signature},
};
use holdfast_repo_fuzz::{EPOCH_KEY, keys};
use std::{error::Error, fs, path::Path};

fn main() -> Result<(), Box<dyn Error>> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let golden = |name: &str| fs::read(here.join("../tests/golden").join(name));
    let write = |target: &str, name: &str, bytes: &[u8]| -> std::io::Result<()> {
        let dir = here.join("corpus").join(target);
        fs::create_dir_all(&dir)?;
        fs::write(dir.join(format!("seed-{name}")), bytes)
    };
    for name in ["data-raw", "data-zstd", "dir-leaf", "file-leaf"] {
        write("blob", name, &golden(&format!("blob-{name}.bin"))?)?;
    }
    let text = "a line of text, and another one\n".repeat(40);
    let len = (text.len() as u32).to_le_bytes();
    let coded = zstd::bulk::compress(text.as_bytes(), 3)?;
    write("blob", "zstd-frame", &[&len[..3], &coded].concat())?;
    // Kind, count of links, which of them are nodes: as the target reads them.
    for (name, kind, links, nodes) in [
        ("dir-leaf", 0, Some(5), 0b101),
        ("dir-attributes", 0, Some(0), 0),
        ("dir-index", 0, None, 0xff),
        ("file-leaf", 1, Some(9), 0),
        ("file-segments", 1, Some(2), 0),
        ("file-index", 1, None, 0xff),
    ] {
        let payload = golden(&format!("payload-{name}.bin"))?;
        // An index has a link for each child; their count is the third byte.
        let links = links.unwrap_or(payload[2]);
        write("node", name, &[&[kind, links, nodes], &payload[..]].concat())?;
    }
    write("pack", "golden", &golden("pack.bin")?)?;
    let root = golden("root.bin")?;
    write("root", "golden", &root)?;
    write("root", "private", &[&[1, 1], &private_part(&root)?[..]].concat())?;
    write("keys", "golden", &golden("keys.bin")?)?;
    write("keys", "rotated", &golden("keys-rotated.bin")?)?;
    let keys = keys();
    let segment: Vec<u8> = (0..3 * BLOCK_LEN as u32)
        .map(|n| (n / 7 ^ n >> 5) as u8)
        .collect();
    let (id, aligned) = Signature::aligned(&keys, &segment);
    for (name, signature) in [
        ("aligned", aligned),
        ("shifted", Signature::shifted(&keys, &segment)),
    ] {
        let stored = signature.encode(&keys, &id);
        write("signature", name, &stored[..stored.len() - 32])?;
    }
    write("signature", "script", &[0, 1, 2, 60, 61, 62, 255, 3, 3, 90])?;
    Ok(())
}

/// The private part of the golden root, opened by hand.
fn private_part(root: &[u8]) -> Result<Vec<u8>, Box<dyn Error>> {
    let clear = RootClear::decode(root)?;
    // Behind the one link of 32 bytes and its bits; before MAC and signature.
    let top = clear.links.0.first().ok_or("a root without a link")?.id.0;
    let link = root
        .windows(32)
        .position(|window| window == top)
        .ok_or("no link")?;
    let (head, rest) = root.split_at(link + 33);
    let sealed = rest.get(4 + 12..rest.len() - 96).ok_or("too short")?;
    let key = blake3::keyed_hash(&EPOCH_KEY, &[b"root", &clear.snapshot.0[..]].concat());
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key.as_bytes())?);
    let nonce = Nonce::try_assume_unique_for_key(rest.get(4..16).ok_or("too short")?)?;
    let mut plain = sealed.to_vec();
    Ok(key.open_in_place(nonce, Aad::from(head), &mut plain)?.to_vec())
}
