//! Models of the external systems: a partitioned log with a consumer group, and a target that may keep our positions.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use connector_runtime::record::{Batch, BatchBuilder, NO_TIME, Position, Record};
use connector_runtime::sink::{Sink, SinkStream, Written};
use connector_runtime::source::{ErrorClass, ResumeFrom, Source, SourceEvent, StreamKey, SystemError};
use tokio::sync::Notify;
use tokio::time::{Duration, Instant};

use super::random::Random;
use super::trace::Trace;

/// Records of a batch at most.
const BATCH: u64 = 32;

/// How long a rebalance waits for its stream.
const REVOKE_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a partition stays with another member of the group.
const AWAY: Duration = Duration::from_millis(700);

/// A record's payload: its partition and number.
fn payload(partition: u32, number: u64) -> String {
    format!("{partition}/{number}")
}

/// A log of partitions that is read through a group. It outlives every process.
#[derive(Clone, Debug)]
pub struct ModelLog(Arc<Mutex<Log>>, Arc<Notify>);

#[derive(Debug)]
struct Log {
    records: u64,
    /// Simulated time in which the records appear, one after the other.
    span: Duration,
    partitions: BTreeMap<u32, Partition>,
    trace: Trace,
    /// Wallaroo was stopped gracefully at some time: it may answer with less than it acknowledged.
    forgetful_wallaroo: bool,
}

impl Log {
    /// Records that a partition holds by now.
    fn available(&self) -> u64 {
        let elapsed = turmoil::sim_elapsed().unwrap_or_default().as_millis() as u64;
        let span = (self.span.as_millis() as u64).max(1);
        (self.records * elapsed.min(span)) / span
    }
}

#[derive(Debug, Default)]
struct Partition {
    committed: Option<Position>,
    /// In simulated time: the clocks of two processes do not compare.
    away_until: Option<Duration>,
    wanted: bool,
}

impl ModelLog {
    /// `partitions` partitions that get `records` records each within `span`.
    pub fn new(partitions: u32, records: u64, span: Duration, trace: Trace) -> ModelLog {
        let partitions = (0..partitions).map(|p| (p, Partition::default())).collect();
        let log = Log { records, span, partitions, trace, forgetful_wallaroo: false };
        ModelLog(Arc::new(Mutex::new(log)), Arc::new(Notify::new()))
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every payload there is.
    pub fn all(&self) -> BTreeSet<String> {
        let log = self.log();
        let numbers = 1..=log.records;
        log.partitions.keys().flat_map(|p| numbers.clone().map(|n| payload(*p, n))).collect()
    }

    /// The group takes a partition back from its member.
    pub fn rebalance(&self, partition: u32) {
        if let Some(partition) = self.log().partitions.get_mut(&partition) {
            partition.wanted = true;
        }
        self.1.notify_one();
    }

    /// From now on Wallaroo may know less than it acknowledged.
    pub fn wallaroo_forgets(&self) {
        self.log().forgetful_wallaroo = true;
    }

    /// A consumer, new as after a start of its process.
    pub fn consumer(&self) -> ModelSource {
        ModelSource {
            log: self.clone(),
            held: BTreeMap::new(),
            next_key: 0,
            builder: BatchBuilder::default(),
            turn: 0,
        }
    }
}

#[derive(Debug)]
struct Held {
    partition: u32,
    next: Option<u64>,
    paused: bool,
    revoking: bool,
    ended: bool,
}

/// A consumer of a [`ModelLog`].
#[derive(Debug)]
pub struct ModelSource {
    log: ModelLog,
    held: BTreeMap<StreamKey, Held>,
    next_key: u32,
    builder: BatchBuilder,
    turn: u32,
}

impl ModelSource {
    fn step(&mut self) -> Option<SourceEvent> {
        let mut log = self.log.log();
        let (now, simulated) = (Instant::now(), turmoil::sim_elapsed().unwrap_or_default());
        // What the group wants comes first.
        for (key, held) in &mut self.held {
            let Some(partition) = log.partitions.get(&held.partition) else { continue };
            if partition.wanted && !held.revoking {
                held.revoking = true;
                log.trace.named("rebalance");
                return Some(SourceEvent::Revoking { stream: *key, deadline: now + REVOKE_TIMEOUT });
            }
        }
        let mine: BTreeSet<u32> = self.held.values().map(|held| held.partition).collect();
        for (number, partition) in &mut log.partitions {
            let free = partition.away_until.is_none_or(|until| until <= simulated);
            if !mine.contains(number) && free {
                partition.away_until = None;
                partition.wanted = false;
                let stream = StreamKey(self.next_key);
                self.next_key += 1;
                let held =
                    Held { partition: *number, next: None, paused: false, revoking: false, ended: false };
                self.held.insert(stream, held);
                let committed = partition.committed;
                return Some(SourceEvent::Opened { stream, name: format!("log/{number}"), committed });
            }
        }
        // One batch, from the partitions in turn.
        let available = log.available();
        let keys: Vec<StreamKey> = self.held.keys().copied().collect();
        for offset in 0..keys.len() {
            let key = keys[(self.turn as usize + offset) % keys.len()];
            let Some(held) = self.held.get_mut(&key) else { continue };
            let Some(next) = held.next else { continue };
            if held.paused || held.revoking || held.ended || next > available {
                continue;
            }
            self.turn = self.turn.wrapping_add(1);
            let end = (next + BATCH).min(available + 1);
            for number in next..end {
                let payload = payload(held.partition, number);
                let record =
                    Record { position: number, time: NO_TIME, key: b"", payload: payload.as_bytes() };
                self.builder.push(record);
            }
            held.next = Some(end);
            return Some(SourceEvent::Batch { stream: key, batch: self.builder.finish() });
        }
        None
    }
}

#[async_trait]
impl Source for ModelSource {
    async fn next(&mut self) -> Result<SourceEvent, SystemError> {
        // A system takes its time; this also lets other hosts run.
        loop {
            tokio::time::sleep(Duration::from_millis(1)).await;
            if let Some(event) = self.step() {
                return Ok(event);
            }
        }
    }

