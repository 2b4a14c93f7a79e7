//! What workers say, and what becomes of it in their transaction logs.

use bytes::Bytes;
use connector_env::Env;
use tokio::time::Instant;
use tracing::{debug, info, warn};
use wallaroo_protocol::{
    Cookie, Run, SinkMode, SinkServer, SinkServerConfig, SinkServerError, SinkServerEvent,
};

use super::SinkPumpError;
use super::connector::Pump;
use super::known::{Worker, no_space};
use super::link::LinkId;
use super::stalls::Stall;
use crate::board::{AckMode, Counters, Side, SideState};
use crate::pump::workers::Phase;
use crate::source::ErrorClass;

/// Distinct worker names at a time: far more than a cluster has, so that a peer that invents names cannot fill memory.
const MAX_WORKERS: usize = 1_024;

/// What follows an event.
pub(super) enum Flow {
    /// The next one.
    Next,
    /// Nothing until there is room for so many bytes; the event comes again.
    Blocked(SinkServerEvent, u64),
    /// The connection ends.
    Close,
}

impl<E: Env> Pump<E> {
    pub(super) fn new_server(&self, cookie: Cookie) -> SinkServer {
        let mut config = SinkServerConfig::new(cookie);
        config.mode = match self.config.ack_mode {
            AckMode::Checkpoint => SinkMode::TwoPhase,
            AckMode::OnReceipt => SinkMode::OnReceipt,
        };
        SinkServer::new(config, self.millis(Instant::now()))
    }

    /// Bytes came.
    pub(super) fn read(&mut self, id: LinkId) -> Result<(), SinkPumpError> {
        let now = self.millis(Instant::now());
        let Some(link) = self.links.get_mut(id) else { return Ok(()) };
        let handled = link.talk.server.handle_input(now);
        self.events(id)?;
        if let Err(error) = handled {
            self.session_failed(id, &error)?;
        }
        Ok(())
    }

    /// What found no room is tried again.
    pub(super) fn retry_blocked(&mut self) -> Result<(), SinkPumpError> {
        let blocked: Vec<LinkId> =
            self.links.iter().filter(|(_, link)| link.talk.blocked.is_some()).map(|(id, _)| id).collect();
        for id in blocked {
            self.events(id)?;
            self.read(id)?; // frames behind a decision that was awaited
        }
        self.report_space();
        Ok(())
    }

    fn events(&mut self, id: LinkId) -> Result<(), SinkPumpError> {
        loop {
            let Some(link) = self.links.get_mut(id).filter(|link| !link.is_closing()) else { return Ok(()) };
            let session = &mut link.talk;
            let Some(event) = session.blocked.take().or_else(|| session.server.poll_event()) else {
                return Ok(());
            };
            match self.event(id, event)? {
                Flow::Next => {}
                Flow::Blocked(event, needed) => {
                    if let Some(link) = self.links.get_mut(id) {
                        link.talk.blocked = Some(event);
                        link.talk.needed = needed;
                    }
                    let now = Instant::now();
                    self.forget_now(now)?;
                    self.retry_space(now);
                    self.report_space();
                    return Ok(());
                }
                Flow::Close => {
                    self.close(id)?;
                    return Ok(());
                }
            }
        }
    }

    fn close(&mut self, id: LinkId) -> Result<(), SinkPumpError> {
        if let Some(link) = self.links.get_mut(id) {
            link.close(Instant::now());
        }
        self.detach(id)
    }

    fn event(&mut self, id: LinkId, event: SinkServerEvent) -> Result<Flow, SinkPumpError> {
        let worker = self.links.get_mut(id).and_then(|link| link.talk.worker.clone());
        match (event, worker) {
            (SinkServerEvent::Hello { application, worker }, _) => self.hello(id, application, worker),
            (event, None) => {
                debug!(?event, "A session without a worker.");
                Ok(Flow::Close)
            }
            (SinkServerEvent::Data(run), Some(worker)) => self.data(id, &worker, run),
            (SinkServerEvent::Prepare { transaction, start, end, vote }, Some(worker)) => {
                self.prepare(id, &worker, transaction, start, end, vote)
            }
            (SinkServerEvent::Decide { transaction, commit }, Some(worker)) => {
                self.decide(&worker, transaction, commit)
            }
            (SinkServerEvent::UnknownDecision { transaction, commit }, Some(worker)) => {
                debug!(?worker, ?transaction, commit, "A decision that was made before.");
                Ok(Flow::Next)
            }
            (SinkServerEvent::FreshCluster { close_first, in_doubt }, Some(worker)) => {
                self.fresh_cluster(id, &worker, close_first, in_doubt)
            }
            (SinkServerEvent::Poisoned { expected, got }, Some(worker)) => {
                Ok(self.poisoned(&worker, expected, got))
            }
            (SinkServerEvent::WorkersLeft { workers }, Some(_)) => self.workers_left(workers),
        }
    }

