//! The state of the two-phase commit model: connections, the cluster, the sink with its log and its target.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use connector_runtime::txn_log::decisions::LogState;
use wallaroo_protocol::{SinkClientCore, SinkServerCore};

use super::disk::Disk;

/// Messages to the sink. HELLO, NOTIFY and `LIST_UNCOMMITTED` come in one burst.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Down {
    Intro,
    Data { offset: u64, byte: u8 },
    Phase1 { transaction: Bytes, start: u64, end: u64 },
    Phase2 { transaction: Bytes, commit: bool },
    Fin,
}

/// Messages to the worker: all that a sink ever says. There is no ACK among them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Up {
    Listed(Vec<Bytes>),
    Vote { transaction: Bytes, commit: bool },
    Fin,
}

/// A connection. Each end may be gone before the other knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Link {
    pub(crate) worker: Option<SinkClientCore>,
    pub(crate) sink: Option<SinkServerCore>,
    pub(crate) down: VecDeque<Down>,
    pub(crate) up: VecDeque<Up>,
    /// A newer connection said HELLO: whatever comes on this one is too late.
    pub(crate) late: bool,
}

/// What the cluster recovers from: its last completed checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Completed {
    pub(crate) checkpoint: u64,
    pub(crate) transaction: Option<Bytes>,
    pub(crate) output: Vec<u8>,
}

/// A checkpoint under way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Pending {
    pub(crate) checkpoint: u64,
    pub(crate) transaction: Bytes,
    pub(crate) agreed: bool,
}

/// What the sink does once the log is synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Due {
    Nothing,
    Vote(usize),
}

/// The whole world.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct World {
    pub(crate) links: BTreeMap<usize, Link>,
    pub(crate) completed: Completed,
    pub(crate) pending: Option<Pending>,
    pub(crate) last_started: u64,
    /// All output so far. After a rollback other bytes come.
    pub(crate) output: Vec<u8>,
    pub(crate) generation: u8,
    pub(crate) rolling_back: bool,
    /// A connection that mattered was lost: the cluster rolls back when the sink is here again.
    pub(crate) lost: bool,
    pub(crate) ready: bool,
    pub(crate) carried: bool,
    pub(crate) log: LogState,
    pub(crate) disk: Disk,
    pub(crate) due: Option<Due>,
    /// The connection that is the worker's, for the sink: the last one that said HELLO.
    pub(crate) served: Option<usize>,
    /// What the external system shows.
    pub(crate) target: Vec<u8>,
    pub(crate) faults: u8,
    pub(crate) idle: u8,
    /// The first rule that was broken.
    pub(crate) broken: Option<&'static str>,
}

impl World {
    pub(crate) fn breaks(&mut self, rule: &'static str) {
        self.broken.get_or_insert(rule);
    }

    pub(crate) fn current(&self) -> Option<usize> {
        self.links.iter().find(|(_, link)| link.worker.is_some()).map(|(id, _)| *id)
    }

    pub(crate) fn worker(&self) -> Option<&SinkClientCore> {
        self.links.values().find_map(|link| link.worker.as_ref())
    }

    pub(crate) fn forget_links(&mut self) {
        self.links.retain(|_, link| link.worker.is_some() || link.sink.is_some());
    }

    /// Numbers are in the order of the dialling: a connection that is left becomes number 0.
    pub(crate) fn renumber(&mut self) {
        if let Some(link) = self.links.remove(&1) {
            self.links.insert(0, link);
            self.served = self.served.map(|_| 0);
            self.due = self.due.map(|due| match due {
                Due::Vote(_) => Due::Vote(0),
                Due::Nothing => Due::Nothing,
            });
        }
    }
}
