//! A custom connector's process as a source.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;

use async_trait::async_trait;
use connector_crds::systems::custom::{CustomSource as Spec, SourcePositions};
use connector_env::TokioEnv;
use tokio::time::{Duration, Instant, timeout_at};

use super::super::Context;
use super::VERSION;
use super::frame::{self, Frame, Place, Records, Request};
use super::link::{Hello, Incoming, Link, failed, violation};
use crate::position_log::{PositionLog, PositionLogError};
use crate::record::{BatchBuilder, Position, Record};
use crate::source::{BadRecord, ErrorClass, ResumeFrom, Source, SourceEvent, StreamKey, SystemError};

/// Key and payload bytes that are read ahead at most, whatever the bound in flight.
const MAX_WINDOW_BYTES: usize = 4 * 1_048_576;

/// Records that are read ahead at most, whatever the bound in flight.
const MAX_WINDOW_RECORDS: usize = 65_536;

/// Streams of one Connector at most: as many as a position log holds.
const MAX_STREAMS: usize = crate::position_log::MAX_STREAMS;

/// How long the answer to `check` may take.
const CHECK_TIMEOUT: Duration = Duration::from_secs(10);

/// A stream of this Connector; it outlives the process that serves it.
#[derive(Debug)]
struct Stream {
    name: String,
    /// Its number on the present connection.
    number: Option<u32>,
    /// Number of the reading whose records count.
    reading: u32,
    phase: Phase,
    paused: bool,
    /// Position up to which everything came over.
    last: Position,
    /// Position of the last record of this reading: behind `last` while it repeats what came over before.
    at: Position,
    /// What the process was told, to tell it to another one.
    committed: Option<Place>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Waits for `resume`, or is given back.
    Still,
    /// Records flow.
    Reading,
}

/// What was read and waits for the pump.
struct Ready {
    stream: StreamKey,
    event: SourceEvent,
    credit: Credit,
}

/// What a process may send.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Credit {
    records: u32,
    bytes: u32,
}

impl Credit {
    fn add(&mut self, other: Credit) {
        self.records = self.records.saturating_add(other.records);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }

    fn take(&mut self, other: Credit) -> Option<()> {
        let records = self.records.checked_sub(other.records)?;
        let bytes = self.bytes.checked_sub(other.bytes)?;
        *self = Credit { records, bytes };
        Some(())
    }
}

/// Reads a process in a container beside this one.
///
/// Streams go on where they stand when the process is replaced by another: it is told to read from behind the last record that came
/// over. With `positions: Opaque` positions count records, and the position log keeps the process's cursors; with `None` they count what
/// this runtime has seen, and nothing is repeated.
pub struct CustomSource {
    link: Link,
    positions: SourcePositions,
    log_directory: PathBuf,
    epoch: String,
    log: Option<PositionLog<TokioEnv>>,
    streams: BTreeMap<StreamKey, Stream>,
    next_key: u32,
    /// Told to the pump before anything that was read.
    news: VecDeque<SourceEvent>,
    ready: VecDeque<Ready>,
    window: Credit,
    credit: Credit,
    builder: BatchBuilder,
}

impl CustomSource {
    /// A source that listens with the first `next` or `check`.
    pub fn new(spec: &Spec, context: &Context) -> CustomSource {
        // One record has room in any case.
        let least = context.max_payload_bytes + 4_096;
        let bytes = usize::try_from(context.in_flight.bytes).unwrap_or(0).min(MAX_WINDOW_BYTES).max(least);
        let records = usize::try_from(context.in_flight.records).unwrap_or(0).clamp(1, MAX_WINDOW_RECORDS);
        let window = Credit {
            records: u32::try_from(records).unwrap_or(u32::MAX),
            bytes: u32::try_from(bytes).unwrap_or(u32::MAX),
        };
        let hello = Hello {
            version: VERSION,
            role: "source".into(),
            namespace: context.identity.namespace.clone(),
            name: context.identity.name.clone(),
            positions: spec.positions.as_str().into(),
            config: spec.process.config.clone(),
            max_payload_bytes: context.max_payload_bytes as u64,
            credit_records: window.records,
            credit_bytes: window.bytes,
        };
        CustomSource {
            link: Link::new(context, &spec.process, &hello),
            positions: spec.positions,
            log_directory: context.state.join("custom"),
            epoch: context.identity.epoch.clone(),
            log: None,
            streams: BTreeMap::new(),
            next_key: 0,
            news: VecDeque::new(),
            ready: VecDeque::new(),
            window,
            credit: window,
            builder: BatchBuilder::default(),
        }
    }

