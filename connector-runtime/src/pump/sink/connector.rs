//! The loop over `Connector`: sessions, transaction logs, and the target.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use connector_crds::LiveConfig;
use connector_env::Env;
use tokio::sync::watch;
use tokio::time::{Duration, Instant, sleep_until};
use tracing::{debug, info, warn};
use wallaroo_protocol::Millis;

use super::known::{Session, Stream, Worker, older_name};
use super::link::{Happened, Link, LinkId, Links};
use super::outlet::{Job, Outlet};
use super::stalls::Stalls;
use super::{
    Door, MAX_LINKS, Shutdown, SinkOutcome, SinkPumpConfig, SinkPumpError, Start, TICK, changed, is_paused,
    served, served_now,
};
use crate::board::{AckMode, Board, Counters, Side, SideState};
use crate::pump::workers::Phase;
use crate::record::BatchBuilder;
use crate::sink::SinkStream;
use crate::txn_log::{self, Cursor, TxnLog};

/// Pause between attempts to write what found no room on the volume.
pub(super) const SPACE_RETRY: Duration = Duration::from_millis(250);

/// How long a drain waits for decisions on what was voted for: checkpoints complete within about a second, and what is not
/// decided by then is decided after the next connection.
const DECISION_WAIT: Duration = Duration::from_secs(3);

/// Bounds of a drain.
#[derive(Clone, Copy, Debug)]
pub(super) struct Draining {
    decisions_until: Instant,
    deadline: Instant,
}

/// The pump.
pub(super) struct Pump<E: Env> {
    pub(super) env: E,
    pub(super) config: SinkPumpConfig,
    pub(super) board: Board,
    pub(super) stalls: Stalls,
    pub(super) links: Links<E::Link, Session>,
    pub(super) workers: BTreeMap<Bytes, Worker<E>>,
    pub(super) outlet: Outlet,
    pub(super) builder: BatchBuilder,
    pub(super) checked: bool,
    /// Where each batch that is being written begins and ends.
    pub(super) writing: VecDeque<(u64, Cursor)>,
    /// Letters of a written batch that are not durable yet: nothing else is asked of the sink before.
    pub(super) letters: Option<Job>,
    /// A refused record whose hold found no room on the volume.
    pub(super) unheld: Option<(SinkStream, u64)>,
    /// The stream served last.
    pub(super) served: Option<SinkStream>,
    pub(super) paused: bool,
    pub(super) draining: Option<Draining>,
    live: watch::Receiver<LiveConfig>,
    shutdown: watch::Receiver<Shutdown>,
    started: Instant,
    reading_held_since: Option<Instant>,
    space_retry: Option<Instant>,
    housekeeping: Instant,
}

/// Runs the pump until its shutdown.
pub(super) async fn run<E: Env>(start: Start<E>) -> Result<SinkOutcome, SinkPumpError> {
    let Start { env, config, sink, letters, board, live, shutdown } = start;
    let now = Instant::now();
    let mut pump = Pump {
        outlet: Outlet::new(sink, letters, config.on_error),
        env,
        config,
        board,
        stalls: Stalls::default(),
        links: Links::default(),
        workers: BTreeMap::new(),
        builder: BatchBuilder::default(),
        checked: false,
        writing: VecDeque::new(),
        letters: None,
        unheld: None,
        served: None,
        paused: is_paused(&live),
        draining: None,
        live,
        shutdown,
        started: now,
        reading_held_since: None,
        space_retry: None,
        housekeeping: now,
    };
    pump.recover()?;
    pump.run().await
}

impl<E: Env> Pump<E> {
    fn recover(&mut self) -> Result<(), SinkPumpError> {
        if self.config.ack_mode == AckMode::OnReceipt {
            self.board.set_ack_mode(AckMode::OnReceipt);
        }
        let directory = txn_log::directory(&self.config.state);
        for (name, logs) in TxnLog::recover_all(&self.env, &directory)? {
            let text = String::from_utf8_lossy(&name).into_owned();
            let streams: Vec<_> = logs.into_iter().map(|log| Stream::new(&text, log)).collect();
            let (count, waiting) =
                (streams.len(), streams.iter().map(|s| s.log.state().undelivered()).sum::<u64>());
            info!(
                worker = text,
                incarnations = count,
                undelivered_bytes = waiting,
                "Recovered a transaction log."
            );
            let worker = Worker { name: text, streams, link: None, newest: 0, leaving: false, adopt: None };
            self.workers.insert(name.clone(), worker);
            for index in 0..count {
                let ended =
                    self.workers.get(&name).is_some_and(|w| w.streams[index].log.state().ended.is_some());
                // One that has a successor is over, whatever a crash kept it from saying.
                if ended || index + 1 < count {
                    self.end_stream(&name, index)?;
                }
            }
            self.report_kept(&name);
        }
        Ok(())
    }

