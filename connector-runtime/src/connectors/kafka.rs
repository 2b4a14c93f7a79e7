//! Kafka: see [`KafkaSource`] and [`KafkaSink`].

pub mod assignment;
mod client;
mod config;
mod errors;
mod lookup;
mod producer;
mod sink;
mod source;

pub use sink::KafkaSink;
pub use source::KafkaSource;
