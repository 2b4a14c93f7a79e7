//! Fresh clusters, workers that left, and logs that are newer than their cluster.

use connector_crds::OnInDoubt;
use tokio::time::Duration;

use super::bench::{Bench, config, eventually};
use super::target::Target;
use super::worker::Worker;
use crate::fake_disk::{Crash, FakeDisk};
use crate::pump::sink::SinkPumpConfig;
use crate::txn_log::Retain;

fn exact() -> Target {
    Target::with(|state| state.keeps_position = true)
}

fn forgetful() -> SinkPumpConfig {
    SinkPumpConfig { retain: Retain { time: Duration::ZERO, bytes: 0 }, ..config() }
}

#[tokio::test]
async fn output_at_zero_starts_a_new_incarnation_on_the_same_connection() {
    let bench = Bench::start_with(FakeDisk::default(), exact(), forgetful()).await;
    let mut worker = Worker::ready(&bench.address, "w1").await;
    worker.commit("c1", &["old"]).await;
    bench.delivered(&["old"]).await;
    drop(worker);
    let mut worker = Worker::ready(&bench.address, "w1").await;
    worker.commit("c1", &["new"]).await;
    worker.commit("c2", &["er"]).await;
    bench.delivered(&["old", "new", "er"]).await;
    let target = bench.target.clone();
    eventually("the old one is archived", || target.state().archived.len() == 1).await;
    let rows = target.state().rows.clone();
    assert!(rows[0].stream.incarnation < rows[1].stream.incarnation);
    assert_eq!(target.state().archived[0], rows[0].stream);
    // Nothing of it is left, also after a restart.
    let bench = bench.restart(Crash::Power { seed: 5 }).await;
    let mut worker = Worker::ready(&bench.address, "w1").await;
    worker.sent = 5;
    worker.commit("c3", &["still"]).await;
    bench.delivered(&["old", "new", "er", "still"]).await;
}

#[tokio::test]
async fn a_first_round_of_nothing_starts_a_new_incarnation_as_well() {
    let bench = Bench::start(exact()).await;
    let mut worker = Worker::ready(&bench.address, "w1").await;
    worker.commit("c1", &["old"]).await;
    drop(worker);
    let mut worker = Worker::ready(&bench.address, "w1").await;
    worker.commit("c7", &[]).await;
    worker.commit("c8", &["new"]).await;
    bench.delivered(&["old", "new"]).await;
}

#[tokio::test]
async fn decided_output_of_an_older_incarnation_is_delivered_first() {
    let target = exact();
    target.set(|state| state.away = true);
    let bench = Bench::start(target).await;
    let mut worker = Worker::ready(&bench.address, "w1").await;
    worker.commit("c1", &["old"]).await;
    drop(worker);
    let mut worker = Worker::ready(&bench.address, "w1").await;
    worker.commit("c1", &["new"]).await;
    let board = bench.board.clone();
    eventually("both are decided", || {
        let streams = board.snapshot().streams;
        streams.len() == 2 && streams["w1"].acknowledged == Some(3)
    })
    .await;
    let bench = bench.restart(Crash::Power { seed: 8 }).await;
    bench.target.set(|state| state.away = false);
    bench.delivered(&["old", "new"]).await;
}

async fn in_doubt(policy: OnInDoubt) -> (Bench, Worker) {
    let config = SinkPumpConfig { on_in_doubt: policy, ..config() };
    let bench = Bench::start_with(FakeDisk::default(), exact(), config).await;
    let mut worker = Worker::ready(&bench.address, "w1").await;
    worker.commit("c1", &["old "]).await;
    assert!(worker.prepare("c2", &["in doubt"]).await);
    drop(worker);
    // The cluster stopped gracefully and starts from nothing: it knows of no transaction.
    let mut worker = Worker::listed(&bench.address, "w1", "c2").await;
    worker.send_at(0, &["new"]).await;
    worker.closed().await;
    let worker = Worker::ready(&bench.address, "w1").await;
    (bench, worker)
}

