//! [`SimEnv`]: `turmoil`'s network and a [`Disk`] behind the product's environment.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use connector_env::{Env, Link, Listener};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use turmoil::net::{TcpListener, TcpStream};

use super::disk::{Disk, SimFile};
use super::random::Random;
use super::receipts::{Receipts, Tap};

/// Bytes that each direction of each connection delivered to its reader.
type Delivered = Arc<Mutex<BTreeMap<(SocketAddr, SocketAddr), Arc<AtomicU64>>>>;

/// What all hosts of a simulation share.
#[derive(Clone, Debug, Default)]
pub struct Network {
    delivered: Delivered,
}

impl Network {
    fn counter(&self, from: SocketAddr, to: SocketAddr) -> Arc<AtomicU64> {
        let mut delivered = self.delivered.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(delivered.entry((from, to)).or_default())
    }

    /// A connection that is new starts at nothing, also when its ports were used before.
    fn fresh(&self, a: SocketAddr, b: SocketAddr) {
        let mut delivered = self.delivered.lock().unwrap_or_else(PoisonError::into_inner);
        delivered.remove(&(a, b));
        delivered.remove(&(b, a));
    }
}

/// One host's environment.
#[derive(Clone, Debug)]
pub struct SimEnv {
    network: Network,
    disk: Disk,
    random: Random,
    receipts: Option<Receipts>,
}

impl SimEnv {
    /// A host on `network` with `disk`.
    pub fn new(network: Network, disk: Disk, random: Random) -> SimEnv {
        SimEnv { network, disk, random, receipts: None }
    }
}

impl SimEnv {
    /// What this host reads on connections that it accepts is noted.
    #[must_use]
    pub fn with_receipts(self, receipts: Option<Receipts>) -> SimEnv {
        SimEnv { receipts, ..self }
    }
}

/// A simulated connection.
///
/// `unacknowledged` counts what the peer has not read yet: more than a kernel would say, and never less.
#[derive(Debug)]
pub struct SimLink {
    stream: TcpStream,
    written: u64,
    delivered_to_peer: Arc<AtomicU64>,
    delivered_here: Arc<AtomicU64>,
    tap: Option<Tap>,
}

impl SimLink {
    fn new(network: &Network, stream: TcpStream) -> io::Result<SimLink> {
        let (here, there) = (stream.local_addr()?, stream.peer_addr()?);
        Ok(SimLink {
            written: 0,
            tap: None,
            delivered_to_peer: network.counter(here, there),
            delivered_here: network.counter(there, here),
            stream,
        })
    }
}

impl Link for SimLink {
    fn unacknowledged(&self) -> io::Result<u64> {
        Ok(self.written.saturating_sub(self.delivered_to_peer.load(Relaxed)))
    }
}

impl AsyncRead for SimLink {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buffer);
        let read = &buffer.filled()[before..];
        self.delivered_here.fetch_add(read.len() as u64, Relaxed);
        if let Some(tap) = &mut self.tap {
            tap.read(read);
        }
        result
    }
}

impl AsyncWrite for SimLink {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, bytes);
        if let Poll::Ready(Ok(written)) = &result {
            self.written += *written as u64;
        }
        result
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// A simulated listening socket.
pub struct SimListener {
    listener: TcpListener,
    network: Network,
    receipts: Option<Receipts>,
}

impl Listener for SimListener {
    type Link = SimLink;

    async fn accept(&mut self) -> io::Result<(SimLink, String)> {
        let (stream, peer) = self.listener.accept().await?;
        self.network.fresh(stream.local_addr()?, stream.peer_addr()?);
        let link = SimLink::new(&self.network, stream)?;
        let tap = self.receipts.as_ref().map(Receipts::tap);
        Ok((SimLink { tap, ..link }, peer.to_string()))
    }

    fn port(&self) -> u16 {
        self.listener.local_addr().map_or(0, |address| address.port())
    }
}

impl Env for SimEnv {
    type Link = SimLink;
    type Listener = SimListener;
    type File = SimFile;

    async fn connect(&self, address: &str) -> io::Result<SimLink> {
        // The acceptor, who comes first, has set up the counters.
        SimLink::new(&self.network, TcpStream::connect(address).await?)
    }

    async fn listen(&self, address: &str) -> io::Result<SimListener> {
        let listener = TcpListener::bind(address).await?;
        Ok(SimListener { listener, network: self.network.clone(), receipts: self.receipts.clone() })
    }

    fn open(&self, path: &Path) -> io::Result<SimFile> {
        self.disk.open(path)
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.disk.create_dir_all(path);
        Ok(())
    }

    fn list_dir(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        self.disk.list(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.disk.remove(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.disk.sync_dir(path)
    }

    fn exists(&self, path: &Path) -> bool {
        self.disk.exists(path)
    }

    fn random(&self) -> u64 {
        self.random.next()
    }

    fn unix_millis(&self) -> i64 {
        turmoil::sim_elapsed().map_or(0, |elapsed| i64::try_from(elapsed.as_millis()).unwrap_or(i64::MAX))
    }
}
