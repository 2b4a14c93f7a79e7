//! Source side of the cluster: connections, the registry of streams, records and what they become.

use std::collections::{BTreeSet, VecDeque};

use wallaroo_protocol::StreamId;

use super::queue::OutputQueue;
use super::snapshot::SavedStream;
use super::{Cluster, Wake};
use crate::application::process;
use crate::config::{Application, ReleasePosition, SourceProtocol};
use crate::status::{Phase, SourceStatus};

/// Number of a source connection; never used twice.
pub(crate) type ConnectionId = u64;

/// NOTIFY is refused beyond so many streams, so that memory is bounded.
const MAX_STREAMS: usize = 1_000_000;

/// Bytes of a bad record that the status shows.
const EXAMPLE_BYTES: usize = 64;

/// Order from the cluster to the driver of a source connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SourceCommand {
    /// ACK with these positions and all credits.
    Acknowledge(Vec<(StreamId, Option<u64>)>),
    /// ACK with the final positions of ended streams.
    AcknowledgeEnded(Vec<(StreamId, Option<u64>)>),
    /// ERROR, then close.
    Error(String),
    /// RESTART; then close, or leave that to the client.
    Restart {
        /// Address in the frame.
        address: String,
        /// The worker closes.
        close: bool,
    },
    /// The worker leaves the cluster: NOTIFY and MESSAGE are errors from now on.
    Shrink,
    /// Close without a word.
    Close,
}

/// Answer of the registry to NOTIFY.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotifyAnswer {
    /// The stream is open behind this position.
    Accepted(Option<u64>),
    /// It is active elsewhere, or refused by the fault plan.
    Refused,
    /// No answer at all.
    Silence,
}

/// A source connection of one worker.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(super) worker: String,
    pub(super) source: usize,
    commands: VecDeque<SourceCommand>,
    streams: BTreeSet<u64>,
    /// Accepted during a rollback: gets RESTART in place of OK.
    restart_instead: bool,
    /// Its worker has left.
    orphaned: bool,
    /// Records are ignored: a fault has struck this connection.
    deaf: bool,
    closing: bool,
}

/// A stream in the registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stream {
    name: Vec<u8>,
    pub(super) owner: Option<ConnectionId>,
    /// EOS arrived; the final acknowledgement is due with this checkpoint.
    ends_at: Option<u64>,
    pub(super) seen: Option<u64>,
    pub(super) acked: Option<u64>,
}

impl Stream {
    pub(super) fn saved(&self) -> SavedStream {
        SavedStream { name: self.name.clone(), position: self.acked }
    }

    pub(super) fn restored(saved: &SavedStream) -> Stream {
        let position = saved.position;
        Stream { name: saved.name.clone(), owner: None, ends_at: None, seen: position, acked: position }
    }

    fn release(&mut self, position: ReleasePosition) {
        self.owner = None;
        self.ends_at = None;
        match position {
            ReleasePosition::LastAcked => self.seen = self.acked,
            ReleasePosition::LastSeen => {}
        }
    }
}

/// Figures of a stream that outlive sessions and rollbacks.
#[derive(Clone, Debug, Default)]
pub(super) struct StreamStats {
    pub(super) name: Vec<u8>,
    pub(super) records: u64,
}

/// Records that arrived together: of one stream, or of a plain connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Batch<I> {
    /// The stream; plain connections have none.
    pub(crate) stream: Option<u64>,
    /// Number of records.
    pub(crate) len: usize,
    /// Bytes of all payloads.
    pub(crate) bytes: usize,
    /// Id of the last record; plain connections have none.
    pub(crate) last_id: Option<u64>,
    /// Payloads in order.
    pub(crate) payloads: I,
}

/// What the fault plan does when its threshold is reached.
enum Strike {
    Stall,
    Close,
    Error(String),
    Restart { address: String, close: bool },
    Rollback,
}

impl Cluster {
    /// A connection was accepted.
    pub(crate) fn source_connected(&mut self, worker: &str, source: usize) -> ConnectionId {
        let id = self.fresh_id();
        let connection = Connection {
            worker: worker.to_owned(),
            source,
            commands: VecDeque::new(),
            streams: BTreeSet::new(),
            restart_instead: self.phase == Phase::RollingBack && self.is_connector(source),
            orphaned: false,
            deaf: false,
            closing: false,
        };
        self.connections.insert(id, connection);
        id
    }

    fn is_connector(&self, source: usize) -> bool {
        match self.config.sources[source].protocol {
            SourceProtocol::Connector { .. } => true,
            SourceProtocol::FramedTcp { .. }
            | SourceProtocol::Stream05 { .. }
            | SourceProtocol::Stream06 { .. } => false,
        }
    }

