//! Connector sinks: intro, rounds, votes, lost decisions, replay.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::timeout;
use wallaroo_endpoint::Status;
use wallaroo_endpoint::config::SinkProtocol;
use wallaroo_endpoint::status::{Phase, SinkState};
use wallaroo_protocol::message::Message;
use wallaroo_protocol::two_phase::{DATA_STREAM, TwoPhase};

use crate::peers::*;

fn connector(address: &str) -> wallaroo_endpoint::config::SinkConfig {
    sink_config("out", address, SinkProtocol::connector())
}

/// The checkpoint number at the end of a transaction id.
fn number(transaction: &str) -> u64 {
    transaction.rsplit_once(":c_id=").unwrap().1.parse().unwrap()
}

#[tokio::test]
async fn a_round_is_intro_data_vote_decision() {
    let (socket, address) = SinkSocket::bind().await;
    let (_endpoint, control, source) = start(config(vec![connector(&address)])).await;
    let mut sink = socket.accept(&[]).await;
    assert_eq!((sink.worker.as_str(), sink.rtag), ("initializer", 77_778));
    assert!(sink.stream_name.starts_with("endpoint-w-initializer-id-"), "{}", sink.stream_name);
    let (first, _, transaction, range) = sink.until_phase1().await;
    assert_eq!((first, transaction.clone(), range), (None, format!("{}:c_id=1", sink.stream_name), (0, 0)));
    sink.vote(&transaction, true).await;
    assert_eq!(sink.phase2().await, (transaction, true));
    let mut source = Source::open(&source).await;
    source.notify(1, None).await;
    source.send(1, [1, 2], "row-").await;
    let (first, bytes, transaction) = sink.commit_output().await;
    assert_eq!(first, 0);
    assert!(number(&transaction) > 1);
    let mut all = bytes;
    while all != b"row-1\nrow-2\n" {
        let (first, bytes, _) = sink.commit_output().await;
        assert_eq!(first, all.len() as u64);
        all.extend(bytes);
    }
    // The other task answers rounds, or no acknowledgement could come.
    let rounds = tokio::spawn(async move {
        loop {
            sink.commit_output().await;
        }
    });
    source.acked(1, 2).await;
    rounds.abort();
    let status = control.status();
    assert_eq!((status.sinks[0].committed, status.sinks[0].state), (12, SinkState::Ready));
    assert_eq!(status.violations, []);
}

#[tokio::test]
async fn the_source_is_acknowledged_only_after_the_vote() {
    let (socket, address) = SinkSocket::bind().await;
    let (_endpoint, control, source) = start(config(vec![connector(&address)])).await;
    let mut sink = socket.accept(&[]).await;
    let (_, _, first, _) = sink.until_phase1().await;
    sink.vote(&first, true).await;
    sink.phase2().await;
    let mut source = Source::open(&source).await;
    source.notify(1, None).await;
    source.send(1, [1], "r").await;
    // The record may miss the first barrier; then the round without it is answered.
    let transaction = loop {
        let (first, _, transaction, _) = sink.until_phase1().await;
        if first.is_some() {
            break transaction;
        }
        sink.vote(&transaction, true).await;
        sink.phase2().await;
    };
    let waiting = timeout(Duration::from_millis(80), async {
        loop {
            if source.ack().await.1 == [(1, Some(1))] {
                return;
            }
        }
    });
    assert!(waiting.await.is_err(), "no acknowledgement while the vote is out");
    assert_eq!(control.status().sinks[0].transaction.as_ref(), Some(&transaction));
    sink.vote(&transaction, true).await;
    source.acked(1, 1).await;
}

/// A cluster with one committed record "a1\n" and a second one "a2\n" under PHASE1.
async fn in_doubt()
-> (wallaroo_endpoint::Endpoint, wallaroo_endpoint::Control, SinkSocket, SinkPeer, Source, String, String) {
    let (socket, address) = SinkSocket::bind().await;
    let (endpoint, control, source_address) = start(config(vec![connector(&address)])).await;
    let mut sink = socket.accept(&[]).await;
    // Checkpoint 1 must be over before the source is read.
    let (_, _, first, _) = sink.until_phase1().await;
    sink.vote(&first, true).await;
    sink.phase2().await;
    let mut source = Source::open(&source_address).await;
    source.notify(1, None).await;
    source.send(1, [1], "a").await;
    let (_, bytes, _) = sink.commit_output().await;
    assert_eq!(bytes, b"a1\n");
    source.send(1, [2], "a").await;
    let transaction = loop {
        let (first, bytes, transaction, range) = sink.until_phase1().await;
        if first.is_some() {
            assert_eq!((first, bytes.as_slice(), range), (Some(3), &b"a2\n"[..], (3, 6)));
            break transaction;
        }
        sink.vote(&transaction, true).await;
        sink.phase2().await;
    };
    (endpoint, control, socket, sink, source, source_address, transaction)
}

