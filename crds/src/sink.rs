//! The registry of sinks: one variant a system.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::systems::{
    custom::CustomSink, file::FileSink, kafka::KafkaSink, redis::RedisSink, stdout::StdoutSink, udp::UdpSink,
};
use crate::union::exactly_one;

/// The system that records are written to; exactly one field is set.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
#[schemars(transform = exactly_one)]
pub enum SinkSpec {
    /// A process of your own beside the runtime.
    Custom(CustomSink),
    /// A file that records are appended to.
    File(FileSink),
    /// A Kafka topic.
    Kafka(KafkaSink),
    /// Fields of a Redis hash.
    Redis(RedisSink),
    /// The standard output of the runtime.
    Stdout(StdoutSink),
    /// Datagrams sent to a host.
    Udp(UdpSink),
}
