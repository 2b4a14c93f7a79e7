//! The pitfalls of §7 that concern a session, each with the behaviour that §7 asks for.

#![allow(clippy::unwrap_used)] // a test file

mod support;

use bytes::Bytes;
use support::*;
use wallaroo_protocol::message::{DecodeError, Message};
use wallaroo_protocol::two_phase::TwoPhase;
use wallaroo_protocol::*;

const S: StreamId = StreamId(7);

fn opened(position: Option<u64>) -> SourceClientEvent {
    SourceClientEvent::Opened { stream: S, position }
}

fn notify_ack(success: bool, position: Option<u64>) -> bytes::BytesMut {
    encoded(&Message::NotifyAck { success, stream: S, position })
}

fn said(client: &mut SourceClient) -> String {
    client.poll_output().map_or(String::new(), |out| describe(&out))
}

#[test]
fn pitfall_01_each_side_has_its_own_version_string() {
    let mut server = SourceServer::new(SourceServerConfig::new(Cookie::new(COOKIE)), NOW);
    let error = server_reads(&mut server, &hello("v0.0.1", COOKIE)).unwrap_err();
    assert_eq!(error, SourceServerError::BadVersion { got: "v0.0.1".into() });
    assert_eq!(server_says(&mut server), "ERROR Unknown protocol version: v0.0.1");
    let mut sink = SinkServer::new(SinkServerConfig::new(Cookie::new(COOKIE)), NOW);
    let error = sink_reads(&mut sink, &hello("0.0.1", COOKIE)).unwrap_err();
    assert_eq!(error, SinkServerError::BadVersion { got: "0.0.1".into() });
    assert_eq!(sink_says(&mut sink), "ERROR Unknown protocol version: 0.0.1");
}

#[test]
fn pitfall_02_none_is_nothing_and_never_a_position() {
    let mut client = client(10);
    client_opens(&mut client, 7, None);
    client.send(S, [record(1, "a"), record(2, "b")].into_iter()).unwrap();
    let events = client_reads(&mut client, &ack(0, &[(7, None)]));
    assert_eq!(events, [SourceClientEvent::Checkpoint]);
    let events = client_reads(&mut client, &ack(0, &[(7, Some(1))]));
    assert_eq!(events[1..], [SourceClientEvent::Acknowledged { stream: S, position: 1 }]);
    // NONE again is no step back either.
    assert_eq!(client_reads(&mut client, &ack(0, &[(7, None)])), [SourceClientEvent::Checkpoint]);
    let reserved = client.send(S, std::iter::once(record(u64::MAX, "x"))).unwrap_err();
    assert_eq!(reserved, SendError::ReservedId { index: 0, stream: S, id: u64::MAX });
}

#[test]
fn pitfall_03_an_echo_of_the_own_position_is_accepted_and_zero_says_nothing() {
    for (echo, position) in [(Some(0), None), (Some(9), Some(9)), (None, None)] {
        let mut client = client(10);
        client.open(S, b"name", None, NOW).unwrap();
        assert_eq!(said(&mut client), "NOTIFY 7 name NONE");
        assert_eq!(client_reads(&mut client, &notify_ack(true, echo)), [opened(position)]);
    }
    let mut client = client(10);
    client_opens(&mut client, 7, Some(9));
    // Wallaroo would drop it silently.
    let error = client.send(S, std::iter::once(record(9, "x"))).unwrap_err();
    assert_eq!(error, SendError::NotIncreasing { index: 0, stream: S, id: 9, last: 9 });
    assert_eq!(client.send(S, std::iter::once(record(10, "x"))), Ok(1));
    let zero = client.send(S, std::iter::once(record(0, "x"))).unwrap_err();
    assert_eq!(zero, SendError::ReservedId { index: 0, stream: S, id: 0 });
}

#[test]
fn pitfall_04_a_session_is_given_up_with_what_was_acked_and_keeps_what_was_seen() {
    let mut server = server(500, 50);
    open_stream(&mut server, S, None);
    server_reads(&mut server, &data(7, 1, "a")).unwrap();
    server.barrier();
    server_reads(&mut server, &data(7, 2, "b")).unwrap();
    // The driver chooses: HEAD gives streams back with `acked`, so record 2 will be processed twice.
    let stream = server.stream(S).unwrap();
    assert_eq!((stream.acked, stream.seen), (Some(1), Some(2)));
}

