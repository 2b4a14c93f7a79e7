//! Room that a log keeps back for the few bytes which end a transaction or begin a segment, so that a full volume can become
//! emptier.

use std::path::PathBuf;

use connector_env::{Env, File};

use super::error::LogError;

/// Bytes kept back: enough for a vote, its decision and the next segment's header, many times.
const BYTES: u64 = 64 * 1024;

/// Bytes given up at a time: a block of the usual file systems.
const STEP: u64 = 4 * 1024;

/// A file of nothing. What it holds is given up by making it shorter, and taken back once there is room again.
#[derive(Debug)]
pub(super) struct Reserve<F> {
    path: PathBuf,
    file: Option<F>,
    length: u64,
}

impl<F: File> Reserve<F> {
    /// A reserve without room.
    pub(super) fn at(path: PathBuf) -> Reserve<F> {
        Reserve { path, file: None, length: 0 }
    }

    /// Takes room, if there is any.
    pub(super) fn fill<E: Env<File = F>>(&mut self, env: &E) -> Result<(), LogError> {
        let Some(missing) = BYTES.checked_sub(self.length).filter(|missing| *missing > 0) else {
            return Ok(());
        };
        let file = match &mut self.file {
            Some(file) => file,
            None => match env.open(&self.path) {
                Ok(mut file) => {
                    // Whatever an earlier process kept back.
                    file.truncate(0).map_err(LogError::io(&self.path))?;
                    self.file.insert(file)
                }
                Err(cause) if LogError::is_full(&cause) => return Ok(()),
                Err(cause) => return Err(LogError::Io { path: self.path.clone(), cause }),
            },
        };
        match file.append(&vec![0; missing as usize]) {
            Ok(()) => self.length = BYTES,
            Err(cause) => {
                file.truncate(self.length).map_err(LogError::io(&self.path))?;
                if !LogError::is_full(&cause) {
                    return Err(LogError::Io { path: self.path.clone(), cause });
                }
            }
        }
        Ok(())
    }

    /// True when something was given up, and not taken back since.
    pub(super) fn is_short(&self) -> bool {
        self.file.is_some() && self.length < BYTES
    }

    /// Gives up some of the room; false when there is none left.
    pub(super) fn give_up(&mut self) -> Result<bool, LogError> {
        let Some(file) = self.file.as_mut().filter(|_| self.length > 0) else { return Ok(false) };
        self.length = self.length.saturating_sub(STEP);
        file.truncate(self.length).map_err(LogError::io(&self.path))?;
        Ok(true)
    }

    /// Removes the file.
    pub(super) fn remove<E: Env<File = F>>(&mut self, env: &E) -> Result<(), LogError> {
        (self.file, self.length) = (None, 0);
        if env.exists(&self.path) { env.remove(&self.path).map_err(LogError::io(&self.path)) } else { Ok(()) }
    }
}
