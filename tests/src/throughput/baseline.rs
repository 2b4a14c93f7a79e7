//! The raw baselines: the least work that anything on a path has to do. Each runs in a process of its own (this program,
//! called with `baseline KIND …`), so that it is measured like the connector beside it.

use std::hint::black_box;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use connector_native::kafka::BatchQueue;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use wallaroo_protocol::{
    Cookie, Millis, OutRecord, SourceClient, SourceClientConfig, SourceClientEvent, StreamId,
};

use super::meter::Figures;
use super::paths::{PARTITIONS, REDIS_FIELDS};
use crate::kafka_topic::payload;
use crate::processes::Process;

/// Records that are encoded before something is written: about 100 KB, as large as a socket's buffer likes it.
const CHUNK: usize = 1_000;

/// Datagrams taken with one call, as many as the connector takes.
const SLOTS: usize = 128;

/// Bytes of one slot; the measured datagrams are smaller.
const SLOT_BYTES: usize = 2_048;

/// Datagrams after which the count is reported, if the kernel has more.
const REPORT: usize = 1_024;

/// Fields of one HSET, as many as the connector puts into one.
const FIELDS_PER_COMMAND: usize = 512;

/// Commands on their way to Redis at once.
const COMMANDS_IN_FLIGHT: usize = 32;

/// Frames of the block that is copied in memory: about a megabyte, which stays in no first-level cache.
const COPIED_FRAMES: usize = 8_192;

/// Bytes of a MESSAGE frame beside its payload: length 4, then 27.
const FRAME_OVERHEAD: usize = 31;

/// Starts a baseline in a process of its own.
///
/// # Errors
/// When it cannot be started.
pub fn start(arguments: &[&str], log: &Path) -> anyhow::Result<Process> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("baseline").args(arguments).stdout(Stdio::null());
    Process::start(&format!("baseline {}", arguments[0]), &mut command, log)
}

/// What such a process does. Ends by being killed, or with its far end.
///
/// # Errors
/// When either end fails.
pub fn run(arguments: &[String]) -> anyhow::Result<()> {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["kafka", brokers, topic, address] => kafka(brokers, topic, address),
        ["udp", port, buffer, address] => udp(port.parse()?, buffer.parse()?, address),
        ["redis", server, key, records, size, address] => {
            redis(server, key, (records.parse()?, size.parse()?), address)
        }
        ["session", endpoint, records, size] => session(endpoint, records.parse()?, size.parse()?),
        _ => bail!("no such baseline: {arguments:?}"),
    }
}

/// librdkafka's batches, each record copied once into a frame, written to TCP. No group and no commit.
fn kafka(brokers: &str, topic: &str, address: &str) -> anyhow::Result<()> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "baseline")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("queued.min.messages", "100000")
        .set("queued.max.messages.kbytes", "65536")
        .set("fetch.queue.backoff.ms", "5")
        .create()?;
    let consumer = Arc::new(consumer);
    let (mut queue, mut woken) = BatchQueue::new(consumer.clone(), 5_000)?;
    woken.set_nonblocking(false)?;
    woken.set_read_timeout(Some(Duration::from_millis(100)))?;
    let mut list = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        list.add_partition_offset(topic, partition, Offset::Beginning)?;
        ensure!(queue.forward(topic, partition, true), "librdkafka does not know {topic}/{partition}");
    }
    consumer.assign(&list)?;
    let mut socket = TcpStream::connect(address)?;
    let (mut frames, mut wakes) = (Vec::new(), [0; 64]);
    loop {
        let mut failure = None;
        let taken = queue.drain(5_000, |message| {
            if let Some(payload) = message.payload() {
                frames.extend_from_slice(&(payload.len() as u32).to_be_bytes());
                frames.extend_from_slice(payload);
            }
            failure = failure.or(message.error());
        });
        if let Some(error) = failure {
            bail!("Kafka: {error}");
        }
        if taken == 0 {
            consumer.poll(Duration::ZERO);
            // Woken, or a while over: both mean to look again.
            let _ = woken.read(&mut wakes);
        } else {
            socket.write_all(&frames)?;
            frames.clear();
        }
    }
}