    fn hello(&mut self, id: LinkId, application: Bytes, name: Bytes) -> Result<Flow, SinkPumpError> {
        if !self.workers.contains_key(&name) {
            if self.workers.len() >= MAX_WORKERS {
                if let Some(link) = self.links.get_mut(id) {
                    link.talk.server.error("Too many workers");
                }
                let message = format!("more than {MAX_WORKERS} workers have output here");
                self.wallaroo_failed("TooManyWorkers", ErrorClass::Rejected, &message);
                return Ok(Flow::Close);
            }
            let text = String::from_utf8_lossy(&name).into_owned();
            let streams = Vec::new();
            let worker = Worker { name: text, streams, link: None, newest: 0, leaving: false, adopt: None };
            self.workers.insert(name.clone(), worker);
        }
        // A connection that the worker gave up before it dialled anew may be read late: what it carries is of a time before
        // a rollback, and could look like a fresh cluster.
        if self.workers.get(&name).is_some_and(|worker| worker.newest > id) {
            info!(worker = ?name, "A connection said HELLO after a newer one of the same worker: it is closed.");
            return Ok(Flow::Close);
        }
        // The worker is here again: whatever it was before is over (§4.6).
        if let Some(older) = self.workers.get(&name).and_then(|worker| worker.link).filter(|link| *link != id)
        {
            info!(worker = ?name, "A worker dialled again: its earlier connection is closed.");
            self.close(older)?;
        }
        if let Err(error) = self.ready_log(&name) {
            let event = SinkServerEvent::Hello { application, worker: name };
            return Ok(Flow::Blocked(event, no_space(error)?));
        }
        let millis = self.millis(Instant::now());
        let Some(worker) = self.workers.get_mut(&name) else { return Ok(Flow::Close) };
        worker.link = Some(id);
        worker.newest = id;
        worker.leaving = false;
        let state = worker.current().map(|stream| stream.log.state().worker_state()).unwrap_or_default();
        info!(
            worker = worker.name,
            application = ?application,
            committed = state.committed,
            undecided = state.pending.is_some(),
            "A worker connected."
        );
        let Some(link) = self.links.get_mut(id) else { return Ok(Flow::Close) };
        link.talk.worker = Some(name);
        let accepted = link.talk.server.accept(state, millis);
        self.board.set_side(Side::Wallaroo, SideState::Connected);
        match accepted {
            Ok(()) => Ok(Flow::Next),
            Err(error) => {
                self.session_failed(id, &error)?;
                Ok(Flow::Next)
            }
        }
    }

    fn data(&mut self, id: LinkId, name: &Bytes, run: Run) -> Result<Flow, SinkPumpError> {
        let on_receipt = self.config.ack_mode == AckMode::OnReceipt;
        let Some(worker) = self.workers.get_mut(name) else { return Ok(Flow::Close) };
        worker.leaving = false;
        let Some(stream) = worker.current() else { return Ok(Flow::Close) };
        // At receipt a rollback brings again what was delivered: it is told by its offset.
        let skip_below = if on_receipt { stream.log.state().received } else { 0 };
        let mut fresh = run.iter().filter(move |record| record.id >= skip_below).peekable();
        let Some(first) = fresh.peek().map(|record| record.id) else { return Ok(Flow::Next) };
        let before = (stream.log.state().records, stream.log.state().received);
        let appended = stream.log.append(first, fresh.map(|record| record.payload), on_receipt);
        if let Err(error) = appended {
            return Ok(Flow::Blocked(SinkServerEvent::Data(run), no_space(error)?));
        }
        let state = stream.log.state();
        let (records, bytes) = (state.records - before.0, state.received - before.1.max(first));
        let counters = self.board.counters();
        Counters::add(&counters.records_in, records);
        Counters::add(&counters.bytes_in, bytes);
        self.board.moved_at(self.env.unix_millis());
        if !on_receipt && let Some(link) = self.links.get_mut(id) {
            link.talk.unasked_since.get_or_insert_with(Instant::now);
        }
        Ok(Flow::Next)
    }

