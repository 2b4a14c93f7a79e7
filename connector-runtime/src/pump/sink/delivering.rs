//! Decided output on its way to the target: what the sink does next, and what its answers mean.

use connector_crds::OnError;
use connector_env::Env;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::SinkPumpError;
use super::connector::{Pump, SPACE_RETRY};
use super::known::{Stream, Worker, no_space, older_name};
use super::outlet::{Done, Job, Report};
use super::stalls::Stall;
use crate::board::{AckMode, Counters, DropReason};
use crate::pump::workers::{Known, Mark, Phase, Resume, resume};
use crate::record::{Batch, Position};
use crate::sink::{Rejected, SinkStream};
use crate::txn_log::Limits;

/// Bounds of a batch: large enough that a call costs nothing beside its records, small enough that those in flight are no memory to speak of.
const BATCH: Limits = Limits { records: 10_000, bytes: 1024 * 1024 };

impl<E: Env> Pump<E> {
    /// Starts what the sink has to do next, if it is free.
    pub(super) fn start_job(&mut self, now: Instant) -> Result<(), SinkPumpError> {
        if let Some((id, position)) = self.unheld.clone() {
            // Nothing else is asked of the sink before this is durable.
            self.hold(&id, position)?;
            if self.unheld.is_some() {
                return Ok(());
            }
        }
        if !self.outlet.is_free(now) {
            return Ok(());
        }
        if let Some(job) = self.letters.take() {
            self.outlet.start(job);
        } else if let Some(job) = self.next_job(now)? {
            self.outlet.start(job);
        }
        Ok(())
    }

    /// While writes are in flight there are only more of them.
    fn next_job(&mut self, now: Instant) -> Result<Option<Job>, SinkPumpError> {
        let alone = !self.outlet.is_busy();
        if !self.checked {
            return Ok(Some(Job::Check));
        }
        if let Some(stream) = self.streams().find(|stream| stream.delivery.phase() == Phase::Closed) {
            return Ok(alone.then(|| Job::Open(stream.id.clone())));
        }
        let draining = self.draining.is_some();
        if !self.paused
            && let Some(job) = self.next_write()?
        {
            return Ok(Some(job));
        }
        if !alone {
            return Ok(None);
        }
        if self.streams().any(|stream| stream.delivery.flush_due(now, draining).is_some_and(|at| at <= now)) {
            return Ok(Some(Job::Flush { deadline: now + self.config.drain_timeout }));
        }
        Ok(self.next_archive(now))
    }

    /// The next batch, of another stream each time.
    fn next_write(&mut self) -> Result<Option<Job>, SinkPumpError> {
        let mut order: Vec<SinkStream> =
            self.workers.values().filter_map(|w| deliverable(&w.streams)).collect();
        order.sort_unstable();
        if let Some(served) = &self.served {
            let behind = order.partition_point(|id| id <= served);
            order.rotate_left(behind);
        }
        for id in order {
            let builder = &mut self.builder;
            let Some(stream) = find(&mut self.workers, &id) else { continue };
            let Some(mut cursor) = stream.cursor else { continue };
            let start = cursor.position();
            let batch = match stream.retry.take() {
                Some((at, batch, end)) if at == start => {
                    cursor = end;
                    batch
                }
                Some(_) | None => {
                    stream.log.read(&mut cursor, BATCH, builder)?;
                    builder.finish()
                }
            };
            if batch.is_empty() {
                if stream.delivery.accepted().position < start {
                    continue; // what is in flight counts first
                }
                // There is nothing in between: a place where another log went on.
                let mark = Mark { position: cursor.position(), records: cursor.records() };
                stream.cursor = Some(cursor);
                stream.delivery.skipped(mark);
                let durable = stream.delivery.durable();
                if durable.position > stream.log.state().delivered {
                    stream.log.mark(durable.position, durable.records)?;
                }
                continue;
            }
            stream.cursor = Some(cursor);
            self.writing.push_back((start, cursor));
            self.served = Some(id.clone());
            return Ok(Some(Job::Write { stream: id, batch }));
        }
        Ok(None)
    }

    /// An ended incarnation whose output is durable, and out of retention.
    fn next_archive(&mut self, now: Instant) -> Option<Job> {
        let retain = self.config.retain.time;
        for stream in self.workers.values_mut().flat_map(|worker| &mut worker.streams) {
            let state = stream.log.state();
            if state.ended != Some(false) || state.undelivered() > 0 || !stream.delivery.is_durable() {
                stream.done_since = None;
                continue;
            }
            let since = *stream.done_since.get_or_insert(now);
            if now.saturating_duration_since(since) >= retain {
                return Some(Job::Archive(stream.id.clone()));
            }
        }
        None
    }