/// `recvmmsg` alone; reports one byte for each datagram.
fn udp(port: u16, buffer: usize, address: &str) -> anyhow::Result<()> {
    use nix::sys::socket::{MsgFlags, MultiHeaders, recvmmsg, setsockopt, sockopt};
    use std::io::IoSliceMut;
    use std::os::fd::AsRawFd as _;

    let socket = std::net::UdpSocket::bind(("127.0.0.1", port))?;
    if setsockopt(&socket, sockopt::RcvBufForce, &buffer).is_err() {
        setsockopt(&socket, sockopt::RcvBuf, &buffer)?;
    }
    let mut report = TcpStream::connect(address)?;
    let mut slots = vec![0; SLOTS * SLOT_BYTES];
    let (ones, mut waiting) = ([1; REPORT + SLOTS], 0);
    loop {
        // Waits for the first datagram and takes what is there.
        let flags = MsgFlags::MSG_WAITFORONE;
        // The safe call lends both for as long as they live, so they are made for each call, here as in the connector.
        let mut headers = MultiHeaders::<()>::preallocate(SLOTS, None);
        let mut slices: Vec<[IoSliceMut<'_>; 1]> =
            slots.chunks_exact_mut(SLOT_BYTES).map(|slot| [IoSliceMut::new(slot)]).collect();
        let received = recvmmsg(socket.as_raw_fd(), &mut headers, slices.iter_mut(), flags, None)?.count();
        waiting += received;
        if received < SLOTS || waiting >= REPORT {
            report.write_all(&ones[..waiting])?;
            waiting = 0;
        }
    }
}

/// The commands that the connector sends, encoded before, in a pipeline over one connection; reports one byte a record.
fn redis(server: &str, key: &str, (records, size): (u64, usize), address: &str) -> anyhow::Result<()> {
    let mut socket = TcpStream::connect(server)?;
    socket.set_nodelay(true)?;
    socket.write_all(format!("AUTH default {}\r\n", redis_password()?).as_bytes())?;
    let mut answers = std::io::BufReader::new(socket.try_clone()?);
    let mut line = String::new();
    let mut answer = |line: &mut String| -> anyhow::Result<()> {
        line.clear();
        std::io::BufRead::read_line(&mut answers, line)?;
        ensure!(line.starts_with('+') || line.starts_with(':'), "Redis: {line:?}");
        Ok(())
    };
    answer(&mut line)?;
    let mut report = TcpStream::connect(address)?;
    let ones = [1; FIELDS_PER_COMMAND];
    let commands: Vec<(usize, Vec<u8>)> = (0..REDIS_FIELDS.min(records).div_ceil(FIELDS_PER_COMMAND as u64))
        .map(|command| {
            let first = command * FIELDS_PER_COMMAND as u64 + 1;
            let last = (first + FIELDS_PER_COMMAND as u64 - 1).min(REDIS_FIELDS.min(records));
            let mut out =
                format!("*{}\r\n$4\r\nHSET\r\n${}\r\n{key}\r\n", 2 + 2 * (last + 1 - first), key.len());
            for number in first..=last {
                let record = redis_record(number, size);
                let (field, value) = record.split_once(':').unwrap_or_default();
                for part in [field, value] {
                    let length = part.len().to_string();
                    out.extend(["$", &length, "\r\n", part, "\r\n"]);
                }
            }
            ((last + 1 - first) as usize, out.into_bytes())
        })
        .collect();
    let (mut sent, mut in_flight) = (0, std::collections::VecDeque::new());
    for (fields, command) in commands.iter().cycle() {
        if sent >= records || in_flight.len() >= COMMANDS_IN_FLIGHT {
            let Some(done) = in_flight.pop_front() else { break };
            answer(&mut line)?;
            report.write_all(&ones[..done])?;
        }
        if sent < records {
            socket.write_all(command)?;
            sent += *fields as u64;
            in_flight.push_back(*fields);
        }
    }
    stay()
}

/// Record `number` for a hash: fields repeat, so that the hash stays as small as the cache of a server.
pub fn redis_record(number: u64, size: usize) -> String {
    let field = (number - 1) % REDIS_FIELDS;
    let rest = size.saturating_sub(8);
    format!("{field:07}:{number:.<rest$}")
}

/// A session of the `Connector` protocol alone: records that are always there, encoded as credits allow.
fn session(endpoint: &str, records: u64, size: usize) -> anyhow::Result<()> {
    const STREAM: StreamId = StreamId(1);
    let text = payload(1, size);
    let mut socket = TcpStream::connect(endpoint)?;
    socket.set_nodelay(true)?;
    let config = SourceClientConfig::new(Cookie::new("Dragons-Love-Tacos"), "baseline", "baseline-0");
    let mut session = SourceClient::new(config, Millis(0))?;
    session.open(STREAM, b"baseline", None, Millis(0))?;
    let (mut next, mut input) = (0, vec![0; 65_536]);
    loop {
        while let Some(event) = session.poll_event() {
            match event {
                SourceClientEvent::Opened { .. } => next = 1,
                SourceClientEvent::Restart { .. } => bail!("RESTART"),
                _ => {}
            }
        }
        if next > 0 {
            let end = (next + session.credits()).min(next + CHUNK as u64).min(records + 1);
            let batch = (next..end).map(|id| OutRecord { id, time: 0, key: &[], payload: text.as_bytes() });
            next += session.send(STREAM, batch)? as u64;
        }
        if let Some(output) = session.poll_output() {
            socket.write_all(&output)?;
        }
        if next == 0 || session.credits() == 0 || next > records {
            let n = socket.read(&mut input)?;
            ensure!(n > 0, "the endpoint closed");
            session.input().extend_from_slice(&input[..n]);
            session.handle_input(Millis(0))?;
        }
    }
}

/// Everything is done; whoever measures ends this process.
fn stay() -> anyhow::Result<()> {
    loop {
        std::thread::park();
    }
}

/// Copies encoded frames in memory, in this process.
pub fn memory_copy(records: u64, size: usize) -> Figures {
    let from = vec![0x2e_u8; COPIED_FRAMES * (FRAME_OVERHEAD + size)];
    let mut to = vec![0_u8; from.len()];
    let rounds = records.div_ceil(COPIED_FRAMES as u64).max(1);
    let begun = Instant::now();
    for _ in 0..rounds {
        black_box(&mut to).copy_from_slice(black_box(&from));
    }
    let copied = (rounds * COPIED_FRAMES as u64) as f64;
    let seconds = begun.elapsed().as_secs_f64().max(1e-9);
    Figures {
        records_per_second: copied / seconds,
        cpu_per_million: Some(seconds / copied * 1e6),
        peak_rss: None,
    }
}

/// The password of the default user, which may do everything; the environment names it.
///
/// # Errors
/// When the servers are not there.
pub fn redis_password() -> anyhow::Result<String> {
    std::env::var("REDIS_PASSWORD").context("REDIS_PASSWORD is not set: run this by `./tasks throughput`")
}