#[tokio::test]
async fn a_no_closes_the_connection_and_the_abort_comes_on_the_next_one() {
    let (_endpoint, control, socket, mut sink, mut source, address, transaction) = in_doubt().await;
    sink.vote(&transaction, false).await;
    sink.peer.closed().await;
    assert_eq!(source.read_to_end().await, None, "the source gets a bare FIN");
    let mut sink = socket.accept(&[&transaction]).await;
    assert_eq!(sink.rtag, 77_779);
    assert_eq!(sink.phase2().await, (transaction.clone(), false));
    let mut source = reopen(&address).await;
    assert_eq!(source.notify(1, None).await, (true, Some(1)), "the position of the last checkpoint");
    source.send(1, [2], "b").await;
    let (first, bytes, next) = sink.commit_output().await;
    assert_eq!((first, bytes.as_slice()), (3, &b"b2\n"[..]), "replay begins at the committed offset");
    assert!(number(&next) > number(&transaction));
    let status = control.status();
    assert_eq!((status.rollbacks, status.sinks[0].aborts, status.violations.len()), (1, 1, 0));
}

/// Dials until OK comes: RESTART and bare FINs are normal around a rollback.
async fn reopen(address: &str) -> Source {
    loop {
        let mut peer = Peer::dial(address).await;
        let _ = peer.try_send(&[hello(wallaroo_protocol::message::SOURCE_VERSION, COOKIE)]).await;
        if let Some(Message::Ok { credits }) = peer.next().await {
            return Source { peer, credits };
        }
    }
}

#[tokio::test]
async fn a_sink_that_dies_after_its_yes_gets_the_commit_when_it_is_back() {
    let (_endpoint, control, socket, mut sink, mut source, _, transaction) = in_doubt().await;
    sink.vote(&transaction, true).await;
    source.acked(1, 2).await;
    drop(sink);
    // The first connection after a loss begins the rollback: it is closed after its intro.
    let mut probe = socket.accept(&[&transaction]).await;
    assert_eq!(probe.peer.next().await, None);
    assert_eq!(source.read_to_end().await, None);
    let mut sink = socket.accept(&[&transaction]).await;
    assert_eq!(sink.phase2().await, (transaction, true));
    let (_, _, _, range) = sink.until_phase1().await;
    assert_eq!(range, (6, 6));
    assert_eq!(control.status().sinks[0].committed, 6);
}

