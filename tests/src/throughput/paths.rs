//! The paths that are measured, each with its baseline in the same round.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use connector_crds::systems::kafka::{KafkaSource, StartPosition};
use connector_crds::{InFlight, Protocol, SinkSpec, SourceSpec};
use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use serde_json::json;
use wallaroo_endpoint::EndpointConfig;
use wallaroo_endpoint::config::{
    CookieText, Encoder, SinkConfig, SinkProtocol, SourceConfig, SourceProtocol,
};

use super::baseline::{self, redis_password, redis_record};
use super::delay;
use super::meter::{Figures, measure};
use super::peers::{Reader, Sender, frames, write_frames};
use super::table::Row;
use crate::kafka_topic;
use crate::processes::{Endpoint, Process, Runtime, System, Wallaroo, free_port, runtime_config};

/// Partitions of the measured topics.
pub const PARTITIONS: i32 = 4;

/// Fields of the measured hash: it stays in the caches of the server, whose memory is not what is measured.
pub const REDIS_FIELDS: u64 = 100_000;

/// Key of the measured hash.
const REDIS_KEY: &str = "test:throughput";

/// Receive buffer that is asked for, in bytes.
const RECEIVE_BUFFER: usize = 16_777_216;

/// Kernel memory of one small datagram in a receive buffer, rounded up.
const DATAGRAM_COST: usize = 1_024;

/// Pause between two looks at an endpoint's or a runtime's counters: a look costs both of them a little.
const ASK: Duration = Duration::from_millis(20);

/// A file has so many times the records of a topic.
const FILE_TIMES: u64 = 5;

/// Over two-phase commit so many times the records of a topic: what comes is decided once a second, so that the first second brings
/// nothing and after the last record up to a second passes. Only a run of many seconds shows what goes on in between.
const DECIDED_TIMES: u64 = 10;

/// Credits of a session, and at which number they are refilled.
pub type Credits = (u32, u32);

/// What Wallaroo's sources have unless they are told otherwise.
pub const USUAL: Credits = (500, 50);

/// What the goal for throughput over `Connector` is stated for.
pub const MANY: Credits = (50_000, 25_000);

/// Added to the round trip in the rows that say so.
pub const DELAY: Duration = Duration::from_micros(500);

/// One path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Kafka into a TCP reader.
    KafkaFramed,
    /// Kafka into an endpoint.
    KafkaConnector(Credits),
    /// A file into an endpoint, beside a copy of the frames in memory.
    FileConnector(Credits),
    /// The same, beside a session alone; with delay added or not.
    FileSession(Credits, Duration),
    /// Datagrams into a TCP reader.
    UdpFramed,
    /// Frames from a TCP writer into a Redis hash.
    FramedRedis,
    /// Frames through an endpoint and two-phase commit into a Redis hash.
    ConnectorRedis,
}

impl Kind {
    /// What the row is called.
    pub fn name(self) -> String {
        let credits = |(most, refill): Credits| format!("Connector {most}/{refill}");
        match self {
            Kind::KafkaFramed => "Kafka → FramedTCP".into(),
            Kind::KafkaConnector(with) => format!("Kafka → {}", credits(with)),
            Kind::FileConnector(with) => format!("file → {}", credits(with)),
            Kind::FileSession(with, delay) if delay.is_zero() => {
                format!("file → {} (session)", credits(with))
            }
            Kind::FileSession(with, delay) => format!("file → {} +{} µs", credits(with), delay.as_micros()),
            Kind::UdpFramed => "UDP → FramedTCP".into(),
            Kind::FramedRedis => "FramedTCP → Redis hash".into(),
            Kind::ConnectorRedis => "Connector (2PC) → Redis hash".into(),
        }
    }

