//! Targets that are slow, away, go back, or refuse records.

use connector_crds::{OnError, State};
use tokio::time::Duration;

use super::bench::{Bench, LETTERS, config, eventually};
use super::target::Target;
use super::worker::Worker;
use crate::board::{Side, SideState};
use crate::fake_disk::{Crash, FakeDisk};
use crate::pump::sink::SinkPumpConfig;
use crate::txn_log::Retain;

fn exact() -> Target {
    Target::with(|state| state.keeps_position = true)
}

#[tokio::test]
async fn a_target_that_is_away_is_tried_again_and_votes_are_not_late_for_it() {
    let bench = Bench::start(Target::default()).await;
    let mut worker = Worker::ready(&bench.address, "w1").await;
    worker.commit("c1", &["a"]).await;
    bench.delivered(&["a"]).await;
    bench.target.set(|state| state.away = true);
    worker.commit("c2", &["b"]).await;
    let board = bench.board.clone();
    eventually("it shows", || matches!(board.side(Side::External), SideState::Failed { .. })).await;
    worker.commit("c3", &["c"]).await;
    bench.target.set(|state| state.away = false);
    bench.delivered(&["a", "b", "c"]).await;
    assert_eq!(bench.board.side(Side::External), SideState::Connected);
}

#[tokio::test]
async fn a_target_that_hangs_does_not_hold_the_votes() {
    let target = Target::with(|state| state.hangs = true);
    let bench = Bench::start(target).await;
    let mut worker = Worker::ready(&bench.address, "w1").await;
    for round in 0..10 {
        worker.commit(&format!("c{round}"), &["x"]).await;
    }
    assert!(bench.target.is(&[]));
    bench.target.set(|state| state.hangs = false);
    bench.delivered(&["x"; 10]).await;
}

#[tokio::test]
async fn after_a_reconnect_the_targets_own_position_counts() {
    let bench = Bench::start(exact()).await;
    let mut worker = Worker::ready(&bench.address, "w1").await;
    worker.commit("c1", &["a", "b", "c"]).await;
    bench.delivered(&["a", "b", "c"]).await;
    // A failover to a replica that is behind.
    bench.target.set(|state| state.away = true);
    worker.commit("c2", &["d"]).await;
    let board = bench.board.clone();
    eventually("it shows", || matches!(board.side(Side::External), SideState::Failed { .. })).await;
    bench.target.go_back_to(1);
    bench.target.set(|state| state.away = false);
    bench.delivered(&["a", "b", "c", "d"]).await;
}

#[tokio::test]
async fn what_was_not_durable_at_the_target_comes_again_after_it_lost_it() {
    let target = exact();
    target.set(|state| state.lazy = true);
    let bench = Bench::start(target).await;
    let mut worker = Worker::ready(&bench.address, "w1").await;
    worker.commit("c1", &["a"]).await;
    bench.delivered(&["a"]).await;
    let board = bench.board.clone();
    eventually("an idle target is flushed", || board.snapshot().streams["w1"].committed == Some(1)).await;
    worker.commit("c2", &["b"]).await;
    bench.delivered(&["a", "b"]).await;
    bench.target.lose_volatile();
    let bench = bench.restart(Crash::Process).await;
    bench.delivered(&["a", "b"]).await;
    let mut worker = Worker::ready(&bench.address, "w1").await;
    worker.sent = 2;
    worker.commit("c3", &["c"]).await;
    bench.delivered(&["a", "b", "c"]).await;
}

#[tokio::test]
async fn a_target_that_went_back_beyond_retention_stalls_its_stream_and_nothing_is_guessed() {
    let config = SinkPumpConfig { retain: Retain { time: Duration::ZERO, bytes: 0 }, ..config() };
    let bench = Bench::start_with(FakeDisk::default(), exact(), config).await;
    let mut worker = Worker::ready(&bench.address, "w1").await;
    let large = "x".repeat(1_000_000);
    // Segments are closed at 16 MiB; what is durable of them is forgotten at once.
    for round in 0..20 {
        worker.commit(&format!("c{round}"), &[&large]).await;
    }
    let board = bench.board.clone();
    eventually("all is durable", || board.snapshot().streams["w1"].committed == Some(20_000_000)).await;
    let disk = bench.disk.clone();
    eventually("closed segments are forgotten", || disk.used() < 10_000_000).await;
    bench.target.go_back_to(1);
    let bench = bench.restart(Crash::Process).await;
    let message = bench.stalled("TargetWentBack").await;
    assert!(message.contains("1000000 of worker w1"), "{message}");
    // Voting goes on.
    let mut worker = Worker::ready(&bench.address, "w1").await;
    worker.sent = 20_000_000;
    worker.commit("c20", &["y"]).await;
    assert_eq!(bench.target.state().rows.len(), 1);
}

#[tokio::test]
async fn a_missing_position_is_not_zero_when_the_log_knows_better() {
    let bench = Bench::start(exact()).await;
    let mut worker = Worker::ready(&bench.address, "w1").await;
    worker.commit("c1", &["a", "b"]).await;
    let board = bench.board.clone();
    eventually("the log knows", || board.snapshot().streams["w1"].committed == Some(2)).await;
    bench.target.forget_positions();
    let bench = bench.restart(Crash::Process).await;
    let mut worker = Worker::ready(&bench.address, "w1").await;
    worker.sent = 2;
    worker.commit("c2", &["c"]).await;
    bench.delivered(&["a", "b", "c"]).await;
}

