//! The source pump: an external system's records into Wallaroo.
//!
//! One task, one loop. Each turn does everything that needs no waiting (events, sending what is kept, commits,
//! what streams need next) and then waits for the first of: shutdown, live configuration, the connection, the source, a timer.

mod config;
mod kept;
mod meter;
mod session;
mod stalls;
mod targets;
mod uplink;
mod wire;

use std::future::Future;
use std::pin::pin;

use connector_crds::{LiveConfig, OnError, State};
use connector_env::Env;
use tokio::sync::watch;
use tokio::time::{Duration, Instant, sleep, sleep_until};
use tracing::{debug, info, warn};
use wallaroo_protocol::SourceClientEvent;

pub use self::config::{CookieFrom, Outcome, PumpError, SourcePumpConfig, Timings};
use self::kept::{Kept, KeptBatch, Queue};
use self::meter::{Hold, Meter};
use self::session::Refused;
use self::stalls::{Stall, Stalls};
use self::wire::{Wire, WireEvent};
use super::Shutdown;
use super::dead_letter::{DeadLetter, Letter};
use super::poison::Suspicion;
use super::retry::Backoff;
use super::streams::{Action, Phase, Streams};
use crate::board::{AckMode, Board, Counters, DropReason, Side, SideState};
use crate::record::{NO_TIME, Position};
use crate::source::{BadRecord, ErrorClass, Source, SourceEvent, StreamKey, SystemError};
use crate::stream_id::{stream_id, wire_name};

/// Bytes that may wait for the socket before reading is held back: several batches, so that the socket never runs dry, and
/// little enough to count for nothing in memory.
const OUTPUT_BOUND: usize = 1_048_576;

/// Longest time between two turns of the loop, and so between two heartbeats.
const TICK: Duration = Duration::from_secs(1);

/// How long one call of the source may keep the heart beating. Beyond it liveness fails: the call hangs.
const CALL_LIMIT: Duration = Duration::from_secs(120);

/// A system that gave an error and then stays silent for so long inside `next` is connected again: no client waits longer for
/// a connection without an error.
const QUIET_RECOVERY: Duration = Duration::from_secs(30);

/// Shortest time between two looks at what the worker's kernel has.
const RECEIPT_INTERVAL: Duration = Duration::from_millis(5);

/// Bounds of the time between two commits on receipt.
const SETTLE_INTERVALS: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(250));

/// Longest time that the source may take for `close` when everything is done.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(30);

/// Moves the records of `source` into Wallaroo until the source is at its end or `shutdown` says so.
///
/// Trouble at either end is retried for ever. `dead_letter` is needed with `onError: DeadLetter`; without it such
/// records stop their stream. Not cancel-safe: a dropped future leaves without commit, as a crash does.
///
/// # Errors
/// [`PumpError`]: a mistake of this program or its configuration, which no retry can mend.
pub async fn run<E: Env>(
    env: E,
    config: SourcePumpConfig,
    source: Box<dyn Source>,
    board: Board,
    live: watch::Receiver<LiveConfig>,
    shutdown: watch::Receiver<Shutdown>,
    dead_letter: Option<Box<dyn DeadLetter>>,
) -> Result<Outcome, PumpError> {
    let wire = Wire::new(env.clone(), config.clone(), board.clone())?;
    let now = Instant::now();
    if config.ack_mode == AckMode::OnReceipt && !wire.is_plain() {
        board.set_ack_mode(AckMode::OnReceipt);
    }
    let pump = Pump {
        streams: Streams::new(config.in_flight_records, config.in_flight_bytes),
        receipts: wire.is_plain() || config.ack_mode == AckMode::OnReceipt,
        wire,
        env,
        config,
        source,
        board,
        live: Watched::new(live),
        shutdown: Watched::new(shutdown),
        dead_letter,
        kept: Queue::default(),
        suspicion: Suspicion::default(),
        meter: Meter::new(now),
        stalls: Stalls::default(),
        backoff: Backoff::dialling(),
        source_open_at: None,
        source_failure: None,
        external_works: false,
        letter_at: None,
        letter_backoff: Backoff::dialling(),
        credits: None,
        last_settle: now,
        hold_since: None,
        checkpoints: Checkpoints::default(),
        last_receipt: now,
        next_tick: now,
        drain_until: None,
        given_up: 0,
    };
    pump.run().await
}