#[tokio::test]
async fn a_transaction_in_doubt_is_delivered_by_default() {
    let (bench, mut worker) = in_doubt(OnInDoubt::Deliver).await;
    worker.commit("c1", &["new"]).await;
    bench.delivered(&["old ", "in doubt", "new"]).await;
    assert_eq!(bench.board.counters().transactions_in_doubt.load(std::sync::atomic::Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_transaction_in_doubt_can_be_kept_for_someone_to_look_at() {
    let (bench, mut worker) = in_doubt(OnInDoubt::Hold).await;
    worker.commit("c1", &["new"]).await;
    bench.delivered(&["old ", "new"]).await;
    assert!(bench.stalled("TransactionInDoubt").await.contains("c2"));
    let config = SinkPumpConfig { on_in_doubt: OnInDoubt::Hold, ..forgetful() };
    let bench = bench.restart_with(Crash::Process, config).await;
    bench.stalled("TransactionInDoubt").await;
    assert!(bench.target.is(&["old ", "new"]) && bench.target.state().archived.is_empty());
    // Someone decides.
    let config = SinkPumpConfig { on_in_doubt: OnInDoubt::Deliver, ..forgetful() };
    let bench = bench.restart_with(Crash::Process, config).await;
    bench.delivered(&["old ", "new", "in doubt"]).await;
    assert_eq!(bench.snapshot().stalled, None);
}

#[tokio::test]
async fn a_transaction_in_doubt_can_be_discarded_and_is_counted() {
    let (bench, mut worker) = in_doubt(OnInDoubt::Discard).await;
    worker.commit("c1", &["new"]).await;
    bench.delivered(&["old ", "new"]).await;
    assert_eq!(bench.snapshot().records.dropped["policy_drop"], 1);
    assert_eq!(bench.board.counters().transactions_in_doubt.load(std::sync::atomic::Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_worker_that_left_is_archived_and_starts_at_zero_when_it_comes_back() {
    let bench = Bench::start_with(FakeDisk::default(), exact(), forgetful()).await;
    let mut leaver = Worker::ready(&bench.address, "w2").await;
    leaver.commit("c1", &["of w2"]).await;
    bench.delivered(&["of w2"]).await;
    let mut stayer = Worker::ready(&bench.address, "w1").await;
    stayer.left(&["w2", "never seen"]).await; // while its connection is still there
    stayer.commit("c1", &["of w1"]).await;
    drop(leaver);
    let target = bench.target.clone();
    eventually("it is archived", || target.state().archived.len() == 1).await;
    stayer.left(&["w2"]).await;
    let board = bench.board.clone();
    eventually("it is not shown any more", || !board.snapshot().streams.contains_key("w2")).await;
    let mut back = Worker::ready(&bench.address, "w2").await;
    back.commit("c5", &["again"]).await;
    bench.delivered(&["of w2", "of w1", "again"]).await;
}

#[tokio::test]
async fn a_new_log_goes_on_where_an_older_cluster_is() {
    for payloads in [&["first"][..], &[]] {
        let bench = Bench::start(exact()).await;
        let mut worker = Worker::ready(&bench.address, "w1").await;
        // What came before was another sink's.
        if payloads.is_empty() {
            worker.ask("c9", 1_000, 1_000).await;
        } else {
            worker.send_at(1_000, payloads).await;
        }
        worker.closed().await;
        let mut worker = Worker::ready(&bench.address, "w1").await;
        worker.sent = 1_000;
        worker.commit("c10", &["first"]).await;
        bench.delivered(&["first"]).await;
        assert_eq!(bench.target.state().rows[0].position, 1_005);
        let bench = bench.restart(Crash::Power { seed: 6 }).await;
        let mut worker = Worker::ready(&bench.address, "w1").await;
        worker.sent = 1_005;
        worker.commit("c11", &["second"]).await;
        bench.delivered(&["first", "second"]).await;
    }
}
