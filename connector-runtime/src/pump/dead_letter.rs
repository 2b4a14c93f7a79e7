//! Where records go that can never be delivered, and what the pump relies on before a position moves past one.

mod file;

use async_trait::async_trait;

use crate::record::Position;
use crate::source::SystemError;

pub use self::file::FileDeadLetter;

/// One record that cannot be delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Letter<'a> {
    /// The stream's name in its system (sources), or the Wallaroo worker (sinks).
    pub stream: &'a str,
    /// Its place in the stream.
    pub position: Position,
    /// Milliseconds since the Unix epoch; 0 for none.
    pub time: i64,
    /// Key; empty for none.
    pub key: &'a [u8],
    /// Payload, as far as it is known.
    pub payload: &'a [u8],
    /// What is wrong with it, for people.
    pub reason: &'a str,
}

/// Takes records that can never be delivered (`onError: DeadLetter`).
#[async_trait]
pub trait DeadLetter: Send {
    /// Returns when the letter is durable. After an error the caller backs off and gives the same letter again; it may
    /// then be stored twice, never not at all. Not cancel-safe: the caller awaits it.
    async fn write(&mut self, letter: Letter<'_>) -> Result<(), SystemError>;
}
