//! Source connections.

use crate::support::{self, *};
use wallaroo_protocol::message::Message;
use wallaroo_protocol::*;

const S: StreamId = StreamId(7);

#[test]
fn confirmed_every_checkpoint_acknowledges_idle_streams_too() {
    let mut server = server(10, 2);
    open_stream(&mut server, S, None);
    server.acknowledge(&[(S, None)]);
    server.acknowledge(&[(S, None)]);
    assert_eq!(server_says(&mut server), "ACK 1 [7:NONE] ACK 0 [7:NONE]");
    server.acknowledge(&[]);
    assert_eq!(server_says(&mut server), "", "an ACK that says nothing is not sent");
    let mut client = client(10);
    client_opens(&mut client, 7, None);
    let events = client_reads(&mut client, &ack(0, &[(7, None)]));
    assert_eq!(events, [SourceClientEvent::Checkpoint]);
}

#[test]
fn confirmed_refills_come_when_the_budget_falls_to_the_mark_before_the_frame_is_read() {
    let mut server = server(6, 2);
    open_stream(&mut server, S, None);
    let mut said = Vec::new();
    for id in 1..=7 {
        server_reads(&mut server, &data(7, id, "x")).unwrap();
        said.push(server_says(&mut server));
    }
    // NOTIFY took one; the third record finds two left.
    assert_eq!(said, ["", "", "ACK 4 []", "", "", "", "ACK 4 []"]);
}

#[test]
fn confirmed_credits_are_not_enforced() {
    let mut server = server(500, 50);
    open_stream(&mut server, S, None);
    let mut burst = bytes::BytesMut::new();
    (1..=3_000).for_each(|id| burst.extend_from_slice(&data(7, id, "x")));
    let events = server_reads(&mut server, &burst).unwrap();
    let records: usize = events
        .iter()
        .map(|event| match event {
            SourceServerEvent::Records(run) => run.len(),
            SourceServerEvent::Tolerated(_) => 0,
            other => panic!("{other:?}"),
        })
        .sum();
    assert_eq!(records, 3_000);
    assert_eq!(server_says(&mut server), ["ACK 450 []"; 6].join(" "));
    assert_eq!(server.core().credits(), 500 - 301);
}

