//! Workers that come and go.

use std::time::Duration;

use tokio::time::timeout;
use wallaroo_endpoint::config::SinkProtocol;
use wallaroo_protocol::message::Message;

use crate::peers::*;

#[tokio::test]
async fn every_worker_dials_the_sink_under_its_own_name() {
    let honest = HonestSink::start().await;
    let mut config = config(vec![sink_config("out", &honest.address, SinkProtocol::connector())]);
    config.workers = 2;
    let (_endpoint, control, _) = start(config).await;
    for (index, worker) in ["initializer", "worker1"].iter().enumerate() {
        let address = control.status().sources[index].address.clone();
        let mut source = Source::open(&address).await;
        let stream = index as u64;
        source.notify(stream, None).await;
        source.send(stream, [1], worker).await;
        source.acked(stream, 1).await;
        assert_eq!(String::from_utf8(honest.shelf(worker).bytes).unwrap(), format!("{worker}1\n"));
    }
}

#[tokio::test]
async fn a_shrink_acknowledges_then_sends_restart_elsewhere_and_does_not_close() {
    let honest = HonestSink::start().await;
    let mut config = config(vec![sink_config("out", &honest.address, SinkProtocol::connector())]);
    config.workers = 2;
    let (_endpoint, control, stays) = start(config).await;
    let leaves = control.status().sources[1].address.clone();
    let mut source = Source::open(&leaves).await;
    source.notify(1, None).await;
    source.send(1, 1..=8, "r").await;
    until(&control, "the records", |status| status.records_in == 8).await;
    control.shrink("worker1").unwrap();
    let mut acked = None;
    let target = loop {
        match source.peer.next().await {
            Some(Message::Ack { positions, .. }) => {
                acked = positions.iter().next().and_then(|(_, at)| at).or(acked);
            }
            Some(Message::Restart { address: Some(address) }) => break address,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((acked, &target[..]), (Some(8), stays.as_bytes()));
    assert!(
        timeout(Duration::from_millis(80), source.peer.try_next()).await.is_err(),
        "the client has to close"
    );
    // A stream that is released continues elsewhere while the old connection is still open.
    let mut next = Source::open(&stays).await;
    assert_eq!(next.notify(1, None).await, (true, Some(8)));
    source.send(1, [9], "r").await;
    assert_eq!(source.peer.error().await, "Bad protocol FSM state");
    let status = until(&control, "the worker is gone", |status| status.workers == ["initializer"]).await;
    assert_eq!(status.violations, [], "a client cannot know that the worker leaves");
    soon("the sink is told", async {
        while !honest.shelf("worker1").departed {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    let shelf = honest.shelf("worker1");
    assert_eq!(
        (shelf.pending, shelf.committed),
        (None, shelf.bytes.len()),
        "its last transaction was decided"
    );
    assert_eq!(shelf.bytes, b"r1\nr2\nr3\nr4\nr5\nr6\nr7\nr8\n");
    next.send(1, [9], "r").await;
    next.acked(1, 9).await;
}

#[tokio::test]
async fn a_worker_that_joins_listens_and_dials() {
    let honest = HonestSink::start().await;
    let (_endpoint, control, _) =
        start(config(vec![sink_config("out", &honest.address, SinkProtocol::connector())])).await;
    assert_eq!(control.grow().await.unwrap(), "worker1");
    let address = control.status().sources[1].address.clone();
    let mut source = Source::open(&address).await;
    source.notify(1, None).await;
    source.send(1, [1], "r").await;
    source.acked(1, 1).await;
    assert_eq!(honest.shelf("worker1").bytes, b"r1\n");
}

#[tokio::test]
async fn the_last_worker_stays() {
    let (_endpoint, control, _) = start(config(vec![])).await;
    assert_eq!(
        control.shrink("initializer").unwrap_err().to_string(),
        "initializer is the last worker and cannot leave"
    );
    assert_eq!(control.shrink("worker9").unwrap_err().to_string(), "worker9 is no worker of this cluster");
}

#[tokio::test]
async fn without_resilience_a_worker_leaves_at_once() {
    let mut config = config(vec![]);
    config.workers = 2;
    config.resilience = false;
    let (_endpoint, control, stays) = start(config).await;
    let mut source = Source::open(&control.status().sources[1].address.clone()).await;
    source.notify(1, None).await;
    source.send(1, [5], "r").await;
    until(&control, "the record", |status| status.records_in == 1).await;
    control.shrink("worker1").unwrap();
    assert_eq!(source.ack().await, (2, vec![(1, Some(5))]));
    assert!(matches!(source.peer.next().await, Some(Message::Restart { address: Some(_) })));
    let mut next = Source::open(&stays).await;
    assert_eq!(next.notify(1, None).await, (true, Some(5)));
}