#[tokio::test]
async fn a_target_ahead_of_every_decision_is_somebody_elses() {
    let bench = Bench::start(exact()).await;
    let mut worker = Worker::ready(&bench.address, "w1").await;
    worker.commit("c1", &["a"]).await;
    bench.delivered(&["a"]).await;
    let stream = bench.target.state().rows[0].stream.clone();
    bench
        .target
        .set(|state| state.rows.push(super::target::Row { stream, position: 99, payload: "?".into() }));
    bench.target.go_back_to(2);
    let bench = bench.restart(Crash::Process).await;
    assert!(bench.stalled("TargetAhead").await.contains("99"));
}

fn refusing(on_error: OnError) -> (Target, SinkPumpConfig) {
    let target = exact();
    target.set(|state| state.refused = Some("bad"));
    (target, SinkPumpConfig { on_error, ..config() })
}

#[tokio::test]
async fn a_refused_record_stops_its_stream_and_is_not_passed_over_after_a_restart() {
    let (target, config) = refusing(OnError::Stop);
    let bench = Bench::start_with(FakeDisk::default(), target, config).await;
    let mut worker = Worker::ready(&bench.address, "w1").await;
    worker.commit("c1", &["a", "bad", "c"]).await;
    let message = bench.stalled("RecordRejected").await;
    assert!(message.contains("position 4 of worker w1") && message.contains("not wanted"), "{message}");
    worker.commit("c2", &["d"]).await;
    assert!(worker.is_silent(Duration::from_millis(30)).await);
    assert!(bench.target.is(&["a", "c"]));
    let board = bench.board.clone();
    eventually("up to there it is durable", || board.snapshot().streams["w1"].committed == Some(1)).await;
    // Another worker goes on.
    Worker::ready(&bench.address, "w2").await.commit("c2", &["of w2"]).await;
    bench.delivered(&["a", "c", "of w2"]).await;
    let bench = bench.restart(Crash::Power { seed: 2 }).await;
    bench.stalled("RecordRejected").await;
    let before = bench.target.payloads();
    assert!(!before.contains(&"d".to_owned()) || before.contains(&"c".to_owned()));
    // Someone mends the target.
    bench.target.set(|state| state.refused = None);
    let bench = bench.restart(Crash::Process).await;
    let target = bench.target.clone();
    eventually("it is delivered", || target.payloads().contains(&"bad".to_owned())).await;
    eventually("and what is behind it", || target.payloads().last().is_some_and(|last| last == "d")).await;
    assert_eq!(bench.snapshot().stalled, None);
}

#[tokio::test]
async fn a_refused_record_can_be_dropped_and_is_counted() {
    let (target, config) = refusing(OnError::Drop);
    let bench = Bench::start_with(FakeDisk::default(), target, config).await;
    let mut worker = Worker::ready(&bench.address, "w1").await;
    worker.commit("c1", &["a", "bad", "c", "bad too"]).await;
    bench.delivered(&["a", "c"]).await;
    let board = bench.board.clone();
    eventually("the position moves past it", || board.snapshot().streams["w1"].committed == Some(12)).await;
    let records = bench.snapshot().records;
    assert_eq!((records.read, records.written, records.dropped["policy_drop"]), (4, 2, 2));
}

#[tokio::test]
async fn a_refused_record_can_become_a_dead_letter_before_its_position_moves() {
    let (target, config) = refusing(OnError::DeadLetter);
    let bench = Bench::start_with(FakeDisk::default(), target, config).await;
    let mut worker = Worker::ready(&bench.address, "w1").await;
    bench.disk.fail_syncs(false);
    worker.commit("c1", &["a", "bad", "c"]).await;
    bench.delivered(&["a", "c"]).await;
    let board = bench.board.clone();
    eventually("the position moves past it", || board.snapshot().streams["w1"].committed == Some(5)).await;
    assert_eq!(bench.snapshot().records.dead_letters, 1);
    let text = String::from_utf8(bench.disk.bytes(LETTERS.as_ref())).unwrap();
    let letter: serde_json::Value = serde_json::from_str(text.trim()).unwrap();
    assert_eq!(
        (&letter["stream"], &letter["position"], &letter["payload"]),
        (&"w1".into(), &4.into(), &"YmFk".into())
    );
}

#[tokio::test]
async fn paused_it_votes_and_delivers_nothing_and_then_all() {
    let bench = Bench::start(exact()).await;
    bench.set_state(State::Paused);
    let mut worker = Worker::ready(&bench.address, "w1").await;
    worker.commit("c1", &["a"]).await;
    worker.commit("c2", &["b"]).await;
    assert!(worker.is_silent(Duration::from_millis(50)).await);
    assert!(bench.target.is(&[]));
    bench.set_state(State::Running);
    bench.delivered(&["a", "b"]).await;
}
