//! What sources and sinks see of a rollback.

use wallaroo_endpoint::config::SinkProtocol;
use wallaroo_endpoint::status::Phase;
use wallaroo_protocol::message::{Message, SOURCE_VERSION};

use crate::peers::*;

#[tokio::test]
async fn sources_get_a_bare_fin_and_those_that_come_meanwhile_get_restart_in_place_of_ok() {
    let (socket, sink) = SinkSocket::bind().await;
    let (_endpoint, control, address) =
        start(config(vec![sink_config("out", &sink, SinkProtocol::connector())])).await;
    let mut sink = socket.accept(&[]).await;
    let (_, _, transaction, _) = sink.until_phase1().await;
    sink.vote(&transaction, true).await;
    sink.phase2().await;
    let mut source = Source::open(&address).await;
    source.notify(1, None).await;
    source.send(1, [1], "r").await;
    sink.commit_output().await;
    source.acked(1, 1).await;
    source.send(1, [2], "r").await;
    until(&control, "the second record", |status| status.records_in == 2).await;
    control.rollback();
    assert_eq!(source.read_to_end().await, None, "a bare FIN");
    while sink.peer.next().await.is_some() {}
    let mut early = Peer::dial(&address).await;
    early.send(&[hello(SOURCE_VERSION, COOKIE)]).await;
    until(&control, "it is accepted", |status| status.sources[0].connections == 1).await;
    assert_eq!(control.status().phase, Phase::RollingBack);
    // The rollback ends when the sink has been asked and told.
    let mut sink = socket.accept(&[]).await;
    match early.next().await {
        Some(Message::Restart { address: Some(text) }) => assert_eq!(text, address.as_bytes()),
        other => panic!("{other:?}"),
    }
    early.closed().await;
    let mut source = Source::open(&address).await;
    assert_eq!(source.notify(1, Some(2)).await, (true, Some(1)));
    source.send(1, [1, 2], "again").await;
    let (first, bytes, _) = sink.commit_output().await;
    assert_eq!((first, bytes.as_slice()), (3, &b"again2\n"[..]));
}

#[tokio::test]
async fn streams_first_seen_after_the_checkpoint_are_new_again() {
    let (_endpoint, control, address) = start(config(vec![])).await;
    let mut source = Source::open(&address).await;
    source.notify(1, None).await;
    source.send(1, [4], "r").await;
    source.acked(1, 4).await;
    control.set_faults(serde_json::from_str(r#"{"no_checkpoints": true}"#).unwrap()).unwrap();
    // A checkpoint may be under way; the next stream opens behind its barrier or is not acknowledged by it.
    source.notify(2, None).await;
    source.send(2, [9], "r").await;
    until(&control, "the record", |status| status.records_in == 2).await;
    control.rollback();
    source.read_to_end().await;
    let mut source = Source::open(&address).await;
    assert_eq!(source.notify(1, None).await, (true, Some(4)));
    assert_eq!(source.notify(2, None).await, (true, None));
}

/// Records of the test below.
const LAST: u64 = 3_000;

#[tokio::test]
async fn rollbacks_under_load_lose_and_repeat_nothing_at_an_honest_sink() {
    let honest = HonestSink::start().await;
    let (_endpoint, control, address) =
        start(config(vec![sink_config("out", &honest.address, SinkProtocol::connector())])).await;
    let sender = async {
        loop {
            let mut peer = Peer::dial(&address).await;
            let _ = peer.try_send(&[hello(SOURCE_VERSION, COOKIE)]).await;
            let Some(Message::Ok { mut credits }) = peer.next().await else { continue };
            let _ = peer.try_send(&[Source::notify_message(1, None)]).await;
            let mut next = 0;
            while let Some(message) = peer.next().await {
                match message {
                    Message::NotifyAck { success: true, position, .. } => next = position.unwrap_or(0) + 1,
                    Message::NotifyAck { success: false, .. } | Message::Restart { .. } => break,
                    Message::Ack { credits: more, positions } => {
                        credits += more;
                        if positions.iter().any(|(_, position)| position == Some(LAST)) {
                            return;
                        }
                    }
                    other => panic!("{other:?}"),
                }
                if next > 0 {
                    // A little at a time, so that the rollbacks strike in the middle.
                    let end = (next + u64::from(credits.saturating_sub(2)).min(40)).min(LAST + 1);
                    let records: Vec<Message> =
                        (next..end).map(|id| record(1, id, format!("{id}").as_bytes())).collect();
                    credits -= records.len() as u32;
                    next = end;
                    if peer.try_send(&records).await.is_err() {
                        break;
                    }
                }
            }
        }
    };
    let trouble = async {
        for round in 1..=4 {
            until(&control, "progress", |status| status.records_in > round * 300).await;
            control.rollback();
            until(&control, "the rollback ends", |status| status.rollbacks >= round).await;
        }
    };
    soon("everything acknowledged", async { tokio::join!(sender, trouble) }).await;
    let committed =
        honest.until_committed("every record", |text| text.lines().count() >= LAST as usize).await;
    let expected: String = (1..=LAST).map(|id| format!("{id}\n")).collect();
    assert_eq!(committed, expected, "every record once, in order");
    let status = control.status();
    assert!(status.records_in > LAST, "the rollbacks made the source send again: {}", status.records_in);
    assert_eq!(status.violations, []);
}