    /// The position log, for cursors.
    fn log(&mut self) -> Result<&mut PositionLog<TokioEnv>, SystemError> {
        let log = match self.log.take() {
            Some(log) => log,
            None => PositionLog::open(&TokioEnv, &self.log_directory, &self.epoch).map_err(log_failed)?,
        };
        Ok(self.log.insert(log))
    }

    /// The next thing for the pump, if there is one: nothing of a stream that is paused or not resumed.
    fn pop(&mut self) -> Option<SourceEvent> {
        if let Some(news) = self.news.pop_front() {
            return Some(news);
        }
        let flows = |ready: &Ready| {
            self.streams
                .get(&ready.stream)
                .is_some_and(|stream| stream.phase == Phase::Reading && !stream.paused)
        };
        let index = self.ready.iter().position(flows)?;
        let ready = self.ready.remove(index)?;
        self.give(ready.credit);
        Some(ready.event)
    }

    /// Drops what was read of a stream.
    fn forget(&mut self, key: StreamKey) {
        let mut credit = Credit::default();
        self.ready.retain(|ready| {
            let keep = ready.stream != key;
            if !keep {
                credit.add(ready.credit);
            }
            keep
        });
        self.give(credit);
    }

    fn give(&mut self, credit: Credit) {
        if credit != Credit::default() {
            self.credit.add(credit);
            self.link.send(&Frame::Credit { records: credit.records, bytes: credit.bytes });
        }
    }

    fn numbered(&self, number: u32) -> Option<StreamKey> {
        self.streams.iter().find(|(_, stream)| stream.number == Some(number)).map(|(key, _)| *key)
    }

    fn known(&self, number: u32, frame: &str) -> Result<StreamKey, SystemError> {
        self.numbered(number)
            .ok_or_else(|| violation(&format!("{frame} names stream {number}, which it did not open")))
    }

    /// Another process, with all credit and numbers of its own. What waits for the pump stays.
    fn connected(&mut self) {
        for stream in self.streams.values_mut() {
            stream.number = None;
        }
        for ready in &mut self.ready {
            ready.credit = Credit::default();
        }
        self.credit = self.window;
    }

    fn opened(&mut self, number: u32, name: String, committed: &Place) -> Result<(), SystemError> {
        if self.numbered(number).is_some() {
            return Err(violation(&format!("OPEN numbers a second stream {number}")));
        }
        let known = self.streams.iter().find(|(_, stream)| stream.name == name).map(|(key, _)| *key);
        if let Some(key) = known {
            if let Some(stream) = self.streams.get_mut(&key) {
                if stream.number.is_some() {
                    return Err(violation(&format!("OPEN names stream {name:?} a second time")));
                }
                stream.number = Some(number);
            }
            return self.read_on(key);
        }
        if self.streams.len() >= MAX_STREAMS {
            return Err(violation(&format!("it opens more than {MAX_STREAMS} streams")));
        }
        let committed = match (self.positions, committed) {
            (SourcePositions::Ordered, Place::None) | (SourcePositions::None, _) => None,
            (SourcePositions::Ordered, Place::Position(position)) => Some(*position),
            (SourcePositions::Ordered, Place::Cursor(_)) => {
                return Err(violation("OPEN holds a cursor, and `positions` is Ordered"));
            }
            (SourcePositions::Opaque, _) => self.log()?.acknowledged(&name),
        };
        let key = StreamKey(self.next_key);
        self.next_key = self.next_key.wrapping_add(1);
        let stream = Stream {
            name: name.clone(),
            number: Some(number),
            reading: 0,
            phase: Phase::Still,
            paused: false,
            last: 0,
            at: 0,
            committed: None,
        };
        self.streams.insert(key, stream);
        self.news.push_back(SourceEvent::Opened { stream: key, name, committed });
        Ok(())
    }

