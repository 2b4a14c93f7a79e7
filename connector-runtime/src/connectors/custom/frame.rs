//! Frames of the custom-connector protocol: bytes to values and back, without I/O.
//!
//! A frame is its length as 4 bytes (of what follows, at most [`MAX_FRAME_BYTES`]), a byte that says its type, and its body. Numbers
//! are big-endian and unsigned but for times. A text is its length as 2 bytes and UTF-8. The specification with an example of each
//! frame is `docs/custom-protocol.md`; a test proves its examples.

use std::ops::Range;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::record::{Batch, BatchBuilder, Position, Record};

/// Longest frame in bytes, without its own length.
pub const MAX_FRAME_BYTES: usize = 1_048_576;

/// Bytes of a record in a BATCH frame beside key and payload: position, time and two lengths.
pub const RECORD_OVERHEAD: usize = 8 + 8 + 4 + 4;

/// Longest cursor in bytes.
pub const MAX_CURSOR_BYTES: usize = crate::position_log::MAX_CURSOR_BYTES;

/// Bytes before the records of a BATCH frame, at most: type, stream, reading, place with the longest cursor, count.
const BATCH_HEAD: usize = 1 + 4 + 4 + 1 + 2 + MAX_CURSOR_BYTES + 4;

/// Key and payload bytes of one record, at most, so that it fits a frame of its own.
pub const MAX_RECORD_BYTES: usize = MAX_FRAME_BYTES - BATCH_HEAD - RECORD_OVERHEAD;

/// Stream number that means none.
const NO_STREAM: u32 = u32::MAX;

/// A place in a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Place {
    /// Nowhere yet.
    #[default]
    None,
    /// At a 64-bit position, with `positions: Ordered`.
    Position(Position),
    /// Behind the record that this text of the process's own stands for, with `positions: Opaque`.
    Cursor(String),
}

/// What the other side is asked for and tells the end of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// CHECK.
    Check,
    /// CLOSE.
    Close,
    /// FLUSH.
    Flush,
    /// ARCHIVE.
    Archive,
}

/// Records of one stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Records {
    /// Number of the stream.
    pub stream: u32,
    /// Number of the RESUME that they follow; 0 to a sink.
    pub reading: u32,
    /// With `positions: Opaque`: the cursor behind the last record.
    pub end: Place,
    /// How many.
    pub count: u32,
    /// The records one after the other, as on the wire.
    pub bytes: Bytes,
}

/// A frame. Who sends it stands in brackets: R the runtime, C the custom connector's process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// (R, C) JSON; the first frame of each side.
    Hello(String),
    /// (R) Asks for PONG.
    Ping(u64),
    /// (C) Answers PING with its number.
    Pong(u64),
    /// (R, C) Trouble; of one stream or of everything.
    Error {
        /// The stream; none: everything.
        stream: Option<u32>,
        /// Nothing will change until somebody changes something.
        permanent: bool,
        /// What is wrong, for people.
        text: String,
    },
    /// (R) Dial the system, read and write nothing.
    Check,
    /// (R) Make everything durable and leave, within these milliseconds.
    Close(u32),
    /// (C) Done with a request.
    Done(Request),
    /// (C) The external system answers, for the first time or again.
    Ready,
    /// (C) A stream exists.
    Open {
        /// Its number, chosen by the process, once a connection.
        stream: u32,
        /// Its lasting name.
        name: String,
        /// With `positions: Ordered`: what the process itself committed earlier.
        committed: Place,
    },
    /// (R) Read a stream from behind a place; nothing of an earlier reading may follow.
    Resume {
        /// The stream.
        stream: u32,
        /// Number of this reading; goes into BATCH and `BAD_RECORD`.
        reading: u32,
        /// Behind it; none: where the process committed, or its start.
        after: Place,
    },
    /// (R to a sink, C from a source) Records.
    Batch(Records),
    /// (R) This much more may be sent.
    Credit {
        /// Records.
        records: u32,
        /// Key and payload bytes.
        bytes: u32,
    },
    /// (C) A record that cannot be handed over.
    BadRecord {
        /// The stream.
        stream: u32,
        /// Its reading.
        reading: u32,
        /// With `positions: Ordered`: its position, else 0.
        position: Position,
        /// What is wrong with it.
        reason: String,
        /// Its bytes, as far as known.
        payload: Bytes,
    },
    /// (R) Wallaroo has everything up to a place: the system may forget it.
    Commit {
        /// The stream.
        stream: u32,
        /// The place.
        place: Place,
    },
    /// (C) The system takes the stream away in these milliseconds.
    Revoke {
        /// The stream.
        stream: u32,
        /// Milliseconds.
        millis: u32,
    },
    /// (C) The stream is gone.
    Lost(u32),
    /// (C) The stream has no more records, ever.
    End(u32),
    /// (R) Done with a stream.
    Release(u32),
    /// (R) Send nothing of the stream.
    Pause(u32),
    /// (R) Go on with it.
    Unpause(u32),
    /// (R) Records of this worker follow under this number.
    Attach {
        /// Number, chosen by the runtime, once a connection.
        stream: u32,
        /// Incarnation of the worker's cluster.
        incarnation: u64,
        /// Name of the worker.
        worker: String,
    },
    /// (C) Answers ATTACH.
    Attached {
        /// The stream.
        stream: u32,
        /// With `positions: Ordered`: what the target holds.
        place: Place,
    },
    /// (C) Answers BATCH: everything is accepted but these.
    Written {
        /// The stream.
        stream: u32,
        /// Number of the record in its frame, and why it is refused.
        rejected: Vec<(u32, String)>,
    },
    /// (C) Everything up to the position is durable at the target.
    Durable {
        /// The stream.
        stream: u32,
        /// The position.
        position: Position,
    },
    /// (R) Make everything durable, within these milliseconds.
    Flush(u32),
    /// (R) Forget the stream: its cluster is gone.
    Archive(u32),
}

