//! Sink side of the cluster: links, barriers, votes and decisions (§4.7).

use std::collections::BTreeMap;

use super::link::{Barrier, Link, LinkId, LinkKind, Stage};
use super::queue::Block;
use super::snapshot::SavedSink;
use super::{Cluster, Wake};
use crate::config::Application;
use crate::status::Phase;

/// Output that waits for one link. While it is full, the sources that feed it are not read.
const MAX_QUEUED: usize = 8 * 1024 * 1024;

/// Number of the first `LIST_UNCOMMITTED` of a link (§4.2).
const FIRST_RTAG: u64 = wallaroo_protocol::FIRST_RTAG;

/// What a new connection of a connector link says first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Intro {
    /// Number of the connection: every call names it, and one of an older connection is ignored.
    pub(crate) connection: u64,
    /// Number of `LIST_UNCOMMITTED`.
    pub(crate) rtag: u64,
    /// Offset in NOTIFY.
    pub(crate) offset: u64,
}

/// Order from the cluster to the driver of a link.
#[derive(Debug)]
pub(crate) enum SinkCommand {
    /// Send these results.
    Output(Block),
    /// Ask for a vote.
    Phase1 {
        /// The transaction.
        transaction: String,
        /// First byte.
        start: u64,
        /// Behind the last byte.
        end: u64,
    },
    /// Send the decision.
    Phase2 {
        /// The transaction.
        transaction: String,
        /// The decision.
        commit: bool,
    },
    /// These workers left the cluster.
    WorkersLeft(Vec<String>),
    /// Write what was ordered before, then close.
    Close,
    /// The connection is of no use any more: drop it at once.
    Abandon,
}

impl Cluster {
    /// What a link speaks; `None` when its worker has left.
    pub(crate) fn link(&self, id: LinkId) -> Option<&Link> {
        self.links.get(&id)
    }

    /// A connection was made. `None` when the link's worker has left.
    pub(crate) fn sink_connected(&mut self, id: LinkId) -> Option<Intro> {
        let link = self.links.get_mut(&id)?;
        link.connections += 1;
        link.connection = Some(link.connections);
        link.settle_plain();
        let intro = Intro {
            connection: link.connections,
            rtag: FIRST_RTAG + link.connections - 1,
            offset: link.queue.end(),
        };
        self.woken.insert(Wake::Coordinator);
        self.woken.insert(Wake::Link(id));
        Some(intro)
    }

    fn current(&mut self, id: LinkId, connection: u64) -> Option<&mut Link> {
        self.links.get_mut(&id).filter(|link| link.connection == Some(connection))
    }

    /// The fault plan wants this connection closed right behind its intro.
    pub(crate) fn closes_after_intro(&mut self) -> bool {
        let closes = self.faults.close_after_intro > 0;
        self.faults.close_after_intro = self.faults.close_after_intro.saturating_sub(1);
        closes
    }

    /// The sink's list of undecided transactions.
    pub(crate) fn sink_listed(&mut self, id: LinkId, connection: u64, transactions: &[String]) {
        let rolling_back = self.phase == Phase::RollingBack;
        let decided = self
            .links
            .get(&id)
            .and_then(|link| self.committed.sinks.get(&link.key).and_then(|saved| saved.transaction.clone()));
        let Some(link) = self.current(id, connection) else { return };
        if link.lost {
            // The sink is back after a loss that matters: now the cluster can roll back.
            link.lost = false;
            self.begin_rollback();
            return;
        }
        if rolling_back {
            for transaction in transactions {
                let commit = decided.as_ref() == Some(transaction);
                if commit {
                    link.commits += 1;
                } else {
                    link.aborts += 1;
                }
                let transaction = transaction.clone();
                link.commands.push_back(SinkCommand::Phase2 { transaction, commit });
            }
            link.ready = true;
        } else {
            // A transaction that nobody here knows is never decided (§4.8, last row).
            link.ready = transactions.is_empty();
        }
        self.woken.insert(Wake::Link(id));
        self.woken.insert(Wake::Coordinator);
        self.end_rollback_if_possible();
    }

