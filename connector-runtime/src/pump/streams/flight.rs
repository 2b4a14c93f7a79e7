//! Records of one stream between sending and acknowledgement, accounted in chunks so that memory stays flat.

use std::collections::VecDeque;

use tokio::time::{Duration, Instant};

use crate::record::Position;

/// Records and bytes.
pub(super) type Amount = (u64, u64);

/// Records sent in one or more consecutive calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Chunk {
    last: Position,
    records: u64,
    bytes: u64,
    /// Number of the last byte in the session's output.
    end: u64,
}

/// Records that the worker's kernel has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Receipt {
    last: Position,
    records: u64,
    first: Instant,
    at: Instant,
}

/// What of a stream is sent and not acknowledged.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Flight {
    sent: VecDeque<Chunk>,
    received: VecDeque<Receipt>,
}

impl Flight {
    pub(super) fn is_empty(&self) -> bool {
        self.sent.is_empty() && self.received.is_empty()
    }

    /// Position of the last record that was sent and not acknowledged.
    pub(super) fn last(&self) -> Option<Position> {
        self.sent.back().map(|chunk| chunk.last).or_else(|| self.received.back().map(|receipt| receipt.last))
    }

    /// Sent and not received; received and not settled.
    pub(super) fn total(&self) -> (Amount, u64) {
        let sent = self.sent.iter().fold((0, 0), |sum, c| (sum.0 + c.records, sum.1 + c.bytes));
        (sent, self.received.iter().map(|receipt| receipt.records).sum())
    }

    /// Adds to the newest chunk until that has `size` records or bytes.
    pub(super) fn sent(&mut self, records: u64, bytes: u64, last: Position, end: u64, size: Amount) {
        if let Some(chunk) = self.sent.back_mut()
            && chunk.records < size.0
            && chunk.bytes < size.1
        {
            chunk.records += records;
            chunk.bytes += bytes;
            (chunk.last, chunk.end) = (last, end);
        } else {
            self.sent.push_back(Chunk { last, records, bytes, end });
        }
    }

    /// Takes off every chunk and receipt that lies wholly within `position`.
    pub(super) fn acknowledge(&mut self, position: Position) -> (Amount, u64) {
        let (mut amount, mut settled) = ((0, 0), 0);
        while let Some(receipt) = self.received.front().filter(|receipt| receipt.last <= position) {
            settled += receipt.records;
            self.received.pop_front();
        }
        while let Some(chunk) = self.sent.front().filter(|chunk| chunk.last <= position) {
            amount = (amount.0 + chunk.records, amount.1 + chunk.bytes);
            self.sent.pop_front();
        }
        (amount, settled)
    }

    /// Turns every chunk that ends at `offset` or before into a receipt of `now`. Receipts within `spread` become one, of
    /// the later time: nothing settles too early, and there are never more than the delay divided by `spread`.
    pub(super) fn received(&mut self, offset: u64, now: Instant, spread: Duration) -> Amount {
        let mut amount = (0, 0);
        let mut last = None;
        while let Some(chunk) = self.sent.front().filter(|chunk| chunk.end <= offset) {
            amount = (amount.0 + chunk.records, amount.1 + chunk.bytes);
            last = Some(chunk.last);
            self.sent.pop_front();
        }
        let Some(last) = last else { return amount };
        match self.received.back_mut() {
            Some(receipt) if now.saturating_duration_since(receipt.first) < spread => {
                receipt.records += amount.0;
                (receipt.last, receipt.at) = (last, now);
            }
            Some(_) | None => {
                self.received.push_back(Receipt { last, records: amount.0, first: now, at: now });
            }
        }
        amount
    }

    /// Takes off the receipts of `before` and earlier: their records and last position.
    pub(super) fn settle(&mut self, before: Instant) -> (u64, Option<Position>) {
        let (mut records, mut last) = (0, None);
        while let Some(receipt) = self.received.front().filter(|receipt| receipt.at <= before) {
            records += receipt.records;
            last = Some(receipt.last);
            self.received.pop_front();
        }
        (records, last)
    }
}
