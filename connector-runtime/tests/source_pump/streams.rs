//! Streams side by side: revoked, lost, silent, ended.

use connector_runtime::board::{Side, SideState};
use connector_runtime::pump::source::{Outcome, PumpError};
use connector_runtime::source::ResumeFrom::{After, Committed};
use connector_runtime::source::{ErrorClass, SourceEvent, SystemError};
use tokio::time::{Duration, Instant};

use crate::harness::{config, start, stays, until};
use crate::scripted::Scripted;
use crate::worker::Worker;

#[tokio::test]
async fn a_revoked_stream_ends_and_the_others_go_on_in_the_same_session() {
    let worker = Worker::start().await;
    let source = Scripted::new(10).topic("a", 100, false).topic("b", 5_000, false);
    let pump = start(&source, config(&worker.address()));
    until("it ran", || worker.ran("a") == 100).await;
    source.revoke("a", Instant::now() + Duration::from_secs(30));
    until("it is released", || source.system().released == ["a"]).await;
    assert_eq!(source.committed("a"), Some(100), "the commit comes before the release");
    until("the other one goes on", || source.committed("b") == Some(5_000)).await;
    assert_eq!((worker.eos(), worker.ran("b")), (1, 5_000));
    assert_eq!(worker.connections(), 1, "a revoke is no reason to close");
    pump.stop().await;
}

#[tokio::test]
async fn a_stream_revoked_without_a_session_is_released_at_once() {
    let source = Scripted::new(10).topic("a", 100, false);
    let pump = start(&source, config("127.0.0.1:9"));
    until("it is known", || source.system().polls > 1).await;
    source.revoke("a", Instant::now() + Duration::from_secs(30));
    until("it is released", || source.system().released == ["a"]).await;
    pump.stop().await;
}

#[tokio::test]
async fn nothing_of_a_lost_stream_is_committed_any_more() {
    let worker = Worker::start().await;
    worker.rules().checkpoints = false;
    let source = Scripted::new(10).topic("a", 50, false);
    let pump = start(&source, config(&worker.address()));
    until("all ran", || worker.ran("a") == 50).await;
    source.lose("a");
    until("it is released", || source.system().released == ["a"]).await;
    until("Wallaroo is told, so that the next owner can have it", || worker.rules().eos == 1).await;
    worker.rules().checkpoints = true;
    stays("no commit", Duration::from_millis(50), || source.system().commits.is_empty()).await;
    pump.stop().await;
}

#[tokio::test]
async fn one_refused_stream_of_eight_holds_nobody_up() {
    let worker = Worker::start().await;
    worker.rules().closed.insert("s3".into());
    let source = Scripted::new(16);
    for n in 0..8 {
        let records = (1..=500).map(|id| (id, vec![b'x'; 20])).collect();
        source.add(&format!("s{n}"), records, false);
    }
    let pump = start(&source, config(&worker.address()));
    let done = |n| n == 3 || source.committed(&format!("s{n}")) == Some(500);
    until("seven are done", || (0..8).all(done)).await;
    assert_eq!(worker.ran("s3"), 0);
    assert_eq!(source.resumes("s3"), []);
    worker.rules().closed.clear();
    until("the eighth follows", || source.committed("s3") == Some(500)).await;
    pump.stop().await;
}

#[tokio::test]
async fn a_connection_lost_between_the_end_and_its_acknowledgement_repeats_the_end() {
    let worker = Worker::start().await;
    worker.rules().drop_at_eos = 2;
    let source = Scripted::new(10).topic("a", 100, true);
    let pump = start(&source, config(&worker.address()));
    let board = pump.board.clone();
    assert_eq!(pump.outcome().await, Outcome::Completed);
    assert_eq!(worker.rules().eos, 3);
    assert_eq!(worker.distinct("a"), (1..=100).collect::<Vec<_>>());
    assert_eq!(source.committed("a"), Some(100));
    assert!(board.snapshot().complete);
    assert_eq!(board.snapshot().streams["a"].committed, Some(100));
}

#[tokio::test]
async fn a_finite_source_is_complete_only_when_all_its_streams_are() {
    let worker = Worker::start().await;
    worker.rules().closed.insert("b".into());
    let source = Scripted::new(10).topic("a", 10, true).topic("b", 10, true);
    let pump = start(&source, config(&worker.address()));
    until("the first is done", || source.system().released == ["a"]).await;
    stays("not complete", Duration::from_millis(50), || !pump.board.snapshot().complete).await;
    worker.rules().closed.clear();
    assert_eq!(pump.outcome().await, Outcome::Completed);
    assert_eq!(source.committed("b"), Some(10));
}

