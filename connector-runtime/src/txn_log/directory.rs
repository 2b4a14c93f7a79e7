//! The directory of transaction logs: names of its files, and which logs are there.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use connector_env::Env;
use sha2::{Digest, Sha256};

use super::error::LogError;

/// Last part of a segment's name.
const EXTENSION: &str = "txn";

/// Longest part of a worker's name that a file's name holds; file names end at 255 bytes.
const MAX_STEM: usize = 120;

/// The directory of transaction logs in a state volume.
pub fn directory(state: &Path) -> PathBuf {
    state.join("txn-log")
}

/// A worker's name as part of a file's name: letters, digits, `-` and `_` as they are, other bytes as `%XX`; a long name is
/// cut and told apart by a hash.
pub(super) fn stem(worker: &[u8]) -> String {
    let mut stem = String::new();
    for byte in worker {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => stem.push(char::from(*byte)),
            _ => {
                let _ = write!(stem, "%{byte:02x}"); // writing to a String cannot fail
            }
        }
    }
    if stem.is_empty() {
        stem.push('%');
    }
    if stem.len() > MAX_STEM {
        let hash = Sha256::digest(worker);
        stem.truncate(MAX_STEM);
        stem.push('%');
        for byte in hash.iter().take(16) {
            let _ = write!(stem, "{byte:02x}");
        }
    }
    stem
}

/// Path of a segment.
pub(super) fn segment_path(directory: &Path, worker: &[u8], incarnation: u64, segment: u64) -> PathBuf {
    directory.join(format!("{}.{incarnation:020}.{segment:020}.{EXTENSION}", stem(worker)))
}

/// Path of the room that a log keeps back.
pub(super) fn reserve_path(directory: &Path, worker: &[u8], incarnation: u64) -> PathBuf {
    directory.join(format!("{}.{incarnation:020}.reserve", stem(worker)))
}

/// The segments of each log, by worker's stem and incarnation, in order.
pub(super) type Found = BTreeMap<(String, u64), Vec<(u64, PathBuf)>>;

/// Lists the logs of a directory; a missing one has none. Files of other names are not ours and stay.
pub(super) fn list<E: Env>(env: &E, directory: &Path) -> Result<Found, LogError> {
    let mut found = Found::new();
    if !env.exists(directory) {
        return Ok(found);
    }
    for path in env.list_dir(directory).map_err(LogError::io(directory))? {
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let mut parts = name.rsplitn(4, '.');
        let (Some(EXTENSION), Some(segment), Some(incarnation), Some(stem)) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            continue;
        };
        if let (Ok(incarnation), Ok(segment)) = (incarnation.parse(), segment.parse()) {
            found.entry((stem.to_owned(), incarnation)).or_default().push((segment, path.clone()));
        }
    }
    for segments in found.values_mut() {
        segments.sort_unstable();
    }
    Ok(found)
}