/// A watched value whose sender may be gone.
struct Watched<T> {
    receiver: watch::Receiver<T>,
    open: bool,
}

impl<T> Watched<T> {
    fn new(receiver: watch::Receiver<T>) -> Watched<T> {
        Watched { receiver, open: true }
    }

    /// Waits for a change. Cancel-safe.
    async fn changed(&mut self) {
        if self.open {
            self.open = self.receiver.changed().await.is_ok();
        }
        if !self.open {
            std::future::pending::<()>().await;
        }
    }
}

/// Whether this session's worker checkpoints.
#[derive(Clone, Copy, Debug, Default)]
struct Checkpoints {
    seen: bool,
    /// Credits came since the last checkpoint.
    refilled: bool,
    /// Records are unacknowledged, and no checkpoint came, since then.
    waiting_since: Option<Instant>,
}

struct Pump<E: Env> {
    env: E,
    config: SourcePumpConfig,
    source: Box<dyn Source>,
    board: Board,
    live: Watched<LiveConfig>,
    shutdown: Watched<Shutdown>,
    dead_letter: Option<Box<dyn DeadLetter>>,
    wire: Wire<E>,
    streams: Streams,
    /// Commit on receipt by the worker's kernel instead of on acknowledgement.
    receipts: bool,
    kept: Queue,
    suspicion: Suspicion,
    meter: Meter,
    stalls: Stalls,
    backoff: Backoff,
    /// No call of the source before this time.
    source_open_at: Option<Instant>,
    source_failure: Option<(String, Instant)>,
    external_works: bool,
    /// The dead letter is tried again at this time.
    letter_at: Option<Instant>,
    letter_backoff: Backoff,
    /// Credits after the last turn's sending.
    credits: Option<u64>,
    last_settle: Instant,
    hold_since: Option<Instant>,
    checkpoints: Checkpoints,
    last_receipt: Instant,
    next_tick: Instant,
    drain_until: Option<Instant>,
    /// Records outstanding when a session was lost during the drain.
    given_up: u64,
}

enum Woken {
    Nothing,
    Source(Result<SourceEvent, SystemError>),
}

enum Rejected {
    Passed,
    Held,
    Later,
}

impl<E: Env> Pump<E> {
    async fn run(mut self) -> Result<Outcome, PumpError> {
        loop {
            self.board.heartbeat();
            let now = Instant::now();
            while let Some(event) = self.wire.poll_event() {
                self.on_wire(event);
            }
            self.see_refill();
            self.take_receipts(now);
            self.flush().await?;
            self.commit().await;
            self.act().await;
            if now >= self.next_tick {
                self.tick(now);
            }
            if let Some(outcome) = self.finish().await {
                self.publish();
                return Ok(outcome);
            }
            let hold = self.hold();
            let poll = self.apply_hold(hold);
            self.meter.turn(hold, &self.board);
            match self.wait(poll).await? {
                Woken::Nothing => {}
                Woken::Source(Ok(event)) => {
                    self.source_works();
                    self.on_source(event)?;
                }
                Woken::Source(Err(error)) => self.source_failed(&error),
            }
        }
    }

    async fn wait(&mut self, poll: bool) -> Result<Woken, PumpError> {
        let wake = self.wake();
        let poll = poll && self.source_ready(Instant::now());
        tokio::select! {
            biased;
            () = self.shutdown.changed() => Ok(Woken::Nothing),
            () = self.live.changed() => Ok(Woken::Nothing),
            stepped = self.wire.step() => stepped.map(|()| Woken::Nothing),
            event = self.source.next(), if poll => Ok(Woken::Source(event)),
            () = sleep_until(wake) => Ok(Woken::Nothing),
        }
    }

