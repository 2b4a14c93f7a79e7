//! The loop over the plain framings: many connections, split into records, straight to the target. Best effort.
//!
//! Wallaroo never sends anything again, so what can be done is to take what comes, to hold the sender back by its socket while the
//! target is slow, and at the end to read until nothing comes before the target is flushed.

mod delivering;
mod split;

use std::collections::{BTreeMap, VecDeque};

use bytes::{Bytes, BytesMut};
use connector_crds::LiveConfig;
use connector_env::Env;
use tokio::sync::watch;
use tokio::time::{Duration, Instant, sleep_until};
use tracing::{debug, info, warn};
use wallaroo_protocol::framing::FramingError;

use self::split::{Piece, Splitter};
use super::Shutdown;
use super::sink::link::{Happened, Link, LinkId, Links, Talk};
use super::sink::outlet::{Job, Outlet};
use super::sink::stalls::Stalls;
use super::sink::{
    Door, MAX_LINKS, SinkOutcome, SinkPumpConfig, SinkPumpError, Start, TICK, changed, is_paused, served,
    served_now,
};
use crate::board::{Board, Counters, DropReason, Side, SideState};
use crate::record::{Batch, BatchBuilder, Record};
use crate::sink::SinkStream;
use crate::source::ErrorClass;

/// Records and bytes at which a batch is closed; with an idle target it is written earlier.
const BATCH_RECORDS: usize = 10_000;
const BATCH_BYTES: usize = 1024 * 1024;

/// Time without a byte after which a connection is quiet at the end: twice Wallaroo's pause before it dials again.
const QUIET: Duration = Duration::from_millis(500);

/// Bytes of one connection on their way into records.
struct Peer {
    splitter: Splitter,
    last_byte: Instant,
    /// Since when our end is said, at the shutdown.
    quiet_since: Option<Instant>,
}

impl Talk for Peer {
    fn input(&mut self) -> &mut BytesMut {
        self.splitter.input()
    }

    fn output(&mut self) -> Option<Bytes> {
        None
    }

    fn wants_input(&self) -> bool {
        true
    }
}

/// Records of one connection on their way to the target; it outlives the connection until they are there.
struct Lane {
    stream: SinkStream,
    builder: BatchBuilder,
    full: VecDeque<Batch>,
    queued_bytes: u64,
    queued_records: u64,
    position: u64,
    written: u64,
    connected: bool,
    opened: bool,
    /// Refused and held: nothing more is written.
    stopped: bool,
}

impl Lane {
    fn push(&mut self, record: Record<'_>) {
        self.queued_bytes += (record.payload.len() + record.key.len()) as u64;
        self.queued_records += 1;
        self.builder.push(record);
        if self.builder.len() >= BATCH_RECORDS || self.builder.bytes() >= BATCH_BYTES {
            self.full.push_back(self.builder.finish());
        }
    }

    fn next_batch(&mut self) -> Option<Batch> {
        if let Some(batch) = self.full.pop_front() {
            return Some(batch);
        }
        (!self.builder.is_empty()).then(|| self.builder.finish())
    }

    fn is_empty(&self) -> bool {
        self.full.is_empty() && self.builder.is_empty()
    }
}

struct Pump<E: Env> {
    env: E,
    config: SinkPumpConfig,
    board: Board,
    stalls: Stalls,
    links: Links<E::Link, Peer>,
    lanes: BTreeMap<LinkId, Lane>,
    outlet: Outlet,
    checked: bool,
    letters: Option<Job>,
    served: LinkId,
    last_write: Option<Instant>,
    unflushed: bool,
    flushed_again_at: Option<Instant>,
    paused: bool,
    held_since: Option<Instant>,
    deadline: Option<Instant>,
    live: watch::Receiver<LiveConfig>,
    shutdown: watch::Receiver<Shutdown>,
}

/// Runs the pump until its shutdown.
pub(super) async fn run<E: Env>(start: Start<E>) -> Result<SinkOutcome, SinkPumpError> {
    let Start { env, config, sink, letters, board, live, shutdown } = start;
    let pump = Pump {
        outlet: Outlet::new(sink, letters, config.on_error),
        env,
        config,
        board,
        stalls: Stalls::default(),
        links: Links::default(),
        lanes: BTreeMap::new(),
        checked: false,
        letters: None,
        served: 0,
        last_write: None,
        unflushed: false,
        flushed_again_at: None,
        paused: is_paused(&live),
        held_since: None,
        deadline: None,
        live,
        shutdown,
    };
    pump.run().await
}