    /// The connection is over: its streams are free.
    pub(crate) fn source_closed(&mut self, id: ConnectionId) {
        self.connections.remove(&id);
        self.release_streams(id);
    }

    fn release_streams(&mut self, id: ConnectionId) {
        let position = self.config.release_position;
        for stream in self.registry.values_mut().filter(|stream| stream.owner == Some(id)) {
            stream.release(position);
        }
    }

    /// What the driver has to do next on this connection.
    pub(crate) fn next_source_command(&mut self, id: ConnectionId) -> Option<SourceCommand> {
        match self.connections.get_mut(&id) {
            None => Some(SourceCommand::Close),
            Some(connection) => connection.commands.pop_front(),
        }
    }

    /// True while the connection's socket is to be read: not before the first checkpoint, not in a rollback, not while
    /// a sink's queue is full.
    pub(crate) fn may_read(&self, id: ConnectionId) -> bool {
        let Some(connection) = self.connections.get(&id) else { return false };
        if connection.orphaned {
            return true; // for the client's FIN
        }
        let flowing = match self.phase {
            Phase::Running | Phase::Stalled => true,
            Phase::Starting | Phase::RollingBack => false,
        };
        let leaving = self.workers.get(&connection.worker).is_none_or(|worker| worker.leaving);
        flowing
            && !leaving
            && !self.stalled
            && !self.faults.silent
            && !connection.closing
            && !self.any_queue_full(&connection.worker)
    }

    /// The registry's answer to NOTIFY.
    pub(crate) fn notify(
        &mut self,
        id: ConnectionId,
        stream: u64,
        name: &[u8],
        position: Option<u64>,
    ) -> NotifyAnswer {
        if self.faults.ignore_notify > 0 {
            self.faults.ignore_notify -= 1;
            return NotifyAnswer::Silence;
        }
        if self.faults.refuse_notify > 0 {
            self.faults.refuse_notify -= 1;
            return NotifyAnswer::Refused;
        }
        let Some(connection) = self.connections.get_mut(&id) else { return NotifyAnswer::Silence };
        let leader = self.workers.keys().next() == Some(&connection.worker) && !self.config.non_leader;
        let full = self.registry.len() >= MAX_STREAMS;
        let entry = match self.registry.get_mut(&stream) {
            Some(entry) if entry.owner.is_some() => return NotifyAnswer::Refused,
            Some(entry) => entry,
            None if full => return NotifyAnswer::Refused,
            None => {
                // A worker that does not lead the registry echoes the client's own position (§7.3).
                let position = if leader { None } else { position };
                self.registry.entry(stream).or_insert(Stream {
                    name: Vec::new(),
                    owner: None,
                    ends_at: None,
                    seen: position,
                    acked: position,
                })
            }
        };
        entry.owner = Some(id);
        entry.name = name.to_vec();
        connection.streams.insert(stream);
        let seen = entry.seen;
        if self.stats.len() < MAX_STREAMS || self.stats.contains_key(&stream) {
            self.stats.entry(stream).or_default().name = name.to_vec();
        }
        NotifyAnswer::Accepted(seen)
    }

    /// A record without payload: its id counts, nothing runs.
    pub(crate) fn empty_record(&mut self, id: ConnectionId, stream: u64, record: u64) {
        if let Some(entry) = self.registry.get_mut(&stream).filter(|entry| entry.owner == Some(id)) {
            entry.seen = Some(record);
        }
    }

    /// Records with an id that was seen before were dropped.
    pub(crate) fn repeats(&mut self, count: u64) {
        self.counters.repeats += count;
    }

    /// A stream ends: at the next checkpoint that starts; without resilience now.
    pub(crate) fn end_of_stream(&mut self, id: ConnectionId, stream: u64) {
        let resilience = self.config.resilience;
        let release = self.config.release_position;
        let due = self.last_started + 1;
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let Some(entry) = self.registry.get_mut(&stream).filter(|entry| entry.owner == Some(id)) else {
            return;
        };
        if resilience {
            entry.ends_at = Some(due);
        } else {
            entry.acked = entry.seen;
            let position = entry.seen;
            entry.release(release);
            connection.streams.remove(&stream);
            connection
                .commands
                .push_back(SourceCommand::AcknowledgeEnded(vec![(StreamId(stream), position)]));
            self.woken.insert(Wake::Source(id));
        }
    }

