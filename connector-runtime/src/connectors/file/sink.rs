//! File sink: appends records, and over the `Connector` protocol does so exactly once.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use connector_crds::systems::file::{FileFormat, FileSink as Spec};
use tokio::time::{Duration, Instant};

use super::super::{Context, set_position};
use super::framing::append;
use super::identity::Identity;
use super::journal::{Entry, Journal, JournalError, StreamPosition, sync_parent};
use super::owner::owner;
use crate::record::{Batch, Position};
use crate::sink::{Rejected, Sink, SinkStream, SystemError, Written};
use crate::source::ErrorClass;

/// Bytes that may wait for a sync: what a recovery has to write again at most.
const SYNC_BYTES: u64 = 16_777_216;

/// Longest time between two syncs while records come.
const SYNC_INTERVAL: Duration = Duration::from_secs(1);

/// Appends each record to one file; its directory is created when missing.
///
/// **Formats.** `Lines`: the record and a line feed; a line feed at the record's end is that line feed, one inside is
/// rejected. `LengthPrefixed`: a length of 4 bytes big-endian and the record, any bytes. Keys are not written.
///
/// **Durable** means `fdatasync` returned: at `flush`, and while records come after 16 MiB or a second.
///
/// **Exactly once** where positions are stable. Beside the file stands a journal, `<path>.positions`. Each sync first
/// syncs the data, then adds a journal entry (length of the file, position of every stream) and syncs that; only then
/// the positions count as durable. `open` after a crash cuts the file to the length of the last whole entry, which
/// removes exactly the records that were never reported as durable, and returns the entry's positions; the pump writes
/// the rest again. Several streams share the file, so one entry speaks of all of them. An entry also names the state
/// directory that its positions belong to: with another one (a replaced volume) they count for nothing, and what the
/// file holds stays. Readers may see records that a recovery takes back and writes again; the file belongs to this
/// Connector while the journal is there.
///
/// **Rotation** by rename is noticed at each sync: the positions stay, a new file is begun. A file that is *shorter*
/// than its last entry goes back to the newest entry that it still holds (or to nothing), and `open` says so by its
/// position.
///
/// **Trouble.** When an append fails (no space), what was written of it is cut off and the batch can be written again.
/// When a sync fails, what the disk holds is unknown: everything fails as permanent until a new process recovers. A
/// second writer is kept out by a lock.
#[derive(Debug)]
pub struct FileSink {
    path: PathBuf,
    format: FileFormat,
    exactly_once: bool,
    state: PathBuf,
    open: Option<Open>,
    accepted: BTreeMap<SinkStream, Position>,
    durable: BTreeMap<SinkStream, Position>,
    buffer: Vec<u8>,
    unsynced: u64,
    synced_at: Instant,
    poisoned: Option<String>,
}

#[derive(Debug)]
struct Open {
    file: File,
    identity: Identity,
    length: u64,
    journal: Option<(Journal, String)>,
}

impl FileSink {
    /// A sink that opens and recovers its file with the first `open` or `write`.
    pub fn new(spec: &Spec, context: &Context) -> FileSink {
        FileSink {
            path: context.base.join(&spec.path),
            format: spec.format,
            exactly_once: context.stable_positions,
            state: context.state.clone(),
            open: None,
            accepted: BTreeMap::new(),
            durable: BTreeMap::new(),
            buffer: Vec::new(),
            unsynced: 0,
            synced_at: Instant::now(),
            poisoned: None,
        }
    }

    /// The open file, opened and recovered where it is not.
    fn ready(&mut self) -> Result<&mut Open, SystemError> {
        if let Some(why) = &self.poisoned {
            return Err(SystemError::Permanent { reason: "FileSyncFailed", context: why.clone() });
        }
        let open = match self.open.take() {
            Some(open) => open,
            None => self.recover()?,
        };
        Ok(self.open.insert(open))
    }

