//! Records: what the application makes of them, and where the fault plan strikes.

use super::queue::OutputQueue;
use super::sources::{ConnectionId, SourceCommand};
use super::{Cluster, Wake};
use crate::application::process;
use crate::config::Application;

/// Bytes of a bad record that the status shows.
const EXAMPLE_BYTES: usize = 64;

/// Records that arrived together: of one stream, or of a plain connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Batch<I> {
    /// The stream; plain connections have none.
    pub(crate) stream: Option<u64>,
    /// Number of records.
    pub(crate) len: usize,
    /// Bytes of all payloads.
    pub(crate) bytes: usize,
    /// Id of the last record; plain connections have none.
    pub(crate) last_id: Option<u64>,
    /// Payloads in order.
    pub(crate) payloads: I,
}

/// What the fault plan does when its threshold is reached.
enum Strike {
    Stall,
    Close,
    Error(String),
    Restart { address: String, close: bool },
    Rollback,
}

impl Cluster {
    /// Processes records. Where the fault plan strikes, it does so exactly behind its record, and the rest is lost.
    pub(crate) fn records<'a>(
        &mut self,
        id: ConnectionId,
        batch: Batch<impl Iterator<Item = &'a [u8]> + Clone>,
    ) {
        let Some(connection) = self.connections.get(&id) else { return };
        if connection.deaf || connection.closing {
            return;
        }
        let worker = connection.worker.clone();
        let since = self.counters.records - self.faults_since;
        let (take, strike) = match self.due_strike(since, batch.len as u64) {
            None => (batch.len, None),
            Some((at, strike)) => ((at - since) as usize, Some(strike)),
        };
        let whole = take == batch.len;
        if whole {
            self.counters.bytes += batch.bytes as u64;
        } else {
            self.counters.bytes += batch.payloads.clone().take(take).map(|p| p.len() as u64).sum::<u64>();
        }
        self.counters.records += take as u64;
        if let Some(stream) = batch.stream {
            if let Some(stats) = self.stats.get_mut(&stream) {
                stats.records += take as u64;
            }
            // A batch that is cut short is not acknowledged: its connection is struck.
            if let Some(entry) = self.registry.get_mut(&stream).filter(|_| whole) {
                entry.seen = batch.last_id;
            }
        }
        if whole {
            self.apply(&worker, batch.payloads);
        } else {
            self.apply(&worker, batch.payloads.take(take));
        }
        if let Some(strike) = strike {
            self.strike(id, strike);
        }
    }

    /// Runs the application and queues its results at the links of the worker; the totals of a word go through the
    /// worker that owns the word.
    fn apply<'a>(&mut self, worker: &str, payloads: impl Iterator<Item = &'a [u8]> + Clone) {
        let application = self.config.application;
        if self.links.is_empty() && application == Application::Identity {
            self.counters.results += payloads.count() as u64;
            return;
        }
        let names: Vec<&String> = self.workers.keys().collect();
        let own = names.iter().position(|name| *name == worker).unwrap_or(0);
        let mut queues: Vec<(usize, &mut OutputQueue)> = Vec::new();
        for (id, link) in &mut self.links {
            let slot = names.iter().position(|name| *name == link.worker());
            let Some(slot) = slot.filter(|slot| application == Application::WordCount || *slot == own) else {
                continue;
            };
            self.woken.insert(Wake::Link(*id));
            queues.push((slot, link.queue()));
        }
        let mut results = 0;
        for payload in payloads {
            let done = process(application, &mut self.totals, payload, &mut self.scratch, |word, result| {
                results += 1;
                let slot = word.map_or(own, |word| crc32c::crc32c(word.as_bytes()) as usize % names.len());
                for (_, queue) in queues.iter_mut().filter(|(owner, _)| *owner == slot) {
                    queue.push(result);
                }
            });
            if let Err(reason) = done {
                let bad = self.bad.entry(reason).or_default();
                bad.count += 1;
                if bad.count == 1 {
                    let example = &payload[..payload.len().min(EXAMPLE_BYTES)];
                    bad.example = String::from_utf8_lossy(example).into_owned();
                }
            }
        }
        self.counters.results += results;
    }

    /// The first fault that is due within the next `len` records, and at which record.
    fn due_strike(&mut self, since: u64, len: u64) -> Option<(u64, Strike)> {
        let plan = &self.faults;
        let thresholds = [
            plan.stall_after_records,
            plan.close_after_records,
            plan.error_after_records.as_ref().map(|error| error.records),
            plan.restart_after_records.as_ref().map(|restart| restart.records),
            plan.rollback_after_records,
        ];
        let (kind, at) = thresholds
            .iter()
            .enumerate()
            .filter_map(|(kind, at)| Some((kind, (*at)?)))
            .filter(|(_, at)| *at <= since + len)
            .min_by_key(|(_, at)| *at)?;
        let plan = &mut self.faults;
        let strike = match kind {
            0 => plan.stall_after_records.take().map(|_| Strike::Stall),
            1 => plan.close_after_records.take().map(|_| Strike::Close),
            2 => plan.error_after_records.take().map(|error| Strike::Error(error.message)),
            3 => plan
                .restart_after_records
                .take()
                .map(|restart| Strike::Restart { address: restart.address, close: restart.close }),
            _ => plan.rollback_after_records.take().map(|_| Strike::Rollback),
        }?;
        // A stall loses nothing: the whole batch is processed before it.
        let at = if matches!(strike, Strike::Stall) { since + len } else { at.max(since) };
        Some((at, strike))
    }

    fn strike(&mut self, id: ConnectionId, strike: Strike) {
        tracing::info!(records = self.counters.records, "fault plan: threshold reached");
        let command = match strike {
            Strike::Stall => {
                self.stalled = true;
                return;
            }
            Strike::Rollback => {
                self.begin_rollback();
                return;
            }
            Strike::Close => SourceCommand::Close,
            Strike::Error(message) => SourceCommand::Error(message),
            Strike::Restart { address, close } => SourceCommand::Restart { address, close },
        };
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.deaf = true;
            connection.commands.push_back(command);
            self.woken.insert(Wake::Source(id));
        }
    }
}
