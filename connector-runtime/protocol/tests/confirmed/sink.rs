//! Sink connections.

use crate::support::{self, *};
use wallaroo_protocol::message::Message;
use wallaroo_protocol::two_phase::TwoPhase;
use wallaroo_protocol::*;

fn decide(transaction: &str, commit: bool) -> SinkServerEvent {
    SinkServerEvent::Decide { transaction: transaction.to_owned().into(), commit }
}

/// A sink with `committed` bytes behind the intro.
fn sink_at(committed: u64) -> SinkServer {
    let mut sink = sink();
    sink_intro(&mut sink, WorkerState { committed, received: committed, pending: None });
    sink
}

/// The vote on a PHASE1.
fn vote(sink: &mut SinkServer, wire: &[u8]) -> bool {
    let events = sink_reads(sink, wire).unwrap();
    let [SinkServerEvent::Prepare { vote, .. }] = &events[..] else { panic!("{events:?}") };
    *vote
}

#[test]
fn confirmed_the_intro_comes_in_one_burst_and_ok_is_not_awaited() {
    let config = SinkClientConfig::new(Cookie::new(COOKIE), "app", "worker-0");
    let mut worker = SinkClient::new(config, NOW).unwrap();
    let intro = worker.poll_output().unwrap();
    assert_eq!(
        describe(&intro),
        "HELLO v0.0.1 Dragons-Love-Tacos app worker-0 NOTIFY 1 app-w-worker-0-id-1 0 ListUncommitted { rtag: 77778 }"
    );
    let mut sink = SinkServer::new(SinkServerConfig::new(Cookie::new(COOKIE)), NOW);
    sink.input().extend_from_slice(&intro);
    sink.handle_input(NOW).unwrap();
    assert!(!sink.wants_input());
    sink.accept(WorkerState::default(), NOW).unwrap();
    let answers = sink.poll_output().unwrap();
    // Without OK a worker gets along.
    let events = worker_reads(&mut worker, &answers[9..]).unwrap();
    assert_eq!(events, [SinkClientEvent::Ready]);
}

#[test]
fn confirmed_a_lost_decision_comes_on_the_next_connection() {
    for commit in [true, false] {
        let mut sink = sink();
        let pending = Pending { transaction: "t".into(), vote: true, start: 10, end: 15 };
        let state = WorkerState { committed: 10, received: 15, pending: Some(pending) };
        assert!(sink_intro(&mut sink, state).ends_with("transactions: [b\"t\"] }"));
        assert_eq!(sink_reads(&mut sink, &phase2("t", commit)).unwrap(), [decide("t", commit)]);
        assert_eq!(sink_says(&mut sink), "", "a decision has no answer");
        let next = if commit { 15 } else { 10 };
        assert_eq!((sink.core().committed(), sink.core().received()), (next, next));
        let events = sink_reads(&mut sink, &data(1, next, "next")).unwrap();
        assert!(matches!(&events[..], [SinkServerEvent::Data(_)]), "{events:?}");
    }
}

#[test]
fn confirmed_the_point_of_reference_of_notify_is_ignored() {
    let mut sink = sink();
    sink.accept(WorkerState { committed: 657, received: 657, pending: None }, NOW).unwrap();
    sink.input().extend_from_slice(&notify(1, "T", Some(1_053)));
    sink.handle_input(NOW).unwrap();
    assert_eq!(sink_says(&mut sink), "OK 500 NOTIFY_ACK true 1 657");
}

#[test]
fn confirmed_replayed_output_starts_at_the_last_commit() {
    let mut sink = sink_at(100);
    sink_reads(&mut sink, &data(1, 100, "abc")).unwrap();
    assert!(vote(&mut sink, &phase1("t", 100, 103)));
    sink.voted();
    sink_reads(&mut sink, &phase2("t", true)).unwrap();
    // The next connection.
    let mut sink = sink_at(103);
    let events = sink_reads(&mut sink, &data(1, 103, "d")).unwrap();
    assert!(matches!(&events[..], [SinkServerEvent::Data(run)] if run.first_id() == 103));
}

