//! What a sink session is given and what it tells.

use bytes::Bytes;

use super::core::SinkMode;
use crate::cookie::Cookie;
use crate::frame::DEFAULT_FRAME_LIMIT;
use crate::run::Run;

/// Settings of a [`SinkServer`](crate::SinkServer).
#[derive(Clone, Debug)]
pub struct SinkServerConfig {
    /// The cookie that HELLO must carry.
    pub cookie: Cookie,
    /// Credits that OK grants; below 2 Wallaroo closes, otherwise it does not use them (§4.2).
    pub credits: u32,
    /// Longest frame accepted.
    pub max_frame: u32,
    /// Whether output counts at its commit or at its receipt.
    pub mode: SinkMode,
    /// Longest wait for the first frames, in milliseconds. A connection closed without a byte is normal (§8).
    pub handshake_timeout: u64,
}

impl SinkServerConfig {
    /// The usual limits, with two-phase commit.
    pub fn new(cookie: Cookie) -> SinkServerConfig {
        SinkServerConfig {
            cookie,
            credits: 500,
            max_frame: DEFAULT_FRAME_LIMIT,
            mode: SinkMode::TwoPhase,
            handshake_timeout: 30_000,
        }
    }
}

/// What a [`SinkServer`](crate::SinkServer) tells its driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SinkServerEvent {
    /// A valid HELLO: end any other connection of this worker (§4.6), load its state and call [`SinkServer::accept`](crate::SinkServer::accept).
    Hello {
        /// Name of the Wallaroo application.
        application: Bytes,
        /// Name of the worker: the key of its state.
        worker: Bytes,
    },
    /// Output, contiguous from [`Run::first_id`], which is the offset of its first byte. Not to be shown to anyone before its
    /// [`SinkServerEvent::Decide`], except with [`SinkMode::OnReceipt`].
    Data(Run),
    /// Make bytes `start..end` and the vote durable, then call [`SinkServer::voted`](crate::SinkServer::voted).
    Prepare {
        /// The transaction.
        transaction: Bytes,
        /// Offset of its first byte.
        start: u64,
        /// Offset behind its last byte.
        end: u64,
        /// The vote, by the rules of §4.5. A *no* rolls the whole cluster back.
        vote: bool,
    },
    /// The decision on the pending transaction. Commit: publish its bytes, idempotently. Abort: discard everything behind its start.
    Decide {
        /// The transaction.
        transaction: Bytes,
        /// True for commit.
        commit: bool,
    },
    /// A decision on a transaction that is not pending: it was decided earlier. Nothing to do.
    UnknownDecision {
        /// The transaction.
        transaction: Bytes,
        /// True for commit.
        commit: bool,
    },
    /// The worker belongs to a new cluster, which knows nothing of the state passed to [`SinkServer::accept`](crate::SinkServer::accept).
    FreshCluster {
        /// True: the session is over; close the connection, archive the old state, and accept the next connection with an empty
        /// one. False: archive the old state and call [`SinkServer::accept`](crate::SinkServer::accept) with an empty one now.
        close_first: bool,
        /// A voted transaction of the old cluster whose decision will never come.
        in_doubt: Option<Bytes>,
    },
    /// Output that does not continue what was received: dropped, and the next vote will be *no*.
    Poisoned {
        /// The offset that should have come.
        expected: u64,
        /// The offset that came.
        got: u64,
    },
    /// Workers that left the cluster: archive their state. Idempotent, comes once from each remaining worker.
    WorkersLeft {
        /// Their names.
        workers: Vec<Bytes>,
    },
}