    fn baseline(self) -> &'static str {
        match self {
            Kind::KafkaFramed | Kind::KafkaConnector(_) => "librdkafka batches → frames → TCP",
            Kind::FileConnector(_) => "memory copy of the frames",
            Kind::FileSession(..) => "a session alone",
            Kind::UdpFramed => "sendmmsg/recvmmsg alone",
            Kind::FramedRedis | Kind::ConnectorRedis => "pipelined HSET alone",
        }
    }

    fn goal(self) -> Option<f64> {
        match self {
            Kind::KafkaFramed | Kind::FramedRedis | Kind::ConnectorRedis => Some(0.8),
            Kind::KafkaConnector(MANY) | Kind::UdpFramed => Some(0.7),
            // Credits bound these.
            Kind::FileSession(USUAL, _) => Some(0.9),
            Kind::KafkaConnector(_) | Kind::FileConnector(_) | Kind::FileSession(..) => None,
        }
    }

    /// Needs the servers of `tests/services`.
    pub fn needs_services(self) -> bool {
        match self {
            Kind::KafkaFramed | Kind::KafkaConnector(_) | Kind::FramedRedis | Kind::ConnectorRedis => true,
            Kind::FileConnector(_) | Kind::FileSession(..) | Kind::UdpFramed => false,
        }
    }

    /// How many records a run moves when the usual number is `records`: what is fast needs more of them, or the looks at the
    /// counters are what is measured.
    fn records(self, records: u64) -> u64 {
        match self {
            Kind::FileConnector(_) => records * FILE_TIMES,
            Kind::FileSession(_, delay) if delay.is_zero() => records * FILE_TIMES,
            Kind::ConnectorRedis => records * DECIDED_TIMES,
            Kind::FileSession(..)
            | Kind::KafkaFramed
            | Kind::KafkaConnector(_)
            | Kind::UdpFramed
            | Kind::FramedRedis => records,
        }
    }

    fn needs_topic(self) -> bool {
        matches!(self, Kind::KafkaFramed | Kind::KafkaConnector(_))
    }
}

/// Everything that is measured, in the order of the table.
pub fn all() -> Vec<(Kind, usize)> {
    let mut all = Vec::new();
    for size in [100, 256] {
        all.extend([
            (Kind::KafkaFramed, size),
            (Kind::KafkaConnector(USUAL), size),
            (Kind::KafkaConnector(MANY), size),
        ]);
    }
    all.extend([
        (Kind::FileConnector(USUAL), 100),
        (Kind::FileConnector(MANY), 100),
        (Kind::FileSession(USUAL, Duration::ZERO), 100),
        (Kind::FileSession(MANY, Duration::ZERO), 100),
        (Kind::FileSession(USUAL, DELAY), 100),
        (Kind::FileSession(MANY, DELAY), 100),
        (Kind::UdpFramed, 100),
        (Kind::FramedRedis, 100),
        (Kind::ConnectorRedis, 100),
    ]);
    all
}

/// Where everything is and how much is moved.
#[derive(Debug)]
pub struct Bench {
    /// Binary of the runtime.
    pub runtime: PathBuf,
    /// Binary of the endpoint.
    pub endpoint: PathBuf,
    /// Directory for files.
    pub directory: PathBuf,
    /// Records of a run.
    pub records: u64,
    /// Brokers, where there are any.
    pub brokers: Option<String>,
    /// Redis, where there is one.
    pub redis: Option<String>,
    prepared: Vec<String>,
    runs: u32,
}

impl Bench {
    /// A bench below `directory`.
    pub fn new(binaries: (PathBuf, PathBuf), directory: PathBuf, records: u64) -> Bench {
        let environment = |name| std::env::var(name).ok();
        Bench {
            runtime: binaries.0,
            endpoint: binaries.1,
            directory,
            records,
            brokers: environment("KAFKA_BROKERS"),
            redis: environment("REDIS_ADDRESS"),
            prepared: Vec::new(),
            runs: 0,
        }
    }

    /// Measures path and baseline in turn, `rounds` times.
    ///
    /// # Errors
    /// When anything fails: no figure is made up.
    pub fn row(&mut self, kind: Kind, size: usize, rounds: u32) -> anyhow::Result<Row> {
        self.prepare(kind, size)?;
        let mut measured = Vec::new();
        for _ in 0..rounds {
            let path = self.path(kind, size).with_context(|| kind.name())?;
            let raw = self.raw(kind, size).with_context(|| format!("{}: baseline", kind.name()))?;
            measured.push((path, raw));
        }
        Ok(Row {
            path: kind.name(),
            size,
            baseline: kind.baseline().into(),
            goal: kind.goal(),
            rounds: measured,
        })
    }

    fn brokers(&self) -> anyhow::Result<&str> {
        self.brokers.as_deref().context("KAFKA_BROKERS is not set: run this by `./tasks throughput`")
    }

    fn redis(&self) -> anyhow::Result<&str> {
        self.redis.as_deref().context("REDIS_ADDRESS is not set: run this by `./tasks throughput`")
    }

