//! Redis: see [`RedisHashSink`].

mod connection;
mod sink;

pub use sink::RedisHashSink;
