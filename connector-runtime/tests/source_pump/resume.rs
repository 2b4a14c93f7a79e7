//! Where a stream continues after each kind of answer and loss.

use connector_runtime::pump::source::Outcome;
use connector_runtime::source::ResumeFrom::{After, Committed};
use tokio::time::Duration;

use crate::harness::{config, start, until};
use crate::scripted::Scripted;
use crate::worker::Worker;

#[tokio::test]
async fn wallaroos_answer_decides_and_nothing_means_the_systems_own_position() {
    let worker = Worker::start().await;
    worker.rules().answers = vec![Some(40)];
    let source = Scripted::new(10).topic("a", 50, true);
    let pump = start(&source, config(&worker.address()));
    assert_eq!(pump.outcome().await, Outcome::Completed);
    assert_eq!(source.resumes("a"), [After(40)]);
    assert_eq!(worker.distinct("a"), (41..=50).collect::<Vec<_>>());

    let worker = Worker::start().await;
    let source = Scripted::new(10).topic("a", 50, true);
    source.system().topics.get_mut("a").unwrap().committed = Some(30);
    let pump = start(&source, config(&worker.address()));
    assert_eq!(pump.outcome().await, Outcome::Completed);
    assert_eq!(source.resumes("a"), [Committed]);
    assert_eq!(worker.distinct("a"), (31..=50).collect::<Vec<_>>());
    assert_eq!(worker.rules().proposals, [("a".to_owned(), Some(30))]);
}

#[tokio::test]
async fn a_fresh_stream_proposes_nothing() {
    let worker = Worker::start().await;
    let source = Scripted::new(10).topic("a", 5, true);
    let pump = start(&source, config(&worker.address()));
    assert_eq!(pump.outcome().await, Outcome::Completed);
    assert_eq!(worker.rules().proposals, [("a".to_owned(), None)]);
    assert_eq!(source.committed("a"), Some(5));
    assert!(source.system().closed);
    assert_eq!(source.system().released, ["a"]);
}

#[tokio::test]
async fn after_a_graceful_stop_of_wallaroo_nothing_acknowledged_is_replayed() {
    let worker = Worker::start().await;
    let source = Scripted::new(10).topic("a", 100, false);
    let pump = start(&source, config(&worker.address()));
    until("all is acknowledged", || source.committed("a") == Some(100)).await;
    worker.rules().registry.clear(); // its recovery files are gone
    worker.rules().checkpoints = false;
    source.system().topics.get_mut("a").unwrap().records.extend((101..=120).map(|n| (n, vec![b'x'])));
    worker.close_all();
    until("the rest arrives", || worker.distinct("a").len() == 120).await;
    assert_eq!(worker.ran("a"), 120);
    assert_eq!(source.resumes("a"), [Committed, After(100)]);
    pump.stop().await;
}

#[tokio::test]
async fn what_was_sent_and_not_acknowledged_is_sent_again() {
    let worker = Worker::start().await;
    worker.rules().checkpoints = false;
    let source = Scripted::new(10).topic("a", 30, false);
    let pump = start(&source, config(&worker.address()));
    until("all ran once", || worker.ran("a") == 30).await;
    worker.close_all();
    until("all ran twice", || worker.ran("a") == 60).await;
    assert_eq!(source.committed("a"), None);
    worker.rules().checkpoints = true;
    until("all is committed", || source.committed("a") == Some(30)).await;
    pump.stop().await;
}

#[tokio::test]
async fn a_hundred_lost_connections_lose_nothing() {
    let worker = Worker::start().await;
    {
        let mut rules = worker.rules();
        rules.close_after = Some(37);
    }
    // Fewer records in flight than a connection takes: every one of them brings a checkpoint forward.
    let mut config = config(&worker.address());
    config.in_flight_records = 25;
    config.timings.healthy = Duration::ZERO;
    let source = Scripted::new(5).topic("a", 2_600, true);
    let pump = start(&source, config);
    assert_eq!(pump.outcome().await, Outcome::Completed);
    let connections = worker.connections();
    assert!(connections >= 70, "{connections}");
    assert_eq!(worker.distinct("a"), (1..=2_600).collect::<Vec<_>>());
    assert_eq!(source.committed("a"), Some(2_600));
    assert!(worker.rules().violations.is_empty(), "{:?}", worker.rules().violations);
}
