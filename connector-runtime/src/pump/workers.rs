//! Per-worker decisions of a sink: where delivery continues, what counts as delivered, what a stream needs next. Pure.

use std::collections::VecDeque;

use tokio::time::{Duration, Instant};

use crate::record::Position;

/// Accepted batches that wait for the target to call them durable; with more the sink is flushed.
const MAX_ACCEPTED: usize = 1_024;

/// Time without a write after which what is accepted is flushed: soon enough to give the log's space back, seldom enough
/// to cost nothing.
const FLUSH_AFTER: Duration = Duration::from_millis(200);

/// Pause between two flushes that made nothing durable.
const FLUSH_AGAIN: Duration = Duration::from_secs(1);

/// What the transaction log knows when a stream is opened at its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// Offset behind the last decided byte.
    pub committed: Position,
    /// Up to where the target had everything durably.
    pub delivered: Position,
    /// The smallest position that can be repeated.
    pub retained_from: Position,
    /// A refused record that nothing may pass over.
    pub held: Option<Position>,
    /// Output is delivered at its receipt, so the log may have lost what the target has.
    pub on_receipt: bool,
}

/// Where delivery of a stream continues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resume {
    /// Behind this position.
    After(Position),
    /// The target has more than the log, which goes on from there (delivery at receipt only).
    Adopt(Position),
    /// The target lost records that are no longer kept.
    WentBack {
        /// Its position.
        target: Position,
    },
    /// The target has records that were never decided: it is somebody else's, or the log is an older copy.
    Ahead {
        /// Its position.
        target: Position,
    },
}

/// Decides where delivery continues after an `open` that returned `target`.
///
/// A target without a position of its own continues behind the log's mark, never at 0. One that is behind the mark went back, and
/// gets the rest again as far as it is kept. One that is ahead of the mark has what the mark, which is lazy, does not say yet;
/// but a refused record that is held is given again before anything behind it.
pub fn resume(known: &Known, target: Option<Position>) -> Resume {
    let Some(target) = target else { return Resume::After(known.delivered) };
    if target > known.committed {
        return if known.on_receipt { Resume::Adopt(target) } else { Resume::Ahead { target } };
    }
    let from = known.held.map_or(target, |held| target.min(held - 1));
    if from < known.retained_from { Resume::WentBack { target: from } } else { Resume::After(from) }
}

/// How far a stream's delivery is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// The target has to be asked for its position.
    #[default]
    Closed,
    /// Records can be written.
    Open,
    /// Nothing more is written until someone changes something.
    Stopped,
}

/// Delivery of one stream: what the target accepted, and what of it is durable there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delivery {
    phase: Phase,
    accepted: Mark,
    durable: Mark,
    /// Ends of accepted batches that are not durable.
    waiting: VecDeque<Mark>,
    last_write: Option<Instant>,
    flush_not_before: Option<Instant>,
}

/// A place between two records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// Position of the record before it.
    pub position: Position,
    /// Number of records before it.
    pub records: u64,
}

impl Delivery {
    /// How far it is.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The last place up to which the target accepted everything.
    pub fn accepted(&self) -> Mark {
        self.accepted
    }

    /// The last place up to which everything is durable at the target.
    pub fn durable(&self) -> Mark {
        self.durable
    }

    /// The target was opened; delivery continues at `from`. What it has beyond `durable` counts as accepted until it says that
    /// this is durable as well.
    pub fn opened(&mut self, from: Mark, durable: Mark) {
        self.phase = Phase::Open;
        self.accepted = from;
        self.waiting.clear();
        if from.position > durable.position {
            self.durable = durable;
            self.waiting.push_back(from);
        } else {
            self.durable = from;
        }
    }

    /// The target may have been reconnected: its position has to be read again before the next write.
    pub fn reconnected(&mut self) {
        if self.phase == Phase::Open {
            self.phase = Phase::Closed;
        }
    }

    /// Nothing more is written.
    pub fn stop(&mut self) {
        self.phase = Phase::Stopped;
    }

    /// The target accepted everything up to `mark`.
    pub fn wrote(&mut self, mark: Mark, now: Instant) {
        self.last_write = Some(now);
        if mark.position > self.accepted.position {
            self.accepted = mark;
            self.waiting.push_back(mark);
        }
    }

    /// There is nothing between what was accepted and `mark`.
    pub fn skipped(&mut self, mark: Mark) {
        if mark.position > self.accepted.position {
            let durable = self.is_durable();
            self.accepted = mark;
            if durable {
                self.durable = mark;
            } else {
                self.waiting.push_back(mark);
            }
        }
    }

    /// The target says that everything up to `position` is durable. Returns the new mark if it moved.
    pub fn said_durable(&mut self, position: Position) -> Option<Mark> {
        if self.phase == Phase::Closed {
            return None; // what it says counts after `open`
        }
        let mut moved = None;
        while let Some(front) = self.waiting.front().filter(|front| front.position <= position) {
            moved = Some(*front);
            self.waiting.pop_front();
        }
        if let Some(mark) = moved {
            self.durable = mark;
            self.flush_not_before = None;
        }
        moved
    }