    /// Tells the process to read a resumed stream from behind its last record.
    fn read_on(&mut self, key: StreamKey) -> Result<(), SystemError> {
        let positions = self.positions;
        let Some(stream) = self.streams.get(&key).filter(|stream| stream.phase == Phase::Reading) else {
            return Ok(());
        };
        let (last, name) = (stream.last, stream.name.clone());
        let (after, at) = match positions {
            SourcePositions::Ordered if last == 0 => (Place::None, 0),
            SourcePositions::Ordered => (Place::Position(last), last),
            SourcePositions::None => (Place::None, last),
            SourcePositions::Opaque => {
                let log = self.log()?;
                if log.acknowledged(&name).is_none() {
                    if last > 0 {
                        tracing::warn!(
                            stream = name,
                            position = last,
                            "The position log knows nothing of a stream that Wallaroo knows (PositionLogLost): the \
                             custom connector goes on where it committed."
                        );
                    }
                    log.begin(&name, last, "").map_err(log_failed)?;
                }
                let anchor = log.resume_point(&name, last).ok_or_else(|| SystemError::Permanent {
                    reason: "PositionOutOfRange",
                    context: format!(
                        "Wallaroo asks for stream {name:?} behind record {last}, and the position log begins later"
                    ),
                })?;
                let place = match anchor.cursor.as_str() {
                    "" => Place::None,
                    cursor => Place::Cursor(cursor.to_owned()),
                };
                (place, anchor.position)
            }
        };
        let Some(stream) = self.streams.get_mut(&key) else { return Ok(()) };
        stream.at = at;
        stream.reading = stream.reading.wrapping_add(1);
        if let Some(number) = stream.number {
            if let Some(place) = stream.committed.clone() {
                self.link.send(&Frame::Commit { stream: number, place });
            }
            if stream.paused {
                self.link.send(&Frame::Pause(number));
            }
            self.link.send(&Frame::Resume { stream: number, reading: stream.reading, after });
        }
        Ok(())
    }

    fn took(&mut self, records: &Records) -> Result<(), SystemError> {
        let key = self.known(records.stream, "BATCH")?;
        let cost = Credit {
            records: records.count,
            bytes: u32::try_from(
                records.bytes.len().saturating_sub(records.count as usize * frame::RECORD_OVERHEAD),
            )
            .unwrap_or(u32::MAX),
        };
        self.credit.take(cost).ok_or_else(|| violation("BATCH is more than its credit"))?;
        let decoded = frame::records(records).map_err(|error| violation(&format!("it sent {error}")))?;
        let opaque = match (self.positions, &records.end) {
            (SourcePositions::Opaque, Place::Cursor(cursor)) if !cursor.is_empty() => Some(cursor.as_str()),
            (SourcePositions::Opaque, _) => {
                return Err(violation("BATCH ends without a cursor, and `positions` is Opaque"));
            }
            (SourcePositions::Ordered | SourcePositions::None, _) => None,
        };
        let Some(stream) = self.streams.get_mut(&key) else { return Ok(()) };
        if stream.reading != records.reading || stream.phase == Phase::Still {
            // Of an earlier reading.
            self.give(cost);
            return Ok(());
        }
        let mut owed = cost;
        let mut spent = Credit::default();
        for record in decoded {
            let position = match self.positions {
                SourcePositions::Ordered if record.position > stream.at => record.position,
                SourcePositions::Ordered => {
                    return Err(violation(&format!(
                        "stream {:?}: position {} does not follow {}",
                        stream.name, record.position, stream.at
                    )));
                }
                SourcePositions::Opaque | SourcePositions::None => stream.at + 1,
            };
            stream.at = position;
            if position <= stream.last {
                continue;
            }
            stream.last = position;
            spent.records += 1;
            spent.bytes = spent
                .bytes
                .saturating_add(u32::try_from(record.key.len() + record.payload.len()).unwrap_or(u32::MAX));
            if record.payload.is_empty() {
                if !self.builder.is_empty() {
                    let event = SourceEvent::Batch { stream: key, batch: self.builder.finish() };
                    self.ready.push_back(Ready { stream: key, event, credit: Credit::default() });
                }
                let event = SourceEvent::BadRecord {
                    stream: key,
                    position,
                    reason: BadRecord::Empty,
                    payload: bytes::Bytes::new(),
                };
                self.ready.push_back(Ready { stream: key, event, credit: Credit::default() });
            } else {
                self.builder.push(Record { position, ..record });
            }
        }
        if !self.builder.is_empty() {
            let event = SourceEvent::Batch { stream: key, batch: self.builder.finish() };
            self.ready.push_back(Ready { stream: key, event, credit: Credit::default() });
        }
        // The last thing that came of this frame returns what the frame cost; what was skipped returns at once.
        if let Some(ready) = self.ready.back_mut().filter(|_| spent.records > 0) {
            ready.credit = spent;
            owed.take(spent);
        }
        let (name, at) = (stream.name.clone(), stream.at);
        if let Some(cursor) = opaque {
            self.log()?.note(&name, at, cursor).map_err(log_failed)?;
        }
        self.give(owed);
        Ok(())
    }

