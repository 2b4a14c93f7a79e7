//! Frames of the connector protocol (§2.1): a big-endian length, then a tag and fields.

use bytes::{Buf, Bytes, BytesMut};

/// Bytes of the length prefix.
pub const PREFIX: usize = 4;

/// Longest body that a worker reads on a source connection, tag included (§2.4). It closes without a word above it.
pub const SOURCE_FRAME_LIMIT: u32 = 16_384;

/// Default for frames that Wallaroo sends, which it does not limit itself (§2.4).
pub const DEFAULT_FRAME_LIMIT: u32 = 16 * 1024 * 1024;

/// A length that no frame may have. Framing is lost: the connection has to be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A frame without even a tag; it desynchronises Wallaroo (§7.16).
    #[error("frame of length 0")]
    Zero,
    /// Longer than the limit of this connection.
    #[error("frame of {length} bytes is longer than the limit of {limit}")]
    TooLarge {
        /// Declared length of the body.
        length: u32,
        /// Limit in bytes.
        limit: u32,
    },
}

/// The body of the frame that `input` starts with; `None` while it is incomplete.
///
/// The declared length is checked as soon as its four bytes are there, before anything is buffered for it.
#[inline]
pub fn peek(input: &[u8], limit: u32) -> Result<Option<&[u8]>, FrameError> {
    let Some((prefix, rest)) = input.split_first_chunk::<PREFIX>() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes(*prefix);
    if length == 0 {
        return Err(FrameError::Zero);
    }
    if length > limit {
        return Err(FrameError::TooLarge { length, limit });
    }
    Ok(rest.get(..length as usize))
}

/// Takes the body of the first frame off `input` without copying it; `None` while it is incomplete.
pub fn split(input: &mut BytesMut, limit: u32) -> Result<Option<Bytes>, FrameError> {
    let Some(length) = peek(input, limit)?.map(<[u8]>::len) else {
        return Ok(None);
    };
    input.advance(PREFIX);
    Ok(Some(input.split_to(length).freeze()))
}
