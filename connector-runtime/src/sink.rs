//! What a sink of records is, and what the pump and a sink owe each other.

use async_trait::async_trait;
use tokio::time::Instant;

use crate::record::{Batch, Position};
pub use crate::source::SystemError;

/// A sink's stream: one Wallaroo worker's output.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SinkStream {
    /// Wallaroo worker, or the peer's number with the plain framings.
    pub worker: String,
    /// Incarnation of the worker's cluster; a fresh cluster starts another one.
    pub incarnation: u64,
}

/// A record that the target refused for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// Number of the record in its batch.
    pub index: usize,
    /// Why, for people.
    pub reason: String,
}

/// What became of a batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Records that were refused; all others are accepted.
    pub rejected: Vec<Rejected>,
}

/// Writes to one external system.
///
/// The pump owns the sink and calls one method at a time; after a transient error it backs off and gives the same
/// batch again, so a batch may be written more than once (`Record::position` is the idempotency key). A batch is accepted when
/// `write` returns; it is *durable* only when [`Sink::durable`] reports its last position, and the transaction log
/// keeps it until then.
///
/// A sink that stores positions with the data does not make the position of a batch with refused records durable before it was
/// called again after `write`: first the pump makes durable what becomes of those records.
#[async_trait]
pub trait Sink: Send {
    /// Announces a stream, after every (re)connect to the target. Returns the position that the target itself holds for it,
    /// where the target stores one with the data; the pump continues behind it.
    async fn open(&mut self, stream: &SinkStream) -> Result<Option<Position>, SystemError>;

    /// Writes the records in order. With `Err` any prefix may have been written. Not cancel-safe: the pump awaits it.
    async fn write(&mut self, stream: &SinkStream, batch: &Batch) -> Result<Written, SystemError>;

    /// Up to which position of each stream everything is durable at the target. Called after every other method. After `open` it covers
    /// what that returned, as soon as it is durable, and nothing beyond it before it is written again.
    fn durable(&self) -> Vec<(SinkStream, Position)>;

    /// Makes everything accepted durable, by `deadline`.
    async fn flush(&mut self, deadline: Instant) -> Result<(), SystemError>;

    /// Forgets a stream whose incarnation ended.
    async fn archive(&mut self, stream: &SinkStream) -> Result<(), SystemError>;

    /// Dials the system and writes nothing (readiness, `check --connect`).
    async fn check(&mut self) -> Result<(), SystemError>;
}
