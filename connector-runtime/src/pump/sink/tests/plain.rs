//! The plain framings.

use connector_crds::{OnError, Protocol, SinkFraming, State};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Duration, sleep, timeout};

use super::bench::{Bench, config, eventually};
use super::target::Target;
use crate::board::{Side, SideState};
use crate::fake_disk::FakeDisk;
use crate::pump::Shutdown;
use crate::pump::sink::{SinkOutcome, SinkPumpConfig};

fn plain() -> SinkPumpConfig {
    SinkPumpConfig { protocol: Protocol::FramedTCP, framing: SinkFraming::Lines {}, ..config() }
}

async fn start(target: Target, config: SinkPumpConfig) -> Bench {
    Bench::start_with(FakeDisk::default(), target, config).await
}

#[tokio::test]
async fn each_connection_is_a_stream_of_its_own_and_its_records_arrive_in_order() {
    let bench = start(Target::default(), plain()).await;
    let mut first = TcpStream::connect(&bench.address).await.unwrap();
    let mut second = TcpStream::connect(&bench.address).await.unwrap();
    first.write_all(b"a\nb").await.unwrap();
    bench.delivered(&["a"]).await;
    second.write_all(b"x\n").await.unwrap();
    bench.delivered(&["a", "x"]).await;
    first.write_all(b"c\n\n").await.unwrap();
    bench.delivered(&["a", "x", "bc", ""]).await;
    let positions: Vec<u64> = bench.target.state().rows.iter().map(|row| row.position).collect();
    assert_eq!(positions, [2, 2, 5, 6]);
    assert_eq!(bench.board.side(Side::Wallaroo), SideState::Connected);
    drop((first, second));
    let target = bench.target.clone();
    eventually("ended streams are forgotten", || target.state().archived.len() == 2).await;
    let board = bench.board.clone();
    eventually("and not shown", || board.snapshot().streams.is_empty()).await;
    assert_eq!(bench.board.side(Side::Wallaroo), SideState::Waiting);
}

#[tokio::test]
async fn a_malformed_frame_is_named_and_ends_its_connection_and_no_other() {
    let config = SinkPumpConfig { protocol: Protocol::Stream06, ..plain() };
    let bench = start(Target::default(), config).await;
    let mut good = TcpStream::connect(&bench.address).await.unwrap();
    let mut bad = TcpStream::connect(&bench.address).await.unwrap();
    let frame = b"\x0a\x00\x00\x00\x07\x00\x00\x00\x00\x00\x00\x00hi";
    bad.write_all(frame).await.unwrap();
    bench.delivered(&["hi"]).await;
    bad.write_all(b"\x03\x00\x00\x00abc").await.unwrap();
    assert_eq!(bad.read(&mut [0; 8]).await.unwrap_or(0), 0);
    good.write_all(frame).await.unwrap();
    bench.delivered(&["hi", "hi"]).await;
    let error = bench.snapshot().last_error.unwrap().message;
    assert!(
        error.contains("Stream06") && error.contains("too short") && error.contains("byte 14"),
        "{error}"
    );
}

#[tokio::test]
async fn a_connection_that_ends_inside_a_record_says_so() {
    let bench = start(Target::default(), plain()).await;
    let mut peer = TcpStream::connect(&bench.address).await.unwrap();
    peer.write_all(b"whole\nhal").await.unwrap();
    drop(peer);
    bench.delivered(&["whole"]).await;
    let board = bench.board.clone();
    eventually("it is counted", || board.snapshot().records.dropped.get("decode") == Some(&1)).await;
    assert!(bench.snapshot().last_error.unwrap().message.contains("ended inside a frame"));
}

