//! The journal beside a sink's file: up to where the file is whole, and which positions that covers.
//!
//! One entry a line: the CRC-32C of the rest in hexadecimal, a space, a JSON object. An entry is written and
//! synced only after the data it speaks of is; so the last whole entry names bytes that are on the disk, and everything
//! in the file beyond them was never reported as durable. A torn entry at the end is one whose sync did not return.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::identity::Identity;
use crate::record::Position;
use crate::sink::SinkStream;

/// Size at which the journal is written anew with its last entries, in bytes.
const COMPACT_BYTES: u64 = 1_048_576;

/// Entries that compaction keeps: how many syncs a file that lost its end can go back.
const KEPT_ENTRIES: usize = 16;

/// Longest journal that is read, in bytes: compaction keeps it far below, so more is not ours.
const MAX_BYTES: u64 = 64 * COMPACT_BYTES;

/// State of the file at one sync.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    /// Whose positions these are: another state directory is another life, whose streams may have the same names.
    pub(super) owner: String,
    /// Which file: another one may stand at the path now.
    #[serde(flatten)]
    pub(super) file: Identity,
    /// Length up to which the file is whole.
    pub(super) length: u64,
    /// Last position of each stream within that length, or before it in a file that was moved away.
    pub(super) streams: Vec<StreamPosition>,
}

/// Position of one stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StreamPosition {
    pub(super) worker: String,
    pub(super) incarnation: u64,
    pub(super) position: Position,
}

impl StreamPosition {
    pub(super) fn new(stream: &SinkStream, position: Position) -> StreamPosition {
        StreamPosition { worker: stream.worker.clone(), incarnation: stream.incarnation, position }
    }

    pub(super) fn stream(&self) -> SinkStream {
        SinkStream { worker: self.worker.clone(), incarnation: self.incarnation }
    }
}

/// An open journal.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: File,
    length: u64,
    entries: Vec<Entry>,
}

/// Why a journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum JournalError {
    /// It is damaged in the middle; nothing was changed.
    #[error("journal {path} is damaged at line {line}", path = path.display())]
    Corrupt { path: PathBuf, line: usize },
    /// It cannot be read or written.
    #[error("journal {path}: {cause}", path = path.display())]
    Io { path: PathBuf, cause: io::Error },
    /// A sync failed: what is on the disk is unknown.
    #[error("syncing journal {path}: {cause}", path = path.display())]
    Sync { path: PathBuf, cause: io::Error },
}

impl Journal {
    /// The journal of a file at `path`.
    pub(super) fn path_for(data: &Path) -> PathBuf {
        let mut path = data.as_os_str().to_owned();
        path.push(".positions");
        path.into()
    }

    /// Opens or creates a journal; a torn entry at its end is cut off.
    pub(super) fn open(path: &Path) -> Result<Journal, JournalError> {
        let io = |cause| JournalError::Io { path: path.to_owned(), cause };
        let bytes = match fs::metadata(path) {
            Ok(metadata) if metadata.len() > MAX_BYTES => {
                return Err(JournalError::Corrupt { path: path.to_owned(), line: 0 });
            }
            Ok(_) => fs::read(path).map_err(io)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(io(error)),
        };
        let mut entries = Vec::new();
        let mut length = 0;
        let mut lines = bytes.split_inclusive(|byte| *byte == b'\n').enumerate().peekable();
        while let Some((number, line)) = lines.next() {
            match decode(line) {
                Some(entry) => entries.push(entry),
                None if lines.peek().is_none() => break,
                None => return Err(JournalError::Corrupt { path: path.to_owned(), line: number + 1 }),
            }
            length += line.len() as u64;
        }
        let file = OpenOptions::new().append(true).create(true).open(path).map_err(io)?;
        file.set_len(length).map_err(io)?;
        let journal = Journal { path: path.to_owned(), file, length, entries };
        journal.sync()?;
        sync_parent(path).map_err(io)?;
        Ok(journal)
    }

    /// All whole entries, oldest first.
    pub(super) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Adds an entry durably. After [`JournalError::Io`] the journal is as before and this may be tried again.
    pub(super) fn append(&mut self, entry: Entry) -> Result<(), JournalError> {
        if self.entries.last() == Some(&entry) {
            return Ok(());
        }
        let line = encode(&entry);
        if self.length + line.len() as u64 > COMPACT_BYTES && self.entries.len() > KEPT_ENTRIES {
            return self.compact(entry);
        }
        if let Err(cause) = self.file.write_all(&line) {
            let _ = self.file.set_len(self.length);
            return Err(JournalError::Io { path: self.path.clone(), cause });
        }
        self.sync()?;
        self.length += line.len() as u64;
        self.entries.push(entry);
        Ok(())
    }

