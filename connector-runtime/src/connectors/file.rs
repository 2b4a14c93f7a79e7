//! Files: see [`FileSource`] and [`FileSink`].

mod framing;
mod identity;
mod journal;
mod owner;
mod positions;
mod reader;
mod sink;
mod source;

pub use sink::FileSink;
pub use source::FileSource;