    /// Opens the file and brings it and the positions to the state of the last sync.
    fn recover(&mut self) -> Result<Open, SystemError> {
        let (file, metadata) = open_locked(&self.path).map_err(|error| self.failed("opening", error))?;
        if !metadata.is_file() {
            return Err(SystemError::Permanent {
                reason: "NotAFile",
                context: format!("{} is not a regular file", self.path.display()),
            });
        }
        let mut length = metadata.len();
        let identity = Identity::of(&metadata);
        let journal_path = Journal::path_for(&self.path);
        if !self.exactly_once {
            // Positions of another time would cut off what is appended now.
            match fs::remove_file(&journal_path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(self.failed("removing the journal of", error));
                }
                _ => return Ok(Open { file, identity, length, journal: None }),
            }
        }
        let owner = owner(&self.state).map_err(|error| self.failed("naming the owner of", error))?;
        let mut journal = Journal::open(&journal_path).map_err(|error| self.journal_failed(error))?;
        let last = journal.entries().last().filter(|last| last.owner == owner).cloned();
        let entry = match last {
            // The first time, or the first with this state directory: what the file holds stays.
            None => Entry { owner: owner.clone(), file: identity, length, streams: Vec::new() },
            // The file was moved or deleted by its owner: its records were delivered.
            Some(last) if last.file != identity => {
                Entry { owner: owner.clone(), file: identity, length, streams: last.streams }
            }
            Some(last) => {
                let held = journal
                    .entries()
                    .iter()
                    .rev()
                    .find(|e| e.file == identity && e.length <= length)
                    .cloned();
                if length < last.length {
                    tracing::warn!(
                        path = %self.path.display(),
                        length,
                        expected = last.length,
                        "file is shorter than what was durable, it went back"
                    );
                }
                held.unwrap_or(Entry { owner: owner.clone(), file: identity, length, streams: Vec::new() })
            }
        };
        if entry.length < length {
            let cut = file.set_len(entry.length).and_then(|()| file.sync_all());
            cut.map_err(|error| self.failed("cutting the unfinished end of", error))?;
            length = entry.length;
        }
        let positions = entry.streams.iter().map(|s| (s.stream(), s.position)).collect();
        journal.append(entry).map_err(|error| self.journal_failed(error))?;
        self.durable = positions;
        self.accepted.clone_from(&self.durable);
        self.unsynced = 0;
        Ok(Open { file, identity, length, journal: Some((journal, owner)) })
    }

    /// Makes everything accepted durable: data first, then the journal entry that speaks of it.
    fn sync(&mut self) -> Result<(), SystemError> {
        self.synced_at = Instant::now();
        if self.unsynced == 0 && self.durable == self.accepted {
            return Ok(());
        }
        let Some(open) = &mut self.open else { return Ok(()) };
        if let Err(error) = open.file.sync_data() {
            return Err(self.poison(&format!("syncing file {}: {error}", self.path.display())));
        }
        if let Some((journal, owner)) = &mut open.journal {
            let streams = self.accepted.iter().map(|(s, p)| StreamPosition::new(s, *p)).collect();
            let entry = Entry { owner: owner.clone(), file: open.identity, length: open.length, streams };
            if let Err(error) = journal.append(entry) {
                return Err(self.journal_failed(error));
            }
        }
        self.durable.clone_from(&self.accepted);
        self.unsynced = 0;
        // Everything is durable, so nothing is lost by going on in another file.
        let moved =
            fs::metadata(&self.path).map_or(true, |metadata| Identity::of(&metadata) != open.identity);
        if moved {
            tracing::info!(path = %self.path.display(), "file was moved away, a new one is begun");
            self.open = None;
        }
        Ok(())
    }

    fn poison(&mut self, what: &str) -> SystemError {
        let context = format!(
            "{what}; what the disk holds is unknown, so nothing is written until a restart recovers it"
        );
        self.poisoned = Some(context.clone());
        self.open = None;
        SystemError::Permanent { reason: "FileSyncFailed", context }
    }

    fn failed(&self, doing: &str, error: io::Error) -> SystemError {
        let hint = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "; records wait until there is room",
            io::ErrorKind::WouldBlock => "; another process writes to it",
            _ => "",
        };
        let what = match error.kind() {
            io::ErrorKind::WouldBlock => "it is locked".to_owned(),
            _ => error.to_string(),
        };
        SystemError::Transient {
            context: format!("{doing} file {}: {what}{hint}", self.path.display()),
            class: match error.kind() {
                io::ErrorKind::PermissionDenied => ErrorClass::Auth,
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorClass::Throttled,
                _ => ErrorClass::Rejected,
            },
            cause: Some(error.into()),
        }
    }

    fn journal_failed(&mut self, error: JournalError) -> SystemError {
        match error {
            JournalError::Corrupt { .. } => SystemError::Permanent {
                reason: "JournalCorrupt",
                context: format!("{error}; restore it, or remove it and accept repeated records"),
            },
            JournalError::Sync { .. } => self.poison(&error.to_string()),
            JournalError::Io { cause, .. } => self.failed("writing the journal of", cause),
        }
    }
}