#[test]
fn pitfall_05_ack_is_inclusive() {
    let mut client = client(10);
    client_opens(&mut client, 7, None);
    client.send(S, [record(3, "a"), record(8, "b")].into_iter()).unwrap();
    client.end(S, NOW).unwrap();
    let events = client_reads(&mut client, &ack(3, &[(7, Some(8))]));
    let ended = SourceClientEvent::Ended { stream: S, position: Some(8) };
    assert_eq!(events[1..], [SourceClientEvent::Acknowledged { stream: S, position: 8 }, ended]);
}

#[test]
fn pitfall_06_eos_has_eight_bytes_and_longer_ones_are_accepted() {
    let mut client = client(10);
    client_opens(&mut client, 7, None);
    client.end(S, NOW).unwrap();
    assert_eq!(hex(&client.poll_output().unwrap()), "00000009080000000000000007");
    let mut server = server(10, 2);
    open_stream(&mut server, S, None);
    let events = server_reads(&mut server, &unhex("000000110800000000000000070000000000000063")).unwrap();
    assert_eq!(events, [SourceServerEvent::Eos { stream: S }]);
}

#[test]
fn pitfall_07_eos_costs_a_credit_on_both_sides_and_waits_for_one() {
    let mut client = client(2);
    client_opens(&mut client, 7, None);
    assert_eq!(client.send(S, [record(1, "a"), record(2, "b")].into_iter()), Ok(1));
    client.end(S, NOW).unwrap();
    client.poll_output();
    assert_eq!(client.credits(), 0);
    client_reads(&mut client, &ack(2, &[]));
    assert_eq!(said(&mut client), "EOS 7");
    assert_eq!(client.credits(), 1);
    let mut server = server(6, 2);
    open_stream(&mut server, S, None);
    assert_eq!(server.core().credits(), 5);
    server_reads(&mut server, &eos(7)).unwrap();
    assert_eq!(server.core().credits(), 4);
}

#[test]
fn pitfall_07_a_server_tolerates_a_client_that_does_not_charge_eos_and_says_so_once() {
    let mut server = server(3, 0);
    open_stream(&mut server, S, None);
    let mut burst = data(7, 1, "a");
    burst.extend_from_slice(&data(7, 2, "b"));
    burst.extend_from_slice(&eos(7));
    let events = server_reads(&mut server, &burst).unwrap();
    let overrun = SourceServerEvent::Tolerated(Tolerated::CreditsOverrun { spent: 4, granted: 3 });
    assert_eq!(events.iter().filter(|event| **event == overrun).count(), 1);
    assert!(events.contains(&SourceServerEvent::Eos { stream: S }));
}

#[test]
fn pitfall_08_restart_ends_the_session_whatever_its_form() {
    for (wire, address) in [
        ("0000000107", None),
        ("000000050700000000", None),
        ("00000013070000000e3132372e302e302e313a35353535", Some("127.0.0.1:5555")),
    ] {
        let mut client = client(10);
        let events = client_reads(&mut client, &unhex(wire));
        assert_eq!(events, [SourceClientEvent::Restart { address: address.map(str::to_owned) }]);
        assert!(client.is_over());
        // Nothing behind it counts.
        assert_eq!(client_reads(&mut client, &ack(5, &[])), []);
        assert_eq!((client.credits(), client.poll_timeout()), (0, None));
    }
    let ipv6 = restart_target("worker-0", 7100, Some("[fd00::1]:7101")).unwrap();
    assert_eq!(ipv6, ("fd00::1".to_owned(), 7101));
}

#[test]
fn pitfall_09_bad_fsm_state_is_retried_and_not_reported_as_a_bug() {
    let mut client = client(10);
    client.input().extend_from_slice(&encoded(&Message::Error { message: "Bad protocol FSM state".into() }));
    let error = client.handle_input(NOW).unwrap_err();
    assert_eq!(error.reaction(), Reaction::Reconnect);
    // The worker's side of it: a worker that leaves its cluster.
    let mut server = server(10, 2);
    server.set_shrinking();
    assert!(server_reads(&mut server, &notify(7, "name", None)).is_err());
    assert_eq!(server_says(&mut server), "ERROR Bad protocol FSM state");
}