    fn topic(size: usize) -> String {
        format!("throughput-{size}-{}", std::process::id())
    }

    fn file(&self, size: usize) -> PathBuf {
        self.directory.join(format!("records-{size}.txt"))
    }

    /// Fills topic or file, once.
    fn prepare(&mut self, kind: Kind, size: usize) -> anyhow::Result<()> {
        let what = format!("{}-{size}", if kind.needs_topic() { "topic" } else { kind.baseline() });
        if self.prepared.contains(&what) {
            return Ok(());
        }
        match kind {
            Kind::KafkaFramed | Kind::KafkaConnector(_) => {
                let (brokers, topic) = (self.brokers()?, Self::topic(size));
                kafka_topic::create(brokers, &topic, PARTITIONS)?;
                let writer = kafka_topic::Writer::new(brokers, &topic, PARTITIONS, size)?;
                writer.write(1..=self.records)?;
                writer.finish()?;
            }
            Kind::FileConnector(_) | Kind::FileSession(..) => {
                let mut out = BufWriter::new(File::create(self.file(size))?);
                for number in 1..=self.records * FILE_TIMES {
                    out.write_all(kafka_topic::payload(number, size).as_bytes())?;
                    out.write_all(b"\n")?;
                }
                out.flush()?;
            }
            Kind::UdpFramed => {}
            Kind::FramedRedis | Kind::ConnectorRedis => {
                // The server's disk is not what is measured.
                let mut client = self.redis_client()?;
                redis::cmd("CONFIG").arg("SET").arg("appendonly").arg("no").exec(&mut client)?;
            }
        }
        self.prepared.push(what);
        Ok(())
    }

    fn redis_client(&self) -> anyhow::Result<redis::Connection> {
        let client =
            redis::Client::open(format!("redis://default:{}@{}/", redis_password()?, self.redis()?))?;
        Ok(client.get_connection()?)
    }

    fn kafka_source(&self, size: usize) -> anyhow::Result<SourceSpec> {
        Ok(SourceSpec::Kafka(KafkaSource {
            bootstrap_servers: vec![self.brokers()?.to_owned()],
            topics: vec![Self::topic(size)],
            topic_pattern: None,
            group: None,
            start_position: StartPosition::default(),
            tls: None,
            sasl: None,
        }))
    }

    fn file_source(&self, size: usize) -> anyhow::Result<SourceSpec> {
        Ok(serde_json::from_value(json!({"file": {"path": self.file(size)}}))?)
    }

    /// A directory and a name that no earlier run had: no state and no group is met again.
    fn fresh(&mut self) -> (String, PathBuf) {
        self.runs += 1;
        let name = format!("run-{}", self.runs);
        let directory = self.directory.join(&name);
        (name, directory)
    }

    fn start_source(
        &mut self,
        source: SourceSpec,
        protocol: Protocol,
        address: String,
    ) -> anyhow::Result<Runtime> {
        let (name, directory) = self.fresh();
        let mut config =
            runtime_config(&name, &directory, System::Source(source), protocol, &Wallaroo::Connect(address))?;
        // The default of 16 MiB between two checkpoints, a second apart here, would be all that is measured.
        config.delivery.in_flight = InFlight { records: 100_000_000, bytes: 1 << 30 };
        Runtime::start(&self.runtime, &directory, &config)
    }

    fn start_endpoint(&mut self, (max_credits, refill_credits): Credits) -> anyhow::Result<Endpoint> {
        let (_, directory) = self.fresh();
        let protocol =
            SourceProtocol::Connector { cookie: CookieText::default(), max_credits, refill_credits };
        let sources = vec![SourceConfig::new("in", "127.0.0.1:0", protocol)];
        Endpoint::start(&self.endpoint, &directory, &EndpointConfig { sources, ..EndpointConfig::default() })
    }

