//! Records of plain connections on their way to the target.

use connector_crds::OnError;
use connector_env::Env;
use tokio::time::{Duration, Instant};

use super::super::sink::TICK;
use super::super::sink::link::LinkId;
use super::super::sink::outlet::{Done, Job, Report};
use super::super::sink::stalls::Stall;
use super::{Lane, Pump};
use crate::board::{Counters, DropReason};
use crate::record::Batch;
use crate::sink::{Rejected, SinkStream};

/// Time without a write after which the target is flushed.
const FLUSH_AFTER: Duration = Duration::from_millis(200);

impl<E: Env> Pump<E> {
    pub(super) fn start_job(&mut self, now: Instant) {
        if !self.outlet.is_free(now) {
            return;
        }
        if let Some(job) = self.letters.take().or_else(|| self.next_job(now)) {
            self.outlet.start(job);
        }
    }

    /// While writes are in flight there are only more of them.
    fn next_job(&mut self, now: Instant) -> Option<Job> {
        let alone = !self.outlet.is_busy();
        if !self.checked {
            return Some(Job::Check);
        }
        if self.paused && self.deadline.is_none() {
            return None;
        }
        let behind = self.lanes.range(self.served + 1..).map(|(id, _)| *id);
        let order: Vec<LinkId> = behind.chain(self.lanes.range(..=self.served).map(|(id, _)| *id)).collect();
        for id in &order {
            let Some(lane) = self.lanes.get_mut(id) else { continue };
            if lane.stopped || lane.is_empty() {
                continue;
            }
            if !lane.opened {
                return alone.then(|| Job::Open(lane.stream.clone()));
            }
            if let Some(batch) = lane.next_batch() {
                self.served = *id;
                return Some(Job::Write { stream: lane.stream.clone(), batch });
            }
        }
        if !alone {
            return None;
        }
        if self.flush_at().is_some_and(|at| at <= now) {
            return Some(Job::Flush { deadline: self.deadline.unwrap_or(now + self.config.drain_timeout) });
        }
        let over = self.lanes.values().find(|lane| !lane.connected && lane.is_empty() && !self.unflushed);
        over.map(|lane| Job::Archive(lane.stream.clone()))
    }

    pub(super) fn flush_at(&self) -> Option<Instant> {
        if !self.unflushed || self.outlet.is_busy() {
            return None;
        }
        let due = match (self.last_write, self.deadline) {
            (Some(last), None) => last + FLUSH_AFTER,
            (Some(last), Some(_)) => last,
            (None, _) => return None,
        };
        Some(self.flushed_again_at.map_or(due, |at| due.max(at)))
    }

    pub(super) fn reported(&mut self, report: Report) {
        let done = report.done;
        self.outlet.note(&self.env, &self.board, &mut self.stalls, &done);
        match done {
            Done::Checked => self.checked = true,
            Done::Opened { stream, .. } => {
                if let Some(lane) = self.lane(&stream) {
                    lane.opened = true;
                }
            }
            Done::Written { stream, batch, rejected } => self.written(&stream, &batch, &rejected),
            Done::Flushed => self.unflushed = false,
            Done::Archived(stream) => {
                self.lanes.retain(|_, lane| lane.stream != stream);
                self.board.forget_stream(&stream.worker);
            }
            Done::Sent => {}
            Done::Failed { job, error: _, behind } => {
                // In front of those again, so that their order stays.
                for (stream, batch) in behind.into_iter().rev() {
                    if let Some(lane) = self.lane(&stream) {
                        lane.full.push_front(batch);
                    }
                }
                self.failed(job);
            }
        }
    }

    fn lane(&mut self, stream: &SinkStream) -> Option<&mut Lane> {
        self.lanes.values_mut().find(|lane| lane.stream == *stream)
    }

    fn written(&mut self, stream: &SinkStream, batch: &Batch, rejected: &[Rejected]) {
        self.last_write = Some(Instant::now());
        self.unflushed = true;
        let count = rejected.len().min(batch.len()) as u64;
        let refused: u64 = rejected
            .iter()
            .filter_map(|refused| batch.get(refused.index))
            .map(|record| (record.payload.len() + record.key.len()) as u64)
            .sum();
        let Some(lane) = self.lane(stream) else { return };
        lane.queued_bytes -= batch.bytes() as u64;
        lane.queued_records -= batch.len() as u64;
        lane.written = batch.last_position().unwrap_or(lane.written);
        let counters = self.board.counters();
        Counters::add(&counters.records_out, batch.len() as u64 - count);
        Counters::add(&counters.bytes_out, batch.bytes() as u64 - refused);
        self.board.moved_at(self.env.unix_millis());
        let Some(first) = rejected.iter().min_by_key(|refused| refused.index) else { return };
        match self.outlet.on_error() {
            OnError::Drop => self.board.dropped(DropReason::PolicyDrop, count),
            OnError::DeadLetter => Counters::add(&self.board.counters().dead_letters, count),
            OnError::Stop => {
                let position = batch.get(first.index).map_or(0, |record| record.position);
                let message = format!(
                    "the target refuses the record at byte {position} of {}: {}; nothing more is read from that connection, \
                     `delivery.onError` can drop such records or keep them as dead letters",
                    stream.worker, first.reason
                );
                if let Some(lane) = self.lane(stream) {
                    lane.stopped = true;
                }
                self.stalls.set(&self.board, Stall::Stream(stream.worker.clone()), "RecordRejected", message);
            }
        }
    }

    /// After trouble every stream is announced again, and a batch is given again.
    fn failed(&mut self, job: Job) {
        match job {
            Job::Letters { .. } => {
                self.letters = Some(job);
                return;
            }
            Job::Write { stream, batch } => {
                if let Some(lane) = self.lane(&stream) {
                    lane.full.push_front(batch);
                }
            }
            Job::Flush { .. } => self.flushed_again_at = Some(Instant::now() + TICK),
            Job::Check | Job::Open(_) | Job::Archive(_) => {}
        }
        for lane in self.lanes.values_mut() {
            lane.opened = false;
        }
    }
}
