//! The position log: where a system's own cursor stands for the counted positions that Wallaroo knows.
//!
//! Wallaroo's positions are 64-bit numbers; a sequence number of Kinesis, a log position of PostgreSQL or a key of S3 is
//! not. Where a system repeats its records in the same order, a source counts them: a record's position is the number
//! of records of its stream up to and including it, before any filter. An **anchor** is a position together with the
//! system's cursor right behind that record. To continue behind position `p` a source reads again from the greatest
//! anchor at or below `p` and skips what is up to `p`.
//!
//! **Order of writing.** [`PositionLog::acknowledge`] is durable on return; only then may the source commit at its
//! system, and let the system forget. Before that nothing needs to be durable: whoever lost a younger anchor finds an
//! older one, and the system still holds what came behind it.
//!
//! **On disk** the log is one small file that is replaced as a whole, so that a crash leaves the old one or the new one,
//! and both are true. It holds one line of checksum and version, and one JSON object a stream.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use connector_env::{Env, File};
use serde::{Deserialize, Serialize};

use crate::record::Position;

/// Name of the file in the state directory.
const FILE: &str = "positions.log";

/// Name under which it is written before it is renamed.
const TEMPORARY: &str = "positions.log.new";

/// Version of the format.
const VERSION: u32 = 1;

/// Longest cursor in bytes: the longest key of S3, whose cursors are the longest.
pub const MAX_CURSOR_BYTES: usize = 1_024;

/// Longest name of a stream in bytes.
pub const MAX_NAME_BYTES: usize = 1_024;

/// Streams that a log holds at most: ten times what one Connector can serve; more means that a source never forgets.
pub const MAX_STREAMS: usize = 10_000;

/// Longest file that is read, in bytes: what [`MAX_STREAMS`] of the longest names and cursors, escaped, can make.
const MAX_BYTES: u64 = 128 * 1_024 * 1_024;

/// Records between two anchors while everything is acknowledged in time: what is read again for nothing at most.
const SPACING: u64 = 1_000;

/// Anchors that one stream keeps in memory. With more, every other one is dropped and the spacing doubles: a longer way
/// to read again in place of memory without bound.
const MAX_ANCHORS: usize = 256;

/// A position and the system's cursor right behind its record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Anchor {
    /// Records up to here.
    pub position: Position,
    /// Where the system continues, in the system's own words.
    pub cursor: String,
}

/// What one stream's line says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    stream: String,
    acknowledged: Position,
    anchor: Anchor,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    finished: bool,
}

/// One stream.
#[derive(Clone, Debug)]
struct Stream {
    acknowledged: Position,
    /// In order; the first is at or below `acknowledged`.
    anchors: Vec<Anchor>,
    spacing: u64,
    finished: bool,
}

impl Stream {
    /// Index of the greatest anchor at or below a position.
    fn at(&self, position: Position) -> Option<usize> {
        self.anchors.partition_point(|anchor| anchor.position <= position).checked_sub(1)
    }
}

/// Why a position log cannot be used. Nothing was changed on disk.
#[derive(Debug, thiserror::Error)]
pub enum PositionLogError {
    /// It is not what was written.
    #[error(
        "position log {path} is corrupt: {what}; restore it, or remove it and accept that records are repeated \
         from the system's own committed position"
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The source gave what the log cannot hold.
    #[error("stream {stream}: {what}")]
    Refused {
        /// The stream.
        stream: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The disk failed or is full: the same call may be made again.
    #[error("position log {path}: {cause}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> PositionLogError + '_ {
    move |cause| PositionLogError::Io { path: path.to_owned(), cause }
}

/// The positions of all streams of one source.
#[derive(Debug)]
pub struct PositionLog<E: Env> {
    env: E,
    directory: PathBuf,
    epoch: String,
    streams: BTreeMap<String, Stream>,
    found: bool,
}

impl<E: Env> PositionLog<E> {
    /// Reads what an earlier process left in `directory`, which is created where missing. Another epoch
    /// (`positionReset`) starts with nothing.
    ///
    /// # Errors
    /// A file that is not what was written is refused and left as it is.
    pub fn open(env: &E, directory: &Path, epoch: &str) -> Result<PositionLog<E>, PositionLogError> {
        env.create_dir_all(directory).map_err(failed(directory))?;
        let path = directory.join(FILE);
        let found = env.exists(&path);
        let streams = if found {
            // An earlier process may have died between its rename and making that durable.
            env.sync_dir(directory).map_err(failed(directory))?;
            read(env, &path, epoch)?
        } else {
            BTreeMap::new()
        };
        Ok(PositionLog {
            env: env.clone(),
            directory: directory.to_owned(),
            epoch: epoch.to_owned(),
            streams,
            found,
        })
    }

