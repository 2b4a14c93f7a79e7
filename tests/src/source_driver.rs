//! Drives a source as the pump does, for tests that look at more than the contract: resumes what opens, releases what
//! leaves, remembers what came.

use std::collections::BTreeMap;

use connector_crds::SourceSpec;
use connector_runtime::connectors::{self, Context};
use connector_runtime::record::{Batch, Position};
use connector_runtime::source::{BadRecord, ResumeFrom, Source, SourceEvent, StreamKey, SystemError};
use tokio::time::{Duration, Instant, sleep, timeout_at};

/// Longest wait for something that must happen: a member's session ends after 45 s, a broker that was killed needs some.
const PATIENCE: Duration = Duration::from_mins(2);

/// Pause after an error.
const BACK_OFF: Duration = Duration::from_millis(50);

/// One stream, as far as it was seen.
#[derive(Debug)]
pub struct Stream {
    /// Name.
    pub name: String,
    /// What it was opened with.
    pub committed: Option<Position>,
    /// Position of the last record.
    pub last: Position,
    /// Records in all.
    pub records: usize,
    /// It was revoked or lost, and released.
    pub gone: bool,
}

/// A source and what it gave.
pub struct Driver {
    /// The source.
    pub source: Box<dyn Source>,
    /// Streams that ever opened.
    pub streams: BTreeMap<StreamKey, Stream>,
    /// Name of the stream, position, payload; empty unless `keep` is set.
    pub records: Vec<(String, Position, Vec<u8>)>,
    /// Records that cannot be handed over.
    pub bad: Vec<(Position, BadRecord)>,
    /// Streams that could not go on: name, reason, what was said first.
    pub stuck: Vec<(String, &'static str, String)>,
    /// Errors, in order.
    pub errors: Vec<SystemError>,
    /// Streams that were lost without being asked for.
    pub lost: usize,
    /// Streams that the system wanted back.
    pub revoked: usize,
    /// Keep the records' bytes.
    pub keep: bool,
    /// Commit what was read of a stream that is revoked.
    pub commit_on_revoke: bool,
    /// Where streams continue that open.
    pub from: ResumeFrom,
    /// All records.
    pub total: usize,
}

impl Driver {
    /// A source of this spec.
    pub fn new(spec: &SourceSpec, context: Context) -> Driver {
        Driver::of(connectors::source(spec, context).expect("the spec is valid"))
    }

    /// Of this source.
    pub fn of(source: Box<dyn Source>) -> Driver {
        Driver {
            source,
            streams: BTreeMap::new(),
            records: Vec::new(),
            bad: Vec::new(),
            stuck: Vec::new(),
            errors: Vec::new(),
            lost: 0,
            revoked: 0,
            keep: true,
            commit_on_revoke: true,
            from: ResumeFrom::Committed,
            total: 0,
        }
    }

    /// Streams that stand.
    pub fn open(&self) -> usize {
        self.streams.values().filter(|stream| !stream.gone).count()
    }

    /// Drives until `done`.
    pub async fn until(&mut self, what: &str, mut done: impl FnMut(&Driver) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done(self) {
            let stepped = timeout_at(deadline, self.step()).await.is_ok();
            assert!(
                stepped,
                "{what}: {} records, streams {:#?}, errors {:?}",
                self.total, self.streams, self.errors
            );
        }
    }

    /// Drives for a while.
    pub async fn during(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while timeout_at(end, self.step()).await.is_ok() {}
    }

    /// One event or error.
    pub async fn step(&mut self) {
        let event = match self.source.next().await {
            Ok(event) => event,
            Err(error) => {
                self.errors.push(error);
                return sleep(BACK_OFF).await;
            }
        };
        match event {
            SourceEvent::Connected => {}
            SourceEvent::Opened { stream, name, committed } => {
                self.source.resume(stream, self.from).await.expect("resume");
                let new = Stream { name, committed, last: 0, records: 0, gone: false };
                assert!(self.streams.insert(stream, new).is_none(), "{stream:?} opened twice");
            }
            SourceEvent::Batch { stream, batch } => self.take(stream, &batch),
            SourceEvent::BadRecord { stream, position, reason, .. } => {
                self.streams.get_mut(&stream).expect("opened").last = position;
                self.bad.push((position, reason));
            }
            SourceEvent::Revoking { stream, .. } => {
                self.revoked += 1;
                let last = self.streams[&stream].last;
                if self.commit_on_revoke && last > 0 {
                    self.source.commit(&[(stream, last)]).await.expect("commit");
                }
                self.release(stream).await;
            }
            SourceEvent::Lost { stream } => {
                self.lost += 1;
                self.release(stream).await;
            }
            SourceEvent::Stuck { stream, reason, context } => {
                let name = self.streams[&stream].name.clone();
                if !self.stuck.iter().any(|(known, ..)| *known == name) {
                    self.stuck.push((name, reason, context));
                }
            }
            SourceEvent::Ended { stream } => panic!("{stream:?} ended"),
        }
    }

    fn take(&mut self, key: StreamKey, batch: &Batch) {
        let stream = self.streams.get_mut(&key).expect("opened");
        assert!(!stream.gone, "records of a stream that is gone");
        for record in batch.iter() {
            assert!(record.position > stream.last, "position {} after {}", record.position, stream.last);
            stream.last = record.position;
            if self.keep {
                self.records.push((stream.name.clone(), record.position, record.payload.to_vec()));
            }
        }
        stream.records += batch.len();
        self.total += batch.len();
    }

    async fn release(&mut self, key: StreamKey) {
        self.streams.get_mut(&key).expect("opened").gone = true;
        self.source.release(key).await.expect("release");
    }

    /// Commits everything that was read.
    pub async fn commit(&mut self) {
        let read = self.streams.iter().filter(|(_, stream)| !stream.gone && stream.last > 0);
        let positions: Vec<_> = read.map(|(key, stream)| (*key, stream.last)).collect();
        self.source.commit(&positions).await.expect("commit");
    }

    /// Leaves.
    pub async fn close(mut self) {
        self.source.close(Instant::now() + PATIENCE).await.expect("closed");
    }

    /// Payloads as text, sorted.
    pub fn payloads(&self) -> Vec<String> {
        let text = |payload: &Vec<u8>| String::from_utf8_lossy(payload).into_owned();
        let mut payloads: Vec<_> = self.records.iter().map(|(_, _, payload)| text(payload)).collect();
        payloads.sort();
        payloads
    }
}
