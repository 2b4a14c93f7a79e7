//! What an endpoint is told: application, workers, source and sink endpoints, checkpoints. JSON with strict fields.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use crate::cookie::{CookieText, DEFAULT_COOKIE};
use crate::faults::FaultPlan;

/// Largest body that a Wallaroo source takes, in bytes (§2.4).
pub const DEFAULT_MAX_SIZE: u32 = 16_384;

/// Connections that a source of a worker serves at once unless told otherwise (§3.1).
pub const DEFAULT_PARALLELISM: u32 = 10;

/// More workers than this in one process are refused: each has its own sockets.
pub const MAX_WORKERS: u32 = 64;

/// A whole stand-in cluster.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct EndpointConfig {
    /// What happens to each record.
    pub application: Application,
    /// Application name, as sinks see it in HELLO.
    pub name: String,
    /// Number of workers, 1 to [`MAX_WORKERS`]. Worker *i* listens on the ports of the sources plus *i*.
    pub workers: u32,
    /// Where connectors bring records in.
    pub sources: Vec<SourceConfig>,
    /// Where results go out; none: records are only counted.
    pub sinks: Vec<SinkConfig>,
    /// Checkpoints, periodic acknowledgements and two-phase commit (§4.1). Off: a build without resilience.
    pub resilience: bool,
    /// Pause between the end of a checkpoint and the next one, in milliseconds, at least 1.
    pub checkpoint_interval_ms: u64,
    /// Directory of the recovery file; absent: a killed endpoint forgets.
    pub state_directory: Option<PathBuf>,
    /// Position at which a stream is handed back when its session ends (§7.4).
    pub release_position: ReleasePosition,
    /// Every worker answers like one that is not the registry's leader (§7.3).
    pub non_leader: bool,
    /// Address of the JSON status server; absent: none. Used by the binary, not by [`crate::Endpoint::start`].
    pub admin: Option<String>,
    /// Misbehaviour asked for.
    pub faults: FaultPlan,
}

impl Default for EndpointConfig {
    fn default() -> Self {
        EndpointConfig {
            application: Application::Identity,
            name: "endpoint".to_owned(),
            workers: 1,
            sources: Vec::new(),
            sinks: Vec::new(),
            resilience: true,
            checkpoint_interval_ms: 1_000,
            state_directory: None,
            release_position: ReleasePosition::LastAcked,
            non_leader: false,
            admin: None,
            faults: FaultPlan::default(),
        }
    }
}

/// What happens to each record.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Application {
    /// Bytes pass unchanged.
    Identity,
    /// Degrees Celsius in, degrees Fahrenheit out; formats in [`crate::application`].
    Celsius,
    /// Running totals of words, `word:total`.
    WordCount,
}

/// A source endpoint.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct SourceConfig {
    /// Name of the source, unique among the sources.
    pub name: String,
    /// `host:port` of the first worker's socket; port 0 for any on every worker.
    pub listen: String,
    /// What connectors speak here.
    pub protocol: SourceProtocol,
    /// Connections served at once by one worker, at least 1.
    #[serde(default = "default_parallelism")]
    pub parallelism: u32,
}

fn default_parallelism() -> u32 {
    DEFAULT_PARALLELISM
}

/// What a source endpoint speaks.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub enum SourceProtocol {
    /// Handshake, credits and acknowledgements (§3).
    #[serde(rename = "Connector")]
    Connector {
        /// Cookie that HELLO must carry.
        #[serde(default)]
        cookie: CookieText,
        /// Credits that a session starts with.
        #[serde(default = "default_max_credits")]
        max_credits: u32,
        /// Credits are refilled when they fall to this number; below `max_credits`.
        #[serde(default = "default_refill_credits")]
        refill_credits: u32,
    },
    /// Length-prefixed payloads, nothing sent back (§1.1).
    #[serde(rename = "FramedTCP")]
    FramedTcp {
        /// Length header.
        #[serde(default)]
        framing: Framing,
        /// Largest payload in bytes; a longer one closes the connection.
        #[serde(default = "default_max_size")]
        max_size: u32,
    },
    /// Framing of 0.5.3 and 0.5.4 (§1.2).
    Stream05 {
        /// Largest body in bytes.
        #[serde(default = "default_max_size")]
        max_size: u32,
    },
    /// Framing of 0.6.0 and 0.6.1 (§1.2).
    Stream06 {
        /// Largest body in bytes.
        #[serde(default = "default_max_size")]
        max_size: u32,
    },
}