    async fn run(mut self) -> Result<SinkOutcome, SinkPumpError> {
        let mut door = Door::open(&self.env, &self.config.listen, &self.board).await?;
        loop {
            self.board.heartbeat();
            match self.end() {
                Some(outcome) => return self.leave(outcome),
                None => self.turn()?,
            }
            let wake = self.wake_at();
            if self.draining.is_some() {
                door.close();
            }
            let accepting = self.links.len() < MAX_LINKS;
            let Pump { live, shutdown, links, outlet, .. } = &mut self;
            tokio::select! {
                biased;
                () = changed(shutdown) => {}
                () = changed(live) => self.paused = is_paused(&self.live),
                (io, peer) = door.accept(), if accepting => {
                    self.accepted(io, peer);
                    // However many dial, the others are served in between.
                    if let Some(report) = served_now(&mut self.links, &mut self.outlet).await {
                        self.reported(report)?;
                    }
                    self.happened()?;
                }
                report = served(links, outlet) => {
                    if let Some(report) = report {
                        self.reported(report)?;
                    }
                    self.happened()?;
                }
                () = sleep_until(wake) => {}
            }
        }
    }

    /// Everything that needs no waiting.
    fn turn(&mut self) -> Result<(), SinkPumpError> {
        let now = Instant::now();
        self.close_expired(now)?;
        if self.housekeeping <= now {
            self.housekeeping = now + TICK;
            self.forget(now)?;
            self.watch_checkpoints(now);
        }
        if self.space_retry.is_some_and(|at| at <= now) {
            self.space_retry = None;
            self.retry_blocked()?;
        }
        self.start_job(now)?;
        self.hold_reading(now);
        self.publish();
        Ok(())
    }

    /// When the next turn is due at the latest.
    fn wake_at(&self) -> Instant {
        let now = Instant::now();
        let mut wake = now + TICK;
        let drained = self.draining.map(|draining| draining.deadline);
        let decided = self.draining.map(|draining| draining.decisions_until);
        // What was due and not begun waits for something else to happen: while paused nothing is written or flushed.
        let due = [self.space_retry, self.outlet.waits_until(), self.flush_at(), decided]
            .into_iter()
            .filter(|at| at.is_some_and(|at| at > now));
        for at in due.chain([drained]).flatten() {
            wake = wake.min(at);
        }
        for (_, link) in self.links.iter() {
            if let Some(at) = link.close_deadline() {
                wake = wake.min(at);
            }
            if let Some(Millis(at)) = link.talk.server.poll_timeout() {
                wake = wake.min(self.started + Duration::from_millis(at));
            }
        }
        wake
    }

    /// The clock of the sessions.
    pub(super) fn millis(&self, now: Instant) -> Millis {
        Millis(u64::try_from(now.saturating_duration_since(self.started).as_millis()).unwrap_or(u64::MAX))
    }

    fn accepted(&mut self, io: E::Link, peer: String) {
        let cookie = match self.config.cookie.read() {
            Ok(cookie) => cookie,
            Err(error) => {
                self.wallaroo_failed(error.reason(), crate::source::ErrorClass::Auth, &error.to_string());
                return;
            }
        };
        let server = self.new_server(cookie);
        let session = Session { server, worker: None, blocked: None, needed: 0, unasked_since: None };
        self.links.add(Link::new(io, peer, session));
    }

    fn happened(&mut self) -> Result<(), SinkPumpError> {
        let mut happened = self.links.take_happened();
        for (id, what) in happened.drain(..) {
            match what {
                Happened::Read => self.read(id)?,
                Happened::Eof => {
                    // The worker waits for our end before it dials again (§4.9).
                    if let Some(link) = self.links.get_mut(id) {
                        link.close(Instant::now());
                    }
                    self.detach(id)?;
                }
                Happened::Failed(error) => {
                    debug!("A connection broke: {error}.");
                    self.drop_link(id)?;
                }
                Happened::Closed => self.drop_link(id)?,
            }
        }
        self.links.reuse(happened);
        Ok(())
    }

    pub(super) fn drop_link(&mut self, id: LinkId) -> Result<(), SinkPumpError> {
        self.detach(id)?;
        self.links.remove(id);
        Ok(())
    }

    fn close_expired(&mut self, now: Instant) -> Result<(), SinkPumpError> {
        let millis = self.millis(now);
        let mut expired = Vec::new();
        for (id, link) in self.links.iter_mut() {
            if link.talk.server.handle_timeout(millis).is_err() && !link.is_closing() {
                // A peer that said nothing: a probe, or a worker that gave up. Normal.
                debug!(peer = link.peer, "A peer sent no HELLO in time.");
                link.close(now);
                expired.push(id);
            }
        }
        for id in expired {
            self.detach(id)?;
        }
        Ok(())
    }

    /// Decided and undelivered bytes of all workers.
    pub(super) fn backlog(&self) -> u64 {
        self.streams().map(|stream| stream.log.state().undelivered()).sum()
    }

    pub(super) fn streams(&self) -> impl Iterator<Item = &Stream<E>> {
        self.workers.values().flat_map(|worker| &worker.streams)
    }