    fn bad_record(
        &mut self,
        number: u32,
        reading: u32,
        position: Position,
        reason: String,
        payload: bytes::Bytes,
    ) -> Result<(), SystemError> {
        let key = self.known(number, "BAD_RECORD")?;
        let Some(stream) = self.streams.get_mut(&key) else { return Ok(()) };
        let cost = Credit { records: 1, bytes: u32::try_from(payload.len()).unwrap_or(u32::MAX) };
        self.credit.take(cost).ok_or_else(|| violation("BAD_RECORD is more than its credit"))?;
        if stream.reading != reading || stream.phase == Phase::Still {
            self.give(cost);
            return Ok(());
        }
        let position = match self.positions {
            SourcePositions::Ordered if position <= stream.at => {
                return Err(violation(&format!(
                    "stream {:?}: position {position} does not follow {}",
                    stream.name, stream.at
                )));
            }
            SourcePositions::Ordered => position,
            SourcePositions::Opaque | SourcePositions::None => stream.at + 1,
        };
        stream.at = position;
        if position <= stream.last {
            self.give(cost);
            return Ok(());
        }
        stream.last = position;
        let event =
            SourceEvent::BadRecord { stream: key, position, reason: BadRecord::Malformed(reason), payload };
        self.ready.push_back(Ready { stream: key, event, credit: cost });
        Ok(())
    }

    /// Nothing more of a stream is handed to the pump.
    fn still(&mut self, key: StreamKey) {
        self.forget(key);
        if let Some(stream) = self.streams.get_mut(&key) {
            stream.phase = Phase::Still;
        }
    }

    fn on_frame(&mut self, frame: Frame) -> Result<(), SystemError> {
        match frame {
            Frame::Ready => self.news.push_back(SourceEvent::Connected),
            Frame::Open { stream, name, committed } => self.opened(stream, name, &committed)?,
            Frame::Batch(records) => self.took(&records)?,
            Frame::BadRecord { stream, reading, position, reason, payload } => {
                self.bad_record(stream, reading, position, reason, payload)?;
            }
            Frame::Revoke { stream, millis } => {
                let key = self.known(stream, "REVOKE")?;
                self.still(key);
                let deadline = Instant::now() + Duration::from_millis(millis.into());
                self.news.push_back(SourceEvent::Revoking { stream: key, deadline });
            }
            Frame::Lost(stream) => {
                let key = self.known(stream, "LOST")?;
                self.still(key);
                self.news.push_back(SourceEvent::Lost { stream: key });
            }
            Frame::End(stream) => {
                let key = self.known(stream, "END")?;
                let event = SourceEvent::Ended { stream: key };
                self.ready.push_back(Ready { stream: key, event, credit: Credit::default() });
            }
            Frame::Error { stream: None, permanent, text } => return Err(failed(permanent, text)),
            Frame::Error { stream: Some(number), permanent: true, text } => {
                let stream = self.known(number, "ERROR")?;
                let reason = super::FAILED;
                self.news.push_back(SourceEvent::Stuck { stream, reason, context: text });
            }
            Frame::Error { stream: Some(_), permanent: false, text } => {
                tracing::warn!("The custom connector tries again: {text}.");
            }
            // An answer to `check` that came late.
            Frame::Done(Request::Check) => {}
            other => return Err(violation(&format!("a source sent {}", other.name()))),
        }
        Ok(())
    }

    /// One step of the link; a frame against the protocol ends the connection.
    async fn step(&mut self) -> Result<Option<Request>, SystemError> {
        let done = match self.link.receive().await? {
            Incoming::Connected => {
                self.connected();
                return Ok(None);
            }
            Incoming::Frame(Frame::Done(request)) => Some(request),
            Incoming::Frame(frame) => {
                if let Err(error) = self.on_frame(frame) {
                    if let SystemError::Transient { class: ErrorClass::Protocol, context, .. } = &error {
                        self.link.refuse(context);
                    }
                    return Err(error);
                }
                None
            }
        };
        Ok(done)
    }
}

#[async_trait]
impl Source for CustomSource {
    async fn next(&mut self) -> Result<SourceEvent, SystemError> {
        loop {
            if let Some(event) = self.pop() {
                return Ok(event);
            }
            self.step().await?;
        }
    }

