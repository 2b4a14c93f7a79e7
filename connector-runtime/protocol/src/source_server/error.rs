//! Rules of the source protocol that a connector can break, as a worker's endpoint reports them.

use crate::frame::FrameError;
use crate::message::DecodeError;
use crate::wire::StreamId;

/// The end of a session by the connector's fault or wish. Each names the rule and what a real worker does.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceServerError {
    /// Wrong version.
    #[error("HELLO carries the version {got:?} (§2.3); a worker answers ERROR and closes")]
    BadVersion {
        /// What came.
        got: String,
    },
    /// Wrong cookie.
    #[error("HELLO carries a wrong cookie (§2.3); a worker answers ERROR and closes")]
    BadCookie,
    /// HELLO again.
    #[error("HELLO came twice (§7.17): a real worker would abort")]
    SecondHello,
    /// NOTIFY or MESSAGE at the wrong time.
    #[error("{frame} came {when} (§3.2); a worker answers ERROR and closes")]
    BadState {
        /// Name of the frame.
        frame: &'static str,
        /// When it came.
        when: &'static str,
    },
    /// A record of a stream that is not open.
    #[error(
        "record {id} came on stream {stream}, which is not open (§3.5); a worker answers ERROR and closes"
    )]
    BadStream {
        /// The stream.
        stream: StreamId,
        /// The record.
        id: u64,
    },
    /// EOS of a stream that is not open.
    #[error("EOS came for stream {stream}, which is not open (§3.7); a worker answers ERROR and closes")]
    BadEos {
        /// The stream.
        stream: StreamId,
    },
    /// A frame that only workers send.
    #[error("{frame} came from a connector (§2.3); a worker answers ERROR and closes")]
    InvalidMessage {
        /// Name of the frame, in the worker's spelling.
        frame: &'static str,
    },
    /// An empty stream name.
    #[error("stream {stream} has an empty name (§8): a real worker would crash when it is given up")]
    EmptyName {
        /// The stream.
        stream: StreamId,
    },
    /// An undecodable frame.
    #[error("undecodable frame (§2.5): {0}; a worker answers ERROR and closes")]
    Decode(#[from] DecodeError),
    /// An impossible length.
    #[error("{0} (§2.4); a worker loses the framing or closes without a word")]
    Frame(#[from] FrameError),
    /// The connector sent ERROR; no rule is broken.
    #[error("the connector ended the session: {0}")]
    Peer(String),
}

/// A broken rule that a worker does not enforce.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Tolerated {
    /// More frames than the client had credits for. Reported once a session.
    #[error("{spent} frames came on {granted} credits (§3.3)")]
    CreditsOverrun {
        /// Frames that cost a credit.
        spent: u64,
        /// Credits that had left for the client.
        granted: u64,
    },
    /// The id 2^64-1, which makes a worker forget what it has seen.
    #[error("a record of stream {stream} has the id 2^64-1, which means nothing (§3.5)")]
    ReservedId {
        /// The stream.
        stream: StreamId,
    },
    /// A record without payload: acknowledged, and lost.
    #[error("record {id} of stream {stream} is empty: it is acknowledged and reaches nothing (§3.5)")]
    EmptyRecord {
        /// The stream.
        stream: StreamId,
        /// The record.
        id: u64,
    },
}
