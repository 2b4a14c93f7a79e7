//! Source connections of the cluster: what their drivers are told, and when their sockets are read.

use std::collections::{BTreeSet, VecDeque};

use wallaroo_protocol::StreamId;

use super::{Cluster, Wake};
use crate::config::SourceProtocol;
use crate::status::{Phase, SourceStatus};

/// Number of a source connection; never used twice.
pub(crate) type ConnectionId = u64;

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

/// A source connection of one worker.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(super) worker: String,
    pub(super) source: usize,
    pub(super) commands: VecDeque<SourceCommand>,
    pub(super) streams: BTreeSet<u64>,
    /// Accepted during a rollback: gets RESTART in place of OK.
    pub(super) restart_instead: bool,
    /// Its worker has left.
    pub(super) orphaned: bool,
    /// Records are ignored: a fault has struck this connection.
    pub(super) deaf: bool,
    pub(super) closing: bool,
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

    /// The fault plan wants a new connection closed without a byte.
    pub(crate) fn closes_on_accept(&mut self) -> bool {
        let closes = self.faults.close_on_accept > 0;
        self.faults.close_on_accept = self.faults.close_on_accept.saturating_sub(1);
        closes
    }

    /// The connection is over: its streams are free.
    pub(crate) fn source_closed(&mut self, id: ConnectionId) {
        self.connections.remove(&id);
        self.release_streams(id);
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
