//! What every source owes the pump.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::task::Poll;

use async_trait::async_trait;
use connector_crds::SourceSpec;
use connector_runtime::connectors;
use connector_runtime::record::Position;
use connector_runtime::source::{ResumeFrom, Source, SourceEvent, StreamKey, SystemError};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::{
    Ability, BACK_OFF, CANARY, Carries, PATIENCE, QUIET, World, assert_no_secret, assert_refused, payloads,
};

/// What a source promises beyond the contract of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceTraits {
    /// What its records may consist of.
    pub carries: Carries,
    /// Whether records can be read again (all but volatile systems).
    pub replayable: bool,
    /// Whether a new process learns what an earlier one committed.
    pub keeps_commits: bool,
    /// Streams that the fixture's spec has.
    pub streams: usize,
}

/// A system that records can be read from.
#[async_trait]
pub trait SourceFixture: Send {
    /// Points at the system.
    fn spec(&self) -> SourceSpec;

    /// What is promised.
    fn traits(&self) -> SourceTraits;

    /// Adds records at the end, in order; returns when the system has them.
    async fn produce(&mut self, payloads: &[Vec<u8>]);

    /// What the source makes of records that were produced; a system with records of its own says which.
    fn expected(&self, produced: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
        produced
    }

    /// Makes the system unreachable, before the source came or while it runs.
    async fn break_down(&mut self) -> Ability;

    /// Ends that.
    async fn repair(&mut self);

    /// True when a running source notices `break_down` and says so with a transient error.
    fn loss_is_noticed(&self) -> bool;

    /// The spec with credentials that the system refuses.
    fn wrong_credentials(&self, world: &World) -> Result<SourceSpec, &'static str>;

    /// The spec for reading what is there and ending.
    fn finite(&self) -> Result<SourceSpec, &'static str>;
}

/// A source, driven as the pump does, with what it yielded. Checks the rules that hold always.
struct Driver {
    source: Box<dyn Source>,
    streams: BTreeMap<StreamKey, Seen>,
    /// Where a stream continues that opens while others run.
    resume: Option<ResumeFrom>,
    transient: usize,
}

struct Seen {
    name: String,
    committed: Option<Position>,
    running: bool,
    paused: bool,
    ended: bool,
    last: Position,
    records: Vec<(Position, Vec<u8>)>,
}

impl Driver {
    fn new(spec: &SourceSpec, world: &World) -> Driver {
        let source = connectors::source(spec, world.context()).expect("the spec is valid");
        Driver { source, streams: BTreeMap::new(), resume: None, transient: 0 }
    }

    /// A source whose streams all are open, none resumed.
    async fn opened(fixture: &dyn SourceFixture, world: &World) -> Driver {
        let mut driver = Driver::new(&fixture.spec(), world);
        let deadline = Instant::now() + PATIENCE;
        while driver.streams.len() < fixture.traits().streams {
            assert!(Instant::now() < deadline, "only {} streams opened", driver.streams.len());
            driver.next(deadline).await;
        }
        driver
    }

    /// A source whose streams all are running.
    async fn running(fixture: &dyn SourceFixture, world: &World, from: ResumeFrom) -> Driver {
        let mut driver = Driver::opened(fixture, world).await;
        driver.resume_all(|_| from).await;
        driver
    }

    async fn resume_all(&mut self, from: impl Fn(&Seen) -> ResumeFrom) {
        for (key, seen) in &mut self.streams {
            let from = from(seen);
            self.source.resume(*key, from).await.expect("resume");
            seen.running = true;
            seen.ended = false;
            seen.records.clear();
            seen.last = match from {
                ResumeFrom::After(position) => position,
                ResumeFrom::Committed => seen.committed.unwrap_or(0),
            };
        }
    }

    /// One event or transient error, until `deadline`; false when there was none.
    async fn next(&mut self, deadline: Instant) -> bool {
        match timeout_at(deadline, self.source.next()).await {
            Err(_) => false,
            Ok(result) => {
                self.take(result).await;
                true
            }
        }
    }