#[tokio::test]
async fn a_failing_system_is_asked_again_and_loses_nothing() {
    let worker = Worker::start().await;
    let source = Scripted::new(10).topic("a", 100, true);
    for _ in 0..3 {
        source.fail(SystemError::Transient {
            context: "connecting to kafka:9092".into(),
            class: ErrorClass::Connect,
            cause: None,
        });
    }
    let pump = start(&source, config(&worker.address()));
    let board = pump.board.clone();
    assert_eq!(pump.outcome().await, Outcome::Completed);
    assert_eq!(worker.ran("a"), 100);
    let last = board.snapshot().last_error.unwrap();
    assert!(last.message.contains("kafka:9092"), "{}", last.message);
    assert_eq!(board.errors().values().sum::<u64>(), 3);
}

#[tokio::test]
async fn a_permanent_error_of_the_system_stalls_and_is_tried_again_slowly() {
    let worker = Worker::start().await;
    let source = Scripted::new(10).topic("a", 100, true);
    source.fail(SystemError::Permanent {
        reason: "PositionOutOfRange",
        context: "topic a starts at 500, behind position 3".into(),
    });
    let mut config = config(&worker.address());
    config.timings.slow_retry = Duration::from_millis(300);
    let pump = start(&source, config);
    until("it stalls", || pump.stalled_reason().as_deref() == Some("PositionOutOfRange")).await;
    until("it goes on once the cause is gone", || pump.stalled_reason().is_none()).await;
    assert_eq!(pump.outcome().await, Outcome::Completed);
}

#[tokio::test]
async fn a_stream_that_is_stuck_is_said_and_holds_no_other_back() {
    let worker = Worker::start().await;
    let source = Scripted::new(10).topic("a", 3, false).topic("b", 100, false);
    let stream = source.key("a");
    let pump = start(&source, config(&worker.address()));
    until("both run", || worker.ran("a") == 3 && worker.ran("b") == 100).await;
    let context = "topic a starts at 500, behind position 3".to_owned();
    source.event(SourceEvent::Stuck { stream, reason: "PositionOutOfRange", context });
    until("it stalls", || pump.stalled_reason().as_deref() == Some("PositionOutOfRange")).await;
    assert_eq!(pump.board.side(Side::External), SideState::Connected);
    source.system().topics.get_mut("b").unwrap().records.push((101, b"more".to_vec()));
    source.wake();
    until("the other goes on", || worker.ran("b") == 101).await;
    assert_eq!(pump.stalled_reason().as_deref(), Some("PositionOutOfRange"));
    source.system().topics.get_mut("a").unwrap().records.push((500, b"again".to_vec()));
    source.wake();
    until("the cause is gone", || pump.stalled_reason().is_none()).await;
}

#[tokio::test]
async fn a_source_whose_positions_go_back_ends_the_pump_before_anything_is_lost() {
    let worker = Worker::start().await;
    let source = Scripted::new(10);
    source.add("a", vec![(1, b"x".to_vec()), (5, b"y".to_vec()), (4, b"z".to_vec())], false);
    let pump = start(&source, config(&worker.address()));
    let error = pump.error().await;
    assert!(matches!(error, PumpError::WentBack { position: 4, last: 5, .. }), "{error}");
}

#[tokio::test]
async fn paused_takes_nothing_keeps_the_session_and_goes_on_where_it_was() {
    let worker = Worker::start().await;
    let source = Scripted::new(10).topic("a", 100, false);
    let pump = start(&source, config(&worker.address()));
    until("all is committed", || source.committed("a") == Some(100)).await;
    pump.pause(true);
    until("the stream is told to pause", || {
        let polls = source.system().polls;
        let pauses = source.is_paused("a");
        polls > 0 && pauses
    })
    .await;
    source.system().topics.get_mut("a").unwrap().records.extend((101..=200).map(|n| (n, vec![b'x'])));
    stays("nothing is taken", Duration::from_millis(60), || worker.ran("a") == 100).await;
    pump.pause(false);
    until("it goes on", || source.committed("a") == Some(200)).await;
    assert_eq!(worker.connections(), 1);
    assert_eq!(source.resumes("a"), [Committed]);
    worker.close_all();
    until("a new session", || source.resumes("a") == [Committed, After(200)]).await;
    pump.stop().await;
}
