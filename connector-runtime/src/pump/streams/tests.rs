//! Positions and phases of streams, without a source or a session.

use super::*;

const KEY: StreamKey = StreamKey(0);
const ID: StreamId = StreamId(77);

fn streams() -> Streams {
    Streams::new(1_000, 1_000_000)
}

fn next(streams: &Streams) -> Option<Action> {
    streams.next_action(Instant::now(), true, true, |_| false)
}

fn opened(committed: Option<Position>, answer: Option<Position>) -> Streams {
    let mut streams = streams();
    streams.opened(KEY, "topic/0".into(), ID, committed).unwrap();
    open(&mut streams, answer);
    streams
}

/// Through NOTIFY and resume; returns what the source was told.
fn open(streams: &mut Streams, answer: Option<Position>) -> ResumeFrom {
    assert!(matches!(next(streams), Some(Action::Open { .. })));
    streams.asked(KEY);
    assert_eq!(next(streams), None);
    streams.answered(ID, answer);
    let Some(Action::Resume { from, .. }) = next(streams) else { panic!("no resume") };
    streams.resumed(KEY);
    assert!(streams.sends(KEY));
    from
}

fn committable(streams: &Streams) -> Option<Position> {
    streams.get(KEY).unwrap().committable()
}

#[tokio::test]
async fn notify_proposes_nothing_without_durable_progress_and_progress_with_it() {
    let mut streams = streams();
    streams.opened(KEY, "a".into(), ID, None).unwrap();
    assert_eq!(next(&streams), Some(Action::Open { key: KEY, id: ID, proposal: None }));
    open(&mut streams, None);
    streams.sent(KEY, 3, 30, 3, 100);
    streams.acknowledge(ID, 2);
    streams.session_lost();
    assert_eq!(next(&streams), Some(Action::Open { key: KEY, id: ID, proposal: Some(2) }));
}

#[tokio::test]
async fn an_answer_decides_and_nothing_falls_back_to_the_last_acknowledgement() {
    let mut streams = opened(Some(4), None);
    streams.session_lost();
    assert_eq!(open(&mut streams, None), ResumeFrom::Committed);
    streams.sent(KEY, 3, 30, 7, 100);
    streams.acknowledge(ID, 6);
    streams.session_lost();
    assert_eq!(open(&mut streams, None), ResumeFrom::After(6));
    streams.session_lost();
    assert_eq!(open(&mut streams, Some(3)), ResumeFrom::After(3));
}

#[tokio::test]
async fn only_an_acknowledgement_permits_a_commit() {
    let mut streams = opened(None, Some(10));
    assert!(streams.commits().is_empty(), "NOTIFY_ACK is no acknowledgement");
    streams.passed(KEY, 11);
    assert!(streams.commits().is_empty(), "what is dropped behind it neither");
    streams.acknowledge(ID, 10);
    assert_eq!(streams.commits(), [(KEY, 11)]);
    streams.committed(&[(KEY, 11)]);
    streams.acknowledge(ID, 9);
    assert!(streams.commits().is_empty(), "positions never go back");
}

#[tokio::test]
async fn a_dropped_record_counts_only_when_all_before_it_is_acknowledged() {
    let mut streams = opened(None, None);
    streams.sent(KEY, 2, 20, 2, 100);
    assert!(streams.passed(KEY, 3));
    streams.acknowledge(ID, 1);
    assert_eq!(committable(&streams), Some(1));
    streams.session_lost();
    assert_eq!(committable(&streams), Some(1), "1 to 2 were sent and lost");
    open(&mut streams, Some(1));
    assert_eq!(committable(&streams), Some(1));
    streams.sent(KEY, 1, 10, 2, 100);
    assert!(!streams.passed(KEY, 3), "it is reported once");
    assert_eq!(committable(&streams), Some(1));
    streams.acknowledge(ID, 2);
    assert_eq!(committable(&streams), Some(3));
}

#[tokio::test]
async fn in_flight_returns_to_nothing_and_its_memory_stays_small() {
    let mut streams = opened(None, None);
    for n in 1..=1_000 {
        streams.sent(KEY, 1, 10, n, n * 41);
    }
    assert_eq!(streams.in_flight(), (1_000, 10_000));
    assert_eq!(streams.acknowledge(ID, 500), 495, "whole chunks of 15 records");
    streams.acknowledge(ID, 1_000);
    assert_eq!((streams.in_flight(), streams.outstanding()), ((0, 0), 0));
}

#[tokio::test(start_paused = true)]
async fn a_receipt_counts_as_acknowledgement_only_after_the_delay() {
    let delay = Duration::from_secs(1);
    let mut streams = opened(None, None);
    streams.sent(KEY, 5, 50, 5, 70);
    let start = Instant::now();
    streams.received(69, start, delay / 16);
    assert_eq!(streams.in_flight(), (5, 50), "its last byte is missing");
    streams.received(70, start, delay / 16);
    assert_eq!((streams.in_flight(), streams.outstanding()), ((0, 0), 5));
    streams.sent(KEY, 1, 10, 6, 84);
    streams.received(84, start + delay / 2, delay / 16);
    streams.settle(start + delay / 2 - Duration::from_millis(1));
    assert_eq!(committable(&streams), Some(5));
    streams.settle(start + delay / 2);
    assert_eq!((committable(&streams), streams.outstanding()), (Some(6), 0));
}