/// Opens for appending and takes the lock; a new file and its directory are durable on return.
fn open_locked(path: &Path) -> io::Result<(File, fs::Metadata)> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    if let Some(parent) = parent {
        fs::create_dir_all(parent)?;
    }
    let file = OpenOptions::new().append(true).read(true).create(true).open(path)?;
    file.try_lock().map_err(|error| match error {
        fs::TryLockError::WouldBlock => io::ErrorKind::WouldBlock.into(),
        fs::TryLockError::Error(error) => error,
    })?;
    let metadata = file.metadata()?;
    sync_parent(path)?;
    Ok((file, metadata))
}

#[async_trait]
impl Sink for FileSink {
    async fn open(&mut self, stream: &SinkStream) -> Result<Option<Position>, SystemError> {
        self.ready()?;
        Ok(if self.exactly_once { self.accepted.get(stream).copied() } else { None })
    }

    async fn write(&mut self, stream: &SinkStream, batch: &Batch) -> Result<Written, SystemError> {
        self.ready()?;
        let mut rejected = Vec::new();
        self.buffer.clear();
        self.buffer.reserve(batch.bytes() + 4 * batch.len());
        for (index, record) in batch.iter().enumerate() {
            if let Err(reason) = append(self.format, record.payload, &mut self.buffer) {
                rejected.push(Rejected { index, reason });
            }
        }
        if let Some(open) = &mut self.open {
            if let Err(error) = open.file.write_all(&self.buffer) {
                // What was written of the batch goes, so that it can be written again.
                return Err(match open.file.set_len(open.length) {
                    Ok(()) => self.failed("writing to", error),
                    Err(cut) => self.poison(&format!(
                        "writing to file {}: {error}, and cutting it back: {cut}",
                        self.path.display()
                    )),
                });
            }
            open.length += self.buffer.len() as u64;
            self.unsynced += self.buffer.len() as u64;
        }
        if let Some(position) = batch.last_position() {
            set_position(&mut self.accepted, stream, position);
        }
        // Nothing that was refused is passed over durably before the pump has dealt with it.
        let due = self.unsynced >= SYNC_BYTES || self.synced_at.elapsed() >= SYNC_INTERVAL;
        if due && rejected.is_empty() {
            match self.sync() {
                // The batch is accepted: an error would have it written twice. The next sync reports what persists.
                Ok(()) | Err(SystemError::Transient { .. }) => {}
                Err(permanent) => return Err(permanent),
            }
        }
        Ok(Written::rejecting(rejected))
    }

    fn durable(&self) -> Vec<(SinkStream, Position)> {
        self.durable.iter().map(|(stream, position)| (stream.clone(), *position)).collect()
    }

    async fn flush(&mut self, _deadline: Instant) -> Result<(), SystemError> {
        if self.poisoned.is_some() {
            self.ready()?;
        }
        self.sync()
    }

    async fn archive(&mut self, stream: &SinkStream) -> Result<(), SystemError> {
        self.ready()?;
        self.accepted.remove(stream);
        self.sync()
    }

    async fn check(&mut self) -> Result<(), SystemError> {
        self.ready().map(|_| ())
    }
}

#[cfg(test)]
#[path = "sink_tests.rs"]
mod tests;
