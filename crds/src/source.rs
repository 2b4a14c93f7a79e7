//! The registry of sources: one variant a system.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::systems::{
    custom::CustomSource, file::FileSource, generator::GeneratorSource, kafka::KafkaSource, udp::UdpSource,
};
use crate::union::exactly_one;

/// The system that records are read from; exactly one field is set.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
#[schemars(transform = exactly_one)]
pub enum SourceSpec {
    /// A process of your own beside the runtime.
    Custom(CustomSource),
    /// Lines or length-prefixed records of a file.
    File(FileSource),
    /// Made-up records, for trials and load tests.
    Generator(GeneratorSource),
    /// Topics of Apache Kafka.
    Kafka(KafkaSource),
    /// Datagrams received on a port.
    Udp(UdpSource),
}