    /// The sink's vote.
    pub(crate) fn sink_voted(&mut self, id: LinkId, connection: u64, transaction: &str, commit: bool) {
        let first = self.committed.checkpoint == 0;
        let Some(link) = self.current(id, connection) else { return };
        let key = link.key.clone();
        match &mut link.barrier {
            Some(barrier) if barrier.stage == Stage::Asked && barrier.transaction == transaction => {
                if commit {
                    barrier.stage = Stage::Agreed;
                    self.woken.insert(Wake::Coordinator);
                    return;
                }
            }
            Some(_) | None => return,
        }
        if first {
            let detail = "the sink voted no in checkpoint 1 (§4.4): a real worker would abort";
            self.violation(&key, detail, true);
        }
        self.begin_rollback();
    }

    /// The connection ended; `unwritten` bytes of output were never written.
    pub(crate) fn sink_lost(&mut self, id: LinkId, connection: u64, unwritten: u64) {
        let resilience = self.config.resilience;
        let rolling_back = self.phase == Phase::RollingBack;
        let Some(link) = self.current(id, connection) else { return };
        let mattered = link.ready || link.carried;
        let agreed = link.agreed();
        link.disconnect();
        if link.leaving {
            let worker = link.worker.clone();
            self.links.remove(&id);
            self.tell_departure(&worker);
            return;
        }
        match link.kind {
            LinkKind::Plain => {
                link.dropped += unwritten;
                link.in_flight = 0;
            }
            LinkKind::Connector if rolling_back || !mattered => {}
            LinkKind::Connector if resilience => {
                tracing::warn!(sink = link.key, "sink lost: the cluster rolls back when it is here again");
                link.lost = true;
                // After a yes the checkpoint may still complete: the vote is a promise.
                if !agreed {
                    self.abort_checkpoint();
                }
            }
            LinkKind::Connector => {
                tracing::warn!(
                    sink = link.key,
                    "sink lost without resilience: its output stays closed (§7.30)"
                );
                link.closed = true;
            }
        }
        self.woken.insert(Wake::Coordinator);
    }

    /// The pending checkpoint cannot complete; the sinks that voted hear so after the rollback.
    fn abort_checkpoint(&mut self) {
        self.abort_pending();
        for link in self.links.values_mut().filter(|link| link.kind == LinkKind::Plain) {
            link.barrier = None;
        }
    }

    /// The driver of a plain link has written all that it had.
    pub(crate) fn sink_written(&mut self, id: LinkId, connection: u64) {
        let Some(link) = self.current(id, connection) else { return };
        link.in_flight = 0;
        if link.settle_plain() {
            self.woken.insert(Wake::Coordinator);
        }
    }

    /// What the driver has to do next on this connection.
    pub(crate) fn next_sink_command(&mut self, id: LinkId, connection: u64) -> Option<SinkCommand> {
        let rolling_back = self.phase == Phase::RollingBack;
        let link = self.links.get_mut(&id).filter(|link| link.connection == Some(connection));
        let Some(link) = link else { return Some(SinkCommand::Abandon) };
        if let Some(command) = link.commands.pop_front() {
            return Some(command);
        }
        if link.is_connector() && (rolling_back || link.lost || link.closed) {
            return None;
        }
        let limit = link.barrier.as_ref().map(|barrier| barrier.end);
        let full = link.queue.bytes() >= MAX_QUEUED;
        if let Some(block) = link.queue.take(limit) {
            link.carried = true;
            link.records += block.results() as u64;
            if link.kind == LinkKind::Plain {
                link.in_flight += block.len() as u64;
            }
            if full && link.queue.bytes() < MAX_QUEUED {
                self.woken.extend(self.connections.keys().map(|id| Wake::Source(*id)));
            }
            return Some(SinkCommand::Output(block));
        }
        if link.settle_plain() {
            self.woken.insert(Wake::Coordinator);
            return None;
        }
        let barrier = link.barrier.as_mut()?;
        if link.kind != LinkKind::Connector || barrier.stage != Stage::Flushing || !link.ready {
            return None;
        }
        barrier.stage = Stage::Asked;
        let Barrier { transaction, start, end, .. } = barrier.clone();
        if self.faults.drop_before_vote > 0 {
            self.faults.drop_before_vote -= 1;
            tracing::info!(sink = link.key, "fault plan: connection closed before the vote");
            link.commands.push_back(SinkCommand::Close);
        }
        Some(SinkCommand::Phase1 { transaction, start, end })
    }

    // ---- what checkpoints and rollbacks need ----

    pub(super) fn plain_links_connected(&self) -> bool {
        self.links.values().all(|link| link.kind == LinkKind::Connector || link.connection.is_some())
    }

