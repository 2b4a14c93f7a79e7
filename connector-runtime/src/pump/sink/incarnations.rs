//! Beginnings and ends of a worker's output: new logs, fresh clusters, transactions in doubt, workers that left.

use bytes::Bytes;
use connector_crds::OnInDoubt;
use connector_env::Env;
use tokio::time::Instant;
use tracing::{info, warn};
use wallaroo_protocol::{SinkServerEvent, WorkerState};

use super::SinkPumpError;
use super::connector::Pump;
use super::known::{Stream, no_space, older_name};
use super::link::LinkId;
use super::sessions::Flow;
use super::stalls::Stall;
use crate::board::{Counters, DropReason, Side};
use crate::source::ErrorClass;
use crate::txn_log::{self, InDoubt, TxnLog};

impl<E: Env> Pump<E> {
    /// Makes sure that a worker has a log that goes on, without output that nobody voted for.
    pub(super) fn ready_log(&mut self, name: &Bytes) -> Result<(), txn_log::LogError> {
        let directory = txn_log::directory(&self.config.state);
        let Some(worker) = self.workers.get_mut(name) else { return Ok(()) };
        if worker.current().is_none() {
            // Unique also when the volume is lost: a position that the target holds must never meet another stream of
            // that number.
            let clock = u64::try_from(self.env.unix_millis()).unwrap_or(0);
            let last = worker.streams.last().map_or(0, |stream| stream.log.incarnation());
            let incarnation = clock.max(last + 1);
            let log = TxnLog::create(&self.env, &directory, name.clone(), incarnation)?;
            worker.streams.push(Stream::new(&worker.name, log));
        }
        let adopt = worker.adopt;
        if let Some(stream) = worker.current() {
            stream.log.discard_staged()?;
            if let Some(offset) = adopt.filter(|_| stream.log.is_pristine()) {
                stream.log.append(offset, std::iter::empty(), true)?;
                // What came before is another log's, and not to be waited for.
                stream.log.mark(offset, 0)?;
                stream.log.sync()?;
            }
        }
        worker.adopt = None;
        Ok(())
    }

    pub(super) fn fresh_cluster(
        &mut self,
        id: LinkId,
        name: &Bytes,
        close_first: bool,
        in_doubt: Option<Bytes>,
    ) -> Result<Flow, SinkPumpError> {
        let Some(worker) = self.workers.get_mut(name) else { return Ok(Flow::Close) };
        let text = worker.name.clone();
        let index = worker.streams.len().saturating_sub(1);
        let goes_on = worker.current().is_some();
        let blocked = |in_doubt| SinkServerEvent::FreshCluster { close_first, in_doubt };
        if goes_on {
            warn!(worker = text, undecided = ?in_doubt, "A fresh cluster: the earlier incarnation is archived.");
            if let Some(needed) = self.end_stream(name, index)? {
                return Ok(Flow::Blocked(blocked(in_doubt), needed));
            }
        }
        if close_first {
            let message =
                format!("worker {text} belongs to a fresh cluster; it may need one restart to go on");
            self.board.error(Side::Wallaroo, ErrorClass::Protocol, &message, self.env.unix_millis());
            return Ok(Flow::Close);
        }
        if let Err(error) = self.ready_log(name) {
            return Ok(Flow::Blocked(blocked(in_doubt), no_space(error)?));
        }
        let millis = self.millis(Instant::now());
        let accepted = self
            .links
            .get_mut(id)
            .map_or(Ok(()), |link| link.talk.server.accept(WorkerState::default(), millis));
        if let Err(error) = accepted {
            self.session_failed(id, &error)?;
        }
        Ok(Flow::Next)
    }

