//! Dialling, refusals, RESTART, missing checkpoints.

use connector_runtime::board::AckMode;
use connector_runtime::pump::source::{CookieFrom, Outcome};
use tokio::net::TcpListener;
use tokio::time::{Duration, Instant};
use wallaroo_protocol::Cookie;

use crate::harness::{config, start, stays, until};
use crate::scripted::Scripted;
use crate::worker::Worker;

#[tokio::test]
async fn a_stream_that_is_refused_three_times_is_asked_for_again() {
    let worker = Worker::start().await;
    worker.rules().refuse = 3;
    let source = Scripted::new(10).topic("a", 20, true);
    let pump = start(&source, config(&worker.address()));
    assert_eq!(pump.outcome().await, Outcome::Completed);
    assert_eq!(worker.rules().proposals.len(), 4);
    assert_eq!(worker.connections(), 1, "a refusal is no reason to close");
    assert_eq!(worker.ran("a"), 20);
}

#[tokio::test]
async fn a_wrong_cookie_is_reported_without_naming_it_and_dialled_slowly() {
    let worker = Worker::start().await;
    let source = Scripted::new(10).topic("a", 20, true);
    let mut config = config(&worker.address());
    config.cookie = CookieFrom::Fixed(Cookie::new("Sour-Kraut"));
    let pump = start(&source, config);
    until("CookieRefused", || pump.wallaroo_reason().as_deref() == Some("CookieRefused")).await;
    let snapshot = format!("{:?}", pump.board.snapshot());
    assert!(!snapshot.contains("Sour-Kraut") && !snapshot.contains("Dragons"), "{snapshot}");
    stays("one connection", Duration::from_millis(300), || worker.connections() == 1).await;
    pump.stop().await;
}

async fn restarted_to(address: Option<String>, worker: &Worker) -> Duration {
    worker.rules().restarts = vec![address];
    let source = Scripted::new(10).topic("a", 20, true);
    let begin = Instant::now();
    let pump = start(&source, config(&worker.address()));
    assert_eq!(pump.outcome().await, Outcome::Completed);
    begin.elapsed()
}

#[tokio::test]
async fn restart_leads_to_the_same_worker_another_one_or_back() {
    let worker = Worker::start().await;
    restarted_to(None, &worker).await;
    assert_eq!(worker.connections(), 2, "no address is the same one");

    let (worker, other) = (Worker::start().await, Worker::start().await);
    restarted_to(Some(format!("0.0.0.0:{}", other.port)), &worker).await;
    assert_eq!((worker.connections(), other.connections()), (1, 1), "a wildcard keeps the host");

    let (worker, other) = (Worker::start().await, Worker::start().await);
    restarted_to(Some(other.address()), &worker).await;
    assert_eq!((worker.ran("a"), other.ran("a")), (0, 20));

    let worker = Worker::start().await;
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    restarted_to(Some(nobody.to_string()), &worker).await;
    assert_eq!(worker.connections(), 2, "after three failures the configured address is tried again");

    let worker = Worker::start().await;
    restarted_to(Some("no port".into()), &worker).await;
    assert_eq!(worker.connections(), 2, "an address that makes no sense changes nothing");
}

#[tokio::test]
async fn a_second_address_takes_over_from_one_that_does_not_answer() {
    let worker = Worker::start().await;
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let source = Scripted::new(10).topic("a", 20, true);
    let mut config = config(&nobody.to_string());
    config.targets.push(worker.address());
    assert_eq!(start(&source, config).outcome().await, Outcome::Completed);
}

#[tokio::test]
async fn a_worker_without_checkpoints_is_reported_and_nothing_is_committed() {
    let worker = Worker::start().await;
    worker.rules().checkpoints = false;
    let source = Scripted::new(50).topic("a", 5_000, false);
    let mut config = config(&worker.address());
    config.timings.no_checkpoints = Duration::from_millis(100);
    let pump = start(&source, config);
    until("NoCheckpoints", || pump.stalled_reason().as_deref() == Some("NoCheckpoints")).await;
    until("everything arrives all the same", || worker.ran("a") == 5_000).await;
    assert_eq!(pump.board.snapshot().ack_mode, Some(AckMode::OnReceipt));
    assert_eq!(source.committed("a"), None);
    worker.rules().checkpoints = true;
    until("a checkpoint ends it", || pump.stalled_reason().is_none() && source.committed("a") == Some(5_000))
        .await;
    assert_eq!(pump.board.snapshot().ack_mode, Some(AckMode::Checkpoint));
    pump.stop().await;
}

#[tokio::test]
async fn on_receipt_commits_without_checkpoints_when_asked_for() {
    let worker = Worker::start().await;
    worker.rules().checkpoints = false;
    let source = Scripted::new(50).topic("a", 5_000, false);
    let mut config = config(&worker.address());
    config.ack_mode = AckMode::OnReceipt;
    config.timings.no_checkpoints = Duration::from_millis(100);
    let pump = start(&source, config);
    until("all is committed", || source.committed("a") == Some(5_000)).await;
    assert_eq!(pump.stalled_reason(), None);
    pump.stop().await;
}