    /// Writes the last entries and `entry` into a new journal and puts it in place of this one.
    fn compact(&mut self, entry: Entry) -> Result<(), JournalError> {
        let io = |cause| JournalError::Io { path: self.path.clone(), cause };
        let mut entries = self.entries.split_off(self.entries.len().saturating_sub(KEPT_ENTRIES));
        let kept = entries.clone();
        entries.push(entry);
        let bytes: Vec<u8> = entries.iter().flat_map(encode).collect();
        let mut temporary = self.path.as_os_str().to_owned();
        temporary.push(".new");
        let temporary = PathBuf::from(temporary);
        let replaced = File::create(&temporary)
            .and_then(|mut file| file.write_all(&bytes).and_then(|()| file.sync_all()))
            .and_then(|()| fs::rename(&temporary, &self.path))
            .and_then(|()| sync_parent(&self.path))
            .and_then(|()| OpenOptions::new().append(true).open(&self.path));
        match replaced {
            Ok(file) => {
                self.file = file;
                self.length = bytes.len() as u64;
                self.entries = entries;
                Ok(())
            }
            Err(cause) => {
                let error = io(cause);
                self.entries = kept;
                Err(error)
            }
        }
    }

    fn sync(&self) -> Result<(), JournalError> {
        self.file.sync_data().map_err(|cause| JournalError::Sync { path: self.path.clone(), cause })
    }
}

fn encode(entry: &Entry) -> Vec<u8> {
    // Numbers and strings only: this cannot fail.
    let json = serde_json::to_string(entry).unwrap_or_default();
    format!("{:08x} {json}\n", crc32c::crc32c(json.as_bytes())).into_bytes()
}

fn decode(line: &[u8]) -> Option<Entry> {
    let text = std::str::from_utf8(line.strip_suffix(b"\n")?).ok()?;
    let (crc, json) = text.split_at_checked(8)?;
    let json = json.strip_prefix(' ')?;
    (u32::from_str_radix(crc, 16).ok()? == crc32c::crc32c(json.as_bytes())).then_some(())?;
    serde_json::from_str(json).ok()
}

/// Makes a file's name durable.
pub(super) fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        Some(parent) => File::open(parent)?.sync_all(),
        None => File::open(".")?.sync_all(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(length: u64) -> Entry {
        let stream = SinkStream { worker: "worker-0".into(), incarnation: 7 };
        Entry {
            owner: "o".into(),
            file: Identity::default(),
            length,
            streams: vec![StreamPosition::new(&stream, length * 10)],
        }
    }

    #[test]
    fn a_torn_last_entry_is_cut_off_and_a_damaged_one_before_is_refused_unchanged() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("j");
        let mut journal = Journal::open(&path).unwrap();
        journal.append(entry(1)).unwrap();
        journal.append(entry(2)).unwrap();
        let whole = fs::read(&path).unwrap();
        let first = encode(&entry(1)).len();
        for cut in first..whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            assert_eq!(Journal::open(&path).unwrap().entries(), [entry(1)], "cut at {cut}");
            assert_eq!(fs::read(&path).unwrap(), &whole[..first]);
        }
        let mut damaged = whole.clone();
        damaged[12] ^= 1;
        fs::write(&path, &damaged).unwrap();
        let error = Journal::open(&path).unwrap_err().to_string();
        assert!(error.ends_with("is damaged at line 1"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), damaged);
    }

    #[test]
    fn it_stays_bounded_and_keeps_its_last_entries() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("j");
        let mut journal = Journal::open(&path).unwrap();
        // Long worker names, so that few syncs reach the bound.
        let wide = |length| Entry {
            streams: vec![StreamPosition { worker: "w".repeat(65_536), incarnation: 1, position: length }],
            ..entry(length)
        };
        for length in 1..=40 {
            journal.append(wide(length)).unwrap();
            assert!(fs::metadata(&path).unwrap().len() <= COMPACT_BYTES + 3 * 65_536 + 4_096);
        }
        let read = Journal::open(&path).unwrap();
        assert_eq!(read.entries().last(), Some(&wide(40)));
        assert!(read.entries().len() > 1 && read.entries().len() < 40);
        assert_eq!(read.entries(), journal.entries());
    }
}
