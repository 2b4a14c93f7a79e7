//! A worker's connection to one sink: its queue, its barrier and its figures.

use std::collections::VecDeque;

use super::queue::{Coding, OutputQueue};
use super::sinks::SinkCommand;
use super::snapshot::Snapshot;
use crate::config::{SinkConfig, SinkProtocol};
use crate::status::{SinkState, SinkStatus};

/// Number of a link; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct LinkId(pub(super) u64);

/// What a link speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LinkKind {
    /// Handshake and two-phase commit.
    Connector,
    /// Bytes.
    Plain,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Output before the barrier is on its way.
    Flushing,
    /// PHASE1 was sent.
    Asked,
    /// The sink agreed; a plain sink has everything.
    Agreed,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Barrier {
    pub(super) transaction: String,
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) stage: Stage,
}

/// A worker's connection to one sink.
#[derive(Debug)]
pub(crate) struct Link {
    pub(super) id: LinkId,
    pub(super) worker: String,
    pub(super) sink: usize,
    pub(super) key: String,
    pub(super) kind: LinkKind,
    pub(super) stream_name: String,
    pub(super) queue: OutputQueue,
    pub(super) connection: Option<u64>,
    pub(super) connections: u64,
    pub(super) ready: bool,
    /// The present connection carried output.
    pub(super) carried: bool,
    /// A connection that mattered was lost: the cluster rolls back when the sink is back.
    pub(super) lost: bool,
    /// Lost without resilience: nothing flows any more.
    pub(super) closed: bool,
    /// Its worker has left: the link ends once the last decision is out.
    pub(super) leaving: bool,
    pub(super) barrier: Option<Barrier>,
    pub(super) commands: VecDeque<SinkCommand>,
    /// Bytes that the driver of a plain link holds.
    pub(super) in_flight: u64,
    pub(super) records: u64,
    pub(super) dropped: u64,
    pub(super) commits: u64,
    pub(super) aborts: u64,
}

impl Link {
    pub(super) fn new(
        id: LinkId,
        application: &str,
        worker: &str,
        index: usize,
        sink: &SinkConfig,
        committed: &Snapshot,
    ) -> Link {
        let key = format!("{worker}/{}", sink.name);
        let offset = committed.sinks.get(&key).map_or(0, |saved| saved.offset);
        // The same in every fresh cluster, as at a real worker.
        let number = u64::from(crc32c::crc32c(sink.name.as_bytes()));
        Link {
            id,
            worker: worker.to_owned(),
            sink: index,
            key,
            kind: match sink.protocol {
                SinkProtocol::Connector { .. } => LinkKind::Connector,
                SinkProtocol::FramedTcp | SinkProtocol::Stream05 | SinkProtocol::Stream06 => LinkKind::Plain,
            },
            stream_name: format!("{application}-w-{worker}-id-{number}"),
            queue: OutputQueue::new(Coding::of(&sink.protocol, sink.encoder), offset),
            connection: None,
            connections: 0,
            ready: false,
            carried: false,
            lost: false,
            closed: false,
            leaving: false,
            barrier: None,
            commands: VecDeque::new(),
            in_flight: 0,
            records: 0,
            dropped: 0,
            commits: 0,
            aborts: 0,
        }
    }

    pub(crate) fn id(&self) -> LinkId {
        self.id
    }

    pub(crate) fn worker(&self) -> &str {
        &self.worker
    }

    /// Index of the sink in the configuration.
    pub(crate) fn sink(&self) -> usize {
        self.sink
    }

    /// `worker/sink`.
    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    pub(crate) fn stream_name(&self) -> &str {
        &self.stream_name
    }

    pub(super) fn queue(&mut self) -> &mut OutputQueue {
        &mut self.queue
    }

    pub(super) fn agreed(&self) -> bool {
        self.barrier.as_ref().is_none_or(|barrier| barrier.stage == Stage::Agreed)
    }

    pub(super) fn is_connector(&self) -> bool {
        self.kind == LinkKind::Connector
    }

    /// A plain link agrees when the kernel has everything before the barrier.
    pub(super) fn settle_plain(&mut self) -> bool {
        let flushed = self.kind == LinkKind::Plain && self.connection.is_some() && self.in_flight == 0;
        let start = self.queue.start();
        match &mut self.barrier {
            Some(barrier) if flushed && barrier.stage == Stage::Flushing && start >= barrier.end => {
                barrier.stage = Stage::Agreed;
                true
            }
            Some(_) | None => false,
        }
    }

    pub(super) fn disconnect(&mut self) {
        self.connection = None;
        self.ready = false;
        self.carried = false;
        self.commands.clear();
    }

    /// What there is to say about it.
    pub(super) fn status(&self, sinks: &[SinkConfig], committed: &Snapshot) -> SinkStatus {
        let committed = committed.sinks.get(&self.key).map_or(0, |saved| saved.offset);
        SinkStatus {
            worker: self.worker.clone(),
            sink: sinks[self.sink].name.clone(),
            state: match (self.connection, self.kind) {
                _ if self.closed => SinkState::Closed,
                (None, _) => SinkState::Disconnected,
                (Some(_), LinkKind::Connector) if !self.ready => SinkState::Introducing,
                (Some(_), LinkKind::Connector | LinkKind::Plain) => SinkState::Ready,
            },
            records: self.records,
            produced: self.queue.end(),
            committed: if self.is_connector() { committed } else { 0 },
            queued: self.queue.bytes() as u64,
            dropped: self.dropped,
            commits: self.commits,
            aborts: self.aborts,
            transaction: self.barrier.as_ref().map(|barrier| barrier.transaction.clone()),
            connections: self.connections,
        }
    }
}