#[test]
fn confirmed_repeats_are_dropped_and_cost_a_credit() {
    let mut server = server(100, 2);
    open_stream(&mut server, S, None);
    let mut burst = bytes::BytesMut::new();
    for id in [50, 10, 50, 20, 60] {
        burst.extend_from_slice(&data(7, id, "x"));
    }
    let events = server_reads(&mut server, &burst).unwrap();
    let ids: Vec<_> = events
        .iter()
        .flat_map(|event| match event {
            SourceServerEvent::Records(run) => run.iter().map(|record| record.id).collect::<Vec<_>>(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(ids, [50, 60]);
    assert_eq!(server.counters().repeats, 3);
    server.barrier();
    server.acknowledge(&[(S, server.stream(S).unwrap().acked)]);
    assert_eq!(server_says(&mut server), "ACK 6 [7:60]");
}

#[test]
fn confirmed_eos_is_answered_in_two_frames_and_notify_is_refused_until_then() {
    let mut server = server(10, 2);
    open_stream(&mut server, S, None);
    server_reads(&mut server, &data(7, 80, "x")).unwrap();
    server_reads(&mut server, &eos(7)).unwrap();
    server_reads(&mut server, &notify(7, "name", None)).unwrap();
    assert_eq!(server_says(&mut server), "NOTIFY_ACK false 7 NONE");
    server.acknowledge(&[]);
    server.acknowledge_ended(&[(S, Some(80))]);
    assert_eq!(server_says(&mut server), "ACK 4 [] ACK 0 [7:80]");
    let events = server_reads(&mut server, &notify(7, "name", None)).unwrap();
    assert!(matches!(&events[..], [SourceServerEvent::Notify { .. }]), "{events:?}");
}

#[test]
fn confirmed_id_none_resets_what_was_seen() {
    let mut server = server(10, 2);
    open_stream(&mut server, S, None);
    server_reads(&mut server, &data(7, u64::MAX, "x")).unwrap();
    let events = server_reads(&mut server, &data(7, 5, "x")).unwrap();
    assert!(matches!(&events[..], [SourceServerEvent::Records(run)] if run.first_id() == 5), "{events:?}");
}

#[test]
fn confirmed_an_empty_record_is_acknowledged_and_reaches_nothing() {
    let mut server = server(10, 2);
    open_stream(&mut server, S, None);
    let mut burst = data(7, 1, "a");
    burst.extend_from_slice(&data(7, 2, ""));
    burst.extend_from_slice(&data(7, 3, "c"));
    let events = server_reads(&mut server, &burst).unwrap();
    let empty = SourceServerEvent::Tolerated(Tolerated::EmptyRecord { stream: S, id: 2 });
    assert_eq!(events[1], empty);
    assert_eq!((events.len(), server.counters().empty, server.counters().records), (3, 1, 2));
    let mut client = client(10);
    client_opens(&mut client, 7, None);
    let error = client.send(S, std::iter::once(record(1, ""))).unwrap_err();
    assert_eq!(error, SendError::Empty { index: 0, stream: S, id: 1 });
}

#[test]
fn confirmed_restart_may_come_instead_of_ok() {
    let mut client = SourceClient::new(SourceClientConfig::new(Cookie::new(COOKIE), "p", "i"), NOW).unwrap();
    let restart = encoded(&Message::Restart { address: Some("127.0.0.1:7100".into()) });
    let events = client_reads(&mut client, &restart);
    assert_eq!(events, [SourceClientEvent::Restart { address: Some("127.0.0.1:7100".into()) }]);
}

#[test]
fn confirmed_hello_stays_unanswered_above_the_parallelism() {
    let mut config = SourceServerConfig::new(Cookie::new(COOKIE));
    config.hold_ok = true;
    let mut server = SourceServer::new(config, NOW);
    let mut burst = hello("0.0.1", COOKIE);
    burst.extend_from_slice(&notify(7, "name", None));
    server_reads(&mut server, &burst).unwrap();
    assert_eq!((server_says(&mut server), server.wants_input()), (String::new(), false));
    server.accept();
    assert_eq!(server_says(&mut server), "OK 500");
    server.handle_input(NOW).unwrap();
    assert!(matches!(server.poll_event(), Some(SourceServerEvent::Notify { .. })));

    let mut client = SourceClient::new(SourceClientConfig::new(Cookie::new(COOKIE), "p", "i"), NOW).unwrap();
    client.handle_timeout(NOW.after(29_999)).unwrap();
    assert_eq!(client.handle_timeout(NOW.after(30_000)), Err(SourceClientError::HandshakeTimeout));
}

#[test]
fn confirmed_a_body_of_16384_is_accepted_and_16385_ends_in_silence() {
    for (length, accepted) in [(16_384, true), (16_385, false)] {
        let mut server = server(10, 2);
        open_stream(&mut server, S, None);
        let result = server_reads(&mut server, &data(7, 1, &"x".repeat(length - 27)));
        assert_eq!(result.is_ok(), accepted);
        assert_eq!(server_says(&mut server), "");
    }
}

#[test]
fn confirmed_what_kills_a_worker_ends_the_session_with_its_name() {
    let mut server = server(10, 2);
    let error = server_reads(&mut server, &notify(7, "", None)).unwrap_err();
    assert_eq!(error, SourceServerError::EmptyName { stream: S });
    let mut length = support::server(10, 2);
    let error = server_reads(&mut length, &[0xff; 4]).unwrap_err();
    let large = FrameError::TooLarge { length: u32::MAX, limit: SOURCE_FRAME_LIMIT };
    assert_eq!(error, SourceServerError::Frame(large));
    // Ours sends neither.
    let mut client = client(10);
    assert_eq!(client.open(S, b"", None, NOW), Err(StreamError::EmptyName { stream: S }));
}

#[test]
fn confirmed_during_a_rollback_notify_is_refused_and_records_are_discarded() {
    let mut server = server(10, 2);
    open_stream(&mut server, S, None);
    server.set_rolling_back(true);
    let mut burst = data(7, 1, "x");
    burst.extend_from_slice(&notify(8, "other", Some(3)));
    assert_eq!(server_reads(&mut server, &burst).unwrap(), []);
    assert_eq!(server_says(&mut server), "NOTIFY_ACK false 8 3");
    assert_eq!(server.counters().discarded, 1);
    server.set_swallowing(true);
    let credits = server.core().credits();
    assert_eq!(server_reads(&mut server, &burst).unwrap(), []);
    assert_eq!((server_says(&mut server), server.core().credits()), (String::new(), credits));
    server.restart(Some("127.0.0.1:7100"));
    assert_eq!(server_says(&mut server), "RESTART 127.0.0.1:7100");
}

#[test]
fn confirmed_a_refused_notify_is_repeated_by_a_timer_with_growing_pauses() {
    let mut client = client(100);
    client.open(S, b"name", Some(4), NOW).unwrap();
    let mut now = NOW;
    let refused = encoded(&Message::NotifyAck { success: false, stream: S, position: Some(4) });
    for pause in [250, 500, 1_000, 2_000, 2_000] {
        assert_eq!(describe(&client.poll_output().unwrap()), "NOTIFY 7 name 4");
        client.input().extend_from_slice(&refused);
        client.handle_input(now).unwrap();
        assert_eq!(client.poll_event(), Some(SourceClientEvent::Refused { stream: S }));
        assert_eq!(client.poll_timeout(), Some(now.after(pause)));
        now = now.after(pause);
        client.handle_timeout(now).unwrap();
    }
    client.end(S, now).unwrap();
    client.poll_output().unwrap();
    client.input().extend_from_slice(&refused);
    client.handle_input(now).unwrap();
    assert_eq!(client.poll_event(), Some(SourceClientEvent::Ended { stream: S, position: None }));
}

#[test]
fn confirmed_no_cookie_in_errors_or_debug() {
    let mut client = client(10);
    let text = format!("Bad cookie: {COOKIE}, wanted: other-secret");
    client.input().extend_from_slice(&encoded(&Message::Error { message: text.into() }));
    let error = client.handle_input(NOW).unwrap_err();
    assert_eq!(error, SourceClientError::CookieRefused);
    assert_eq!(error.reaction(), Reaction::Report);
    let shown = format!("{error} {error:?} {client:?} {:?} {:?}", sink(), server(5, 1));
    assert!(!shown.contains(COOKIE) && !shown.contains("other-secret"), "{shown}");
    let mut echo = support::client(10);
    let text = format!("something about {COOKIE}");
    echo.input().extend_from_slice(&encoded(&Message::Error { message: text.into() }));
    let error = echo.handle_input(NOW).unwrap_err();
    assert_eq!(error.to_string(), "Wallaroo ended the session: something about (cookie)");
}

#[test]
fn confirmed_an_acknowledgement_of_what_was_never_sent_permits_nothing() {
    let mut client = client(10);
    client_opens(&mut client, 7, Some(5));
    client.send(S, std::iter::once(record(6, "x"))).unwrap();
    client.input().extend_from_slice(&ack(0, &[(9, Some(1)), (7, Some(7))]));
    let error = client.handle_input(NOW).unwrap_err();
    let beyond = SourceClientError::AcknowledgedBeyondSent { stream: S, position: 7, sent: Some(6) };
    assert_eq!(error, beyond);
}

#[test]
fn confirmed_records_go_out_behind_control_frames_and_only_on_credits() {
    let mut client = client(0);
    client.open(S, b"name", None, NOW).unwrap();
    assert_eq!(client.poll_output(), None);
    client_reads(&mut client, &ack(3, &[]));
    assert_eq!(describe(&client.poll_output().unwrap()), "NOTIFY 7 name NONE");
    let opened = encoded(&Message::NotifyAck { success: true, stream: S, position: None });
    client_reads(&mut client, &opened);
    assert_eq!(client.send(S, (1..10).map(|id| record(id, "x"))), Ok(2));
    assert_eq!(client.send(S, (3..10).map(|id| record(id, "x"))), Ok(0));
}
