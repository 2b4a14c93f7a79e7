//! The state of the ownership model: connectors, connections, the worker's registry, the external system.

use std::collections::{BTreeMap, VecDeque};

use connector_runtime::pump::streams::Streams;
use wallaroo_protocol::decisions::source_server::ServerStreamPhase;
use wallaroo_protocol::{SourceClientCore, SourceServerCore};

use super::{KEY, STREAM};

/// Frames to the worker.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Up {
    Hello,
    Notify(Option<u64>),
    Record(u64),
    Eos,
    Fin,
}

/// The stream in an ACK, with its position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Entry(pub(crate) Option<u64>);

/// Frames to the connector. RESTART counts as an end, as it does for the connector.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Down {
    Ok(u32),
    NotifyAck(bool, Option<u64>),
    Ack(u32, Option<Entry>),
    Fin,
}

/// A connection. Each end may be gone before the other knows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Link {
    pub(crate) server: Option<SourceServerCore>,
    pub(crate) up: VecDeque<Up>,
    pub(crate) down: VecDeque<Down>,
    /// Last record sent on it.
    pub(crate) last: u64,
}

/// A connector: the pump's streams, the session's decisions, and how far it has read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Connector {
    pub(crate) streams: Streams,
    pub(crate) core: SourceClientCore,
    pub(crate) link: Option<usize>,
    /// Position named in NOTIFY.
    pub(crate) proposal: Option<u64>,
    pub(crate) refused: bool,
    /// Last record read; `None` before `resume`.
    pub(crate) read: Option<u64>,
    /// The deadline of the revoked stream has passed.
    pub(crate) late: bool,
}

/// When the stream's end is acknowledged: by the first checkpoint that starts behind EOS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Ending {
    No,
    Waiting,
    Due,
}

/// The stream in the worker's registry.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Registry {
    pub(crate) known: bool,
    pub(crate) owner: Option<usize>,
    pub(crate) acked: Option<u64>,
    pub(crate) ending: Ending,
}

pub(crate) const UNKNOWN: Registry = Registry { known: false, owner: None, acked: None, ending: Ending::No };

/// The whole world.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct World {
    pub(crate) connectors: [Connector; 2],
    pub(crate) links: BTreeMap<usize, Link>,
    pub(crate) registry: Registry,
    /// Stream known, and its position: of the last completed checkpoint, and of the one under way.
    pub(crate) completed: (bool, Option<u64>),
    pub(crate) pending: Option<(bool, Option<u64>)>,
    pub(crate) rolling_back: bool,
    /// Connector that the external system gives the stream to.
    pub(crate) owner: usize,
    /// What the external system was told to be done.
    pub(crate) committed: Option<u64>,
    /// The stream is at its end, acknowledged, committed and released.
    pub(crate) finished: bool,
    /// Highest position of any completed checkpoint.
    pub(crate) safe: Option<u64>,
    pub(crate) faults: u8,
    pub(crate) moves: u8,
    /// The first rule that was broken.
    pub(crate) broken: Option<&'static str>,
}

impl World {
    pub(crate) fn breaks(&mut self, rule: &'static str) {
        self.broken.get_or_insert(rule);
    }

    /// The external system gives the stream to a connector.
    pub(crate) fn give(&mut self, to: usize) {
        self.owner = to;
        let committed = self.committed;
        let opened = self.connectors[to].streams.opened(KEY, "stream".to_owned(), STREAM, committed);
        assert!(opened.is_ok(), "there is one stream");
    }

    /// What a new session would be answered.
    pub(crate) fn registry_position(&self) -> Option<u64> {
        self.position().1
    }

    pub(crate) fn position(&self) -> (bool, Option<u64>) {
        let session = self.registry.owner.and_then(|id| self.links.get(&id)?.server.as_ref());
        let acked = session.and_then(|server| server.stream(STREAM)).map(|stream| stream.acked);
        (self.registry.known, acked.unwrap_or(self.registry.acked))
    }

    /// What a checkpoint that starts now would hold.
    pub(crate) fn ahead(&self) -> (bool, Option<u64>) {
        let session = self.registry.owner.and_then(|id| self.links.get(&id)?.server.as_ref());
        let seen = session.and_then(|server| server.stream(STREAM)).map(|stream| stream.seen);
        (self.registry.known, seen.unwrap_or(self.registry.acked))
    }

    /// The worker's end of a connection is gone: its stream is free.
    pub(crate) fn session_ends(&mut self, id: usize) {
        if self.registry.owner == Some(id) {
            let (known, acked) = self.position();
            self.registry = Registry { known, owner: None, acked, ending: Ending::No };
        }
        if let Some(link) = self.links.get_mut(&id) {
            link.server = None;
            link.up.clear();
            link.down.push_back(Down::Fin);
        }
        self.forget_link(id);
    }

    /// The connector's end of its connection is gone.
    pub(crate) fn connection_ends(&mut self, connector: usize, cut: bool) {
        let Some(id) = self.connectors[connector].link.take() else { return };
        let side = &mut self.connectors[connector];
        side.core.close();
        side.streams.session_lost();
        (side.refused, side.read) = (false, None);
        if let Some(link) = self.links.get_mut(&id) {
            if cut {
                link.up.clear();
            }
            link.up.push_back(Up::Fin);
            link.down.clear();
        }
        self.forget_link(id);
    }

    pub(crate) fn forget_link(&mut self, id: usize) {
        let used = self.connectors.iter().any(|connector| connector.link == Some(id));
        if !used && self.links.get(&id).is_some_and(|link| link.server.is_none()) {
            self.links.remove(&id);
        }
    }

    pub(crate) fn say(&mut self, id: usize, frame: Down) {
        if self.connectors.iter().any(|connector| connector.link == Some(id))
            && let Some(link) = self.links.get_mut(&id)
        {
            link.down.push_back(frame);
        }
    }
}

/// Sessions of the worker in which the stream is open or closing.
pub(crate) fn holders(world: &World) -> usize {
    let sessions = world.links.values().filter_map(|link| link.server.as_ref());
    sessions
        .filter(|server| {
            server.stream(STREAM).is_some_and(|stream| match stream.phase {
                ServerStreamPhase::Open | ServerStreamPhase::Closing => true,
                ServerStreamPhase::Pending => false,
            })
        })
        .count()
}