    async fn resume(&mut self, stream: StreamKey, from: ResumeFrom) -> Result<(), SystemError> {
        let mut log = self.log.log();
        let Some(held) = self.held.get_mut(&stream) else { return Ok(()) };
        let forgetful = log.forgetful_wallaroo;
        let Some(partition) = log.partitions.get_mut(&held.partition) else { return Ok(()) };
        let committed = partition.committed;
        let start = match from {
            ResumeFrom::After(position) => position,
            ResumeFrom::Committed => committed.unwrap_or(0),
        };
        let broken = match from {
            // A commit permits the system to forget: continuing before it would lose records.
            ResumeFrom::After(position)
                if committed.is_some_and(|committed| position < committed) && !forgetful =>
            {
                Some(format!(
                    "partition {} committed up to {committed:?}, Wallaroo has {position}",
                    held.partition
                ))
            }
            ResumeFrom::Committed if committed.is_some() && !forgetful => Some(format!(
                "partition {} committed up to {committed:?}, Wallaroo has nothing",
                held.partition
            )),
            ResumeFrom::After(_) | ResumeFrom::Committed => None,
        };
        held.next = Some(start + 1);
        log.trace
            .note(&format!("source: partition {} resumes {from:?} committed {committed:?}", held.partition));
        if let Some(broken) = broken {
            log.trace.broken(broken);
        }
        Ok(())
    }

    async fn commit(&mut self, positions: &[(StreamKey, Position)]) -> Result<(), SystemError> {
        let mut log = self.log.log();
        for (stream, position) in positions {
            let Some(held) = self.held.get(stream) else { continue };
            let number = held.partition;
            let read = held.next.unwrap_or(1).saturating_sub(1);
            let Some(partition) = log.partitions.get_mut(&number) else { continue };
            let before = partition.committed;
            partition.committed = Some(*position);
            log.trace.note(&format!("source: partition {number} committed {position}"));
            if before.is_some_and(|before| *position < before) {
                log.trace
                    .broken(format!("partition {number}: commit went back from {before:?} to {position}"));
            }
            if *position > read {
                log.trace
                    .broken(format!("partition {number}: commit {position} of what was never read ({read})"));
            }
        }
        Ok(())
    }

    async fn release(&mut self, stream: StreamKey) -> Result<(), SystemError> {
        if let Some(held) = self.held.remove(&stream) {
            let mut log = self.log.log();
            if let Some(partition) = log.partitions.get_mut(&held.partition) {
                partition.away_until = Some(turmoil::sim_elapsed().unwrap_or_default() + AWAY);
            }
            log.trace.note(&format!("source: partition {} released", held.partition));
        }
        Ok(())
    }

    fn pause(&mut self, stream: StreamKey) {
        if let Some(held) = self.held.get_mut(&stream) {
            held.paused = true;
        }
    }

    fn unpause(&mut self, stream: StreamKey) {
        if let Some(held) = self.held.get_mut(&stream) {
            held.paused = false;
        }
    }

