//! Messages of the connector protocol (§2.3). Decoding borrows from the frame, encoding appends to a buffer.

use bytes::{BufMut, Bytes, BytesMut};

pub use crate::wire::DecodeError;
use crate::wire::{EncodeError, Fields, StreamId, check_str16, position, put_str16, raw_position};

/// Version in HELLO on source connections (§7.1).
pub const SOURCE_VERSION: &[u8] = b"0.0.1";

/// Version in HELLO on sink connections (§7.1).
pub const SINK_VERSION: &[u8] = b"v0.0.1";

/// Bytes of a MESSAGE body beside key and payload.
pub const MESSAGE_OVERHEAD: usize = 27;

/// Tags of the frames.
pub mod tag {
    /// HELLO.
    pub const HELLO: u8 = 0;
    /// OK.
    pub const OK: u8 = 1;
    /// ERROR.
    pub const ERROR: u8 = 2;
    /// NOTIFY.
    pub const NOTIFY: u8 = 3;
    /// `NOTIFY_ACK`.
    pub const NOTIFY_ACK: u8 = 4;
    /// MESSAGE.
    pub const MESSAGE: u8 = 5;
    /// ACK.
    pub const ACK: u8 = 6;
    /// RESTART.
    pub const RESTART: u8 = 7;
    /// `EOS_MESSAGE`.
    pub const EOS: u8 = 8;
    /// `WORKERS_LEFT`, which only the Pony codec knows and nobody sends.
    pub const WORKERS_LEFT: u8 = 9;
}

/// One frame's content. Text stays raw bytes (§2.5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// First frame of a connection. Its `Debug` would show the cookie: never log it.
    Hello {
        /// [`SOURCE_VERSION`] or [`SINK_VERSION`].
        version: Bytes,
        /// The shared secret.
        cookie: Bytes,
        /// Name of the program; on sink connections of the Wallaroo application.
        program: Bytes,
        /// Name of the instance; on sink connections of the worker.
        instance: Bytes,
    },
    /// HELLO accepted.
    Ok {
        /// Initial credits.
        credits: u32,
    },
    /// The session is over.
    Error {
        /// Why.
        message: Bytes,
    },
    /// Asks to open a stream.
    Notify {
        /// Identity.
        stream: StreamId,
        /// Name for logs.
        name: Bytes,
        /// The sender's own idea of the last processed id.
        position: Option<u64>,
    },
    /// Answer to NOTIFY.
    NotifyAck {
        /// Only the byte 1 counts as success (§7.14).
        success: bool,
        /// The stream.
        stream: StreamId,
        /// Last processed id.
        position: Option<u64>,
    },
    /// A record, output bytes, or an inner message of two-phase commit.
    Data {
        /// The stream.
        stream: StreamId,
        /// Id of the record; on sink connections the offset of the first payload byte.
        id: u64,
        /// Milliseconds since the epoch, 0 for none.
        time: i64,
        /// Key; absent and empty are the same.
        key: Bytes,
        /// Payload; absent and empty are the same.
        payload: Bytes,
    },
    /// Credits and acknowledged positions.
    Ack {
        /// Credits granted.
        credits: u32,
        /// Last processed id per stream, inclusive.
        positions: Positions,
    },
    /// The session is over; continue elsewhere.
    Restart {
        /// `host:port`; `None` for the same endpoint again.
        address: Option<Bytes>,
    },
    /// No more records on this stream.
    Eos {
        /// The stream.
        stream: StreamId,
    },
    /// Workers that left the cluster (outer form, never sent by Wallaroo).
    WorkersLeft {
        /// Number of the request.
        rtag: u64,
        /// Names.
        workers: Vec<Bytes>,
    },
}

/// The list of an ACK, read in place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Positions(Bytes);

impl Positions {
    /// Bytes of one entry.
    const ENTRY: usize = 16;

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.0.len() / Positions::ENTRY
    }

    /// True without entries.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Entries in the sender's order.
    pub fn iter(&self) -> impl Iterator<Item = (StreamId, Option<u64>)> + '_ {
        self.0.chunks_exact(Positions::ENTRY).map(|entry| {
            let (stream, raw) = entry.split_at(8);
            (StreamId(be_u64(stream)), position(be_u64(raw)))
        })
    }
}

