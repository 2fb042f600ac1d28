//! What the targets share: texts with their checksums in order, and a file in memory.

#![forbid(unsafe_code)]

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use std::{fs, path::PathBuf};

/// A join token whose JSON object is these bytes, with its checksum.
#[must_use]
pub fn forged_token(json: &[u8]) -> String {
    let body = format!("holdfast-join-1.{}", URL_SAFE_NO_PAD.encode(json));
    let check = hex::encode(&blake3::hash(body.as_bytes()).as_bytes()[..8]);
    format!("{body}.{check}")
}

/// A recovery kit of these lines, with its checksum: `None` when they are not of the form `key: value`, one
/// to a line, with nothing around either.
#[must_use]
pub fn forged_kit(lines: &str) -> Option<String> {
    let mut text = String::from("holdfast-recovery-kit: 1\n");
    let mut hasher = blake3::Hasher::new();
    let mut add = |key: &str, value: &str| {
        for part in [key, value] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
    };
    add("holdfast-recovery-kit", "1");
    for line in lines.lines().filter(|line| !line.is_empty()) {
        let (key, value) = line.split_once(": ")?;
        if key.trim() != key || value.trim() != value || key.contains(':') || key.starts_with('#') {
            return None;
        }
        add(key, value);
        text.push_str(&format!("{key}: {value}\n"));
    }
    let check = hex::encode(&hasher.finalize().as_bytes()[..8]);
    Some(text + "check: " + &check + "\n")
}

/// A file in memory of that content, for decoders that take a path; the same one each time.
///
/// # Panics
/// When it cannot be written.
#[must_use]
pub fn file_of(name: &str, bytes: &[u8]) -> PathBuf {
    let path = PathBuf::from(format!("/dev/shm/holdfast-fuzz-{}-{name}", std::process::id()));
    fs::write(&path, bytes).expect("a file in memory");
    path
}
