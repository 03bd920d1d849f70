//! A small generator for jitter.

/// A small generator for jitter, from the seed that the engine is given (splitmix64, public domain, Vigna 2015).
#[derive(Clone, Debug)]
pub struct Jitter(u64);

impl Jitter {
    pub fn new(seed: u64) -> Self {
        Jitter(seed)
    }

    /// A number in 0.5..1.0: waits are jittered downwards, so that no wait exceeds its cap.
    pub fn factor(&mut self) -> f64 {
        0.5 + (self.next() >> 11) as f64 / (1u64 << 54) as f64
    }

    /// A number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
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
