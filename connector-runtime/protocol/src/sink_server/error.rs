//! What ends a sink session.

use crate::frame::FrameError;
use crate::message::DecodeError;
use crate::wire::StreamId;

/// The end of a sink session. Wallaroo dials again by itself, after about a second.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SinkServerError {
    /// HELLO carries another version than `v0.0.1`.
    #[error("Wallaroo speaks version {got:?} of the sink protocol, not v0.0.1")]
    BadVersion {
        /// What came.
        got: String,
    },
    /// The cookie is not ours.
    #[error("Wallaroo's cookie is not the one configured for this sink")]
    BadCookie,
    /// No HELLO in time.
    #[error("a peer connected and did not send HELLO in time")]
    HandshakeTimeout,
    /// Wallaroo sent ERROR.
    #[error("Wallaroo ended the session: {0}")]
    Peer(String),
    /// An impossible length.
    #[error("Wallaroo sent a {0}")]
    Frame(#[from] FrameError),
    /// An undecodable frame. A decision that is neither yes nor no is one of them: nothing is decided.
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
    /// A stream other than 1 (§4.2).
    #[error("Wallaroo uses stream {stream}; sinks only have stream 1")]
    BadStream {
        /// The stream.
        stream: StreamId,
    },
    /// Output between a vote and its decision (§4.4).
    #[error("Wallaroo sent output at offset {offset} while a transaction is undecided")]
    DataWhilePending {
        /// Its offset.
        offset: u64,
    },
    /// A phase 1 while another transaction is undecided (§4.6).
    #[error("Wallaroo asked for a vote while another transaction is undecided")]
    Phase1WhilePending,
    /// A decision on a transaction whose vote was not sent yet.
    #[error("Wallaroo decided a transaction before the vote on it")]
    DecisionBeforeVote,
    /// Wallaroo committed what this sink voted to abort: the bytes are incomplete. Nothing can repair that here: stop (§4.6).
    #[error("Wallaroo committed transaction {transaction}, which this sink voted to abort")]
    CommitAfterNo {
        /// The transaction.
        transaction: String,
    },
}

impl SinkServerError {
    /// True if the state of the worker cannot be trusted any more and someone has to look at it; everything else heals by the
    /// worker's next connection.
    pub fn is_fatal(&self) -> bool {
        matches!(self, SinkServerError::CommitAfterNo { .. })
    }
}