#[tokio::test]
async fn a_target_that_is_away_holds_the_sender_back_and_gets_all_afterwards() {
    let target = Target::with(|state| state.away = true);
    let bench = start(target, SinkPumpConfig { queue_bytes: 50_000, ..plain() }).await;
    let mut peer = TcpStream::connect(&bench.address).await.unwrap();
    let sender = tokio::spawn(async move {
        for n in 0..200_000 {
            peer.write_all(format!("record {n:06} {}\n", "x".repeat(85)).as_bytes()).await.unwrap();
        }
    });
    let board = bench.board.clone();
    eventually("the queue is full", || board.in_flight().1 >= 50_000).await;
    let before = bench.snapshot().records.read;
    sleep(Duration::from_millis(50)).await; // for what must not happen
    assert_eq!(bench.snapshot().records.read, before);
    assert!(bench.board.in_flight().1 < 50_000 + 200_000, "one read beyond the bound");
    assert!(!sender.is_finished());
    bench.target.set(|state| state.away = false);
    let target = bench.target.clone();
    timeout(Duration::from_mins(1), async {
        while target.state().rows.len() < 200_000 {
            sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .unwrap();
    sender.await.unwrap();
    let rows = &target.state().rows;
    assert!(rows.iter().enumerate().all(|(n, row)| row.payload.starts_with(&format!("record {n:06} "))));
}

#[tokio::test]
async fn a_drain_reads_until_nothing_comes_and_says_its_end() {
    let bench = start(Target::with(|state| state.lazy = true), plain()).await;
    let mut peer = TcpStream::connect(&bench.address).await.unwrap();
    peer.write_all(b"a\n").await.unwrap();
    bench.delivered(&["a"]).await;
    bench.tell(Shutdown::Drain);
    // What comes within the quiet time is still taken, and starts it anew.
    for _ in 0..3 {
        sleep(Duration::from_millis(100)).await;
        peer.write_all(b"late\n").await.unwrap();
    }
    let mut end = Vec::new();
    peer.read_to_end(&mut end).await.unwrap();
    peer.write_all(b"very late\n").await.unwrap(); // our end is said, Wallaroo's is not
    drop(peer);
    let (_, target, outcome) = bench.ended().await;
    assert_eq!(outcome.unwrap(), SinkOutcome::Drained);
    assert!(target.is(&["a", "late", "late", "late", "very late"]));
    assert!(target.state().flushes > 0);
}

#[tokio::test]
async fn paused_it_reads_nothing_and_a_drain_reads_all_the_same() {
    let bench = start(Target::default(), plain()).await;
    bench.set_state(State::Paused);
    let mut peer = TcpStream::connect(&bench.address).await.unwrap();
    let board = bench.board.clone();
    eventually("it is connected", || board.side(Side::Wallaroo) == SideState::Connected).await;
    peer.write_all(b"waits\n").await.unwrap();
    sleep(Duration::from_millis(50)).await; // for what must not happen
    assert_eq!(bench.snapshot().records.read, 0);
    drop(peer);
    let (_, target, outcome) = bench.shut_down(Shutdown::Drain).await;
    assert_eq!((outcome, target.is(&["waits"])), (SinkOutcome::Drained, true));
}

#[tokio::test]
async fn refused_records_follow_the_policy() {
    for (on_error, expected, left) in [
        (OnError::Drop, vec!["a", "c"], 0),
        (OnError::DeadLetter, vec!["a", "c"], 0),
        (OnError::Stop, vec!["a", "c"], 0),
    ] {
        let target = Target::with(|state| state.refused = Some("bad"));
        let bench = start(target, SinkPumpConfig { on_error, ..plain() }).await;
        let mut peer = TcpStream::connect(&bench.address).await.unwrap();
        peer.write_all(b"a\nbad\nc\n").await.unwrap();
        bench.delivered(&expected).await;
        match on_error {
            OnError::Drop => assert_eq!(bench.snapshot().records.dropped["policy_drop"], 1),
            OnError::DeadLetter => {
                let board = bench.board.clone();
                eventually("a letter", || board.snapshot().records.dead_letters == 1).await;
            }
            OnError::Stop => {
                let message = bench.stalled("RecordRejected").await;
                assert!(message.contains("byte 6 of peer-1"), "{message}");
                peer.write_all(b"d\n").await.unwrap();
                sleep(Duration::from_millis(30)).await; // for what must not happen
                assert!(bench.target.is(&expected));
            }
        }
        assert_eq!(bench.board.in_flight().0, left);
    }
}