    fn wake(&self) -> Instant {
        // While reading is held back by what the worker's kernel has not, its answer is looked for often.
        let look = if self.hold_since.is_some() { RECEIPT_INTERVAL } else { self.settle_interval() };
        let receipts = self.receipts && (self.streams.outstanding() > 0 || self.streams.any_ending());
        let receipt = receipts.then(|| self.last_receipt + look);
        let pause = self.hold_since.map(|since| since + self.config.timings.pause_after);
        let pause = pause.filter(|at| *at > Instant::now());
        let timers = [self.source_open_at, self.letter_at, self.streams.next_deadline(), self.drain_until];
        let past = Instant::now();
        let timers = timers.into_iter().flatten().filter(|at| *at > past);
        timers.chain(pause).chain(receipt).fold(self.next_tick, Instant::min)
    }

    // ---- Wallaroo's side ----

    fn on_wire(&mut self, event: WireEvent) {
        match event {
            WireEvent::Session(event) => self.on_session(event),
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
                if self.drain_until.is_some() {
                    self.given_up = outstanding;
                }
            }
        }
    }

    fn on_session(&mut self, event: SourceClientEvent) {
        match event {
            SourceClientEvent::Ready { .. } | SourceClientEvent::Restart { .. } => {}
            SourceClientEvent::Opened { stream, position } => self.streams.answered(stream, position),
            SourceClientEvent::Refused { stream } => {
                debug!(stream = stream.0, "Wallaroo has the stream open elsewhere; asking again.");
            }
            SourceClientEvent::Acknowledged { stream, position } => {
                let records = self.streams.acknowledge(stream, position);
                self.suspicion.acknowledged(records);
            }
            SourceClientEvent::Checkpoint => {
                self.checkpoints = Checkpoints { seen: true, refilled: false, waiting_since: None };
                self.board.set_ack_mode(AckMode::Checkpoint);
                self.stalls.clear(&self.board, &Stall::NoCheckpoints);
            }
            SourceClientEvent::Ended { stream, position } => self.streams.ended(stream, position),
        }
    }

    /// Time between two commits on receipt: at most a quarter of the commit delay late.
    fn settle_interval(&self) -> Duration {
        (self.config.commit_delay / 4).clamp(SETTLE_INTERVALS.0, SETTLE_INTERVALS.1)
    }

    fn take_receipts(&mut self, now: Instant) {
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

    /// Sends what is kept, as far as credits, window and the output buffer allow.
    async fn flush(&mut self) -> Result<(), PumpError> {
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
    async fn send(&mut self, mut batch: KeptBatch) -> Result<Option<Kept>, PumpError> {
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
    async fn reject(
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
                self.stalls.clear(&self.board, &Stall::DeadLetter);
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

    // ---- the system's side ----

    fn on_source(&mut self, event: SourceEvent) -> Result<(), PumpError> {
        match event {
            SourceEvent::Opened { stream, name, committed } => {
                let id = stream_id(&self.config.identity, &name);
                debug!(stream = name, id = id.0, committed, "Stream opened.");
                if let Err(collision) = self.streams.opened(stream, name, id, committed) {
                    let message = collision.to_string();
                    self.stalls.set(&self.board, Stall::Record(stream), "StreamIdCollision", message);
                }
            }
            SourceEvent::Batch { stream, batch } => {
                let (records, bytes) = (batch.len() as u64, batch.bytes() as u64);
                let counters = self.board.counters();
                Counters::add(&counters.records_in, records);
                Counters::add(&counters.bytes_in, bytes);
                self.board.moved_at(self.env.unix_millis());
                let batch = KeptBatch { stream, records: batch, cursor: 0, left: (records, bytes) };
                self.keep(Kept::Batch(batch))?;
            }
            SourceEvent::BadRecord { stream, position, reason, payload } => {
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
            SourceEvent::Ended { stream } => self.streams.exhausted(stream),
        }
        Ok(())
    }

    /// Keeps something for the next turn. What belongs to a stream that is not open is read again after its `resume`.
    fn keep(&mut self, item: Kept) -> Result<(), PumpError> {
        if self.streams.sends(item.stream()) { self.kept.keep(item) } else { Ok(()) }
    }

    fn source_ready(&self, now: Instant) -> bool {
        self.source_open_at.is_none_or(|at| at <= now)
    }

    fn source_works(&mut self) {
        if self.external_works {
            return;
        }
        self.external_works = true;
        self.source_open_at = None;
        if self.source_failure.take().is_some() {
            info!("The external system works again.");
        }
        self.backoff.reset();
        self.stalls.clear(&self.board, &Stall::Source);
        self.board.set_side(Side::External, SideState::Connected);
    }

    fn source_failed(&mut self, error: &SystemError) {
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
    async fn commit(&mut self) {
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
    async fn act(&mut self) {
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
                    self.stalls.clear(&self.board, &Stall::Record(key));
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

    // ---- back-pressure ----

    /// What holds reading back.
    fn hold(&mut self) -> Option<Hold> {
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
    fn apply_hold(&mut self, hold: Option<Hold>) -> bool {
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

    // ---- time ----

    fn tick(&mut self, now: Instant) {
        self.next_tick = now + TICK;
        self.wire.tick(now);
        self.watch_checkpoints(now);
        for key in self.streams.past_their_stop() {
            self.stalls.clear(&self.board, &Stall::Record(key));
        }
        if let Some((_, since)) = &self.source_failure
            && self.source_ready(now)
            && now.duration_since(*since) >= QUIET_RECOVERY
        {
            self.source_works();
        }
        self.publish();
    }

    /// Credits that grew since the last sending were refilled.
    fn see_refill(&mut self) {
        let credits = self.wire.uplink().and_then(|uplink| uplink.session.credits());
        if let (Some(before), Some(now)) = (self.credits, credits)
            && now > before
        {
            self.checkpoints.refilled = true;
        }
        self.credits = None;
    }

    /// A worker that refills credits and never lists streams has no checkpoints.
    fn watch_checkpoints(&mut self, now: Instant) {
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

    fn publish(&self) {
        for (_, stream) in self.streams.iter() {
            publish_stream(&self.board, stream);
        }
    }

    // ---- the end ----

    async fn finish(&mut self) -> Option<Outcome> {
        let now = Instant::now();
        let wanted = *self.shutdown.receiver.borrow();
        match wanted {
            Shutdown::Run => {
                let done = self.streams.is_empty() && self.streams.completed() > 0 && self.kept.is_empty();
                if !done || !self.source_ready(now) {
                    return None;
                }
                if let Err(error) = beating(&self.board, self.source.close(now + CLOSE_TIMEOUT)).await {
                    self.source_failed(&error);
                    return None;
                }
                self.wire.close().await;
                self.board.set_complete();
                Some(Outcome::Completed)
            }
            Shutdown::Drain => {
                let deadline = *self.drain_until.get_or_insert(now + self.config.drain_timeout);
                let connected = self.wire.uplink().is_some();
                let on_its_way = connected && self.streams.outstanding() + self.kept.amount().0 > 0;
                let waits = on_its_way || !self.streams.commits().is_empty();
                if waits && now < deadline {
                    return None;
                }
                Some(self.leave(deadline).await)
            }
            Shutdown::Now => Some(self.leave(now).await),
        }
    }

    async fn leave(&mut self, deadline: Instant) -> Outcome {
        let records = self.streams.outstanding() + self.kept.amount().0 + self.given_up;
        let committed = self.streams.commits().is_empty();
        let closed = beating(&self.board, self.source.close(deadline)).await;
        if let Err(error) = &closed {
            warn!("Leaving the external system: {error}.");
        }
        self.wire.close().await;
        if records == 0 && committed && closed.is_ok() {
            Outcome::Drained
        } else {
            warn!(
                records,
                "Records were read and are not acknowledged; a system that keeps them gives them again."
            );
            Outcome::GivenUp { records }
        }
    }
}

fn publish_stream(board: &Board, stream: &super::streams::Stream) {
    if stream.phase == Phase::Barred {
        return;
    }
    board.stream(&stream.name, |status| {
        status.sent = stream.sent.or(status.sent);
        status.acknowledged = stream.acknowledged;
        status.committed = stream.committed;
    });
}

/// Awaits a call of the system while the heart goes on beating, for two minutes at most.
async fn beating<T>(board: &Board, call: impl Future<Output = T>) -> T {
    let start = Instant::now();
    let mut call = pin!(call);
    loop {
        tokio::select! {
            biased;
            result = &mut call => return result,
            () = sleep(TICK) => {
                if start.elapsed() < CALL_LIMIT {
                    board.heartbeat();
                }
            }
        }
    }
}

fn class(error: &SystemError) -> ErrorClass {
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
