//! Field encodings (§2.2): integers, length-prefixed bytes and the sentinel for "nothing".

use std::fmt;

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// "Nothing processed" on the wire. Elsewhere in this crate that is `Option::None`, never a number (§7.2).
pub const NONE: u64 = u64::MAX;

/// Milliseconds since any fixed instant: the clock that drivers hand to the sessions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Millis(pub u64);

impl Millis {
    /// This instant `duration` milliseconds later; saturates.
    #[must_use]
    pub fn after(self, duration: u64) -> Millis {
        Millis(self.0.saturating_add(duration))
    }
}

/// Identity of a stream, chosen by the connector and unique in a source of a whole cluster (§3.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(pub u64);

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A value that the wire format cannot carry. Nothing was written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// A length-prefixed field above 65,535 bytes.
    #[error("{field} has {length} bytes, more than the 65535 that its length field can count")]
    FieldTooLong {
        /// Name of the field.
        field: &'static str,
        /// Its length in bytes.
        length: usize,
    },
    /// A frame above its limit: what the peer accepts, or what the length field can count.
    #[error("a frame of {length} bytes is too long")]
    FrameTooLong {
        /// Length of the frame's body.
        length: usize,
    },
}

/// Why a frame's body is not what its tag says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The body ends inside a field.
    #[error("frame ends inside the field {0}")]
    Truncated(&'static str),
    /// A tag that nobody defined.
    #[error("unknown tag {0}")]
    UnknownTag(u8),
    /// A truth value of two-phase commit that is neither 0 nor 1: reading it either way would be a guess (§7.14).
    #[error("{value} in the field {field} is neither yes (1) nor no (0)")]
    NotABool {
        /// Name of the field.
        field: &'static str,
        /// The byte.
        value: u8,
    },
}

pub(crate) fn position(raw: u64) -> Option<u64> {
    (raw != NONE).then_some(raw)
}

pub(crate) fn raw_position(position: Option<u64>) -> u64 {
    position.unwrap_or(NONE)
}

/// Reads fields off the front of a frame's body.
pub(crate) struct Fields(pub(crate) Bytes);

impl Fields {
    fn need(&self, bytes: usize, field: &'static str) -> Result<(), DecodeError> {
        if self.0.len() < bytes { Err(DecodeError::Truncated(field)) } else { Ok(()) }
    }

    pub(crate) fn u8(&mut self, field: &'static str) -> Result<u8, DecodeError> {
        self.need(1, field)?;
        Ok(self.0.get_u8())
    }

    pub(crate) fn u32(&mut self, field: &'static str) -> Result<u32, DecodeError> {
        self.need(4, field)?;
        Ok(self.0.get_u32())
    }

    pub(crate) fn u64(&mut self, field: &'static str) -> Result<u64, DecodeError> {
        self.need(8, field)?;
        Ok(self.0.get_u64())
    }

    pub(crate) fn i64(&mut self, field: &'static str) -> Result<i64, DecodeError> {
        self.need(8, field)?;
        Ok(self.0.get_i64())
    }

    pub(crate) fn bytes(&mut self, length: usize, field: &'static str) -> Result<Bytes, DecodeError> {
        self.need(length, field)?;
        Ok(self.0.split_to(length))
    }

    pub(crate) fn str16(&mut self, field: &'static str) -> Result<Bytes, DecodeError> {
        self.need(2, field)?;
        let length = usize::from(self.0.get_u16());
        self.bytes(length, field)
    }

    /// A truth value of two-phase commit.
    pub(crate) fn strict_bool(&mut self, field: &'static str) -> Result<bool, DecodeError> {
        match self.u8(field)? {
            0 => Ok(false),
            1 => Ok(true),
            value => Err(DecodeError::NotABool { field, value }),
        }
    }

    pub(crate) fn rest(self) -> Bytes {
        self.0
    }
}

pub(crate) fn check_str16(bytes: &[u8], field: &'static str) -> Result<usize, EncodeError> {
    if bytes.len() > usize::from(u16::MAX) {
        return Err(EncodeError::FieldTooLong { field, length: bytes.len() });
    }
    Ok(2 + bytes.len())
}

/// The caller has checked the length with [`check_str16`].
pub(crate) fn put_str16(out: &mut BytesMut, bytes: &[u8]) {
    out.put_u16(bytes.len() as u16);
    out.put_slice(bytes);
}

/// A peer's text for people: bounded and lossy.
pub(crate) fn text(bytes: &[u8]) -> String {
    const LIMIT: usize = 500;
    String::from_utf8_lossy(bytes).chars().take(LIMIT).collect()
}
