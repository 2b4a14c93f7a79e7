//! Connector sources: handshake, credits, streams, acknowledgements.

use std::time::Duration;

use tokio::time::timeout;
use wallaroo_endpoint::config::{ReleasePosition, SourceProtocol};
use wallaroo_protocol::message::{Message, SOURCE_VERSION};

use crate::peers::*;

#[tokio::test]
async fn a_good_hello_gets_ok_and_bad_ones_get_the_workers_texts() {
    let (_endpoint, control, address) = start(config(vec![])).await;
    assert_eq!(Source::open(&address).await.credits, 500);
    let mut wrong_version = Peer::dial(&address).await;
    wrong_version.send(&[hello(b"v0.0.1", COOKIE)]).await;
    assert_eq!(wrong_version.error().await, "Unknown protocol version: v0.0.1");
    wrong_version.closed().await;
    let mut wrong_cookie = Peer::dial(&address).await;
    wrong_cookie.send(&[hello(SOURCE_VERSION, "wrong")]).await;
    assert_eq!(wrong_cookie.error().await, "Bad cookie: wrong, wanted: Dragons-Love-Tacos");
    wrong_cookie.closed().await;
    let mut too_early = Peer::dial(&address).await;
    too_early.send(&[Source::notify_message(1, None)]).await;
    assert_eq!(too_early.error().await, "Bad protocol FSM state");
    let status = until(&control, "three violations", |status| status.violations.len() == 3).await;
    let rules: Vec<&str> = status.violations.iter().map(|violation| violation.rule.as_str()).collect();
    assert_eq!(rules, ["§2.3", "§2.3", "§3.2"]);
    assert!(status.violations.iter().all(|violation| violation.place == "initializer/in"));
}

#[tokio::test]
async fn credits_are_refilled_before_the_frame_that_reaches_the_mark_is_processed() {
    let mut config = config(vec![]);
    config.checkpoint_interval_ms = 3_600_000;
    config.sources[0].protocol = match SourceProtocol::connector() {
        SourceProtocol::Connector { cookie, .. } => {
            SourceProtocol::Connector { cookie, max_credits: 6, refill_credits: 2 }
        }
        other => other,
    };
    let (_endpoint, _control, address) = start(config).await;
    let mut source = Source::open(&address).await;
    assert_eq!(source.credits, 6);
    assert_eq!(source.notify(1, None).await, (true, None));
    source.send(1, [1, 2, 3], "r").await;
    assert_eq!(source.ack().await, (4, vec![]));
    source.send(1, [4, 5, 6, 7], "r").await;
    assert_eq!(source.ack().await, (4, vec![]));
}

#[tokio::test]
async fn idle_streams_are_acknowledged_at_every_checkpoint_with_nothing() {
    let (_endpoint, _control, address) = start(config(vec![])).await;
    let mut source = Source::open(&address).await;
    source.notify(7, Some(3)).await;
    let first = source.ack().await;
    assert_eq!(first, (1, vec![(7, None)]));
    assert_eq!(source.ack().await, (0, vec![(7, None)]));
    assert_eq!(source.ack().await, (0, vec![(7, None)]));
}

#[tokio::test]
async fn acknowledgements_are_inclusive_and_repeats_are_dropped() {
    let (_endpoint, control, address) = start(config(vec![])).await;
    let mut source = Source::open(&address).await;
    source.notify(1, None).await;
    source.send(1, [10, 20, 30], "r").await;
    source.acked(1, 30).await;
    source.send(1, [10, 30, 20, 60], "r").await;
    source.acked(1, 60).await;
    let status = control.status();
    assert_eq!((status.records_in, status.repeats_dropped), (4, 3));
    let stream = &status.streams["1"];
    assert_eq!((stream.name.as_str(), stream.last_seen, stream.records), ("stream-1", Some(60), 4));
    assert_eq!(status.violations, []);
}

