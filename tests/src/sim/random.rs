//! Seeded random numbers: `SplitMix64`, small and the same on every machine.

use std::sync::{Arc, Mutex, PoisonError};

/// A shared stream of random numbers.
#[derive(Clone, Debug)]
pub struct Random(Arc<Mutex<u64>>);

impl Random {
    /// The stream of a seed.
    pub fn new(seed: u64) -> Random {
        Random(Arc::new(Mutex::new(seed)))
    }

    /// The next number.
    pub fn next(&self) -> u64 {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = *state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound` (0 for a bound of 0).
    pub fn below(&self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    /// True with a chance of `percent` in a hundred.
    pub fn chance(&self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// An independent stream.
    #[must_use]
    pub fn fork(&self) -> Random {
        Random::new(self.next())
    }
}
