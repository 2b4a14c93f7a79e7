//! The model of a source's system: a partitioned log with a consumer group. What a commit permits is judged here.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use connector_crds::OnError;
use connector_runtime::record::{BatchBuilder, NO_TIME, Position, Record};
use connector_runtime::source::{ResumeFrom, Source, SourceEvent, StreamKey, SystemError};
use tokio::sync::Notify;
use tokio::time::{Duration, Instant};

use super::letters::ModelLetters;
use super::receipts::Receipts;
use super::trace::Trace;

/// Records of a batch at most.
const BATCH: u64 = 32;

/// How long a rebalance waits for its stream.
const REVOKE_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a partition stays with another member of the group.
const AWAY: Duration = Duration::from_millis(700);

/// Payload bytes that are too many for the frames of the simulation.
const TOO_LARGE: usize = 600;

/// Name of a record: its partition and number. It is the payload too, up to padding.
pub fn name(partition: u32, number: u64) -> String {
    format!("{partition}/{number}")
}

/// What Wallaroo never takes of a log.
#[derive(Clone, Debug, Default)]
pub struct Oversize {
    /// Records by partition and number.
    pub records: BTreeSet<(u32, u64)>,
    /// What the source is told to do with them.
    pub on_error: OnError,
}

impl Oversize {
    fn stops(&self, partition: u32) -> Option<u64> {
        let first = self.records.iter().find(|(p, _)| *p == partition).map(|(_, number)| *number);
        first.filter(|_| self.on_error == OnError::Stop)
    }

    /// True if a record that Wallaroo takes is in `after..=to`.
    fn any_fit(&self, partition: u32, after: u64, to: Option<u64>) -> bool {
        (after + 1..=to.unwrap_or(0)).any(|number| !self.records.contains(&(partition, number)))
    }

    /// The last record of a partition that can be committed.
    fn end(&self, partition: u32, records: u64) -> u64 {
        self.stops(partition).map_or(records, |number| number - 1)
    }
}

/// What decides over commits beside the log itself.
#[derive(Clone, Debug, Default)]
pub struct Judges {
    /// Records that are too large.
    pub oversize: Oversize,
    /// Dead letters of the source.
    pub letters: ModelLetters,
    /// Plain framings: what the worker's host has, and how long a commit waits after that.
    pub receipts: Option<(Receipts, Duration)>,
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
    judges: Judges,
    /// Wallaroo was stopped gracefully at some time, or its protocol has no answers: it may know nothing of what was committed.
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

impl Log {
    /// Whether the records `from..=to` of a partition may be forgotten.
    fn judge(&mut self, partition: u32, from: u64, to: u64) {
        for number in from..=to {
            let name = name(partition, number);
            let wrong = if self.judges.oversize.records.contains(&(partition, number)) {
                match self.judges.oversize.on_error {
                    OnError::Drop => None,
                    OnError::DeadLetter => {
                        (!self.judges.letters.has(&name)).then_some("is in no dead letter")
                    }
                    OnError::Stop => Some("holds its stream"),
                }
            } else {
                self.judges.receipts.as_ref().and_then(|(receipts, delay)| receipts.misses(&name, *delay))
            };
            if let Some(wrong) = wrong {
                self.trace.broken(format!("record {name} was committed and {wrong}"));
            }
        }
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
    pub fn new(partitions: u32, records: u64, span: Duration, judges: Judges, trace: Trace) -> ModelLog {
        let partitions = (0..partitions).map(|p| (p, Partition::default())).collect();
        let forgetful_wallaroo = judges.receipts.is_some();
        let log = Log { records, span, partitions, trace, judges, forgetful_wallaroo };
        ModelLog(Arc::new(Mutex::new(log)), Arc::new(Notify::new()))
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Names of all records that Wallaroo can be handed.
    pub fn deliverable(&self) -> BTreeSet<String> {
        let log = self.log();
        let oversize = &log.judges.oversize;
        let mut all = BTreeSet::new();
        for partition in log.partitions.keys() {
            let numbers = 1..=oversize.end(*partition, log.records);
            let fit = numbers.filter(|number| !oversize.records.contains(&(*partition, *number)));
            all.extend(fit.map(|number| name(*partition, number)));
        }
        all
    }

    /// True when everything that can be committed is.
    pub fn is_done(&self) -> bool {
        let log = self.log();
        let done = |(number, partition): (&u32, &Partition)| {
            partition.committed.unwrap_or(0) >= log.judges.oversize.end(*number, log.records)
        };
        log.partitions.iter().all(done)
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
                let mut payload = name(held.partition, number);
                if log.judges.oversize.records.contains(&(held.partition, number)) {
                    payload.extend(std::iter::repeat_n('x', TOO_LARGE));
                }
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
        let oversize = log.judges.oversize.clone();
        let Some(partition) = log.partitions.get_mut(&held.partition) else { return Ok(()) };
        let committed = partition.committed;
        let start = match from {
            ResumeFrom::After(position) => position,
            ResumeFrom::Committed => committed.unwrap_or(0),
        };
        let broken = match from {
            // A commit permits the system to forget: continuing before it would lose records. That holds for a cluster that forgot
            // everything too: it says nothing, and never a number below what was acknowledged.
            // What was passed over by policy is behind no position of Wallaroo's.
            ResumeFrom::After(position) if oversize.any_fit(held.partition, position, committed) => {
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
        if from == ResumeFrom::Committed && committed.is_some() {
            log.trace.named("nothing known of what was committed");
        }
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
            let from = before.unwrap_or(0) + 1;
            log.judge(number, from, *position);
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