#[tokio::test]
async fn the_end_of_a_stream_is_acknowledged_in_two_frames_at_the_next_checkpoint() {
    let (_endpoint, control, address) = start(config(vec![])).await;
    let mut source = Source::open(&address).await;
    source.notify(1, None).await;
    source.send(1, [5], "r").await;
    source.acked(1, 5).await;
    // No checkpoint starts between EOS and NOTIFY: they arrive together.
    source.peer.send(&[eos(1), Source::notify_message(1, Some(9))]).await;
    let mut acks = Vec::new();
    let refused = loop {
        match source.peer.next().await {
            Some(Message::NotifyAck { success, position, .. }) => break (success, position),
            Some(Message::Ack { .. }) => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(refused, (false, Some(9)));
    while acks.len() < 2 {
        let ack = source.ack().await;
        if ack != (0, vec![(1, Some(5))]) || !acks.is_empty() {
            acks.push(ack);
        }
    }
    assert_eq!(acks, [(2, vec![]), (0, vec![(1, Some(5))])]);
    assert_eq!(source.notify(1, Some(3)).await, (true, Some(5)), "the stream is free and knows its position");
    assert_eq!(control.status().violations, []);
}

#[tokio::test]
async fn a_plain_reconnect_gets_the_last_checkpointed_position() {
    for (release, expected) in [(ReleasePosition::LastAcked, 5), (ReleasePosition::LastSeen, 8)] {
        let mut config = config(vec![]);
        config.release_position = release;
        let (_endpoint, control, address) = start(config).await;
        let mut source = Source::open(&address).await;
        source.notify(1, None).await;
        source.send(1, 1..=5, "r").await;
        source.acked(1, 5).await;
        control.set_faults(serde_json::from_str(r#"{"no_checkpoints": true}"#).unwrap()).unwrap();
        source.send(1, 6..=8, "r").await;
        until(&control, "all records", |status| status.records_in == 8).await;
        drop(source);
        until(&control, "the stream is free", |status| status.streams["1"].worker.is_none()).await;
        let mut source = Source::open(&address).await;
        assert_eq!(source.notify(1, None).await, (true, Some(expected)));
    }
}

#[tokio::test]
async fn a_stream_that_is_active_elsewhere_is_refused_with_the_clients_own_position() {
    let mut config = config(vec![]);
    config.workers = 2;
    let (_endpoint, control, leader) = start(config).await;
    let other = control.status().sources[1].address.clone();
    let mut first = Source::open(&leader).await;
    assert_eq!(first.notify(1, Some(7)).await, (true, None), "the leader knows nothing of the stream");
    let mut second = Source::open(&other).await;
    assert_eq!(second.notify(1, Some(4)).await, (false, Some(4)));
    assert_eq!(first.notify(1, Some(4)).await, (false, Some(4)), "also on its own session");
    drop(first);
    until(&control, "the stream is free", |status| status.streams["1"].worker.is_none()).await;
    assert_eq!(second.notify(1, Some(4)).await, (true, None));
}

#[tokio::test]
async fn a_worker_that_does_not_lead_the_registry_echoes_and_drops_what_the_echo_covers() {
    let mut config = config(vec![]);
    config.workers = 2;
    let (_endpoint, control, _leader) = start(config).await;
    let other = control.status().sources[1].address.clone();
    let mut source = Source::open(&other).await;
    assert_eq!(source.notify(1, Some(7)).await, (true, Some(7)));
    source.send(1, [5, 8], "r").await;
    source.acked(1, 8).await;
    let status = control.status();
    assert_eq!((status.records_in, status.repeats_dropped), (1, 1));
    assert_eq!(source.notify(2, None).await, (true, None), "nothing is echoed as nothing");
}

#[tokio::test]
async fn the_switch_makes_a_single_worker_echo() {
    let mut config = config(vec![]);
    config.non_leader = true;
    let (_endpoint, _control, address) = start(config).await;
    assert_eq!(Source::open(&address).await.notify(1, Some(7)).await, (true, Some(7)));
}

#[tokio::test]
async fn connections_above_the_parallelism_wait_for_a_free_place() {
    let mut config = config(vec![]);
    config.sources[0].parallelism = 2;
    let (_endpoint, control, address) = start(config).await;
    let first = Source::open(&address).await;
    let _second = Source::open(&address).await;
    let mut third = Peer::dial(&address).await;
    third.send(&[hello(SOURCE_VERSION, COOKIE)]).await;
    assert!(timeout(Duration::from_millis(60), third.try_next()).await.is_err(), "HELLO stays unanswered");
    assert_eq!(control.status().sources[0].connections, 2);
    drop(first);
    assert_eq!(third.next().await, Some(Message::Ok { credits: 500 }));
}

#[tokio::test]
async fn a_body_of_16384_bytes_is_taken_and_a_longer_one_is_a_close_without_a_word() {
    let (_endpoint, control, address) = start(config(vec![])).await;
    let mut source = Source::open(&address).await;
    source.notify(1, None).await;
    source.peer.send(&[record(1, 1, &[b'x'; 16_384 - 27])]).await;
    source.acked(1, 1).await;
    source.peer.send(&[record(1, 2, &[b'x'; 16_385 - 27])]).await;
    while let Some(message) = source.peer.next().await {
        assert!(matches!(message, Message::Ack { .. }), "{message:?}");
    }
    let status = until(&control, "a violation", |status| status.violation_count == 1).await;
    assert_eq!(status.violations[0].rule, "§2.4");
}

#[tokio::test]
async fn broken_rules_are_named_and_some_would_kill_a_real_worker() {
    let (_endpoint, control, address) = start(config(vec![])).await;
    let open = || Source::open(&address);
    let mut second_hello = open().await;
    second_hello.peer.send(&[hello(SOURCE_VERSION, COOKIE)]).await;
    second_hello.read_to_end().await;
    let mut unregistered = open().await;
    unregistered.peer.send(&[record(4242, 1, b"x")]).await;
    assert_eq!(unregistered.peer.error().await, "Bad/unregistered stream_id 4242 with message_id 1");
    let mut bad_eos = open().await;
    bad_eos.peer.send(&[eos(4242)]).await;
    assert_eq!(bad_eos.peer.error().await, "Unable to decode message");
    let mut wrong = open().await;
    wrong.peer.send(&[Message::Ok { credits: 1 }]).await;
    assert_eq!(wrong.peer.error().await, "Invalid message: ok");
    let mut nonsense = open().await;
    nonsense.peer.raw(&[0, 0, 0, 4, 77, 1, 2, 3]).await;
    assert_eq!(nonsense.peer.error().await, "Unable to decode message");
    let mut empty_frame = open().await;
    empty_frame.peer.raw(&[0, 0, 0, 0]).await;
    empty_frame.read_to_end().await;
    let mut greedy = open().await;
    greedy.notify(1, None).await;
    greedy.send(1, 1..=1_000, "r").await;
    let status = until(&control, "seven violations", |status| status.violation_count == 7).await;
    let mut rules: Vec<(&str, bool)> =
        status.violations.iter().map(|v| (v.rule.as_str(), v.kills_worker)).collect();
    rules.sort_unstable();
    assert_eq!(
        rules,
        [
            ("§2.3", false),
            ("§2.4", false),
            ("§2.5", false),
            ("§3.3", false),
            ("§3.5", false),
            ("§3.7", false),
            ("§7.17", true)
        ]
    );
}

#[tokio::test]
async fn an_error_from_the_connector_ends_the_session_and_is_no_violation() {
    let (_endpoint, control, address) = start(config(vec![])).await;
    let mut source = Source::open(&address).await;
    source.peer.send(&[Message::Error { message: "bye".into() }]).await;
    source.peer.closed().await;
    assert_eq!(control.status().violation_count, 0);
}

#[tokio::test]
async fn without_resilience_only_refills_and_ends_are_acknowledged() {
    let mut config = config(vec![]);
    config.resilience = false;
    let (_endpoint, control, address) = start(config).await;
    let mut source = Source::open(&address).await;
    source.notify(1, None).await;
    source.send(1, [5], "r").await;
    until(&control, "the record", |status| status.records_in == 1).await;
    assert!(timeout(Duration::from_millis(80), source.peer.try_next()).await.is_err(), "no periodic ACK");
    source.peer.send(&[eos(1)]).await;
    assert_eq!(source.ack().await, (0, vec![(1, Some(5))]));
    assert_eq!(source.notify(1, None).await, (true, Some(5)));
    assert_eq!(control.status().checkpoint, 0);
}

#[tokio::test]
async fn nothing_is_read_before_the_first_checkpoint() {
    use wallaroo_endpoint::config::SinkProtocol;
    // A plain sink that nobody listens for keeps the worker from being ready.
    let (socket, sink) = SinkSocket::bind().await;
    drop(socket);
    let (_endpoint, _control, address) =
        start(config(vec![sink_config("out", &sink, SinkProtocol::FramedTcp)])).await;
    let mut peer = Peer::dial(&address).await;
    peer.send(&[hello(SOURCE_VERSION, COOKIE)]).await;
    assert!(timeout(Duration::from_millis(80), peer.try_next()).await.is_err(), "HELLO is not read");
    let _receiver = tokio::net::TcpListener::bind(&sink).await.unwrap();
    assert_eq!(peer.next().await, Some(Message::Ok { credits: 500 }));
}

#[tokio::test]
async fn stalled_sources_are_not_read_until_they_are_resumed() {
    let (_endpoint, control, address) = start(config(vec![])).await;
    let mut source = Source::open(&address).await;
    source.notify(1, None).await;
    control.stall();
    source.send(1, 1..=3, "r").await;
    // Checkpoints go on: the open stream is still acknowledged, with nothing.
    for _ in 0..3 {
        assert_eq!(source.ack().await.1, [(1, None)]);
    }
    assert_eq!(control.status().records_in, 0);
    control.resume();
    source.acked(1, 3).await;
}
