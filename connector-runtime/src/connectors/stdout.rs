//! Standard output: see [`StdoutSink`].

mod sink;

pub use sink::StdoutSink;
