//! One file of a transaction log: appending, syncing, and scanning with the judgement of its end.

use std::path::{Path, PathBuf};

use bytes::BytesMut;
use connector_env::{Env, File};
use tokio::time::Instant;

use super::error::LogError;
use super::record::{HEAD, Parsed, Record, SUMMARY, parse, put, summary, whole_length};

/// Bytes read at a time while scanning.
const CHUNK: usize = 256 * 1024;

/// An open segment.
#[derive(Debug)]
pub(super) struct Segment<F> {
    pub(super) path: PathBuf,
    pub(super) number: u64,
    /// Committed offset, and number of records before it, at the segment's beginning.
    pub(super) first: u64,
    pub(super) first_records: u64,
    /// Committed offset at the segment's end; only of closed segments.
    pub(super) last: u64,
    /// Since when everything in it is durable at the target; only of closed segments.
    pub(super) durable_since: Option<Instant>,
    pub(super) length: u64,
    pub(super) file: F,
    synced: u64,
}

impl<F: File> Segment<F> {
    pub(super) fn new(path: PathBuf, number: u64, file: F, length: u64) -> Segment<F> {
        Segment {
            path,
            number,
            first: 0,
            first_records: 0,
            last: 0,
            durable_since: None,
            length,
            file,
            synced: 0,
        }
    }

    /// How much is known to be on stable storage.
    pub(super) fn synced(&self) -> u64 {
        self.synced
    }

    /// Appends; without room nothing is changed.
    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<(), LogError> {
        match self.file.append(bytes) {
            Ok(()) => {
                self.length += bytes.len() as u64;
                Ok(())
            }
            Err(cause) => {
                // What was written in part goes, so that the next append continues the records.
                self.file.truncate(self.length).map_err(LogError::io(&self.path))?;
                if LogError::is_full(&cause) {
                    return Err(LogError::NoSpace { path: self.path.clone(), needed: bytes.len() as u64 });
                }
                Err(LogError::Io { path: self.path.clone(), cause })
            }
        }
    }

    /// Makes all that was appended durable, and leaves the evidence of it behind.
    pub(super) fn sync(&mut self) -> Result<(), LogError> {
        if self.synced == self.length {
            return Ok(());
        }
        self.file.sync().map_err(LogError::sync(&self.path))?;
        self.synced = self.length;
        let mut evidence = BytesMut::with_capacity(HEAD + 16);
        put(&Record::Synced, self.synced, &mut evidence);
        match self.append(&evidence) {
            // Without it only damage to the very last sync is taken for a write that never became durable.
            Ok(()) | Err(LogError::NoSpace { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Makes the whole file durable, for it is not written to any more: the segment behind it is the evidence.
    pub(super) fn seal(&mut self) -> Result<(), LogError> {
        self.file.sync().map_err(LogError::sync(&self.path))?;
        self.synced = self.length;
        Ok(())
    }

    /// Cuts the file; durable on return.
    pub(super) fn cut(&mut self, length: u64) -> Result<(), LogError> {
        self.file.truncate(length).map_err(LogError::io(&self.path))?;
        self.file.sync().map_err(LogError::sync(&self.path))?;
        self.length = length;
        self.synced = length;
        Ok(())
    }

    pub(super) fn corrupt(&self, offset: u64, what: impl Into<String>) -> LogError {
        LogError::Corrupt { path: self.path.clone(), offset, what: what.into() }
    }

    /// Reads every record and hands over its offset, itself and its length. Returns where the sound records end: the end of the file, or
    /// with `open_end` the beginning of a write that never became durable.
    pub(super) fn scan(
        &self,
        open_end: bool,
        mut each: impl FnMut(u64, &Record<'_>, usize) -> Result<(), String>,
    ) -> Result<u64, LogError> {
        let mut window = Window::default();
        let mut at = 0;
        while at < self.length {
            let what = match parse(window.record(self, at)?) {
                Parsed::Record { record, synced, length } if synced <= at => {
                    each(at, &record, length).map_err(|what| self.corrupt(at, what))?;
                    at += length as u64;
                    continue;
                }
                Parsed::Record { .. } => "record is in the wrong place",
                Parsed::Incomplete => "record is cut off",
                Parsed::Bad(what) => what,
            };
            if !open_end {
                return Err(self.corrupt(at, what));
            }
            return match self.evidence_after(at)? {
                Some(evidence) => {
                    let what = format!("{what}, though the record at {evidence} shows that it was durable");
                    Err(self.corrupt(at, what))
                }
                None => Ok(at),
            };
        }
        Ok(at)
    }

    /// Looks behind a place that is no record for a record which says that the place was durable.
    fn evidence_after(&self, place: u64) -> Result<Option<u64>, LogError> {
        let mut window = Window::default();
        for at in place + 1..self.length {
            // The whole is read only where its first bytes say so.
            let candidate = window.at(self, at, SUMMARY)?;
            if summary(candidate).is_some_and(|synced| synced > place && synced <= at)
                && let Parsed::Record { .. } = parse(window.record(self, at)?)
            {
                return Ok(Some(at));
            }
        }
        Ok(None)
    }
}

/// A part of a segment in memory.
#[derive(Debug, Default)]
pub(super) struct Window {
    bytes: Vec<u8>,
    start: u64,
    segment: u64,
}

impl Window {
    /// The bytes from `at` on, a whole record where the file has it.
    pub(super) fn record<F: File>(&mut self, segment: &Segment<F>, at: u64) -> Result<&[u8], LogError> {
        let length = whole_length(self.at(segment, at, HEAD)?);
        self.at(segment, at, length)
    }

    /// The bytes from `at` on, at least `wanted` where the file has them.
    fn at<F: File>(&mut self, segment: &Segment<F>, at: u64, wanted: usize) -> Result<&[u8], LogError> {
        let there = segment.length.saturating_sub(at);
        let end = at + there.min(wanted as u64);
        let held =
            self.segment == segment.number && at >= self.start && end <= self.start + self.bytes.len() as u64;
        if !held {
            self.bytes.resize(there.min(wanted.max(CHUNK) as u64) as usize, 0);
            let read = segment.file.read_at(at, &mut self.bytes).map_err(LogError::io(&segment.path))?;
            self.bytes.truncate(read);
            self.start = at;
            self.segment = segment.number;
        }
        Ok(&self.bytes[(at - self.start) as usize..])
    }

    /// Forgets what was read: the file grew, or was cut and written again.
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.start = 0;
    }
}

/// Creates the file of a segment with its header, durable on return. Without room nothing is left behind.
pub(super) fn create<E: Env>(
    env: &E,
    directory: &Path,
    path: PathBuf,
    number: u64,
    header: &[u8],
) -> Result<Segment<E::File>, LogError> {
    let file = match env.open(&path) {
        Ok(file) => file,
        Err(cause) if LogError::is_full(&cause) => {
            return Err(LogError::NoSpace { path, needed: header.len() as u64 });
        }
        Err(cause) => return Err(LogError::Io { path, cause }),
    };
    let mut segment = Segment::new(path, number, file, 0);
    if let Err(error) = segment.append(header) {
        let path = segment.path.clone();
        drop(segment);
        env.remove(&path).map_err(LogError::io(&path))?;
        return Err(error);
    }
    segment.sync()?;
    env.sync_dir(directory).map_err(LogError::sync(directory))?;
    Ok(segment)
}
