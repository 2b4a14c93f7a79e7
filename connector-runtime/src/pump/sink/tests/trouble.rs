//! Disks, volumes, peers and shutdowns.

use std::sync::atomic::Ordering::Relaxed;

use connector_crds::{Protocol, State};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Duration;

use super::bench::{Bench, config, eventually};
use super::target::Target;
use super::worker::Worker;
use crate::board::{AckMode, Side, SideState};
use crate::fake_disk::{Crash, FakeDisk};
use crate::pump::Shutdown;
use crate::pump::sink::{SinkOutcome, SinkPumpConfig, SinkPumpError};
use crate::txn_log::{LogError, Retain};

fn exact() -> Target {
    Target::with(|state| state.keeps_position = true)
}

fn away() -> Target {
    Target::with(|state| {
        state.keeps_position = true;
        state.away = true;
    })
}

#[tokio::test]
async fn after_a_failed_sync_no_vote_is_sent_and_the_process_ends() {
    let bench = Bench::start(exact()).await;
    let mut worker = Worker::ready(&bench.address, "w1").await;
    worker.commit("c1", &["kept "]).await;
    bench.delivered(&["kept "]).await;
    worker.send(&["gone"]).await;
    bench.disk.fail_syncs(true);
    worker.ask("c2", 5, 9).await;
    worker.closed().await;
    let config = bench.config.clone();
    let (disk, target, outcome) = bench.ended().await;
    assert!(matches!(outcome, Err(SinkPumpError::Log(LogError::SyncFailed { .. }))), "{outcome:?}");
    disk.crash(Crash::Power { seed: 1 });
    let bench = Bench::start_with(disk, target, config).await;
    let mut worker = Worker::dial(&bench.address, "w1").await;
    // The vote may or may not have reached the disk; nobody was told of it, and the cluster aborts it in any case.
    if let Some(wallaroo_protocol::SinkClientEvent::Uncommitted { .. }) = worker.event().await {
        worker.decide("c2", false).await;
    }
    worker.sent = 5;
    worker.commit("c3", &["again"]).await;
    bench.delivered(&["kept ", "again"]).await;
}

#[tokio::test]
async fn a_corrupt_log_is_refused_with_its_name_and_offset_and_nothing_is_touched() {
    let bench = Bench::start(exact()).await;
    let mut worker = Worker::ready(&bench.address, "w1").await;
    worker.commit("c1", &["a"]).await;
    worker.commit("c2", &["b"]).await;
    let config = bench.config.clone();
    let (disk, target) = bench.kill().await;
    let log = disk.files().into_iter().find(|file| file.extension().is_some_and(|e| e == "txn")).unwrap();
    let mut bytes = disk.bytes(&log);
    bytes[120] ^= 1;
    disk.set_bytes(&log, bytes.clone());
    let bench = Bench::spawn(disk, target, config);
    let message = bench.stalled("TransactionLogCorrupt").await;
    assert!(message.contains(&*log.to_string_lossy()) && message.contains("at offset"), "{message}");
    assert_eq!(bench.disk.bytes(&log), bytes);
    assert_eq!(bench.snapshot().listen, None);
    let (_, _, outcome) = bench.shut_down(Shutdown::Drain).await;
    assert_eq!(outcome, SinkOutcome::GivenUp { records: 0 });
}

