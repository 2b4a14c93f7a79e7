//! What can go wrong in a source session, and what to do about it (§3.9).

use crate::cookie::Cookie;
use crate::frame::FrameError;
use crate::message::DecodeError;
use crate::wire::StreamId;

/// Longest part of a peer's text that is kept.
const TEXT_LIMIT: usize = 500;

/// What a driver does after a [`SourceClientError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reaction {
    /// Dial again after the usual back-off.
    Reconnect,
    /// Dial again; when the same error comes again at once, report it and slow down.
    ReconnectOnce,
    /// Wrong configuration or a mistake of this program: report it, and retry no faster than every 30 s.
    Report,
}

/// The end of a source session.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceClientError {
    /// The worker speaks another version of the protocol.
    #[error("Wallaroo refused the protocol version 0.0.1: {0}")]
    VersionRefused(String),
    /// The cookie is not the worker's. The worker's text names both cookies and is therefore not kept.
    #[error("Wallaroo refused the cookie")]
    CookieRefused,
    /// The worker sent ERROR.
    #[error("Wallaroo ended the session: {text}")]
    Peer {
        /// Which of the known texts it is.
        kind: PeerErrorKind,
        /// The text, with the cookie taken out.
        text: String,
    },
    /// No OK in time. Connections above the source's parallelism are accepted and not read, and so are all connections before
    /// the first checkpoint.
    #[error("Wallaroo accepted the connection and did not answer HELLO in time")]
    HandshakeTimeout,
    /// No answer to NOTIFY in time; a worker that leaves the cluster gives none.
    #[error("Wallaroo did not answer NOTIFY for stream {stream} in time")]
    NotifyTimeout {
        /// The stream.
        stream: StreamId,
    },
    /// An impossible length.
    #[error("Wallaroo sent a {0}")]
    Frame(#[from] FrameError),
    /// An undecodable frame.
    #[error("Wallaroo sent an undecodable frame: {0}")]
    Decode(#[from] DecodeError),
    /// A frame that has no meaning there.
    #[error("Wallaroo sent {frame} {phase}")]
    Unexpected {
        /// Name of the frame.
        frame: &'static str,
        /// When it came.
        phase: &'static str,
    },
    /// An acknowledgement of a record that this session never sent; committing it would lose records.
    #[error("Wallaroo acknowledged {position} on stream {stream}, beyond what was sent ({sent:?})")]
    AcknowledgedBeyondSent {
        /// The stream.
        stream: StreamId,
        /// What was acknowledged.
        position: u64,
        /// What was sent.
        sent: Option<u64>,
    },
}

/// Known texts of ERROR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerErrorKind {
    /// `Bad protocol FSM state`: a frame before OK, or the worker is leaving its cluster.
    BadState,
    /// `Bad/unregistered stream_id …`: a record of a stream that is not open.
    BadStream,
    /// `Unable to decode message`: a malformed frame, EOS of a stream that is not open, or the application's decoder
    /// refused a payload. If it comes again with the same records, one of them is poison.
    Undecodable,
    /// `Invalid message: …`: a frame that only workers send.
    InvalidMessage,
    /// Any other text.
    Other,
}

impl SourceClientError {
    pub(super) fn from_peer(message: &[u8], cookie: &Cookie) -> SourceClientError {
        let text = redacted(message, cookie.expose());
        let kind = if text.starts_with("Bad cookie") {
            return SourceClientError::CookieRefused;
        } else if text.starts_with("Unknown protocol version") {
            return SourceClientError::VersionRefused(text);
        } else if text.starts_with("Bad protocol FSM state") {
            PeerErrorKind::BadState
        } else if text.starts_with("Bad/unregistered stream_id") {
            PeerErrorKind::BadStream
        } else if text.starts_with("Unable to decode message") {
            PeerErrorKind::Undecodable
        } else if text.starts_with("Invalid message") {
            PeerErrorKind::InvalidMessage
        } else {
            PeerErrorKind::Other
        };
        SourceClientError::Peer { kind, text }
    }

    /// What to do about it.
    pub fn reaction(&self) -> Reaction {
        match self {
            SourceClientError::VersionRefused(_) | SourceClientError::CookieRefused => Reaction::Report,
            SourceClientError::Peer { kind, .. } => match kind {
                PeerErrorKind::BadState | PeerErrorKind::Other => Reaction::Reconnect,
                PeerErrorKind::BadStream | PeerErrorKind::Undecodable => Reaction::ReconnectOnce,
                PeerErrorKind::InvalidMessage => Reaction::Report,
            },
            SourceClientError::HandshakeTimeout | SourceClientError::NotifyTimeout { .. } => {
                Reaction::Reconnect
            }
            SourceClientError::Frame(_)
            | SourceClientError::Decode(_)
            | SourceClientError::Unexpected { .. }
            | SourceClientError::AcknowledgedBeyondSent { .. } => Reaction::ReconnectOnce,
        }
    }
}

