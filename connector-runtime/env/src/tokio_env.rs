//! [`TokioEnv`]: the operating system, by tokio's sockets and `std::fs`.

use std::collections::hash_map::RandomState;
use std::fs;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::net::{TcpListener, TcpStream};

use crate::{Env, File, Link, Listener};

/// The real environment.
#[derive(Clone, Copy, Debug, Default)]
pub struct TokioEnv;

/// How a link asks its socket for the bytes that the peer has not acknowledged.
fn unacknowledged(stream: &TcpStream) -> io::Result<u64> {
    connector_native::unacknowledged_bytes(stream)
}

impl Link for TcpStream {
    fn unacknowledged(&self) -> io::Result<u64> {
        unacknowledged(self)
    }
}

impl Listener for TcpListener {
    type Link = TcpStream;

    async fn accept(&mut self) -> io::Result<(TcpStream, String)> {
        let (stream, peer) = TcpListener::accept(self).await?;
        stream.set_nodelay(true)?;
        Ok((stream, peer.to_string()))
    }

    fn port(&self) -> u16 {
        self.local_addr().map_or(0, |address| address.port())
    }
}

/// A file of the operating system.
#[derive(Debug)]
pub struct TokioFile(fs::File);

impl File for TokioFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        io::Write::write_all(&mut self.0, bytes)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.0.read_at(&mut buffer[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn truncate(&mut self, length: u64) -> io::Result<()> {
        self.0.set_len(length)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.0.sync_data()
    }
}

impl Env for TokioEnv {
    type Link = TcpStream;
    type Listener = TcpListener;
    type File = TokioFile;

    async fn connect(&self, address: &str) -> io::Result<TcpStream> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    async fn listen(&self, address: &str) -> io::Result<TcpListener> {
        TcpListener::bind(address).await
    }

    fn open(&self, path: &Path) -> io::Result<TokioFile> {
        fs::OpenOptions::new().create(true).read(true).append(true).open(path).map(TokioFile)
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(path)
    }

    fn list_dir(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        let mut entries =
            fs::read_dir(path)?.map(|entry| entry.map(|e| e.path())).collect::<io::Result<Vec<_>>>()?;
        entries.sort();
        Ok(entries)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        fs::File::open(path)?.sync_all()
    }

    fn exists(&self, path: &Path) -> bool {
        path.exists()
    }

    fn random(&self) -> u64 {
        // A fresh `RandomState` is seeded by the operating system and stepped on every call.
        RandomState::new().build_hasher().finish()
    }

    fn unix_millis(&self) -> i64 {
        let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(elapsed.as_millis()).unwrap_or(i64::MAX)
    }
}
