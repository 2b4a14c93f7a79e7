//! The external system: what it yields, what it is told, and its errors.

use connector_env::Env;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::config::PumpError;
use super::kept::{Kept, KeptBatch};
use super::stalls::Stall;
use super::{Pump, beating, publish_stream};
use crate::board::{Counters, Side, SideState};
use crate::pump::streams::Action;
use crate::source::{ErrorClass, SourceEvent, SystemError};
use crate::stream_id::{stream_id, wire_name};

impl<E: Env> Pump<E> {
    pub(super) fn on_source(&mut self, event: SourceEvent) -> Result<(), PumpError> {
        match event {
            SourceEvent::Connected => {}
            SourceEvent::Opened { stream, name, committed } => {
                let id = stream_id(&self.config.identity, &name);
                debug!(stream = name, id = id.0, committed, "Stream opened.");
                if let Err(collision) = self.streams.opened(stream, name, id, committed) {
                    let message = collision.to_string();
                    self.stalls.set(&self.board, Stall::Record(stream), "StreamIdCollision", message);
                }
            }
            SourceEvent::Batch { stream, batch } => {
                self.stalls.clear(&self.board, Stall::Stream(stream));
                let (records, bytes) = (batch.len() as u64, batch.bytes() as u64);
                let counters = self.board.counters();
                Counters::add(&counters.records_in, records);
                Counters::add(&counters.bytes_in, bytes);
                self.board.histograms().batch(batch.len(), batch.bytes());
                self.board.moved_at(self.env.unix_millis());
                let batch = KeptBatch { stream, records: batch, cursor: 0, left: (records, bytes) };
                self.keep(Kept::Batch(batch))?;
            }
            SourceEvent::BadRecord { stream, position, reason, payload } => {
                self.stalls.clear(&self.board, Stall::Stream(stream));
                Counters::add(&self.board.counters().records_in, 1);
                self.keep(Kept::Bad { stream, position, reason, payload })?;
            }
            SourceEvent::Revoking { stream, deadline } => {
                self.kept.forget(stream);
                self.streams.revoked(stream, deadline);
            }
            SourceEvent::Lost { stream } => {
                self.kept.forget(stream);
                self.streams.lost(stream);
            }
            SourceEvent::Stuck { stream, reason, context } => {
                self.board.error(Side::External, ErrorClass::Rejected, &context, self.env.unix_millis());
                self.stalls.set(&self.board, Stall::Stream(stream), reason, context);
            }
            SourceEvent::Ended { stream } => {
                self.stalls.clear(&self.board, Stall::Stream(stream));
                self.streams.exhausted(stream);
            }
        }
        Ok(())
    }

    /// Keeps something for the next turn. What belongs to a stream that is not open is read again after its `resume`.
    pub(super) fn keep(&mut self, item: Kept) -> Result<(), PumpError> {
        if self.streams.sends(item.stream()) { self.kept.keep(item) } else { Ok(()) }
    }

    pub(super) fn source_ready(&self, now: Instant) -> bool {
        self.source_open_at.is_none_or(|at| at <= now)
    }

    pub(super) fn source_works(&mut self) {
        if self.external_works {
            return;
        }
        self.external_works = true;
        self.source_open_at = None;
        if self.source_failure.take().is_some() {
            info!("The external system works again.");
        }
        self.backoff.reset();
        self.stalls.clear(&self.board, Stall::Source);
        self.board.set_side(Side::External, SideState::Connected);
    }