    /// When the sink has to be flushed.
    pub(super) fn flush_at(&self) -> Option<Instant> {
        if self.outlet.is_busy() {
            return None;
        }
        let now = Instant::now();
        let draining = self.draining.is_some();
        self.streams().filter_map(|stream| stream.delivery.flush_due(now, draining)).min()
    }

    /// The sink has done something.
    pub(super) fn reported(&mut self, report: Report) -> Result<(), SinkPumpError> {
        let Report { done, durable } = report;
        self.outlet.note(&self.env, &self.board, &mut self.stalls, &done);
        let now = Instant::now();
        match done {
            Done::Checked => self.checked = true,
            Done::Opened { stream, position } => self.opened(&stream, position)?,
            Done::Written { stream, batch, rejected } => self.written(&stream, &batch, &rejected, now)?,
            Done::Flushed => {
                for stream in self.workers.values_mut().flat_map(|worker| &mut worker.streams) {
                    stream.delivery.flushed(now);
                }
            }
            Done::Archived(stream) => self.archived(&stream)?,
            Done::Sent => {}
            Done::Failed { job, error: _, behind: _ } => self.failed(job),
        }
        for (id, position) in durable {
            self.durable(&id, position)?;
        }
        Ok(())
    }

    /// The target was dialled and says where it is.
    fn opened(&mut self, id: &SinkStream, target: Option<Position>) -> Result<(), SinkPumpError> {
        let on_receipt = self.config.ack_mode == AckMode::OnReceipt;
        let Some(stream) = find(&mut self.workers, id) else { return Ok(()) };
        let state = stream.log.state();
        let known = Known {
            committed: state.committed,
            delivered: state.delivered,
            retained_from: stream.log.retained_from(),
            held: state.held,
            on_receipt,
        };
        let delivered = Mark { position: state.delivered, records: state.delivered_records };
        let from = match resume(&known, target) {
            Resume::After(position) => position,
            Resume::Adopt(position) => {
                // The log lost the end of what it delivered.
                if let Err(error) = stream.log.append(position, std::iter::empty(), true) {
                    no_space(error)?;
                    // The stream stays closed and is opened again.
                    self.outlet.pause_until(Instant::now() + SPACE_RETRY);
                    return Ok(());
                }
                position
            }
            Resume::WentBack { target } => {
                let message = format!(
                    "the target went back to position {target} of worker {}, and the transaction log keeps only what is behind {}: \
                     records are lost at the target; restore it, or accept the loss by removing the worker's log",
                    id.worker, known.retained_from
                );
                self.stop(id, "TargetWentBack", message);
                return Ok(());
            }
            Resume::Ahead { target } => {
                let message = format!(
                    "the target is at position {target} of worker {}, and only {} was decided: it belongs to another \
                     connector, or the state volume is an older copy",
                    id.worker, known.committed
                );
                self.stop(id, "TargetAhead", message);
                return Ok(());
            }
        };
        let Some(cursor) = stream.log.seek(from)? else { return Ok(()) };
        let from = Mark { position: cursor.position(), records: cursor.records() };
        if from.position < known.delivered {
            let from = from.position;
            warn!(
                worker = id.worker,
                from,
                delivered = known.delivered,
                "The target went back: repeating from the log."
            );
        }
        stream.cursor = Some(cursor);
        if stream.retry.as_ref().is_some_and(|(at, _, _)| *at != cursor.position()) {
            stream.retry = None;
        }
        stream.delivery.opened(from, delivered);
        if from.position < delivered.position {
            stream.log.mark(from.position, from.records)?;
        }
        debug!(
            worker = id.worker,
            incarnation = id.incarnation,
            from = from.position,
            "Delivery of a stream continues."
        );
        Ok(())
    }

    fn stop(&mut self, id: &SinkStream, reason: &str, message: String) {
        if let Some(stream) = find(&mut self.workers, id) {
            stream.delivery.stop();
            stream.retry = None;
            self.stalls.set(&self.board, Stall::Stream(older_name(id)), reason, message);
        }
    }