impl FromIterator<(StreamId, Option<u64>)> for Positions {
    fn from_iter<I: IntoIterator<Item = (StreamId, Option<u64>)>>(entries: I) -> Positions {
        let mut bytes = BytesMut::new();
        for (stream, position) in entries {
            bytes.put_u64(stream.0);
            bytes.put_u64(raw_position(position));
        }
        Positions(bytes.freeze())
    }
}

fn be_u64(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |value, byte| (value << 8) | u64::from(*byte))
}

impl Message {
    /// Reads a frame's body (without its length prefix). Bytes beyond the last field are ignored (§2.5).
    pub fn decode(body: Bytes) -> Result<Message, DecodeError> {
        let mut fields = Fields(body);
        Ok(match fields.u8("tag")? {
            tag::HELLO => Message::Hello {
                version: fields.str16("version")?,
                cookie: fields.str16("cookie")?,
                program: fields.str16("program_name")?,
                instance: fields.str16("instance_name")?,
            },
            tag::OK => Message::Ok { credits: fields.u32("initial_credits")? },
            tag::ERROR => Message::Error { message: fields.str16("message")? },
            tag::NOTIFY => Message::Notify {
                stream: StreamId(fields.u64("stream_id")?),
                name: fields.str16("stream_name")?,
                position: position(fields.u64("point_of_ref")?),
            },
            tag::NOTIFY_ACK => Message::NotifyAck {
                success: fields.u8("success")? == 1,
                stream: StreamId(fields.u64("stream_id")?),
                position: position(fields.u64("point_of_ref")?),
            },
            tag::MESSAGE => Message::Data {
                stream: StreamId(fields.u64("stream_id")?),
                id: fields.u64("message_id")?,
                time: fields.i64("event_time")?,
                key: fields.str16("key")?,
                payload: fields.rest(),
            },
            tag::ACK => {
                let credits = fields.u32("credits")?;
                let count = fields.u32("count")? as usize;
                let length = count.checked_mul(Positions::ENTRY).ok_or(DecodeError::Truncated("acks"))?;
                Message::Ack { credits, positions: Positions(fields.bytes(length, "acks")?) }
            }
            tag::RESTART => {
                let address = if fields.0.is_empty() {
                    Bytes::new() // the proposal's form: the tag alone
                } else {
                    let length = fields.u32("address")? as usize;
                    fields.bytes(length, "address")?
                };
                Message::Restart { address: (!address.is_empty()).then_some(address) }
            }
            tag::EOS => Message::Eos { stream: StreamId(fields.u64("stream_id")?) },
            tag::WORKERS_LEFT => {
                let (rtag, workers) = workers_left(&mut fields)?;
                Message::WorkersLeft { rtag, workers }
            }
            unknown => return Err(DecodeError::UnknownTag(unknown)),
        })
    }

    /// Length of the body.
    pub fn body_len(&self) -> Result<usize, EncodeError> {
        let fields = match self {
            Message::Hello { version, cookie, program, instance } => {
                check_str16(version, "version")?
                    + check_str16(cookie, "cookie")?
                    + check_str16(program, "program_name")?
                    + check_str16(instance, "instance_name")?
            }
            Message::Ok { .. } => 4,
            Message::Error { message } => check_str16(message, "message")?,
            Message::Notify { name, .. } => 16 + check_str16(name, "stream_name")?,
            Message::NotifyAck { .. } => 17,
            Message::Data { key, payload, .. } => 24 + check_str16(key, "key")? + payload.len(),
            Message::Ack { positions, .. } => 8 + positions.0.len(),
            Message::Restart { address } => 4 + address.as_ref().map_or(0, Bytes::len),
            Message::Eos { .. } => 8,
            Message::WorkersLeft { workers, .. } => 12 + names_len(workers)?,
        };
        let length = 1 + fields;
        if length > u32::MAX as usize { Err(EncodeError::FrameTooLong { length }) } else { Ok(length) }
    }