    /// False when no earlier process left a log: with a position from Wallaroo that means the log is lost.
    pub fn was_there(&self) -> bool {
        self.found
    }

    /// The streams that are known, finished ones included, in the order of their names.
    pub fn streams(&self) -> impl Iterator<Item = &str> {
        self.streams.keys().map(String::as_str)
    }

    /// Up to where Wallaroo has everything, durably; `None` for an unknown stream.
    pub fn acknowledged(&self, stream: &str) -> Option<Position> {
        self.streams.get(stream).map(|stream| stream.acknowledged)
    }

    /// True for a stream that was read to its end and acknowledged; it is kept so that it is not begun again.
    pub fn is_finished(&self, stream: &str) -> bool {
        self.streams.get(stream).is_some_and(|stream| stream.finished)
    }

    /// From where to read again so as to continue behind `position`: the greatest anchor at or below it. `None` when the stream
    /// is unknown, or when `position` is before everything that the log still holds.
    pub fn resume_point(&self, stream: &str, position: Position) -> Option<&Anchor> {
        let stream = self.streams.get(stream)?;
        stream.at(position).map(|index| &stream.anchors[index])
    }

    /// Begins a stream: the records behind `cursor` are counted from `position` on. A known stream stays as it is.
    ///
    /// # Errors
    /// [`PositionLogError::Refused`] beyond the bounds.
    pub fn begin(&mut self, stream: &str, position: Position, cursor: &str) -> Result<(), PositionLogError> {
        if self.streams.contains_key(stream) {
            return Ok(());
        }
        let refused = |what| PositionLogError::Refused { stream: stream.to_owned(), what };
        if stream.is_empty() || stream.len() > MAX_NAME_BYTES {
            return Err(refused("its name is empty or longer than 1024 bytes"));
        }
        if cursor.len() > MAX_CURSOR_BYTES {
            return Err(refused("its cursor is longer than 1024 bytes"));
        }
        if self.streams.len() >= MAX_STREAMS {
            return Err(refused("there are 10000 others already"));
        }
        let first = Anchor { position, cursor: cursor.to_owned() };
        let begun =
            Stream { acknowledged: position, anchors: vec![first], spacing: SPACING, finished: false };
        self.streams.insert(stream.to_owned(), begun);
        Ok(())
    }

    /// Tells where the system's cursor stands behind the record at `position`: often, e.g. once a batch. Most of it is not kept.
    /// A position that is not beyond the last one changes nothing.
    ///
    /// # Errors
    /// [`PositionLogError::Refused`] for a stream that was not begun and for a cursor that is too long.
    pub fn note(&mut self, stream: &str, position: Position, cursor: &str) -> Result<(), PositionLogError> {
        let refused = |what| PositionLogError::Refused { stream: stream.to_owned(), what };
        let known = self.streams.get_mut(stream).ok_or_else(|| refused("it was not begun"))?;
        if cursor.len() > MAX_CURSOR_BYTES {
            return Err(refused("its cursor is longer than 1024 bytes"));
        }
        let last = known.anchors.last().map_or(0, |anchor| anchor.position);
        if position < last.saturating_add(known.spacing) {
            return Ok(());
        }
        if known.anchors.len() >= MAX_ANCHORS {
            let mut index = 0;
            // The first one stays: it is the only one that is surely at or below what is acknowledged.
            known.anchors.retain(|_| {
                index += 1;
                index % 2 == 1
            });
            known.spacing = known.spacing.saturating_mul(2);
        }
        known.anchors.push(Anchor { position, cursor: cursor.to_owned() });
        Ok(())
    }

    /// Wallaroo has everything up to and including each position. Durable on return; positions never go back.
    ///
    /// # Errors
    /// After [`PositionLogError::Io`] nothing is taken as acknowledged, and the call may be made again.
    pub fn acknowledge<'a>(
        &mut self,
        positions: impl IntoIterator<Item = (&'a str, Position)>,
    ) -> Result<(), PositionLogError> {
        let changed = positions.into_iter().filter_map(|(name, position)| {
            let stream = self.streams.get(name).filter(|stream| position > stream.acknowledged)?;
            let mut stream = stream.clone();
            stream.acknowledged = position;
            stream.anchors.drain(..stream.at(position).unwrap_or(0));
            if stream.anchors.len() < MAX_ANCHORS / 4 {
                stream.spacing = SPACING;
            }
            Some((name.to_owned(), Some(stream)))
        });
        let changed = changed.collect();
        self.change(changed)
    }

