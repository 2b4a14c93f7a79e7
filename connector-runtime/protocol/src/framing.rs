//! Plain framings without a session (§1): a length, a little metadata, the payload.

mod decode;

use bytes::{BufMut, BytesMut};

pub use self::decode::{Decoded, Decoder, FramingError, Read};

/// Width of a length prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Width {
    /// 1 byte.
    One,
    /// 2 bytes.
    Two,
    /// 4 bytes.
    Four,
    /// 8 bytes.
    Eight,
}

impl Width {
    /// Bytes.
    pub fn bytes(self) -> usize {
        match self {
            Width::One => 1,
            Width::Two => 2,
            Width::Four => 4,
            Width::Eight => 8,
        }
    }

    /// Largest length that fits.
    pub fn max(self) -> u64 {
        match self {
            Width::One => u64::from(u8::MAX),
            Width::Two => u64::from(u16::MAX),
            Width::Four => u64::from(u32::MAX),
            Width::Eight => u64::MAX,
        }
    }
}

/// Byte order of a length prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Endian {
    /// Most significant byte first.
    Big,
    /// Least significant byte first.
    Little,
}

/// How records follow each other on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Framing {
    /// A length and the payload. Key and time are not carried.
    Raw {
        /// Width of the length.
        width: Width,
        /// Its byte order.
        endian: Endian,
    },
    /// Wallaroo 0.5.3 and 0.5.4. Key and time are not carried: its connectors never sent any.
    Stream05,
    /// The release tags 0.6.0 and 0.6.1: with the event time; the key is not carried.
    Stream06,
    /// What the master branch's encoder writes, with a length that is 4 too large. For reading only.
    HeadCompat,
}

impl Default for Framing {
    /// The documented choice: a big-endian u32.
    fn default() -> Framing {
        Framing::RAW_U32BE
    }
}

/// Longest payload that a worker of the master branch takes by default (`max_size`).
pub const TCP_SOURCE_LIMIT: usize = 16_384;

/// A record for a plain framing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlainRecord<'a> {
    /// Milliseconds since the epoch, 0 for none.
    pub time: i64,
    /// Payload, not empty.
    pub payload: &'a [u8],
}

/// Why a record cannot be framed. Those before number `index` were written, nothing of this one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlainError {
    /// An empty payload desynchronises Wallaroo (§7.16), or reaches nothing.
    #[error("record is empty, which Wallaroo cannot carry")]
    Empty {
        /// Number in the batch.
        index: usize,
    },
    /// Longer than the limit, or than the length prefix can count.
    #[error("record of {size} bytes is longer than the limit of {limit}")]
    TooLarge {
        /// Number in the batch.
        index: usize,
        /// What the length prefix would say.
        size: usize,
        /// Limit.
        limit: u64,
    },
    /// `HeadCompat` frames confuse every reader that trusts their length.
    #[error("this framing is for reading only")]
    ReadOnly,
}

impl PlainError {
    /// Number of the record, which is also how many were written.
    pub fn index(&self) -> Option<usize> {
        match self {
            PlainError::Empty { index } | PlainError::TooLarge { index, .. } => Some(*index),
            PlainError::ReadOnly => None,
        }
    }
}

impl Framing {
    /// A big-endian u32, the default everywhere.
    pub const RAW_U32BE: Framing = Framing::Raw { width: Width::Four, endian: Endian::Big };

    /// Width and order of the length.
    pub(crate) fn prefix(self) -> (Width, Endian) {
        match self {
            Framing::Raw { width, endian } => (width, endian),
            Framing::Stream05 | Framing::Stream06 => (Width::Four, Endian::Little),
            Framing::HeadCompat => (Width::Four, Endian::Big),
        }
    }

    /// Bytes between length and payload that this framing's encoder writes.
    pub(crate) fn metadata(self) -> usize {
        match self {
            Framing::Raw { .. } => 0,
            Framing::Stream05 => 10,
            Framing::Stream06 => 8,
            Framing::HeadCompat => 12,
        }
    }

    /// Bytes on the wire beside the payload of a record.
    pub fn overhead(self) -> usize {
        self.prefix().0.bytes() + self.metadata()
    }

    /// Appends records; returns how many, which is all of them. `limit` bounds what the length prefix may say, metadata included
    /// ([`TCP_SOURCE_LIMIT`] for Wallaroo's default).
    pub fn encode<'a>(
        self,
        records: impl Iterator<Item = PlainRecord<'a>>,
        limit: usize,
        out: &mut BytesMut,
    ) -> Result<usize, PlainError> {
        if self == Framing::HeadCompat {
            return Err(PlainError::ReadOnly);
        }
        let (width, endian) = self.prefix();
        let metadata = self.metadata();
        let limit = width.max().min(limit as u64);
        let mut count = 0;
        for PlainRecord { time, payload } in records {
            let size = metadata + payload.len();
            if payload.is_empty() {
                return Err(PlainError::Empty { index: count });
            }
            if size as u64 > limit {
                return Err(PlainError::TooLarge { index: count, size, limit });
            }
            // Longest head: 8 bytes of length, 10 of metadata.
            let mut head = [0; 18];
            let prefix = width.bytes();
            match endian {
                Endian::Big => head[..prefix].copy_from_slice(&(size as u64).to_be_bytes()[8 - prefix..]),
                Endian::Little => head[..prefix].copy_from_slice(&(size as u64).to_le_bytes()[..prefix]),
            }
            match self {
                Framing::Raw { .. } | Framing::HeadCompat => {}
                Framing::Stream05 => head[prefix..prefix + 10].copy_from_slice(&STREAM05_METADATA),
                Framing::Stream06 => head[prefix..prefix + 8].copy_from_slice(&time.to_le_bytes()),
            }
            out.extend_from_slice(&head[..prefix + metadata]);
            out.extend_from_slice(payload);
            count += 1;
        }
        Ok(count)
    }
}

/// Metadata length 8, no partition, sequence -1: what the 0.5.3 connectors always send.
const STREAM05_METADATA: [u8; 10] = [8, 0, 255, 255, 255, 255, 255, 255, 255, 255];

/// Appends one 0.5.3 frame with a partition and a sequence number, which no released connector sent. The caller keeps
/// `partition` below 65,528 bytes and the frame below 4 GiB; false, and nothing written, otherwise.
pub fn encode_stream05(partition: &[u8], sequence: i64, payload: &[u8], out: &mut BytesMut) -> bool {
    let Ok(metadata) = u16::try_from(partition.len() + 8) else { return false };
    let Ok(length) = u32::try_from(2 + usize::from(metadata) + payload.len()) else { return false };
    out.put_u32_le(length);
    out.put_u16_le(metadata);
    out.put_slice(partition);
    out.put_i64_le(sequence);
    out.put_slice(payload);
    true
}
