//! Which file it is, whatever its name.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

/// Which file it is, whatever its name: the inode, and where the file system tells the time of its birth, because
/// inodes are used again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Identity {
    inode: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    born_nanos: Option<u64>,
}

impl Identity {
    pub(super) fn of(metadata: &Metadata) -> Identity {
        let born = metadata.created().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        Identity {
            inode: metadata.ino(),
            born_nanos: born.and_then(|time| u64::try_from(time.as_nanos()).ok()),
        }
    }

    /// The stream's name: the configured path and this file's identity.
    pub(super) fn stream_name(self, path: &str) -> String {
        match self.born_nanos {
            Some(nanos) => format!("{path}#{:x}-{nanos:x}", self.inode),
            None => format!("{path}#{:x}", self.inode),
        }
    }
}
