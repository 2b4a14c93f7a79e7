//! Finding the record that a worker cannot decode: it says only that it could not, and closes. Pure.

use crate::record::Position;
use crate::source::StreamKey;

/// The worker said "Unable to decode message" this often with the same records before one of them is looked for: once may
/// be an accident of the connection.
const REPEATS: u32 = 2;

/// Narrows down which record a worker refuses.
///
/// After the second refusal at most half as many records are unacknowledged at a time as were at the failure, and half
/// again after the next, until one record alone is refused: that one is poison. Once as many records were acknowledged as were under
/// suspicion, all limits are lifted. Finding one of n records takes about 2·log2(n) checkpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Suspicion {
    refusals: u32,
    window: Option<u64>,
    suspects: u64,
}

impl Suspicion {
    /// The worker refused one of `outstanding` unacknowledged records; `sole` names it if it is exactly one. Returns
    /// the poison record once it is known.
    pub fn refused(
        &mut self,
        outstanding: u64,
        sole: Option<(StreamKey, Position)>,
    ) -> Option<(StreamKey, Position)> {
        if outstanding == 0 {
            return None; // not about a record
        }
        self.refusals += 1;
        self.suspects = outstanding;
        if self.refusals < REPEATS {
            return None;
        }
        if let Some(poison) = sole {
            *self = Suspicion::default();
            return Some(poison);
        }
        let window = self.window.map_or(outstanding, |window| window.min(outstanding));
        self.window = Some((window / 2).max(1));
        None
    }

    /// `records` were acknowledged and are innocent.
    pub fn acknowledged(&mut self, records: u64) {
        self.suspects = self.suspects.saturating_sub(records);
        if self.suspects == 0 {
            *self = Suspicion::default();
        }
    }

    /// Records that may be unacknowledged at a time; `None` without limit.
    pub fn window(&self) -> Option<u64> {
        self.window
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A worker that refuses `poison` and acknowledges everything else; returns what was found and in how many sessions.
    fn search(records: u64, poison: u64) -> (u64, u32) {
        let mut suspicion = Suspicion::default();
        let mut acknowledged = 0;
        for session in 1..100 {
            loop {
                let window = suspicion.window().unwrap_or(records).min(records - acknowledged);
                let sent = acknowledged + window;
                assert!(window > 0, "poison {poison} was never found");
                if (acknowledged + 1..=sent).contains(&poison) {
                    let sole = (window == 1).then_some((StreamKey(0), sent));
                    if let Some((_, found)) = suspicion.refused(window, sole) {
                        return (found, session);
                    }
                    break;
                }
                suspicion.acknowledged(window);
                acknowledged = sent;
            }
        }
        panic!("poison {poison} was never found");
    }

    #[test]
    fn the_poison_record_is_found_wherever_it_is() {
        for poison in [1, 2, 3, 499, 500, 777, 999, 1_000] {
            let (found, sessions) = search(1_000, poison);
            assert_eq!(found, poison);
            assert!(sessions <= 13, "{sessions} sessions for {poison}");
        }
        assert_eq!(search(1, 1), (1, 2));
    }

    #[test]
    fn one_refusal_that_does_not_come_again_limits_nothing() {
        let mut suspicion = Suspicion::default();
        assert_eq!(suspicion.refused(100, None), None);
        assert_eq!(suspicion.window(), None);
        suspicion.acknowledged(100);
        assert_eq!(suspicion, Suspicion::default());
    }

    #[test]
    fn a_refusal_with_nothing_outstanding_accuses_no_record() {
        let mut suspicion = Suspicion::default();
        assert_eq!(suspicion.refused(0, None), None);
        assert_eq!(suspicion, Suspicion::default());
    }
}
