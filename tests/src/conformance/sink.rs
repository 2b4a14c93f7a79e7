//! What every sink owes the pump.

use async_trait::async_trait;
use connector_crds::SinkSpec;
use connector_runtime::connectors::{self, Context};
use connector_runtime::record::{Batch, BatchBuilder, NO_TIME, Position, Record};
use connector_runtime::sink::{Rejected, Sink, SinkStream};
use connector_runtime::source::SystemError;
use tokio::time::{Instant, sleep, timeout};

use super::{
    Ability, BACK_OFF, CANARY, Carries, PATIENCE, World, assert_no_secret, assert_refused, payloads,
};

/// Records of one batch.
const BATCH: usize = 50;

/// What becomes of a record that is written again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replay {
    /// It is there again.
    Repeats,
    /// The system is as if it were written once.
    Idempotent,
    /// `open` tells the position, and what was not durable is gone.
    ExactlyOnce,
}

/// What a sink promises beyond the contract of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SinkTraits {
    /// What its records may consist of.
    pub carries: Carries,
    /// What becomes of a record that is written again.
    pub replay: Replay,
}

/// A system that records can be written to.
#[async_trait]
pub trait SinkFixture: Send {
    /// Points at the system.
    fn spec(&self) -> SinkSpec;

    /// What is promised.
    fn traits(&self) -> SinkTraits;

    /// The sink of a new process; a fixture that cannot be reached through the registry builds it otherwise.
    fn sink(&mut self, context: Context) -> Box<dyn Sink> {
        connectors::sink(&self.spec(), context).expect("the spec is valid")
    }

    /// How Wallaroo has to send record `number` for `payload` to arrive.
    fn record(&self, number: u64, payload: &[u8]) -> Vec<u8>;

    /// Waits until `count` payloads are there and returns all that are, in the order of their records.
    async fn delivered(&mut self, count: usize) -> Vec<Vec<u8>>;

    /// A record that the system can never take.
    fn bad_record(&self) -> Result<Vec<u8>, &'static str>;

    /// Makes the system unreachable.
    async fn break_down(&mut self) -> Ability;

    /// Ends that.
    async fn repair(&mut self);

    /// True when `check` notices `break_down`.
    fn loss_is_checked(&self) -> bool {
        true
    }

    /// The spec with credentials that the system refuses.
    fn wrong_credentials(&self, world: &World) -> Result<SinkSpec, &'static str>;
}

fn stream(worker: &str) -> SinkStream {
    SinkStream { worker: worker.into(), incarnation: 1 }
}

/// Records from number `first` on, as batches. Positions are ten times the number: nothing may count on steps of one.
fn batches(fixture: &dyn SinkFixture, first: u64, payloads: &[Vec<u8>]) -> Vec<Batch> {
    let mut builder = BatchBuilder::default();
    let mut number = first;
    let mut batches = Vec::new();
    for chunk in payloads.chunks(BATCH) {
        for payload in chunk {
            let payload = fixture.record(number, payload);
            builder.push(Record { position: number * 10, time: NO_TIME, key: &[], payload: &payload });
            number += 1;
        }
        batches.push(builder.finish());
    }
    batches
}

/// Writes as the pump does: the same batch again after a transient error.
async fn write(sink: &mut dyn Sink, stream: &SinkStream, batch: &Batch) -> Vec<Rejected> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match sink.deliver(stream, batch).await {
            Ok(rejected) => return rejected,
            Err(SystemError::Transient { context, .. }) => {
                assert!(Instant::now() < deadline, "{context}");
                sleep(BACK_OFF).await;
            }
            Err(error @ SystemError::Permanent { .. }) => panic!("permanent: {error}"),
        }
    }
}

async fn flush(sink: &mut dyn Sink) {
    let deadline = Instant::now() + PATIENCE;
    timeout(PATIENCE, sink.flush(deadline)).await.expect("flushed by the deadline").expect("flushed");
}

fn durable(sink: &dyn Sink, stream: &SinkStream) -> Option<Position> {
    sink.durable().into_iter().find(|(known, _)| known == stream).map(|(_, position)| position)
}

/// Every byte passes unchanged and in order; after `flush` the last position is durable.
pub async fn every_record_arrives_unchanged_in_order(fixture: &mut dyn SinkFixture, world: &World) {
    let payloads = payloads(fixture.traits().carries);
    let mut sink = fixture.sink(world.context());
    assert_eq!(sink.open(&stream("w")).await.expect("open"), None, "a stream that was never written");
    assert_eq!(write(&mut *sink, &stream("w"), &Batch::default()).await, []);
    let mut delivered = Vec::new();
    for batch in batches(fixture, 1, &payloads) {
        assert_eq!(write(&mut *sink, &stream("w"), &batch).await, [], "nothing is rejected");
        let reached = durable(&*sink, &stream("w"));
        assert!(reached <= batch.last_position(), "durable beyond what was written");
        flush(&mut *sink).await;
        assert_eq!(durable(&*sink, &stream("w")), batch.last_position());
        delivered = fixture.delivered(delivered.len() + batch.len()).await;
    }
    assert!(delivered == payloads, "records came changed, or in another order");
}

