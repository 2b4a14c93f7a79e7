//! A source whose streams are lists of records, with a record of everything that the pump asks of it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use connector_runtime::record::{BatchBuilder, NO_TIME, Position, Record};
use connector_runtime::source::{ResumeFrom, Source, SourceEvent, StreamKey, SystemError};
use tokio::sync::Notify;
use tokio::time::Instant;

/// One stream of the system.
#[derive(Debug, Default)]
pub(crate) struct Topic {
    pub(crate) records: Vec<(Position, Vec<u8>)>,
    /// Position that the system keeps for this connector.
    pub(crate) committed: Option<Position>,
    /// At its end after the last record.
    pub(crate) finite: bool,
    key: u32,
    next: Option<usize>,
    opened: bool,
    ended: bool,
    paused: bool,
    taken_back: bool,
}

/// The system, and what the pump did.
#[derive(Debug, Default)]
pub(crate) struct System {
    pub(crate) topics: BTreeMap<String, Topic>,
    pub(crate) batch: usize,
    pub(crate) resumes: Vec<(String, ResumeFrom)>,
    pub(crate) commits: Vec<(String, Position)>,
    pub(crate) released: Vec<String>,
    pub(crate) yielded: u64,
    pub(crate) polls: u64,
    pub(crate) closed: bool,
    events: VecDeque<SourceEvent>,
    failures: VecDeque<SystemError>,
}

/// A handle on the system, for the test and for the pump.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scripted(Arc<Mutex<System>>, Arc<Notify>);

impl Scripted {
    pub(crate) fn new(batch: usize) -> Scripted {
        let scripted = Scripted::default();
        scripted.system().batch = batch;
        scripted
    }

    pub(crate) fn system(&self) -> MutexGuard<'_, System> {
        self.0.lock().unwrap()
    }

    /// Adds a stream with records at positions 1, 2, …
    pub(crate) fn topic(self, name: &str, records: u64, finite: bool) -> Scripted {
        self.add(name, (1..=records).map(|n| (n, payload(name, n))).collect(), finite);
        self
    }

    pub(crate) fn add(&self, name: &str, records: Vec<(Position, Vec<u8>)>, finite: bool) {
        let key = self.system().topics.len() as u32;
        let topic = Topic { records, finite, key, ..Topic::default() };
        self.system().topics.insert(name.to_owned(), topic);
        self.1.notify_one();
    }

    pub(crate) fn committed(&self, name: &str) -> Option<Position> {
        self.system().topics[name].committed
    }

    pub(crate) fn is_paused(&self, name: &str) -> bool {
        self.system().topics[name].paused
    }

    /// Lets a waiting pump see records that were added to a stream.
    pub(crate) fn wake(&self) {
        self.1.notify_one();
    }

    pub(crate) fn key(&self, name: &str) -> StreamKey {
        StreamKey(self.system().topics[name].key)
    }

    pub(crate) fn resumes(&self, name: &str) -> Vec<ResumeFrom> {
        let system = self.system();
        system.resumes.iter().filter(|(stream, _)| stream == name).map(|(_, from)| *from).collect()
    }

    pub(crate) fn revoke(&self, name: &str, deadline: Instant) {
        let stream = self.take_back(name);
        self.event(SourceEvent::Revoking { stream, deadline });
    }

    pub(crate) fn lose(&self, name: &str) {
        let stream = self.take_back(name);
        self.event(SourceEvent::Lost { stream });
    }

    fn take_back(&self, name: &str) -> StreamKey {
        let stream = self.key(name);
        self.system().topics.get_mut(name).unwrap().taken_back = true;
        stream
    }

    pub(crate) fn event(&self, event: SourceEvent) {
        self.system().events.push_back(event);
        self.1.notify_one();
    }

    pub(crate) fn fail(&self, error: SystemError) {
        self.system().failures.push_back(error);
        self.1.notify_one();
    }
}

