//! The embedded Wallaroo: its configuration from the manifests, and the manifests' addresses on this machine.
//!
//! It stands for all workers, so the hosts of `connect` are replaced by this machine; ports stay.

use std::collections::BTreeMap;
use std::path::Path;

use connector_crds::{ByteOrder, FramingSpec, HeaderWidth, Protocol, SinkFraming, WallarooSpec};
use wallaroo_endpoint::config::{
    ConfigError, CookieText, DEFAULT_COOKIE, Encoder, EndpointConfig, Framing, SinkConfig, SinkProtocol,
    SourceConfig, SourceProtocol,
};

use super::plan::{Direction, Embedded, RuntimePlan};

/// Where the embedded Wallaroo listens, and finds the sinks.
const HOST: &str = "127.0.0.1";

/// Credits of a session: enough that they do not bound a run on one machine.
const MAX_CREDITS: u32 = 50_000;

/// Credits at which a session is refilled.
const REFILL_CREDITS: u32 = 25_000;

/// Connections that one source endpoint serves: every Connector of a run may share one.
const PARALLELISM: u32 = 1_000;

/// Milliseconds between checkpoints: results show soon, and a trial is no load test.
const CHECKPOINT_INTERVAL_MS: u64 = 500;

/// Why the embedded Wallaroo cannot serve the manifests.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    /// There is nothing to take in.
    #[error("--wallaroo embedded needs at least one Connector with a source")]
    NoSource,
    /// An address without a port.
    #[error("{label}: spec.wallaroo.connect: {address:?} is not host:port")]
    Address {
        /// The Connector.
        label: String,
        /// The address.
        address: String,
    },
    /// Two Connectors want different things from one source endpoint.
    #[error(
        "{label}: spec.wallaroo: port {port} is also used by {other}, with another protocol, cookie, framing or maxFrameBytes"
    )]
    Conflict {
        /// The second Connector.
        label: String,
        /// The first Connector.
        other: String,
        /// The port.
        port: u16,
    },
    /// A sink framing that Wallaroo's stand-in does not make.
    #[error(
        "{label}: spec.wallaroo.sinkFraming: the embedded Wallaroo sends lines, or records after a length of 4 bytes big-endian"
    )]
    SinkFraming {
        /// The Connector.
        label: String,
    },
    /// A cookie that is not text.
    #[error("{label}: spec.wallaroo.cookie: the embedded Wallaroo takes cookies that are UTF-8")]
    Cookie {
        /// The Connector.
        label: String,
    },
    /// The given configuration has no source endpoint at a port.
    #[error(
        "{label}: spec.wallaroo.connect: the configuration of the embedded Wallaroo has no source at port {port}"
    )]
    NoSuchPort {
        /// The Connector.
        label: String,
        /// The port.
        port: u16,
    },
    /// A configuration that the endpoint would refuse.
    #[error("the embedded Wallaroo: {0}")]
    Config(#[from] ConfigError),
}

/// The configuration of the endpoint; the runtimes are turned to it.
pub(super) fn config(
    embedded: &Embedded,
    runtimes: &mut [RuntimePlan],
    state_directory: &Path,
) -> Result<EndpointConfig, Vec<EmbeddedError>> {
    let mut config = match embedded {
        Embedded::Derived { application } => {
            let config = derive(runtimes)?;
            EndpointConfig { application: *application, ..config }
        }
        Embedded::Given(config) => {
            serves(config, runtimes)?;
            EndpointConfig::clone(config)
        }
    };
    config.admin = Some(format!("{HOST}:0"));
    config.state_directory.get_or_insert_with(|| state_directory.join("state").join("wallaroo"));
    config.check().map_err(|error| vec![error.into()])?;
    let mut errors = Vec::new();
    for runtime in runtimes.iter_mut() {
        match ports(runtime) {
            Ok(ports) => {
                runtime.config.wallaroo.connect =
                    ports.into_iter().map(|port| format!("{HOST}:{port}")).collect();
            }
            Err(error) => errors.push(error),
        }
    }
    if errors.is_empty() { Ok(config) } else { Err(errors) }
}

fn derive(runtimes: &[RuntimePlan]) -> Result<EndpointConfig, Vec<EmbeddedError>> {
    let mut errors = Vec::new();
    let mut sources: BTreeMap<u16, (String, SourceProtocol)> = BTreeMap::new();
    let mut sinks = Vec::new();
    for runtime in runtimes.iter().filter(|runtime| runtime.runs()) {
        let label = &runtime.label;
        match runtime.direction {
            Direction::Source => match (ports(runtime), source_protocol(runtime)) {
                (Ok(ports), Ok(protocol)) => {
                    for port in ports {
                        let (other, known) =
                            sources.entry(port).or_insert_with(|| (label.clone(), protocol.clone()));
                        if *known != protocol {
                            let other = other.clone();
                            errors.push(EmbeddedError::Conflict { label: label.clone(), other, port });
                        }
                    }
                }
                (Err(error), _) | (_, Err(error)) => errors.push(error),
            },
            Direction::Sink => match sink(runtime) {
                Ok(sink) => sinks.push(sink),
                Err(error) => errors.push(error),
            },
        }
    }
    if sources.is_empty() && errors.is_empty() {
        errors.push(EmbeddedError::NoSource);
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    Ok(EndpointConfig {
        sources: sources
            .into_iter()
            .map(|(port, (_, protocol))| SourceConfig {
                name: format!("source-{port}"),
                listen: format!("{HOST}:{port}"),
                protocol,
                parallelism: PARALLELISM,
            })
            .collect(),
        sinks,
        checkpoint_interval_ms: CHECKPOINT_INTERVAL_MS,
        ..EndpointConfig::default()
    })
}

/// Distinct ports of `connect`, in order.
fn ports(runtime: &RuntimePlan) -> Result<Vec<u16>, EmbeddedError> {
    let mut ports = Vec::new();
    for address in &runtime.config.wallaroo.connect {
        let port = address.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).ok_or_else(|| {
            EmbeddedError::Address { label: runtime.label.clone(), address: address.clone() }
        })?;
        if !ports.contains(&port) {
            ports.push(port);
        }
    }
    Ok(ports)
}