    pub(super) fn connector_links_ready(&self) -> bool {
        self.links.values().all(|link| link.kind == LinkKind::Plain || link.ready || link.leaving)
    }

    pub(super) fn any_link_lost(&self) -> bool {
        self.links.values().any(|link| link.lost)
    }

    pub(super) fn any_vote(&self) -> bool {
        self.links.values().any(|link| link.is_connector() && link.barrier.is_some())
    }

    pub(super) fn all_links_agreed(&self) -> bool {
        self.links.values().all(Link::agreed)
    }

    pub(super) fn any_queue_full(&self, worker: &str) -> bool {
        let everywhere = self.config.application == Application::WordCount;
        self.links
            .values()
            .any(|link| (everywhere || link.worker == worker) && link.queue.bytes() >= MAX_QUEUED)
    }

    /// The barrier of a checkpoint reaches every link. In checkpoint 1 a connector sink that is not ready agrees without
    /// a vote; later it holds the barrier until it is.
    pub(super) fn raise_barriers(&mut self, checkpoint: u64) -> BTreeMap<String, SavedSink> {
        let mut saved = BTreeMap::new();
        for link in self.links.values_mut().filter(|link| !link.leaving) {
            link.queue.seal();
            let end = link.queue.end();
            let before = self.committed.sinks.get(&link.key).cloned().unwrap_or_default();
            if checkpoint == 1 && link.is_connector() && !link.ready {
                saved.insert(link.key.clone(), before);
                continue;
            }
            let transaction = format!("{}:c_id={checkpoint}", link.stream_name);
            link.barrier = Some(Barrier {
                transaction: transaction.clone(),
                start: before.offset,
                end,
                stage: Stage::Flushing,
            });
            let transaction = link.is_connector().then_some(transaction);
            saved.insert(link.key.clone(), SavedSink { offset: end, transaction });
        }
        saved
    }

    /// The checkpoint is complete: the transactions are committed and output flows on.
    pub(super) fn decide_commit(&mut self) {
        for (id, link) in &mut self.links {
            let Some(barrier) = link.barrier.take() else { continue };
            if link.kind == LinkKind::Plain || link.connection.is_none() {
                continue; // a lost sink lists the transaction when it is back
            }
            if self.faults.lose_decision > 0 {
                tracing::info!(sink = link.key, "fault plan: decision lost");
                link.commands.push_back(SinkCommand::Close);
            } else {
                link.commits += 1;
                let transaction = barrier.transaction;
                link.commands.push_back(SinkCommand::Phase2 { transaction, commit: true });
            }
            self.woken.insert(Wake::Link(*id));
        }
        self.faults.lose_decision = self.faults.lose_decision.saturating_sub(1);
    }

    /// Connector links go back to their committed offsets and are dialled anew. Plain links keep what waits: nobody
    /// would send it again for a plain source, and nobody removes repeats from a plain sink (§1.3).
    pub(super) fn rewind_links(&mut self) {
        for (id, link) in self.links.iter_mut().filter(|(_, link)| !link.leaving) {
            link.barrier = None;
            if link.kind == LinkKind::Plain {
                continue;
            }
            let offset = self.committed.sinks.get(&link.key).map_or(0, |saved| saved.offset);
            link.queue.reset(offset);
            link.lost = false;
            link.disconnect();
            self.woken.insert(Wake::Link(*id));
        }
    }

    /// The links of a worker that left end once their last decision is out.
    pub(super) fn close_links(&mut self, worker: &str) {
        for (id, link) in self.links.iter_mut().filter(|(_, link)| link.worker == worker) {
            link.leaving = true;
            link.commands.push_back(SinkCommand::Close);
            self.woken.insert(Wake::Link(*id));
        }
        self.links.retain(|_, link| !link.leaving || link.connection.is_some());
        self.tell_departure(worker);
    }

    /// When the last link of a worker that left has ended, the others tell their sinks (§4.10).
    fn tell_departure(&mut self, worker: &str) {
        if self.links.values().any(|link| link.worker == worker) {
            return;
        }
        for (id, link) in &mut self.links {
            if link.is_connector() && link.connection.is_some() && !link.leaving {
                link.commands.push_back(SinkCommand::WorkersLeft(vec![worker.to_owned()]));
                self.woken.insert(Wake::Link(*id));
            }
        }
    }
}