    fn prepare(
        &mut self,
        id: LinkId,
        name: &Bytes,
        transaction: Bytes,
        start: u64,
        end: u64,
        vote: bool,
    ) -> Result<Flow, SinkPumpError> {
        let on_receipt = self.config.ack_mode == AckMode::OnReceipt;
        let Some(worker) = self.workers.get_mut(name) else { return Ok(Flow::Close) };
        worker.leaving = false;
        let Some(stream) = worker.current() else { return Ok(Flow::Close) };
        if !vote && stream.log.is_pristine() && start == end && start > 0 {
            // The log is new and the cluster is not: no reason to vote against it.
            worker.adopt = Some(start);
            warn!(worker = worker.name, offset = start, "The log is new: going on where the cluster is.");
            return Ok(Flow::Close);
        }
        let prepared =
            if on_receipt { stream.log.sync() } else { stream.log.prepare(&transaction, vote, start, end) };
        if let Err(error) = prepared {
            let event = SinkServerEvent::Prepare { transaction, start, end, vote };
            return Ok(Flow::Blocked(event, no_space(error)?));
        }
        let worker_name = worker.name.clone();
        if !vote {
            Counters::add(&self.board.counters().transactions_aborted, 1);
            warn!(worker = worker_name, ?transaction, start, end, "Voted no.");
        }
        if let Some(link) = self.links.get_mut(id) {
            link.talk.server.voted();
            link.talk.unasked_since = None;
        }
        if !on_receipt {
            self.board.set_ack_mode(AckMode::Checkpoint);
            self.stalls.clear(&self.board, &Stall::NoCheckpoints(worker_name));
        }
        Ok(Flow::Next)
    }

    fn decide(&mut self, name: &Bytes, transaction: Bytes, commit: bool) -> Result<Flow, SinkPumpError> {
        let Some(stream) = self.workers.get_mut(name).and_then(Worker::current) else {
            return Ok(Flow::Close);
        };
        // At receipt no vote is recorded, unless it was before the mode changed.
        let Some(pending) = stream.log.state().pending.clone().filter(|p| p.transaction == transaction)
        else {
            return Ok(Flow::Next);
        };
        let records = stream.log.state().records - stream.log.state().committed_records;
        if let Err(error) = stream.log.decide(commit) {
            let event = SinkServerEvent::Decide { transaction, commit };
            return Ok(Flow::Blocked(event, no_space(error)?));
        }
        self.stalls.clear(&self.board, &Stall::Decision(String::from_utf8_lossy(name).into_owned()));
        let counters = self.board.counters();
        if commit {
            Counters::add(&counters.transactions_committed, 1);
        } else if pending.vote {
            Counters::add(&counters.transactions_aborted, 1);
            info!(?transaction, records, "Rolled back.");
        }
        Ok(Flow::Next)
    }

    pub(super) fn session_failed(
        &mut self,
        id: LinkId,
        error: &SinkServerError,
    ) -> Result<(), SinkPumpError> {
        let Some(link) = self.links.get_mut(id).filter(|link| !link.is_closing()) else { return Ok(()) };
        let (reason, class) = match error {
            SinkServerError::BadVersion { .. } => ("VersionRefused", ErrorClass::Protocol),
            SinkServerError::BadCookie => ("CookieRefused", ErrorClass::Auth),
            SinkServerError::HandshakeTimeout => ("NotServed", ErrorClass::Timeout),
            SinkServerError::Peer(_) => ("SessionEnded", ErrorClass::Rejected),
            SinkServerError::Frame(_)
            | SinkServerError::Decode(_)
            | SinkServerError::Unexpected { .. }
            | SinkServerError::BadStream { .. }
            | SinkServerError::DataWhilePending { .. }
            | SinkServerError::Phase1WhilePending
            | SinkServerError::DecisionBeforeVote
            | SinkServerError::CommitAfterNo { .. } => ("ProtocolError", ErrorClass::Protocol),
        };
        let message = format!("{}: {error}", link.peer);
        let worker = link.talk.worker.clone();
        self.close(id)?;
        if let (true, Some(worker)) = (error.is_fatal(), worker) {
            let text = String::from_utf8_lossy(&worker).into_owned();
            let stall = Stall::Decision(text.clone());
            self.stalls.set(&self.board, stall, "DecisionConflict", format!("worker {text}: {error}"));
        }
        self.wallaroo_failed(reason, class, &message);
        Ok(())
    }

