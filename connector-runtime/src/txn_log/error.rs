//! What can go wrong with a transaction log.

use std::io;
use std::path::{Path, PathBuf};

/// Why a transaction log cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// There is no room. Nothing was changed: the same call may be made again.
    #[error("transaction log {path}: no space left on the volume, {needed} bytes are needed")]
    NoSpace {
        /// The file.
        path: PathBuf,
        /// Bytes that did not fit.
        needed: u64,
    },
    /// Something that was durable is not what was written. Nothing was changed.
    #[error(
        "transaction log {path} is corrupt at offset {offset}: {what}; nothing was changed, restore the file or move it \
         away and accept the loss of its records"
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Offset in it.
        offset: u64,
        /// What is wrong there.
        what: String,
    },
    /// A sync failed: what the disk holds is unknown, so nothing may be promised until the log was recovered from disk by
    /// another process.
    #[error("transaction log {path}: sync failed: {cause}")]
    SyncFailed {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// Any other failure of the disk.
    #[error("transaction log {path}: {cause}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// The caller asked for what the log's state does not allow. A bug.
    #[error("transaction log {path}: {what}")]
    Misuse {
        /// The file.
        path: PathBuf,
        /// What was asked for.
        what: &'static str,
    },
}

impl LogError {
    pub(super) fn io(path: &Path) -> impl FnOnce(io::Error) -> LogError + '_ {
        move |cause| LogError::Io { path: path.to_owned(), cause }
    }

    pub(super) fn sync(path: &Path) -> impl FnOnce(io::Error) -> LogError + '_ {
        move |cause| LogError::SyncFailed { path: path.to_owned(), cause }
    }

    /// True when the failure is only a lack of room.
    pub(super) fn is_full(cause: &io::Error) -> bool {
        matches!(cause.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }
}