/// A peer's text for people: bounded, lossy, without the cookie.
fn redacted(message: &[u8], cookie: &[u8]) -> String {
    let text = String::from_utf8_lossy(message);
    let cookie = String::from_utf8_lossy(cookie);
    let text = if cookie.is_empty() { text.into_owned() } else { text.replace(&*cookie, "(cookie)") };
    text.chars().take(TEXT_LIMIT).collect()
}

/// Why a stream cannot be opened or ended. Nothing was sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// An empty name kills the worker when the stream is given up (§8).
    #[error("stream {stream} has an empty name, which Wallaroo does not survive")]
    EmptyName {
        /// The stream.
        stream: StreamId,
    },
    /// NOTIFY would be longer than a frame may be.
    #[error("stream {stream} has a name of {length} bytes, longer than a frame may be")]
    NameTooLong {
        /// The stream.
        stream: StreamId,
        /// Length of the name.
        length: usize,
    },
    /// 2^64-1 means "nothing" and is no position.
    #[error("stream {stream} cannot resume at 2^64-1, which means nothing on the wire")]
    ReservedPosition {
        /// The stream.
        stream: StreamId,
    },
    /// A second NOTIFY for a stream would be answered ambiguously (§7.19).
    #[error("stream {stream} is open in this session already")]
    AlreadyOpen {
        /// The stream.
        stream: StreamId,
    },
    /// The session does not know the stream.
    #[error("stream {stream} is not open in this session")]
    Unknown {
        /// The stream.
        stream: StreamId,
    },
    /// The session is over.
    #[error("the session is over")]
    Over,
}

/// Why a record was not taken. `index` counts from the first record of the call; those before it were taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The stream is not open.
    #[error("stream {stream} is not open in this session")]
    NotOpen {
        /// The stream.
        stream: StreamId,
    },
    /// Ids must strictly increase, also beyond the position at which the stream was opened: Wallaroo drops others silently.
    #[error("record {id} of stream {stream} does not come after {last}")]
    NotIncreasing {
        /// Number in the call.
        index: usize,
        /// The stream.
        stream: StreamId,
        /// Its id.
        id: u64,
        /// The id before it.
        last: u64,
    },
    /// Ids go from 1 to 2^64-2.
    #[error("record {id} of stream {stream} has an id that Wallaroo cannot keep apart from nothing")]
    ReservedId {
        /// Number in the call.
        index: usize,
        /// The stream.
        stream: StreamId,
        /// Its id.
        id: u64,
    },
    /// The frame would make the worker close the connection.
    #[error("record {id} of stream {stream} makes a frame of {size} bytes, longer than the limit of {limit}")]
    TooLarge {
        /// Number in the call.
        index: usize,
        /// The stream.
        stream: StreamId,
        /// Its id.
        id: u64,
        /// Size of the frame's body.
        size: usize,
        /// Limit.
        limit: usize,
    },
    /// A key above 65,535 bytes; only possible with a raised frame limit.
    #[error("record {id} of stream {stream} has a key of {length} bytes, more than 65535")]
    KeyTooLong {
        /// Number in the call.
        index: usize,
        /// The stream.
        stream: StreamId,
        /// Its id.
        id: u64,
        /// Length of the key.
        length: usize,
    },
    /// An empty payload is acknowledged and reaches nothing: it would be lost without a trace.
    #[error("record {id} of stream {stream} is empty, which Wallaroo cannot carry")]
    Empty {
        /// Number in the call.
        index: usize,
        /// The stream.
        stream: StreamId,
        /// Its id.
        id: u64,
    },
}

impl SendError {
    /// Number of the refused record in the call, which is also how many were taken; `None` if it was not about a record.
    pub fn index(&self) -> Option<usize> {
        match self {
            SendError::NotOpen { .. } => None,
            SendError::NotIncreasing { index, .. }
            | SendError::ReservedId { index, .. }
            | SendError::TooLarge { index, .. }
            | SendError::KeyTooLong { index, .. }
            | SendError::Empty { index, .. } => Some(*index),
        }
    }
}