    async fn take(&mut self, result: Result<SourceEvent, SystemError>) {
        match result {
            Ok(SourceEvent::Opened { stream, name, committed }) => {
                assert!(!name.is_empty(), "a stream without a name");
                let seen = Seen {
                    name,
                    committed,
                    running: false,
                    paused: false,
                    ended: false,
                    last: 0,
                    records: Vec::new(),
                };
                assert!(self.streams.insert(stream, seen).is_none(), "{stream:?} opened twice");
                if let Some(from) = self.resume {
                    self.source.resume(stream, from).await.expect("resume");
                    self.streams.get_mut(&stream).expect("just inserted").running = true;
                }
            }
            Ok(SourceEvent::Connected) => {}
            Ok(SourceEvent::Batch { stream, batch }) => {
                assert!(!batch.is_empty(), "an empty batch");
                for record in batch.iter() {
                    self.record(stream, record.position, record.payload);
                }
            }
            Ok(SourceEvent::BadRecord { stream, position, reason, .. }) => {
                panic!("{stream:?} yielded a bad record at {position}: {reason}")
            }
            Ok(SourceEvent::Ended { stream }) => {
                let seen = self.streams.get_mut(&stream).expect("an ended stream was opened");
                assert!(seen.running && !seen.ended, "a stream ended that did not run");
                seen.ended = true;
            }
            Ok(SourceEvent::Stuck { stream, reason, context }) => panic!("{stream:?}: {reason}: {context}"),
            Ok(other @ (SourceEvent::Revoking { .. } | SourceEvent::Lost { .. })) => {
                panic!("nobody else wants the streams: {other:?}")
            }
            Err(SystemError::Transient { context, .. }) => {
                assert_no_secret(&context);
                self.transient += 1;
                sleep(BACK_OFF).await;
            }
            Err(error @ SystemError::Permanent { .. }) => panic!("permanent: {error}"),
        }
    }

    fn record(&mut self, stream: StreamKey, position: Position, payload: &[u8]) {
        let seen = self.streams.get_mut(&stream).expect("a record of a stream that was never opened");
        assert!(seen.running, "a record before `resume`");
        assert!(!seen.paused, "a record of a paused stream");
        assert!(!seen.ended, "a record after the stream ended");
        assert!(position > seen.last, "position {position} after {}", seen.last);
        seen.last = position;
        seen.records.push((position, payload.to_vec()));
    }

    fn count(&self) -> usize {
        self.streams.values().map(|seen| seen.records.len()).sum()
    }

    /// Reads until `count` records are there, and none beyond.
    async fn read(&mut self, count: usize) {
        let deadline = Instant::now() + PATIENCE;
        while self.count() < count {
            assert!(self.next(deadline).await, "{} of {count} records came", self.count());
        }
        assert_eq!(self.count(), count, "records came twice");
    }

    /// Nothing comes for a while.
    async fn quiet(&mut self, what: &str) {
        let before = self.count();
        let deadline = Instant::now() + QUIET;
        while self.next(deadline).await {}
        assert_eq!(self.count(), before, "{what}");
    }

    /// Payloads of all streams, sorted.
    fn sorted(&self) -> Vec<Vec<u8>> {
        sorted(
            self.streams
                .values()
                .flat_map(|seen| seen.records.iter().map(|(_, payload)| payload.clone()))
                .collect(),
        )
    }

    fn records(&self) -> BTreeMap<String, Vec<(Position, Vec<u8>)>> {
        self.streams.values().map(|seen| (seen.name.clone(), seen.records.clone())).collect()
    }

    async fn close(mut self) {
        let deadline = Instant::now() + PATIENCE;
        timeout_at(deadline, self.source.close(deadline))
            .await
            .expect("closed by the deadline")
            .expect("closed");
    }
}

fn sorted(mut payloads: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    payloads.sort();
    payloads
}

/// Streams are announced first; nothing of them is yielded before `resume`.
pub async fn nothing_comes_before_resume(fixture: &mut dyn SourceFixture, world: &World) {
    let mut driver = Driver::opened(fixture, world).await;
    fixture.produce(&payloads(fixture.traits().carries)).await;
    driver.quiet("records before `resume`").await;
    let mut names: Vec<_> = driver.streams.values().map(|seen| seen.name.clone()).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), driver.streams.len(), "two streams of one name");
    driver.close().await;
}