#[test]
fn pitfall_10_a_sink_finishes_the_intro_on_every_connection() {
    // Two sessions of one worker at once; each answers all three frames, in order.
    let (mut first, mut second) = (sink(), sink());
    for sink in [&mut first, &mut second] {
        let answers = sink_intro(sink, WorkerState::default());
        assert_eq!(answers, "OK 500 NOTIFY_ACK true 1 0 ReplyUncommitted { rtag: 77778, transactions: [] }");
    }
}

fn state(committed: u64, pending: Option<(&str, bool, u64)>) -> WorkerState {
    let pending = pending.map(|(transaction, vote, end)| Pending {
        transaction: transaction.to_owned().into(),
        vote,
        start: committed,
        end,
    });
    let received = pending.as_ref().filter(|pending| pending.vote).map_or(committed, |pending| pending.end);
    WorkerState { committed, received, pending }
}

#[test]
fn pitfall_11_a_fresh_cluster_is_recognised_by_data_at_zero() {
    let mut sink = sink();
    sink_intro(&mut sink, state(100, None));
    let mut burst = data(1, 0, "new");
    burst.extend_from_slice(&data(1, 3, "er"));
    let fresh = SinkServerEvent::FreshCluster { close_first: false, in_doubt: None };
    assert_eq!(sink_reads(&mut sink, &burst).unwrap(), [fresh]);
    assert!(!sink.wants_input());
    sink.accept(WorkerState::default(), NOW).unwrap();
    let Some(SinkServerEvent::Data(run)) = sink.poll_event() else { panic!("no data") };
    assert_eq!((run.first_id(), run.len(), run.payload_bytes()), (0, 2, 5));
    assert_eq!(sink_says(&mut sink), "", "the intro is not repeated");
    let prepare = sink_reads(&mut sink, &phase1("t:c_id=1", 0, 5)).unwrap();
    assert!(matches!(&prepare[..], [SinkServerEvent::Prepare { vote: true, .. }]), "{prepare:?}");
}

#[test]
fn pitfall_11_a_fresh_cluster_is_recognised_by_a_phase_1_at_zero() {
    let mut sink = sink();
    sink_intro(&mut sink, state(100, None));
    let fresh = SinkServerEvent::FreshCluster { close_first: false, in_doubt: None };
    assert_eq!(sink_reads(&mut sink, &phase1("t:c_id=4", 0, 0)).unwrap(), [fresh]);
    sink.accept(WorkerState::default(), NOW).unwrap();
    let prepare = SinkServerEvent::Prepare { transaction: "t:c_id=4".into(), start: 0, end: 0, vote: true };
    assert_eq!(sink.poll_event(), Some(prepare));
    sink.voted();
    assert_eq!(sink_says(&mut sink), "Reply { transaction: b\"t:c_id=4\", commit: true }");
}

#[test]
fn pitfall_11_a_fresh_cluster_beside_a_listed_transaction_needs_a_new_connection() {
    for committed in [0, 100] {
        for offset in [0, 100, 110] {
            let mut sink = sink();
            let answers = sink_intro(&mut sink, state(committed, Some(("old", true, committed + 10))));
            assert!(answers.ends_with("transactions: [b\"old\"] }"), "{answers}");
            let events = sink_reads(&mut sink, &data(1, offset, "new")).unwrap();
            let in_doubt = Some(Bytes::from("old"));
            assert_eq!(events, [SinkServerEvent::FreshCluster { close_first: true, in_doubt }]);
            assert!(sink.is_over());
        }
    }
}

#[test]
fn pitfall_12_an_ack_from_a_sink_is_fatal_and_ours_sends_none() {
    let mut worker = worker();
    worker_reads(&mut worker, &intro_answers(&[])).unwrap();
    assert_eq!(worker_reads(&mut worker, &ack(1, &[])), Err(SinkClientError::AckFromSink));
    assert_eq!(describe(&worker.poll_output().unwrap()), "ERROR Bad External Connection State: F");
    // EOS, which aloc_sink answers with ACK, has no answer.
    let mut sink = sink();
    sink_intro(&mut sink, WorkerState::default());
    assert_eq!(sink_reads(&mut sink, &eos(1)).unwrap(), []);
    assert_eq!(sink_says(&mut sink), "");
}