impl<E: Env> Pump<E> {
    async fn run(mut self) -> Result<SinkOutcome, SinkPumpError> {
        let mut door = Door::open(&self.env, &self.config.listen, &self.board).await?;
        loop {
            self.board.heartbeat();
            let now = Instant::now();
            if let Some(outcome) = self.end(now) {
                return Ok(outcome);
            }
            self.hold_reading(now);
            self.start_job(now);
            self.publish();
            let wake = self.wake_at(now);
            // A lane outlives its connection while the target is slow.
            let accepting = self.links.len() < MAX_LINKS && self.lanes.len() < 2 * MAX_LINKS;
            let Pump { live, shutdown, links, outlet, .. } = &mut self;
            tokio::select! {
                biased;
                () = changed(shutdown) => {}
                () = changed(live) => self.paused = is_paused(&self.live),
                (io, peer) = door.accept(), if accepting => {
                    self.accepted(io, peer);
                    // However many dial, the others are served in between.
                    if let Some(report) = served_now(&mut self.links, &mut self.outlet).await {
                        self.reported(report);
                    }
                    self.happened();
                }
                report = served(links, outlet) => {
                    if let Some(report) = report {
                        self.reported(report);
                    }
                    self.happened();
                }
                () = sleep_until(wake) => {}
            }
        }
    }

    fn wake_at(&self, now: Instant) -> Instant {
        let mut wake = now + TICK;
        // What was due and not begun waits for something else to happen: while paused nothing is written or flushed.
        let due = [self.outlet.waits_until(), self.flush_at()]
            .into_iter()
            .filter(|at| at.is_some_and(|at| at > now));
        for at in due.chain([self.deadline]).flatten() {
            wake = wake.min(at);
        }
        for (_, link) in self.links.iter() {
            let quiet = self.deadline.is_some().then(|| self.quiet_at(&link.talk));
            for at in [link.close_deadline(), quiet].into_iter().flatten() {
                wake = wake.min(at);
            }
        }
        wake
    }

    fn accepted(&mut self, io: E::Link, peer: String) {
        let talk = Peer {
            splitter: Splitter::new(self.config.protocol, self.config.framing),
            last_byte: Instant::now(),
            quiet_since: None,
        };
        let id = self.links.add(Link::new(io, peer, talk));
        let lane = Lane {
            // Positions start over with each connection, so no two share a stream.
            stream: SinkStream { worker: format!("peer-{id}"), incarnation: 0 },
            builder: BatchBuilder::default(),
            full: VecDeque::new(),
            queued_bytes: 0,
            queued_records: 0,
            position: 0,
            written: 0,
            connected: true,
            opened: false,
            stopped: false,
        };
        self.lanes.insert(id, lane);
        self.board.set_side(Side::Wallaroo, SideState::Connected);
    }

    fn happened(&mut self) {
        let mut happened = self.links.take_happened();
        for (id, what) in happened.drain(..) {
            match what {
                Happened::Read => self.read(id),
                Happened::Eof => {
                    let finished = self.links.get_mut(id).map_or(Ok(()), |link| link.talk.splitter.finish());
                    if let Err(error) = finished {
                        self.malformed(id, &error);
                    }
                    self.ended(id);
                }
                Happened::Failed(error) => {
                    debug!("A connection broke: {error}.");
                    self.ended(id);
                }
                Happened::Closed => self.ended(id),
            }
        }
        self.links.reuse(happened);
    }

    fn read(&mut self, id: LinkId) {
        let (Some(link), Some(lane)) = (self.links.get_mut(id), self.lanes.get_mut(&id)) else { return };
        link.talk.last_byte = Instant::now();
        let (mut records, mut bytes, mut long) = (0, 0, 0);
        let split = link.talk.splitter.split(|piece| match piece {
            Piece::Record { time, key, payload, taken } => {
                lane.position += taken;
                records += 1;
                bytes += (payload.len() + key.len()) as u64;
                lane.push(Record { position: lane.position, time, key, payload });
            }
            Piece::TooLong { taken } => {
                lane.position += taken;
                long += 1;
            }
        });
        let counters = self.board.counters();
        Counters::add(&counters.records_in, records + long);
        Counters::add(&counters.bytes_in, bytes);
        if long > 0 {
            self.board.dropped(DropReason::TooLarge, long);
            warn!(peer = link.peer, count = long, "Dropped lines that are too long.");
        }
        if records > 0 {
            self.board.moved_at(self.env.unix_millis());
        }
        if let Err(error) = split {
            self.malformed(id, &error);
            if let Some(link) = self.links.get_mut(id) {
                link.close(Instant::now());
            }
        }
    }