/// Bytes that are no frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Empty, or beyond the limit.
    #[error("a frame of {0} bytes; it has at least 1 and at most {MAX_FRAME_BYTES}")]
    Length(u32),
    /// Unknown type.
    #[error("frame type {0:#04x} is none of the protocol")]
    Type(u8),
    /// The body is shorter or longer than its type wants.
    #[error("{0}: the body is cut off or too long")]
    Body(&'static str),
    /// A text is no UTF-8.
    #[error("{0}: a text is no UTF-8")]
    Text(&'static str),
    /// A byte that stands for one of several things stands for none.
    #[error("{0}: byte {1} stands for nothing there")]
    Value(&'static str, u8),
}

const HELLO: u8 = 0x01;
const PING: u8 = 0x02;
const PONG: u8 = 0x03;
const ERROR: u8 = 0x04;
const CHECK: u8 = 0x05;
const CLOSE: u8 = 0x06;
const DONE: u8 = 0x07;
const READY: u8 = 0x08;
const OPEN: u8 = 0x10;
const RESUME: u8 = 0x11;
const BATCH: u8 = 0x12;
const CREDIT: u8 = 0x13;
const BAD_RECORD: u8 = 0x14;
const COMMIT: u8 = 0x15;
const REVOKE: u8 = 0x16;
const LOST: u8 = 0x17;
const END: u8 = 0x18;
const RELEASE: u8 = 0x19;
const PAUSE: u8 = 0x1a;
const UNPAUSE: u8 = 0x1b;
const ATTACH: u8 = 0x20;
const ATTACHED: u8 = 0x21;
const WRITTEN: u8 = 0x22;
const DURABLE: u8 = 0x23;
const FLUSH: u8 = 0x24;
const ARCHIVE: u8 = 0x25;

impl Request {
    fn code(self) -> u8 {
        match self {
            Request::Check => CHECK,
            Request::Close => CLOSE,
            Request::Flush => FLUSH,
            Request::Archive => ARCHIVE,
        }
    }
}

impl Frame {
    /// Name of the frame's type, as in the specification.
    pub fn name(&self) -> &'static str {
        name(self.code())
    }

    fn code(&self) -> u8 {
        match self {
            Frame::Hello(_) => HELLO,
            Frame::Ping(_) => PING,
            Frame::Pong(_) => PONG,
            Frame::Error { .. } => ERROR,
            Frame::Check => CHECK,
            Frame::Close(_) => CLOSE,
            Frame::Done(_) => DONE,
            Frame::Ready => READY,
            Frame::Open { .. } => OPEN,
            Frame::Resume { .. } => RESUME,
            Frame::Batch(_) => BATCH,
            Frame::Credit { .. } => CREDIT,
            Frame::BadRecord { .. } => BAD_RECORD,
            Frame::Commit { .. } => COMMIT,
            Frame::Revoke { .. } => REVOKE,
            Frame::Lost(_) => LOST,
            Frame::End(_) => END,
            Frame::Release(_) => RELEASE,
            Frame::Pause(_) => PAUSE,
            Frame::Unpause(_) => UNPAUSE,
            Frame::Attach { .. } => ATTACH,
            Frame::Attached { .. } => ATTACHED,
            Frame::Written { .. } => WRITTEN,
            Frame::Durable { .. } => DURABLE,
            Frame::Flush(_) => FLUSH,
            Frame::Archive(_) => ARCHIVE,
        }
    }

    /// Appends the frame with its length. Texts are cut at 65,535 bytes; a BATCH must fit the limit (see [`put_batch`]).
    pub fn put(&self, out: &mut BytesMut) {
        let start = begin(out, self.code());
        match self {
            Frame::Hello(json) => out.put_slice(json.as_bytes()),
            Frame::Ping(number) | Frame::Pong(number) => out.put_u64(*number),
            Frame::Error { stream, permanent, text } => {
                out.put_u8(u8::from(*permanent));
                out.put_u32(stream.unwrap_or(NO_STREAM));
                put_text(out, text);
            }
            Frame::Check | Frame::Ready => {}
            Frame::Close(millis) | Frame::Flush(millis) => out.put_u32(*millis),
            Frame::Done(request) => out.put_u8(request.code()),
            Frame::Open { stream, name, committed } => {
                out.put_u32(*stream);
                put_place(out, committed);
                put_text(out, name);
            }
            Frame::Resume { stream, reading, after } => {
                out.put_u32(*stream);
                out.put_u32(*reading);
                put_place(out, after);
            }
            Frame::Batch(Records { stream, reading, end, count, bytes }) => {
                put_head(out, *stream, *reading, end, *count);
                out.put_slice(bytes);
            }
            Frame::Credit { records, bytes } => {
                out.put_u32(*records);
                out.put_u32(*bytes);
            }
            Frame::BadRecord { stream, reading, position, reason, payload } => {
                out.put_u32(*stream);
                out.put_u32(*reading);
                out.put_u64(*position);
                put_text(out, reason);
                out.put_slice(payload);
            }
            Frame::Commit { stream, place } | Frame::Attached { stream, place } => {
                out.put_u32(*stream);
                put_place(out, place);
            }
            Frame::Revoke { stream, millis } => {
                out.put_u32(*stream);
                out.put_u32(*millis);
            }
            Frame::Lost(stream)
            | Frame::End(stream)
            | Frame::Release(stream)
            | Frame::Pause(stream)
            | Frame::Unpause(stream)
            | Frame::Archive(stream) => out.put_u32(*stream),
            Frame::Attach { stream, incarnation, worker } => {
                out.put_u32(*stream);
                out.put_u64(*incarnation);
                put_text(out, worker);
            }
            Frame::Written { stream, rejected } => {
                out.put_u32(*stream);
                out.put_u32(length(rejected.len()));
                for (index, reason) in rejected {
                    out.put_u32(*index);
                    put_text(out, reason);
                }
            }
            Frame::Durable { stream, position } => {
                out.put_u32(*stream);
                out.put_u64(*position);
            }
        }
        finish(out, start);
    }

    /// Takes the first frame off `buffer`; `None` while it is not whole.
    ///
    /// # Errors
    /// Bytes that are no frame; nothing that follows can be understood then. A length beyond the limit is refused before room
    /// is made for it.
    pub fn take(buffer: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
        let Some(head) = buffer.first_chunk::<4>() else { return Ok(None) };
        let announced = u32::from_be_bytes(*head);
        let bytes = announced as usize;
        if bytes == 0 || bytes > MAX_FRAME_BYTES {
            return Err(FrameError::Length(announced));
        }
        if buffer.len() < 4 + bytes {
            buffer.reserve(4 + bytes - buffer.len());
            return Ok(None);
        }
        let mut frame = buffer.split_to(4 + bytes).freeze();
        frame.advance(4);
        decode(frame).map(Some)
    }
}

fn decode(mut frame: Bytes) -> Result<Frame, FrameError> {
    let code = frame.get_u8();
    let mut body = Body { name: name(code), rest: frame };
    let frame = match code {
        HELLO => Frame::Hello(body.rest_as_text()?),
        PING => Frame::Ping(body.u64()?),
        PONG => Frame::Pong(body.u64()?),
        ERROR => {
            let permanent = match body.u8()? {
                0 => false,
                1 => true,
                other => return Err(FrameError::Value(body.name, other)),
            };
            let stream = Some(body.u32()?).filter(|stream| *stream != NO_STREAM);
            Frame::Error { stream, permanent, text: body.text()? }
        }
        CHECK => Frame::Check,
        CLOSE => Frame::Close(body.u32()?),
        DONE => Frame::Done(match body.u8()? {
            CHECK => Request::Check,
            CLOSE => Request::Close,
            FLUSH => Request::Flush,
            ARCHIVE => Request::Archive,
            other => return Err(FrameError::Value(body.name, other)),
        }),
        READY => Frame::Ready,
        OPEN => {
            let (stream, committed) = (body.u32()?, body.place()?);
            Frame::Open { stream, name: body.text()?, committed }
        }
        RESUME => Frame::Resume { stream: body.u32()?, reading: body.u32()?, after: body.place()? },
        BATCH => {
            let (stream, reading, end, count) = (body.u32()?, body.u32()?, body.place()?, body.u32()?);
            Frame::Batch(Records { stream, reading, end, count, bytes: std::mem::take(&mut body.rest) })
        }
        CREDIT => Frame::Credit { records: body.u32()?, bytes: body.u32()? },
        BAD_RECORD => Frame::BadRecord {
            stream: body.u32()?,
            reading: body.u32()?,
            position: body.u64()?,
            reason: body.text()?,
            payload: std::mem::take(&mut body.rest),
        },
        COMMIT => Frame::Commit { stream: body.u32()?, place: body.place()? },
        REVOKE => Frame::Revoke { stream: body.u32()?, millis: body.u32()? },
        LOST => Frame::Lost(body.u32()?),
        END => Frame::End(body.u32()?),
        RELEASE => Frame::Release(body.u32()?),
        PAUSE => Frame::Pause(body.u32()?),
        UNPAUSE => Frame::Unpause(body.u32()?),
        ATTACH => Frame::Attach { stream: body.u32()?, incarnation: body.u64()?, worker: body.text()? },
        ATTACHED => Frame::Attached { stream: body.u32()?, place: body.place()? },
        WRITTEN => {
            let (stream, count) = (body.u32()?, body.u32()?);
            let mut rejected = Vec::new();
            for _ in 0..count {
                rejected.push((body.u32()?, body.text()?));
            }
            Frame::Written { stream, rejected }
        }
        DURABLE => Frame::Durable { stream: body.u32()?, position: body.u64()? },
        FLUSH => Frame::Flush(body.u32()?),
        ARCHIVE => Frame::Archive(body.u32()?),
        other => return Err(FrameError::Type(other)),
    };
    if body.rest.is_empty() { Ok(frame) } else { Err(FrameError::Body(body.name)) }
}

fn name(code: u8) -> &'static str {
    match code {
        HELLO => "HELLO",
        PING => "PING",
        PONG => "PONG",
        ERROR => "ERROR",
        CHECK => "CHECK",
        CLOSE => "CLOSE",
        DONE => "DONE",
        READY => "READY",
        OPEN => "OPEN",
        RESUME => "RESUME",
        BATCH => "BATCH",
        CREDIT => "CREDIT",
        BAD_RECORD => "BAD_RECORD",
        COMMIT => "COMMIT",
        REVOKE => "REVOKE",
        LOST => "LOST",
        END => "END",
        RELEASE => "RELEASE",
        PAUSE => "PAUSE",
        UNPAUSE => "UNPAUSE",
        ATTACH => "ATTACH",
        ATTACHED => "ATTACHED",
        WRITTEN => "WRITTEN",
        DURABLE => "DURABLE",
        FLUSH => "FLUSH",
        ARCHIVE => "ARCHIVE",
        _ => "unknown frame",
    }
}

