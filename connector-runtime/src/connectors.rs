//! The registry: one folder a system, one match arm each.

use std::collections::BTreeMap;
use std::path::PathBuf;

use connector_crds::{ConnectorIdentity, SinkSpec, SourceSpec};

use crate::board::Board;
use crate::record::Position;
use crate::secret::Secrets;
use crate::sink::{Sink, SinkStream};
use crate::source::{Source, SystemError};

pub mod custom;
pub mod file;
pub mod generator;
pub mod kafka;
pub mod redis;
mod split;
pub mod stdout;
#[cfg(test)]
pub(crate) mod testing;
pub mod udp;

/// What a connector gets beside its own configuration.
#[derive(Clone, Debug)]
pub struct Context {
    /// Who the Connector is.
    pub identity: ConnectorIdentity,
    /// Directory that relative paths are resolved against.
    pub base: PathBuf,
    /// Directory of the state volume, for positions that a system cannot keep itself. It exists and belongs to this
    /// Connector alone.
    pub state: PathBuf,
    /// Socket of a custom connector.
    pub socket: PathBuf,
    /// Mounted Secrets.
    pub secrets: Secrets,
    /// Where drops that only the connector sees (kernel overflow) and its listen address are reported.
    pub board: Board,
    /// Longest payload that Wallaroo takes from a source, in bytes, without key.
    pub max_payload_bytes: usize,
    /// Records and bytes that may be read but not acknowledged: bound of a connector's own prefetch.
    pub in_flight: connector_crds::InFlight,
    /// True where a sink's records keep their positions over reconnects and restarts (the `Connector` protocol), so that
    /// positions stored at the target mean something. With the plain framings positions start over with each connection.
    pub stable_positions: bool,
}

/// The source of a system. Nothing is dialled or opened yet: that happens in `next` or `check`.
///
/// # Errors
/// [`SystemError::Permanent`] for a configuration that can never work.
#[allow(clippy::needless_pass_by_value)] // a system may keep it
pub fn source(spec: &SourceSpec, context: Context) -> Result<Box<dyn Source>, SystemError> {
    match spec {
        SourceSpec::Custom(spec) => Ok(Box::new(custom::CustomSource::new(spec, &context))),
        SourceSpec::File(spec) => Ok(Box::new(file::FileSource::new(spec, &context))),
        SourceSpec::Generator(spec) => Ok(Box::new(generator::GeneratorSource::new(spec, &context))),
        SourceSpec::Kafka(spec) => Ok(Box::new(kafka::KafkaSource::new(spec, &context))),
        SourceSpec::Udp(spec) => Ok(Box::new(udp::UdpSource::new(spec, &context)?)),
    }
}

/// The sink of a system. Nothing is dialled or opened yet: that happens in `open`, `write` or `check`.
///
/// # Errors
/// [`SystemError::Permanent`] for a configuration that can never work.
#[allow(clippy::needless_pass_by_value)] // a system may keep it
pub fn sink(spec: &SinkSpec, context: Context) -> Result<Box<dyn Sink>, SystemError> {
    match spec {
        SinkSpec::Custom(spec) => Ok(Box::new(custom::CustomSink::new(spec, &context))),
        SinkSpec::File(spec) => Ok(Box::new(file::FileSink::new(spec, &context))),
        SinkSpec::Kafka(spec) => Ok(Box::new(kafka::KafkaSink::new(spec, context))),
        SinkSpec::Redis(spec) => Ok(Box::new(redis::RedisHashSink::new(spec, &context)?)),
        SinkSpec::Stdout(spec) => Ok(Box::new(stdout::StdoutSink::new(spec))),
        SinkSpec::Udp(spec) => Ok(Box::new(udp::UdpSink::new(spec))),
    }
}

/// Sets a stream's position; the key is cloned the first time only.
fn set_position(positions: &mut BTreeMap<SinkStream, Position>, stream: &SinkStream, position: Position) {
    match positions.get_mut(stream) {
        Some(known) => *known = position,
        None => {
            positions.insert(stream.clone(), position);
        }
    }
}
