//! Reproducible randomness for tests that run many cases: every failure names the seed of its case.

use std::time::{SystemTime, UNIX_EPOCH};

/// SplitMix64: small, and the same everywhere. Not for secrets.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ (value >> 31)
    }

    /// 0 to `end` - 1; 0 when `end` is 0.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % (end as u64).max(1)) as usize
    }

    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(len + 8);
        while out.len() < len {
            out.extend_from_slice(&self.next().to_le_bytes());
        }
        out.truncate(len);
        out
    }

    /// Bytes as files have them: noise, zeros, text that repeats, or a mixture.
    pub fn content(&mut self, len: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(len);
        while out.len() < len {
            let part = 1 + self.below(len - out.len());
            match self.below(4) {
                0 => out.extend(self.bytes(part)),
                1 => out.resize(out.len() + part, 0),
                2 => {
                    let from = self.below(out.len());
                    let copy = out[from..(from + part).min(out.len())].to_vec();
                    out.extend(copy);
                }
                _ => {
                    let words = self.bytes(64);
                    out.extend((0..part).map(|_| b'a' + words[self.below(64)] % 26));
                }
            }
        }
        out
    }
}

/// Says how to repeat a case that fails.
struct Announce(&'static str, u64);

impl Drop for Announce {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "{} failed; repeat that case with HOLDFAST_SEED={}",
                self.0, self.1
            );
        }
    }
}

/// Runs `short` cases, or `long` ones when HOLDFAST_LONG is set, each with a seed of its own.
pub fn cases(name: &'static str, short: u64, long: u64, mut case: impl FnMut(&mut Random)) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let first = std::env::var("HOLDFAST_SEED").map_or(now.as_micros() as u64, |seed| seed.parse().unwrap());
    let count = if std::env::var_os("HOLDFAST_LONG").is_some() {
        long
    } else {
        short
    };
    println!("{name}: {count} cases from HOLDFAST_SEED={first}");
    for seed in (0..count).map(|i| first.wrapping_add(i)) {
        let announce = Announce(name, seed);
        case(&mut Random::new(seed));
        drop(announce);
    }
}
