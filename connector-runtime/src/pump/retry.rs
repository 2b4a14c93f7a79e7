//! Back-off: capped exponential pauses with full jitter.

use tokio::time::Duration;

/// Pauses between attempts: each is drawn uniformly from nothing to a ceiling that doubles from `first` to `most`.
///
/// Full jitter keeps many connectors that lost the same worker from coming back at the same instant.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Backoff {
    first: Duration,
    most: Duration,
    ceiling: Duration,
}

impl Backoff {
    /// Pauses for dialling Wallaroo or a system: up to 0.1 s first, up to 5 s in the end.
    pub fn dialling() -> Backoff {
        Backoff::new(Duration::from_millis(100), Duration::from_secs(5))
    }

    /// Pauses with these ceilings; `most` is never below `first`.
    pub fn new(first: Duration, most: Duration) -> Backoff {
        Backoff { first, most: most.max(first), ceiling: first }
    }

    /// The next pause, drawn with the random number `random`; the ceiling doubles.
    pub fn pause(&mut self, random: u64) -> Duration {
        let ceiling = u64::try_from(self.ceiling.as_nanos()).unwrap_or(u64::MAX);
        self.ceiling = self.ceiling.saturating_mul(2).min(self.most);
        // The upper half of a 128-bit product is uniform in 0..=ceiling without a division.
        let drawn = (u128::from(random) * (u128::from(ceiling) + 1)) >> 64;
        Duration::from_nanos(u64::try_from(drawn).unwrap_or(ceiling))
    }

    /// An attempt succeeded: the next pause is a short one again.
    pub fn reset(&mut self) {
        self.ceiling = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ceilings_double_up_to_the_cap_and_start_over_after_a_reset() {
        let mut backoff = Backoff::dialling();
        let longest: Vec<_> = (0..8).map(|_| backoff.pause(u64::MAX).as_millis()).collect();
        assert_eq!(longest, [100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000]);
        backoff.reset();
        assert_eq!(backoff.pause(u64::MAX).as_millis(), 100);
    }

    #[test]
    fn a_pause_is_spread_over_the_whole_range() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(1));
        assert_eq!(backoff.pause(0), Duration::ZERO);
        assert_eq!(backoff.pause(u64::MAX / 2).as_millis(), 500);
        assert_eq!(backoff.pause(u64::MAX), Duration::from_secs(1));
    }
}