    async fn close(&mut self, _deadline: Instant) -> Result<(), SystemError> {
        Ok(())
    }

    async fn check(&mut self) -> Result<(), SystemError> {
        Ok(())
    }
}

/// A target of records. It outlives every process.
#[derive(Clone, Debug)]
pub struct ModelTarget(Arc<Mutex<Target>>);

#[derive(Debug)]
struct Target {
    /// It stores our position with the data.
    keeps_positions: bool,
    durable: Stored,
    current: Stored,
    connection_lost: bool,
    random: Random,
    trace: Trace,
}

#[derive(Clone, Debug, Default)]
struct Stored {
    records: BTreeMap<String, u64>,
    positions: BTreeMap<SinkStream, Position>,
    written: BTreeMap<SinkStream, Position>,
}

impl ModelTarget {
    /// A target that stores our positions with the data, or one that does not.
    pub fn new(keeps_positions: bool, random: Random, trace: Trace) -> ModelTarget {
        let (durable, current) = (Stored::default(), Stored::default());
        ModelTarget(Arc::new(Mutex::new(Target {
            keeps_positions,
            durable,
            current,
            connection_lost: false,
            random,
            trace,
        })))
    }

    fn target(&self) -> MutexGuard<'_, Target> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How often each record is there, durable or not.
    pub fn records(&self) -> BTreeMap<String, u64> {
        self.target().current.records.clone()
    }

    /// How many different records are there.
    pub fn distinct(&self) -> usize {
        self.target().current.records.len()
    }

    /// The target crashes: what was not durable is gone, and everything fails until the client connects anew.
    pub fn crash(&self) {
        let mut target = self.target();
        let lost = target.current.written != target.durable.written;
        target.current = target.durable.clone();
        target.connection_lost = true;
        if lost {
            target.trace.named("target went back");
        }
    }

    /// A client, new as after a start of its process.
    pub fn client(&self) -> ModelSink {
        ModelSink { target: self.clone() }
    }
}

/// A client of a [`ModelTarget`].
#[derive(Debug)]
pub struct ModelSink {
    target: ModelTarget,
}

fn away() -> SystemError {
    SystemError::Transient {
        context: "writing to the model target".into(),
        class: ErrorClass::Connect,
        cause: None,
    }
}

#[async_trait]
impl Sink for ModelSink {
    async fn open(&mut self, stream: &SinkStream) -> Result<Option<Position>, SystemError> {
        tokio::time::sleep(Duration::from_millis(1)).await;
        let mut target = self.target.target();
        target.connection_lost = false;
        let position =
            target.keeps_positions.then(|| target.current.positions.get(stream).copied()).flatten();
        target.trace.note(&format!("target: open {}/{} at {position:?}", stream.worker, stream.incarnation));
        Ok(position)
    }

    async fn write(&mut self, stream: &SinkStream, batch: &Batch) -> Result<Written, SystemError> {
        tokio::time::sleep(Duration::from_millis(1)).await;
        let mut target = self.target.target();
        if target.connection_lost {
            return Err(away());
        }
        for record in batch.iter() {
            let payload = String::from_utf8_lossy(record.payload).into_owned();
            *target.current.records.entry(payload).or_default() += 1;
        }
        if let Some(last) = batch.last_position() {
            if target.keeps_positions {
                target.current.positions.insert(stream.clone(), last);
            }
            target.current.written.insert(stream.clone(), last);
            target.trace.note(&format!("target: {} up to {last}", stream.worker));
        }
        // Some targets sync at once, some later.
        if target.random.chance(50) {
            target.durable = target.current.clone();
        }
        Ok(Written::default())
    }

    fn durable(&self) -> Vec<(SinkStream, Position)> {
        let target = self.target.target();
        target.durable.written.iter().map(|(stream, position)| (stream.clone(), *position)).collect()
    }

    async fn flush(&mut self, _deadline: Instant) -> Result<(), SystemError> {
        let mut target = self.target.target();
        if target.connection_lost {
            return Err(away());
        }
        target.durable = target.current.clone();
        Ok(())
    }

    async fn archive(&mut self, stream: &SinkStream) -> Result<(), SystemError> {
        let mut target = self.target.target();
        if target.connection_lost {
            return Err(away());
        }
        target.trace.note(&format!("target: archive {}/{}", stream.worker, stream.incarnation));
        target.current.positions.remove(stream);
        Ok(())
    }

    async fn check(&mut self) -> Result<(), SystemError> {
        Ok(())
    }
}