pub(crate) fn payload(name: &str, n: u64) -> Vec<u8> {
    format!("{name}-{n}").into_bytes()
}

impl System {
    fn name(&self, stream: StreamKey) -> String {
        self.topics.iter().find(|(_, topic)| topic.key == stream.0).unwrap().0.clone()
    }

    fn topic(&mut self, stream: StreamKey) -> &mut Topic {
        self.topics.values_mut().find(|topic| topic.key == stream.0).unwrap()
    }

    fn happens(&mut self) -> Option<Result<SourceEvent, SystemError>> {
        if let Some(error) = self.failures.pop_front() {
            return Some(Err(error));
        }
        if let Some(event) = self.events.pop_front() {
            return Some(Ok(event));
        }
        for (name, topic) in &mut self.topics {
            let stream = StreamKey(topic.key);
            if !topic.opened {
                topic.opened = true;
                let committed = topic.committed;
                return Some(Ok(SourceEvent::Opened { stream, name: name.clone(), committed }));
            }
        }
        // The stream that is furthest behind first, so that all of them move.
        let mut topics: Vec<_> = self.topics.values_mut().collect();
        topics.sort_by_key(|topic| (topic.next, topic.key));
        for topic in topics {
            let stream = StreamKey(topic.key);
            let Some(next) = topic.next.filter(|_| !topic.paused && !topic.taken_back) else { continue };
            if next < topic.records.len() {
                let end = (next + self.batch).min(topic.records.len());
                let mut builder = BatchBuilder::default();
                for (position, payload) in &topic.records[next..end] {
                    builder.push(Record { position: *position, time: NO_TIME, key: b"", payload });
                }
                topic.next = Some(end);
                self.yielded += (end - next) as u64;
                return Some(Ok(SourceEvent::Batch { stream, batch: builder.finish() }));
            }
            if topic.finite && !topic.ended {
                topic.ended = true;
                return Some(Ok(SourceEvent::Ended { stream }));
            }
        }
        None
    }
}

#[async_trait]
impl Source for Scripted {
    async fn next(&mut self) -> Result<SourceEvent, SystemError> {
        self.system().polls += 1;
        loop {
            let happened = self.system().happens();
            match happened {
                Some(happened) => return happened,
                None => self.1.notified().await,
            }
        }
    }

    async fn resume(&mut self, stream: StreamKey, from: ResumeFrom) -> Result<(), SystemError> {
        let mut system = self.system();
        let name = system.name(stream);
        system.resumes.push((name, from));
        let topic = system.topic(stream);
        let after = match from {
            ResumeFrom::After(position) => position,
            ResumeFrom::Committed => topic.committed.unwrap_or(0),
        };
        topic.next = Some(topic.records.partition_point(|(position, _)| *position <= after));
        topic.ended = false;
        Ok(())
    }

    async fn commit(&mut self, positions: &[(StreamKey, Position)]) -> Result<(), SystemError> {
        let mut system = self.system();
        for (stream, position) in positions {
            let name = system.name(*stream);
            system.commits.push((name, *position));
            let topic = system.topic(*stream);
            assert!(topic.committed < Some(*position), "commit of {position} behind {:?}", topic.committed);
            topic.committed = Some(*position);
        }
        Ok(())
    }

    async fn release(&mut self, stream: StreamKey) -> Result<(), SystemError> {
        let mut system = self.system();
        let name = system.name(stream);
        system.topic(stream).next = None;
        system.released.push(name);
        Ok(())
    }

    fn pause(&mut self, stream: StreamKey) {
        self.system().topic(stream).paused = true;
    }

    fn unpause(&mut self, stream: StreamKey) {
        self.system().topic(stream).paused = false;
    }

    async fn close(&mut self, _deadline: Instant) -> Result<(), SystemError> {
        self.system().closed = true;
        Ok(())
    }

    async fn check(&mut self) -> Result<(), SystemError> {
        Ok(())
    }
}
