//! Runs: consecutive MESSAGE frames of one stream, handed over together without copying or indexing them.

use std::fmt;

use bytes::Bytes;

use crate::frame::{FrameError, PREFIX, peek};
use crate::message::{DecodeError, MESSAGE_OVERHEAD, tag};
use crate::wire::StreamId;

/// One record of a [`Run`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunRecord<'a> {
    /// Id of the record; on sink connections the offset of its first byte.
    pub id: u64,
    /// Milliseconds since the epoch, 0 for none.
    pub time: i64,
    /// Key; empty for none.
    pub key: &'a [u8],
    /// Payload; never empty in a run.
    pub payload: &'a [u8],
}

/// Consecutive records of one stream, whose whole frames share one buffer. Never empty.
#[derive(Clone, PartialEq, Eq)]
pub struct Run {
    stream: StreamId,
    frames: Bytes,
    len: usize,
    payload_bytes: usize,
    first: u64,
    last: u64,
}

impl Run {
    pub(crate) fn new(stream: StreamId, frames: Bytes, extent: &Extent) -> Run {
        let Extent { bytes: _, len, payload_bytes, first, last } = *extent;
        Run { stream, frames, len, payload_bytes, first, last }
    }

    /// The stream.
    pub fn stream(&self) -> StreamId {
        self.stream
    }

    /// Number of records, at least 1.
    #[allow(clippy::len_without_is_empty)] // a run is never empty
    pub fn len(&self) -> usize {
        self.len
    }

    /// Bytes of all payloads.
    pub fn payload_bytes(&self) -> usize {
        self.payload_bytes
    }

    /// Bytes of the frames on the wire. A run that is kept keeps the whole buffer of its read alive, about 64 KiB.
    pub fn wire_bytes(&self) -> usize {
        self.frames.len()
    }

    /// Id of the first record; on sink connections the offset of the run's first byte.
    pub fn first_id(&self) -> u64 {
        self.first
    }

    /// Id of the last record.
    pub fn last_id(&self) -> u64 {
        self.last
    }

    /// The records in order.
    pub fn iter(&self) -> Records<'_> {
        Records { rest: &self.frames, left: self.len }
    }

    /// The payloads in order, each sharing the run's buffer.
    pub fn payloads(&self) -> impl Iterator<Item = Bytes> + '_ {
        self.iter().map(|record| self.frames.slice_ref(record.payload))
    }
}

impl<'a> IntoIterator for &'a Run {
    type Item = RunRecord<'a>;
    type IntoIter = Records<'a>;

    fn into_iter(self) -> Records<'a> {
        self.iter()
    }
}

impl fmt::Debug for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Run")
            .field("stream", &self.stream)
            .field("len", &self.len)
            .field("payload_bytes", &self.payload_bytes)
            .field("first", &self.first)
            .field("last", &self.last)
            .finish_non_exhaustive()
    }
}

/// Iterator over the records of a [`Run`].
#[derive(Clone, Debug)]
pub struct Records<'a> {
    rest: &'a [u8],
    left: usize,
}

impl<'a> Iterator for Records<'a> {
    type Item = RunRecord<'a>;

    #[inline]
    fn next(&mut self) -> Option<RunRecord<'a>> {
        // The frames were checked when the run was cut.
        let (prefix, rest) = self.rest.split_first_chunk::<PREFIX>()?;
        let (body, rest) = rest.split_at_checked(u32::from_be_bytes(*prefix) as usize)?;
        self.rest = rest;
        self.left -= 1;
        let data = Data::parse(body).ok()?;
        Some(RunRecord { id: data.id, time: data.time, key: data.key, payload: data.payload })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Records<'_> {}

/// A MESSAGE frame's fields, borrowed.
#[derive(Clone, Copy)]
pub(crate) struct Data<'a> {
    pub(crate) stream: StreamId,
    pub(crate) id: u64,
    pub(crate) time: i64,
    pub(crate) key: &'a [u8],
    pub(crate) payload: &'a [u8],
}

impl<'a> Data<'a> {
    /// Reads the body of a frame whose tag is MESSAGE.
    #[inline]
    pub(crate) fn parse(body: &'a [u8]) -> Result<Data<'a>, DecodeError> {
        let (head, rest) =
            body.split_first_chunk::<MESSAGE_OVERHEAD>().ok_or(DecodeError::Truncated("MESSAGE"))?;
        let word = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&head[at..at + 8]);
            u64::from_be_bytes(bytes)
        };
        let key = usize::from(u16::from_be_bytes([head[25], head[26]]));
        let (key, payload) = rest.split_at_checked(key).ok_or(DecodeError::Truncated("key"))?;
        Ok(Data { stream: StreamId(word(1)), id: word(9), time: word(17).cast_signed(), key, payload })
    }
}

/// How far a run reaches.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extent {
    pub(crate) bytes: usize,
    pub(crate) len: usize,
    pub(crate) payload_bytes: usize,
    pub(crate) first: u64,
    pub(crate) last: u64,
}

/// Measures the run that `input` starts with: whole MESSAGE frames, as long as `take` agrees. Stops without an error at
/// anything else; the caller meets it as the next frame. `None` if not even the first frame belongs to it.
#[inline]
pub(crate) fn measure(input: &[u8], limit: u32, mut take: impl FnMut(&Data<'_>) -> bool) -> Option<Extent> {
    let mut extent: Option<Extent> = None;
    let mut at = 0;
    while let Ok(Some(body)) = peek(&input[at..], limit) {
        if body[0] != tag::MESSAGE {
            break;
        }
        let Ok(data) = Data::parse(body) else { break };
        if !take(&data) {
            break;
        }
        at += PREFIX + body.len();
        let run = extent.get_or_insert(Extent {
            bytes: 0,
            len: 0,
            payload_bytes: 0,
            first: data.id,
            last: data.id,
        });
        run.bytes = at;
        run.len += 1;
        run.payload_bytes += data.payload.len();
        run.last = data.id;
    }
    extent
}

/// What a session's input starts with.
pub(crate) enum Next {
    /// No whole frame yet.
    Incomplete,
    /// A MESSAGE, still in the input.
    Data,
    /// A frame of another kind of this body length, still in the input.
    Control(usize),
}

#[inline]
pub(crate) fn next(input: &[u8], limit: u32) -> Result<Next, FrameError> {
    Ok(match peek(input, limit)? {
        None => Next::Incomplete,
        Some(body) if body[0] == tag::MESSAGE => Next::Data,
        Some(body) => Next::Control(body.len()),
    })
}