/// Appends one BATCH frame with the records from number `from` on, as many as fit. Returns the number behind the last one: `from` when that
/// record alone is longer than [`MAX_RECORD_BYTES`].
pub fn put_batch(
    out: &mut BytesMut,
    stream: u32,
    reading: u32,
    end: &Place,
    batch: &Batch,
    from: usize,
) -> usize {
    let (mut count, mut bytes) = (0, 0);
    for record in batch.iter_from(from) {
        let record = RECORD_OVERHEAD + record.key.len() + record.payload.len();
        if bytes + record > MAX_FRAME_BYTES - BATCH_HEAD {
            break;
        }
        count += 1;
        bytes += record;
    }
    if count == 0 {
        return from;
    }
    out.reserve(4 + BATCH_HEAD + bytes);
    let start = begin(out, BATCH);
    put_head(out, stream, reading, end, length(count));
    for record in batch.iter_from(from).take(count) {
        put_record(out, &record);
    }
    finish(out, start);
    from + count
}

/// Appends one record as in a BATCH frame.
fn put_record(out: &mut BytesMut, record: &Record<'_>) {
    out.put_u64(record.position);
    out.put_i64(record.time);
    out.put_u32(length(record.key.len()));
    out.put_u32(length(record.payload.len()));
    out.put_slice(record.key);
    out.put_slice(record.payload);
}