    fn path(&mut self, kind: Kind, size: usize) -> anyhow::Result<Figures> {
        let records = kind.records(self.records);
        match kind {
            Kind::KafkaFramed => {
                let reader = Reader::start()?;
                let source = self.kafka_source(size)?;
                let mut runtime = self.start_source(source, Protocol::FramedTCP, reader.address.clone())?;
                let frame = size as u64 + 4;
                measure(runtime.process(), records, || Ok(reader.bytes() / frame))
            }
            Kind::KafkaConnector(credits) => {
                let source = self.kafka_source(size)?;
                self.source_to_endpoint(source, records, credits, Duration::ZERO)
            }
            Kind::FileConnector(credits) => {
                let source = self.file_source(size)?;
                self.source_to_endpoint(source, records, credits, Duration::ZERO)
            }
            Kind::FileSession(credits, delay) => {
                let source = self.file_source(size)?;
                self.source_to_endpoint(source, records, credits, delay)
            }
            Kind::UdpFramed => {
                let reader = Reader::start()?;
                let port = free_port()?;
                let source = json!({"udp": {
                    "port": port, "bind": "127.0.0.1", "receiveBufferBytes": RECEIVE_BUFFER
                }});
                let source = serde_json::from_value(source)?;
                let mut runtime = self.start_source(source, Protocol::FramedTCP, reader.address.clone())?;
                runtime.wait_ready()?;
                let frame = size as u64 + 4;
                let _sender = Sender::start(
                    SocketAddrV4::new(Ipv4Addr::LOCALHOST, port),
                    records,
                    size,
                    window()?,
                    (reader.counter(), frame),
                )?;
                measure(runtime.process(), records, || Ok(reader.bytes() / frame))
            }
            Kind::FramedRedis => {
                let (mut runtime, port) = self.start_redis(Protocol::FramedTCP)?;
                let frames = frames(1..=records, |number| redis_record(number, size));
                let _writing = write_frames(&format!("127.0.0.1:{port}"), Arc::new(frames), 1)?;
                let admin = runtime.admin.clone();
                let figures = measure(runtime.process(), records, || written(&admin))?;
                self.check_hash(size)?;
                Ok(figures)
            }
            Kind::ConnectorRedis => {
                let (mut runtime, port) = self.start_redis(Protocol::Connector)?;
                let (_, directory) = self.fresh();
                let mut sink = SinkConfig::new("out", format!("127.0.0.1:{port}"), SinkProtocol::connector());
                sink.encoder = Encoder::Raw;
                let config = EndpointConfig {
                    sources: vec![SourceConfig::new("in", "127.0.0.1:0", SourceProtocol::framed())],
                    sinks: vec![sink],
                    ..EndpointConfig::default()
                };
                let endpoint = Endpoint::start(&self.endpoint, &directory, &config)?;
                let frames = frames(1..=self.records, |number| redis_record(number, size));
                let _writing = write_frames(&endpoint.sources[0], Arc::new(frames), DECIDED_TIMES)?;
                let admin = runtime.admin.clone();
                let figures = measure(runtime.process(), records, || written(&admin))?;
                self.check_hash(size)?;
                Ok(figures)
            }
        }
    }

    fn source_to_endpoint(
        &mut self,
        source: SourceSpec,
        records: u64,
        credits: Credits,
        added: Duration,
    ) -> anyhow::Result<Figures> {
        let endpoint = self.start_endpoint(credits)?;
        let address = via(&endpoint, added)?;
        let mut runtime = self.start_source(source, Protocol::Connector, address)?;
        let figures = measure(runtime.process(), records, || taken(&endpoint))?;
        let status = endpoint.status()?;
        ensure!(
            status.repeats_dropped == 0 && status.violation_count == 0,
            "{} repeats, violations {:?}",
            status.repeats_dropped,
            status.violations
        );
        Ok(figures)
    }

    fn start_redis(&mut self, protocol: Protocol) -> anyhow::Result<(Runtime, u16)> {
        let (name, directory) = self.fresh();
        let mut client = self.redis_client()?;
        redis::cmd("DEL").arg(REDIS_KEY).exec(&mut client)?;
        std::fs::create_dir_all(directory.join("secrets/redis"))?;
        std::fs::write(directory.join("secrets/redis/password"), redis_password()?)?;
        let sink: SinkSpec = serde_json::from_value(json!({"redis": {
            "address": self.redis()?,
            "hash": {"key": REDIS_KEY},
            "auth": {"username": "default", "password": {"name": "redis", "key": "password"}},
        }}))?;
        let port = free_port()?;
        let config =
            runtime_config(&name, &directory, System::Sink(sink), protocol, &Wallaroo::Listen(port))?;
        let runtime = Runtime::start(&self.runtime, &directory, &config)?;
        Ok((runtime, port))
    }

