//! What a source session is given and what it tells.

use crate::cookie::Cookie;
use crate::frame::SOURCE_FRAME_LIMIT;
use crate::wire::StreamId;

/// Settings of a [`SourceClient`](crate::SourceClient). All durations are milliseconds.
#[derive(Clone, Debug)]
pub struct SourceClientConfig {
    /// The source's cookie.
    pub cookie: Cookie,
    /// Program name, for Wallaroo's logs; ASCII is safest (§7.23).
    pub program: String,
    /// Instance name, for Wallaroo's logs.
    pub instance: String,
    /// Longest wait for OK. A worker reads nothing before its first checkpoint, so at least 30 s is sensible (§3.1).
    pub handshake_timeout: u64,
    /// Longest wait for the answer to a NOTIFY; a shrinking worker gives none (§7.20).
    pub notify_timeout: u64,
    /// First pause before a refused NOTIFY is repeated; it doubles up to `notify_retry_max`.
    pub notify_retry_min: u64,
    /// Longest pause before a refused NOTIFY is repeated.
    pub notify_retry_max: u64,
    /// Longest frame that the worker accepts; [`SOURCE_FRAME_LIMIT`] for every real one.
    pub send_limit: u32,
    /// Longest frame accepted from the worker.
    pub receive_limit: u32,
}

impl SourceClientConfig {
    /// The usual timeouts and limits.
    pub fn new(cookie: Cookie, program: impl Into<String>, instance: impl Into<String>) -> Self {
        SourceClientConfig {
            cookie,
            program: program.into(),
            instance: instance.into(),
            handshake_timeout: 30_000,
            notify_timeout: 10_000,
            notify_retry_min: 250,
            notify_retry_max: 2_000,
            send_limit: SOURCE_FRAME_LIMIT,
            // An ACK lists 16 bytes a stream: room for 65,000 streams.
            receive_limit: 1024 * 1024,
        }
    }
}

/// A record to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutRecord<'a> {
    /// Id: 1 … 2^64-2, strictly increasing in its stream.
    pub id: u64,
    /// Milliseconds since the epoch, 0 for none.
    pub time: i64,
    /// Key; empty for none. At HEAD it does not reach the application (§7.18).
    pub key: &'a [u8],
    /// Payload, not empty. Key and payload together: at most 16,357 bytes.
    pub payload: &'a [u8],
}

/// What a [`SourceClient`](crate::SourceClient) tells its driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceClientEvent {
    /// HELLO was accepted.
    Ready {
        /// Initial credits; 0 is legal.
        credits: u32,
    },
    /// A stream is open: send the records beyond `position`.
    Opened {
        /// The stream.
        stream: StreamId,
        /// Last id that Wallaroo has; `None` if it knows nothing. It permits no commit: only
        /// [`SourceClientEvent::Acknowledged`] does.
        position: Option<u64>,
    },
    /// A stream is in use elsewhere, or the cluster is rolling back. The session asks again by itself.
    Refused {
        /// The stream.
        stream: StreamId,
    },
    /// Everything of the stream up to and including `position` survives: commit it. Increases within a session.
    Acknowledged {
        /// The stream.
        stream: StreamId,
        /// Last durable id.
        position: u64,
    },
    /// A checkpoint completed: about once a second in a cluster with resilience, also when idle, while a stream is
    /// open. Without resilience there is none.
    Checkpoint,
    /// The stream's end was acknowledged after everything sent; the session has forgotten it.
    Ended {
        /// The stream.
        stream: StreamId,
        /// Last durable id; `None` if nothing was ever processed.
        position: Option<u64>,
    },
    /// The worker asks for a new connection, perhaps elsewhere. The session is over: close the connection (the worker may
    /// not) and dial again at once. See [`crate::restart_target`].
    Restart {
        /// `host:port`; `None` for the same endpoint.
        address: Option<String>,
    },
}