/// The records of a BATCH frame in order.
///
/// # Errors
/// Bytes that are not `count` records.
pub fn records(frame: &Records) -> Result<Vec<Record<'_>>, FrameError> {
    const CUT: FrameError = FrameError::Body("BATCH");
    let mut rest = &frame.bytes[..];
    // Each has its overhead, so a count beyond the bytes makes no room.
    let mut found = Vec::with_capacity((frame.count as usize).min(rest.len() / RECORD_OVERHEAD));
    for _ in 0..frame.count {
        let (head, behind) = rest.split_first_chunk::<RECORD_OVERHEAD>().ok_or(CUT)?;
        let number = |range: Range<usize>| {
            head[range].iter().fold(0_u64, |number, byte| number << 8 | u64::from(*byte))
        };
        let (key, payload) = (number(16..20) as usize, number(20..24) as usize);
        let (key, behind) = behind.split_at_checked(key).ok_or(CUT)?;
        let (payload, behind) = behind.split_at_checked(payload).ok_or(CUT)?;
        found.push(Record { position: number(0..8), time: number(8..16).cast_signed(), key, payload });
        rest = behind;
    }
    if rest.is_empty() { Ok(found) } else { Err(CUT) }
}

/// The records of a BATCH frame as a batch.
///
/// # Errors
/// As [`records`].
pub fn batch(frame: &Records) -> Result<Batch, FrameError> {
    let mut builder = BatchBuilder::default();
    let records = records(frame)?;
    builder.reserve(records.len(), frame.bytes.len());
    for record in records {
        builder.push(record);
    }
    Ok(builder.finish())
}