#[test]
fn pitfall_13_a_reply_follows_phase_1_once_and_nothing_else() {
    let mut sink = sink();
    sink_intro(&mut sink, WorkerState::default());
    sink_reads(&mut sink, &data(1, 0, "row")).unwrap();
    sink_reads(&mut sink, &phase1("t", 0, 3)).unwrap();
    assert_eq!(sink_says(&mut sink), "", "no vote before it is durable");
    sink.voted();
    sink.voted();
    assert_eq!(sink_says(&mut sink), "Reply { transaction: b\"t\", commit: true }");
    let events = sink_reads(&mut sink, &phase2("t", true)).unwrap();
    assert_eq!(events, [SinkServerEvent::Decide { transaction: "t".into(), commit: true }]);
    sink.voted();
    assert_eq!(sink_says(&mut sink), "");
    assert_eq!(sink.core().committed(), 3);
}

#[test]
fn pitfall_14_booleans() {
    let mut client = client(10);
    client.open(S, b"name", None, NOW).unwrap();
    let events = client_reads(&mut client, &unhex("00000012040200000000000000070000000000000001"));
    assert_eq!(events, [SourceClientEvent::Refused { stream: S }]);
    let mut vote = inner(&TwoPhase::Reply { transaction: "t".into(), commit: true });
    let last = vote.len() - 1;
    vote[last] = 2;
    let mut worker = worker();
    worker_reads(&mut worker, &intro_answers(&[])).unwrap();
    worker.phase1(b"t", 0, 0).unwrap();
    let error = worker_reads(&mut worker, &vote).unwrap_err();
    assert_eq!(error, SinkClientError::BadInner(DecodeError::NotABool { field: "commit", value: 2 }));
}

#[test]
fn pitfall_15_a_record_above_the_limit_is_refused_before_anything_of_it_is_sent() {
    let mut client = client(10);
    client_opens(&mut client, 7, None);
    let (fits, large) = ("x".repeat(16_357), "x".repeat(16_358));
    let records = [record(1, &fits), record(2, &large), record(3, "after")];
    let error = client.send(S, records.into_iter()).unwrap_err();
    assert_eq!(error, SendError::TooLarge { index: 1, stream: S, id: 2, size: 16_385, limit: 16_384 });
    assert_eq!(error.index(), Some(1));
    assert_eq!(client.output_len(), 4 + 16_384);
    assert_eq!(client.credits(), 8);
    // Skip it and go on.
    assert_eq!(client.send(S, records.into_iter().skip(2)), Ok(1));
    let mut server = server(10, 2);
    open_stream(&mut server, S, None);
    let events = server_reads(&mut server, &client.poll_output().unwrap()).unwrap();
    assert!(matches!(&events[..], [SourceServerEvent::Records(run)] if run.len() == 2), "{events:?}");
    // A key counts as well.
    let keyed = OutRecord { id: 4, time: 0, key: b"k", payload: fits.as_bytes() };
    assert!(matches!(client.send(S, std::iter::once(keyed)), Err(SendError::TooLarge { size: 16_385, .. })));
}

#[test]
fn pitfall_16_a_frame_of_length_zero_ends_every_session() {
    let zero = [0; 4];
    let mut server = server(10, 2);
    assert_eq!(server_reads(&mut server, &zero), Err(SourceServerError::Frame(FrameError::Zero)));
    let mut client = client(10);
    client.input().extend_from_slice(&zero);
    assert_eq!(client.handle_input(NOW), Err(SourceClientError::Frame(FrameError::Zero)));
    let mut sink = sink();
    sink_intro(&mut sink, WorkerState::default());
    assert_eq!(sink_reads(&mut sink, &zero), Err(SinkServerError::Frame(FrameError::Zero)));
    assert_eq!(worker_reads(&mut worker(), &zero), Err(SinkClientError::Frame(FrameError::Zero)));
}

