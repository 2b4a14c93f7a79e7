//! The workspace's only `unsafe` code: the librdkafka queue calls that a batch consumer needs, and `SIOCOUTQ`.

#[cfg(feature = "kafka")]
pub mod kafka;

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Bytes written to a TCP socket that the peer's kernel has not acknowledged yet (`ioctl(SIOCOUTQ)`, see tcp(7)).
pub fn unacknowledged_bytes(socket: &impl AsFd) -> io::Result<u64> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the descriptor is open for as long as `socket` is borrowed, and TIOCOUTQ (the number of SIOCOUTQ)
    // writes one `int` to the pointer, which is valid and exclusive here.
    let result = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(u64::try_from(bytes).unwrap_or(0)) }
}
