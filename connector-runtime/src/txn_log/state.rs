//! What a transaction log says: the same transitions while it is written and while it is read.

use bytes::Bytes;
use wallaroo_protocol::{Pending, WorkerState};

use super::record::{Header, Record};

/// What one incarnation of a worker's log holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct LogState {
    /// Offset behind the last decided byte.
    pub committed: u64,
    /// Offset behind the last byte.
    pub received: u64,
    /// The transaction with a vote and without a decision.
    pub pending: Option<Pending>,
    /// Up to where everything is durable at the target.
    pub delivered: u64,
    /// Position of a record that the target refused and that may not be passed over.
    pub held: Option<u64>,
    /// Records received, counted from the start of the incarnation.
    pub records: u64,
    /// Those of them that are decided.
    pub committed_records: u64,
    /// Those of them up to `delivered`.
    pub delivered_records: u64,
    /// Set once the incarnation is over; true when its undecided transaction is kept for someone to look at.
    pub ended: Option<bool>,
}

impl LogState {
    pub(super) fn at(header: &Header<'_>) -> LogState {
        LogState {
            committed: header.committed,
            received: header.committed,
            pending: None,
            delivered: header.delivered,
            held: (header.held > 0).then_some(header.held),
            records: header.records,
            committed_records: header.records,
            delivered_records: header.delivered_records,
            ended: None,
        }
    }

    /// True when nothing is undecided.
    pub fn is_settled(&self) -> bool {
        self.pending.is_none() && self.received == self.committed
    }

    /// Decided bytes that are not durable at the target.
    pub fn undelivered(&self) -> u64 {
        self.committed.saturating_sub(self.delivered)
    }

    /// What the session of a new connection starts from. Staged output without a vote has to be discarded first.
    pub fn worker_state(&self) -> WorkerState {
        let received = match &self.pending {
            Some(pending) if pending.vote => pending.end,
            Some(_) | None => self.committed,
        };
        WorkerState { committed: self.committed, received, pending: self.pending.clone() }
    }

    /// What was staged behind the last decision is gone.
    pub fn discard(&mut self) {
        self.received = self.committed;
        self.records = self.committed_records;
        self.pending = None;
    }

    /// More output: `bytes` in `messages` from `offset` on.
    pub(super) fn output(
        &mut self,
        offset: u64,
        bytes: u64,
        messages: u64,
        decided: bool,
    ) -> Result<(), &'static str> {
        if self.pending.is_some() {
            return Err("output while a transaction is undecided");
        }
        let follows = if decided {
            offset >= self.received && self.received == self.committed
        } else {
            offset == self.received
        };
        let Some(end) = offset.checked_add(bytes).filter(|_| follows) else {
            return Err("output that does not continue what is there");
        };
        self.received = end;
        self.records += messages;
        if decided {
            self.committed = end;
            self.committed_records = self.records;
        }
        Ok(())
    }

    /// The next record of the log; an error says why it cannot follow. Headers are judged by [`LogState::follows`].
    pub fn apply(&mut self, record: &Record<'_>) -> Result<(), &'static str> {
        match *record {
            Record::Header(_) => return Err("a second header"),
            Record::Data { offset, decided, lengths, bytes } => {
                self.output(offset, bytes.len() as u64, lengths.len() as u64, decided)?;
            }
            Record::Prepare { transaction, vote, start, end } => {
                if self.pending.is_some() {
                    return Err("a second undecided transaction");
                }
                if vote && (start != self.committed || end != self.received) {
                    return Err("a vote for output that is not there");
                }
                let transaction = Bytes::copy_from_slice(transaction);
                self.pending = Some(Pending { transaction, vote, start, end });
            }
            Record::Commit { transaction } => match self.pending.take() {
                Some(pending) if pending.vote && pending.transaction == transaction => {
                    self.committed = pending.end;
                    self.committed_records = self.records;
                }
                other => {
                    self.pending = other;
                    return Err("a decision without its vote");
                }
            },
            Record::RolledBack { start, .. } => {
                if start != self.committed || !self.is_settled() {
                    return Err("an abort that left output behind");
                }
            }
            Record::Delivered { position, records } => {
                if position > self.committed {
                    return Err("a delivery of what is not decided");
                }
                self.delivered = position;
                self.delivered_records = records;
                if self.held.is_some_and(|held| held <= position) {
                    self.held = None;
                }
            }
            Record::Held { position } => {
                if position > self.committed || position <= self.delivered {
                    return Err("a refused record that is not waiting");
                }
                self.held = Some(position);
            }
            Record::Ended { in_doubt } => self.ended = Some(in_doubt),
            Record::Synced => {}
        }
        Ok(())
    }

    /// True if a segment with this header may follow. Marks of deliveries are lazy and may have been lost.
    pub(super) fn follows(&self, header: &Header<'_>) -> bool {
        self.is_settled() && header.committed == self.committed && header.records == self.committed_records
    }
}