    /// The stream was read to its end, and all of it is acknowledged: it is not to be begun again. Durable on return.
    ///
    /// # Errors
    /// As [`PositionLog::acknowledge`].
    pub fn finish(&mut self, stream: &str) -> Result<(), PositionLogError> {
        let Some(known) = self.streams.get(stream).filter(|known| !known.finished) else { return Ok(()) };
        let finished = Stream { finished: true, ..known.clone() };
        self.change(BTreeMap::from([(stream.to_owned(), Some(finished))]))
    }

    /// The system does not name the stream any more. Durable on return.
    ///
    /// # Errors
    /// As [`PositionLog::acknowledge`].
    pub fn forget(&mut self, stream: &str) -> Result<(), PositionLogError> {
        if !self.streams.contains_key(stream) {
            return Ok(());
        }
        self.change(BTreeMap::from([(stream.to_owned(), None)]))
    }

    /// Writes the log with these streams changed or removed, and only then takes them.
    fn change(&mut self, changed: BTreeMap<String, Option<Stream>>) -> Result<(), PositionLogError> {
        if changed.is_empty() {
            return Ok(());
        }
        let unchanged = self.streams.iter().filter(|(name, _)| !changed.contains_key(*name));
        let written = changed.iter().filter_map(|(name, stream)| Some((name, stream.as_ref()?)));
        let bytes = encode(&self.epoch, unchanged.chain(written));
        let temporary = self.directory.join(TEMPORARY);
        let replaced = (|| {
            let mut file = self.env.open(&temporary)?;
            file.truncate(0)?;
            file.append(&bytes)?;
            file.sync()?;
            self.env.rename(&temporary, &self.directory.join(FILE))?;
            self.env.sync_dir(&self.directory)
        })();
        replaced.map_err(failed(&temporary))?;
        self.found = true;
        for (name, stream) in changed {
            match stream {
                Some(stream) => self.streams.insert(name, stream),
                None => self.streams.remove(&name),
            };
        }
        Ok(())
    }
}

/// The file's bytes: `checksum version epoch`, then a line a stream. The checksum covers everything behind it.
fn encode<'a>(epoch: &str, streams: impl Iterator<Item = (&'a String, &'a Stream)>) -> Vec<u8> {
    let mut body = format!(" {VERSION} {}\n", json(epoch));
    for (name, stream) in streams {
        let Some(index) = stream.at(stream.acknowledged) else { continue };
        let line = Line {
            stream: name.clone(),
            acknowledged: stream.acknowledged,
            anchor: stream.anchors[index].clone(),
            finished: stream.finished,
        };
        body.push_str(&json(&line));
        body.push('\n');
    }
    format!("{:08x}{body}", crc32c::crc32c(body.as_bytes())).into_bytes()
}

/// Text and numbers only: this cannot fail.
fn json<T: Serialize + ?Sized>(value: &T) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

fn read<E: Env>(env: &E, path: &Path, epoch: &str) -> Result<BTreeMap<String, Stream>, PositionLogError> {
    let corrupt = |what: String| PositionLogError::Corrupt { path: path.to_owned(), what };
    let file = env.open(path).map_err(failed(path))?;
    let length = file.len().map_err(failed(path))?;
    if length > MAX_BYTES {
        return Err(corrupt(format!("{length} bytes are more than it can have")));
    }
    let mut bytes = vec![0; usize::try_from(length).unwrap_or_default()];
    let read = file.read_at(0, &mut bytes).map_err(failed(path))?;
    let text = std::str::from_utf8(&bytes[..read]).map_err(|error| corrupt(error.to_string()))?;
    let (checksum, body) = text.split_at_checked(8).ok_or_else(|| corrupt("it is cut off".into()))?;
    if u32::from_str_radix(checksum, 16).ok() != Some(crc32c::crc32c(body.as_bytes())) {
        return Err(corrupt("its checksum is wrong".into()));
    }
    let mut lines = body.lines();
    let head = lines.next().unwrap_or_default().trim_start();
    let (version, written_epoch) = head.split_once(' ').unwrap_or((head, ""));
    if version != VERSION.to_string() {
        return Err(corrupt(format!("its version is {version:?}, this program reads {VERSION}")));
    }
    if written_epoch != json(epoch) {
        return Ok(BTreeMap::new());
    }
    lines
        .map(|line| {
            let line: Line = serde_json::from_str(line).map_err(|error| corrupt(error.to_string()))?;
            if line.anchor.position > line.acknowledged {
                return Err(corrupt(format!("stream {} goes back", line.stream)));
            }
            let stream = Stream {
                acknowledged: line.acknowledged,
                anchors: vec![line.anchor],
                spacing: SPACING,
                finished: line.finished,
            };
            Ok((line.stream, stream))
        })
        .collect()
}

#[cfg(test)]
mod tests;
