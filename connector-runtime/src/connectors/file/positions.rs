//! What a file source remembers about its files: which it began, and up to where each is acknowledged.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tokio::time::{Duration, Instant};

use super::identity::Identity;
use crate::record::Position;
use crate::source::{ErrorClass, SystemError};

/// Name of the file in the state directory.
const FILE_NAME: &str = "file-positions.json";

/// Version of its format.
const VERSION: u32 = 1;

/// Files that are remembered at most; rotation forgets each one that is done, so more means that nothing is acknowledged.
const MAX_FILES: usize = 64;

/// Acknowledged positions are saved at most this often: a save costs two syncs.
pub(super) const SAVE_INTERVAL: Duration = Duration::from_secs(1);

/// One remembered file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    path: String,
    #[serde(flatten)]
    identity: Identity,
    committed: Position,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Saved {
    version: u32,
    epoch: String,
    files: Vec<Entry>,
}

/// The remembered files, oldest first.
#[derive(Debug)]
pub(super) struct Positions {
    file: PathBuf,
    epoch: String,
    entries: Vec<Entry>,
    changed: bool,
    saved_at: Option<Instant>,
}

impl Positions {
    /// Reads what an earlier process saved. Another epoch starts with nothing.
    ///
    /// # Errors
    /// `Permanent/StateFileCorrupt` when the file is there and makes no sense; it is left as it is.
    pub(super) fn load(state: &Path, epoch: &str) -> Result<Positions, SystemError> {
        let file = state.join(FILE_NAME);
        let corrupt = |what: String| SystemError::Permanent {
            reason: "StateFileCorrupt",
            context: format!("state file {} cannot be used: {what}", file.display()),
        };
        let mut entries = Vec::new();
        match fs::read(&file) {
            Ok(bytes) => {
                let saved: Saved =
                    serde_json::from_slice(&bytes).map_err(|error| corrupt(error.to_string()))?;
                if saved.version != VERSION {
                    return Err(corrupt(format!("version {} is not {VERSION}", saved.version)));
                }
                if saved.epoch == epoch {
                    entries = saved.files;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(&file, "reading", error)),
        }
        Ok(Positions { file, epoch: epoch.to_owned(), entries, changed: false, saved_at: None })
    }

    /// Files of `path` that were begun and not done, oldest first.
    pub(super) fn begun(&self, path: &str) -> Vec<Identity> {
        self.entries.iter().filter(|entry| entry.path == path).map(|entry| entry.identity).collect()
    }

    /// Up to where a file is acknowledged; `None` when nothing is.
    pub(super) fn committed(&self, identity: Identity) -> Option<Position> {
        self.entries.iter().find(|entry| entry.identity == identity).map(|e| e.committed).filter(|p| *p > 0)
    }

    /// Remembers that a file is begun.
    pub(super) fn begin(&mut self, path: &str, identity: Identity) {
        if self.entries.iter().any(|entry| entry.identity == identity) {
            return;
        }
        if self.entries.len() >= MAX_FILES {
            let oldest = self.entries.remove(0);
            tracing::warn!(
                stream = oldest.identity.stream_name(&oldest.path),
                "too many rotated files, forgot the oldest"
            );
        }
        self.entries.push(Entry { path: path.to_owned(), identity, committed: 0 });
        self.changed = true;
    }

    /// Remembers an acknowledged position; an earlier one changes nothing.
    pub(super) fn commit(&mut self, identity: Identity, position: Position) {
        if let Some(entry) = self.entries.iter_mut().find(|entry| entry.identity == identity)
            && position > entry.committed
        {
            entry.committed = position;
            self.changed = true;
        }
    }

    /// Forgets a file.
    pub(super) fn forget(&mut self, identity: Identity) {
        let before = self.entries.len();
        self.entries.retain(|entry| entry.identity != identity);
        self.changed |= self.entries.len() != before;
    }

    /// Saves when something changed and the last save is [`SAVE_INTERVAL`] ago.
    pub(super) fn save_if_due(&mut self) -> Result<(), SystemError> {
        let due = self.saved_at.is_none_or(|at| at.elapsed() >= SAVE_INTERVAL);
        if due { self.save() } else { Ok(()) }
    }

    /// Saves when something changed: whole or not at all, and durably.
    pub(super) fn save(&mut self) -> Result<(), SystemError> {
        if !self.changed {
            return Ok(());
        }
        let saved = Saved { version: VERSION, epoch: self.epoch.clone(), files: self.entries.clone() };
        replace(&self.file, &saved).map_err(|error| failed(&self.file, "writing", error))?;
        self.changed = false;
        self.saved_at = Some(Instant::now());
        Ok(())
    }
}

fn replace(file: &Path, saved: &Saved) -> io::Result<()> {
    let directory = file.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(directory)?;
    let temporary = file.with_extension("json.new");
    let mut output = File::create(&temporary)?;
    output.write_all(&serde_json::to_vec_pretty(saved)?)?;
    output.sync_all()?;
    fs::rename(&temporary, file)?;
    File::open(directory)?.sync_all()
}

fn failed(file: &Path, doing: &str, error: io::Error) -> SystemError {
    SystemError::Transient {
        context: format!("{doing} state file {}: {error}", file.display()),
        class: ErrorClass::Rejected,
        cause: Some(error.into()),
    }
}
