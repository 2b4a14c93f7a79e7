//! File source: records of one file, resumed by byte offset, followed across rotation.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use connector_crds::systems::file::{AtEnd, FileFormat, FileSource as Spec};
use tokio::time::{Duration, Instant, sleep};

use super::super::Context;
use super::identity::Identity;
use super::positions::{Positions, SAVE_INTERVAL};
use super::reader::{Reader, Step};
use crate::record::{BatchBuilder, Position};
use crate::source::{ErrorClass, ResumeFrom, Source, SourceEvent, StreamKey, SystemError};

/// Records of one batch at most: their index stays within half a MiB.
const MAX_BATCH_RECORDS: usize = 16_384;

/// Wait at the end of a followed file after data came; doubled up to [`LONGEST_POLL`]. Polling, because a network
/// volume tells nobody that another host wrote.
const SHORTEST_POLL: Duration = Duration::from_millis(1);

/// Longest wait between two looks at the end of a followed file.
const LONGEST_POLL: Duration = Duration::from_millis(50);

/// How often the path is looked at for another file.
const ROTATION_CHECK: Duration = Duration::from_millis(250);

/// A file that was renamed away counts as complete when it did not grow for this long: writers go on in the old
/// file until they are told to open the new one.
const ROTATION_QUIET: Duration = Duration::from_secs(1);

/// Files that are open at most: the newest, and rotated ones that Wallaroo has not acknowledged whole.
const MAX_OPEN_FILES: usize = 16;

/// Entries of the directory that are searched for rotated files at start.
const MAX_DIRECTORY_ENTRIES: usize = 100_000;

/// Reads one path.
///
/// **Streams.** Each file that stands at the path is a stream of its own, named after the configured path, the file's
/// inode and its time of birth; so a file that replaces another one never continues in its positions, and a pod that
/// comes back to the same volume does. Positions are byte offsets behind the record and its separator.
///
/// **Rotation** (`atEnd: Follow`). When another file stands at the path, the old one is read to its end (complete when it
/// did not grow for a second), its stream ends, and the new file's stream opens. A file that was rotated away while
/// the connector was down is searched for by its identity in the same directory and finished first; one that
/// is not found any more is reported in the log. Copying and truncating in place is no rotation: a file that is shorter than what
/// was read is `Permanent/PositionOutOfRange`, never a silent start over.
///
/// **Records.** `Lines`: what stands before a line feed, any bytes; at the end of a complete file also what stands after
/// the last one. `LengthPrefixed`: a length of 4 bytes big-endian, and so many bytes. An empty record is
/// [`crate::source::BadRecord::Empty`], one beyond `maxRecordBytes` is `TooLarge` with its first 64 KiB.
///
/// **Commits** go to `file-positions.json` in the state directory, at most once a second and at `close`.
#[derive(Debug)]
pub struct FileSource {
    path: PathBuf,
    label: String,
    format: FileFormat,
    at_end: AtEnd,
    max_record: usize,
    batch_records: usize,
    state: PathBuf,
    epoch: String,
    positions: Option<Positions>,
    /// Rotated files that wait for their turn.
    left_over: VecDeque<(Identity, PathBuf)>,
    streams: BTreeMap<StreamKey, Stream>,
    opened: u32,
    /// The file that stood at the path when it was last opened.
    newest: Option<Identity>,
    builder: BatchBuilder,
    poll: Duration,
    looked_at: Option<Instant>,
}

#[derive(Debug)]
struct Stream {
    identity: Identity,
    reader: Reader,
    status: Status,
    paused: bool,
    complete: Complete,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    Opened,
    Running,
    Ended,
}

/// Whether more may be written to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Complete {
    /// It grows.
    No,
    /// It was renamed away, and had this length at this time.
    Quiet { length: u64, since: Instant },
    /// Its end is the end.
    Yes,
}

impl FileSource {
    /// A source that opens its file with the first `next`.
    pub fn new(spec: &Spec, context: &Context) -> FileSource {
        let bound = usize::try_from(context.in_flight.records).unwrap_or(1);
        FileSource {
            path: context.base.join(&spec.path),
            label: spec.path.clone(),
            format: spec.format,
            at_end: spec.at_end,
            max_record: usize::try_from(spec.max_record_bytes).unwrap_or(1).max(1),
            batch_records: bound.clamp(1, MAX_BATCH_RECORDS),
            state: context.state.clone(),
            epoch: context.identity.epoch.clone(),
            positions: None,
            left_over: VecDeque::new(),
            streams: BTreeMap::new(),
            opened: 0,
            newest: None,
            builder: BatchBuilder::default(),
            poll: SHORTEST_POLL,
            looked_at: None,
        }
    }

