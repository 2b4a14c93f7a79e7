//! What a source pump is told at its start, and what it says at its end.

use connector_crds::{ConnectorIdentity, FramingSpec, OnError, Protocol, RuntimeConfig, SecretKeyRef};
use tokio::time::Duration;
use wallaroo_protocol::Cookie;

use crate::board::AckMode;
use crate::secret::{SecretError, Secrets};

/// Cookie of Wallaroo's own examples, which its command line has built in for sinks (§2.3).
const DEFAULT_COOKIE: &str = "Dragons-Love-Tacos";

/// Settings of a source pump.
#[derive(Clone, Debug)]
pub struct SourcePumpConfig {
    /// Who the Connector is; the ids of its streams derive from it.
    pub identity: ConnectorIdentity,
    /// Name of this process in HELLO, e.g. the pod's.
    pub instance: String,
    /// Wire protocol.
    pub protocol: Protocol,
    /// Length header of `FramedTCP`.
    pub framing: FramingSpec,
    /// Cookie of the `Connector` protocol.
    pub cookie: CookieFrom,
    /// Source endpoints of the workers, `host:port` each, dialled in turn. Not empty.
    pub targets: Vec<String>,
    /// Longest frame that Wallaroo accepts, in bytes.
    pub max_frame_bytes: u32,
    /// Records that may be read and not acknowledged.
    pub in_flight_records: u64,
    /// Payload and key bytes that may be read and not acknowledged.
    pub in_flight_bytes: u64,
    /// What happens to a record that can never be handed over.
    pub on_error: OnError,
    /// What permits a commit over `Connector`. The plain framings always take receipt: there is nothing else.
    pub ack_mode: AckMode,
    /// With receipt: time since the worker's kernel acknowledged a record before its position is committed.
    pub commit_delay: Duration,
    /// Longest drain after SIGTERM.
    pub drain_timeout: Duration,
    /// Waits that only tests change.
    pub timings: Timings,
}

/// Waits of a source pump; the defaults are the product's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timings {
    /// For the answer to HELLO. A worker reads nothing before its first checkpoint, so not below 30 s in the product (§3.1).
    pub handshake: Duration,
    /// For the answer to NOTIFY; a worker that leaves its cluster gives none (§3.4).
    pub notify: Duration,
    /// Between attempts that only a change by someone can help: wrong cookie, wrong version, a permanent error of the
    /// system.
    pub slow_retry: Duration,
    /// A session that lived so long worked, even if nothing was acknowledged on it.
    pub healthy: Duration,
    /// Without progress while bytes wait, before a connected worker is reported as not reading.
    pub not_reading: Duration,
    /// With records unacknowledged and credits refilled, before missing checkpoints are reported. Checkpoints come about once a
    /// second, so this is many of them.
    pub no_checkpoints: Duration,
    /// That a short hold may last before the source is told to pause: pausing a Kafka partition throws its prefetched records
    /// away, so it is no answer to running out of credits for a round trip.
    pub pause_after: Duration,
}

impl Default for Timings {
    fn default() -> Self {
        Timings {
            handshake: Duration::from_secs(30),
            notify: Duration::from_secs(10),
            slow_retry: Duration::from_secs(30),
            healthy: Duration::from_secs(5),
            not_reading: Duration::from_secs(30),
            no_checkpoints: Duration::from_secs(30),
            pause_after: Duration::from_millis(250),
        }
    }
}

impl SourcePumpConfig {
    /// The settings that a rendered configuration asks for.
    pub fn new(config: &RuntimeConfig, instance: String, secrets: &Secrets) -> SourcePumpConfig {
        let wallaroo = &config.wallaroo;
        let delivery = &config.delivery;
        SourcePumpConfig {
            identity: config.identity.clone(),
            instance,
            protocol: wallaroo.protocol,
            framing: wallaroo.framing.unwrap_or_default(),
            cookie: match &wallaroo.cookie {
                Some(reference) => {
                    CookieFrom::Secret { secrets: secrets.clone(), reference: reference.clone() }
                }
                None => CookieFrom::Default,
            },
            targets: wallaroo.connect.clone(),
            max_frame_bytes: u32::try_from(wallaroo.max_frame_bytes).unwrap_or(1),
            in_flight_records: u64::try_from(delivery.in_flight.records).unwrap_or(1).max(1),
            in_flight_bytes: u64::try_from(delivery.in_flight.bytes).unwrap_or(1).max(1),
            on_error: delivery.on_error,
            ack_mode: match delivery.ack_mode {
                connector_crds::AckMode::Checkpoint => AckMode::Checkpoint,
                connector_crds::AckMode::OnReceipt => AckMode::OnReceipt,
            },
            commit_delay: Duration::from_millis(u64::try_from(delivery.commit_delay_ms).unwrap_or(0)),
            drain_timeout: Duration::from_secs(u64::from(config.drain_timeout_seconds)),
            timings: Timings::default(),
        }
    }
}

/// Where the cookie comes from; it is read anew for every connection.
#[derive(Clone, Debug)]
pub enum CookieFrom {
    /// Wallaroo's own default.
    Default,
    /// A given one, for tests and trials.
    Fixed(Cookie),
    /// A mounted Secret.
    Secret {
        /// The mounted Secrets.
        secrets: Secrets,
        /// Which one.
        reference: SecretKeyRef,
    },
}

impl CookieFrom {
    /// The cookie as it is now.
    pub(in crate::pump) fn read(&self) -> Result<Cookie, SecretError> {
        use secrecy::ExposeSecret;
        match self {
            CookieFrom::Default => Ok(Cookie::new(DEFAULT_COOKIE)),
            CookieFrom::Fixed(cookie) => Ok(cookie.clone()),
            CookieFrom::Secret { secrets, reference } => {
                let secret = secrets.read(reference)?;
                Ok(Cookie::new(secret.expose_secret().as_bytes().to_vec()))
            }
        }
    }
}

/// How a pump ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A finite source is at its end, and everything is acknowledged and committed.
    Completed,
    /// Drained: everything read is acknowledged and committed.
    Drained,
    /// Left before everything was acknowledged. A system that keeps records gives these again to the next process.
    GivenUp {
        /// Records read and not acknowledged.
        records: u64,
    },
}

/// What no retry can mend: a mistake of this program or of its caller. The process ends with it.
#[derive(Debug, thiserror::Error)]
pub enum PumpError {
    /// There is no address to dial.
    #[error("wallaroo.connect names no address")]
    NoTarget,
    /// Names or cookie do not fit into HELLO.
    #[error("the names of this connector do not fit into the protocol's HELLO")]
    Hello(#[source] wallaroo_protocol::EncodeError),
    /// A source's records of one stream went back.
    #[error("the source yielded record {position} of stream {stream:?} after record {last}")]
    WentBack {
        /// The stream.
        stream: String,
        /// Position of the record.
        position: u64,
        /// Position before it.
        last: u64,
    },
    /// A source yielded a position that the wire cannot carry.
    #[error("the source yielded record {position} of stream {stream:?}; positions go from 1 to 2^64-2")]
    ReservedPosition {
        /// The stream.
        stream: String,
        /// Position of the record.
        position: u64,
    },
    /// A source yields although all its streams are paused.
    #[error("the source goes on yielding batches of paused streams")]
    IgnoresPause,
}