/// What is written again leaves what the system promises.
pub async fn a_replay_does_what_is_promised(fixture: &mut dyn SinkFixture, world: &World) {
    let payloads = payloads(fixture.traits().carries);
    let half = payloads.len() / 2;
    let mut first = fixture.sink(world.context());
    first.open(&stream("w")).await.expect("open");
    for batch in batches(fixture, 1, &payloads[..half]) {
        write(&mut *first, &stream("w"), &batch).await;
    }
    flush(&mut *first).await;
    // Accepted, and perhaps not durable when the process is killed.
    for batch in batches(fixture, half as u64 + 1, &payloads[half..half + BATCH]) {
        write(&mut *first, &stream("w"), &batch).await;
    }
    let before = match fixture.traits().replay {
        Replay::Repeats => fixture.delivered(half + BATCH).await,
        Replay::Idempotent | Replay::ExactlyOnce => Vec::new(),
    };
    drop(first);
    let mut second = fixture.sink(world.context());
    let held = second.open(&stream("w")).await.expect("open");
    match fixture.traits().replay {
        Replay::ExactlyOnce => {
            let held = held.expect("a position that was durable is not lost");
            assert!(held >= half as u64 * 10, "the target went back to {held}");
            let done = usize::try_from(held / 10).expect("small");
            for batch in batches(fixture, done as u64 + 1, &payloads[done..]) {
                write(&mut *second, &stream("w"), &batch).await;
            }
            flush(&mut *second).await;
            assert!(fixture.delivered(payloads.len()).await == payloads, "not exactly once");
        }
        Replay::Idempotent => {
            assert_eq!(held, None);
            for batch in batches(fixture, 1, &payloads) {
                write(&mut *second, &stream("w"), &batch).await;
            }
            flush(&mut *second).await;
            assert!(fixture.delivered(payloads.len()).await == payloads, "not idempotent");
        }
        Replay::Repeats => {
            assert_eq!(held, None);
            let again = &batches(fixture, 1, &payloads[..BATCH])[0];
            write(&mut *second, &stream("w"), again).await;
            flush(&mut *second).await;
            let expected = [&before[..], &payloads[..BATCH]].concat();
            assert!(fixture.delivered(expected.len()).await == expected, "something else than a repetition");
        }
    }
}

/// A record that can never be taken is named by its number in the batch, and all others arrive.
pub async fn a_rejected_record_is_named_and_the_others_arrive(fixture: &mut dyn SinkFixture, world: &World) {
    let mut sink = fixture.sink(world.context());
    let Ok(bad) = fixture.bad_record() else { return };
    sink.open(&stream("w")).await.expect("open");
    let mut builder = BatchBuilder::default();
    let good: Vec<Vec<u8>> = (1..=6_u8).map(|n| vec![b'a' + n]).collect();
    for index in 0..8_u64 {
        let payload = match index {
            2 | 7 => bad.clone(),
            _ => {
                let number = if index < 2 { index + 1 } else { index };
                fixture.record(number, &good[usize::try_from(number).expect("small") - 1])
            }
        };
        builder.push(Record { position: index + 5, time: NO_TIME, key: &[], payload: &payload });
    }
    let refused = write(&mut *sink, &stream("w"), &builder.finish()).await;
    assert_eq!(refused.iter().map(|r| r.index).collect::<Vec<_>>(), [2, 7]);
    assert!(refused.iter().all(|r| r.reason.split(' ').count() > 3), "{refused:?} says too little");
    flush(&mut *sink).await;
    assert_eq!(durable(&*sink, &stream("w")), Some(12), "a rejected record counts as passed");
    assert!(fixture.delivered(good.len()).await == good);
}

