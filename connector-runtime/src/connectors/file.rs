//! Files: see [`FileSource`] and [`FileSink`].

mod framing;
mod identity;
mod journal;
mod positions;
mod reader;
mod sink;
mod source;

pub use sink::FileSink;
pub use source::FileSource;