    /// True when everything accepted is durable.
    pub fn is_durable(&self) -> bool {
        self.durable.position == self.accepted.position
    }

    /// A flush was done, whatever it made durable.
    pub fn flushed(&mut self, now: Instant) {
        if !self.is_durable() {
            self.flush_not_before = Some(now + FLUSH_AGAIN);
        }
    }

    /// When the sink has to be flushed for this stream; `at_once` when nothing more will be written soon.
    pub fn flush_due(&self, now: Instant, at_once: bool) -> Option<Instant> {
        if self.is_durable() || self.phase == Phase::Closed {
            return None;
        }
        let due = match self.last_write {
            Some(last) if !at_once && self.waiting.len() < MAX_ACCEPTED => last + FLUSH_AFTER,
            Some(_) | None => now,
        };
        Some(self.flush_not_before.map_or(due, |not_before| due.max(not_before)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> Known {
        Known { committed: 100, delivered: 60, retained_from: 20, held: None, on_receipt: false }
    }

    #[test]
    fn a_missing_position_is_never_read_as_zero() {
        assert_eq!(resume(&known(), None), Resume::After(60));
        assert_eq!(resume(&Known { retained_from: 0, ..known() }, None), Resume::After(60));
    }

    #[test]
    fn a_target_ahead_of_the_lazy_mark_is_believed() {
        assert_eq!(resume(&known(), Some(80)), Resume::After(80));
        assert_eq!(resume(&known(), Some(100)), Resume::After(100));
    }

    #[test]
    fn a_target_that_went_back_gets_the_rest_again_as_far_as_it_is_kept() {
        assert_eq!(resume(&known(), Some(20)), Resume::After(20));
        assert_eq!(resume(&known(), Some(19)), Resume::WentBack { target: 19 });
        assert_eq!(resume(&known(), Some(0)), Resume::WentBack { target: 0 });
    }

    #[test]
    fn a_target_beyond_what_was_decided_is_not_ours() {
        assert_eq!(resume(&known(), Some(101)), Resume::Ahead { target: 101 });
        let on_receipt = Known { on_receipt: true, ..known() };
        assert_eq!(resume(&on_receipt, Some(101)), Resume::Adopt(101));
    }

    #[test]
    fn a_held_record_is_given_again_before_what_is_behind_it() {
        let held = Known { held: Some(70), ..known() };
        assert_eq!(resume(&held, Some(90)), Resume::After(69));
        assert_eq!(resume(&held, Some(65)), Resume::After(65));
        assert_eq!(resume(&held, None), Resume::After(60));
    }

    fn mark(position: Position) -> Mark {
        Mark { position, records: position / 10 }
    }

    #[test]
    fn only_whole_accepted_batches_become_durable() {
        let now = Instant::now();
        let mut delivery = Delivery::default();
        delivery.opened(mark(0), mark(0));
        delivery.wrote(mark(10), now);
        delivery.wrote(mark(30), now);
        assert_eq!(delivery.said_durable(9), None);
        assert_eq!(delivery.said_durable(29), Some(mark(10)));
        assert!(!delivery.is_durable());
        assert_eq!(delivery.said_durable(1_000), Some(mark(30)));
        assert!(delivery.is_durable());
    }

    #[test]
    fn after_a_reconnect_nothing_counts_before_the_position_is_read_again() {
        let now = Instant::now();
        let mut delivery = Delivery::default();
        delivery.opened(mark(0), mark(0));
        delivery.wrote(mark(10), now);
        delivery.reconnected();
        assert_eq!(delivery.phase(), Phase::Closed);
        assert_eq!(delivery.said_durable(10), None);
        delivery.opened(mark(0), mark(0));
        assert_eq!((delivery.accepted(), delivery.durable()), (mark(0), mark(0)));
    }

    #[test]
    fn what_a_target_has_beyond_the_mark_is_durable_once_it_says_so() {
        let mut delivery = Delivery::default();
        delivery.opened(mark(50), mark(30));
        assert_eq!((delivery.accepted(), delivery.durable()), (mark(50), mark(30)));
        assert_eq!(delivery.said_durable(50), Some(mark(50)));
        delivery.opened(mark(20), mark(50));
        assert_eq!((delivery.accepted(), delivery.durable()), (mark(20), mark(20)));
    }

    #[test]
    fn a_flush_is_due_a_little_after_the_last_write_and_not_in_a_hurry_again() {
        let now = Instant::now();
        let mut delivery = Delivery::default();
        delivery.opened(mark(0), mark(0));
        assert_eq!(delivery.flush_due(now, true), None);
        delivery.wrote(mark(10), now);
        assert_eq!(delivery.flush_due(now, false), Some(now + FLUSH_AFTER));
        assert_eq!(delivery.flush_due(now, true), Some(now));
        delivery.flushed(now);
        assert_eq!(delivery.flush_due(now, true), Some(now + FLUSH_AGAIN));
    }
}