#[test]
fn pitfall_17_what_aborts_a_worker_is_an_error_that_says_so() {
    let mut server = server(10, 2);
    let error = server_reads(&mut server, &hello("0.0.1", COOKIE)).unwrap_err();
    assert!(error.to_string().contains("a real worker would abort"), "{error}");
    assert!(server_says(&mut server).starts_with("ERROR"));

    let mut two = worker();
    let error = worker_reads(&mut two, &intro_answers(&["a", "b"])).unwrap_err();
    assert_eq!(error, SinkClientError::SeveralUncommitted { count: 2 });
    assert!(error.kills_worker());

    let mut unasked = worker();
    worker_reads(&mut unasked, &intro_answers(&[])).unwrap();
    let vote = inner(&TwoPhase::Reply { transaction: "t".into(), commit: true });
    let error = worker_reads(&mut unasked, &vote).unwrap_err();
    assert!(error.kills_worker() && error.to_string().contains("a real worker would abort"), "{error}");

    let mut wrong = worker();
    worker_reads(&mut wrong, &intro_answers(&[])).unwrap();
    assert!(worker_reads(&mut wrong, &phase2("t", true)).unwrap_err().kills_worker());
}

#[test]
fn pitfall_17_an_empty_range_that_matches_is_never_voted_down() {
    let mut sink = sink();
    sink_intro(&mut sink, WorkerState::default());
    let events = sink_reads(&mut sink, &phase1("t:c_id=1", 0, 0)).unwrap();
    assert!(matches!(&events[..], [SinkServerEvent::Prepare { vote: true, start: 0, end: 0, .. }]));
}

#[test]
fn pitfall_18_key_and_time_are_sent_all_the_same() {
    let mut client = client(10);
    client_opens(&mut client, 7, None);
    let sent = OutRecord { id: 1, time: -5, key: b"key", payload: b"payload" };
    client.send(S, std::iter::once(sent)).unwrap();
    let mut server = server(10, 2);
    open_stream(&mut server, S, None);
    let events = server_reads(&mut server, &client.poll_output().unwrap()).unwrap();
    let [SourceServerEvent::Records(run)] = &events[..] else { panic!("{events:?}") };
    let got = RunRecord { id: 1, time: -5, key: b"key", payload: b"payload" };
    assert_eq!(run.iter().collect::<Vec<_>>(), [got]);
}

#[test]
fn pitfall_19_one_notify_is_outstanding_per_stream() {
    let mut client = client(10);
    client.open(S, b"name", None, NOW).unwrap();
    assert_eq!(client.open(S, b"name", None, NOW), Err(StreamError::AlreadyOpen { stream: S }));
    assert_eq!(said(&mut client), "NOTIFY 7 name NONE");
    assert_eq!(client_reads(&mut client, &notify_ack(true, Some(4))), [opened(Some(4))]);
    // An answer that nobody waits for changes nothing.
    assert_eq!(client_reads(&mut client, &notify_ack(false, Some(9))), []);
    assert!(client.core().is_open(S));
    // The worker's side: false at once, then true.
    let mut server = server(10, 2);
    server_reads(&mut server, &notify(7, "name", Some(3))).unwrap();
    server_reads(&mut server, &notify(7, "name", Some(3))).unwrap();
    server.notify_ack(S, true, None);
    assert_eq!(server_says(&mut server), "NOTIFY_ACK false 7 3 NOTIFY_ACK true 7 NONE");
}

#[test]
fn pitfall_20_a_notify_without_an_answer_times_out() {
    let mut client = client(10);
    client.open(S, b"name", None, NOW).unwrap();
    let deadline = client.poll_timeout().unwrap();
    assert_eq!(deadline, NOW.after(10_000));
    client.handle_timeout(NOW.after(9_999)).unwrap();
    let error = client.handle_timeout(deadline).unwrap_err();
    assert_eq!(error, SourceClientError::NotifyTimeout { stream: S });
    assert!(client.is_over());
    // The worker's side of it.
    let mut server = server(10, 2);
    server_reads(&mut server, &notify(7, "name", None)).unwrap();
    server.ignore_notify(S);
    server.notify_ack(S, true, None);
    assert_eq!(server_says(&mut server), "");
}

#[test]
fn pitfall_21_only_the_order_of_ids_counts() {
    let mut client = client(10);
    client_opens(&mut client, 7, None);
    // Offsets behind a record, offsets + 1, numbers with holes: all the same.
    let ids = [1, 2, 300, 4_096, u64::MAX - 1];
    assert_eq!(client.send(S, ids.map(|id| record(id, "x")).into_iter()), Ok(5));
    let events = client_reads(&mut client, &ack(0, &[(7, Some(300))]));
    assert_eq!(events[1..], [SourceClientEvent::Acknowledged { stream: S, position: 300 }]);
}

