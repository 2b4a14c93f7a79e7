//! Wallaroo's wire protocols without I/O.
//!
//! Nothing here opens a socket, reads a clock or starts a task. A driver moves bytes and calls the session:
//!
//! 1. read into `session.input()`, then `session.handle_input(now)`;
//! 2. take `poll_event()` until it is `None`, and act;
//! 3. write `poll_output()` until it is `None`, also after an error: it may hold the ERROR frame for the peer;
//! 4. at `poll_timeout()` call `handle_timeout(now)`.
//!
//! | Session | Who is that |
//! |---|---|
//! | [`SourceClient`] | our sources: they dial a worker |
//! | [`SourceServer`] | a worker's source endpoint |
//! | [`SinkServer`] | our sinks: workers dial them |
//! | [`SinkClient`] | a worker's sink endpoint |
//!
//! The plain framings without any session (`FramedTCP`, stream 0.5.3 and 0.6) are in [`framing`].
//!
//! Section numbers (§) in this crate's documentation are those of the protocol's specification.

mod address;
mod buffer;
mod cookie;
pub mod frame;
pub mod framing;
pub mod message;
mod run;
mod sink_client;
mod sink_server;
mod source_client;
mod source_server;
pub mod two_phase;
mod wire;

/// The decisions of each session without time and bytes, for models that explore every state: small values that are
/// `Clone`, `Eq` and `Hash`. The sessions are these plus buffers and timers.
pub mod decisions {
    pub use crate::sink_client::core as sink_client;
    pub use crate::sink_server::core as sink_server;
    pub use crate::source_client::core as source_client;
    pub use crate::source_server::core as source_server;
}

pub use address::{AddressError, restart_target};
pub use cookie::Cookie;
pub use frame::{DEFAULT_FRAME_LIMIT, FrameError, SOURCE_FRAME_LIMIT};
pub use run::{Run, RunRecord};
pub use sink_client::{
    FIRST_RTAG, SinkClient, SinkClientConfig, SinkClientCore, SinkClientError, SinkClientEvent,
    SinkClientPhase, SinkMisuse,
};
pub use sink_server::{
    Pending, SinkMode, SinkServer, SinkServerConfig, SinkServerCore, SinkServerError, SinkServerEvent,
    SinkServerPhase, WorkerState,
};
pub use source_client::{
    OutRecord, PeerErrorKind, Reaction, SendError, SourceClient, SourceClientConfig, SourceClientCore,
    SourceClientError, SourceClientEvent, SourceClientPhase, StreamError,
};
pub use source_server::{
    ServerStream, ServerStreamPhase, SourceServer, SourceServerConfig, SourceServerCore,
    SourceServerCounters, SourceServerError, SourceServerEvent, SourceServerPhase, Tolerated,
};
pub use wire::{EncodeError, Millis, NONE, StreamId};
