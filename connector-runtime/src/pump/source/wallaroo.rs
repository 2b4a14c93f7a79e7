//! What the Wallaroo end tells the pump: answers, acknowledgements, receipts, missing checkpoints.

use connector_env::Env;
use tokio::time::{Duration, Instant};
use tracing::debug;
use wallaroo_protocol::SourceClientEvent;

use super::stalls::Stall;
use super::wire::WireEvent;
use super::{Checkpoints, Pump, RECEIPT_INTERVAL};
use crate::board::AckMode;

/// Bounds of the time between two commits on receipt.
const SETTLE_INTERVALS: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(250));

impl<E: Env> Pump<E> {
    pub(super) fn on_wire(&mut self, event: WireEvent) {
        match event {
            WireEvent::Session(event) => self.on_session(&event),
            WireEvent::Lost { undecodable } => {
                if undecodable {
                    let (outstanding, sole) = (self.streams.outstanding(), self.streams.sole_outstanding());
                    if let Some((key, position)) = self.suspicion.refused(outstanding, sole) {
                        self.streams.poison(key, position);
                    }
                }
                self.kept.clear();
                self.letter_at = None;
                self.checkpoints = Checkpoints::default();
                let outstanding = self.streams.session_lost();
                self.latency.forget();
                if self.drain_until.is_some() {
                    self.given_up = outstanding;
                }
            }
        }
    }

    pub(super) fn on_session(&mut self, event: &SourceClientEvent) {
        match *event {
            SourceClientEvent::Ready { .. } | SourceClientEvent::Restart { .. } => {}
            SourceClientEvent::Opened { stream, position } => self.streams.answered(stream, position),
            SourceClientEvent::Refused { stream } => {
                debug!(stream = stream.0, "Wallaroo has the stream open elsewhere; asking again.");
            }
            SourceClientEvent::Acknowledged { stream, position } => {
                let records = self.streams.acknowledge(stream, position);
                if let Some(took) = self.latency.acknowledged(stream, position, Instant::now()) {
                    self.board.histograms().end_to_end_seconds.observe(took.as_secs_f64());
                }
                self.suspicion.acknowledged(records);
            }
            SourceClientEvent::Checkpoint => {
                self.checkpoints = Checkpoints { seen: true, refilled: false, waiting_since: None };
                self.board.set_ack_mode(AckMode::Checkpoint);
                self.stalls.clear(&self.board, Stall::NoCheckpoints);
            }
            SourceClientEvent::Ended { stream, position } => self.streams.ended(stream, position),
        }
    }

    /// Time between two commits on receipt: at most a quarter of the commit delay late.
    pub(super) fn settle_interval(&self) -> Duration {
        (self.config.commit_delay / 4).clamp(SETTLE_INTERVALS.0, SETTLE_INTERVALS.1)
    }

    pub(super) fn take_receipts(&mut self, now: Instant) {
        if !self.receipts || now < self.last_receipt + RECEIPT_INTERVAL {
            return;
        }
        let Some(uplink) = self.wire.uplink() else { return };
        self.last_receipt = now;
        let received = uplink.received(now);
        self.streams.received(received, now, self.config.commit_delay / 16);
        if now >= self.last_settle + self.settle_interval()
            && let Some(before) = now.checked_sub(self.config.commit_delay)
        {
            self.last_settle = now;
            let settled = self.streams.settle(before);
            self.suspicion.acknowledged(settled);
            if settled > 0 {
                self.wire.works();
            }
        }
        if self.wire.is_plain() {
            for id in self.streams.settled_ends() {
                self.streams.ended(id, None);
            }
        }
    }

    /// Credits that grew since the last sending were refilled.
    pub(super) fn see_refill(&mut self) {
        let credits = self.wire.uplink().and_then(|uplink| uplink.session.credits());
        if let (Some(before), Some(now)) = (self.credits, credits)
            && now > before
        {
            self.checkpoints.refilled = true;
        }
        self.credits = None;
    }

    /// A worker that refills credits and never lists streams has no checkpoints.
    pub(super) fn watch_checkpoints(&mut self, now: Instant) {
        if self.wire.is_plain() {
            return;
        }
        let outstanding = self.streams.outstanding() > 0;
        let checkpoints = &mut self.checkpoints;
        if !outstanding {
            checkpoints.waiting_since = None;
            return;
        }
        let since = *checkpoints.waiting_since.get_or_insert(now);
        if !checkpoints.refilled || now.duration_since(since) < self.config.timings.no_checkpoints {
            return;
        }
        if !checkpoints.seen {
            self.board.set_ack_mode(AckMode::OnReceipt);
        }
        if self.config.ack_mode == AckMode::Checkpoint {
            let message = "Wallaroo takes records and completes no checkpoint, so none is ever acknowledged: switch its \
                           resilience on, or ask for `delivery.ackMode: OnReceipt`";
            self.stalls.set(&self.board, Stall::NoCheckpoints, "NoCheckpoints", message.to_owned());
        }
    }
}