fn default_max_credits() -> u32 {
    500
}

fn default_refill_credits() -> u32 {
    50
}

fn default_max_size() -> u32 {
    DEFAULT_MAX_SIZE
}

/// Length header of plain framed records.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct Framing {
    /// Bytes of the length field: 1, 2, 4 or 8.
    pub width: u8,
    /// Most significant byte first.
    pub big_endian: bool,
}

impl Default for Framing {
    fn default() -> Self {
        Framing { width: 4, big_endian: true }
    }
}

/// A sink endpoint: every worker dials it.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct SinkConfig {
    /// Name of the sink, unique among the sinks.
    pub name: String,
    /// `host:port` of the sink connector, resolved at each dial.
    pub connect: String,
    /// What the sink connector speaks.
    pub protocol: SinkProtocol,
    /// How one result becomes bytes; without effect for `Stream05` and `Stream06`, which have their own framing.
    #[serde(default)]
    pub encoder: Encoder,
    /// Pause before dialling again in milliseconds; absent: 1000 for `Connector`, 250 otherwise (§1.3, §4.1).
    #[serde(default)]
    pub retry_ms: Option<u64>,
}

/// What a sink connector speaks.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub enum SinkProtocol {
    /// Handshake and two-phase commit (§4).
    Connector {
        /// Cookie sent in HELLO.
        #[serde(default)]
        cookie: CookieText,
    },
    /// The encoder's bytes, back to back (§1.3).
    #[serde(rename = "FramedTCP")]
    FramedTcp,
    /// Framing of 0.5.3 and 0.5.4 (§1.2).
    Stream05,
    /// Framing of 0.6.0 and 0.6.1 (§1.2).
    Stream06,
}

/// How one result becomes bytes.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Encoder {
    /// The result and a line feed.
    #[default]
    Lines,
    /// Length as four bytes, most significant first, then the result.
    LengthPrefixed,
    /// The result alone.
    Raw,
}

/// Position at which a stream is handed back when its session ends without a rollback.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum ReleasePosition {
    /// What a real worker does: everything since the last checkpoint is processed again.
    LastAcked,
    /// What a real worker's comments say it does.
    LastSeen,
}

