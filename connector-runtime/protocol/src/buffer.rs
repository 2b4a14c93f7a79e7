//! Input and output buffers of a session. Their `Debug` shows sizes only: they carry cookies and payloads.

use std::fmt;

use bytes::{Buf as _, Bytes, BytesMut};

/// Room that a session offers for one read. A frame longer than this grows the buffer as its bytes arrive, never in
/// advance, so a length field alone costs nothing.
const READ_CHUNK: usize = 64 * 1024;

/// What an output buffer grows by: large enough for one write, small enough for an idle session.
const WRITE_CHUNK: usize = 16 * 1024;

#[derive(Clone, Default)]
pub(crate) struct Input(BytesMut);

impl Input {
    /// The buffer to read into, with room.
    pub(crate) fn room(&mut self) -> &mut BytesMut {
        if self.0.capacity() - self.0.len() < READ_CHUNK / 2 {
            self.0.reserve(READ_CHUNK);
        }
        &mut self.0
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn take(&mut self, length: usize) -> Bytes {
        self.0.split_to(length).freeze()
    }

    /// Forgets the first bytes.
    pub(crate) fn skip(&mut self, length: usize) {
        self.0.advance(length);
    }

    /// Puts bytes before what is there.
    pub(crate) fn put_front(&mut self, mut front: BytesMut) {
        front.unsplit(std::mem::take(&mut self.0));
        self.0 = front;
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}

impl fmt::Debug for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Input({} bytes)", self.0.len())
    }
}

#[derive(Clone, Default)]
pub(crate) struct Output {
    buffer: BytesMut,
    /// About the size of recent writes. A batch starts with that much room, so that it fits into the memory of the one before
    /// it instead of growing behind its end.
    usual: usize,
}

impl Output {
    /// The buffer to append to, with room for `bytes`.
    #[inline]
    pub(crate) fn room(&mut self, bytes: usize) -> &mut BytesMut {
        let length = self.buffer.len();
        let free = self.buffer.capacity() - length;
        if free < bytes || (length == 0 && free < self.usual) {
            self.grow(bytes);
        }
        &mut self.buffer
    }

    #[cold]
    fn grow(&mut self, bytes: usize) {
        let usual = if self.buffer.is_empty() { self.usual } else { 0 };
        self.buffer.reserve(bytes.max(WRITE_CHUNK).max(usual));
    }

    pub(crate) fn len(&self) -> usize {
        self.buffer.len()
    }

    /// Everything queued, as one buffer; its memory comes back to this one when it is dropped.
    pub(crate) fn poll(&mut self) -> Option<Bytes> {
        if self.buffer.is_empty() {
            return None;
        }
        // One large write is forgotten after some hundred small ones.
        self.usual = self.buffer.len().next_power_of_two().max(self.usual - self.usual / 64);
        Some(self.buffer.split().freeze())
    }
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Output({} bytes)", self.len())
    }
}