#[tokio::test]
async fn a_revoked_stream_ends_at_wallaroo_commits_and_is_released() {
    let mut streams = opened(None, None);
    streams.sent(KEY, 3, 30, 3, 100);
    streams.revoked(KEY, Instant::now() + Duration::from_mins(1));
    assert_eq!(next(&streams), Some(Action::End { key: KEY, id: ID }));
    streams.ending(KEY);
    assert_eq!(next(&streams), None, "the final acknowledgement is awaited");
    streams.ended(ID, Some(3));
    assert_eq!(next(&streams), None, "the commit comes first");
    streams.committed(&streams.commits());
    assert_eq!(next(&streams), Some(Action::Release { key: KEY, end: None }));
    streams.remove(KEY);
    assert_eq!((streams.in_flight(), streams.completed()), ((0, 0), 0));
}

#[tokio::test]
async fn at_its_deadline_a_revoked_stream_is_released_without_more_commits() {
    let mut streams = opened(None, None);
    streams.sent(KEY, 3, 30, 3, 100);
    streams.revoked(KEY, Instant::now());
    streams.ending(KEY);
    assert_eq!(next(&streams), Some(Action::Release { key: KEY, end: None }));
    streams.remove(KEY);
    assert_eq!(streams.in_flight(), (0, 0));
    // The system gives it back at once: its id is free at Wallaroo only after the end of the first.
    streams.opened(StreamKey(1), "topic/0".into(), ID, None).unwrap();
    assert_eq!(next(&streams), None);
    streams.ended(ID, Some(3));
    assert!(matches!(next(&streams), Some(Action::Open { key: StreamKey(1), .. })));
    assert!(streams.commits().is_empty(), "the acknowledgement was for the first");
}

#[tokio::test]
async fn nothing_of_a_lost_stream_is_committed_and_wallaroo_is_told_of_its_end() {
    let mut streams = opened(None, None);
    streams.sent(KEY, 3, 30, 3, 100);
    streams.acknowledge(ID, 3);
    streams.lost(KEY);
    assert!(streams.commits().is_empty());
    assert_eq!(next(&streams), Some(Action::Release { key: KEY, end: Some(ID) }));
}

#[tokio::test]
async fn an_end_that_was_lost_with_its_session_is_repeated() {
    let mut streams = opened(None, None);
    streams.sent(KEY, 3, 30, 3, 100);
    streams.exhausted(KEY);
    assert_eq!(streams.next_action(Instant::now(), true, true, |_| true), None, "the rest goes first");
    assert_eq!(next(&streams), Some(Action::End { key: KEY, id: ID }));
    streams.ending(KEY);
    streams.session_lost();
    assert_eq!(open(&mut streams, Some(2)), ResumeFrom::After(2));
    streams.sent(KEY, 1, 10, 3, 50);
    streams.exhausted(KEY);
    streams.ending(KEY);
    streams.ended(ID, Some(3));
    streams.committed(&[(KEY, 3)]);
    assert_eq!(next(&streams), Some(Action::Release { key: KEY, end: None }));
    streams.remove(KEY);
    assert_eq!(streams.completed(), 1);
}

#[tokio::test]
async fn a_stream_with_the_id_of_another_is_never_opened() {
    let mut streams = streams();
    streams.opened(KEY, "topic/0".into(), ID, None).unwrap();
    streams.opened(StreamKey(1), "topic/1".into(), ID, None).unwrap_err();
    open(&mut streams, None);
    assert_eq!(next(&streams), None);
    assert_eq!(streams.get(StreamKey(1)).unwrap().phase, Phase::Barred);
    streams.lost(StreamKey(1));
    assert_eq!(next(&streams), Some(Action::Release { key: StreamKey(1), end: None }));
    streams.remove(StreamKey(1));
    assert!(streams.sends(KEY));
}

#[tokio::test]
async fn pauses_follow_what_may_flow() {
    let mut streams = streams();
    streams.opened(KEY, "topic/0".into(), ID, None).unwrap();
    assert_eq!(streams.pauses(true).count(), 0, "before its first resume it yields nothing");
    open(&mut streams, None);
    assert_eq!(streams.pauses(false).count(), 0);
    assert_eq!(streams.pauses(true).collect::<Vec<_>>(), [(KEY, true)]);
    assert_eq!(streams.pauses(true).count(), 0, "once");
    assert_eq!(streams.pauses(false).collect::<Vec<_>>(), [(KEY, false)]);
    streams.session_lost();
    assert_eq!(streams.pauses(false).collect::<Vec<_>>(), [(KEY, true)], "closed at Wallaroo");
    open(&mut streams, None);
    assert_eq!(streams.pauses(false).collect::<Vec<_>>(), [(KEY, false)]);
    streams.hold(KEY, 1);
    assert_eq!(streams.pauses(false).collect::<Vec<_>>(), [(KEY, true)]);
    streams.revoked(KEY, Instant::now());
    streams.ending(KEY);
    assert_eq!(streams.pauses(false).count(), 0, "it is the system's again");
}
