//! [`TokioEnv`]: the operating system, by tokio's sockets and `std::fs`.

use std::collections::hash_map::RandomState;
use std::fs;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Duration;

use crate::{Env, File, Link, Listener};

/// How long a peer's kernel may leave sent bytes or a probe unanswered before the link breaks. A host that vanished
/// without a word is then noticed within a minute instead of the kernel's quarter of an hour; a peer that is alive and
/// does not read answers probes and is never cut off for it (Linux 5.11 and later).
const PEER_TIMEOUT: Duration = Duration::from_secs(45);

/// Pause on an idle link before the first probe, and between probes.
const PROBE_INTERVAL: Duration = Duration::from_secs(15);

/// Small frames at once, and a peer that vanishes is noticed.
fn set_up(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(PROBE_INTERVAL).with_interval(PROBE_INTERVAL))?;
    socket.set_tcp_user_timeout(Some(PEER_TIMEOUT))
}

/// The real environment.
#[derive(Clone, Copy, Debug, Default)]
pub struct TokioEnv;

impl Link for TcpStream {
    fn unacknowledged(&self) -> io::Result<u64> {
        connector_native::unacknowledged_bytes(self)
    }
}

impl Listener for TcpListener {
    type Link = TcpStream;

    async fn accept(&mut self) -> io::Result<(TcpStream, String)> {
        let (stream, peer) = TcpListener::accept(self).await?;
        set_up(&stream)?;
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
        set_up(&stream)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    #[tokio::test]
    async fn bytes_that_the_peers_kernel_took_count_as_acknowledged() {
        let mut listener = TokioEnv.listen("127.0.0.1:0").await.unwrap();
        let address = format!("127.0.0.1:{}", Listener::port(&listener));
        let (link, accepted) = tokio::join!(TokioEnv.connect(&address), Listener::accept(&mut listener));
        let (mut link, (mut peer, _)) = (link.unwrap(), accepted.unwrap());
        link.write_all(b"0123456789").await.unwrap();
        peer.read_exact(&mut [0; 10]).await.unwrap();
        tokio::time::timeout(Duration::from_secs(5), async {
            while link.unacknowledged().unwrap() > 0 {
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap();
    }

    #[test]
    fn a_file_is_appended_to_read_at_positions_and_cut() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let mut file = TokioEnv.open(&path).unwrap();
        file.append(b"abc").unwrap();
        file.append(b"def").unwrap();
        file.truncate(4).unwrap();
        file.append(b"X").unwrap();
        file.sync().unwrap();
        let mut buffer = [0; 8];
        assert_eq!(file.read_at(1, &mut buffer).unwrap(), 4);
        assert_eq!((&buffer[..4], file.len().unwrap()), (&b"bcdX"[..], 5));
        TokioEnv.rename(&path, &directory.path().join("old")).unwrap();
        TokioEnv.sync_dir(directory.path()).unwrap();
        assert_eq!(TokioEnv.list_dir(directory.path()).unwrap(), [directory.path().join("old")]);
    }
}