#[tokio::test]
async fn another_system_does_not_continue_in_state_that_was_not_delivered() {
    let bench = Bench::start(away()).await;
    let mut worker = Worker::ready(&bench.address, "w1").await;
    worker.commit("c1", &["undelivered"]).await;
    let board = bench.board.clone();
    eventually("it is decided", || board.snapshot().streams["w1"].acknowledged == Some(11)).await;
    let before = bench.config.clone();
    let mut other = before.clone();
    other.identity.system = "other".into();
    let (disk, target) = bench.kill().await;
    let files = disk.files();
    let bench = Bench::spawn(disk, target, other.clone());
    let message = bench.stalled("StateVolumeInUse").await;
    assert!(message.contains("memory") && message.contains("11 bytes"), "{message}");
    assert_eq!(bench.disk.files(), files);
    // Brought back, it delivers; then the other one may have the volume.
    let (disk, target, _) = bench.shut_down(Shutdown::Now).await;
    target.set(|state| state.away = false);
    let bench = Bench::start_with(disk, target, before).await;
    bench.delivered(&["undelivered"]).await;
    let (disk, target, outcome) = bench.shut_down(Shutdown::Drain).await;
    assert_eq!(outcome, SinkOutcome::Drained);
    let bench = Bench::start_with(disk, target, other).await;
    assert_eq!(bench.snapshot().stalled, None);
    assert!(bench.disk.files().iter().any(|file| file.to_string_lossy().contains("/archived-")));
    // The cluster went on meanwhile.
    let mut worker = Worker::ready(&bench.address, "w1").await;
    worker.send_at(11, &["next"]).await;
    worker.closed().await;
    let mut worker = Worker::ready(&bench.address, "w1").await;
    worker.sent = 11;
    worker.commit("c2", &["next"]).await;
    bench.delivered(&["undelivered", "next"]).await;
}

#[tokio::test]
async fn at_the_bound_of_the_backlog_reading_stops_until_the_target_takes_some() {
    let bench =
        Bench::start_with(FakeDisk::default(), away(), SinkPumpConfig { backlog_bytes: 10, ..config() })
            .await;
    let mut worker = Worker::ready(&bench.address, "w1").await;
    worker.commit("c1", &["0123456789"]).await;
    let board = bench.board.clone();
    eventually("it is decided", || board.snapshot().streams["w1"].acknowledged == Some(10)).await;
    worker.send(&["more"]).await;
    worker.ask("c2", 10, 14).await;
    assert!(worker.is_silent(Duration::from_millis(100)).await, "neither a vote nor a close");
    // The intro of others is finished all the same.
    drop(Worker::ready(&bench.address, "w2").await);
    bench.target.set(|state| state.away = false);
    assert!(worker.vote().await);
    worker.decide("c2", true).await;
    bench.delivered(&["0123456789", "more"]).await;
    assert!(bench.board.counters().external_backpressure_micros.load(Relaxed) > 50_000);
}

#[tokio::test]
async fn a_full_volume_makes_the_worker_wait_and_never_votes_no() {
    let bench = Bench::start(away()).await;
    let mut worker = Worker::ready(&bench.address, "w1").await;
    worker.commit("c1", &["waits"]).await;
    let board = bench.board.clone();
    eventually("it is decided", || board.snapshot().streams["w1"].acknowledged == Some(5)).await;
    bench.disk.set_capacity(Some(bench.disk.used() + 50));
    worker.send(&[&"x".repeat(500)]).await;
    worker.ask("c2", 5, 505).await;
    assert!(worker.is_silent(Duration::from_millis(100)).await);
    assert_eq!(bench.snapshot().stalled, None, "the target will make room");
    bench.disk.set_capacity(None);
    assert!(worker.vote().await);
}

#[tokio::test]
async fn a_transaction_that_alone_fills_the_volume_is_reported_with_what_it_needs() {
    let config = SinkPumpConfig { retain: Retain { time: Duration::ZERO, bytes: 0 }, ..config() };
    let bench = Bench::start_with(FakeDisk::default(), exact(), config).await;
    let mut worker = Worker::ready(&bench.address, "w1").await;
    worker.commit("c1", &["a"]).await;
    bench.delivered(&["a"]).await;
    let board = bench.board.clone();
    eventually("it is durable", || board.in_flight() == (0, 0)).await;
    bench.disk.set_capacity(Some(bench.disk.used() + 50));
    // What was delivered before is out of retention, and has no part in it.
    worker.send(&[&"x".repeat(500)]).await;
    worker.ask("c2", 1, 501).await;
    let message = bench.stalled("TransactionTooLarge").await;
    assert!(message.contains("worker w1") && message.contains("at least 5"), "{message}");
    assert!(worker.is_silent(Duration::from_millis(50)).await, "the connection is kept");
    bench.disk.set_capacity(None);
    assert!(worker.vote().await);
    worker.decide("c2", true).await;
    eventually("no longer", || board.snapshot().stalled.is_none()).await;
}