    /// Opens what is next in turn, if anything is.
    fn open_next(&mut self) -> Result<Option<SourceEvent>, SystemError> {
        if self.streams.len() >= MAX_OPEN_FILES || self.streams.values().any(|s| s.status != Status::Ended) {
            return Ok(None);
        }
        if self.positions.is_none() {
            let (_, current) = open(&self.path)?;
            let positions = Positions::load(&self.state, &self.epoch)?;
            if self.at_end == AtEnd::Follow {
                self.left_over = self.search(&positions, current);
            }
            self.positions = Some(positions);
        }
        if let Some((identity, path)) = self.left_over.front().cloned() {
            self.left_over.pop_front();
            match open(&path) {
                Ok((file, found)) if found == identity => {
                    let since = Instant::now();
                    return self
                        .opened(file, identity, &path, Complete::Quiet { length: 0, since })
                        .map(Some);
                }
                _ => {
                    tracing::warn!(path = %path.display(), "a rotated file moved away before its rest was read");
                }
            }
            return self.open_next();
        }
        if self.newest.is_some() && (self.at_end == AtEnd::Finish || !self.replaced()?) {
            return Ok(None);
        }
        let (file, identity) = open(&self.path)?;
        self.newest = Some(identity);
        let complete = match self.at_end {
            AtEnd::Follow => Complete::No,
            AtEnd::Finish => Complete::Yes,
        };
        self.opened(file, identity, &self.path.clone(), complete).map(Some)
    }

    fn opened(
        &mut self,
        file: File,
        identity: Identity,
        path: &Path,
        complete: Complete,
    ) -> Result<SourceEvent, SystemError> {
        let Some(positions) = &mut self.positions else { return Err(unknown_stream()) };
        positions.begin(&self.label, identity);
        positions.save()?;
        let stream = StreamKey(self.opened);
        self.opened += 1;
        let reader = Reader::new(file, path.display().to_string(), self.format, self.max_record);
        let committed = positions.committed(identity);
        self.streams
            .insert(stream, Stream { identity, reader, status: Status::Opened, paused: false, complete });
        Ok(SourceEvent::Opened { stream, name: identity.stream_name(&self.label), committed })
    }

    /// Begun files other than `current` that still are in the directory.
    fn search(&self, positions: &Positions, current: Identity) -> VecDeque<(Identity, PathBuf)> {
        let begun: Vec<Identity> =
            positions.begun(&self.label).into_iter().filter(|i| *i != current).collect();
        if begun.is_empty() {
            return VecDeque::new();
        }
        let directory = self.path.parent().unwrap_or(Path::new("."));
        let mut found = VecDeque::new();
        let entries: Vec<PathBuf> = fs::read_dir(directory)
            .map(|entries| {
                entries.take(MAX_DIRECTORY_ENTRIES).filter_map(|e| e.ok().map(|e| e.path())).collect()
            })
            .unwrap_or_default();
        for identity in begun {
            let path =
                entries.iter().find(|path| fs::metadata(path).is_ok_and(|m| Identity::of(&m) == identity));
            if let Some(path) = path {
                found.push_back((identity, path.clone()));
            } else {
                let stream = identity.stream_name(&self.label);
                tracing::warn!(stream, "a rotated file is gone before all of it was acknowledged");
            }
        }
        found
    }

    /// True when another file than the newest stands at the path.
    fn replaced(&self) -> Result<bool, SystemError> {
        match fs::metadata(&self.path) {
            Ok(metadata) => Ok(self.newest.is_some_and(|newest| newest != Identity::of(&metadata))),
            // Between two renames nothing stands there.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(unopened(&self.path, error)),
        }
    }

    /// Looks for rotation, at most every [`ROTATION_CHECK`].
    fn look_for_rotation(&mut self) -> Result<(), SystemError> {
        if self.at_end == AtEnd::Finish || self.looked_at.is_some_and(|at| at.elapsed() < ROTATION_CHECK) {
            return Ok(());
        }
        self.looked_at = Some(Instant::now());
        let replaced = self.replaced()?;
        let newest = self.newest;
        for stream in self.streams.values_mut().filter(|stream| stream.status == Status::Running) {
            let length = stream.reader.length()?;
            match stream.complete {
                Complete::No if replaced && Some(stream.identity) == newest => {
                    stream.complete = Complete::Quiet { length, since: Instant::now() };
                }
                Complete::Quiet { length: before, .. } if before != length => {
                    stream.complete = Complete::Quiet { length, since: Instant::now() };
                }
                Complete::Quiet { since, .. } if since.elapsed() >= ROTATION_QUIET => {
                    stream.complete = Complete::Yes;
                }
                Complete::No | Complete::Quiet { .. } | Complete::Yes => {}
            }
        }
        Ok(())
    }

