//! The pump: one task that owns a system's client and the Wallaroo session, and moves records between them.

pub mod dead_letter;
pub mod poison;
pub mod retry;
pub mod sink;
pub(crate) mod sink_plain;
pub mod source;
pub mod source_plain;
pub mod streams;
pub mod workers;

/// What the process wants of its pump.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shutdown {
    /// Go on.
    #[default]
    Run,
    /// Take nothing new, hand over and commit what is on its way, leave (the first SIGTERM).
    Drain,
    /// Leave at once; what is on its way is given up (the second SIGTERM).
    Now,
}
