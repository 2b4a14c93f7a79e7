//! What a completed checkpoint holds, and the recovery file that keeps it.
//!
//! The file is one line, `wallaroo-endpoint 1 <CRC-32C of the rest, hexadecimal>`, and a JSON document.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use connector_env::{Env, File};
use serde::{Deserialize, Serialize};

use crate::application::Totals;

/// Name of the recovery file in the state directory.
pub const FILE_NAME: &str = "checkpoint.json";
const NEW_FILE_NAME: &str = "checkpoint.json.new";
const MAGIC: &str = "wallaroo-endpoint 1 ";

/// A larger recovery file is refused: it cannot be one of ours (a million words and streams stay far below).
const MAX_FILE: u64 = 1 << 30;

/// The state of a cluster at a checkpoint.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq)]
pub(crate) struct Snapshot {
    /// Number of the checkpoint; 0 before the first one.
    pub(crate) checkpoint: u64,
    /// Members of the cluster.
    #[serde(default)]
    pub(crate) workers: Vec<String>,
    /// Members that leave when this checkpoint completes.
    #[serde(default)]
    pub(crate) leaving: Vec<String>,
    /// Streams of the registry.
    pub(crate) streams: BTreeMap<u64, SavedStream>,
    /// Sinks by `worker/sink`.
    pub(crate) sinks: BTreeMap<String, SavedSink>,
    /// State of `word-count`.
    pub(crate) totals: Totals,
}

/// A stream at a checkpoint.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
pub(crate) struct SavedStream {
    /// Its name, bytes.
    pub(crate) name: Vec<u8>,
    /// Last id covered by the checkpoint.
    pub(crate) position: Option<u64>,
}

/// A sink link at a checkpoint.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq)]
pub(crate) struct SavedSink {
    /// End of its output.
    pub(crate) offset: u64,
    /// The transaction that the checkpoint commits; plain sinks and checkpoints without a vote have none.
    pub(crate) transaction: Option<String>,
}

/// Why a recovery file cannot be read or written. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The file system said no.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Not what was written.
    #[error(
        "{}: not a whole recovery file ({reason}); move it away to start afresh, the endpoint leaves it as it is",
        path.display()
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> StateError + '_ {
    move |source| StateError::Io { path: path.to_owned(), source }
}

fn encode(snapshot: &Snapshot) -> io::Result<Vec<u8>> {
    let json = serde_json::to_vec(snapshot).map_err(io::Error::other)?;
    let mut file = format!("{MAGIC}{:08x}\n", crc32c::crc32c(&json)).into_bytes();
    file.extend_from_slice(&json);
    Ok(file)
}

fn decode(bytes: &[u8]) -> Result<Snapshot, String> {
    let line = bytes.iter().position(|byte| *byte == b'\n').ok_or("no first line")?;
    let (head, json) = (&bytes[..line], &bytes[line + 1..]);
    let sum = std::str::from_utf8(head)
        .ok()
        .and_then(|head| head.strip_prefix(MAGIC))
        .and_then(|sum| u32::from_str_radix(sum, 16).ok())
        .ok_or("unknown first line")?;
    if sum != crc32c::crc32c(json) {
        return Err("checksum differs".to_owned());
    }
    serde_json::from_slice(json).map_err(|error| error.to_string())
}

/// Makes `snapshot` the recovery file: written beside, synced, renamed, directory synced.
pub(crate) fn save<E: Env>(env: &E, directory: &Path, snapshot: &Snapshot) -> Result<(), StateError> {
    let (path, new) = (directory.join(FILE_NAME), directory.join(NEW_FILE_NAME));
    let write = || {
        if env.exists(&new) {
            env.remove(&new)?;
        }
        let mut file = env.open(&new)?;
        file.append(&encode(snapshot)?)?;
        file.sync()?;
        env.rename(&new, &path)?;
        env.sync_dir(directory)
    };
    write().map_err(io_error(&path))
}

/// The last completed checkpoint; `None` for a fresh cluster. Creates the directory.
pub(crate) fn load<E: Env>(env: &E, directory: &Path) -> Result<Option<Snapshot>, StateError> {
    env.create_dir_all(directory).map_err(io_error(directory))?;
    let path = directory.join(FILE_NAME);
    if !env.exists(&path) {
        return Ok(None);
    }
    let read = || {
        let file = env.open(&path)?;
        let length = file.len()?;
        if length > MAX_FILE {
            return Ok(Err("longer than 1 GiB".to_owned()));
        }
        let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
        let read = file.read_at(0, &mut bytes)?;
        bytes.truncate(read);
        Ok(decode(&bytes))
    };
    match read().map_err(io_error(&path))? {
        Ok(snapshot) => Ok(Some(snapshot)),
        Err(reason) => Err(StateError::Corrupt { path, reason }),
    }
}

/// Removes the recovery file, as a worker that is stopped gracefully does (§8).
pub(crate) fn delete<E: Env>(env: &E, directory: &Path) -> Result<(), StateError> {
    for name in [FILE_NAME, NEW_FILE_NAME] {
        let path = directory.join(name);
        if env.exists(&path) {
            env.remove(&path).map_err(io_error(&path))?;
        }
    }
    env.sync_dir(directory).map_err(io_error(directory))
}

#[cfg(test)]
mod tests {
    use connector_env::TokioEnv;

    use super::*;

    fn snapshot() -> Snapshot {
        Snapshot {
            checkpoint: 7,
            workers: vec!["initializer".to_owned()],
            leaving: Vec::new(),
            streams: BTreeMap::from([
                (u64::MAX, SavedStream { name: vec![0xff, 0], position: Some(u64::MAX - 1) }),
                (1, SavedStream { name: b"s".to_vec(), position: None }),
            ]),
            sinks: BTreeMap::from([(
                "initializer/out".to_owned(),
                SavedSink { offset: 42, transaction: Some("t:c_id=7".to_owned()) },
            )]),
            totals: Totals::from([("word".to_owned(), 3)]),
        }
    }

    #[test]
    fn the_newest_snapshot_comes_back_and_a_deleted_one_does_not() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path().join("state");
        assert_eq!(load(&TokioEnv, &directory).unwrap(), None);
        save(&TokioEnv, &directory, &Snapshot::default()).unwrap();
        save(&TokioEnv, &directory, &snapshot()).unwrap();
        assert_eq!(load(&TokioEnv, &directory).unwrap(), Some(snapshot()));
        delete(&TokioEnv, &directory).unwrap();
        assert_eq!(load(&TokioEnv, &directory).unwrap(), None);
    }

    #[test]
    fn a_damaged_file_is_refused_by_name_and_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        save(&TokioEnv, directory.path(), &snapshot()).unwrap();
        let path = directory.path().join(FILE_NAME);
        let mut bytes = std::fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let error = load(&TokioEnv, directory.path()).unwrap_err().to_string();
        assert!(error.contains(FILE_NAME) && error.contains("checksum differs"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
    }
}