#[test]
fn table_4_5_every_rule_of_the_vote() {
    let two = |stream: u64| two_phase::Range { stream: StreamId(stream), start: 100, end: 103 };
    let ranges = |ranges| inner(&TwoPhase::Phase1 { transaction: "t".into(), ranges });
    let cases = [
        (ranges(vec![two(1)]), true),
        (ranges(vec![two(2)]), false),
        (ranges(vec![two(1), two(1)]), false),
        (ranges(Vec::new()), false),
        (phase1("t", 99, 103), false),
        (phase1("t", 101, 103), false),
        (phase1("t", 100, 102), false),
        (phase1("t", 100, 104), false),
        (phase1("t", 100, 99), false),
    ];
    for (wire, wanted) in cases {
        let mut sink = sink_at(100);
        sink_reads(&mut sink, &data(1, 100, "abc")).unwrap();
        assert_eq!(vote(&mut sink, &wire), wanted, "{}", describe(&wire));
        sink.voted();
        let reply = format!("Reply {{ transaction: b\"t\", commit: {wanted} }}");
        assert_eq!(sink_says(&mut sink), reply);
    }
}

#[test]
fn table_4_6_gaps_and_overlaps_poison_until_the_abort() {
    for (offset, payload) in [(101, "gap"), (98, "overlap")] {
        let mut sink = sink_at(100);
        let events = sink_reads(&mut sink, &data(1, offset, payload)).unwrap();
        assert_eq!(events, [SinkServerEvent::Poisoned { expected: 100, got: offset }]);
        // Nothing is taken any more, and it is said once.
        assert_eq!(sink_reads(&mut sink, &data(1, 100, "abc")).unwrap(), []);
        assert!(!vote(&mut sink, &phase1("t", 100, 100)));
        sink.voted();
        assert_eq!(sink_reads(&mut sink, &phase2("t", false)).unwrap(), [decide("t", false)]);
        let events = sink_reads(&mut sink, &data(1, 100, "abc")).unwrap();
        assert!(matches!(&events[..], [SinkServerEvent::Data(_)]), "{events:?}");
        assert!(vote(&mut sink, &phase1("u", 100, 103)));
    }
}

#[test]
fn table_4_6_errors_and_unknown_transactions() {
    let mut sink = sink_at(100);
    let unknown = SinkServerEvent::UnknownDecision { transaction: "old".into(), commit: true };
    assert_eq!(sink_reads(&mut sink, &phase2("old", true)).unwrap(), [unknown]);
    vote(&mut sink, &phase1("t", 100, 100));
    let mut early = sink.clone();
    assert_eq!(sink_reads(&mut early, &phase2("t", true)), Err(SinkServerError::DecisionBeforeVote));
    sink.voted();
    let mut data_between = sink.clone();
    let error = sink_reads(&mut data_between, &data(1, 100, "x")).unwrap_err();
    assert_eq!(error, SinkServerError::DataWhilePending { offset: 100 });
    let error = sink_reads(&mut sink, &phase1("u", 100, 100)).unwrap_err();
    assert_eq!(error, SinkServerError::Phase1WhilePending);

    let mut no = sink_at(100);
    assert!(!vote(&mut no, &phase1("t", 100, 101)));
    no.voted();
    let error = sink_reads(&mut no, &phase2("t", true)).unwrap_err();
    assert!(error.is_fatal(), "{error}");
}

#[test]
fn table_4_6_list_is_answered_at_any_time_and_stream_ids_other_than_1_are_errors() {
    let mut sink = sink_at(0);
    let list = inner(&TwoPhase::ListUncommitted { rtag: 5 });
    sink_reads(&mut sink, &list).unwrap();
    assert_eq!(sink_says(&mut sink), "ReplyUncommitted { rtag: 5, transactions: [] }");
    let mut other = sink.clone();
    let bad = Err(SinkServerError::BadStream { stream: StreamId(2) });
    assert_eq!(sink_reads(&mut other, &data(2, 0, "x")), bad);
    assert_eq!(sink_reads(&mut sink, &notify(2, "x", None)), bad);
    // A list before NOTIFY would be answered out of order.
    let mut early = support::sink();
    early.accept(WorkerState::default(), NOW).unwrap();
    assert!(sink_reads(&mut early, &list).is_err());
}