/// A configuration that cannot run.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not the JSON that is expected.
    #[error("the configuration is not valid: {0}")]
    Syntax(#[from] serde_json::Error),
    /// A field with a value that makes no sense.
    #[error("{field}: {reason}")]
    Field {
        /// Path of the field.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl SourceProtocol {
    /// `Connector` with the default cookie and credits of 500, refilled at 50.
    pub fn connector() -> SourceProtocol {
        SourceProtocol::Connector {
            cookie: CookieText::default(),
            max_credits: default_max_credits(),
            refill_credits: default_refill_credits(),
        }
    }

    /// `FramedTCP` with a big-endian u32 and payloads of at most [`DEFAULT_MAX_SIZE`].
    pub fn framed() -> SourceProtocol {
        SourceProtocol::FramedTcp { framing: Framing::default(), max_size: DEFAULT_MAX_SIZE }
    }

    /// `Stream05` with bodies of at most [`DEFAULT_MAX_SIZE`].
    pub fn stream05() -> SourceProtocol {
        SourceProtocol::Stream05 { max_size: DEFAULT_MAX_SIZE }
    }

    /// `Stream06` with bodies of at most [`DEFAULT_MAX_SIZE`].
    pub fn stream06() -> SourceProtocol {
        SourceProtocol::Stream06 { max_size: DEFAULT_MAX_SIZE }
    }
}

impl SinkProtocol {
    /// `Connector` with the default cookie.
    pub fn connector() -> SinkProtocol {
        SinkProtocol::Connector { cookie: CookieText::default() }
    }
}

impl SourceConfig {
    /// A source with the default parallelism.
    pub fn new(name: impl Into<String>, listen: impl Into<String>, protocol: SourceProtocol) -> SourceConfig {
        let (name, listen) = (name.into(), listen.into());
        SourceConfig { name, listen, protocol, parallelism: DEFAULT_PARALLELISM }
    }
}

impl SinkConfig {
    /// A sink of lines.
    pub fn new(name: impl Into<String>, connect: impl Into<String>, protocol: SinkProtocol) -> SinkConfig {
        let (name, connect) = (name.into(), connect.into());
        SinkConfig { name, connect, protocol, encoder: Encoder::Lines, retry_ms: None }
    }
}

impl EndpointConfig {
    /// Reads and checks a JSON document.
    pub fn from_json(text: &str) -> Result<EndpointConfig, ConfigError> {
        let config: EndpointConfig = serde_json::from_str(text)?;
        config.check()?;
        Ok(config)
    }

    /// Refuses what cannot run, naming the field.
    pub fn check(&self) -> Result<(), ConfigError> {
        let refuse =
            |field: String, reason: &str| Err(ConfigError::Field { field, reason: reason.to_owned() });
        if self.workers == 0 || self.workers > MAX_WORKERS {
            return refuse("workers".into(), "must be between 1 and 64");
        }
        if self.checkpoint_interval_ms == 0 {
            return refuse("checkpoint_interval_ms".into(), "must be at least 1");
        }
        if self.name.is_empty() || self.name.len() > 255 {
            return refuse("name".into(), "must have between 1 and 255 bytes");
        }
        if self.sources.is_empty() {
            return refuse("sources".into(), "name at least one source");
        }
        for (i, source) in self.sources.iter().enumerate() {
            let field = |name: &str| format!("sources[{i}].{name}");
            if source.name.is_empty() || self.sources[..i].iter().any(|other| other.name == source.name) {
                return refuse(field("name"), "must be present and unique");
            }
            if split_address(&source.listen).is_none() {
                return refuse(field("listen"), "must be host:port");
            }
            if source.parallelism == 0 {
                return refuse(field("parallelism"), "must be at least 1");
            }
            match &source.protocol {
                SourceProtocol::Connector { max_credits, refill_credits, cookie } => {
                    if *max_credits == 0 || refill_credits >= max_credits {
                        return refuse(
                            field("protocol.Connector.refill_credits"),
                            "must be below max_credits, and max_credits at least 1",
                        );
                    }
                    if cookie.expose().len() > usize::from(u16::MAX) {
                        return refuse(field("protocol.Connector.cookie"), "must have at most 65535 bytes");
                    }
                }
                SourceProtocol::FramedTcp { framing, max_size } => {
                    if !matches!(framing.width, 1 | 2 | 4 | 8) {
                        return refuse(
                            field("protocol.FramedTCP.framing.width"),
                            "must be 1, 2, 4 or 8 bytes",
                        );
                    }
                    if *max_size == 0 {
                        return refuse(field("protocol.FramedTCP.max_size"), "must be at least 1");
                    }
                }
                SourceProtocol::Stream05 { max_size } | SourceProtocol::Stream06 { max_size } => {
                    if *max_size == 0 {
                        return refuse(field("protocol.max_size"), "must be at least 1");
                    }
                }
            }
        }
        for (i, sink) in self.sinks.iter().enumerate() {
            let field = |name: &str| format!("sinks[{i}].{name}");
            if sink.name.is_empty() || self.sinks[..i].iter().any(|other| other.name == sink.name) {
                return refuse(field("name"), "must be present and unique");
            }
            if split_address(&sink.connect).is_none() {
                return refuse(field("connect"), "must be host:port");
            }
        }
        self.faults.check()
    }
}

/// Host and port of `host:port`; the port stands after the last colon.
pub(crate) fn split_address(address: &str) -> Option<(&str, u16)> {
    let (host, port) = address.rsplit_once(':')?;
    (!host.is_empty()).then_some(())?;
    Some((host, port.parse().ok()?))
}
