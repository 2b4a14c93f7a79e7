//! Harness shared by the tests, fault programs and benchmarks of the workspace.

pub mod binaries;
pub mod conformance;
pub mod fake_kafka;
pub mod fake_redis;
pub mod http;
pub mod kafka_topic;
pub mod kill;
pub mod processes;
pub mod services;
pub mod sim;
pub mod source_driver;
pub mod throughput;