/// Streams have positions of their own; an archived one is forgotten.
pub async fn streams_are_apart_and_an_archived_one_is_forgotten(
    fixture: &mut dyn SinkFixture,
    world: &World,
) {
    let mut sink = fixture.sink(world.context());
    let payloads: Vec<Vec<u8>> = (0..6_u8).map(|n| vec![b'a' + n]).collect();
    for worker in ["v", "w"] {
        assert_eq!(sink.open(&stream(worker)).await.expect("open"), None);
    }
    for (number, payload) in (1..).zip(&payloads) {
        let worker = if number % 2 == 0 { "v" } else { "w" };
        let batch = &batches(fixture, number, std::slice::from_ref(payload))[0];
        write(&mut *sink, &stream(worker), batch).await;
    }
    flush(&mut *sink).await;
    assert_eq!(durable(&*sink, &stream("v")), Some(60));
    assert_eq!(durable(&*sink, &stream("w")), Some(50));
    assert!(fixture.delivered(payloads.len()).await == payloads);
    sink.archive(&stream("v")).await.expect("archive");
    sink.archive(&stream("v")).await.expect("archive again");
    assert_eq!(durable(&*sink, &stream("v")), None);
    assert_eq!(durable(&*sink, &stream("w")), Some(50));
    let next = SinkStream { incarnation: 2, ..stream("v") };
    assert_eq!(sink.open(&next).await.expect("open"), None, "another incarnation starts with nothing");
}

/// A system that goes away fails as transient, and takes the same batch when it is back.
pub async fn a_lost_system_is_transient_and_takes_the_batch_later(
    fixture: &mut dyn SinkFixture,
    world: &World,
) {
    let mut sink = fixture.sink(world.context());
    sink.check().await.expect("the system is there");
    sink.open(&stream("w")).await.expect("open");
    let payloads = payloads(fixture.traits().carries);
    let batches = batches(fixture, 1, &payloads[..2 * BATCH]);
    write(&mut *sink, &stream("w"), &batches[0]).await;
    flush(&mut *sink).await;
    fixture.delivered(BATCH).await;
    if let Ability::NotApplicable(_) = fixture.break_down().await {
        write(&mut *sink, &stream("w"), &batches[1]).await;
        flush(&mut *sink).await;
        assert!(fixture.delivered(2 * BATCH).await == payloads[..2 * BATCH]);
        return;
    }
    let error = timeout(PATIENCE, sink.deliver(&stream("w"), &batches[1]))
        .await
        .expect("an answer")
        .expect_err("no system");
    assert!(matches!(error, SystemError::Transient { .. }), "{error:?}");
    assert_no_secret(&error.to_string());
    assert_eq!(durable(&*sink, &stream("w")), Some(BATCH as u64 * 10), "durable though the system is away");
    if fixture.loss_is_checked() {
        let error = timeout(PATIENCE, sink.check()).await.expect("an answer").expect_err("no system");
        assert!(matches!(error, SystemError::Transient { .. }), "{error:?}");
    }
    fixture.repair().await;
    write(&mut *sink, &stream("w"), &batches[1]).await;
    flush(&mut *sink).await;
    assert_eq!(durable(&*sink, &stream("w")), Some(2 * BATCH as u64 * 10));
    assert!(fixture.delivered(2 * BATCH).await == payloads[..2 * BATCH]);
}

/// Refused credentials are an error of class `Auth`, or permanent.
pub async fn wrong_credentials_are_said(fixture: &mut dyn SinkFixture, world: &World) {
    let Ok(spec) = fixture.wrong_credentials(world) else { return };
    let mut sink = connectors::sink(&spec, world.context()).expect("the spec is valid");
    assert_refused(
        &timeout(PATIENCE, sink.check()).await.expect("an answer").expect_err("wrong credentials"),
    );
    let batch = &batches(fixture, 1, &[b"x".to_vec()])[0];
    let error = timeout(PATIENCE, sink.deliver(&stream("w"), batch)).await.expect("an answer");
    assert_refused(&error.expect_err("wrong credentials"));
    assert_eq!(sink.durable(), []);
}

/// No configuration shows a secret.
#[allow(clippy::unused_async)] // one shape for all checks
pub async fn no_secret_is_shown(fixture: &mut dyn SinkFixture, world: &World) {
    world.secret("canary", CANARY);
    assert_no_secret(&format!("{:?} {:?}", fixture.spec(), world.context()));
    if let Ok(spec) = fixture.wrong_credentials(world) {
        assert_no_secret(&format!("{spec:?}"));
    }
}

/// Makes one test of each check for a fixture: `sink_suite!(name, expression of a world that gives the fixture)`.
#[macro_export]
macro_rules! sink_suite {
    ($name:ident, $make:expr) => {
        mod $name {
            #[allow(unused_imports)]
            use super::*;
            $crate::sink_suite!(@checks $make,
                every_record_arrives_unchanged_in_order
                a_replay_does_what_is_promised
                a_rejected_record_is_named_and_the_others_arrive
                streams_are_apart_and_an_archived_one_is_forgotten
                a_lost_system_is_transient_and_takes_the_batch_later
                wrong_credentials_are_said
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
                $crate::conformance::sink::$check(&mut fixture, &world).await;
            }
        )*
    };
}
