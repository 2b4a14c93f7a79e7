//! Every fault of the plan, and nothing else.

use std::time::Duration;

use tokio::time::{Instant, timeout};
use wallaroo_endpoint::config::SinkProtocol;
use wallaroo_endpoint::{Control, Endpoint};
use wallaroo_protocol::message::{Message, SOURCE_VERSION};

use crate::peers::*;

async fn with_faults(plan: &str) -> (Endpoint, Control, String) {
    let mut config = config(vec![]);
    config.faults = serde_json::from_str(plan).unwrap();
    start(config).await
}

#[tokio::test]
async fn notify_is_refused_or_ignored_so_many_times() {
    let (_endpoint, _control, address) = with_faults(r#"{"refuse_notify": 2}"#).await;
    let mut source = Source::open(&address).await;
    for _ in 0..2 {
        assert_eq!(source.notify(1, Some(3)).await, (false, Some(3)));
    }
    assert_eq!(source.notify(1, Some(3)).await, (true, None));

    let (_endpoint, _control, address) = with_faults(r#"{"ignore_notify": 1}"#).await;
    let mut source = Source::open(&address).await;
    source.peer.send(&[Source::notify_message(1, None), Source::notify_message(2, None)]).await;
    loop {
        match source.peer.next().await {
            Some(Message::NotifyAck { success: true, stream, .. }) => break assert_eq!(stream.0, 2),
            Some(Message::Ack { .. }) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(source.notify(1, None).await, (true, None), "the session forgot the first one");
}

#[tokio::test]
async fn a_silent_endpoint_accepts_and_says_nothing_until_it_is_told_to() {
    let (_endpoint, control, address) = with_faults(r#"{"silent": true}"#).await;
    let mut peer = Peer::dial(&address).await;
    peer.send(&[hello(SOURCE_VERSION, COOKIE)]).await;
    assert!(timeout(Duration::from_millis(80), peer.try_next()).await.is_err());
    assert_eq!(control.status().sources[0].connections, 1);
    control.set_faults(wallaroo_endpoint::FaultPlan::default()).unwrap();
    assert_eq!(peer.next().await, Some(Message::Ok { credits: 500 }));
}

#[tokio::test]
async fn connections_are_closed_without_a_byte_or_behind_their_intro() {
    let honest = HonestSink::start().await;
    let mut config = config(vec![sink_config("out", &honest.address, SinkProtocol::connector())]);
    config.faults = serde_json::from_str(r#"{"close_on_accept": 2, "close_after_intro": 3}"#).unwrap();
    let (_endpoint, control, address) = start(config).await;
    for _ in 0..2 {
        Peer::dial(&address).await.closed().await;
    }
    let mut source = Source::open(&address).await;
    source.notify(1, None).await;
    source.send(1, [1], "r").await;
    source.acked(1, 1).await;
    assert_eq!(control.status().sinks[0].connections, 4);
    honest.until_committed("the record", |text| text == "r1\n").await;
}

#[tokio::test]
async fn ok_is_held_back() {
    let (_endpoint, _control, address) = with_faults(r#"{"delay_ok_ms": 60}"#).await;
    let begun = Instant::now();
    let mut source = Source::open(&address).await;
    assert!(begun.elapsed() >= Duration::from_millis(60));
    assert_eq!(source.notify(1, None).await, (true, None));
}

#[tokio::test]
async fn a_right_cookie_is_refused_without_blame() {
    let (_endpoint, control, address) = with_faults(r#"{"reject_cookie": true}"#).await;
    let mut peer = Peer::dial(&address).await;
    peer.send(&[hello(SOURCE_VERSION, COOKIE)]).await;
    assert!(peer.error().await.starts_with("Bad cookie: Dragons-Love-Tacos"));
    peer.closed().await;
    assert_eq!(control.status().violation_count, 0);
}

#[tokio::test]
async fn close_error_and_restart_strike_exactly_behind_their_record() {
    for (plan, message) in [
        (r#"{"close_after_records": 5}"#, None),
        (
            r#"{"error_after_records": {"records": 5, "message": "no more"}}"#,
            Some(Message::Error { message: "no more".into() }),
        ),
        (
            r#"{"restart_after_records": {"records": 5, "address": "elsewhere:1", "close": true}}"#,
            Some(Message::Restart { address: Some("elsewhere:1".into()) }),
        ),
    ] {
        let (_endpoint, control, address) = with_faults(plan).await;
        let mut source = Source::open(&address).await;
        source.notify(1, None).await;
        source.send(1, 1..=8, "r").await;
        let mut last = None;
        while let Some(message) = source.peer.next().await {
            if !matches!(message, Message::Ack { .. }) {
                last = Some(message);
            }
        }
        assert_eq!(last, message);
        assert_eq!(control.status().records_in, 5);
        // The fault has struck once.
        let mut source = Source::open(&address).await;
        source.notify(1, None).await;
        source.send(1, 1..=8, "r").await;
        source.acked(1, 8).await;
    }
}

#[tokio::test]
async fn restart_without_a_close_leaves_the_closing_to_the_client() {
    let (_endpoint, _control, address) =
        with_faults(r#"{"restart_after_records": {"records": 1, "address": ""}}"#).await;
    let mut source = Source::open(&address).await;
    source.notify(1, None).await;
    source.send(1, [1], "r").await;
    loop {
        match source.peer.next().await {
            Some(Message::Ack { .. }) => {}
            Some(Message::Restart { address: None }) => break,
            other => panic!("{other:?}"),
        }
    }
    // Heartbeats still come; the connection is open.
    assert!(matches!(source.peer.next().await, Some(Message::Ack { .. })));
}

#[tokio::test]
async fn a_rollback_at_a_record() {
    let (_endpoint, control, address) = with_faults(r#"{"rollback_after_records": 5}"#).await;
    let mut source = Source::open(&address).await;
    source.notify(1, None).await;
    source.send(1, 1..=8, "r").await;
    source.read_to_end().await;
    let status = until(&control, "the rollback", |status| status.rollbacks == 1).await;
    assert_eq!(status.records_in, 5);
    let mut source = Source::open(&address).await;
    assert_eq!(source.notify(1, None).await, (true, None));
}

#[tokio::test]
async fn a_stall_at_a_record_ends_with_resume() {
    let (_endpoint, control, address) = with_faults(r#"{"stall_after_records": 3}"#).await;
    let mut source = Source::open(&address).await;
    source.notify(1, None).await;
    source.send(1, 1..=3, "r").await;
    source.acked(1, 3).await;
    source.send(1, 4..=5, "r").await;
    assert!(timeout(Duration::from_millis(80), source.acked(1, 5)).await.is_err());
    control.resume();
    source.acked(1, 5).await;
}

#[tokio::test]
async fn writes_are_split_into_single_bytes() {
    let honest = HonestSink::start().await;
    let mut config = config(vec![sink_config("out", &honest.address, SinkProtocol::connector())]);
    config.faults = serde_json::from_str(r#"{"split_writes": 1}"#).unwrap();
    let (_endpoint, _control, address) = start(config).await;
    let mut source = Source::open(&address).await;
    source.notify(1, None).await;
    source.send(1, 1..=20, "r").await;
    source.acked(1, 20).await;
    honest.until_committed("all", |text| text.lines().count() == 20).await;
}

#[tokio::test]
async fn no_checkpoints_means_no_positions() {
    let (_endpoint, control, address) = with_faults(r#"{"no_checkpoints": true}"#).await;
    let mut source = Source::open(&address).await;
    source.notify(1, None).await;
    source.send(1, [1], "r").await;
    until(&control, "the record", |status| status.records_in == 1).await;
    assert!(timeout(Duration::from_millis(80), source.peer.try_next()).await.is_err());
    assert_eq!(control.status().checkpoint, 1, "without the first one nothing would be read");
}

#[tokio::test]
async fn two_phase_commit_survives_its_faults_without_loss_or_repeat() {
    for plan in [r#"{"drop_before_vote": 2}"#, r#"{"lose_decision": 2}"#, r#"{"abort_after_vote": 2}"#] {
        let honest = HonestSink::start().await;
        let (_endpoint, control, address) =
            start(config(vec![sink_config("out", &honest.address, SinkProtocol::connector())])).await;
        let mut source = Source::open(&address).await;
        source.notify(1, None).await;
        source.send(1, 1..=5, "r").await;
        source.acked(1, 5).await;
        control.set_faults(serde_json::from_str(plan).unwrap()).unwrap();
        source.send(1, 6..=10, "r").await;
        until(&control, plan, |status| status.rollbacks == 2).await;
        loop {
            let mut peer = Peer::dial(&address).await;
            let _ = peer.try_send(&[hello(SOURCE_VERSION, COOKIE)]).await;
            let Some(Message::Ok { credits }) = peer.next().await else { continue };
            let mut source = Source { peer, credits };
            let (success, position) = source.notify(1, None).await;
            assert!(success);
            source.send(1, position.unwrap() + 1..=10, "r").await;
            source.acked(1, 10).await;
            break;
        }
        let committed = honest.until_committed("all", |text| text.lines().count() >= 10).await;
        let expected: String = (1..=10).map(|id| format!("r{id}\n")).collect();
        assert_eq!(committed, expected, "{plan}");
        assert_eq!(control.status().violations, [], "{plan}");
    }
}

#[tokio::test]
async fn a_plan_that_makes_no_sense_is_refused_by_field() {
    let (_endpoint, control, _) = with_faults("{}").await;
    let error = control.set_faults(serde_json::from_str(r#"{"split_writes": 0}"#).unwrap()).unwrap_err();
    assert_eq!(error.to_string(), "faults.split_writes: must be between 1 and 65536 bytes");
    assert!(serde_json::from_str::<wallaroo_endpoint::FaultPlan>(r#"{"explode": 1}"#).is_err());
}