/// Every byte passes unchanged, each record once, positions strictly increase from 1 (the driver looks at each).
pub async fn every_record_arrives_unchanged_once(fixture: &mut dyn SourceFixture, world: &World) {
    let mut driver = Driver::running(fixture, world, ResumeFrom::Committed).await;
    let payloads = payloads(fixture.traits().carries);
    let (first, second) = payloads.split_at(payloads.len() / 2);
    fixture.produce(first).await;
    fixture.produce(second).await;
    driver.read(payloads.len()).await;
    driver.quiet("more records than were produced").await;
    assert!(driver.sorted() == sorted(fixture.expected(payloads)), "records came changed");
    driver.close().await;
}

/// `resume(After(p))` yields exactly what is beyond p, as often as it is called. A volatile source goes on beyond p.
pub async fn resume_repeats_exactly_what_is_beyond_the_position(
    fixture: &mut dyn SourceFixture,
    world: &World,
) {
    let payloads = payloads(fixture.traits().carries);
    let mut driver = Driver::running(fixture, world, ResumeFrom::Committed).await;
    fixture.produce(&payloads).await;
    driver.read(payloads.len()).await;
    let all = driver.records();
    if !fixture.traits().replayable {
        let far = driver.streams.values().map(|seen| seen.last).max().expect("a stream") + 1_000;
        driver.resume_all(|_| ResumeFrom::After(far)).await;
        fixture.produce(&payloads[..3]).await;
        // The driver asserts that positions are beyond.
        driver.read(3).await;
        return driver.close().await;
    }
    for part in [2, 3, 1] {
        let cut = |records: &[(Position, Vec<u8>)]| {
            if part == 1 { 0 } else { records.get(records.len() / part).map_or(0, |(position, _)| *position) }
        };
        driver.resume_all(|seen| ResumeFrom::After(cut(&all[&seen.name]))).await;
        let expected: BTreeMap<_, Vec<_>> = all
            .iter()
            .map(|(name, records)| {
                (
                    name.clone(),
                    records.iter().filter(|(position, _)| *position > cut(records)).cloned().collect(),
                )
            })
            .collect();
        driver.read(expected.values().map(Vec::len).sum()).await;
        assert!(driver.records() == expected, "resume repeated something else");
    }
    // Again in the middle of a reading: nothing of the earlier one comes.
    driver.resume_all(|_| ResumeFrom::After(0)).await;
    driver.next(Instant::now() + PATIENCE).await;
    driver.resume_all(|_| ResumeFrom::After(0)).await;
    driver.read(payloads.len()).await;
    assert!(driver.records() == all, "the earlier reading came through");
    driver.close().await;
}

/// Commits may repeat and never go back; where the system keeps them a new process continues behind them.
pub async fn commits_are_idempotent_and_outlive_the_process(fixture: &mut dyn SourceFixture, world: &World) {
    let payloads = payloads(fixture.traits().carries);
    let mut driver = Driver::running(fixture, world, ResumeFrom::Committed).await;
    fixture.produce(&payloads).await;
    driver.read(payloads.len()).await;
    let all = driver.records();
    let half: Vec<(StreamKey, Position)> = driver
        .streams
        .iter()
        .filter_map(|(key, seen)| {
            seen.records.get(seen.records.len() / 2).map(|(position, _)| (*key, *position))
        })
        .collect();
    let early: Vec<_> = half.iter().map(|(key, _)| (*key, driver.streams[key].records[0].0)).collect();
    for positions in [&early, &half, &half] {
        driver.source.commit(positions).await.expect("commit");
    }
    let committed: BTreeMap<String, Position> =
        half.iter().map(|(key, position)| (driver.streams[key].name.clone(), *position)).collect();
    driver.close().await;
    if !fixture.traits().keeps_commits {
        return;
    }
    let mut second = Driver::opened(fixture, world).await;
    for seen in second.streams.values() {
        assert_eq!(seen.committed, committed.get(&seen.name).copied(), "committed position of {}", seen.name);
    }
    second.resume_all(|_| ResumeFrom::Committed).await;
    let expected: BTreeMap<String, Vec<_>> = all
        .into_iter()
        .map(|(name, records)| {
            let after = committed.get(&name).copied().unwrap_or(0);
            (name, records.into_iter().filter(|(position, _)| *position > after).collect())
        })
        .collect();
    second.read(expected.values().map(Vec::len).sum()).await;
    assert!(second.records() == expected, "a new process read something else");
    second.close().await;
}