fn begin(out: &mut BytesMut, code: u8) -> usize {
    let start = out.len();
    out.put_u32(0);
    out.put_u8(code);
    start
}

fn finish(out: &mut BytesMut, start: usize) {
    let bytes = length(out.len() - start - 4);
    out[start..start + 4].copy_from_slice(&bytes.to_be_bytes());
}

fn put_head(out: &mut BytesMut, stream: u32, reading: u32, end: &Place, count: u32) {
    out.put_u32(stream);
    out.put_u32(reading);
    put_place(out, end);
    out.put_u32(count);
}

fn put_place(out: &mut BytesMut, place: &Place) {
    match place {
        Place::None => out.put_u8(0),
        Place::Position(position) => {
            out.put_u8(1);
            out.put_u64(*position);
        }
        Place::Cursor(cursor) => {
            out.put_u8(2);
            put_text(out, cursor);
        }
    }
}

fn put_text(out: &mut BytesMut, text: &str) {
    let text = &text[..text.floor_char_boundary(usize::from(u16::MAX))];
    out.put_u16(u16::try_from(text.len()).unwrap_or(u16::MAX));
    out.put_slice(text.as_bytes());
}

/// Everything in a frame is shorter than a frame.
fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// What is left of a body.
struct Body {
    name: &'static str,
    rest: Bytes,
}

impl Body {
    fn bytes(&mut self, bytes: usize) -> Result<Bytes, FrameError> {
        if self.rest.len() < bytes {
            return Err(FrameError::Body(self.name));
        }
        Ok(self.rest.split_to(bytes))
    }

    fn u8(&mut self) -> Result<u8, FrameError> {
        Ok(self.bytes(1)?.get_u8())
    }

    fn u32(&mut self) -> Result<u32, FrameError> {
        Ok(self.bytes(4)?.get_u32())
    }

    fn u64(&mut self) -> Result<u64, FrameError> {
        Ok(self.bytes(8)?.get_u64())
    }

    fn text(&mut self) -> Result<String, FrameError> {
        let bytes = self.bytes(2)?.get_u16();
        let bytes = self.bytes(usize::from(bytes))?;
        String::from_utf8(bytes.into()).map_err(|_| FrameError::Text(self.name))
    }

    fn rest_as_text(&mut self) -> Result<String, FrameError> {
        let bytes = std::mem::take(&mut self.rest);
        String::from_utf8(bytes.into()).map_err(|_| FrameError::Text(self.name))
    }

    fn place(&mut self) -> Result<Place, FrameError> {
        match self.u8()? {
            0 => Ok(Place::None),
            1 => Ok(Place::Position(self.u64()?)),
            2 => Ok(Place::Cursor(self.text()?)),
            other => Err(FrameError::Value(self.name, other)),
        }
    }
}

#[cfg(test)]
mod tests;