    /// A connection is no longer its worker's.
    pub(super) fn detach(&mut self, id: LinkId) -> Result<(), SinkPumpError> {
        let Some(link) = self.links.get_mut(id) else { return Ok(()) };
        let name = link.talk.worker.take();
        link.talk.blocked = None;
        let Some(name) = name else { return Ok(()) };
        if let Some(worker) = self.workers.get_mut(&name).filter(|worker| worker.link == Some(id)) {
            worker.link = None;
            let text = worker.name.clone();
            let leaving = std::mem::take(&mut worker.leaving);
            info!(worker = text, "A worker's connection ended.");
            self.stalls.clear(&self.board, &Stall::NoCheckpoints(text.clone()));
            self.stalls.clear(&self.board, &Stall::Space(text));
            if let Some(stream) = worker.current() {
                // It comes again on the next connection.
                if let Err(error) = stream.log.discard_staged() {
                    no_space(error)?;
                }
            }
            if leaving {
                let index = worker.streams.len().saturating_sub(1);
                // Without room it is found out when a worker of that name starts at 0 again.
                let _ = self.end_stream(&name, index)?;
            }
        }
        if self.links.iter().all(|(_, link)| link.talk.worker.is_none()) {
            self.board.set_side(Side::Wallaroo, SideState::Waiting);
        }
        Ok(())
    }

    /// Reports workers whose output is never asked about.
    pub(super) fn watch_checkpoints(&mut self, now: Instant) {
        let limit = self.config.no_checkpoints_after;
        let Pump { links, stalls, board, workers, .. } = self;
        for (_, link) in links.iter() {
            let (Some(since), Some(name)) = (link.talk.unasked_since, &link.talk.worker) else { continue };
            if now.saturating_duration_since(since) < limit {
                continue;
            }
            let text = workers.get(name).map_or("", |worker| &worker.name);
            let message = format!(
                "worker {text} sends output and no checkpoint asks to deliver it: switch Wallaroo's resilience on, or ask for \
                 `delivery.ackMode: OnReceipt`"
            );
            stalls.set(board, Stall::NoCheckpoints(text.to_owned()), "NoCheckpoints", message);
        }
    }

    fn forget_now(&mut self, now: Instant) -> Result<(), SinkPumpError> {
        let retain = self.config.retain;
        for stream in self.workers.values_mut().flat_map(|worker| &mut worker.streams) {
            stream.log.forget(now, retain)?;
        }
        Ok(())
    }

    /// Says so when the open transaction of a worker alone fills the volume: nothing that is on its way will make room.
    fn report_space(&mut self) {
        let waiting = self.streams().any(|stream| {
            stream.log.has_closed_segments()
                || stream.delivery.phase() != Phase::Stopped && stream.log.state().undelivered() > 0
                || stream.log.state().ended == Some(false)
        });
        let mut blocked = Vec::new();
        for (_, link) in self.links.iter() {
            let ((Some(SinkServerEvent::Hello { worker: name, .. }), _) | (Some(_), Some(name))) =
                (&link.talk.blocked, &link.talk.worker)
            else {
                continue;
            };
            blocked.push((name.clone(), link.talk.needed));
        }
        let full = !blocked.is_empty() && !waiting;
        for (name, worker) in &mut self.workers {
            let stall = Stall::Space(worker.name.clone());
            let needed = blocked.iter().find(|(blocked, _)| blocked == name).map(|(_, needed)| *needed);
            let Some(needed) = needed.filter(|_| full) else {
                self.stalls.clear(&self.board, &stall);
                continue;
            };
            let (open, kept) = worker.current().map_or((0, 0), |stream| {
                let state = stream.log.state();
                (state.received - state.committed, stream.log.kept_before_open())
            });
            let message = format!(
                "the open transaction of worker {} fills the state volume: it has {open} bytes so far and needs at least {} in \
                 all, beside {kept} bytes of earlier output that stay until it is decided; enlarge the volume, or make Wallaroo's checkpoints more frequent",
                worker.name,
                open + needed
            );
            self.stalls.set(&self.board, stall, "TransactionTooLarge", message);
        }
    }
}
