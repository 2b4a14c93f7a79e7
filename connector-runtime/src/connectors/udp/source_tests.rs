//! Tests of the UDP source over loopback.

use std::net::UdpSocket as StdSocket;
use std::time::Duration;

use super::*;
use crate::connectors::testing::context;
use crate::connectors::udp::MAX_DATAGRAM_BYTES;
use connector_crds::systems::udp::UdpSource as Spec;
use tokio::time::timeout;

const WAIT: Duration = Duration::from_secs(10);

fn spec() -> Spec {
    Spec { port: 0, bind: "127.0.0.1".into(), multicast_groups: vec![], receive_buffer_bytes: 4_194_304 }
}

/// A running source, its board, and a socket that sends to it.
async fn running(spec: &Spec) -> (UdpSource, Board, StdSocket) {
    let context = context(std::path::Path::new("."));
    let mut source = UdpSource::new(spec, &context).unwrap();
    assert!(matches!(source.next().await.unwrap(), SourceEvent::Opened { .. }));
    let sender = StdSocket::bind("127.0.0.1:0").unwrap();
    sender.connect(context.board.snapshot().listen.unwrap()).unwrap();
    source.resume(STREAM, ResumeFrom::Committed).await.unwrap();
    (source, context.board, sender)
}

async fn records(source: &mut UdpSource, count: usize) -> Vec<(Position, Vec<u8>)> {
    let mut records = Vec::new();
    while records.len() < count {
        match timeout(WAIT, source.next()).await.expect("records in time").unwrap() {
            SourceEvent::Batch { batch, .. } => {
                records.extend(batch.iter().map(|r| (r.position, r.payload.to_vec())));
            }
            SourceEvent::BadRecord { position, reason: BadRecord::Empty, .. } => {
                records.push((position, vec![]));
            }
            other => panic!("{other:?}"),
        }
    }
    records
}

#[tokio::test]
async fn datagrams_arrive_whole_and_unchanged_up_to_the_largest() {
    let (mut source, _board, sender) = running(&spec()).await;
    let payloads: Vec<Vec<u8>> = (0..=255_u8)
        .map(|byte| vec![byte])
        .chain([b"\n \r\t x \r\n".to_vec(), vec![7; 9_000], vec![8; MAX_DATAGRAM_BYTES]])
        .collect();
    for payload in &payloads {
        sender.send(payload).unwrap();
    }
    let received = records(&mut source, payloads.len()).await;
    let expected: Vec<_> = (1..).zip(payloads).collect();
    assert!(received == expected);
}

#[tokio::test]
async fn an_empty_datagram_is_a_bad_record_with_a_position_of_its_own() {
    let (mut source, _board, sender) = running(&spec()).await;
    for payload in [&b"a"[..], b"", b"b", b""] {
        sender.send(payload).unwrap();
    }
    let expected = [(1, b"a".to_vec()), (2, vec![]), (3, b"b".to_vec()), (4, vec![])];
    assert_eq!(records(&mut source, 4).await, expected);
}

#[tokio::test]
async fn what_the_kernel_dropped_while_paused_is_counted_and_nothing_else_is_missing() {
    let spec = Spec { receive_buffer_bytes: 4_096, ..spec() };
    let (mut source, board, sender) = running(&spec).await;
    source.pause(STREAM);
    let sent = 500_u64;
    for _ in 0..sent {
        sender.send(&[1; 400]).unwrap();
    }
    let yielded = timeout(Duration::from_millis(20), source.next()).await;
    assert!(yielded.is_err(), "a paused stream yielded {yielded:?}");
    source.unpause(STREAM);
    // Drops are told with a datagram that comes after them.
    let mut received = 0;
    let dropped =
        || board.dropped_by_reason().iter().find(|(r, _)| *r == DropReason::KernelOverflow).unwrap().1;
    let mut sent = sent;
    while received + dropped() < sent {
        if let Ok(event) = timeout(Duration::from_millis(20), source.next()).await {
            let SourceEvent::Batch { batch, .. } = event.unwrap() else { panic!() };
            received += batch.len() as u64;
        } else {
            sender.send(b"last").unwrap();
            sent += 1;
        }
    }
    assert_eq!(received + dropped(), sent);
    assert!(dropped() > 0);
}

#[tokio::test]
async fn positions_go_on_after_the_resume_position_and_never_back() {
    let (mut source, _board, sender) = running(&spec()).await;
    source.resume(STREAM, ResumeFrom::After(41)).await.unwrap();
    sender.send(b"a").unwrap();
    assert_eq!(records(&mut source, 1).await, [(42, b"a".to_vec())]);
    source.resume(STREAM, ResumeFrom::Committed).await.unwrap();
    sender.send(b"b").unwrap();
    assert_eq!(records(&mut source, 1).await, [(43, b"b".to_vec())]);
}

#[tokio::test]
async fn a_taken_port_is_transient_and_named() {
    let taken = StdSocket::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let spec = Spec { port: i32::from(address.port()), ..spec() };
    let mut source = UdpSource::new(&spec, &context(std::path::Path::new("."))).unwrap();
    let error = source.next().await.unwrap_err();
    assert!(matches!(error, SystemError::Transient { .. }), "{error:?}");
    assert!(error.to_string().contains(&address.to_string()), "{error}");
    drop(taken);
    assert!(matches!(source.next().await.unwrap(), SourceEvent::Opened { .. }));
}

#[test]
fn addresses_that_are_none_are_refused_by_name() {
    let context = context(std::path::Path::new("."));
    for (bind, group, field) in [
        ("localhost", None, "bind"),
        ("0.0.0.0", Some("10.0.0.1"), "multicastGroups"),
        ("0.0.0.0", Some("ff02::1"), "multicastGroups"),
    ] {
        let spec = Spec {
            bind: bind.into(),
            multicast_groups: group.map(String::from).into_iter().collect(),
            ..spec()
        };
        let error = UdpSource::new(&spec, &context).unwrap_err();
        assert!(error.to_string().contains(field), "{error}");
        assert!(matches!(error, SystemError::Permanent { reason: "InvalidAddress", .. }));
    }
}

#[tokio::test]
async fn a_joined_group_is_received() {
    let group = "239.255.77.7";
    let spec = Spec { bind: "0.0.0.0".into(), multicast_groups: vec![group.into()], ..spec() };
    let context = context(std::path::Path::new("."));
    let mut source = UdpSource::new(&spec, &context).unwrap();
    match source.next().await {
        Ok(SourceEvent::Opened { .. }) => {}
        // A machine without a multicast route cannot join, and says so.
        Err(error) => return assert!(error.to_string().contains("binding UDP address 0.0.0.0:0"), "{error}"),
        other => panic!("{other:?}"),
    }
    source.resume(STREAM, ResumeFrom::Committed).await.unwrap();
    let port = context.board.snapshot().listen.unwrap().rsplit(':').next().unwrap().to_owned();
    let sender = StdSocket::bind("0.0.0.0:0").unwrap();
    sender.set_multicast_loop_v4(true).unwrap();
    if sender.send_to(b"to all", format!("{group}:{port}")).is_ok() {
        assert_eq!(records(&mut source, 1).await, [(1, b"to all".to_vec())]);
    }
}