    pub(super) fn poisoned(&mut self, name: &Bytes, expected: u64, got: u64) -> Flow {
        let Some(worker) = self.workers.get_mut(name) else { return Flow::Close };
        let text = worker.name.clone();
        let pristine = worker.current().is_some_and(|stream| stream.log.is_pristine());
        if pristine && expected == 0 {
            // Another system was here before, or the volume is new: what the cluster committed is not ours to ask for.
            worker.adopt = Some(got);
            let message = format!(
                "the transaction log of worker {text} is new and its cluster is at offset {got}: going on there; what came \
                 before was another log's"
            );
            warn!("{message}");
            self.board.error(Side::Wallaroo, ErrorClass::Protocol, &message, self.env.unix_millis());
            return Flow::Close;
        }
        let message =
            format!("worker {text} sent output at offset {got} in place of {expected}; the next vote is no");
        warn!("{message}");
        self.board.error(Side::Wallaroo, ErrorClass::Protocol, &message, self.env.unix_millis());
        Flow::Next
    }

    pub(super) fn workers_left(&mut self, names: Vec<Bytes>) -> Result<Flow, SinkPumpError> {
        let mut names = names.into_iter();
        while let Some(name) = names.next() {
            let Some(worker) = self.workers.get_mut(&name) else { continue };
            if worker.link.is_some() {
                worker.leaving = true;
                continue;
            }
            if worker.current().is_none() {
                continue;
            }
            info!(worker = worker.name, "A worker left the cluster: its output is archived.");
            let index = worker.streams.len() - 1;
            if let Some(needed) = self.end_stream(&name, index)? {
                let workers = std::iter::once(name).chain(names).collect();
                return Ok(Flow::Blocked(SinkServerEvent::WorkersLeft { workers }, needed));
            }
        }
        Ok(Flow::Next)
    }

    /// Ends an incarnation. Returns the bytes needed when there is no room to say so.
    pub(super) fn end_stream(&mut self, name: &Bytes, index: usize) -> Result<Option<u64>, SinkPumpError> {
        let Some(stream) = self.workers.get_mut(name).and_then(|worker| worker.streams.get_mut(index)) else {
            return Ok(None);
        };
        let policy = match self.config.on_in_doubt {
            OnInDoubt::Deliver => InDoubt::Commit,
            OnInDoubt::Hold => InDoubt::Keep,
            OnInDoubt::Discard => InDoubt::Discard,
        };
        let ended = stream.log.state().ended;
        // One that was kept is settled once the policy says how.
        if ended == Some(false) || (ended == Some(true) && policy == InDoubt::Keep) {
            return Ok(None);
        }
        let state = stream.log.state();
        let voted = state.pending.as_ref().is_some_and(|pending| pending.vote);
        let undecided = state.records - state.committed_records;
        match stream.log.end(policy) {
            Ok(None) => {}
            Ok(Some(transaction)) => {
                if ended.is_none() {
                    Counters::add(&self.board.counters().transactions_in_doubt, 1);
                }
                warn!(
                    ?transaction,
                    records = undecided,
                    ?policy,
                    "A transaction of an ended cluster is in doubt."
                );
                if policy == InDoubt::Discard && voted {
                    self.board.dropped(DropReason::PolicyDrop, undecided);
                }
            }
            Err(error) => return Ok(Some(no_space(error)?)),
        }
        self.stalls.clear(&self.board, &Stall::Decision(String::from_utf8_lossy(name).into_owned()));
        self.report_kept(name);
        Ok(None)
    }

    /// Says which undecided transactions of ended clusters wait for someone.
    pub(super) fn report_kept(&mut self, name: &Bytes) {
        let Some(worker) = self.workers.get_mut(name) else { return };
        for stream in &mut worker.streams {
            let state = stream.log.state();
            let (Some(true), Some(pending)) = (state.ended, &state.pending) else { continue };
            let transaction = String::from_utf8_lossy(&pending.transaction);
            let message = format!(
                "transaction {transaction} of worker {} was voted for and its cluster is gone; it is kept, undelivered, because \
                 `delivery.onInDoubt` is Hold",
                worker.name
            );
            let stall = Stall::InDoubt(older_name(&stream.id));
            self.stalls.set(&self.board, stall, "TransactionInDoubt", message);
        }
    }
}