fn serves(config: &EndpointConfig, runtimes: &[RuntimePlan]) -> Result<(), Vec<EmbeddedError>> {
    let listens = |port: u16| {
        config.sources.iter().filter_map(|source| source.listen.rsplit_once(':')?.1.parse::<u16>().ok()).any(
            |first| {
                // Worker i listens on the port plus i.
                u32::from(port).checked_sub(u32::from(first)).is_some_and(|worker| worker < config.workers)
            },
        )
    };
    let mut errors = Vec::new();
    for runtime in runtimes {
        match ports(runtime) {
            Ok(ports) => errors.extend(
                ports
                    .into_iter()
                    .filter(|port| !listens(*port))
                    .map(|port| EmbeddedError::NoSuchPort { label: runtime.label.clone(), port }),
            ),
            Err(error) => errors.push(error),
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

fn source_protocol(runtime: &RuntimePlan) -> Result<SourceProtocol, EmbeddedError> {
    let wallaroo = &runtime.config.wallaroo;
    let max_size = u32::try_from(wallaroo.max_frame_bytes).unwrap_or(u32::MAX);
    Ok(match wallaroo.protocol {
        Protocol::Connector => SourceProtocol::Connector {
            cookie: cookie(runtime)?,
            max_credits: MAX_CREDITS,
            refill_credits: REFILL_CREDITS,
        },
        Protocol::FramedTCP => {
            SourceProtocol::FramedTcp { framing: framing(wallaroo.framing.unwrap_or_default()), max_size }
        }
        Protocol::Stream05 => SourceProtocol::Stream05 { max_size },
        Protocol::Stream06 => SourceProtocol::Stream06 { max_size },
    })
}

fn sink(runtime: &RuntimePlan) -> Result<SinkConfig, EmbeddedError> {
    let wallaroo = &runtime.config.wallaroo;
    let (protocol, encoder) = match wallaroo.protocol {
        // Each message carries one result, so nothing needs to part them.
        Protocol::Connector => (SinkProtocol::Connector { cookie: cookie(runtime)? }, Encoder::Raw),
        Protocol::FramedTCP => (SinkProtocol::FramedTcp, encoder(runtime, wallaroo)?),
        Protocol::Stream05 => (SinkProtocol::Stream05, Encoder::Raw),
        Protocol::Stream06 => (SinkProtocol::Stream06, Encoder::Raw),
    };
    Ok(SinkConfig {
        name: runtime.label.clone(),
        connect: format!("{HOST}:{}", wallaroo.listen.unwrap_or_default()),
        protocol,
        encoder,
        retry_ms: None,
    })
}

fn encoder(runtime: &RuntimePlan, wallaroo: &WallarooSpec) -> Result<Encoder, EmbeddedError> {
    match wallaroo.sink_framing {
        None | Some(SinkFraming::Lines {}) => Ok(Encoder::Lines),
        Some(SinkFraming::LengthPrefixed(framing)) if framing == FramingSpec::default() => {
            Ok(Encoder::LengthPrefixed)
        }
        Some(SinkFraming::LengthPrefixed(_)) => {
            Err(EmbeddedError::SinkFraming { label: runtime.label.clone() })
        }
    }
}

fn framing(spec: FramingSpec) -> Framing {
    Framing {
        width: match spec.header {
            HeaderWidth::U8 => 1,
            HeaderWidth::U16 => 2,
            HeaderWidth::U32 => 4,
            HeaderWidth::U64 => 8,
        },
        big_endian: match spec.byte_order {
            ByteOrder::BigEndian => true,
            ByteOrder::LittleEndian => false,
        },
    }
}

fn cookie(runtime: &RuntimePlan) -> Result<CookieText, EmbeddedError> {
    let Some(reference) = &runtime.config.wallaroo.cookie else {
        return Ok(CookieText::new(DEFAULT_COOKIE));
    };
    let value =
        runtime.secrets.iter().find(|file| file.reference == *reference).map(|file| file.value.clone());
    String::from_utf8(value.unwrap_or_default())
        .map(CookieText::new)
        .map_err(|_| EmbeddedError::Cookie { label: runtime.label.clone() })
}