#[tokio::test]
async fn a_lost_decision_is_repeated_after_the_reconnect() {
    let (_endpoint, control, socket, mut sink, mut source, _, transaction) = in_doubt().await;
    control.set_faults(serde_json::from_str(r#"{"lose_decision": 1}"#).unwrap()).unwrap();
    sink.vote(&transaction, true).await;
    source.acked(1, 2).await;
    sink.peer.closed().await;
    drop(sink);
    drop(socket.accept(&[&transaction]).await);
    let mut sink = socket.accept(&[&transaction]).await;
    assert_eq!(sink.phase2().await, (transaction, true));
}

#[tokio::test]
async fn a_connection_lost_before_the_vote_aborts_the_transaction() {
    let (_endpoint, control, socket, sink, mut source, _, transaction) = in_doubt().await;
    drop(sink);
    // The sink had voted, but the vote never arrived.
    drop(socket.accept(&[&transaction]).await);
    let mut sink = socket.accept(&[&transaction]).await;
    assert_eq!(sink.phase2().await, (transaction, false));
    assert_eq!(source.read_to_end().await, None);
    assert_eq!(control.status().checkpoints_aborted, 1);
}

#[tokio::test]
async fn a_sink_that_forgot_the_aborted_transaction_is_fine() {
    let (_endpoint, _control, socket, mut sink, _source, address, transaction) = in_doubt().await;
    sink.vote(&transaction, false).await;
    sink.peer.closed().await;
    let mut sink = socket.accept(&[]).await;
    let mut source = reopen(&address).await;
    assert_eq!(source.notify(1, None).await, (true, Some(1)));
    source.send(1, [2], "b").await;
    assert_eq!(sink.commit_output().await.0, 3);
}

#[tokio::test]
async fn a_checkpoint_completes_only_if_every_sink_agrees() {
    let honest = HonestSink::start().await;
    let (socket, address) = SinkSocket::bind().await;
    let second = sink_config("second", &address, SinkProtocol::connector());
    let (_endpoint, control, source) = start(config(vec![connector(&honest.address), second])).await;
    let mut sink = socket.accept(&[]).await;
    let (_, _, first, _) = sink.until_phase1().await;
    sink.vote(&first, true).await;
    sink.phase2().await;
    let mut source = Source::open(&source).await;
    source.notify(1, None).await;
    source.send(1, [1], "r").await;
    let transaction = loop {
        let (first, _, transaction, _) = sink.until_phase1().await;
        if first.is_some() {
            break transaction;
        }
        sink.vote(&transaction, true).await;
        sink.phase2().await;
    };
    // The honest sink has voted yes by now or will: nothing is committed there.
    soon("the honest sink's vote", async {
        while honest.shelf("initializer").pending.is_none() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    sink.vote(&transaction, false).await;
    until(&control, "the rollback begins", |status| status.phase == Phase::RollingBack).await;
    let _sink = socket.accept(&[&transaction]).await;
    until(&control, "the rollback ends", |status| status.rollbacks == 1).await;
    soon("the abort at the honest sink", async {
        while honest.shelf("initializer").aborts == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    assert_eq!(honest.committed(), "");
}

#[tokio::test]
async fn a_fresh_cluster_never_decides_a_transaction_of_an_older_one() {
    let (socket, address) = SinkSocket::bind().await;
    let (_endpoint, control, source) = start(config(vec![connector(&address)])).await;
    let mut sink = socket.accept(&["of an older cluster"]).await;
    // Checkpoint 1 completes without this sink; then data flows, but no PHASE1 ever comes.
    let mut source = Source::open(&source).await;
    source.notify(1, None).await;
    source.send(1, [1], "r").await;
    match sink.peer.next().await {
        Some(Message::Data { stream, id: 0, payload, .. }) => {
            assert_eq!((stream, &payload[..]), (DATA_STREAM, &b"r1\n"[..]));
        }
        other => panic!("{other:?}"),
    }
    assert!(timeout(Duration::from_millis(100), sink.peer.try_next()).await.is_err());
    let status = control.status();
    assert_eq!((status.checkpoint, status.sinks[0].state), (1, SinkState::Introducing));
    // The sink closes, archives its state and comes back with an empty list: the cluster rolls back and goes on.
    drop(sink);
    drop(socket.accept(&[]).await);
    let mut sink = socket.accept(&[]).await;
    let (first, _, _, range) = sink.until_phase1().await;
    assert_eq!((first, range), (None, (0, 0)));
}

#[tokio::test]
async fn a_graceful_stop_between_vote_and_decision_leaves_the_transaction_in_doubt() {
    let (endpoint, _control, socket, mut sink, _source, _, transaction) = in_doubt().await;
    let address = socket.address();
    sink.vote(&transaction, true).await;
    // The decision may or may not have left before the stop; what counts is what a sink does that did not get it.
    endpoint.stop().await.unwrap();
    drop(sink);
    let (_endpoint, control, source) = start(config(vec![connector(&address)])).await;
    let mut sink = socket.accept(&[&transaction]).await;
    assert_eq!(sink.rtag, 77_778, "a new process");
    let mut source = Source::open(&source).await;
    assert_eq!(source.notify(1, Some(2)).await, (true, None), "the cluster knows nothing");
    source.send(1, [2], "a").await;
    match sink.peer.next().await {
        Some(Message::Data { id: 0, payload, .. }) => assert_eq!(&payload[..], b"a2\n"),
        other => panic!("output at offset 0 tells the sink that this is a fresh cluster, got {other:?}"),
    }
    assert_eq!(control.status().sinks[0].state, SinkState::Introducing);
}

#[tokio::test]
async fn a_no_in_checkpoint_1_would_kill_a_real_worker() {
    let (socket, address) = SinkSocket::bind().await;
    let (_endpoint, control, _source) = start(config(vec![connector(&address)])).await;
    let mut sink = socket.accept(&[]).await;
    let (_, _, transaction, _) = sink.until_phase1().await;
    sink.vote(&transaction, false).await;
    let status = until(&control, "the violation", |status| status.violation_count == 1).await;
    assert_eq!((status.violations[0].rule.as_str(), status.violations[0].kills_worker), ("§4.4", true));
    assert_eq!(status.violations[0].place, "initializer/out");
}

#[tokio::test]
async fn what_a_sink_must_not_send_is_named_and_closes_the_connection() {
    for (message, text, rule) in [
        (
            Message::Ack { credits: 1, positions: std::iter::empty().collect() },
            Some("Bad External Connection State: F"),
            "§4.9",
        ),
        (Message::Ok { credits: 500 }, Some("Bad msg @ line 282"), "§4.2"),
        (Message::Restart { address: None }, None, "§4.9"),
        (record(2, 0, b"x"), Some("Bad msg"), "§4.9"),
    ] {
        let (socket, address) = SinkSocket::bind().await;
        let (_endpoint, control, _source) = start(config(vec![connector(&address)])).await;
        let mut sink = socket.accept(&[]).await;
        let (_, _, transaction, _) = sink.until_phase1().await;
        sink.vote(&transaction, true).await;
        sink.phase2().await;
        sink.peer.send(&[message]).await;
        // A round may be under way.
        let mut error = None;
        while let Some(message) = sink.peer.next().await {
            if let Message::Error { message } = message {
                error = Some(String::from_utf8(message.to_vec()).unwrap());
            }
        }
        assert_eq!(error.as_deref(), text);
        let status = until(&control, "the violation", |status| status.violation_count == 1).await;
        assert_eq!(status.violations[0].rule, rule);
    }
}

#[tokio::test]
async fn a_sink_that_is_not_read_holds_the_sources_back() {
    let (socket, address) = SinkSocket::bind().await;
    let (_endpoint, control, source) = start(config(vec![connector(&address)])).await;
    let mut sink = socket.accept(&[]).await;
    let (_, _, transaction, _) = sink.until_phase1().await;
    sink.vote(&transaction, true).await;
    sink.phase2().await;
    let mut source = Source::open(&source).await;
    source.notify(1, None).await;
    // The sink leaves PHASE1 unanswered, and the source sends until the socket takes no more.
    let mut id = 0;
    let payload = "x".repeat(10_000);
    while let Ok(()) = timeout(Duration::from_millis(500), source.send(1, [id + 1], &payload)).await {
        id += 1;
        assert!(id < 20_000, "200 MB went into memory");
    }
    let status = control.status();
    let queued = status.sinks[0].queued;
    assert!((8 << 20..10 << 20).contains(&queued), "{queued} bytes are queued");
    // Reading goes on as soon as the sink does.
    let before = status.records_in;
    tokio::spawn(async move {
        loop {
            sink.commit_output().await;
        }
    });
    until(&control, "more records", |status| status.records_in > before + 100).await;
}

#[tokio::test]
async fn without_resilience_a_sink_is_asked_for_its_list_and_never_for_a_vote() {
    let (socket, address) = SinkSocket::bind().await;
    let mut config = config(vec![connector(&address)]);
    config.resilience = false;
    let (_endpoint, control, source) = start(config).await;
    let mut sink = socket.accept(&[]).await;
    let mut source = Source::open(&source).await;
    source.notify(1, None).await;
    source.send(1, [1], "r").await;
    assert!(matches!(sink.peer.next().await, Some(Message::Data { id: 0, .. })));
    assert!(timeout(Duration::from_millis(80), sink.peer.try_next()).await.is_err());
    drop(sink);
    until(&control, "the valve closes", |status: &Status| status.sinks[0].state == SinkState::Closed).await;
}

#[tokio::test]
async fn missing_answers_and_silence_are_borne() {
    // A sink that never sends REPLY_UNCOMMITTED gets data, and no PHASE1.
    let (socket, address) = SinkSocket::bind().await;
    let (_endpoint, control, source) = start(config(vec![connector(&address)])).await;
    let mut peer = socket.accept_peer().await;
    for _ in 0..3 {
        peer.next().await.expect("the intro");
    }
    let mut source = Source::open(&source).await;
    source.notify(1, None).await;
    source.send(1, [1], "r").await;
    assert!(matches!(peer.next().await, Some(Message::Data { id: 0, .. })));
    assert!(timeout(Duration::from_millis(80), peer.try_next()).await.is_err());
    assert_eq!(control.status().checkpoint, 1);
}

#[tokio::test]
async fn votes_that_nobody_asked_for_would_kill_a_real_worker() {
    let (socket, address) = SinkSocket::bind().await;
    let (_endpoint, control, _source) = start(config(vec![connector(&address)])).await;
    let mut sink = socket.accept(&[]).await;
    sink.peer.send_inner(TwoPhase::Reply { transaction: Bytes::from_static(b"other"), commit: true }).await;
    let status = until(&control, "the violation", |status| status.violation_count == 1).await;
    assert_eq!((status.violations[0].rule.as_str(), status.violations[0].kills_worker), ("§4.4", true));
}
