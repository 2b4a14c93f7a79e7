//! The reader of plain framings.

use bytes::{Buf, Bytes, BytesMut};

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
        let (width, endian) = self.framing.prefix();
        let prefix = width.bytes();
        let Some(length) = read_length(self.input.bytes(), width, endian) else {
            return Ok(None);
        };
        if length == 0 {
            return Err(FramingError::Empty);
        }
        let short = FramingError::TooShort { length };
        let body = match self.framing {
            Framing::Raw { .. } | Framing::Stream05 | Framing::Stream06 => length,
            Framing::HeadCompat => length.checked_sub(4).ok_or(short.clone())?,
        };
        if length > self.limit as u64 {
            return Err(FramingError::TooLarge { length, limit: self.limit });
        }
        if body < self.framing.metadata() as u64 {
            return Err(short);
        }
        let body = body as usize; // at most `limit`
        if self.input.len() - prefix < body {
            return Ok(None);
        }
        let mut frame = self.input.take(prefix + body);
        frame.advance(prefix);
        let (mut time, mut key) = (0, Bytes::new());
        match self.framing {
            Framing::Raw { .. } => {}
            Framing::Stream05 => {
                let metadata = usize::from(frame.get_u16_le());
                if metadata < 8 || metadata > frame.len() {
                    return Err(short);
                }
                key = frame.split_to(metadata - 8);
                frame.advance(8); // sequence number, which nothing uses
            }
            Framing::Stream06 => time = frame.get_i64_le(),
            Framing::HeadCompat => {
                time = frame.get_i64();
                let length = frame.get_u32() as usize;
                if length > frame.len() {
                    return Err(short);
                }
                key = frame.split_to(length);
            }
        }
        Ok(Some(Decoded { time, key, payload: frame }))
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

fn read_length(input: &[u8], width: Width, endian: Endian) -> Option<u64> {
    let prefix = input.get(..width.bytes())?;
    let push = |value: u64, byte: &u8| (value << 8) | u64::from(*byte);
    Some(match endian {
        Endian::Big => prefix.iter().fold(0, push),
        Endian::Little => prefix.iter().rev().fold(0, push),
    })
}
