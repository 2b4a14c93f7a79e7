//! Redis: see [`RedisHashSink`].

mod connection;
mod sink;
mod split;

pub use sink::RedisHashSink;
