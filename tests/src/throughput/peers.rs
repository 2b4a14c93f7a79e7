//! The far ends: a TCP reader that only counts bytes, a TCP writer of frames, a sender of datagrams.

use std::io::{IoSlice, Read as _, Write as _};
use std::net::{SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrIn, sendmmsg};

use crate::kafka_topic::payload;

/// Bytes read with one call.
const READ: usize = 256 * 1024;

/// Bytes of frames written with one call, about.
const WRITE: usize = 256 * 1024;

/// Datagrams sent with one call.
const DATAGRAMS: usize = 128;

/// Pause of a sender whose window is full.
const WINDOW_FULL: Duration = Duration::from_micros(50);

/// Reads whatever comes and counts bytes. Its thread ends with its last connection or the program.
#[derive(Debug)]
pub struct Reader {
    /// Where it listens.
    pub address: String,
    bytes: Arc<AtomicU64>,
}

impl Reader {
    /// Listens on a port of its own and serves one connection after the other.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn start() -> anyhow::Result<Reader> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?.to_string();
        let bytes = Arc::new(AtomicU64::new(0));
        let counter = bytes.clone();
        std::thread::spawn(move || {
            let mut buffer = vec![0; READ];
            for socket in listener.incoming() {
                let Ok(mut socket) = socket else { return };
                while let Ok(n @ 1..) = socket.read(&mut buffer) {
                    counter.fetch_add(n as u64, Relaxed);
                }
            }
        });
        Ok(Reader { address, bytes })
    }

    /// Bytes read so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    /// The counter itself.
    pub fn counter(&self) -> Arc<AtomicU64> {
        self.bytes.clone()
    }
}

/// Length-prefixed frames of records `first..=last`, made by `text`.
pub fn frames(numbers: std::ops::RangeInclusive<u64>, mut text: impl FnMut(u64) -> String) -> Vec<u8> {
    let mut out = Vec::new();
    for number in numbers {
        let text = text(number);
        out.extend_from_slice(&(text.len() as u32).to_be_bytes());
        out.extend_from_slice(text.as_bytes());
    }
    out
}

/// Dials `address`, waiting until somebody listens, and writes frames, `times` over, in a thread of its own; the connection stays open
/// until the returned thread is joined.
///
/// # Errors
/// When nobody listens in time.
pub fn write_frames(address: &str, frames: Arc<Vec<u8>>, times: u64) -> anyhow::Result<Writing> {
    let begun = Instant::now();
    let mut socket = loop {
        match TcpStream::connect(address) {
            Ok(socket) => break socket,
            Err(error) if begun.elapsed() > crate::processes::PATIENCE => {
                bail!("dialling {address}: {error}")
            }
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    };
    let (keep, done) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || {
        for _ in 0..times {
            for chunk in frames.chunks(WRITE) {
                if socket.write_all(chunk).is_err() {
                    return;
                }
            }
        }
        // Until the owner lets go: an end of the connection is a thing of its own.
        let _ = done.recv();
    });
    Ok(Writing { _keep: keep, thread: Some(thread) })
}

/// A connection with a writer behind it, closed when dropped.
#[derive(Debug)]
pub struct Writing {
    _keep: std::sync::mpsc::Sender<()>,
    thread: Option<JoinHandle<()>>,
}

impl Writing {
    /// True once everything is written.
    pub fn is_over(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

/// Sends numbered datagrams, many with one call, never more than `window` ahead of what `seen` counts at the far end: what is
/// measured is the receiver, and nothing may be lost.
#[derive(Debug)]
pub struct Sender {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<anyhow::Result<()>>>,
}

impl Sender {
    /// Starts sending in a thread of its own. `seen` counts bytes, of which one datagram makes `unit`.
    ///
    /// # Errors
    /// When there is no socket.
    pub fn start(
        to: SocketAddrV4,
        records: u64,
        size: usize,
        window: u64,
        (seen, unit): (Arc<AtomicU64>, u64),
    ) -> anyhow::Result<Sender> {
        ensure!(window >= DATAGRAMS as u64, "the receive buffer is too small for a measurement");
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let before = seen.load(Relaxed) / unit;
        let thread = std::thread::spawn(move || {
            let (to, mut headers) = (SockaddrIn::from(to), MultiHeaders::preallocate(DATAGRAMS, None));
            let text = payload(1, size);
            let slices = [[IoSlice::new(text.as_bytes())]; DATAGRAMS];
            let targets = [Some(to); DATAGRAMS];
            let mut sent = 0;
            while sent < records && !stopped.load(Relaxed) {
                let ahead = sent - (seen.load(Relaxed) / unit).saturating_sub(before).min(sent);
                let most = (records - sent).min(window.saturating_sub(ahead)).min(DATAGRAMS as u64) as usize;
                if most == 0 || (most < DATAGRAMS && records - sent >= DATAGRAMS as u64) {
                    std::thread::sleep(WINDOW_FULL);
                    continue;
                }
                let results = sendmmsg(
                    socket.as_raw_fd(),
                    &mut headers,
                    &slices[..most],
                    &targets[..most],
                    [],
                    MsgFlags::empty(),
                )
                .context("sending datagrams")?;
                sent += results.count() as u64;
            }
            Ok(())
        });
        Ok(Sender { stop, thread: Some(thread) })
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(Ok(Err(error))) = self.thread.take().map(JoinHandle::join) {
            eprintln!("throughput: {error:#}");
        }
    }
}