/// Dropping the future of `next` at any point loses nothing and repeats nothing.
pub async fn next_is_cancel_safe(fixture: &mut dyn SourceFixture, world: &World) {
    let payloads = payloads(fixture.traits().carries);
    let mut driver = Driver::running(fixture, world, ResumeFrom::Committed).await;
    let mut chunks = payloads.chunks(7);
    let deadline = Instant::now() + PATIENCE;
    let mut polls = 0;
    while driver.count() < payloads.len() {
        assert!(Instant::now() < deadline, "{} of {} records came", driver.count(), payloads.len());
        if let Some(chunk) = chunks.next() {
            fixture.produce(chunk).await;
        }
        // Polled once, twice, … seven times, then dropped.
        polls = polls % 7 + 1;
        let result = {
            let mut next = driver.source.next();
            let mut result = None;
            for _ in 0..polls {
                let polled = poll_fn(|context| Poll::Ready(next.as_mut().poll(context))).await;
                if let Poll::Ready(ready) = polled {
                    result = Some(ready);
                    break;
                }
                sleep(std::time::Duration::from_millis(1)).await;
            }
            result
        };
        if let Some(result) = result {
            driver.take(result).await;
        }
    }
    driver.quiet("more records than were produced").await;
    assert!(driver.sorted() == sorted(fixture.expected(payloads)), "records came changed");
    driver.close().await;
}

/// A paused stream yields nothing while `next` is called, and everything afterwards.
pub async fn a_paused_stream_waits(fixture: &mut dyn SourceFixture, world: &World) {
    let payloads = payloads(fixture.traits().carries);
    let mut driver = Driver::running(fixture, world, ResumeFrom::Committed).await;
    for (key, seen) in &mut driver.streams {
        driver.source.pause(*key);
        seen.paused = true;
    }
    fixture.produce(&payloads).await;
    driver.quiet("records while paused").await;
    for (key, seen) in &mut driver.streams {
        driver.source.unpause(*key);
        seen.paused = false;
    }
    driver.read(payloads.len()).await;
    assert!(driver.sorted() == sorted(fixture.expected(payloads)), "records came changed");
    driver.close().await;
}

/// A system that is not there is a transient error, from `check` too, and the source begins once it is.
pub async fn an_absent_system_is_transient(fixture: &mut dyn SourceFixture, world: &World) {
    if let Ability::NotApplicable(_) = fixture.break_down().await {
        let mut source = connectors::source(&fixture.spec(), world.context()).expect("the spec is valid");
        return source.check().await.expect("a system that cannot be absent is there");
    }
    let mut driver = Driver::new(&fixture.spec(), world);
    driver.resume = Some(ResumeFrom::Committed);
    let error =
        timeout(PATIENCE, driver.source.check()).await.expect("an answer").expect_err("the system is absent");
    assert!(matches!(error, SystemError::Transient { .. }), "{error:?}");
    let deadline = Instant::now() + PATIENCE;
    if fixture.loss_is_noticed() {
        while driver.transient == 0 {
            assert!(driver.next(deadline).await, "the absence was never reported");
        }
    } else {
        driver.quiet("records of an absent system").await;
    }
    assert!(driver.count() == 0);
    fixture.repair().await;
    while driver.streams.len() < fixture.traits().streams {
        assert!(driver.next(deadline).await, "the system is back, but no stream opened");
    }
    driver.source.check().await.expect("the system is back");
    let payloads = payloads(fixture.traits().carries);
    fixture.produce(&payloads).await;
    driver.read(payloads.len()).await;
    driver.close().await;
}

/// A system that goes away for a while costs nothing but time.
pub async fn a_lost_system_is_transient_and_nothing_is_missing(
    fixture: &mut dyn SourceFixture,
    world: &World,
) {
    let payloads = payloads(fixture.traits().carries);
    let (first, second) = payloads.split_at(payloads.len() / 2);
    let mut driver = Driver::running(fixture, world, ResumeFrom::Committed).await;
    driver.resume = Some(ResumeFrom::Committed);
    fixture.produce(first).await;
    if let Ability::NotApplicable(_) = fixture.break_down().await {
        fixture.produce(second).await;
        driver.read(payloads.len()).await;
        return driver.close().await;
    }
    driver.next(Instant::now() + QUIET).await;
    fixture.repair().await;
    fixture.produce(second).await;
    driver.read(payloads.len()).await;
    assert!(driver.sorted() == sorted(fixture.expected(payloads)), "records are missing or changed");
    driver.close().await;
}