    /// The server has what was sent: all fields, and the last record in its field.
    fn check_hash(&self, size: usize) -> anyhow::Result<()> {
        let mut client = self.redis_client()?;
        let fields: u64 = redis::cmd("HLEN").arg(REDIS_KEY).query(&mut client)?;
        ensure!(fields == REDIS_FIELDS.min(self.records), "the hash has {fields} fields");
        let record = redis_record(self.records, size);
        let (field, value) = record.split_once(':').unwrap_or_default();
        let found: String = redis::cmd("HGET").arg(REDIS_KEY).arg(field).query(&mut client)?;
        ensure!(found == value, "field {field} is {found:?}");
        Ok(())
    }

    fn raw(&mut self, kind: Kind, size: usize) -> anyhow::Result<Figures> {
        let records = kind.records(self.records);
        let (count, bytes) = (records.to_string(), size.to_string());
        let log = self.directory.join("baseline.log");
        let figures = match kind {
            Kind::KafkaFramed | Kind::KafkaConnector(_) => {
                let reader = Reader::start()?;
                let (brokers, topic) = (self.brokers()?, Self::topic(size));
                let mut process = baseline::start(&["kafka", brokers, &topic, &reader.address], &log)?;
                let frame = size as u64 + 4;
                measure(&mut process, records, || Ok(reader.bytes() / frame))
            }
            Kind::FileConnector(_) => Ok(baseline::memory_copy(records, size)),
            Kind::FileSession(credits, added) => {
                let endpoint = self.start_endpoint(credits)?;
                let address = via(&endpoint, added)?;
                let mut process = baseline::start(&["session", &address, &count, &bytes], &log)?;
                measure(&mut process, records, || taken(&endpoint))
            }
            Kind::UdpFramed => {
                let (reader, port) = (Reader::start()?, free_port()?);
                let buffer = RECEIVE_BUFFER.to_string();
                let mut process =
                    baseline::start(&["udp", &port.to_string(), &buffer, &reader.address], &log)?;
                wait_bound(port, &mut process)?;
                let _sender = Sender::start(
                    SocketAddrV4::new(Ipv4Addr::LOCALHOST, port),
                    records,
                    size,
                    window()?,
                    (reader.counter(), 1),
                )?;
                measure(&mut process, records, || Ok(reader.bytes()))
            }
            Kind::FramedRedis | Kind::ConnectorRedis => {
                let reader = Reader::start()?;
                let arguments = ["redis", self.redis()?, REDIS_KEY, &count, &bytes, &reader.address];
                let mut process = baseline::start(&arguments, &log)?;
                measure(&mut process, records, || Ok(reader.bytes()))
            }
        };
        figures.with_context(|| std::fs::read_to_string(&log).unwrap_or_default())
    }
}

/// Address of an endpoint's source, through a proxy when delay is to be added.
fn via(endpoint: &Endpoint, added: Duration) -> anyhow::Result<String> {
    let address = &endpoint.sources[0];
    if added.is_zero() { Ok(address.clone()) } else { delay::start(address, added) }
}

/// Records that an endpoint took.
fn taken(endpoint: &Endpoint) -> anyhow::Result<u64> {
    std::thread::sleep(ASK);
    Ok(endpoint.status()?.records_in)
}

/// Records that a sink wrote and its system answered for.
fn written(admin: &str) -> anyhow::Result<u64> {
    std::thread::sleep(ASK);
    let text = crate::http::get(admin, "/metrics")?;
    let line = text
        .lines()
        .find(|line| line.starts_with("wallaroo_connector_records_out_total"))
        .context("no such metric")?;
    line.rsplit(' ').next().unwrap_or_default().parse().with_context(|| line.to_owned())
}

/// Waits until somebody has bound a UDP port.
fn wait_bound(port: u16, process: &mut Process) -> anyhow::Result<()> {
    crate::processes::wait_for("the receiver is there", crate::processes::PATIENCE, || {
        process.alive()?;
        Ok(UdpSocket::bind(("127.0.0.1", port)).is_err())
    })
}

/// Datagrams that surely fit into a receive buffer of this machine; half of it, for a good measure.
fn window() -> anyhow::Result<u64> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
        setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BUFFER)?;
    }
    Ok((getsockopt(&socket, sockopt::RcvBuf)? / DATAGRAM_COST / 2) as u64)
}
