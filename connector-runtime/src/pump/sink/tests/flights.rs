//! Writes whose answers are out: how many there may be, and what becomes of them when one fails.

use connector_crds::{OnError, Protocol, SinkFraming};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::bench::{Bench, config, eventually};
use super::target::Target;
use super::worker::Worker;
use crate::fake_disk::{Crash, FakeDisk};
use crate::pump::sink::SinkPumpConfig;

fn silent() -> Target {
    Target::with(|state| state.silent = true)
}

/// One transaction a batch: what is decided is written at once when nothing is in its way.
async fn committed(worker: &mut Worker, bench: &Bench, payloads: &[&str], shown: &[&str]) {
    for (number, payload) in payloads.iter().enumerate() {
        worker.commit(&format!("c{number}-{payload}"), &[payload]).await;
        let shown: Vec<&str> = shown.iter().take(number + 1).copied().collect();
        bench.delivered(&shown).await;
    }
}

#[tokio::test]
async fn the_next_batches_are_written_while_answers_are_out_and_only_so_many() {
    let bench = Bench::start(silent()).await;
    let mut worker = Worker::ready(&bench.address, "w1").await;
    committed(&mut worker, &bench, &["a", "b", "c", "d"], &["a", "b"]).await;
    assert!(bench.target.is(&["a", "b"]), "more than the bound is in flight");
    assert_eq!(bench.snapshot().streams["w1"].committed, Some(0), "nothing was answered");
    bench.target.set(|state| state.silent = false);
    bench.delivered(&["a", "b", "c", "d"]).await;
    let board = bench.board.clone();
    eventually("all of it is durable", || board.snapshot().streams["w1"].committed == Some(4)).await;
    assert_eq!(bench.target.state().flushes, 0, "answers are enough");
}

#[tokio::test]
async fn behind_a_failed_answer_everything_is_written_again_in_order() {
    let bench = Bench::start(silent()).await;
    let mut worker = Worker::ready(&bench.address, "w1").await;
    committed(&mut worker, &bench, &["a", "b", "c"], &["a", "b"]).await;
    bench.target.set(|state| {
        state.failing_answers = 1;
        state.silent = false;
    });
    bench.delivered(&["a", "b", "a", "b", "c"]).await;
    let board = bench.board.clone();
    eventually("all of it is durable", || board.snapshot().streams["w1"].committed == Some(3)).await;
}

#[tokio::test]
async fn what_was_answered_before_the_failure_is_not_written_again() {
    let bench = Bench::start(silent()).await;
    let mut worker = Worker::ready(&bench.address, "w1").await;
    worker.commit("c1", &["a"]).await;
    bench.delivered(&["a"]).await;
    bench.target.set(|state| state.silent = false);
    let board = bench.board.clone();
    eventually("it is durable", || board.snapshot().streams["w1"].committed == Some(1)).await;
    bench.target.set(|state| state.silent = true);
    worker.commit("c2", &["b"]).await;
    bench.delivered(&["a", "b"]).await;
    bench.target.set(|state| {
        state.failing_answers = 1;
        state.silent = false;
    });
    bench.delivered(&["a", "b", "b"]).await;
}

#[tokio::test]
async fn what_was_in_flight_when_the_process_died_is_written_again() {
    let bench = Bench::start(silent()).await;
    let mut worker = Worker::ready(&bench.address, "w1").await;
    committed(&mut worker, &bench, &["a", "b"], &["a", "b"]).await;
    let bench = bench.restart(Crash::Process).await;
    bench.delivered(&["a", "b", "a", "b"]).await;
}

#[tokio::test]
async fn nothing_is_written_behind_a_refused_record_before_it_is_dealt_with() {
    let target = silent();
    target.set(|state| state.refused = Some("bad"));
    let bench = Bench::start(target).await;
    let mut worker = Worker::ready(&bench.address, "w1").await;
    committed(&mut worker, &bench, &["a", "bad", "b"], &["a"]).await;
    assert!(bench.snapshot().stalled.is_none(), "its turn comes behind the first batch");
    bench.target.set(|state| state.silent = false);
    let message = bench.stalled("RecordRejected").await;
    assert!(message.contains("position 4"), "{message}");
    let board = bench.board.clone();
    eventually("the first is durable", || board.snapshot().streams["w1"].committed == Some(1)).await;
    assert!(bench.target.is(&["a"]));
}

#[tokio::test]
async fn a_plain_connection_gives_its_batches_again_in_order() {
    let config = SinkPumpConfig {
        protocol: Protocol::FramedTCP,
        framing: SinkFraming::Lines {},
        on_error: OnError::Drop,
        ..config()
    };
    let bench = Bench::start_with(FakeDisk::default(), silent(), config).await;
    let mut peer = TcpStream::connect(&bench.address).await.unwrap();
    let mut shown = Vec::new();
    for line in ["a", "b"] {
        peer.write_all(format!("{line}\n").as_bytes()).await.unwrap();
        shown.push(line);
        bench.delivered(&shown).await;
    }
    peer.write_all(b"c\n").await.unwrap();
    let board = bench.board.clone();
    eventually("it is read", || board.snapshot().records.read == 3).await;
    bench.target.set(|state| {
        state.failing_answers = 1;
        state.silent = false;
    });
    bench.delivered(&["a", "b", "a", "b", "c"]).await;
    let board = bench.board.clone();
    eventually("each is counted once", || board.snapshot().records.written == 3).await;
}
