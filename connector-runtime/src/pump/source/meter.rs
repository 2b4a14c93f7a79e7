//! For how long reading was held back, and by whom.

use tokio::time::Instant;

use crate::board::{Board, Counters};

/// What holds reading back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hold {
    /// The process is asked to leave.
    Stopping,
    /// The Connector is paused.
    Paused,
    /// A dead letter cannot be written.
    DeadLetter,
    /// There is no session.
    NotConnected,
    /// No credits; `kept` tells whether records wait for them.
    Credits { kept: bool },
    /// The socket takes nothing more.
    Output,
    /// Enough is on its way.
    InFlight,
}

impl Hold {
    /// True for holds that usually last no longer than a round trip: not worth pausing the source for.
    pub(super) fn is_short(self) -> bool {
        match self {
            Hold::Stopping | Hold::Paused | Hold::DeadLetter | Hold::NotConnected => false,
            Hold::Credits { .. } | Hold::Output | Hold::InFlight => true,
        }
    }
}

/// Adds up the time between turns of the loop.
#[derive(Debug)]
pub(super) struct Meter {
    since: Instant,
    hold: Option<Hold>,
}

impl Meter {
    pub(super) fn new(now: Instant) -> Meter {
        Meter { since: now, hold: None }
    }

    /// The loop turned: the time since the last turn counts for what held then, the time from now on for `hold`.
    pub(super) fn turn(&mut self, hold: Option<Hold>, board: &Board) {
        let now = Instant::now();
        let micros = now.duration_since(self.since).as_micros() as u64;
        let counters = board.counters();
        match self.hold {
            None | Some(Hold::Stopping | Hold::Paused) => {}
            Some(Hold::DeadLetter) => Counters::add(&counters.external_backpressure_micros, micros),
            Some(Hold::NotConnected | Hold::Output | Hold::InFlight | Hold::Credits { kept: false }) => {
                Counters::add(&counters.wallaroo_backpressure_micros, micros);
            }
            Some(Hold::Credits { kept: true }) => {
                Counters::add(&counters.wallaroo_backpressure_micros, micros);
                Counters::add(&counters.credit_wait_micros, micros);
            }
        }
        (self.since, self.hold) = (now, hold);
    }
}
