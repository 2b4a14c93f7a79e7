//! One connection to a worker: bytes in, bytes out, and how many of them the worker's kernel has.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::Poll;

use bytes::{Buf, Bytes};
use connector_env::Link;
use futures::FutureExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Duration, Instant, sleep_until, timeout};

use super::session::Session;

/// Longest wait for the last bytes and the FIN of a connection that is done.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// A connection and its session.
#[derive(Debug)]
pub(super) struct Uplink<L> {
    link: L,
    pub(super) session: Session,
    writing: Bytes,
    /// Bytes taken out of the session so far.
    taken: u64,
    /// Bytes written to the socket so far.
    written: u64,
    /// Bytes that the worker's kernel acknowledged at the last look.
    received: u64,
    /// When `received` last grew, or there was nothing left to acknowledge.
    progress: Instant,
    /// Writing failed; the worker may have said why before it closed.
    broken: Option<io::Error>,
}

impl<L: Link> Uplink<L> {
    pub(super) fn new(link: L, session: Session, now: Instant) -> Uplink<L> {
        Uplink {
            link,
            session,
            writing: Bytes::new(),
            taken: 0,
            written: 0,
            received: 0,
            progress: now,
            broken: None,
        }
    }

    /// Number of the last byte that the session has put out so far.
    pub(super) fn offset(&self) -> u64 {
        self.taken + self.session.output_len() as u64
    }

    /// Bytes that wait here to be written.
    pub(super) fn queued(&self) -> usize {
        self.writing.len() + self.session.output_len()
    }

    /// Bytes that the worker's kernel has.
    pub(super) fn received(&mut self, now: Instant) -> u64 {
        if self.received < self.written
            && let Ok(outstanding) = self.link.unacknowledged()
        {
            let received = self.written.saturating_sub(outstanding);
            if received > self.received {
                (self.received, self.progress) = (received, now);
            }
        }
        if self.received == self.offset() {
            self.progress = now;
        }
        self.received
    }

    /// Since when nothing moves although bytes wait for the worker.
    pub(super) fn stuck_since(&mut self, now: Instant) -> Option<Instant> {
        let received = self.received(now);
        (received < self.offset()).then_some(self.progress)
    }

    /// Waits until bytes were read or written, or until `wake`. True if something was read. Cancel-safe.
    pub(super) async fn step(&mut self, wake: Option<Instant>) -> io::Result<bool> {
        if self.writing.is_empty()
            && self.broken.is_none()
            && let Some(output) = self.session.poll_output()
        {
            self.taken += output.len() as u64;
            self.writing = output;
        }
        let Uplink { link, session, writing, written, broken, .. } = self;
        let io = poll_fn(|cx| {
            // Reading and writing in one poll: neither starves the other.
            let mut moved = false;
            if !writing.is_empty() && broken.is_none() {
                match Pin::new(&mut *link).poll_write(cx, writing) {
                    Poll::Ready(Ok(0)) => *broken = Some(io::ErrorKind::WriteZero.into()),
                    Poll::Ready(Ok(n)) => {
                        writing.advance(n);
                        *written += n as u64;
                        moved = true;
                    }
                    Poll::Ready(Err(error)) => *broken = Some(error),
                    Poll::Pending => {}
                }
            }
            match pin!(link.read_buf(session.input())).poll(cx) {
                Poll::Ready(Ok(0)) => {
                    let closed =
                        io::Error::new(io::ErrorKind::UnexpectedEof, "the worker closed the connection");
                    Poll::Ready(Err(broken.take().unwrap_or(closed)))
                }
                Poll::Ready(Ok(_)) => Poll::Ready(Ok(true)),
                Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                Poll::Pending => match broken.take() {
                    Some(error) => Poll::Ready(Err(error)),
                    None if moved => Poll::Ready(Ok(false)),
                    None => Poll::Pending,
                },
            }
        });
        match wake {
            None => io.await,
            Some(wake) => tokio::select! {
                biased;
                moved = io => moved,
                () = sleep_until(wake) => Ok(false),
            },
        }
    }

    /// Gives the worker what is left for it, as far as its socket takes it at once.
    pub(super) fn last_words(mut self) {
        let output = self.session.poll_output().unwrap_or_default();
        for rest in [self.writing, output] {
            if !matches!(self.link.write_all(&rest).now_or_never(), Some(Ok(()))) {
                return;
            }
        }
    }

    /// Closes the connection in order, with a FIN, within two seconds.
    pub(super) async fn close(mut self) {
        let output = self.session.poll_output().unwrap_or_default();
        let closing = async {
            self.link.write_all(&self.writing).await?;
            self.link.write_all(&output).await?;
            self.link.shutdown().await
        };
        // The records of it are acknowledged or given up already.
        let _ = timeout(CLOSE_TIMEOUT, closing).await;
    }
}