    async fn resume(&mut self, key: StreamKey, from: ResumeFrom) -> Result<(), SystemError> {
        self.forget(key);
        let name = self.streams.get(&key).map(|stream| stream.name.clone()).unwrap_or_default();
        let acknowledged = match self.positions {
            SourcePositions::Opaque => self.log()?.acknowledged(&name),
            SourcePositions::Ordered | SourcePositions::None => None,
        };
        let Some(stream) = self.streams.get_mut(&key) else { return Ok(()) };
        stream.last = match (self.positions, from) {
            (SourcePositions::Ordered | SourcePositions::Opaque, ResumeFrom::After(position)) => position,
            (SourcePositions::Opaque, ResumeFrom::Committed) => acknowledged.unwrap_or(0),
            (SourcePositions::Ordered, ResumeFrom::Committed) => 0,
            (SourcePositions::None, ResumeFrom::After(position)) => stream.last.max(position),
            (SourcePositions::None, ResumeFrom::Committed) => stream.last,
        };
        stream.phase = Phase::Reading;
        self.read_on(key)
    }

    async fn commit(&mut self, positions: &[(StreamKey, Position)]) -> Result<(), SystemError> {
        let named: Vec<(StreamKey, String, Position)> = positions
            .iter()
            .filter_map(|(key, position)| Some((*key, self.streams.get(key)?.name.clone(), *position)))
            .collect();
        let places: Vec<(StreamKey, Place)> = match self.positions {
            SourcePositions::Ordered => {
                named.into_iter().map(|(key, _, position)| (key, Place::Position(position))).collect()
            }
            SourcePositions::None => Vec::new(),
            SourcePositions::Opaque => {
                let log = self.log()?;
                log.acknowledge(named.iter().map(|(_, name, position)| (name.as_str(), *position)))
                    .map_err(log_failed)?;
                let place = |(key, name, position): (StreamKey, String, Position)| {
                    let anchor =
                        log.resume_point(&name, position).filter(|anchor| !anchor.cursor.is_empty())?;
                    Some((key, Place::Cursor(anchor.cursor.clone())))
                };
                named.into_iter().filter_map(place).collect()
            }
        };
        for (key, place) in places {
            let Some(stream) = self.streams.get_mut(&key) else { continue };
            if stream.committed.as_ref() == Some(&place) {
                continue;
            }
            stream.committed = Some(place.clone());
            if let Some(number) = stream.number {
                self.link.send(&Frame::Commit { stream: number, place });
            }
        }
        Ok(())
    }

    async fn release(&mut self, key: StreamKey) -> Result<(), SystemError> {
        self.forget(key);
        if let Some(number) = self.streams.remove(&key).and_then(|stream| stream.number) {
            self.link.send(&Frame::Release(number));
        }
        Ok(())
    }

    fn pause(&mut self, key: StreamKey) {
        if let Some(stream) = self.streams.get_mut(&key) {
            stream.paused = true;
            if let Some(number) = stream.number {
                self.link.send(&Frame::Pause(number));
            }
        }
    }

    fn unpause(&mut self, key: StreamKey) {
        if let Some(stream) = self.streams.get_mut(&key) {
            stream.paused = false;
            if let Some(number) = stream.number {
                self.link.send(&Frame::Unpause(number));
            }
        }
    }

    async fn close(&mut self, deadline: Instant) -> Result<(), SystemError> {
        if !self.link.is_up() {
            return Ok(()); // what it was not told it repeats, and Wallaroo drops that by position
        }
        let left = deadline.saturating_duration_since(Instant::now());
        self.link.send(&Frame::Close(u32::try_from(left.as_millis()).unwrap_or(u32::MAX)));
        loop {
            match timeout_at(deadline, self.step()).await {
                Ok(Ok(Some(Request::Close))) => break,
                Ok(step) => drop(step?),
                Err(_) => return Err(failed(false, "it did not leave in time".into())),
            }
        }
        self.link.hang_up();
        Ok(())
    }

    async fn check(&mut self) -> Result<(), SystemError> {
        let deadline = Instant::now() + CHECK_TIMEOUT;
        let mut asked = false;
        loop {
            if self.link.is_up() && !asked {
                self.link.send(&Frame::Check);
                asked = true;
            }
            match timeout_at(deadline, self.step()).await {
                Ok(Ok(Some(Request::Check))) => return Ok(()),
                Ok(step) => drop(step?),
                Err(_) => return Err(failed(false, "it did not answer CHECK in time".into())),
            }
        }
    }
}

fn log_failed(error: PositionLogError) -> SystemError {
    match error {
        PositionLogError::Corrupt { .. } => {
            SystemError::Permanent { reason: "PositionLogCorrupt", context: error.to_string() }
        }
        PositionLogError::Refused { .. } => violation(&error.to_string()),
        PositionLogError::Io { .. } => SystemError::Transient {
            context: "the position log".into(),
            class: ErrorClass::Rejected,
            cause: Some(error.into()),
        },
    }
}
