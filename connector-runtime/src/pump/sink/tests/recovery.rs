//! Every row of the table of recovery scenarios (§4.8), with the pump or the machine dying at each step.

use super::bench::{Bench, eventually};
use super::target::Target;
use super::worker::Worker;
use crate::fake_disk::Crash;

/// A process kill, and power losses that keep different parts of what was not synced.
const CRASHES: [Crash; 4] =
    [Crash::Process, Crash::Power { seed: 1 }, Crash::Power { seed: 2 }, Crash::Power { seed: 9 }];

fn exact() -> Target {
    Target::with(|state| state.keeps_position = true)
}

#[tokio::test]
async fn a_round_is_delivered_at_its_decision_and_not_before() {
    let bench = Bench::start(exact()).await;
    let mut worker = Worker::ready(&bench.address, "w1").await;
    assert!(worker.prepare("c1", &["a", "bc"]).await);
    assert!(bench.target.is(&[]));
    worker.decide("c1", true).await;
    bench.delivered(&["a", "bc"]).await;
    worker.commit("c2", &[]).await;
    worker.commit("c3", &["d"]).await;
    bench.delivered(&["a", "bc", "d"]).await;
    let positions: Vec<u64> = bench.target.state().rows.iter().map(|row| row.position).collect();
    assert_eq!(positions, [1, 3, 4]);
    let board = bench.board.clone();
    eventually("the board is exact", || {
        let snapshot = board.snapshot();
        let stream = &snapshot.streams["w1"];
        (stream.sent, stream.acknowledged, stream.committed) == (Some(4), Some(4), Some(4))
            && (snapshot.records.read, snapshot.records.written) == (3, 3)
            && board.in_flight() == (0, 0)
    })
    .await;
}

#[tokio::test]
async fn dead_before_phase_1_nothing_is_listed_and_the_replay_starts_at_the_committed_offset() {
    for crash in CRASHES {
        let bench = Bench::start(exact()).await;
        let mut worker = Worker::ready(&bench.address, "w1").await;
        worker.commit("c1", &["kept "]).await;
        worker.send(&["gone"]).await;
        let board = bench.board.clone();
        eventually("it is staged", || board.snapshot().streams["w1"].sent == Some(9)).await;
        let bench = bench.restart(crash).await;
        let mut worker = Worker::ready(&bench.address, "w1").await;
        worker.sent = 5;
        worker.commit("c2", &["again"]).await;
        bench.delivered(&["kept ", "again"]).await;
    }
}

#[tokio::test]
async fn dead_before_the_vote_is_durable_nothing_is_listed() {
    for crash in CRASHES {
        for bytes in [0, 1, 20] {
            let bench = Bench::start(exact()).await;
            let mut worker = Worker::ready(&bench.address, "w1").await;
            worker.commit("c1", &["kept "]).await;
            worker.send(&["gone"]).await;
            let board = bench.board.clone();
            eventually("it is staged", || board.snapshot().streams["w1"].sent == Some(9)).await;
            bench.delivered(&["kept "]).await;
            eventually("the mark is written", || board.in_flight().1 == 4).await;
            bench.disk.die_after(bytes);
            worker.ask("c2", 5, 9).await;
            worker.closed().await; // and no vote came
            let config = bench.config.clone();
            let (disk, target, outcome) = bench.ended().await;
            outcome.unwrap_err();
            disk.crash(crash);
            let bench = Bench::start_with(disk, target, config).await;
            let mut worker = Worker::ready(&bench.address, "w1").await;
            worker.sent = 5;
            worker.commit("c3", &["again"]).await;
            bench.delivered(&["kept ", "again"]).await;
        }
    }
}

#[tokio::test]
async fn dead_after_the_vote_it_is_listed_and_an_abort_discards_it() {
    for crash in CRASHES {
        let bench = Bench::start(exact()).await;
        let mut worker = Worker::ready(&bench.address, "w1").await;
        worker.commit("c1", &["kept "]).await;
        assert!(worker.prepare("c2", &["gone"]).await);
        let bench = bench.restart(crash).await;
        let mut worker = Worker::listed(&bench.address, "w1", "c2").await;
        worker.decide("c2", false).await;
        worker.sent = 5;
        worker.commit("c3", &["other ", "content"]).await;
        bench.delivered(&["kept ", "other ", "content"]).await;
    }
}

#[tokio::test]
async fn dead_after_the_vote_a_commit_that_comes_later_is_delivered_once() {
    for crash in CRASHES {
        let bench = Bench::start(exact()).await;
        let mut worker = Worker::ready(&bench.address, "w1").await;
        worker.commit("c2", &["row-0\n"]).await;
        assert!(worker.prepare("c3", &["in doubt\n"]).await);
        // Twice: a promise is kept however often it is asked for.
        let bench = bench.restart(crash).await;
        drop(Worker::listed(&bench.address, "w1", "c3").await);
        let bench = bench.restart(crash).await;
        let mut worker = Worker::listed(&bench.address, "w1", "c3").await;
        worker.decide("c3", true).await;
        worker.sent = 15;
        worker.commit("c4", &["next\n"]).await;
        bench.delivered(&["row-0\n", "in doubt\n", "next\n"]).await;
    }
}

#[tokio::test]
async fn dead_after_the_decision_and_before_the_delivery_it_is_delivered_once() {
    for crash in CRASHES {
        let target = exact();
        target.set(|state| state.hangs = true);
        let bench = Bench::start(target.clone()).await;
        let mut worker = Worker::ready(&bench.address, "w1").await;
        worker.commit("c1", &["a", "b"]).await;
        let board = bench.board.clone();
        eventually("it is decided", || board.snapshot().streams["w1"].acknowledged == Some(2)).await;
        let (disk, target) = bench.kill().await;
        disk.crash(crash);
        target.set(|state| state.hangs = false);
        let bench = Bench::start_with(disk, target, super::bench::config()).await;
        bench.delivered(&["a", "b"]).await;
        let mut worker = Worker::ready(&bench.address, "w1").await;
        worker.sent = 2;
        worker.commit("c2", &["c"]).await;
        bench.delivered(&["a", "b", "c"]).await;
    }
}