#[test]
fn table_4_9_what_a_sink_may_not_send() {
    let ready = || {
        let mut worker = worker();
        worker_reads(&mut worker, &intro_answers(&[])).unwrap();
        worker
    };
    let out_of_order = |frame| SinkClientError::OutOfOrder { frame };
    let cases = [
        (encoded(&Message::Ok { credits: 5 }), out_of_order("OK"), "ERROR Bad msg @ line 282"),
        (
            encoded(&Message::NotifyAck { success: true, stream: StreamId(1), position: None }),
            out_of_order("NOTIFY_ACK"),
            "ERROR Bad msg",
        ),
        (
            encoded(&Message::NotifyAck { success: false, stream: StreamId(1), position: None }),
            SinkClientError::NotifyRefused,
            "ERROR Got NotifyAck success=false",
        ),
        (encoded(&Message::Restart { address: None }), SinkClientError::RestartFromSink, ""),
        (
            encoded(&Message::Error { message: "no thanks".into() }),
            SinkClientError::Peer("no thanks".into()),
            "ERROR Protocol error: Sink sent us ErrorMsg: %sno thanks",
        ),
        (notify(1, "x", None), SinkClientError::WrongDirection { frame: "NOTIFY" }, "ERROR Bad msg"),
        (data(1, 0, "x"), SinkClientError::BadMessage { stream: StreamId(1), length: 1 }, "ERROR Bad msg"),
        (data(0, 0, ""), SinkClientError::BadMessage { stream: StreamId(0), length: 0 }, "ERROR Bad msg"),
    ];
    for (wire, error, said) in cases {
        let mut worker = ready();
        assert_eq!(worker_reads(&mut worker, &wire).unwrap_err(), error);
        assert_eq!(worker.poll_output().map_or(String::new(), |out| describe(&out)), said, "{error}");
        assert!(worker.is_over());
    }
    let mut tolerant = ready();
    assert_eq!(worker_reads(&mut tolerant, &eos(1)).unwrap(), []);
    let mut poor = worker();
    let error = worker_reads(&mut poor, &encoded(&Message::Ok { credits: 1 })).unwrap_err();
    assert_eq!(error, SinkClientError::TooFewCredits { credits: 1 });
}

#[test]
fn a_worker_s_session_refuses_what_a_worker_does_not_do() {
    let mut worker = worker();
    assert_eq!(worker.phase1(b"t", 0, 0), Err(SinkMisuse::NotReady));
    worker_reads(&mut worker, &intro_answers(&[])).unwrap();
    assert_eq!(worker.send(0, [b"row".as_slice(), b"", b"s"]), Ok(4));
    worker.phase1(b"t", 0, 4).unwrap();
    assert_eq!(worker.send(4, [b"x".as_slice()]), Err(SinkMisuse::OutputWhileVoting));
    assert_eq!(worker.phase2(b"t", true), Err(SinkMisuse::NothingToDecide));
    let vote = inner(&TwoPhase::Reply { transaction: "t".into(), commit: true });
    let events = worker_reads(&mut worker, &vote).unwrap();
    assert_eq!(events, [SinkClientEvent::Vote { transaction: "t".into(), commit: true }]);
    worker.phase2(b"t", true).unwrap();
    assert!(worker.is_ready());
    let mut listed = support::worker();
    let events = worker_reads(&mut listed, &intro_answers(&["t"])).unwrap();
    assert_eq!(events, [SinkClientEvent::Uncommitted { transactions: vec!["t".into()] }]);
    assert_eq!(listed.phase2(b"other", true), Err(SinkMisuse::NothingToDecide));
    listed.phase2(b"t", false).unwrap();
    assert!(listed.is_ready());
}

#[test]
fn a_peer_that_connects_to_a_sink_and_stays_silent_is_dropped() {
    let mut silent = SinkServer::new(SinkServerConfig::new(Cookie::new(COOKIE)), NOW);
    let deadline = silent.poll_timeout().unwrap();
    silent.handle_timeout(NOW).unwrap();
    assert_eq!(silent.handle_timeout(deadline), Err(SinkServerError::HandshakeTimeout));
    let mut busy = sink_at(0);
    assert_eq!(busy.poll_timeout(), None);
    busy.handle_timeout(deadline).unwrap();
}