#[test]
fn pitfall_23_names_are_counted_in_bytes() {
    let left = TwoPhase::WorkersLeft { rtag: 7, workers: vec!["实例".into()] };
    let mut sink = sink();
    sink_intro(&mut sink, WorkerState::default());
    let events = sink_reads(&mut sink, &inner(&left)).unwrap();
    assert_eq!(events, [SinkServerEvent::WorkersLeft { workers: vec!["实例".into()] }]);
}

#[test]
fn pitfall_24_ok_leaves_in_one_piece() {
    let mut server = SourceServer::new(SourceServerConfig::new(Cookie::new(COOKIE)), NOW);
    server_reads(&mut server, &hello("0.0.1", COOKIE)).unwrap();
    assert_eq!(server.poll_output().unwrap().len(), 9);
    assert_eq!(server.poll_output(), None);
}

#[test]
fn pitfall_25_a_second_ok_ends_the_session() {
    let mut client = client(10);
    client.input().extend_from_slice(&encoded(&Message::Ok { credits: 10 }));
    let error = client.handle_input(NOW).unwrap_err();
    assert_eq!(error, SourceClientError::Unexpected { frame: "OK", phase: "after OK" });
    assert!(said(&mut client).starts_with("ERROR"));
}

#[test]
fn pitfall_28_a_sink_answers_where_aloc_sink_exits() {
    let mut wrong = SinkServer::new(SinkServerConfig::new(Cookie::new(COOKIE)), NOW);
    assert_eq!(sink_reads(&mut wrong, &hello("v0.0.1", "wrong")), Err(SinkServerError::BadCookie));
    assert_eq!(sink_says(&mut wrong), "ERROR Bad cookie");
    let mut sink = sink();
    sink_intro(&mut sink, state(10, None));
    // Published bytes again, an empty payload: both without effect.
    let mut burst = data(1, 4, "again!");
    burst.extend_from_slice(&data(1, 10, ""));
    burst.extend_from_slice(&data(1, 10, "new"));
    let events = sink_reads(&mut sink, &burst).unwrap();
    assert!(matches!(&events[..], [SinkServerEvent::Data(run)] if run.first_id() == 10), "{events:?}");
    // NOTIFY_ACK carries the durable offset.
    let mut fresh = support::sink();
    assert!(sink_intro(&mut fresh, state(10, None)).contains("NOTIFY_ACK true 1 10"));
}

#[test]
fn pitfall_30_without_resilience_the_end_is_acknowledged_at_once_and_sinks_see_data_only() {
    let mut client = client(10);
    client_opens(&mut client, 7, None);
    client.send(S, std::iter::once(record(5, "x"))).unwrap();
    assert_eq!(client_reads(&mut client, &ack(2, &[])), [], "a refill is no checkpoint");
    client.end(S, NOW).unwrap();
    let events = client_reads(&mut client, &ack(0, &[(7, Some(5))]));
    assert_eq!(events.last(), Some(&SourceClientEvent::Ended { stream: S, position: Some(5) }));

    let config = SinkServerConfig { mode: SinkMode::OnReceipt, ..SinkServerConfig::new(Cookie::new("")) };
    let mut sink = SinkServer::new(config, NOW);
    sink_intro(&mut sink, state(10, None));
    // What was lost with an earlier connection never comes: the output goes on behind the gap.
    let mut burst = data(1, 90, "a");
    burst.extend_from_slice(&data(1, 91, "b"));
    let events = sink_reads(&mut sink, &burst).unwrap();
    let [SinkServerEvent::Data(run)] = &events[..] else { panic!("{events:?}") };
    assert_eq!((run.first_id(), run.len()), (90, 2));
    // A restarted worker starts again at 0.
    let mut again = SinkServer::new(
        SinkServerConfig { mode: SinkMode::OnReceipt, ..SinkServerConfig::new(Cookie::new("")) },
        NOW,
    );
    sink_intro(&mut again, state(92, None));
    let fresh = SinkServerEvent::FreshCluster { close_first: false, in_doubt: None };
    assert_eq!(sink_reads(&mut again, &data(1, 0, "a")).unwrap(), [fresh]);
}
