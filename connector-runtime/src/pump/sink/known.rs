//! What the pump over `Connector` knows of workers, their streams and their connections.

use bytes::{Bytes, BytesMut};
use connector_env::Env;
use tokio::time::Instant;
use wallaroo_protocol::{SinkServer, SinkServerEvent};

use super::SinkPumpError;
use super::link::{LinkId, Talk};
use crate::pump::workers::Delivery;
use crate::record::Batch;
use crate::sink::SinkStream;
use crate::txn_log::{Cursor, LogError, TxnLog};

/// A connection of a worker.
pub(super) struct Session {
    pub(super) server: SinkServer,
    /// Known after HELLO.
    pub(super) worker: Option<Bytes>,
    /// An event that found no room on the volume: everything behind it waits.
    pub(super) blocked: Option<SinkServerEvent>,
    /// Bytes that it needs.
    pub(super) needed: u64,
    /// Output came and no phase 1 yet.
    pub(super) unasked_since: Option<Instant>,
}

impl Talk for Session {
    fn input(&mut self) -> &mut BytesMut {
        self.server.input()
    }

    fn output(&mut self) -> Option<Bytes> {
        self.server.poll_output()
    }

    fn wants_input(&self) -> bool {
        self.blocked.is_none() && self.server.wants_input()
    }
}

/// One incarnation of a worker's output.
pub(super) struct Stream<E: Env> {
    pub(super) id: SinkStream,
    pub(super) log: TxnLog<E>,
    pub(super) delivery: Delivery,
    /// Behind what was given to the sink; set while the delivery is open.
    pub(super) cursor: Option<Cursor>,
    /// A batch that failed, where it begins and where it ends.
    pub(super) retry: Option<(u64, Batch, Cursor)>,
    /// Everything of an ended incarnation is durable since then.
    pub(super) done_since: Option<Instant>,
}

impl<E: Env> Stream<E> {
    pub(super) fn new(name: &str, log: TxnLog<E>) -> Stream<E> {
        Stream {
            id: SinkStream { worker: name.to_owned(), incarnation: log.incarnation() },
            log,
            delivery: Delivery::default(),
            cursor: None,
            retry: None,
            done_since: None,
        }
    }
}

/// A worker that ever connected, as far as something of it is kept.
pub(super) struct Worker<E: Env> {
    pub(super) name: String,
    /// In order of their incarnations; only the last one may go on.
    pub(super) streams: Vec<Stream<E>>,
    pub(super) link: Option<LinkId>,
    /// Number of the newest connection that it said HELLO on.
    pub(super) newest: LinkId,
    /// It is said to have left the cluster: its stream ends with its connection.
    pub(super) leaving: bool,
    /// Its log is new and its cluster is not: where the cluster goes on.
    pub(super) adopt: Option<u64>,
}

impl<E: Env> Worker<E> {
    /// The stream that goes on.
    pub(super) fn current(&mut self) -> Option<&mut Stream<E>> {
        self.streams.last_mut().filter(|stream| stream.log.state().ended.is_none())
    }
}

/// Name of a stream on the board whose incarnation is over.
pub(super) fn older_name(stream: &SinkStream) -> String {
    format!("{} (ended, incarnation {})", stream.worker, stream.incarnation)
}

/// Whether an error is a lack of room; others end the process.
pub(super) fn no_space(error: LogError) -> Result<u64, SinkPumpError> {
    match error {
        LogError::NoSpace { needed, .. } => Ok(needed),
        other => Err(other.into()),
    }
}