    fn malformed(&mut self, id: LinkId, error: &FramingError) {
        let Some(link) = self.links.get_mut(id).filter(|link| !link.is_closing()) else { return };
        let at = self.lanes.get(&id).map_or(0, |lane| lane.position);
        let message = format!(
            "connection from {} does not follow the {:?} framing at byte {at}: {error}; it is closed",
            link.peer, self.config.protocol
        );
        warn!("{message}.");
        self.board.dropped(DropReason::Decode, 1);
        self.board.error(Side::Wallaroo, ErrorClass::Protocol, &message, self.env.unix_millis());
        if self.links.len() == 1 {
            self.board
                .set_side(Side::Wallaroo, SideState::Failed { reason: "BadFraming".to_owned(), message });
        }
    }

    /// A connection is over; its records go on.
    fn ended(&mut self, id: LinkId) {
        self.links.remove(id);
        if let Some(lane) = self.lanes.get_mut(&id) {
            lane.connected = false;
        }
        let failed = matches!(self.board.side(Side::Wallaroo), SideState::Failed { .. });
        if self.links.len() == 0 && !failed {
            self.board.set_side(Side::Wallaroo, SideState::Waiting);
        }
    }

    fn hold_reading(&mut self, now: Instant) {
        let queued: u64 = self.lanes.values().map(|lane| lane.queued_bytes).sum();
        // At the end everything is read, whatever the live file says.
        let full = queued >= self.config.queue_bytes || (self.paused && self.deadline.is_none());
        for (id, link) in self.links.iter_mut() {
            let stopped = self.lanes.get(&id).is_some_and(|lane| lane.stopped);
            link.held = full || stopped;
            if full {
                link.talk.last_byte = now; // nothing was asked for
            }
        }
        if let Some(since) = self.held_since.take() {
            let micros = now.saturating_duration_since(since).as_micros() as u64;
            Counters::add(&self.board.counters().external_backpressure_micros, micros);
        }
        self.held_since = (full && !self.paused).then_some(now);
    }

    fn publish(&self) {
        let (mut records, mut bytes) = (0, 0);
        for lane in self.lanes.values() {
            records += lane.queued_records;
            bytes += lane.queued_bytes;
            self.board.stream(&lane.stream.worker, |status| {
                status.sent = Some(lane.position);
                status.committed = Some(lane.written);
            });
        }
        self.board.set_in_flight(records, bytes);
    }

    // ---- the end ----

    fn quiet_at(&self, peer: &Peer) -> Instant {
        let drained = self.deadline.map(|deadline| deadline - self.config.drain_timeout);
        let since = peer.quiet_since.max(drained).unwrap_or(peer.last_byte);
        peer.last_byte.max(since) + QUIET
    }

    /// Whether it is time to leave.
    fn end(&mut self, now: Instant) -> Option<SinkOutcome> {
        let asked = *self.shutdown.borrow();
        match asked {
            Shutdown::Run => return None,
            Shutdown::Now => return Some(self.outcome()),
            Shutdown::Drain => {}
        }
        let deadline = *self.deadline.get_or_insert_with(|| {
            info!("Draining: reading until nothing comes.");
            now + self.config.drain_timeout
        });
        let mut quiet = Vec::new();
        for (id, link) in self.links.iter() {
            if self.quiet_at(&link.talk) <= now && !link.held {
                quiet.push(id);
            }
        }
        for id in quiet {
            let Some(link) = self.links.get_mut(id) else { continue };
            if link.talk.quiet_since.is_none() {
                // Our end is said first and what still comes is read: closing would throw it away.
                link.talk.quiet_since = Some(now);
                link.half_close();
                continue;
            }
            if let Err(error) = link.talk.splitter.finish() {
                self.malformed(id, &error);
            }
            self.ended(id);
        }
        for (id, lane) in &self.lanes {
            if lane.stopped {
                self.links.remove(*id);
            }
        }
        let read = self.links.len() == 0;
        let written = self.lanes.values().all(|lane| lane.stopped || lane.is_empty());
        let idle = !self.outlet.is_busy() && self.letters.is_none();
        if (read && written && idle && !self.unflushed) || now >= deadline {
            return Some(self.outcome());
        }
        None
    }

    fn outcome(&self) -> SinkOutcome {
        let records: u64 = self.lanes.values().map(|lane| lane.queued_records).sum();
        if records == 0 {
            return SinkOutcome::Drained;
        }
        self.board.dropped(DropReason::Shutdown, records);
        SinkOutcome::GivenUp { records }
    }
}
