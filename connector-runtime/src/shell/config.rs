//! The rendered configuration: read once, judged, never changed.

use std::io;
use std::path::{Path, PathBuf};

use connector_crds::{FieldError, RuntimeConfig, SinkSpec, SourceSpec, validate_runtime_config};

use super::readiness::Direction;

/// Longest configuration, in bytes: an object of Kubernetes holds at most 1 MiB.
const MAX_BYTES: u64 = 1_048_576;

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("configuration {file}: {cause}")]
    Read {
        /// The file.
        file: PathBuf,
        /// What went wrong.
        cause: io::Error,
    },
    /// It is no configuration.
    #[error("configuration {file}: {cause}")]
    Parse {
        /// The file.
        file: PathBuf,
        /// What is wrong, with line and column.
        cause: serde_json::Error,
    },
    /// Neither direction, or both.
    #[error("configuration: exactly one of source and sink must be set")]
    Direction,
    /// Fields are wrong, each named.
    #[error("configuration: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Fields(Vec<FieldError>),
}

/// The system of a connector, from Wallaroo's side.
#[derive(Clone, Debug)]
pub enum System {
    /// Records come from it.
    Source(SourceSpec),
    /// Records go to it.
    Sink(SinkSpec),
}

impl System {
    /// Direction of the connector.
    pub fn direction(&self) -> Direction {
        match self {
            System::Source(_) => Direction::Source,
            System::Sink(_) => Direction::Sink,
        }
    }

    /// Name of the system, as in a manifest.
    pub fn name(&self) -> &'static str {
        match self {
            System::Source(SourceSpec::Custom(_)) | System::Sink(SinkSpec::Custom(_)) => "custom",
            System::Source(SourceSpec::File(_)) | System::Sink(SinkSpec::File(_)) => "file",
            System::Source(SourceSpec::Generator(_)) => "generator",
            System::Source(SourceSpec::Kafka(_)) | System::Sink(SinkSpec::Kafka(_)) => "kafka",
            System::Source(SourceSpec::Udp(_)) | System::Sink(SinkSpec::Udp(_)) => "udp",
            System::Sink(SinkSpec::Redis(_)) => "redis",
            System::Sink(SinkSpec::Stdout(_)) => "stdout",
        }
    }

    /// The connector's type as in its status, e.g. `KafkaSource`.
    pub fn type_name(&self) -> &'static str {
        match self {
            System::Source(SourceSpec::Custom(_)) => "CustomSource",
            System::Source(SourceSpec::File(_)) => "FileSource",
            System::Source(SourceSpec::Generator(_)) => "GeneratorSource",
            System::Source(SourceSpec::Kafka(_)) => "KafkaSource",
            System::Source(SourceSpec::Udp(_)) => "UdpSource",
            System::Sink(SinkSpec::Custom(_)) => "CustomSink",
            System::Sink(SinkSpec::File(_)) => "FileSink",
            System::Sink(SinkSpec::Kafka(_)) => "KafkaSink",
            System::Sink(SinkSpec::Redis(_)) => "RedisSink",
            System::Sink(SinkSpec::Stdout(_)) => "StdoutSink",
            System::Sink(SinkSpec::Udp(_)) => "UdpSink",
        }
    }
}

/// Reads and judges a configuration. Fields that this version does not know are ignored: a newer operator's defaults
/// must not stop an older runtime.
pub fn read(file: &Path) -> Result<(RuntimeConfig, System), ConfigError> {
    with_file(file, parse)
}

/// Like [`read`], and refuses fields that this version does not know.
pub fn read_strict(file: &Path) -> Result<(RuntimeConfig, System), ConfigError> {
    with_file(file, |text| {
        let value = serde_json::from_slice(text).map_err(unnamed)?;
        connector_crds::read_runtime_config(&value).map_err(ConfigError::Fields)?;
        parse(text)
    })
}

fn with_file<T>(file: &Path, parse: impl FnOnce(&[u8]) -> Result<T, ConfigError>) -> Result<T, ConfigError> {
    let unreadable = |cause| ConfigError::Read { file: file.to_owned(), cause };
    if std::fs::metadata(file).map_err(unreadable)?.len() > MAX_BYTES {
        return Err(unreadable(io::Error::new(io::ErrorKind::FileTooLarge, "longer than 1 MiB")));
    }
    let text = std::fs::read(file).map_err(unreadable)?;
    parse(&text).map_err(|error| match error {
        ConfigError::Parse { cause, .. } => ConfigError::Parse { file: file.to_owned(), cause },
        other => other,
    })
}

fn unnamed(cause: serde_json::Error) -> ConfigError {
    ConfigError::Parse { file: PathBuf::new(), cause }
}

fn parse(text: &[u8]) -> Result<(RuntimeConfig, System), ConfigError> {
    let config: RuntimeConfig = serde_json::from_slice(text).map_err(unnamed)?;
    let system = match (&config.source, &config.sink) {
        (Some(source), None) => System::Source(source.clone()),
        (None, Some(sink)) => System::Sink(sink.clone()),
        (Some(_), Some(_)) | (None, None) => return Err(ConfigError::Direction),
    };
    let wrong = validate_runtime_config(&config);
    if wrong.is_empty() { Ok((config, system)) } else { Err(ConfigError::Fields(wrong)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{
        "identity": {"namespace": "shop", "name": "orders"},
        "source": {"generator": {"count": 3}},
        "wallaroo": {"protocol": "Connector", "connect": ["127.0.0.1:7100"]},
        "paths": {"secrets": "secrets", "state": "state", "live": "live.json", "base": "."},
        "admin": "127.0.0.1:0"
    }"#;

    #[test]
    fn a_newer_operators_fields_are_ignored() {
        let text = GOOD.replacen('{', r#"{"fieldOfTomorrow": 1,"#, 1);
        let (config, system) = parse(text.as_bytes()).unwrap();
        assert_eq!((config.identity.name.as_str(), system.type_name()), ("orders", "GeneratorSource"));
    }

    #[test]
    fn both_or_neither_direction_is_refused() {
        let both = GOOD.replace(r#""wallaroo""#, r#""sink": {"stdout": {}}, "wallaroo""#);
        let neither = GOOD.replace(r#""source""#, r#""sauce""#);
        for text in [both, neither] {
            assert!(matches!(parse(text.as_bytes()), Err(ConfigError::Direction)));
        }
    }

    #[test]
    fn a_rule_of_the_resource_holds_here_too() {
        let text = GOOD.replace(r#""connect": ["127.0.0.1:7100"]"#, r#""listen": 7200"#);
        let error = parse(text.as_bytes()).unwrap_err().to_string();
        assert!(error.contains("wallaroo.connect"), "{error}");
    }

    #[test]
    fn a_wrong_value_is_named_with_its_place() {
        let text = GOOD.replace(r#""Connector""#, r#""Conector""#);
        let error = parse(text.as_bytes()).unwrap_err().to_string();
        assert!(error.contains("unknown variant `Conector`") && error.contains("line 4"), "{error}");
    }
}
