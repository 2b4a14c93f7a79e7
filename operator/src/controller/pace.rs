//! How soon an object is looked at again: jittered, so that many do not come at once. Pure.

use std::time::Duration;

/// Everything is looked at again after about this long, should a watch have lost something.
const RESYNC: Duration = Duration::from_mins(10);

/// Whether Wallaroo has dialled a sink, only its runtime knows; and an end that is away for a moment comes back without the
/// pod telling. What is said is never older than a minute.
const SWEEP: Duration = Duration::from_mins(1);

/// While not ready, the reason may change without the pod telling.
const NOT_READY: Duration = Duration::from_secs(15);

/// While something is being deleted or made, the watch tells; this is for what it misses.
const WAITING: Duration = Duration::from_secs(5);

/// First pause after an error.
const FIRST_ERROR: Duration = Duration::from_secs(1);

/// Longest pause after errors.
const LAST_ERROR: Duration = Duration::from_mins(5);

/// How things stand with an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// As asked.
    Settled,
    /// A sink, or an end that is away for a moment: nothing tells of the next change.
    Listening,
    /// Not ready.
    NotReady,
    /// Something is under way.
    Waiting,
}

/// When to look again. `seed` spreads objects: the same one always gets the same pause, between half and the whole.
pub fn pause(pace: Pace, seed: u64) -> Duration {
    spread(
        match pace {
            Pace::Settled => RESYNC,
            Pace::Listening => SWEEP,
            Pace::NotReady => NOT_READY,
            Pace::Waiting => WAITING,
        },
        seed,
    )
}

/// When to try again after `failures` errors in a row, at least as long as the API server asks for.
pub fn back_off(failures: u32, retry_after: Option<Duration>, seed: u64) -> Duration {
    let doubled = FIRST_ERROR.saturating_mul(1 << failures.saturating_sub(1).min(16));
    spread(doubled.min(LAST_ERROR), seed).max(retry_after.unwrap_or_default())
}

fn spread(most: Duration, seed: u64) -> Duration {
    most / 2 + most.mul_f64((seed % 1_000) as f64 / 2_000.0)
}

/// A seed from a uid.
pub fn seed(uid: &str) -> u64 {
    // FNV-1a: any spread will do, and it must not change between runs.
    uid.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_back_off_to_a_cap_and_obey_the_server() {
        assert!(back_off(1, None, 0) <= FIRST_ERROR);
        assert!(back_off(3, None, 0) > back_off(1, None, 0));
        assert!(back_off(u32::MAX, None, 999) <= LAST_ERROR);
        assert_eq!(back_off(1, Some(Duration::from_secs(20)), 7), Duration::from_secs(20));
    }

    #[test]
    fn pauses_are_spread_between_half_and_the_whole() {
        let pauses: Vec<_> = (0..1_000).map(|n| pause(Pace::Settled, seed(&format!("uid-{n}")))).collect();
        assert!(pauses.iter().all(|pause| (RESYNC / 2..=RESYNC).contains(pause)));
        let early = pauses.iter().filter(|pause| **pause < RESYNC * 3 / 4).count();
        assert!((300..700).contains(&early), "{early}");
    }
}
