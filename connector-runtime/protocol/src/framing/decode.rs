//! The reader of plain framings.

use std::ops::Range;

use bytes::{Buf as _, Bytes, BytesMut};

use super::{Endian, Framing, Width};
use crate::buffer::Input;

/// A record read from a plain framing; its parts share the input's buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// Milliseconds since the epoch; 0 where the framing has none.
    pub time: i64,
    /// Key (0.5.3: the partition); empty where the framing has none.
    pub key: Bytes,
    /// Payload; may be empty in the framings with metadata.
    pub payload: Bytes,
}

/// A record read from a plain framing, in the input's own memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Read<'a> {
    /// As [`Decoded::time`].
    pub time: i64,
    /// As [`Decoded::key`].
    pub key: &'a [u8],
    /// As [`Decoded::payload`].
    pub payload: &'a [u8],
    /// Bytes of its whole frame.
    pub frame: usize,
}

/// Bytes that do not follow the framing. The connection has to be closed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FramingError {
    /// Length 0.
    #[error("frame of length 0")]
    Empty,
    /// Longer than the limit.
    #[error("frame of {length} bytes is longer than the limit of {limit}")]
    TooLarge {
        /// Declared length.
        length: u64,
        /// Limit.
        limit: usize,
    },
    /// Shorter than its own metadata.
    #[error("frame of {length} bytes is too short for its metadata")]
    TooShort {
        /// Declared length.
        length: u64,
    },
    /// The connection ended inside a frame.
    #[error("connection ended inside a frame, after {bytes} bytes of it")]
    Truncated {
        /// Bytes of the incomplete frame.
        bytes: usize,
    },
}

/// Reads a connection's bytes as records.
#[derive(Clone, Debug)]
pub struct Decoder {
    framing: Framing,
    limit: usize,
    input: Input,
}

impl Decoder {
    /// A reader of one connection; `limit` bounds the declared length of a frame, and with it what is buffered.
    pub fn new(framing: Framing, limit: usize) -> Decoder {
        Decoder { framing, limit, input: Input::default() }
    }

    /// The buffer to read into; it has room for at least 32 KiB.
    pub fn input(&mut self) -> &mut BytesMut {
        self.input.room()
    }

    /// The next whole record; `None` when more bytes are needed. After an error the connection is useless.
    #[inline]
    pub fn next_record(&mut self) -> Result<Option<Decoded>, FramingError> {
        let Some(place) = find(self.framing, self.limit, self.input.bytes())? else { return Ok(None) };
        let mut payload = self.input.take(place.payload.end);
        let key = if place.key.is_empty() { Bytes::new() } else { payload.slice(place.key) };
        payload.advance(place.payload.start);
        Ok(Some(Decoded { time: place.time, key, payload }))
    }

    /// Hands over every whole record without a reference count of its own, and forgets them. After an error, which comes behind the
    /// records before it, the connection is useless.
    #[inline]
    pub fn read_all(&mut self, mut each: impl FnMut(Read<'_>)) -> Result<(), FramingError> {
        let (mut at, bytes) = (0, self.input.bytes());
        let end = loop {
            let rest = &bytes[at..];
            match find(self.framing, self.limit, rest) {
                Ok(Some(Place { time, key, payload })) => {
                    let frame = payload.end;
                    at += frame;
                    each(Read { time, key: &rest[key], payload: &rest[payload], frame });
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        self.input.skip(at);
        end
    }

    /// Checks at the end of the connection that no frame is incomplete.
    pub fn finish(&self) -> Result<(), FramingError> {
        match self.input.len() {
            0 => Ok(()),
            bytes => Err(FramingError::Truncated { bytes }),
        }
    }

    /// Bytes of an incomplete frame.
    pub fn buffered(&self) -> usize {
        self.input.len()
    }
}

/// Where a record's parts are in its frame, which the payload ends.
struct Place {
    time: i64,
    key: Range<usize>,
    payload: Range<usize>,
}

/// The record that `input` starts with.
#[inline]
fn find(framing: Framing, limit: usize, input: &[u8]) -> Result<Option<Place>, FramingError> {
    let (width, endian) = framing.prefix();
    let prefix = width.bytes();
    let Some(length) = read_length(input, width, endian) else { return Ok(None) };
    if length == 0 {
        return Err(FramingError::Empty);
    }
    let short = FramingError::TooShort { length };
    let body = match framing {
        Framing::Raw { .. } | Framing::Stream05 | Framing::Stream06 => length,
        Framing::HeadCompat => length.checked_sub(4).ok_or(short.clone())?,
    };
    if length > limit as u64 {
        return Err(FramingError::TooLarge { length, limit });
    }
    if body < framing.metadata() as u64 {
        return Err(short);
    }
    let end = prefix + body as usize; // at most the limit
    let Some(mut body) = input.get(prefix..end) else { return Ok(None) };
    let (mut time, mut key, mut start) = (0, 0..0, prefix);
    match framing {
        Framing::Raw { .. } => {}
        Framing::Stream05 => {
            let metadata = usize::from(body.get_u16_le());
            if metadata < 8 || metadata > body.len() {
                return Err(short);
            }
            // Behind the key is a sequence number, which nothing uses.
            key = prefix + 2..prefix + 2 + metadata - 8;
            start = prefix + 2 + metadata;
        }
        Framing::Stream06 => {
            time = body.get_i64_le();
            start += 8;
        }
        Framing::HeadCompat => {
            time = body.get_i64();
            let length = body.get_u32() as usize;
            if length > body.len() {
                return Err(short);
            }
            key = prefix + 12..prefix + 12 + length;
            start = key.end;
        }
    }
    Ok(Some(Place { time, key, payload: start..end }))
}

fn read_length(input: &[u8], width: Width, endian: Endian) -> Option<u64> {
    let prefix = input.get(..width.bytes())?;
    let push = |value: u64, byte: &u8| (value << 8) | u64::from(*byte);
    Some(match endian {
        Endian::Big => prefix.iter().fold(0, push),
        Endian::Little => prefix.iter().rev().fold(0, push),
    })
}
