//! Bytes on their way to a socket, optionally in small pieces.

use std::collections::VecDeque;
use std::io;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncWrite, AsyncWriteExt};

/// Output of one connection that the kernel has not taken.
#[derive(Default)]
pub(crate) struct Outgoing {
    chunks: VecDeque<Bytes>,
    bytes: usize,
}

impl Outgoing {
    pub(crate) fn push(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.bytes += bytes.len();
            self.chunks.push_back(bytes);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes
    }

    /// Writes once, at most `piece` bytes. Cancel-safe: what was written is gone from here, and nothing else.
    pub(crate) async fn write(&mut self, to: &mut (impl AsyncWrite + Unpin), piece: usize) -> io::Result<()> {
        let Some(chunk) = self.chunks.front_mut() else { return Ok(()) };
        let written = to.write(&chunk[..chunk.len().min(piece)]).await?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        chunk.advance(written);
        self.bytes -= written;
        if chunk.is_empty() {
            self.chunks.pop_front();
        }
        Ok(())
    }
}