#[tokio::test]
async fn a_wrong_cookie_is_refused_with_a_reason_and_the_right_one_heals_it() {
    let bench = Bench::start(exact()).await;
    let mut stranger = TcpStream::connect(&bench.address).await.unwrap();
    let hello = b"\x00\x00\x00\x16\x00\x00\x06v0.0.1\x00\x05wrong\x00\x00\x00\x02w1";
    stranger.write_all(&hello[..]).await.unwrap();
    let mut answer = Vec::new();
    stranger.read_to_end(&mut answer).await.unwrap();
    assert!(String::from_utf8_lossy(&answer).contains("Bad cookie"), "{answer:?}");
    let board = bench.board.clone();
    eventually("it shows", || {
        matches!(board.side(Side::Wallaroo), SideState::Failed { reason, .. } if reason == "CookieRefused")
    })
    .await;
    Worker::ready(&bench.address, "w1").await.commit("c1", &["a"]).await;
    bench.delivered(&["a"]).await;
}

#[tokio::test]
async fn garbage_ends_its_connection_and_no_other() {
    let bench = Bench::start(exact()).await;
    let mut good = Worker::ready(&bench.address, "w1").await;
    let mut bad = Worker::ready(&bench.address, "w2").await;
    bad.raw(&[0, 0, 0, 1, 99]).await;
    assert!(bad.rest().await.contains("Unable to decode message"));
    good.commit("c1", &["a"]).await;
    bench.delivered(&["a"]).await;
    assert!(bench.snapshot().last_error.unwrap().message.contains("unknown tag 99"));
}

#[tokio::test]
async fn output_that_nobody_asks_about_is_reported() {
    let config = SinkPumpConfig { no_checkpoints_after: Duration::from_millis(100), ..config() };
    let bench = Bench::start_with(FakeDisk::default(), exact(), config).await;
    let mut worker = Worker::ready(&bench.address, "w1").await;
    worker.send(&["a"]).await;
    assert!(bench.stalled("NoCheckpoints").await.contains("OnReceipt"));
    worker.ask("c9", 0, 1).await;
    assert!(worker.vote().await);
    assert_eq!((bench.snapshot().stalled, bench.snapshot().ack_mode), (None, Some(AckMode::Checkpoint)));
}

#[tokio::test]
async fn at_receipt_output_is_delivered_without_any_decision_and_says_so() {
    let config = SinkPumpConfig { ack_mode: AckMode::OnReceipt, ..config() };
    let bench = Bench::start_with(FakeDisk::default(), exact(), config).await;
    let mut worker = Worker::ready(&bench.address, "w1").await;
    worker.send(&["a", "b"]).await;
    bench.delivered(&["a", "b"]).await;
    assert_eq!(bench.snapshot().ack_mode, Some(AckMode::OnReceipt));
    worker.send_at(10, &["after a gap"]).await;
    bench.delivered(&["a", "b", "after a gap"]).await;
    let bench = bench.restart(Crash::Process).await;
    let mut worker = Worker::ready(&bench.address, "w1").await;
    worker.send_at(21, &["c"]).await;
    bench.delivered(&["a", "b", "after a gap", "c"]).await;
    // A cluster that asks for votes after all gets them.
    worker.ask("c1", 0, 22).await;
    assert!(worker.vote().await);
    worker.decide("c1", true).await;
    worker.send(&["d"]).await;
    bench.delivered(&["a", "b", "after a gap", "c", "d"]).await;
}

