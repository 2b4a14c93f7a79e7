//! Back-pressure, and what shows only with time.

use connector_crds::State;
use connector_env::Env;
use tokio::time::{Duration, Instant};

use super::meter::Hold;
use super::sending::OUTPUT_BOUND;
use super::stalls::Stall;
use super::{Pump, TICK, publish_stream};
use crate::pump::Shutdown;

/// A system that gave an error and then stays silent for so long inside `next` is connected again: no client waits longer for
/// a connection without an error.
const QUIET_RECOVERY: Duration = Duration::from_secs(30);

impl<E: Env> Pump<E> {
    /// What holds reading back.
    pub(super) fn hold(&mut self) -> Option<Hold> {
        let running = self.live.receiver.borrow().state == State::Running;
        let stopping = *self.shutdown.receiver.borrow() != Shutdown::Run;
        let (records, bytes) = self.streams.in_flight();
        let (kept_records, kept_bytes) = self.kept.amount();
        let (records, bytes) = (records + kept_records, bytes + kept_bytes);
        self.board.set_in_flight(records, bytes);
        let window = self.suspicion.window().is_some_and(|window| self.streams.outstanding() >= window);
        let full = records >= self.config.in_flight_records || bytes >= self.config.in_flight_bytes;
        let uplink = self.wire.uplink();
        let credits = uplink.as_ref().and_then(|uplink| uplink.session.credits());
        self.board.set_credits(credits.unwrap_or(0));
        self.credits = credits;
        if stopping {
            return Some(Hold::Stopping);
        }
        if !running {
            return Some(Hold::Paused);
        }
        if self.letter_at.is_some() {
            return Some(Hold::DeadLetter);
        }
        let Some(uplink) = uplink else { return Some(Hold::NotConnected) };
        if credits == Some(0) {
            Some(Hold::Credits { kept: kept_records > 0 })
        } else if uplink.queued() >= OUTPUT_BOUND {
            Some(Hold::Output)
        } else if window || full || kept_records > 0 {
            Some(Hold::InFlight)
        } else {
            None
        }
    }

    /// Tells the source which streams to pause; true if it may be polled.
    pub(super) fn apply_hold(&mut self, hold: Option<Hold>) -> bool {
        let now = Instant::now();
        let since = match hold {
            None => None,
            Some(_) => Some(self.hold_since.unwrap_or(now)),
        };
        self.hold_since = since;
        let pause = hold.is_some_and(|hold| {
            !hold.is_short()
                || since.is_some_and(|since| now.duration_since(since) >= self.config.timings.pause_after)
        });
        for (key, pause) in self.streams.pauses(pause) {
            if pause {
                self.source.pause(key);
            } else {
                self.source.unpause(key);
            }
        }
        hold.is_none() || pause
    }

    pub(super) fn tick(&mut self, now: Instant) {
        self.next_tick = now + TICK;
        self.wire.tick(now);
        self.watch_checkpoints(now);
        for key in self.streams.past_their_stop() {
            self.stalls.clear(&self.board, Stall::Record(key));
        }
        if let Some((_, since)) = &self.source_failure
            && self.source_ready(now)
            && now.duration_since(*since) >= QUIET_RECOVERY
        {
            self.source_works();
        }
        self.publish();
    }

    pub(super) fn publish(&self) {
        for (_, stream) in self.streams.iter() {
            publish_stream(&self.board, stream);
        }
    }
}
