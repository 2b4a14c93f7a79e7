//! What was read and could not be sent yet: the rest of one batch, rarely more.

use std::collections::VecDeque;

use bytes::Bytes;

use super::config::PumpError;
use crate::record::{Batch, Position};
use crate::source::{BadRecord, StreamKey};

/// Items that are kept at most. One is usual: while something is kept the source is not asked, or all its streams are paused.
const MAX_ITEMS: usize = 16;

/// A batch with a cursor.
#[derive(Debug)]
pub(super) struct KeptBatch {
    pub(super) stream: StreamKey,
    pub(super) records: Batch,
    /// Number of the first record that is not sent.
    pub(super) cursor: usize,
    /// Records and bytes of it that count as in flight still.
    pub(super) left: (u64, u64),
}

#[derive(Debug)]
pub(super) enum Kept {
    Batch(KeptBatch),
    Bad { stream: StreamKey, position: Position, reason: BadRecord, payload: Bytes },
}

impl Kept {
    pub(super) fn stream(&self) -> StreamKey {
        match self {
            Kept::Batch(batch) => batch.stream,
            Kept::Bad { stream, .. } => *stream,
        }
    }
}

/// Items in the order of reading, and their records and bytes.
#[derive(Debug, Default)]
pub(super) struct Queue {
    items: VecDeque<Kept>,
    amount: (u64, u64),
}

impl Queue {
    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Records and bytes that are not sent.
    pub(super) fn amount(&self) -> (u64, u64) {
        self.amount
    }

    pub(super) fn holds(&self, stream: StreamKey) -> bool {
        self.items.iter().any(|item| item.stream() == stream)
    }

    pub(super) fn keep(&mut self, item: Kept) -> Result<(), PumpError> {
        if self.items.len() >= MAX_ITEMS {
            return Err(PumpError::IgnoresPause);
        }
        if let Kept::Batch(batch) = &item {
            self.amount.0 += batch.left.0;
            self.amount.1 += batch.left.1;
        }
        self.items.push_back(item);
        Ok(())
    }

    /// Takes the oldest item out for work; its records still count.
    pub(super) fn pop(&mut self) -> Option<Kept> {
        self.items.pop_front()
    }

    pub(super) fn put_back(&mut self, item: Kept) {
        self.items.push_front(item);
    }

    /// Everything of the batch before its cursor, and `bytes` more of it, are sent.
    pub(super) fn sent(&mut self, batch: &mut KeptBatch, bytes: u64) {
        let left = ((batch.records.len() - batch.cursor) as u64, batch.left.1.saturating_sub(bytes));
        self.leave(batch, left);
    }

    /// Nothing more of the batch will be sent.
    pub(super) fn done(&mut self, batch: &mut KeptBatch) {
        self.leave(batch, (0, 0));
    }

    fn leave(&mut self, batch: &mut KeptBatch, (records, bytes): (u64, u64)) {
        self.amount.0 -= batch.left.0 - records;
        self.amount.1 -= batch.left.1 - bytes;
        batch.left = (records, bytes);
    }

    /// The record at the cursor is dropped.
    pub(super) fn skip(&mut self, batch: &mut KeptBatch, bytes: u64) {
        batch.cursor += 1;
        self.sent(batch, bytes);
    }

    /// An item that was taken out is not put back.
    pub(super) fn drop(&mut self, item: &Kept) {
        if let Kept::Batch(batch) = item {
            self.amount.0 -= batch.left.0;
            self.amount.1 -= batch.left.1;
        }
    }

    /// Drops what is kept of a stream.
    pub(super) fn forget(&mut self, stream: StreamKey) {
        let Queue { items, amount } = self;
        items.retain(|item| {
            let keep = item.stream() != stream;
            if let (false, Kept::Batch(batch)) = (keep, item) {
                amount.0 -= batch.left.0;
                amount.1 -= batch.left.1;
            }
            keep
        });
    }

    pub(super) fn clear(&mut self) {
        *self = Queue::default();
    }
}