/// Refused credentials are an error of class `Auth`, or permanent; never data, never silence.
pub async fn wrong_credentials_are_said(fixture: &mut dyn SourceFixture, world: &World) {
    let Ok(spec) = fixture.wrong_credentials(world) else { return };
    let mut source = connectors::source(&spec, world.context()).expect("the spec is valid");
    let error = timeout(PATIENCE, source.check()).await.expect("an answer").expect_err("wrong credentials");
    assert_refused(&error);
    loop {
        match timeout(PATIENCE, source.next()).await.expect("an answer") {
            Err(error) => break assert_refused(&error),
            Ok(SourceEvent::Opened { .. }) => {}
            Ok(other) => panic!("data with wrong credentials: {other:?}"),
        }
    }
}

/// A finite source ends behind its last record, and again after each `resume`.
pub async fn a_finite_source_ends(fixture: &mut dyn SourceFixture, world: &World) {
    let Ok(spec) = fixture.finite() else { return };
    let payloads = payloads(fixture.traits().carries);
    fixture.produce(&payloads).await;
    let mut driver = Driver::new(&spec, world);
    let deadline = Instant::now() + PATIENCE;
    while driver.streams.len() < fixture.traits().streams {
        assert!(driver.next(deadline).await, "a stream opens");
    }
    for _ in 0..2 {
        driver.resume_all(|_| ResumeFrom::After(0)).await;
        while driver.streams.values().any(|seen| !seen.ended) {
            assert!(driver.next(deadline).await, "the stream ends");
        }
        assert!(driver.sorted() == sorted(fixture.expected(payloads.clone())), "records came changed");
    }
    let ends: Vec<(StreamKey, Position)> =
        driver.streams.iter().map(|(key, seen)| (*key, seen.last)).collect();
    driver.source.commit(&ends).await.expect("commit");
    for (key, end) in ends {
        driver.source.resume(key, ResumeFrom::After(end)).await.expect("resume at the end");
        driver.streams.get_mut(&key).expect("known").ended = false;
        while !driver.streams[&key].ended {
            assert!(driver.next(deadline).await, "the stream ends again");
        }
        driver.source.release(key).await.expect("release");
    }
    driver.quiet("something after the release").await;
    driver.close().await;
}

/// No configuration shows a secret.
#[allow(clippy::unused_async)] // one shape for all checks
pub async fn no_secret_is_shown(fixture: &mut dyn SourceFixture, world: &World) {
    world.secret("canary", CANARY);
    assert_no_secret(&format!("{:?} {:?}", fixture.spec(), world.context()));
    if let Ok(spec) = fixture.wrong_credentials(world) {
        assert_no_secret(&format!("{spec:?}"));
    }
}

/// Makes one test of each check for a fixture: `source_suite!(name, expression of a world that gives the fixture)`.
#[macro_export]
macro_rules! source_suite {
    ($name:ident, $make:expr) => {
        mod $name {
            #[allow(unused_imports)]
            use super::*;
            $crate::source_suite!(@checks $make,
                nothing_comes_before_resume
                every_record_arrives_unchanged_once
                resume_repeats_exactly_what_is_beyond_the_position
                commits_are_idempotent_and_outlive_the_process
                next_is_cancel_safe
                a_paused_stream_waits
                an_absent_system_is_transient
                a_lost_system_is_transient_and_nothing_is_missing
                wrong_credentials_are_said
                a_finite_source_ends
                no_secret_is_shown
            );
        }
    };
    (@checks $make:expr, $($check:ident)*) => {
        $(
            #[tokio::test]
            async fn $check() {
                let world = $crate::conformance::World::new();
                let mut fixture = $make(&world).await;
                $crate::conformance::source::$check(&mut fixture, &world).await;
            }
        )*
    };
}
