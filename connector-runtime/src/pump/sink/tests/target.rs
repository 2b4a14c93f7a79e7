//! An external system in memory: it can be away, slow, refuse records, keep positions, and lose what was not durable.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::Poll;

use async_trait::async_trait;
use tokio::time::Instant;

use crate::record::{Batch, Position};
use crate::sink::{Rejected, Sink, SinkStream, SystemError, Written};
use crate::source::ErrorClass;

#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) stream: SinkStream,
    pub(super) position: Position,
    pub(super) payload: String,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) rows: Vec<Row>,
    /// How many rows are durable.
    durable_rows: usize,
    positions: BTreeMap<SinkStream, Position>,
    durable_positions: BTreeMap<SinkStream, Position>,
    /// The target keeps a position with the data, and drops what it has already.
    pub(super) keeps_position: bool,
    /// Only a flush makes anything durable.
    pub(super) lazy: bool,
    pub(super) away: bool,
    /// Writes wait while set.
    pub(super) hangs: bool,
    /// Answers to writes are out while set.
    pub(super) silent: bool,
    /// So many of the next answers are errors.
    pub(super) failing_answers: u32,
    pub(super) refused: Option<&'static str>,
    pub(super) opens: u64,
    pub(super) flushes: u64,
    pub(super) archived: Vec<SinkStream>,
    wakers: Vec<std::task::Waker>,
}

/// The target; clones share it, and it outlives the pump.
#[derive(Clone, Debug, Default)]
pub(super) struct Target(Arc<Mutex<State>>);

impl Target {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    pub(super) fn with(change: impl FnOnce(&mut State)) -> Target {
        let target = Target::default();
        target.set(change);
        target
    }

    pub(super) fn set(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state();
        change(&mut state);
        for waker in state.wakers.drain(..) {
            waker.wake();
        }
    }

    /// What the target shows, in order.
    pub(super) fn payloads(&self) -> Vec<String> {
        self.state().rows.iter().map(|row| row.payload.clone()).collect()
    }

    pub(super) fn is(&self, payloads: &[&str]) -> bool {
        self.payloads() == payloads
    }

    /// The target goes back to what was durable.
    pub(super) fn lose_volatile(&self) {
        let mut state = self.state();
        let durable = state.durable_rows;
        state.rows.truncate(durable);
        state.positions = state.durable_positions.clone();
    }

    /// The target loses all rows behind so many.
    pub(super) fn go_back_to(&self, rows: usize) {
        let mut state = self.state();
        state.rows.truncate(rows);
        state.durable_rows = rows;
        state.positions.clear();
        for row in state.rows.clone() {
            state.positions.insert(row.stream, row.position);
        }
        state.durable_positions = state.positions.clone();
    }

    pub(super) fn forget_positions(&self) {
        let mut state = self.state();
        state.positions.clear();
        state.durable_positions.clear();
    }

    pub(super) fn sink(&self) -> Box<dyn Sink> {
        Box::new(MemorySink { target: self.clone(), said: Said::default() })
    }
}

fn away() -> SystemError {
    SystemError::Transient { context: "the target is away".into(), class: ErrorClass::Connect, cause: None }
}

/// Streams that a client knows, and what it says of them, as every client of a real system.
type Said = Arc<Mutex<BTreeMap<SinkStream, Position>>>;

struct MemorySink {
    target: Target,
    said: Said,
}

fn settle(target: &Target, said: &Said) {
    let mut state = target.state();
    state.durable_rows = state.rows.len();
    state.durable_positions = state.positions.clone();
    drop(state);
    say(target, said);
}

fn say(target: &Target, said: &Said) {
    let state = target.state();
    for (stream, said) in said.lock().unwrap().iter_mut() {
        *said = state.durable_positions.get(stream).copied().unwrap_or(0);
    }
}

/// Comes when the target speaks again.
async fn answer(
    target: Target,
    said: Said,
    stream: SinkStream,
    position: Position,
) -> Result<(), SystemError> {
    std::future::poll_fn(|cx| {
        let mut state = target.state();
        if state.silent {
            state.wakers.push(cx.waker().clone());
            return Poll::Pending;
        }
        if state.failing_answers > 0 {
            state.failing_answers -= 1;
            return Poll::Ready(Err(away()));
        }
        Poll::Ready(Ok(()))
    })
    .await?;
    said.lock().unwrap().insert(stream, position);
    Ok(())
}

#[async_trait]
impl Sink for MemorySink {
    async fn open(&mut self, stream: &SinkStream) -> Result<Option<Position>, SystemError> {
        {
            let mut state = self.target.state();
            if state.away {
                return Err(away());
            }
            state.opens += 1;
        }
        self.said.lock().unwrap().insert(stream.clone(), 0);
        say(&self.target, &self.said);
        let state = self.target.state();
        Ok(state.keeps_position.then(|| state.positions.get(stream).copied()).flatten())
    }

    async fn write(&mut self, stream: &SinkStream, batch: &Batch) -> Result<Written, SystemError> {
        std::future::poll_fn(|cx| {
            let mut state = self.target.state();
            if state.hangs {
                state.wakers.push(cx.waker().clone());
                return Poll::Pending;
            }
            Poll::Ready(())
        })
        .await;
        let lazy = {
            let mut state = self.target.state();
            if state.away {
                return Err(away());
            }
            assert!(self.said.lock().unwrap().contains_key(stream), "written before it was opened");
            let mut rejected = Vec::new();
            for (index, record) in batch.iter().enumerate() {
                let payload = String::from_utf8(record.payload.to_vec()).unwrap();
                if state.refused.is_some_and(|word| payload.contains(word)) {
                    rejected.push(Rejected { index, reason: format!("{payload:?} is not wanted") });
                    continue;
                }
                state.rows.push(Row { stream: stream.clone(), position: record.position, payload });
            }
            if let Some(position) = batch.last_position() {
                state.positions.insert(stream.clone(), position);
            }
            if !rejected.is_empty() {
                return Ok(Written::rejecting(rejected));
            }
            if let (true, Some(position)) = (state.silent, batch.last_position()) {
                let answer = answer(self.target.clone(), self.said.clone(), stream.clone(), position);
                return Ok(Written { rejected: Vec::new(), answer: Some(Box::pin(answer)) });
            }
            state.lazy
        };
        if !lazy {
            settle(&self.target, &self.said);
        }
        Ok(Written::default())
    }

    fn durable(&self) -> Vec<(SinkStream, Position)> {
        self.said.lock().unwrap().iter().map(|(stream, position)| (stream.clone(), *position)).collect()
    }

    async fn flush(&mut self, _deadline: Instant) -> Result<(), SystemError> {
        {
            let mut state = self.target.state();
            if state.away {
                return Err(away());
            }
            state.flushes += 1;
        }
        settle(&self.target, &self.said);
        Ok(())
    }

    async fn archive(&mut self, stream: &SinkStream) -> Result<(), SystemError> {
        self.said.lock().unwrap().remove(stream);
        let mut state = self.target.state();
        state.positions.remove(stream);
        state.archived.push(stream.clone());
        Ok(())
    }

    async fn check(&mut self) -> Result<(), SystemError> {
        if self.target.state().away { Err(away()) } else { Ok(()) }
    }
}
