//! Checkpoints and rollback: when one starts, when it is complete, and what going back means.

use super::Cluster;
use super::registry::Stream;
use super::snapshot::Snapshot;
use crate::status::Phase;

impl Cluster {
    /// The checkpoint interval has passed since the last checkpoint ended.
    pub(crate) fn interval_passed(&mut self) {
        self.interval_passed = true;
    }

    /// Starts the cluster without resilience, or a checkpoint, if that is due. True if a checkpoint started.
    pub(crate) fn start_what_is_due(&mut self) -> bool {
        if !self.config.resilience {
            if self.phase == Phase::Starting && self.plain_links_connected() {
                self.phase = Phase::Running;
                self.wake_all();
            }
            return false;
        }
        if self.pending.is_some() {
            return false;
        }
        let due = match self.phase {
            // A worker is ready when its plain sinks are connected; connector sinks get an interval to come.
            Phase::Starting => {
                self.plain_links_connected() && (self.interval_passed || self.connector_links_ready())
            }
            Phase::Running | Phase::Stalled => {
                (self.interval_passed || self.checkpoint_now)
                    && !self.faults.no_checkpoints
                    && !self.any_link_lost()
            }
            Phase::RollingBack => false,
        };
        if due {
            self.start_checkpoint();
        }
        due
    }

    fn start_checkpoint(&mut self) {
        self.interval_passed = false;
        self.checkpoint_now = false;
        self.last_started += 1;
        let checkpoint = self.last_started;
        for stream in self.registry.values_mut() {
            stream.acked = stream.seen;
        }
        let sinks = self.raise_barriers(checkpoint);
        self.pending = Some(Snapshot {
            checkpoint,
            workers: self.workers.keys().cloned().collect(),
            leaving: self.workers.iter().filter(|(_, w)| w.leaving).map(|(name, _)| name.clone()).collect(),
            streams: self.registry.iter().map(|(id, stream)| (*id, stream.saved())).collect(),
            sinks,
            totals: self.totals.clone(),
        });
        self.wake_all();
    }

    /// The pending checkpoint, once every sink agreed: make it durable and call [`Cluster::complete`].
    pub(crate) fn completable(&mut self) -> Option<Snapshot> {
        if self.pending.is_none() || !self.all_links_agreed() {
            return None;
        }
        if self.faults.abort_after_vote > 0 && self.any_vote() {
            self.faults.abort_after_vote -= 1;
            tracing::info!("fault plan: checkpoint aborted after the vote");
            self.begin_rollback();
            return None;
        }
        self.pending.clone()
    }

    /// The checkpoint that [`Cluster::completable`] gave is durable: acknowledge and decide.
    pub(crate) fn complete(&mut self, checkpoint: u64) {
        if self.pending.as_ref().is_none_or(|pending| pending.checkpoint != checkpoint) {
            return;
        }
        if let Some(snapshot) = self.pending.take() {
            self.committed = snapshot;
        }
        self.counters.completed += 1;
        self.interval_passed = false; // the pause begins now
        if self.phase == Phase::Starting {
            self.phase = Phase::Running;
        }
        self.decide_commit();
        self.acknowledge(checkpoint);
        for name in std::mem::take(&mut self.committed.leaving) {
            if self.has_worker(&name) {
                self.leave(&name);
                self.committed.sinks.retain(|key, _| !key.starts_with(&format!("{name}/")));
                self.checkpoint_now = true;
            }
        }
        self.wake_all();
    }

    pub(super) fn abort_pending(&mut self) {
        if self.pending.take().is_some() {
            self.counters.aborted += 1;
        }
    }

    /// Goes back to the last completed checkpoint: every connector source is closed without a word, connector sinks are
    /// dialled anew, decided and then replayed to.
    pub(crate) fn begin_rollback(&mut self) {
        if !self.config.resilience || self.phase == Phase::RollingBack {
            return;
        }
        self.abort_pending();
        tracing::info!(checkpoint = self.committed.checkpoint, "rolling back");
        self.close_sources();
        self.enter_rollback();
    }

    pub(super) fn enter_rollback(&mut self) {
        self.phase = Phase::RollingBack;
        self.totals = self.committed.totals.clone();
        self.registry =
            self.committed.streams.iter().map(|(id, saved)| (*id, Stream::restored(saved))).collect();
        self.rewind_links();
        self.wake_all();
        self.end_rollback_if_possible();
    }

    pub(super) fn end_rollback_if_possible(&mut self) {
        if self.phase != Phase::RollingBack || !self.connector_links_ready() {
            return;
        }
        self.phase = if self.committed.checkpoint == 0 { Phase::Starting } else { Phase::Running };
        self.counters.rollbacks += 1;
        self.checkpoint_now = true;
        self.restart_waiting_sources();
        tracing::info!(checkpoint = self.committed.checkpoint, "rolled back");
        self.wake_all();
    }
}
