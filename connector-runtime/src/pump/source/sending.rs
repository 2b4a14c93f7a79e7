//! From what was read into the session, and what becomes of records that cannot go there.

use connector_crds::OnError;
use connector_env::Env;
use tokio::time::Instant;
use tracing::debug;

use super::config::PumpError;
use super::kept::{Kept, KeptBatch};
use super::session::Refused;
use super::stalls::Stall;
use super::system::class;
use super::{Pump, beating};
use crate::board::{Counters, DropReason, Side};
use crate::pump::dead_letter::Letter;
use crate::record::{NO_TIME, Position};
use crate::source::{BadRecord, StreamKey};

/// Bytes that may wait for the socket before reading is held back: several batches, so that the socket never runs dry, and
/// little enough to count for nothing in memory.
pub(super) const OUTPUT_BOUND: usize = 1_048_576;

/// What became of a record that can never be handed over.
pub(super) enum Rejected {
    Passed,
    Held,
    Later,
}

impl<E: Env> Pump<E> {
    /// Sends what is kept, as far as credits, window and the output buffer allow.
    pub(super) async fn flush(&mut self) -> Result<(), PumpError> {
        while let Some(item) = self.kept.pop() {
            if !self.streams.sends(item.stream()) {
                self.kept.drop(&item);
                continue;
            }
            let left = match item {
                Kept::Batch(batch) => self.send(batch).await?,
                Kept::Bad { stream, position, reason, payload } => {
                    match self.reject(stream, position, &reason, (NO_TIME, &[], &payload)).await {
                        Rejected::Passed | Rejected::Held => None,
                        Rejected::Later => Some(Kept::Bad { stream, position, reason, payload }),
                    }
                }
            };
            if let Some(item) = left {
                self.kept.put_back(item);
                break;
            }
        }
        Ok(())
    }

    /// Sends a batch from its cursor on; gives back what could not be sent.
    pub(super) async fn send(&mut self, mut batch: KeptBatch) -> Result<Option<Kept>, PumpError> {
        let key = batch.stream;
        loop {
            let Some(first) = batch.records.get(batch.cursor) else {
                self.kept.done(&mut batch);
                return Ok(None);
            };
            let window =
                self.suspicion.window().map(|window| window.saturating_sub(self.streams.outstanding()));
            let mut most = batch.records.len() - batch.cursor;
            most = window.map_or(most, |window| most.min(usize::try_from(window).unwrap_or(usize::MAX)));
            let poison = self.streams.get(key).and_then(|stream| {
                stream.poison_in(first.position, batch.records.last_position().unwrap_or(first.position))
            });
            if let Some(poison) = poison {
                let records = batch.records.iter_from(batch.cursor);
                most = most.min(records.take_while(|record| record.position < poison).count());
            }
            let Some(id) = self.streams.get(key).map(|stream| stream.id) else { return Ok(None) };
            let Some(uplink) = self.wire.uplink() else { return Ok(Some(Kept::Batch(batch))) };
            let mut refused = None;
            if most > 0 {
                if uplink.queued() >= OUTPUT_BOUND {
                    return Ok(Some(Kept::Batch(batch)));
                }
                let sent = uplink.session.send(id, &batch.records, batch.cursor, most);
                let end = uplink.offset();
                batch.cursor += sent.records;
                if let Some(last) = batch.cursor.checked_sub(1).and_then(|last| batch.records.get(last))
                    && sent.records > 0
                {
                    self.streams.sent(key, sent.records as u64, sent.bytes, last.position, end);
                    self.latency.sent(id, last.position, Instant::now());
                    self.kept.sent(&mut batch, sent.bytes);
                    let counters = self.board.counters();
                    Counters::add(&counters.records_out, sent.records as u64);
                    Counters::add(&counters.bytes_out, sent.bytes);
                }
                refused = sent.refused;
                if refused.is_none() && sent.records < most {
                    return Ok(Some(Kept::Batch(batch)));
                }
            }
            let Some(record) = batch.records.get(batch.cursor) else { continue };
            let size = (record.key.len() + record.payload.len()) as u64;
            let name = || self.streams.get(key).map(|stream| stream.name.clone()).unwrap_or_default();
            let reason = match refused {
                Some(Refused::Bad(reason)) => reason,
                Some(Refused::WentBack { last }) => {
                    return Err(PumpError::WentBack { stream: name(), position: record.position, last });
                }
                Some(Refused::ReservedPosition) => {
                    return Err(PumpError::ReservedPosition { stream: name(), position: record.position });
                }
                None if poison == Some(record.position) => {
                    BadRecord::Malformed("Wallaroo cannot decode the record".to_owned())
                }
                None => {
                    let Some(gone) = poison.filter(|poison| *poison < record.position) else {
                        return Ok(Some(Kept::Batch(batch))); // the window is full
                    };
                    self.streams.forget_poison(key, gone);
                    continue;
                }
            };
            let content = (record.time, record.key, record.payload);
            match self.reject(key, record.position, &reason, content).await {
                Rejected::Passed => {
                    self.kept.skip(&mut batch, size);
                }
                Rejected::Held => {
                    self.kept.done(&mut batch);
                    return Ok(None);
                }
                Rejected::Later => return Ok(Some(Kept::Batch(batch))),
            }
        }
    }

    /// Does with a record that can never be handed over what `onError` asks for.
    pub(super) async fn reject(
        &mut self,
        key: StreamKey,
        position: Position,
        reason: &BadRecord,
        (time, record_key, payload): (i64, &[u8], &[u8]),
    ) -> Rejected {
        let Some(stream) = self.streams.get(key) else { return Rejected::Held };
        if self.streams.dealt_with(key, position) {
            self.streams.passed(key, position);
            return Rejected::Passed;
        }
        let name = stream.name.clone();
        match (self.config.on_error, &mut self.dead_letter) {
            (OnError::Drop, _) => {}
            (OnError::DeadLetter, Some(dead_letter)) => {
                if self.letter_at.is_some_and(|at| Instant::now() < at) {
                    return Rejected::Later;
                }
                let reason = reason.to_string();
                let letter =
                    Letter { stream: &name, position, time, key: record_key, payload, reason: &reason };
                if let Err(error) = beating(&self.board, dead_letter.write(letter)).await {
                    let message = format!("writing a dead letter for {name:?}: {error}");
                    self.board.error(Side::External, class(&error), &message, self.env.unix_millis());
                    self.stalls.set(&self.board, Stall::DeadLetter, "DeadLetterFailed", message);
                    self.letter_at = Some(Instant::now() + self.letter_backoff.pause(self.env.random()));
                    return Rejected::Later;
                }
                self.letter_at = None;
                self.letter_backoff.reset();
                self.stalls.clear(&self.board, Stall::DeadLetter);
                Counters::add(&self.board.counters().dead_letters, 1);
            }
            (OnError::DeadLetter, None) | (OnError::Stop, _) => {
                self.streams.hold(key, position);
                let message = format!(
                    "stream {name:?} stops at position {position}: {reason}; `delivery.onError` can drop such records or \
                     write them to a dead letter"
                );
                self.stalls.set(&self.board, Stall::Record(key), "RecordRejected", message);
                return Rejected::Held;
            }
        }
        self.streams.passed(key, position);
        let label = match reason {
            BadRecord::TooLarge { .. } => DropReason::TooLarge,
            BadRecord::Empty | BadRecord::Malformed(_) => DropReason::Decode,
        };
        self.board.dropped(label, 1);
        debug!(stream = name, position, %reason, "Dropped a record.");
        Rejected::Passed
    }
}