    /// Reading stops at the bound of the backlog; while draining only decisions are read.
    fn hold_reading(&mut self, now: Instant) {
        let full = self.backlog() >= self.config.backlog_bytes;
        let draining = self.draining.is_some();
        let decisions = self.draining.is_some_and(|draining| now < draining.decisions_until);
        let Pump { workers, links, .. } = self;
        let mut blocked = false;
        for (_, link) in links.iter_mut() {
            // The intro is always finished: a worker whose first one is not never takes part in checkpoints again (§7.10).
            link.held = full && !draining && link.talk.server.poll_timeout().is_none();
            blocked |= link.talk.blocked.is_some();
            if link.held || link.talk.blocked.is_some() {
                // What nobody reads cannot ask.
                link.talk.unasked_since = link.talk.unasked_since.map(|_| now);
            }
            if draining && !link.is_closing() {
                let worker = link.talk.worker.as_ref().and_then(|name| workers.get_mut(name));
                let waits = worker.and_then(Worker::current).is_some_and(|s| s.log.state().pending.is_some());
                if !(waits && decisions) {
                    link.close(now);
                }
            }
        }
        let held = full || blocked;
        if let Some(since) = self.reading_held_since.take() {
            let micros = now.saturating_duration_since(since).as_micros() as u64;
            Counters::add(&self.board.counters().external_backpressure_micros, micros);
        }
        self.reading_held_since = held.then_some(now);
    }

    /// An event found no room on the volume: it is tried again, at the latest after a pause.
    pub(super) fn retry_space(&mut self, now: Instant) {
        self.space_retry.get_or_insert(now + SPACE_RETRY);
    }

    fn forget(&mut self, now: Instant) -> Result<(), SinkPumpError> {
        let retain = self.config.retain;
        for worker in self.workers.values_mut() {
            for stream in &mut worker.streams {
                stream.log.forget(now, retain)?;
            }
        }
        Ok(())
    }

    fn publish(&self) {
        let (mut records, mut bytes) = (0, 0);
        for worker in self.workers.values() {
            let last = worker.streams.len().saturating_sub(1);
            for (index, stream) in worker.streams.iter().enumerate() {
                let state = stream.log.state();
                let durable = stream.log.state().delivered;
                records += state.records.saturating_sub(state.delivered_records);
                bytes += state.received.saturating_sub(durable);
                let write = |status: &mut crate::board::StreamStatus| {
                    status.sent = Some(state.received);
                    status.acknowledged = Some(state.committed);
                    status.committed = Some(durable);
                };
                if index == last {
                    self.board.stream(&worker.name, write);
                } else {
                    self.board.stream(&older_name(&stream.id), write);
                }
            }
        }
        self.board.set_in_flight(records, bytes);
    }

    // ---- the end ----

    /// Whether it is time to leave.
    fn end(&mut self) -> Option<SinkOutcome> {
        let asked = *self.shutdown.borrow();
        let now = Instant::now();
        match asked {
            Shutdown::Run => return None,
            Shutdown::Now => return Some(self.outcome()),
            Shutdown::Drain => {}
        }
        let timeout = self.config.drain_timeout;
        let draining = *self.draining.get_or_insert_with(|| {
            info!("Draining: delivering what is decided.");
            Draining { decisions_until: now + DECISION_WAIT.min(timeout), deadline: now + timeout }
        });
        let delivered = self.paused
            || self.streams().all(|stream| {
                stream.delivery.phase() == Phase::Stopped || stream.log.state().undelivered() == 0
            });
        let over = self.links.len() == 0 && delivered && !self.outlet.is_busy();
        if over || now >= draining.deadline {
            return Some(self.outcome());
        }
        None
    }

    fn outcome(&self) -> SinkOutcome {
        let records: u64 = self
            .streams()
            .map(|stream| {
                let state = stream.log.state();
                let voted = state.pending.as_ref().is_some_and(|pending| pending.vote);
                let promised = if voted { state.records } else { state.committed_records };
                promised.saturating_sub(state.delivered_records)
            })
            .sum();
        if records == 0 { SinkOutcome::Drained } else { SinkOutcome::GivenUp { records } }
    }

    fn leave(mut self, outcome: SinkOutcome) -> Result<SinkOutcome, SinkPumpError> {
        for worker in self.workers.values_mut() {
            for stream in &mut worker.streams {
                stream.log.sync()?;
            }
        }
        self.publish();
        Ok(outcome)
    }

    /// Something is wrong with a peer.
    pub(super) fn wallaroo_failed(&mut self, reason: &str, class: crate::source::ErrorClass, message: &str) {
        self.board.error(Side::Wallaroo, class, message, self.env.unix_millis());
        let state = SideState::Failed { reason: reason.to_owned(), message: message.to_owned() };
        if self.board.side(Side::Wallaroo) != state {
            warn!(reason, "A session with Wallaroo failed: {message}.");
        }
        if self.links.iter().all(|(_, link)| link.talk.worker.is_none()) {
            self.board.set_side(Side::Wallaroo, state);
        }
    }
}