    /// Processes records. Where the fault plan strikes, it does so exactly behind its record, and the rest is lost.
    pub(crate) fn records<'a>(
        &mut self,
        id: ConnectionId,
        batch: Batch<impl Iterator<Item = &'a [u8]> + Clone>,
    ) {
        let Some(connection) = self.connections.get(&id) else { return };
        if connection.deaf || connection.closing {
            return;
        }
        let worker = connection.worker.clone();
        let since = self.counters.records - self.faults_since;
        let (take, strike) = match self.due_strike(since, batch.len as u64) {
            None => (batch.len, None),
            Some((at, strike)) => ((at - since) as usize, Some(strike)),
        };
        let whole = take == batch.len;
        if whole {
            self.counters.bytes += batch.bytes as u64;
        } else {
            self.counters.bytes += batch.payloads.clone().take(take).map(|p| p.len() as u64).sum::<u64>();
        }
        self.counters.records += take as u64;
        if let Some(stream) = batch.stream {
            if let Some(stats) = self.stats.get_mut(&stream) {
                stats.records += take as u64;
            }
            // A batch that is cut short is not acknowledged: its connection is struck.
            if let Some(entry) = self.registry.get_mut(&stream).filter(|_| whole) {
                entry.seen = batch.last_id;
            }
        }
        if whole {
            self.apply(&worker, batch.payloads);
        } else {
            self.apply(&worker, batch.payloads.take(take));
        }
        if let Some(strike) = strike {
            self.strike(id, strike);
        }
    }

    /// Runs the application and queues its results at the links of the worker; the totals of a word go through the
    /// worker that owns the word.
    fn apply<'a>(&mut self, worker: &str, payloads: impl Iterator<Item = &'a [u8]> + Clone) {
        let application = self.config.application;
        if self.links.is_empty() && application == Application::Identity {
            self.counters.results += payloads.count() as u64;
            return;
        }
        let names: Vec<&String> = self.workers.keys().collect();
        let own = names.iter().position(|name| *name == worker).unwrap_or(0);
        let mut queues: Vec<(usize, &mut OutputQueue)> = Vec::new();
        for (id, link) in &mut self.links {
            let slot = names.iter().position(|name| *name == link.worker());
            let Some(slot) = slot.filter(|slot| application == Application::WordCount || *slot == own) else {
                continue;
            };
            self.woken.insert(Wake::Link(*id));
            queues.push((slot, link.queue()));
        }
        let mut results = 0;
        for payload in payloads {
            let done = process(application, &mut self.totals, payload, &mut self.scratch, |word, result| {
                results += 1;
                let slot = word.map_or(own, |word| crc32c::crc32c(word.as_bytes()) as usize % names.len());
                for (_, queue) in queues.iter_mut().filter(|(owner, _)| *owner == slot) {
                    queue.push(result);
                }
            });
            if let Err(reason) = done {
                let bad = self.bad.entry(reason).or_default();
                bad.count += 1;
                if bad.count == 1 {
                    let example = &payload[..payload.len().min(EXAMPLE_BYTES)];
                    bad.example = String::from_utf8_lossy(example).into_owned();
                }
            }
        }
        self.counters.results += results;
    }

    /// The first fault that is due within the next `len` records, and at which record.
    fn due_strike(&mut self, since: u64, len: u64) -> Option<(u64, Strike)> {
        let plan = &self.faults;
        let thresholds = [
            plan.stall_after_records,
            plan.close_after_records,
            plan.error_after_records.as_ref().map(|error| error.records),
            plan.restart_after_records.as_ref().map(|restart| restart.records),
            plan.rollback_after_records,
        ];
        let (kind, at) = thresholds
            .iter()
            .enumerate()
            .filter_map(|(kind, at)| Some((kind, (*at)?)))
            .filter(|(_, at)| *at <= since + len)
            .min_by_key(|(_, at)| *at)?;
        let plan = &mut self.faults;
        let strike = match kind {
            0 => plan.stall_after_records.take().map(|_| Strike::Stall),
            1 => plan.close_after_records.take().map(|_| Strike::Close),
            2 => plan.error_after_records.take().map(|error| Strike::Error(error.message)),
            3 => plan
                .restart_after_records
                .take()
                .map(|restart| Strike::Restart { address: restart.address, close: restart.close }),
            _ => plan.rollback_after_records.take().map(|_| Strike::Rollback),
        }?;
        // A stall loses nothing: the whole batch is processed before it.
        let at = if matches!(strike, Strike::Stall) { since + len } else { at.max(since) };
        Some((at, strike))
    }

    fn strike(&mut self, id: ConnectionId, strike: Strike) {
        tracing::info!(records = self.counters.records, "fault plan: threshold reached");
        let command = match strike {
            Strike::Stall => {
                self.stalled = true;
                return;
            }
            Strike::Rollback => {
                self.begin_rollback();
                return;
            }
            Strike::Close => SourceCommand::Close,
            Strike::Error(message) => SourceCommand::Error(message),
            Strike::Restart { address, close } => SourceCommand::Restart { address, close },
        };
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.deaf = true;
            connection.commands.push_back(command);
            self.woken.insert(Wake::Source(id));
        }
    }

    // ---- checkpoints, rollback and membership ----

    /// A checkpoint completed: every open stream is acknowledged, then the ended ones that were due (§3.6).
    pub(super) fn acknowledge(&mut self, checkpoint: u64) {
        let release = self.config.release_position;
        for (id, connection) in &mut self.connections {
            if connection.orphaned || connection.closing {
                continue;
            }
            let (mut open, mut ended) = (Vec::new(), Vec::new());
            for stream in &connection.streams {
                let Some(entry) = self.registry.get_mut(stream).filter(|entry| entry.owner == Some(*id))
                else {
                    continue;
                };
                match entry.ends_at {
                    None => open.push((StreamId(*stream), entry.acked)),
                    Some(due) if due <= checkpoint => {
                        ended.push((StreamId(*stream), entry.acked));
                        entry.release(release);
                    }
                    Some(_) => {}
                }
            }
            for (stream, _) in &ended {
                connection.streams.remove(&stream.0);
            }
            connection.commands.push_back(SourceCommand::Acknowledge(open));
            if !ended.is_empty() {
                connection.commands.push_back(SourceCommand::AcknowledgeEnded(ended));
            }
            self.woken.insert(Wake::Source(*id));
        }
    }

    /// Without resilience a leaving worker acknowledges what it has seen (§3.6, rule 3).
    pub(super) fn acknowledge_seen(&mut self, worker: &str) {
        for (id, connection) in self.connections.iter_mut().filter(|(_, c)| c.worker == worker) {
            let mut positions = Vec::new();
            for stream in &connection.streams {
                if let Some(entry) = self.registry.get_mut(stream).filter(|entry| entry.owner == Some(*id)) {
                    entry.acked = entry.seen;
                    positions.push((StreamId(*stream), entry.acked));
                }
            }
            connection.commands.push_back(SourceCommand::Acknowledge(positions));
        }
    }

    /// The worker has left: its connections are sent to another one, which does not close them (§3.8).
    pub(super) fn release_worker(&mut self, worker: &str, addresses: &[String]) {
        let mut released = Vec::new();
        for (id, connection) in self.connections.iter_mut().filter(|(_, c)| c.worker == worker) {
            connection.orphaned = true;
            let address = addresses.get(connection.source).cloned().unwrap_or_default();
            connection.commands.push_back(SourceCommand::Shrink);
            connection.commands.push_back(SourceCommand::Restart { address, close: false });
            released.push(*id);
        }
        for id in released {
            self.release_streams(id);
            self.woken.insert(Wake::Source(id));
        }
    }

    /// Every connector source gets a bare FIN; plain connections stay, unread.
    pub(super) fn close_sources(&mut self) {
        let sources = &self.config.sources;
        for (id, connection) in &mut self.connections {
            if !matches!(sources[connection.source].protocol, SourceProtocol::Connector { .. }) {
                continue;
            }
            connection.closing = true;
            connection.streams.clear();
            connection.commands.clear();
            connection.commands.push_back(SourceCommand::Close);
            self.woken.insert(Wake::Source(*id));
        }
    }

    /// Connections that came during the rollback get RESTART in place of OK, and are closed.
    pub(super) fn restart_waiting_sources(&mut self) {
        for (id, connection) in &mut self.connections {
            if !connection.restart_instead || connection.closing {
                continue;
            }
            let address = self
                .workers
                .get(&connection.worker)
                .and_then(|worker| worker.addresses.get(connection.source))
                .cloned()
                .unwrap_or_default();
            connection.closing = true;
            connection.commands.push_back(SourceCommand::Restart { address, close: true });
            self.woken.insert(Wake::Source(*id));
        }
    }

    pub(super) fn source_status(&self) -> Vec<SourceStatus> {
        let mut status = Vec::new();
        for (name, worker) in &self.workers {
            for (index, address) in worker.addresses.iter().enumerate() {
                let connections =
                    self.connections.values().filter(|c| c.worker == *name && c.source == index).count();
                status.push(SourceStatus {
                    worker: name.clone(),
                    source: self.config.sources[index].name.clone(),
                    address: address.clone(),
                    connections: connections as u32,
                });
            }
        }
        status
    }
}
