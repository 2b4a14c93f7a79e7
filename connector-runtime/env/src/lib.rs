//! The seam between our code and the outside: network, files and random numbers.
//!
//! The pump, the transaction log and the endpoint are generic over [`Env`]. [`TokioEnv`] is the product; the
//! simulation implements the same trait over a simulated network and disk. Time needs no method: `tokio::time` is the
//! clock everywhere, and a simulation pauses and advances it.
//!
//! Rules for code behind the seam, so that one seed gives one run: every `select!` is `biased`, no iteration over a
//! `HashMap`, no `std::time`, no `spawn_blocking`, no task that is not awaited by its owner. File calls are
//! synchronous: a pump runs on a thread of its own.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};

use tokio::io::{AsyncRead, AsyncWrite};

mod tokio_env;
pub use tokio_env::{TokioEnv, TokioFile};

/// A connected byte stream.
pub trait Link: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// Bytes that were written here and that the peer's kernel has not acknowledged yet (`SIOCOUTQ`).
    fn unacknowledged(&self) -> io::Result<u64>;
}

/// A bound socket that accepts links.
pub trait Listener: Send + 'static {
    /// What `accept` yields.
    type Link: Link;
    /// Waits for the next peer; the second value is the peer's address for logs. Cancel-safe.
    fn accept(&mut self) -> impl Future<Output = io::Result<(Self::Link, String)>> + Send;
    /// The port that was bound (useful after asking for port 0).
    fn port(&self) -> u16;
}

/// A file opened for appending and reading at positions.
pub trait File: Send + 'static {
    /// Appends all of `bytes` at the end of the file.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Reads into `buffer` from `offset`; fewer bytes than asked only at the end of the file.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;
    /// The file's length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// True when the file holds nothing.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Cuts the file to `length` bytes.
    fn truncate(&mut self, length: u64) -> io::Result<()>;
    /// Returns when all that was written is on stable storage. After an error nothing on this file may be trusted.
    fn sync(&mut self) -> io::Result<()>;
}

/// Network, files and random numbers.
pub trait Env: Clone + Send + Sync + 'static {
    /// A connected byte stream.
    type Link: Link;
    /// A bound socket.
    type Listener: Listener<Link = Self::Link>;
    /// An open file.
    type File: File;

    /// Resolves `address` (`host:port`) anew and connects, with `TCP_NODELAY`. Cancel-safe.
    fn connect(&self, address: &str) -> impl Future<Output = io::Result<Self::Link>> + Send;
    /// Binds `address` (`host:port`, port 0 for any).
    fn listen(&self, address: &str) -> impl Future<Output = io::Result<Self::Listener>> + Send;

    /// Opens for reading and appending, creating the file (not its directory) where it is missing.
    fn open(&self, path: &Path) -> io::Result<Self::File>;
    /// Creates a directory and its parents.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;
    /// The entries of a directory, sorted by name.
    fn list_dir(&self, path: &Path) -> io::Result<Vec<PathBuf>>;
    /// Renames atomically; durable only after [`Env::sync_dir`] of the parent.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes the entries of a directory durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// True when `path` exists.
    fn exists(&self, path: &Path) -> bool;

    /// A uniformly distributed number, for jitter and ids.
    fn random(&self) -> u64;
    /// Milliseconds since the Unix epoch, for record and report times only (durations come from `tokio::time`).
    fn unix_millis(&self) -> i64;
}
