//! Records travel in batches: one arena of bytes and an index into it.

use std::ops::Range;

use bytes::{Bytes, BytesMut};

/// Where a record stands in its stream. Ids on the wire; they start at 1 and strictly increase.
pub type Position = u64;

/// Event time of a record without one, as on the wire.
pub const NO_TIME: i64 = 0;

/// One record of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Its place in the stream.
    pub position: Position,
    /// Milliseconds since the Unix epoch; [`NO_TIME`] for none.
    pub time: i64,
    /// Key; empty for none.
    pub key: &'a [u8],
    /// Payload.
    pub payload: &'a [u8],
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    position: Position,
    time: i64,
    key: Range<u32>,
    payload: Range<u32>,
}

/// Records of one stream in order, their bytes in one arena of at most 4 GiB.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    arena: Bytes,
    index: Vec<Entry>,
}

impl Batch {
    /// Number of records.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// True without records.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// Bytes of all keys and payloads.
    pub fn bytes(&self) -> usize {
        self.arena.len()
    }

    /// Record `i`; `None` past the end.
    pub fn get(&self, i: usize) -> Option<Record<'_>> {
        self.index.get(i).map(|entry| self.record(entry))
    }

    /// The records from number `start` on.
    pub fn iter_from(&self, start: usize) -> impl ExactSizeIterator<Item = Record<'_>> + Clone {
        self.index.get(start..).unwrap_or_default().iter().map(|entry| self.record(entry))
    }

    /// All records.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Record<'_>> + Clone {
        self.iter_from(0)
    }

    /// Position of the last record.
    pub fn last_position(&self) -> Option<Position> {
        self.index.last().map(|entry| entry.position)
    }

    /// The payload of record `i` without copying.
    pub fn payload(&self, i: usize) -> Option<Bytes> {
        let range = &self.index.get(i)?.payload;
        Some(self.arena.slice(range.start as usize..range.end as usize))
    }

    fn record(&self, entry: &Entry) -> Record<'_> {
        let bytes = |range: &Range<u32>| self.arena.get(range.start as usize..range.end as usize);
        Record {
            position: entry.position,
            time: entry.time,
            key: bytes(&entry.key).unwrap_or_default(),
            payload: bytes(&entry.payload).unwrap_or_default(),
        }
    }
}

/// Collects records into a [`Batch`]; its buffers are used again once earlier batches are dropped.
#[derive(Debug, Default)]
pub struct BatchBuilder {
    arena: BytesMut,
    index: Vec<Entry>,
}

impl BatchBuilder {
    /// Number of records collected.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// True without records.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// Bytes collected.
    pub fn bytes(&self) -> usize {
        self.arena.len()
    }

    /// Makes room for `bytes` at once, so that a batch of known size grows its arena once.
    pub fn reserve(&mut self, records: usize, bytes: usize) {
        self.index.reserve(records);
        self.arena.reserve(bytes);
    }

    /// Adds a record; the bytes are copied once.
    pub fn push(&mut self, record: Record<'_>) {
        let start = self.arena.len() as u32;
        self.arena.extend_from_slice(record.key);
        let middle = self.arena.len() as u32;
        self.arena.extend_from_slice(record.payload);
        let end = self.arena.len() as u32;
        self.index.push(Entry {
            position: record.position,
            time: record.time,
            key: start..middle,
            payload: middle..end,
        });
    }

    /// The batch collected so far; the builder is empty afterwards.
    pub fn finish(&mut self) -> Batch {
        let capacity = self.index.len();
        let index = std::mem::replace(&mut self.index, Vec::with_capacity(capacity));
        Batch { arena: self.arena.split().freeze(), index }
    }
}
