//! Kafka: see [`KafkaSource`].

pub mod assignment;
mod client;
mod config;
mod errors;
mod lookup;
mod source;

pub use source::KafkaSource;
