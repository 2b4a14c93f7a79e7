//! One pump between an external system and a Wallaroo session.
//!
//! ```text
//! source:  system ──Source::next──► Batch ──encode──► session ──one write──► Wallaroo worker
//!          system ◄─Source::commit── acknowledged positions ◄── ACK ◄──────── (checkpoint)
//!
//! sink:    Wallaroo worker ──► session ──► transaction log ──decided──► Sink::write ──► system
//!                              (vote after fsync)   └─forget up to Sink::durable
//! ```
//!
//! A [`source::Source`] or [`sink::Sink`] knows its system and nothing else; retry, back-off, batching, back-pressure,
//! shutdown and metrics belong to the pump.

pub mod board;
pub mod connectors;
#[cfg(test)]
pub(crate) mod fake_disk;
pub mod position_log;
pub mod pump;
pub mod record;
pub mod secret;
pub mod shell;
pub mod sink;
pub mod source;
pub mod state_volume;
pub mod stream_id;
pub mod txn_log;