#[tokio::test]
async fn dead_while_the_decision_is_written_it_is_listed_again() {
    for crash in CRASHES {
        let bench = Bench::start(exact()).await;
        let mut worker = Worker::ready(&bench.address, "w1").await;
        assert!(worker.prepare("c1", &["once"]).await);
        bench.disk.die_after(5);
        worker.decide("c1", true).await;
        worker.closed().await;
        let config = bench.config.clone();
        let (disk, target, outcome) = bench.ended().await;
        outcome.unwrap_err();
        disk.crash(crash);
        let bench = Bench::start_with(disk, target, config).await;
        let mut worker = Worker::listed(&bench.address, "w1", "c1").await;
        worker.decide("c1", true).await;
        bench.delivered(&["once"]).await;
    }
}

#[tokio::test]
async fn dead_after_the_delivery_nothing_is_repeated_where_the_target_keeps_positions() {
    for crash in CRASHES {
        let bench = Bench::start(exact()).await;
        let mut worker = Worker::ready(&bench.address, "w1").await;
        worker.commit("c1", &["a", "b"]).await;
        bench.delivered(&["a", "b"]).await;
        let bench = bench.restart(crash).await;
        let mut worker = Worker::ready(&bench.address, "w1").await;
        worker.sent = 2;
        worker.commit("c2", &["c"]).await;
        bench.delivered(&["a", "b", "c"]).await;
    }
}

#[tokio::test]
async fn after_a_vote_to_abort_the_transaction_is_listed_and_replayed() {
    for restart in [false, true] {
        let mut bench = Bench::start(exact()).await;
        let mut worker = Worker::ready(&bench.address, "w1").await;
        worker.commit("c1", &["kept "]).await;
        worker.send_at(7, &["gap"]).await;
        worker.ask("c2", 5, 10).await;
        assert!(!worker.vote().await);
        drop(worker);
        if restart {
            bench = bench.restart(Crash::Power { seed: 4 }).await;
        }
        let mut worker = Worker::listed(&bench.address, "w1", "c2").await;
        worker.decide("c2", false).await;
        worker.sent = 5;
        worker.commit("c3", &["whole"]).await;
        bench.delivered(&["kept ", "whole"]).await;
    }
}

#[tokio::test]
async fn a_worker_that_dials_again_supersedes_its_earlier_connection() {
    let bench = Bench::start(exact()).await;
    let mut first = Worker::ready(&bench.address, "w1").await;
    first.commit("c1", &["a"]).await;
    first.send(&["staged"]).await;
    let mut second = Worker::ready(&bench.address, "w1").await;
    first.closed().await;
    second.sent = 1;
    second.commit("c2", &["b"]).await;
    bench.delivered(&["a", "b"]).await;
    let mut other = Worker::ready(&bench.address, "w2").await;
    other.commit("c2", &["of w2"]).await;
    bench.delivered(&["a", "b", "of w2"]).await;
    assert!(second.is_silent(tokio::time::Duration::from_millis(20)).await, "w1 is still connected");
}

#[tokio::test]
async fn a_connection_whose_hello_comes_late_neither_ends_a_newer_one_nor_takes_its_place() {
    let bench = Bench::start(exact()).await;
    let mut late = Worker::delayed(&bench.address, "w1").await;
    let mut later = Worker::delayed(&bench.address, "w1").await;
    let mut newest = Worker::ready(&bench.address, "w1").await;
    newest.commit("c1", &["a"]).await;
    late.arrives().await;
    late.closed().await;
    newest.commit("c2", &["b"]).await;
    drop(newest);
    later.arrives().await;
    later.closed().await;
    let mut again = Worker::ready(&bench.address, "w1").await;
    again.sent = 2;
    again.commit("c3", &["c"]).await;
    bench.delivered(&["a", "b", "c"]).await;
}

#[tokio::test]
async fn connections_without_a_byte_are_normal() {
    let bench = Bench::start(exact()).await;
    drop(tokio::net::TcpStream::connect(&bench.address).await.unwrap());
    let _silent = tokio::net::TcpStream::connect(&bench.address).await.unwrap();
    Worker::ready(&bench.address, "w1").await.commit("c1", &["a"]).await;
    bench.delivered(&["a"]).await;
    assert_eq!(bench.snapshot().last_error, None);
}

#[tokio::test]
async fn many_workers_are_served_at_the_same_time() {
    let bench = Bench::start(Target::default()).await;
    let mut workers = Vec::new();
    for n in 0..20 {
        workers.push(Worker::ready(&bench.address, &format!("w{n}")).await);
    }
    for round in 0..5 {
        for worker in &mut workers {
            let start = worker.sent;
            worker.send(&["x"; 10]).await;
            worker.ask(&format!("c{round}"), start, worker.sent).await;
        }
        for worker in &mut workers {
            assert!(worker.vote().await);
            worker.decide(&format!("c{round}"), true).await;
        }
    }
    let target = bench.target.clone();
    eventually("all is delivered", || target.state().rows.len() == 1_000).await;
    let state = target.state();
    for n in 0..20 {
        let name = format!("w{n}");
        let of = state.rows.iter().filter(|row| row.stream.worker == name).map(|row| row.position);
        assert_eq!(of.collect::<Vec<_>>(), (1..=50).collect::<Vec<_>>());
    }
}
