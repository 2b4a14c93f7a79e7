//! Reading decided output back, in batches.

use connector_env::Env;

use super::TxnLog;
use super::error::LogError;
use super::record::{Parsed, Record as LogRecord, parse};
use crate::record::{BatchBuilder, NO_TIME, Record};

/// Bounds of one batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Records.
    pub records: usize,
    /// Bytes; a single longer record makes a batch of its own.
    pub bytes: usize,
}

/// A place in a log: everything up to `position` is behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    segment: u64,
    at: u64,
    position: u64,
    records: u64,
}

impl Cursor {
    /// Position of the last record behind it.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Number of records behind it, since the beginning of the incarnation.
    pub fn records(&self) -> u64 {
        self.records
    }
}

impl<E: Env> TxnLog<E> {
    /// The place behind every record that ends at `position` or before. `None` when that is no longer kept.
    pub fn seek(&mut self, position: u64) -> Result<Option<Cursor>, LogError> {
        let Some(segment) = self.segments.iter().rev().find(|segment| segment.first <= position) else {
            return Ok(None);
        };
        let mut cursor = Cursor {
            segment: segment.number,
            at: 0,
            position: segment.first,
            records: segment.first_records,
        };
        self.walk(&mut cursor, |end, _| end <= position)?;
        Ok(Some(cursor))
    }

    /// Collects the decided records behind `cursor` into `batch`, up to `limits`, and moves the cursor behind them.
    pub fn read(
        &mut self,
        cursor: &mut Cursor,
        limits: Limits,
        batch: &mut BatchBuilder,
    ) -> Result<(), LogError> {
        self.walk(cursor, |end, payload| {
            let full = batch.len() >= limits.records || batch.bytes() + payload.len() > limits.bytes;
            if full && !batch.is_empty() {
                return false;
            }
            batch.push(Record { position: end, time: NO_TIME, key: &[], payload });
            true
        })
    }

    /// Walks over decided messages as long as `take` agrees; the cursor stays before the first that it refuses.
    fn walk(
        &mut self,
        cursor: &mut Cursor,
        mut take: impl FnMut(u64, &[u8]) -> bool,
    ) -> Result<(), LogError> {
        let committed = self.state.committed;
        // What an abort may cut off is not passed: the cursor has to stay on a record.
        let open_at = self.open_at.unwrap_or(u64::MAX);
        let front = self.segments.front().map_or(0, |segment| segment.number);
        loop {
            let index = cursor.segment.saturating_sub(front) as usize;
            let Some(segment) = self.segments.get(index) else { return Ok(()) };
            let last = index + 1 == self.segments.len();
            if last && cursor.at >= segment.length.min(open_at) {
                return Ok(());
            }
            if cursor.at >= segment.length {
                cursor.segment += 1;
                cursor.at = 0;
                continue;
            }
            let (record, length) = match parse(self.window.record(segment, cursor.at)?) {
                Parsed::Record { record, length, .. } => (record, length),
                Parsed::Incomplete => return Err(segment.corrupt(cursor.at, "record is cut off")),
                Parsed::Bad(what) => return Err(segment.corrupt(cursor.at, what)),
            };
            if let LogRecord::Data { offset, lengths, mut bytes, .. } = record {
                if offset >= committed {
                    return Ok(()); // staged
                }
                let mut end = offset;
                for length in lengths.iter() {
                    let (payload, rest) = bytes.split_at(length); // the sum was checked
                    bytes = rest;
                    end += length as u64;
                    if end <= cursor.position {
                        continue;
                    }
                    if !take(end, payload) {
                        return Ok(());
                    }
                    cursor.position = end;
                    cursor.records += 1;
                }
                cursor.position = cursor.position.max(end);
            }
            cursor.at += length as u64;
        }
    }
}
