//! The model of a sink's target: it may keep our positions with the data, refuse records, crash and lose what was not durable.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use connector_runtime::record::{Batch, Position};
use connector_runtime::sink::{Rejected, Sink, SinkStream, Written};
use connector_runtime::source::{ErrorClass, SystemError};
use tokio::time::{Duration, Instant};

use super::random::Random;
use super::trace::Trace;

/// An answer takes less than so many milliseconds usually, and at times.
const ANSWER_MS: u64 = 4;
const SLOW_ANSWER_MS: u64 = 400;

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
    /// How often it crashed: what an earlier connection sent is gone.
    crashes: u64,
    /// Batches on their way to it, over the connection of its one client.
    sent: VecDeque<(SinkStream, Batch)>,
    /// Names of records that it refuses.
    refused: BTreeSet<String>,
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
    pub fn new(
        keeps_positions: bool,
        refused: BTreeSet<String>,
        random: Random,
        trace: Trace,
    ) -> ModelTarget {
        let (durable, current) = (Stored::default(), Stored::default());
        ModelTarget(Arc::new(Mutex::new(Target {
            keeps_positions,
            durable,
            current,
            connection_lost: false,
            crashes: 0,
            sent: VecDeque::new(),
            refused,
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
        target.crashes += 1;
        target.sent.clear();
        if lost {
            target.trace.named("target went back");
        }
    }

    /// A client, new as after a start of its process: what the one before it had on its way is gone.
    pub fn client(&self) -> ModelSink {
        self.target().sent.clear();
        ModelSink { target: self.clone(), staged: None }
    }
}

/// A client of a [`ModelTarget`].
#[derive(Debug)]
pub struct ModelSink {
    target: ModelTarget,
    /// A batch with refused records: neither it nor its position counts before the next call.
    staged: Option<(SinkStream, Batch, Vec<usize>)>,
}

impl Target {
    /// After a loss the first call fails; what it dials then is another connection.
    fn connected(&mut self) -> Result<(), SystemError> {
        if std::mem::take(&mut self.connection_lost) { Err(away()) } else { Ok(()) }
    }

    fn take(&mut self, stream: &SinkStream, batch: &Batch, refused: &[usize]) {
        for (index, record) in batch.iter().enumerate() {
            if !refused.contains(&index) {
                let name = String::from_utf8_lossy(record.payload).into_owned();
                *self.current.records.entry(name).or_default() += 1;
            }
        }
        if let Some(last) = batch.last_position() {
            if self.keeps_positions {
                self.current.positions.insert(stream.clone(), last);
            }
            self.current.written.insert(stream.clone(), last);
            self.trace.note(&format!("target: {} up to {last}", stream.worker));
        }
        // Some targets sync at once, some later.
        if self.random.chance(50) {
            self.durable = self.current.clone();
        }
    }
}

impl ModelSink {
    /// The next call has come: what was staged counts, unless its connection is gone.
    fn called(&mut self) -> MutexGuard<'_, Target> {
        let mut target = self.target.target();
        if let Some((stream, batch, refused)) = self.staged.take()
            && !target.connection_lost
        {
            target.take(&stream, &batch, &refused);
        }
        target
    }
}

/// The answer to the oldest batch on its way, which takes effect just before it, whatever that batch's own wait was.
async fn answer(model: ModelTarget, connection: u64, wait: Duration) -> Result<(), SystemError> {
    tokio::time::sleep(wait).await;
    let mut target = model.target();
    if target.crashes != connection {
        target.trace.named("answer lost with the target");
        return Err(away());
    }
    if let Some((stream, batch)) = target.sent.pop_front() {
        target.take(&stream, &batch, &[]);
    }
    Ok(())
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
        let mut target = self.called();
        target.connection_lost = false;
        let position =
            target.keeps_positions.then(|| target.current.positions.get(stream).copied()).flatten();
        target.trace.note(&format!("target: open {}/{} at {position:?}", stream.worker, stream.incarnation));
        Ok(position)
    }

    async fn write(&mut self, stream: &SinkStream, batch: &Batch) -> Result<Written, SystemError> {
        tokio::time::sleep(Duration::from_millis(1)).await;
        let model = self.target.clone();
        let mut target = self.called();
        target.connected()?;
        let name = |payload| String::from_utf8_lossy(payload).into_owned();
        let refused: Vec<usize> = batch
            .iter()
            .enumerate()
            .filter(|(_, record)| target.refused.contains(&name(record.payload)))
            .map(|(index, _)| index)
            .collect();
        if refused.is_empty() {
            if target.random.chance(70) || !target.sent.is_empty() {
                let connection = target.crashes;
                target.sent.push_back((stream.clone(), batch.clone()));
                let longest = if target.random.chance(60) { SLOW_ANSWER_MS } else { ANSWER_MS };
                let wait = Duration::from_millis(target.random.below(longest));
                return Ok(Written {
                    rejected: Vec::new(),
                    answer: Some(Box::pin(answer(model, connection, wait))),
                });
            }
            target.take(stream, batch, &[]);
            return Ok(Written::default());
        }
        target.trace.named("record refused by the target");
        let reason = "the model refuses it".to_owned();
        let rejected =
            refused.iter().map(|index| Rejected { index: *index, reason: reason.clone() }).collect();
        drop(target);
        self.staged = Some((stream.clone(), batch.clone(), refused));
        Ok(Written::rejecting(rejected))
    }

    fn durable(&self) -> Vec<(SinkStream, Position)> {
        let target = self.target.target();
        target.durable.written.iter().map(|(stream, position)| (stream.clone(), *position)).collect()
    }

    async fn flush(&mut self, _deadline: Instant) -> Result<(), SystemError> {
        let mut target = self.called();
        target.connected()?;
        target.durable = target.current.clone();
        Ok(())
    }

    async fn archive(&mut self, stream: &SinkStream) -> Result<(), SystemError> {
        let mut target = self.called();
        target.connected()?;
        target.trace.note(&format!("target: archive {}/{}", stream.worker, stream.incarnation));
        target.current.positions.remove(stream);
        Ok(())
    }

    async fn check(&mut self) -> Result<(), SystemError> {
        Ok(())
    }
}
