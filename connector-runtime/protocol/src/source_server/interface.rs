//! What a worker's source session is given and what it tells.

use bytes::Bytes;

use super::error::Tolerated;
use crate::cookie::Cookie;
use crate::frame::SOURCE_FRAME_LIMIT;
use crate::message::SOURCE_VERSION;
use crate::run::Run;
use crate::wire::StreamId;

/// Settings of a [`SourceServer`](crate::SourceServer).
#[derive(Clone, Debug)]
pub struct SourceServerConfig {
    /// The cookie that HELLO must carry.
    pub cookie: Cookie,
    /// Credits that OK grants, and the level that every refill restores.
    pub max_credits: u32,
    /// Level at which credits are refilled between checkpoints.
    pub refill_credits: u32,
    /// Longest body accepted.
    pub max_frame: u32,
    /// Version that HELLO must carry.
    pub version: Bytes,
    /// Do not send OK before [`SourceServer::accept`](crate::SourceServer::accept).
    pub hold_ok: bool,
}

impl SourceServerConfig {
    /// What the effectively-once tests of Wallaroo use: 500 credits, refilled at 50.
    pub fn new(cookie: Cookie) -> SourceServerConfig {
        SourceServerConfig {
            cookie,
            max_credits: 500,
            refill_credits: 50,
            max_frame: SOURCE_FRAME_LIMIT,
            version: Bytes::from_static(SOURCE_VERSION),
            hold_ok: false,
        }
    }
}

/// What a [`SourceServer`](crate::SourceServer) tells its driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceServerEvent {
    /// A valid HELLO. It is answered with OK already, unless the configuration holds OK.
    Hello {
        /// Program name.
        program: Bytes,
        /// Instance name.
        instance: Bytes,
    },
    /// A stream that this session does not have: ask the cluster's registry and call [`SourceServer::notify_ack`](crate::SourceServer::notify_ack).
    Notify {
        /// The stream.
        stream: StreamId,
        /// Its name.
        name: Bytes,
        /// The client's own idea of the last processed id; a refusal and a non-leader worker echo it.
        position: Option<u64>,
    },
    /// New records of one open stream, in order; repeats and empty ones are left out.
    Records(Run),
    /// A stream ends. It stays in the session as closing until [`SourceServer::acknowledge_ended`](crate::SourceServer::acknowledge_ended).
    Eos {
        /// The stream.
        stream: StreamId,
    },
    /// The client broke a rule that a worker does not enforce. The session goes on.
    Tolerated(Tolerated),
}

/// What a session has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SourceServerCounters {
    /// Frames read.
    pub frames: u64,
    /// Records handed over.
    pub records: u64,
    /// Bytes of their payloads.
    pub payload_bytes: u64,
    /// Records dropped because their id was not beyond the last one seen.
    pub repeats: u64,
    /// Records without a payload: acknowledged, and nothing runs.
    pub empty: u64,
    /// Records discarded during a rollback.
    pub discarded: u64,
}
