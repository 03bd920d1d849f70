//! The jitter of waits and draws.

use rand_xoshiro::SplitMix64;
use rand_xoshiro::rand_core::{Rng as _, SeedableRng as _};

/// A small generator for jitter, from the seed that the engine is given.
#[derive(Clone, Debug)]
pub struct Jitter(SplitMix64);

impl Jitter {
    pub fn new(seed: u64) -> Self {
        Jitter(SplitMix64::seed_from_u64(seed))
    }

    /// A number in 0.5..1.0: waits are jittered downwards, so that no wait exceeds its cap.
    pub fn factor(&mut self) -> f64 {
        0.5 + (self.0.next_u64() >> 11) as f64 / (1u64 << 54) as f64
    }

    /// A number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.0.next_u64() % n.max(1) as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_stays_between_one_half_and_one() {
        let mut jitter = Jitter::new(3);
        for _ in 0..1000 {
            assert!((0.5..1.0).contains(&jitter.factor()));
        }
    }
}