    pub(super) fn source_failed(&mut self, error: &SystemError) {
        let now = Instant::now();
        self.external_works = false;
        let (reason, pause) = match error {
            SystemError::Transient { class, .. } => {
                (reason_of(*class), self.backoff.pause(self.env.random()))
            }
            SystemError::Permanent { reason, .. } => (*reason, self.config.timings.slow_retry),
        };
        let message = match error {
            SystemError::Transient { cause: Some(cause), context, .. } => format!("{context}: {cause:#}"),
            SystemError::Transient { context, .. } | SystemError::Permanent { context, .. } => {
                context.clone()
            }
        };
        self.board.error(Side::External, class(error), &message, self.env.unix_millis());
        let state = SideState::Failed { reason: reason.to_owned(), message: message.clone() };
        self.board.set_side(Side::External, state);
        if matches!(error, SystemError::Permanent { .. }) {
            self.stalls.set(&self.board, Stall::Source, reason, message.clone());
        }
        if self.source_failure.as_ref().is_none_or(|(old, _)| *old != message) {
            warn!(reason, "The external system fails: {message}.");
        }
        self.source_failure = Some((message, now));
        self.source_open_at = Some(now + pause);
    }

    /// Tells the system what Wallaroo acknowledged: one call for all streams.
    pub(super) async fn commit(&mut self) {
        let now = Instant::now();
        if !self.source_ready(now) {
            return;
        }
        let positions = self.streams.commits();
        if positions.is_empty() {
            return;
        }
        match beating(&self.board, self.source.commit(&positions)).await {
            Ok(()) => {
                self.streams.committed(&positions);
                self.source_works();
                Counters::add(&self.board.counters().commits, 1);
            }
            Err(error) => self.source_failed(&error),
        }
    }

    /// Does what streams need next.
    pub(super) async fn act(&mut self) {
        loop {
            let now = Instant::now();
            let (source, kept) = (self.source_ready(now), &self.kept);
            let session = self.wire.uplink().is_some();
            let action = self.streams.next_action(now, session, source, |key| kept.holds(key));
            let Some(action) = action else { return };
            let time = self.wire.now();
            match action {
                Action::Open { key, id, proposal } => {
                    let name = self.streams.get(key).map(|stream| stream.name.as_str()).unwrap_or_default();
                    let name = wire_name(&self.config.identity, name);
                    let Some(uplink) = self.wire.uplink() else { return };
                    if let Err(error) = uplink.session.open(id, &name, proposal, time) {
                        debug!(stream = name, %error, "The session does not open the stream now.");
                        return;
                    }
                    self.streams.asked(key);
                }
                Action::Resume { key, from } => {
                    match beating(&self.board, self.source.resume(key, from)).await {
                        Ok(()) => {
                            self.source_works();
                            self.kept.forget(key);
                            self.streams.resumed(key);
                        }
                        Err(error) => return self.source_failed(&error),
                    }
                }
                Action::End { key, id } => {
                    let Some(uplink) = self.wire.uplink() else { return };
                    if let Err(error) = uplink.session.end(id, time) {
                        debug!(stream = id.0, %error, "The session does not end the stream.");
                    }
                    self.streams.ending(key);
                }
                Action::Release { key, end } => {
                    if let (Some(id), Some(uplink)) = (end, self.wire.uplink()) {
                        // Unknown to the session: then there is nothing to end.
                        let _ = uplink.session.end(id, time);
                    }
                    if let Err(error) = beating(&self.board, self.source.release(key)).await {
                        return self.source_failed(&error);
                    }
                    self.stalls.clear(&self.board, Stall::Record(key));
                    self.stalls.clear(&self.board, Stall::Stream(key));
                    if let Some(stream) = self.streams.remove(key) {
                        debug!(stream = stream.name, committed = stream.committed, "Stream released.");
                        if !self.streams.iter().any(|(_, other)| other.name == stream.name) {
                            publish_stream(&self.board, &stream);
                        }
                    }
                }
            }
        }
    }
}

pub(super) fn class(error: &SystemError) -> ErrorClass {
    match error {
        SystemError::Transient { class, .. } => *class,
        SystemError::Permanent { .. } => ErrorClass::Rejected,
    }
}

fn reason_of(class: ErrorClass) -> &'static str {
    match class {
        ErrorClass::Connect => "Unreachable",
        ErrorClass::Auth => "AuthFailed",
        ErrorClass::Timeout => "Timeout",
        ErrorClass::Protocol => "ProtocolError",
        ErrorClass::Throttled => "Throttled",
        ErrorClass::Rejected => "Rejected",
    }
}
