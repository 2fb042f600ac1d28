//! How the log lies in a segment: a header, then frames. Pure: bytes in, frames out.
//!
//! ```text
//! segment = "HFRLOG01" number:u64 crc32c:u32 frame*          (all little-endian)
//! frame   = magic:u32 kind:u32 len:u32 crc32c:u32 body[len]  (the sum covers kind, len and body)
//! body    = (len:u32 crc32c:u32 bytes)*                      for entries
//!         | index:u64                                        for "entries from here on are void"
//! ```
//! A frame holds all that one sync made durable. So at most the last frame can be torn by a crash,
//! and a bad frame with a good one behind it can only be damage.

use crate::error::{Error, Result};

/// Bytes of a segment's header.
pub const SEGMENT_HEADER_LEN: usize = 20;
const SEGMENT_MAGIC: &[u8; 8] = b"HFRLOG01";
const FRAME_MAGIC: u32 = 0x4d52_4648;
const FRAME_HEADER_LEN: usize = 16;
const RECORD_HEADER_LEN: usize = 8;
const ENTRIES: u32 = 1;
const VOID_FROM: u32 = 2;

/// Longest body of a frame: far more than one batch of entries can have.
pub const FRAME_BODY_MAX: usize = 64 << 20;

/// What a frame says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Entries: offset in the segment and length of each one's bytes.
    Entries(Vec<(usize, usize)>),
    /// Entries of this index and later ones are void.
    VoidFrom(u64),
}

/// What became of reading a segment.
#[derive(Debug, PartialEq, Eq)]
pub struct Scan {
    /// Whole frames, in order.
    pub frames: Vec<Frame>,
    /// Where the next frame goes; what is behind it was torn by a crash.
    pub end: usize,
}

/// A segment's header.
#[must_use]
pub fn segment_header(number: u64) -> [u8; SEGMENT_HEADER_LEN] {
    let mut header = [0; SEGMENT_HEADER_LEN];
    header[..8].copy_from_slice(SEGMENT_MAGIC);
    header[8..16].copy_from_slice(&number.to_le_bytes());
    let sum = crc32c::crc32c(&header[..16]);
    header[16..].copy_from_slice(&sum.to_le_bytes());
    header
}

/// A frame of entries, and for each the offset of its bytes within the frame.
pub fn encode_entries<B: AsRef<[u8]>>(entries: &[B]) -> Result<(Vec<u8>, Vec<usize>)> {
    let len = entries
        .iter()
        .map(|entry| entry.as_ref().len() + RECORD_HEADER_LEN)
        .sum::<usize>();
    if len > FRAME_BODY_MAX {
        return Err(Error::refused(
            holdfast_core::ErrorKind::TooLarge,
            "a batch of Raft entries is too long",
        ));
    }
    let mut body = Vec::with_capacity(len);
    let mut offsets = Vec::with_capacity(entries.len());
    for entry in entries {
        let bytes = entry.as_ref();
        body.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
        body.extend_from_slice(&crc32c::crc32c(bytes).to_le_bytes());
        offsets.push(FRAME_HEADER_LEN + body.len());
        body.extend_from_slice(bytes);
    }
    Ok((frame(ENTRIES, &body), offsets))
}

/// A frame that voids entries.
#[must_use]
pub fn encode_void_from(index: u64) -> Vec<u8> {
    frame(VOID_FROM, &index.to_le_bytes())
}

fn frame(kind: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(FRAME_HEADER_LEN + body.len());
    bytes.extend_from_slice(&FRAME_MAGIC.to_le_bytes());
    bytes.extend_from_slice(&kind.to_le_bytes());
    // Bodies are bounded by FRAME_BODY_MAX.
    bytes.extend_from_slice(&u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes());
    let sum = crc32c::crc32c_append(crc32c::crc32c(&bytes[4..12]), body);
    bytes.extend_from_slice(&sum.to_le_bytes());
    bytes.extend_from_slice(body);
    bytes
}

/// Reads a segment. `is_last` says that a crash may have torn its end.
///
/// # Errors
/// `Corrupt` when bytes that were durable once are not what they were.
pub fn scan(bytes: &[u8], number: u64, is_last: bool) -> Result<Option<Scan>> {
    let what = || format!("segment {number} of the Raft log");
    if bytes.get(..SEGMENT_HEADER_LEN) != Some(&segment_header(number)[..]) {
        // The header is durable before the first frame is written.
        return if is_last && !has_frame(bytes) {
            Ok(None)
        } else {
            Err(Error::corrupt(
                what(),
                "its header is not what it should be; restore the node from its peers or a backup",
            ))
        };
    }
    let mut frames = Vec::new();
    let mut end = SEGMENT_HEADER_LEN;
    while end < bytes.len() {
        let Some((frame, len)) = parse(bytes, end) else {
            if !is_last || has_frame(&bytes[end + 1..]) {
                return Err(Error::corrupt(
                    what(),
                    format!(
                        "the frame at byte {end} is not what was written; restore the node from its peers or a backup"
                    ),
                ));
            }
            break;
        };
        frames.push(frame);
        end += len;
    }
    Ok(Some(Scan { frames, end }))
}

/// The frame at `at` and its length, if it is whole and its sum is right.
fn parse(bytes: &[u8], at: usize) -> Option<(Frame, usize)> {
    let header = bytes.get(at..at + FRAME_HEADER_LEN)?;
    if word(header, 0)? != FRAME_MAGIC {
        return None;
    }
    let kind = word(header, 4)?;
    let len = usize::try_from(word(header, 8)?)
        .ok()
        .filter(|len| *len <= FRAME_BODY_MAX)?;
    let start = at + FRAME_HEADER_LEN;
    let body = bytes.get(start..start.checked_add(len)?)?;
    if crc32c::crc32c_append(crc32c::crc32c(&header[4..12]), body) != word(header, 12)? {
        return None;
    }
    let frame = match kind {
        ENTRIES => Frame::Entries(records(body, start)?),
        VOID_FROM => Frame::VoidFrom(u64::from_le_bytes(body.try_into().ok()?)),
        _ => return None,
    };
    Some((frame, FRAME_HEADER_LEN + len))
}

fn records(body: &[u8], start: usize) -> Option<Vec<(usize, usize)>> {
    let mut records = Vec::new();
    let mut at = 0;
    while at < body.len() {
        let len = usize::try_from(word(body, at)?).ok()?;
        at += RECORD_HEADER_LEN;
        body.get(at..at.checked_add(len)?)?;
        records.push((start + at, len));
        at += len;
    }
    Some(records)
}

/// Whether a whole frame begins anywhere in `bytes`.
fn has_frame(bytes: &[u8]) -> bool {
    let magic = FRAME_MAGIC.to_le_bytes();
    let mut from = 0;
    while let Some(at) = find(&bytes[from..], &magic) {
        if parse(bytes, from + at).is_some() {
            return true;
        }
        from += at + 1;
    }
    false
}

fn find(bytes: &[u8], magic: &[u8; 4]) -> Option<usize> {
    bytes.windows(4).position(|window| window == magic)
}

/// Sum of an entry's bytes, as kept in front of them.
#[must_use]
pub fn record_header(bytes: &[u8]) -> [u8; RECORD_HEADER_LEN] {
    let mut header = [0; RECORD_HEADER_LEN];
    header[..4].copy_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
    header[4..].copy_from_slice(&crc32c::crc32c(bytes).to_le_bytes());
    header
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}
