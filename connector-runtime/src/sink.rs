//! What a sink of records is, and what the pump and a sink owe each other.

use std::fmt;

use async_trait::async_trait;
use futures::future::BoxFuture;
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

/// Ends with the system's answer to a write. It needs nothing of the sink, and may be dropped when nobody wants to know any more.
pub type Answer = BoxFuture<'static, Result<(), SystemError>>;

/// What became of a batch.
#[derive(Default)]
pub struct Written {
    /// Records that were refused; all others are accepted, or on their way.
    pub rejected: Vec<Rejected>,
    /// Set while the system's answer is still on its way.
    pub answer: Option<Answer>,
}

impl Written {
    /// Everything is accepted but these.
    pub fn rejecting(rejected: Vec<Rejected>) -> Written {
        Written { rejected, answer: None }
    }
}

impl fmt::Debug for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Written")
            .field("rejected", &self.rejected)
            .field("answered", &self.answer.is_none())
            .finish()
    }
}

/// Writes to one external system.
///
/// The pump owns the sink and calls one method at a time; after a transient error it backs off and gives the same
/// batch again, so a batch may be written more than once (`Record::position` is the idempotency key). A batch is accepted when
/// `write` returns, or with its [`Answer`]; it is *durable* only when [`Sink::durable`] reports its last position, and the
/// transaction log keeps it until then.
///
/// With an [`Answer`] the batch is *in flight*: the sink said all about its records that it knows by itself, and the system is at work. The
/// pump then gives the next batch without waiting, as long as nothing was refused and few enough are in flight. The system
/// has to take batches in the order of their writes. While any is in flight, only `write` and `durable` are called. When an answer is an
/// error, or a `write` behind it fails, the pump waits for every answer that is still out, takes the first failed batch and all behind it for not
/// written, opens the streams again, and gives these batches again in the same order. So an answer has to come in bounded time.
///
/// A sink that stores positions with the data does not make the position of a batch with refused records durable before it was
/// called again after `write`: first the pump makes durable what becomes of those records.
#[async_trait]
pub trait Sink: Send {
    /// Announces a stream, after every (re)connect to the target. Returns the position that the target itself holds for it,
    /// where the target stores one with the data; the pump continues behind it.
    async fn open(&mut self, stream: &SinkStream) -> Result<Option<Position>, SystemError>;

    /// Writes the records in order. With `Err` any prefix may have been written. Not cancel-safe: the pump awaits it, and then
    /// [`Written::answer`].
    async fn write(&mut self, stream: &SinkStream, batch: &Batch) -> Result<Written, SystemError>;

    /// Writes a batch and waits for its answer, for who gives one batch at a time. Returns what was refused.
    async fn deliver(&mut self, stream: &SinkStream, batch: &Batch) -> Result<Vec<Rejected>, SystemError> {
        let Written { rejected, answer } = self.write(stream, batch).await?;
        if let Some(answer) = answer {
            answer.await?;
        }
        Ok(rejected)
    }

    /// Up to which position of each stream everything is durable at the target. Called after every other method, and after an
    /// answer: it does not cover a batch in flight. After `open` it covers
    /// what that returned, as soon as it is durable, and nothing beyond it before it is written again.
    fn durable(&self) -> Vec<(SinkStream, Position)>;

    /// Makes everything accepted durable, by `deadline`.
    async fn flush(&mut self, deadline: Instant) -> Result<(), SystemError>;

    /// Forgets a stream whose incarnation ended.
    async fn archive(&mut self, stream: &SinkStream) -> Result<(), SystemError>;

    /// Dials the system and writes nothing (readiness, `check --connect`).
    async fn check(&mut self) -> Result<(), SystemError>;
}
