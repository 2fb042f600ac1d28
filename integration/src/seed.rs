//! Repeatable randomness: one number from the environment or the clock, printed, decides a whole run.

/// A small, fast, well-spread generator (xoshiro256**, Blackman and Vigna 2018). Not for secrets. Our own,
/// so that a data set stays the same whatever version of a random-number crate is in use.
#[derive(Debug, Clone)]
pub struct Rng([u64; 4]);

/// One step of SplitMix64 (Steele, Lea, Flood 2014): spreads seeds and hashes small numbers.
#[must_use]
pub fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Rng {
    /// The generator of that seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut state = [0; 4];
        let mut at = seed;
        for word in &mut state {
            at = at.wrapping_add(0x9e37_79b9_7f4a_7c15);
            *word = mix(at);
        }
        Self(state)
    }

    /// The generator for one numbered part of a larger whole.
    #[must_use]
    pub fn part(seed: u64, part: u64) -> Self {
        Self::new(mix(seed) ^ mix(part.wrapping_mul(0xd6e8_feb8_6659_fd93)))
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        let s = &mut self.0;
        let result = s[1].wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// A number below `bound`, which must not be 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        // The bias of a multiply-shift is below 2^-32 for every bound used here.
        ((u128::from(self.bits()) * u128::from(bound)) >> 64) as u64
    }

    /// An index below `len`, which must not be 0.
    pub fn index(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }

    /// A number in [0, 1).
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// True with that probability.
    pub fn chance(&mut self, probability: f64) -> bool {
        self.unit() < probability
    }

    /// A normally distributed number, mean 0 and deviation 1 (Box and Muller 1958).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }

    /// Fills `out` with random bytes.
    pub fn fill(&mut self, out: &mut [u8]) {
        let mut words = out.chunks_exact_mut(8);
        for word in &mut words {
            word.copy_from_slice(&self.bits().to_le_bytes());
        }
        let rest = words.into_remainder();
        let last = self.bits().to_le_bytes();
        let len = rest.len();
        rest.copy_from_slice(&last[..len]);
    }
}

/// The seed of this test run, printed so that a failure can be repeated with `HOLDFAST_SEED`.
#[must_use]
pub fn of_run(test: &str) -> u64 {
    let seed = match std::env::var("HOLDFAST_SEED") {
        Ok(text) => text.trim().parse().expect("HOLDFAST_SEED is a number"),
        Err(_) => {
            let now = std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .unwrap();
            mix(now.as_nanos() as u64 ^ u64::from(std::process::id())) >> 16
        }
    };
    eprintln!("{test}: HOLDFAST_SEED={seed}");
    seed
}

/// Whether the long counts were asked for.
#[must_use]
pub fn long() -> bool {
    std::env::var("HOLDFAST_LONG").is_ok_and(|value| value != "0" && !value.is_empty())
}

/// `ci` rounds in the short run, `long` in the long one.
#[must_use]
pub fn count(ci: usize, long_count: usize) -> usize {
    if long() { long_count } else { ci }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_and_parts_differ() {
        let draw = |mut rng: Rng| (0..4).map(|_| rng.bits()).collect::<Vec<_>>();
        assert_eq!(draw(Rng::part(7, 1)), draw(Rng::part(7, 1)));
        assert_ne!(draw(Rng::part(7, 1)), draw(Rng::part(7, 2)));
        assert_ne!(draw(Rng::part(8, 1)), draw(Rng::part(7, 1)));
    }

    #[test]
    fn bounded_draws_stay_in_bounds_and_reach_every_value() {
        let mut rng = Rng::new(1);
        let mut seen = [false; 10];
        for _ in 0..1000 {
            seen[rng.index(10)] = true;
            assert!((0.0..1.0).contains(&rng.unit()));
        }
        assert_eq!(seen, [true; 10]);
    }
}
