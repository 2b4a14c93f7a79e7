//! A worker's connection to a sink: bytes in, bytes out, and its orderly end.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use bytes::{Buf, Bytes, BytesMut};
use connector_env::Link as Stream;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::{Duration, Instant};

/// Longest wait for the peer's end once ours is said: long enough for the last frame to be read.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Bytes that a closing link reads and drops at a time.
const DISCARD_BYTES: usize = 16 * 1024;

/// Number of a connection, never used again.
pub(crate) type LinkId = u64;

/// What a link speaks.
pub(crate) trait Talk {
    /// The buffer to read into.
    fn input(&mut self) -> &mut BytesMut;
    /// What is to be written.
    fn output(&mut self) -> Option<Bytes>;
    /// False while reading on would only fill memory.
    fn wants_input(&self) -> bool;
}

/// What happened on a link.
#[derive(Debug)]
pub(crate) enum Happened {
    /// Bytes were read.
    Read,
    /// The peer said its end.
    Eof,
    /// The connection broke.
    Failed(io::Error),
    /// It is over in order.
    Closed,
}

/// One connection.
pub(crate) struct Link<L, T> {
    io: L,
    /// The peer's address, for logs.
    pub(crate) peer: String,
    pub(crate) talk: T,
    /// The pump wants nothing read now.
    pub(crate) held: bool,
    out: Bytes,
    /// Our end: wanted, and said.
    half_close: (bool, bool),
    closing: Option<Closing>,
}

struct Closing {
    deadline: Instant,
    said: bool,
}

impl<L: Stream, T: Talk> Link<L, T> {
    pub(crate) fn new(io: L, peer: String, talk: T) -> Link<L, T> {
        Link { io, peer, talk, held: false, out: Bytes::new(), half_close: (false, false), closing: None }
    }

    /// Ends the link in order: what is to be written is written, our end is said, and the peer's is waited for a little, so
    /// that nothing unread turns the close into a reset that takes our last frame with it.
    pub(crate) fn close(&mut self, now: Instant) {
        self.closing.get_or_insert(Closing { deadline: now + CLOSE_TIMEOUT, said: false });
    }

    /// Says our end and reads on.
    pub(crate) fn half_close(&mut self) {
        self.half_close.0 = true;
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.closing.is_some()
    }

    /// When an orderly end is given up.
    pub(crate) fn close_deadline(&self) -> Option<Instant> {
        self.closing.as_ref().map(|closing| closing.deadline)
    }

    fn poll(&mut self, cx: &mut Context<'_>, now: Instant) -> Poll<Happened> {
        match self.poll_write(cx) {
            Poll::Ready(Err(error)) if self.closing.is_none() => return Poll::Ready(Happened::Failed(error)),
            Poll::Ready(Err(_)) => return Poll::Ready(Happened::Closed),
            Poll::Pending if self.closing.is_some() => return self.give_up(now),
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        if self.closing.is_some() {
            return self.poll_close(cx, now);
        }
        if self.half_close == (true, false) && Pin::new(&mut self.io).poll_shutdown(cx).is_ready() {
            self.half_close.1 = true; // an error shows while reading
        }
        if self.held || !self.talk.wants_input() {
            return Poll::Pending;
        }
        match poll_read(&mut self.io, self.talk.input(), cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(0)) => Poll::Ready(Happened::Eof),
            Poll::Ready(Ok(_)) => Poll::Ready(Happened::Read),
            Poll::Ready(Err(error)) => Poll::Ready(Happened::Failed(error)),
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.out.is_empty() {
                match self.talk.output() {
                    Some(out) => self.out = out,
                    None => return Poll::Ready(Ok(())),
                }
            }
            match Pin::new(&mut self.io).poll_write(cx, &self.out) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(written)) => self.out.advance(written),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn poll_close(&mut self, cx: &mut Context<'_>, now: Instant) -> Poll<Happened> {
        let Some(closing) = &mut self.closing else { return Poll::Pending };
        if !closing.said {
            match Pin::new(&mut self.io).poll_shutdown(cx) {
                Poll::Pending => return self.give_up(now),
                Poll::Ready(Ok(())) => closing.said = true,
                Poll::Ready(Err(_)) => return Poll::Ready(Happened::Closed),
            }
        }
        // What still comes is read and dropped, a bounded amount a turn.
        let mut dropped = BytesMut::with_capacity(DISCARD_BYTES);
        match poll_read(&mut self.io, &mut dropped, cx) {
            Poll::Ready(Ok(0) | Err(_)) => Poll::Ready(Happened::Closed),
            Poll::Ready(Ok(_)) => {
                cx.waker().wake_by_ref();
                self.give_up(now)
            }
            Poll::Pending => self.give_up(now),
        }
    }

    fn give_up(&self, now: Instant) -> Poll<Happened> {
        match &self.closing {
            Some(closing) if closing.deadline <= now => Poll::Ready(Happened::Closed),
            Some(_) | None => Poll::Pending,
        }
    }
}

/// One read attempt into a buffer's free room (at least 64 bytes are made).
fn poll_read<L: AsyncRead + Unpin>(
    io: &mut L,
    buffer: &mut BytesMut,
    cx: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    pin!(io.read_buf(buffer)).poll(cx)
}

/// All connections of a sink, served in turn.
pub(crate) struct Links<L, T> {
    open: BTreeMap<LinkId, Link<L, T>>,
    last: LinkId,
    /// Served first next time.
    first: LinkId,
    happened: Vec<(LinkId, Happened)>,
}

impl<L, T> Default for Links<L, T> {
    fn default() -> Self {
        Links { open: BTreeMap::new(), last: 0, first: 0, happened: Vec::new() }
    }
}

impl<L: Stream, T: Talk> Links<L, T> {
    pub(crate) fn add(&mut self, link: Link<L, T>) -> LinkId {
        self.last += 1;
        self.open.insert(self.last, link);
        self.last
    }

    pub(crate) fn len(&self) -> usize {
        self.open.len()
    }

    pub(crate) fn get_mut(&mut self, id: LinkId) -> Option<&mut Link<L, T>> {
        self.open.get_mut(&id)
    }

    pub(crate) fn remove(&mut self, id: LinkId) -> Option<Link<L, T>> {
        self.open.remove(&id)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (LinkId, &Link<L, T>)> {
        self.open.iter().map(|(id, link)| (*id, link))
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (LinkId, &mut Link<L, T>)> {
        self.open.iter_mut().map(|(id, link)| (*id, link))
    }

    /// Serves every link once, another one first each time. Ready when something happened: see [`Links::take_happened`].
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let now = Instant::now();
        let Links { open, happened, first, .. } = self;
        let start = *first;
        let mut serve = |id: LinkId, link: &mut Link<L, T>| {
            if let Poll::Ready(what) = link.poll(cx, now) {
                happened.push((id, what));
            }
        };
        for (id, link) in open.range_mut(start..) {
            serve(*id, link);
        }
        for (id, link) in open.range_mut(..start) {
            serve(*id, link);
        }
        if happened.is_empty() {
            return Poll::Pending;
        }
        *first = open.range(start + 1..).next().map_or(0, |(id, _)| *id);
        Poll::Ready(())
    }

    /// What happened since the last call, one entry a link, in the order served.
    pub(crate) fn take_happened(&mut self) -> Vec<(LinkId, Happened)> {
        std::mem::take(&mut self.happened)
    }

    /// Gives the buffer of [`Links::take_happened`] back.
    pub(crate) fn reuse(&mut self, mut happened: Vec<(LinkId, Happened)>) {
        happened.clear();
        self.happened = happened;
    }
}
