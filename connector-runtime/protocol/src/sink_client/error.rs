//! Rules of the sink protocol that an external sink can break, as a worker's endpoint reports them.

use crate::frame::FrameError;
use crate::message::DecodeError;
use crate::wire::{EncodeError, StreamId};

/// The end of a session by the sink's fault or wish. Each names the rule and what a real worker does.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SinkClientError {
    /// ACK.
    #[error("the sink sent ACK (§4.9, §7.12): a real worker closes and rolls the cluster back")]
    AckFromSink,
    /// RESTART.
    #[error("the sink sent RESTART (§4.9): a real worker closes and rolls the cluster back")]
    RestartFromSink,
    /// NOTIFY was refused.
    #[error("the sink refused NOTIFY (§4.2): a real worker would abort")]
    NotifyRefused,
    /// A frame twice or behind its place.
    #[error("the sink sent {frame} out of order (§4.2): a real worker answers ERROR and closes")]
    OutOfOrder {
        /// Name of the frame.
        frame: &'static str,
    },
    /// OK with fewer than 2 credits.
    #[error("the sink granted {credits} credits, fewer than 2 (§4.2): a real worker closes")]
    TooFewCredits {
        /// What it granted.
        credits: u32,
    },
    /// An answer to another question.
    #[error("the sink answered LIST_UNCOMMITTED {got} instead of {wanted} (§4.2)")]
    WrongRtag {
        /// Number in the answer.
        got: u64,
        /// Number of the question.
        wanted: u64,
    },
    /// Two or more undecided transactions.
    #[error(
        "the sink listed {count} undecided transactions, more than one (§4.2): a real worker would abort"
    )]
    SeveralUncommitted {
        /// How many.
        count: usize,
    },
    /// A vote that nobody asked for.
    #[error("the sink voted {commit} on transaction {transaction} unasked (§4.4): a real worker would abort")]
    UnaskedVote {
        /// The transaction.
        transaction: String,
        /// The vote.
        commit: bool,
    },
    /// An inner message that only workers send.
    #[error("the sink sent {message} (§4.9): a real worker would abort")]
    WrongInner {
        /// Name of the message.
        message: &'static str,
    },
    /// An undecodable inner message.
    #[error(
        "the sink sent an undecodable message of two-phase commit: {0} (§4.9): a real worker would abort"
    )]
    BadInner(#[source] DecodeError),
    /// A MESSAGE that is not for two-phase commit.
    #[error("the sink sent {length} bytes on stream {stream} (§4.9): a real worker answers ERROR and closes")]
    BadMessage {
        /// Its stream.
        stream: StreamId,
        /// Length of its payload.
        length: usize,
    },
    /// HELLO or NOTIFY.
    #[error("the sink sent {frame} (§4.9): a real worker answers ERROR and closes")]
    WrongDirection {
        /// Name of the frame.
        frame: &'static str,
    },
    /// An undecodable frame.
    #[error(
        "the sink sent an undecodable frame: {0} (§4.9): a real worker aborts or answers ERROR and closes"
    )]
    Decode(#[from] DecodeError),
    /// An impossible length.
    #[error("the sink sent a {0} (§2.4)")]
    Frame(#[from] FrameError),
    /// The sink sent ERROR; no rule is broken.
    #[error("the sink ended the session: {0}")]
    Peer(String),
}

impl SinkClientError {
    /// True where a real worker's process would exit.
    pub fn kills_worker(&self) -> bool {
        match self {
            SinkClientError::NotifyRefused
            | SinkClientError::SeveralUncommitted { .. }
            | SinkClientError::UnaskedVote { .. }
            | SinkClientError::WrongInner { .. }
            | SinkClientError::BadInner(_) => true,
            SinkClientError::AckFromSink
            | SinkClientError::RestartFromSink
            | SinkClientError::OutOfOrder { .. }
            | SinkClientError::TooFewCredits { .. }
            | SinkClientError::WrongRtag { .. }
            | SinkClientError::BadMessage { .. }
            | SinkClientError::WrongDirection { .. }
            | SinkClientError::Decode(_)
            | SinkClientError::Frame(_)
            | SinkClientError::Peer(_) => false,
        }
    }
}

/// Something that the driver may not ask for now. Nothing was sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SinkMisuse {
    /// The session is over.
    #[error("the session is over")]
    Over,
    /// No phase 1 before the intro is complete and the last transaction decided.
    #[error("the sink is not ready for a transaction")]
    NotReady,
    /// No output between PHASE1 and PHASE2.
    #[error("a transaction is undecided: no output may be sent")]
    OutputWhileVoting,
    /// No vote, or another transaction.
    #[error("this transaction is not waiting for a decision")]
    NothingToDecide,
    /// A value that does not fit.
    #[error(transparent)]
    Encode(#[from] EncodeError),
}