    /// Reads on in the first stream that has something.
    fn read(&mut self) -> Result<Option<SourceEvent>, SystemError> {
        for (&key, stream) in &mut self.streams {
            if stream.status != Status::Running || stream.paused {
                continue;
            }
            let complete = stream.complete == Complete::Yes;
            let event = match stream.reader.step(&mut self.builder, self.batch_records, complete)? {
                Step::Batch(batch) => SourceEvent::Batch { stream: key, batch },
                Step::Bad { position, reason, payload } => {
                    SourceEvent::BadRecord { stream: key, position, reason, payload }
                }
                Step::Wait => continue,
                Step::End => {
                    stream.status = Status::Ended;
                    SourceEvent::Ended { stream: key }
                }
            };
            self.poll = SHORTEST_POLL;
            return Ok(Some(event));
        }
        Ok(None)
    }

    fn stream(&mut self, key: StreamKey) -> Result<&mut Stream, SystemError> {
        self.streams.get_mut(&key).ok_or_else(unknown_stream)
    }
}

/// Opens a regular file.
fn open(path: &Path) -> Result<(File, Identity), SystemError> {
    let opened = File::open(path).and_then(|file| file.metadata().map(|metadata| (file, metadata)));
    let (file, metadata) = opened.map_err(|error| unopened(path, error))?;
    if !metadata.is_file() {
        return Err(SystemError::Permanent {
            reason: "NotAFile",
            context: format!("{} is not a regular file", path.display()),
        });
    }
    Ok((file, Identity::of(&metadata)))
}

fn unopened(path: &Path, error: io::Error) -> SystemError {
    SystemError::Transient {
        context: format!("opening file {}: {error}", path.display()),
        class: match error.kind() {
            io::ErrorKind::PermissionDenied => ErrorClass::Auth,
            _ => ErrorClass::Connect,
        },
        cause: Some(error.into()),
    }
}

fn unknown_stream() -> SystemError {
    SystemError::Permanent {
        reason: "UnknownStream",
        context: "the stream was released or never opened".into(),
    }
}

#[async_trait]
impl Source for FileSource {
    async fn next(&mut self) -> Result<SourceEvent, SystemError> {
        loop {
            if let Some(positions) = &mut self.positions {
                positions.save_if_due()?;
            }
            if let Some(event) = self.open_next()? {
                return Ok(event);
            }
            if let Some(event) = self.read()? {
                return Ok(event);
            }
            self.look_for_rotation()?;
            let reading = self.streams.values().any(|s| s.status == Status::Running && !s.paused);
            if reading || self.at_end == AtEnd::Follow {
                sleep(self.poll).await;
                self.poll = (self.poll * 2).min(LONGEST_POLL);
            } else {
                sleep(SAVE_INTERVAL).await;
            }
        }
    }

    async fn resume(&mut self, stream: StreamKey, from: ResumeFrom) -> Result<(), SystemError> {
        let committed = match (&self.positions, self.streams.get(&stream)) {
            (Some(positions), Some(stream)) => positions.committed(stream.identity),
            _ => None,
        };
        let stream = self.stream(stream)?;
        stream.reader.seek(match from {
            ResumeFrom::After(position) => position,
            ResumeFrom::Committed => committed.unwrap_or(0),
        })?;
        stream.status = Status::Running;
        Ok(())
    }

    async fn commit(&mut self, committed: &[(StreamKey, Position)]) -> Result<(), SystemError> {
        let Some(positions) = &mut self.positions else { return Ok(()) };
        for (key, position) in committed {
            if let Some(stream) = self.streams.get(key) {
                positions.commit(stream.identity, *position);
            }
        }
        positions.save_if_due()
    }

    async fn release(&mut self, stream: StreamKey) -> Result<(), SystemError> {
        let Some(released) = self.streams.remove(&stream) else { return Ok(()) };
        let Some(positions) = &mut self.positions else { return Ok(()) };
        let acknowledged = positions.committed(released.identity).unwrap_or(0);
        // A followed stream ends by rotation only; acknowledged whole, its file is never searched for again.
        let rotated = self.at_end == AtEnd::Follow && released.status == Status::Ended;
        if rotated && released.reader.length().is_ok_and(|length| acknowledged >= length) {
            positions.forget(released.identity);
        }
        Ok(())
    }

    fn pause(&mut self, stream: StreamKey) {
        if let Some(stream) = self.streams.get_mut(&stream) {
            stream.paused = true;
        }
    }

    fn unpause(&mut self, stream: StreamKey) {
        if let Some(stream) = self.streams.get_mut(&stream) {
            stream.paused = false;
        }
    }

    async fn close(&mut self, _deadline: Instant) -> Result<(), SystemError> {
        match &mut self.positions {
            Some(positions) => positions.save(),
            None => Ok(()),
        }
    }

    async fn check(&mut self) -> Result<(), SystemError> {
        open(&self.path).map(|_| ())
    }
}

#[cfg(test)]
#[path = "source_tests.rs"]
mod tests;
