//! The registry of streams: who has which, and up to where (§3.4, §3.6).

use wallaroo_protocol::StreamId;

use super::snapshot::SavedStream;
use super::sources::{ConnectionId, SourceCommand};
use super::{Cluster, Wake};
use crate::config::ReleasePosition;

/// NOTIFY is refused beyond so many streams, so that memory is bounded.
const MAX_STREAMS: usize = 1_000_000;

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

impl Cluster {
    /// A session has ended: its streams are free.
    pub(super) fn release_streams(&mut self, id: ConnectionId) {
        let position = self.config.release_position;
        for stream in self.registry.values_mut().filter(|stream| stream.owner == Some(id)) {
            stream.release(position);
        }
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
}