    /// Appends the whole frame, length prefix included. On error nothing was appended.
    pub fn encode(&self, out: &mut BytesMut) -> Result<(), EncodeError> {
        let length = self.body_len()?;
        out.reserve(4 + length);
        out.put_u32(length as u32);
        match self {
            Message::Hello { version, cookie, program, instance } => {
                out.put_u8(tag::HELLO);
                put_str16(out, version);
                put_str16(out, cookie);
                put_str16(out, program);
                put_str16(out, instance);
            }
            Message::Ok { credits } => {
                out.put_u8(tag::OK);
                out.put_u32(*credits);
            }
            Message::Error { message } => {
                out.put_u8(tag::ERROR);
                put_str16(out, message);
            }
            Message::Notify { stream, name, position } => {
                out.put_u8(tag::NOTIFY);
                out.put_u64(stream.0);
                put_str16(out, name);
                out.put_u64(raw_position(*position));
            }
            Message::NotifyAck { success, stream, position } => {
                out.put_u8(tag::NOTIFY_ACK);
                out.put_u8(u8::from(*success));
                out.put_u64(stream.0);
                out.put_u64(raw_position(*position));
            }
            Message::Data { stream, id, time, key, payload } => {
                out.put_u8(tag::MESSAGE);
                out.put_u64(stream.0);
                out.put_u64(*id);
                out.put_i64(*time);
                put_str16(out, key);
                out.put_slice(payload);
            }
            Message::Ack { credits, positions } => {
                out.put_u8(tag::ACK);
                out.put_u32(*credits);
                out.put_u32(positions.len() as u32);
                out.put_slice(&positions.0);
            }
            Message::Restart { address } => {
                let address = address.as_deref().unwrap_or_default();
                out.put_u8(tag::RESTART);
                out.put_u32(address.len() as u32);
                out.put_slice(address);
            }
            Message::Eos { stream } => {
                out.put_u8(tag::EOS);
                out.put_u64(stream.0);
            }
            Message::WorkersLeft { rtag, workers } => {
                out.put_u8(tag::WORKERS_LEFT);
                put_workers_left(out, *rtag, workers);
            }
        }
        Ok(())
    }

    /// Name of the frame, as in the specification.
    pub fn name(&self) -> &'static str {
        match self {
            Message::Hello { .. } => "HELLO",
            Message::Ok { .. } => "OK",
            Message::Error { .. } => "ERROR",
            Message::Notify { .. } => "NOTIFY",
            Message::NotifyAck { .. } => "NOTIFY_ACK",
            Message::Data { .. } => "MESSAGE",
            Message::Ack { .. } => "ACK",
            Message::Restart { .. } => "RESTART",
            Message::Eos { .. } => "EOS",
            Message::WorkersLeft { .. } => "WORKERS_LEFT",
        }
    }
}

/// Appends one MESSAGE frame whose lengths the caller has checked: key at most 65,535, body at most `u32::MAX`.
#[inline]
pub(crate) fn put_data(out: &mut BytesMut, stream: StreamId, id: u64, time: i64, key: &[u8], payload: &[u8]) {
    let length = (MESSAGE_OVERHEAD + key.len() + payload.len()) as u32;
    let mut head = [0; 4 + MESSAGE_OVERHEAD];
    head[..4].copy_from_slice(&length.to_be_bytes());
    head[4] = tag::MESSAGE;
    head[5..13].copy_from_slice(&stream.0.to_be_bytes());
    head[13..21].copy_from_slice(&id.to_be_bytes());
    head[21..29].copy_from_slice(&time.to_be_bytes());
    head[29..].copy_from_slice(&(key.len() as u16).to_be_bytes());
    out.extend_from_slice(&head);
    out.extend_from_slice(key);
    out.extend_from_slice(payload);
}

/// A list of names: its entries are read before anything is allocated for them, so a wrong count costs nothing.
pub(crate) fn names(fields: &mut Fields, field: &'static str) -> Result<Vec<Bytes>, DecodeError> {
    let count = fields.u32("count")? as usize;
    if count > fields.0.len() / 2 {
        return Err(DecodeError::Truncated(field));
    }
    (0..count).map(|_| fields.str16(field)).collect()
}

pub(crate) fn names_len(names: &[Bytes]) -> Result<usize, EncodeError> {
    names.iter().try_fold(0, |sum, name| Ok(sum + check_str16(name, "name")?))
}

pub(crate) fn put_names(out: &mut BytesMut, names: &[Bytes]) {
    out.put_u32(names.len() as u32);
    for name in names {
        put_str16(out, name);
    }
}

pub(crate) fn workers_left(fields: &mut Fields) -> Result<(u64, Vec<Bytes>), DecodeError> {
    Ok((fields.u64("rtag")?, names(fields, "worker")?))
}

pub(crate) fn put_workers_left(out: &mut BytesMut, rtag: u64, workers: &[Bytes]) {
    out.put_u64(rtag);
    put_names(out, workers);
}
