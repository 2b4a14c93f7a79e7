//! What a source of records is, and what the pump and a source owe each other.

use async_trait::async_trait;
use tokio::time::Instant;

use crate::record::{Batch, Position};

/// A source's handle for a stream that it opened; never used again for another stream by the same source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamKey(pub u32);

/// What happens next at a source.
#[derive(Debug)]
pub enum SourceEvent {
    /// The system answers, for the first time or again: told where nothing else tells it.
    Connected,
    /// A stream exists now; nothing of it is read before [`Source::resume`].
    Opened {
        /// Handle.
        stream: StreamKey,
        /// The stream's lasting name in its system, e.g. `topic-id/3`; the id on the wire derives from it.
        name: String,
        /// Position that this Connector's own earlier commits reached, where the system keeps one.
        committed: Option<Position>,
    },
    /// Records of one resumed stream, in order.
    Batch {
        /// Handle.
        stream: StreamKey,
        /// Records; positions strictly increase within the stream.
        batch: Batch,
    },
    /// A record that can never be handed over (too long, malformed). Its position counts as passed.
    BadRecord {
        /// Handle.
        stream: StreamKey,
        /// Position of the record.
        position: Position,
        /// What is wrong with it, for people.
        reason: BadRecord,
        /// The record's bytes as far as known (bounded by the source), for the dead letter.
        payload: bytes::Bytes,
    },
    /// The system wants the stream back (rebalance). The source yields nothing more of it; the pump ends the stream at
    /// Wallaroo, commits what is acknowledged and calls [`Source::release`], by `deadline` at the latest.
    Revoking {
        /// Handle.
        stream: StreamKey,
        /// When the system takes the stream in any case.
        deadline: Instant,
    },
    /// The stream is gone already; nothing may be committed for it.
    Lost {
        /// Handle.
        stream: StreamKey,
    },
    /// This stream cannot go on until somebody changes something; all others go on. What comes of it next says that it is
    /// over. May be told again.
    Stuck {
        /// Handle.
        stream: StreamKey,
        /// Reason in CamelCase, as the status shows it.
        reason: &'static str,
        /// What is wrong and what to do, for people.
        context: String,
    },
    /// The stream has no more records, ever (end of a file).
    Ended {
        /// Handle.
        stream: StreamKey,
    },
}

/// Why a record can never be handed over: the label of the drop counter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BadRecord {
    /// Longer than the limit named.
    TooLarge {
        /// Bytes that the record has (as far as read).
        bytes: u64,
        /// Limit in bytes.
        limit: u64,
    },
    /// Wallaroo cannot carry an empty record.
    Empty,
    /// Not what the format asks for.
    Malformed(String),
}

impl std::fmt::Display for BadRecord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            BadRecord::TooLarge { bytes, limit } => {
                write!(f, "record of {bytes} bytes is longer than the limit of {limit}")
            }
            BadRecord::Empty => f.write_str("record is empty, which Wallaroo cannot carry"),
            BadRecord::Malformed(what) => f.write_str(what),
        }
    }
}

/// Where a stream continues.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ResumeFrom {
    /// With the first record beyond this position: Wallaroo has everything up to it.
    After(Position),
    /// Wallaroo knows nothing: after the system's own committed position, and without one at the configured start.
    Committed,
}

/// An error of a source or sink, with what the pump does about it.
#[derive(Debug, thiserror::Error)]
pub enum SystemError {
    /// Trouble that may pass: the pump backs off and calls again; the connector reconnects by itself.
    #[error("{context}")]
    Transient {
        /// What was being done, e.g. `connecting to kafka:9092`.
        context: String,
        /// Class for the error counter.
        class: ErrorClass,
        /// The cause.
        #[source]
        cause: Option<anyhow::Error>,
    },
    /// Trouble that needs a change by someone, with the reason that the status shows (e.g. `PositionOutOfRange`).
    #[error("{context}")]
    Permanent {
        /// Reason in CamelCase.
        reason: &'static str,
        /// What is wrong and what to do, for people.
        context: String,
    },
}

/// Class of an error: the label of `wallaroo_connector_errors_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ErrorClass {
    /// No connection.
    Connect,
    /// Refused credentials.
    Auth,
    /// No answer in time.
    Timeout,
    /// An answer that makes no sense.
    Protocol,
    /// Asked to slow down.
    Throttled,
    /// Refused by the other side.
    Rejected,
}

impl ErrorClass {
    /// Label value of the metrics.
    pub fn label(self) -> &'static str {
        match self {
            ErrorClass::Connect => "connect",
            ErrorClass::Auth => "auth",
            ErrorClass::Timeout => "timeout",
            ErrorClass::Protocol => "protocol",
            ErrorClass::Throttled => "throttled",
            ErrorClass::Rejected => "rejected",
        }
    }
}

/// Reads one external system.
///
/// The pump owns the source and calls one method at a time. Errors carry their disposition; after a transient error
/// the pump backs off and calls `next` again, and the source reconnects inside that call.
///
/// * What concerns one stream alone is [`SourceEvent::Stuck`]; an error holds all streams back.
/// * Streams are announced with [`SourceEvent::Opened`] and yield nothing before `resume`.
/// * `resume` may come again at any time (the Wallaroo session was lost): what was read since is repeated from there.
///   A batch of the earlier reading must not be yielded after it.
/// * `commit` never runs ahead of an acknowledgement, and positions of a stream never go back.
/// * A source holds at most one batch that was not yielded, and reads nothing from its system beyond its own bounded
///   prefetch while `next` is not called.
#[async_trait]
pub trait Source: Send {
    /// Waits for what happens next. Cancel-safe: dropping the future loses nothing.
    ///
    /// The pump calls this also while everything is paused, so that the system sees a live client (group heartbeats,
    /// rebalances); paused streams must not yield.
    async fn next(&mut self) -> Result<SourceEvent, SystemError>;

    /// Continues a stream; called once after `Opened`, and again after each loss of the Wallaroo session.
    async fn resume(&mut self, stream: StreamKey, from: ResumeFrom) -> Result<(), SystemError>;

    /// Wallaroo has everything up to and including each position; the system may forget it. May be called again with the same
    /// positions. Not necessarily durable on return, but durable before a clean shutdown (`close`).
    async fn commit(&mut self, positions: &[(StreamKey, Position)]) -> Result<(), SystemError>;

    /// The pump is done with a revoked, lost or ended stream.
    async fn release(&mut self, stream: StreamKey) -> Result<(), SystemError>;

    /// Takes nothing more from the system for this stream until `unpause`; the system is not disconnected.
    fn pause(&mut self, stream: StreamKey);

    /// Ends a pause.
    fn unpause(&mut self, stream: StreamKey);

    /// Commits durably and leaves the system; the last call. Bounded by `deadline`.
    async fn close(&mut self, deadline: Instant) -> Result<(), SystemError>;

    /// Dials the system and reads nothing (`check --connect`).
    async fn check(&mut self) -> Result<(), SystemError>;
}