#[tokio::test]
async fn a_drain_delivers_what_is_decided_and_waits_for_the_decision_on_what_was_voted() {
    let target = exact();
    target.set(|state| state.hangs = true);
    let bench = Bench::start(target.clone()).await;
    let mut worker = Worker::ready(&bench.address, "w1").await;
    worker.commit("c1", &["a"]).await;
    assert!(worker.prepare("c2", &["b"]).await);
    let mut idle = Worker::ready(&bench.address, "w2").await;
    bench.tell(Shutdown::Drain);
    idle.closed().await;
    worker.decide("c2", true).await;
    worker.closed().await;
    target.set(|state| state.hangs = false);
    let (_, target, outcome) = bench.ended().await;
    assert_eq!(outcome.unwrap(), SinkOutcome::Drained);
    assert!(target.is(&["a", "b"]));
}

#[tokio::test]
async fn a_drain_that_cannot_deliver_ends_in_time_and_says_what_is_left() {
    let config = SinkPumpConfig { drain_timeout: Duration::from_millis(200), ..config() };
    let bench = Bench::start_with(FakeDisk::default(), away(), config).await;
    Worker::ready(&bench.address, "w1").await.commit("c1", &["a", "b"]).await;
    let board = bench.board.clone();
    eventually("it is decided", || board.snapshot().streams["w1"].acknowledged == Some(2)).await;
    let (disk, target, outcome) = bench.shut_down(Shutdown::Drain).await;
    assert_eq!(outcome, SinkOutcome::GivenUp { records: 2 });
    target.set(|state| state.away = false);
    Bench::start_with(disk, target, super::bench::config()).await.delivered(&["a", "b"]).await;
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once_and_a_paused_one_leaves_its_log_as_it_is() {
    let bench = Bench::start(away()).await;
    Worker::ready(&bench.address, "w1").await.commit("c1", &["a"]).await;
    let board = bench.board.clone();
    eventually("it is decided", || board.snapshot().streams["w1"].acknowledged == Some(1)).await;
    let (disk, target, outcome) = bench.shut_down(Shutdown::Now).await;
    assert_eq!(outcome, SinkOutcome::GivenUp { records: 1 });
    target.set(|state| state.away = false);
    let bench = Bench::spawn(disk, target, config());
    bench.set_state(State::Paused);
    let (_, target, outcome) = bench.shut_down(Shutdown::Drain).await;
    assert_eq!((outcome, target.is(&[])), (SinkOutcome::GivenUp { records: 1 }, true));
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for protocol in [Protocol::Connector, Protocol::FramedTCP] {
        let config = SinkPumpConfig { listen: address.clone(), protocol, ..config() };
        let (_, _, outcome) = Bench::spawn(FakeDisk::default(), exact(), config).ended().await;
        let message = outcome.unwrap_err().to_string();
        assert!(message.contains("wallaroo.listen") && message.contains(&address), "{message}");
    }
}

#[tokio::test]
async fn a_commit_of_what_was_voted_against_is_reported_until_the_cluster_settles_it() {
    let bench = Bench::start(exact()).await;
    let mut worker = Worker::ready(&bench.address, "w1").await;
    worker.commit("c1", &["kept "]).await;
    worker.send_at(7, &["gap"]).await;
    worker.ask("c2", 5, 10).await;
    assert!(!worker.vote().await);
    drop(worker);
    let mut worker = Worker::listed(&bench.address, "w1", "c2").await;
    worker.decide("c2", true).await;
    let message = bench.stalled("DecisionConflict").await;
    assert!(message.contains("c2") && message.contains("w1"), "{message}");
    assert!(bench.target.is(&["kept "]));
    let mut worker = Worker::listed(&bench.address, "w1", "c2").await;
    worker.decide("c2", false).await;
    worker.sent = 5;
    worker.commit("c3", &["whole"]).await;
    bench.delivered(&["kept ", "whole"]).await;
    assert_eq!(bench.snapshot().stalled, None);
}
