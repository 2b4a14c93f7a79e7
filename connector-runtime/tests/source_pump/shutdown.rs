//! Leaving: drained, given up, at once.

use connector_runtime::pump::Shutdown;
use connector_runtime::pump::source::Outcome;
use tokio::time::{Duration, Instant};

use crate::harness::{config, start, until};
use crate::scripted::Scripted;
use crate::worker::Worker;

#[tokio::test]
async fn a_drain_takes_nothing_new_and_commits_what_is_on_its_way() {
    let worker = Worker::start().await;
    worker.rules().checkpoints = false;
    let source = Scripted::new(10).topic("a", 1_000_000, false);
    let mut config = config(&worker.address());
    config.in_flight_records = 5_000;
    let pump = start(&source, config);
    until("records are on their way", || worker.ran("a") >= 1_000).await;
    pump.shutdown.send_replace(Shutdown::Drain);
    worker.rules().checkpoints = true;
    assert_eq!(pump.outcome().await, Outcome::Drained);
    let read = source.system().yielded;
    assert_eq!(source.committed("a"), Some(read), "all that was read, and no more");
    assert_eq!(worker.distinct("a").len() as u64, read);
    assert!(source.system().closed);
    assert_eq!(worker.rules().eos, 0, "the stream goes on in the next process");
}

#[tokio::test]
async fn a_drain_that_is_not_acknowledged_gives_up_at_its_timeout_and_says_how_many() {
    let worker = Worker::start().await;
    worker.rules().checkpoints = false;
    let source = Scripted::new(10).topic("a", 40, false);
    let mut config = config(&worker.address());
    config.drain_timeout = Duration::from_millis(200);
    let pump = start(&source, config);
    until("all ran", || worker.ran("a") == 40).await;
    let begin = Instant::now();
    pump.shutdown.send_replace(Shutdown::Drain);
    assert_eq!(pump.outcome().await, Outcome::GivenUp { records: 40 });
    assert!(begin.elapsed() >= Duration::from_millis(200));
    assert!(source.system().closed);
    assert_eq!(source.committed("a"), None);
}

#[tokio::test]
async fn a_drain_without_a_session_does_not_wait() {
    let source = Scripted::new(10).topic("a", 40, false);
    let pump = start(&source, config("127.0.0.1:9"));
    until("it tried", || pump.wallaroo_reason().is_some()).await;
    pump.shutdown.send_replace(Shutdown::Drain);
    assert_eq!(pump.outcome().await, Outcome::Drained);
}

#[tokio::test]
async fn now_means_now() {
    let worker = Worker::start().await;
    worker.rules().checkpoints = false;
    let source = Scripted::new(10).topic("a", 40, false);
    let pump = start(&source, config(&worker.address()));
    until("all ran", || worker.ran("a") == 40).await;
    pump.shutdown.send_replace(Shutdown::Drain);
    assert_eq!(pump.stop().await, Outcome::GivenUp { records: 40 });
}