    fn written(
        &mut self,
        id: &SinkStream,
        batch: &Batch,
        rejected: &[Rejected],
        now: Instant,
    ) -> Result<(), SinkPumpError> {
        let Some((_, end)) = self.writing.pop_front() else { return Ok(()) };
        let stops = self.outlet.on_error() == OnError::Stop;
        let first = rejected.iter().map(|refused| refused.index).min().filter(|_| stops);
        let Some(stream) = find(&mut self.workers, id) else { return Ok(()) };
        let started = stream.delivery.accepted();
        let whole = Mark { position: end.position(), records: end.records() };
        // With `Stop` nothing behind the refused record counts.
        let mark = match first {
            None => whole,
            Some(0) => started,
            Some(index) => Mark {
                position: batch.get(index - 1).map_or(started.position, |record| record.position),
                records: whole.records - (batch.len() - index) as u64,
            },
        };
        stream.delivery.wrote(mark, now);
        let counters = self.board.counters();
        let refused: usize =
            rejected.iter().filter_map(|r| batch.get(r.index)).map(|record| record.payload.len()).sum();
        Counters::add(&counters.records_out, (batch.len() - rejected.len().min(batch.len())) as u64);
        Counters::add(&counters.bytes_out, batch.bytes().saturating_sub(refused) as u64);
        self.board.moved_at(self.env.unix_millis());
        let count = rejected.len() as u64;
        if count == 0 {
            return Ok(());
        }
        match self.outlet.on_error() {
            OnError::Drop => {
                self.board.dropped(DropReason::PolicyDrop, count);
                debug!(worker = id.worker, count, "Dropped records that the target refuses.");
                Ok(())
            }
            OnError::DeadLetter => {
                Counters::add(&counters.dead_letters, count);
                Ok(())
            }
            OnError::Stop => {
                let refused = rejected.iter().min_by_key(|refused| refused.index);
                let Some((refused, record)) = refused.and_then(|r| Some((r, batch.get(r.index)?))) else {
                    return Ok(());
                };
                let message = format!(
                    "the target refuses the record at position {} of worker {}: {}; delivery of this worker is held there, \
                     `delivery.onError` can drop such records or keep them as dead letters",
                    record.position, id.worker, refused.reason
                );
                let position = record.position;
                self.stop(id, "RecordRejected", message);
                self.hold(id, position)
            }
        }
    }

    /// Makes durable that nothing may pass over a record. Without room it is tried again before the sink is asked for more.
    fn hold(&mut self, id: &SinkStream, position: Position) -> Result<(), SinkPumpError> {
        self.unheld = None;
        let Some(stream) = find(&mut self.workers, id) else { return Ok(()) };
        if stream.log.state().held == Some(position) {
            return Ok(());
        }
        if let Err(error) = stream.log.hold(position) {
            no_space(error)?;
            self.unheld = Some((id.clone(), position));
            self.retry_space(Instant::now());
        }
        Ok(())
    }

    fn archived(&mut self, id: &SinkStream) -> Result<(), SinkPumpError> {
        let mut empty = None;
        for (name, worker) in &mut self.workers {
            let Some(index) = worker.streams.iter().position(|stream| stream.id == *id) else { continue };
            let stream = worker.streams.remove(index);
            stream.log.remove()?;
            if worker.streams.is_empty() {
                self.board.forget_stream(&worker.name);
                if worker.link.is_none() {
                    empty = Some(name.clone());
                }
            }
            self.board.forget_stream(&older_name(id));
            info!(
                worker = id.worker,
                incarnation = id.incarnation,
                "An ended incarnation is delivered and forgotten."
            );
        }
        if let Some(name) = empty {
            self.workers.remove(&name);
        }
        Ok(())
    }

    /// After trouble the target has to be taken for another one.
    fn failed(&mut self, job: Job) {
        match job {
            Job::Letters { .. } => {
                // The target is well; its answer stands until the letters are durable.
                self.letters = Some(job);
                return;
            }
            Job::Write { stream, batch } => {
                // Those behind it are read from the log again.
                let writing = std::mem::take(&mut self.writing);
                if let (Some((start, end)), Some(stream)) =
                    (writing.front(), find(&mut self.workers, &stream))
                {
                    stream.retry = Some((*start, batch, *end));
                }
            }
            Job::Check | Job::Open(_) | Job::Flush { .. } | Job::Archive(_) => {}
        }
        for stream in self.workers.values_mut().flat_map(|worker| &mut worker.streams) {
            stream.delivery.reconnected();
        }
    }

    /// The target says how far a stream is durable.
    fn durable(&mut self, id: &SinkStream, position: Position) -> Result<(), SinkPumpError> {
        let Some(stream) = find(&mut self.workers, id) else { return Ok(()) };
        if let Some(mark) = stream.delivery.said_durable(position) {
            stream.log.mark(mark.position, mark.records)?;
            Counters::add(&self.board.counters().commits, 1);
            if stream.log.has_closed_segments() {
                stream.log.forget(Instant::now(), self.config.retain)?;
            }
        }
        Ok(())
    }
}

/// The stream of a worker that is to be written next: the oldest with something to deliver, past those that are stopped.
fn deliverable<E: Env>(streams: &[Stream<E>]) -> Option<SinkStream> {
    streams
        .iter()
        .filter(|stream| stream.delivery.phase() == Phase::Open)
        .find(|stream| stream.cursor.is_some_and(|given| given.position() < stream.log.state().committed))
        .map(|stream| stream.id.clone())
}

fn find<'a, E: Env>(
    workers: &'a mut std::collections::BTreeMap<bytes::Bytes, Worker<E>>,
    id: &SinkStream,
) -> Option<&'a mut Stream<E>> {
    workers.values_mut().flat_map(|worker| &mut worker.streams).find(|stream| stream.id == *id)
}
