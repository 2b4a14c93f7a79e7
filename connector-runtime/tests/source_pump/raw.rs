//! A peer that sends and reads single frames, for what no well-behaved worker does; and the tests that need one.

use bytes::{Bytes, BytesMut};
use connector_runtime::board::SideState;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Duration, Instant, timeout};
use wallaroo_protocol::message::Message;
use wallaroo_protocol::{StreamId, frame};

use crate::harness::{DEADLINE, config, start, stays, until};
use crate::scripted::{Scripted, payload};

pub(crate) struct Peer {
    link: TcpStream,
    input: BytesMut,
}

impl Peer {
    pub(crate) async fn accept(listener: &TcpListener) -> Peer {
        let (link, _) = timeout(DEADLINE, listener.accept()).await.expect("a connection").unwrap();
        Peer { link, input: BytesMut::new() }
    }

    /// The next frame; `None` at the end of the connection.
    pub(crate) async fn read(&mut self) -> Option<Message> {
        loop {
            if let Some(body) = frame::split(&mut self.input, 1 << 20).unwrap() {
                return Some(Message::decode(body).unwrap());
            }
            let read = timeout(DEADLINE, self.link.read_buf(&mut self.input)).await.expect("a frame");
            if !matches!(read, Ok(n) if n > 0) {
                return None;
            }
        }
    }

    pub(crate) async fn send(&mut self, message: Message) {
        let mut bytes = BytesMut::new();
        message.encode(&mut bytes).unwrap();
        self.link.write_all(&bytes).await.unwrap();
    }

    /// True if nothing comes within `time`.
    pub(crate) async fn is_silent(&mut self, time: Duration) -> bool {
        self.input.is_empty() && timeout(time, self.link.read_buf(&mut self.input)).await.is_err()
    }
}

pub(crate) async fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

#[tokio::test]
async fn three_credits_and_then_silence_are_three_frames() {
    let (listener, address) = listen().await;
    let source = Scripted::new(100).topic("a", 10_000, false);
    let mut config = config(&address);
    config.timings.pause_after = Duration::from_millis(20);
    let pump = start(&source, config);
    let mut peer = Peer::accept(&listener).await;
    assert!(matches!(peer.read().await, Some(Message::Hello { .. })));
    peer.send(Message::Ok { credits: 4 }).await;
    let Some(Message::Notify { stream, position: None, name }) = peer.read().await else { panic!() };
    assert_eq!(name, "ns/c/a");
    peer.send(Message::NotifyAck { success: true, stream, position: None }).await;
    for id in 1..=3 {
        assert!(matches!(peer.read().await, Some(Message::Data { id: got, .. }) if got == id));
    }
    assert!(peer.is_silent(Duration::from_millis(150)).await);
    assert_eq!(source.system().yielded, 100, "one batch is kept, nothing more is read");
    assert_eq!(pump.board.in_flight().0, 100);
    until("the wait for credits is counted", || {
        pump.board.counters().credit_wait_micros.load(std::sync::atomic::Ordering::Relaxed) > 0
    })
    .await;
    // The rest of the batch follows with the credits.
    peer.send(Message::Ack { credits: 2, positions: [(stream, Some(2))].into_iter().collect() }).await;
    for id in 4..=5 {
        assert!(matches!(peer.read().await, Some(Message::Data { id: got, .. }) if got == id));
    }
    until("the acknowledged position is committed", || source.committed("a") == Some(2)).await;
    pump.stop().await;
}

#[tokio::test]
async fn a_peer_that_accepts_and_stays_silent_is_reported_as_not_serving() {
    let (listener, address) = listen().await;
    let source = Scripted::new(10).topic("a", 10, false);
    let mut config = config(&address);
    config.timings.handshake = Duration::from_millis(100);
    let pump = start(&source, config);
    let _peer = Peer::accept(&listener).await;
    until("NotServed", || pump.wallaroo_reason().as_deref() == Some("NotServed")).await;
    let _again = Peer::accept(&listener).await;
    assert_eq!(source.system().yielded, 0);
    pump.stop().await;
}

#[tokio::test]
async fn another_version_is_reported_and_dialled_slowly() {
    let (listener, address) = listen().await;
    let source = Scripted::new(10).topic("a", 10, false);
    let pump = start(&source, config(&address));
    let mut peer = Peer::accept(&listener).await;
    peer.read().await;
    let text = Bytes::from_static(b"Unknown protocol version: 0.0.1");
    peer.send(Message::Error { message: text }).await;
    until("VersionRefused", || pump.wallaroo_reason().as_deref() == Some("VersionRefused")).await;
    let SideState::Failed { message, .. } = pump.wallaroo() else { panic!() };
    assert!(message.contains(&address) && message.contains("0.0.1"), "{message}");
    assert!(timeout(Duration::from_millis(400), listener.accept()).await.is_err(), "dialled again at once");
    pump.stop().await;
}

#[tokio::test]
async fn nobody_at_the_address_is_reported_and_found_once_it_is_there() {
    let (listener, address) = listen().await;
    drop(listener);
    let source = Scripted::new(10).topic("a", 10, false);
    let pump = start(&source, config(&address));
    until("Refused", || pump.wallaroo_reason().as_deref() == Some("Refused")).await;
    let listener = TcpListener::bind(&address).await.unwrap();
    let mut peer = Peer::accept(&listener).await;
    assert!(matches!(peer.read().await, Some(Message::Hello { .. })));
    pump.stop().await;
}

#[tokio::test]
async fn an_acknowledgement_of_what_was_never_sent_commits_nothing() {
    let (listener, address) = listen().await;
    let source = Scripted::new(10).topic("a", 10, false);
    let pump = start(&source, config(&address));
    let mut peer = Peer::accept(&listener).await;
    peer.read().await;
    peer.send(Message::Ok { credits: 500 }).await;
    let Some(Message::Notify { stream, .. }) = peer.read().await else { panic!() };
    peer.send(Message::NotifyAck { success: true, stream, position: None }).await;
    for _ in 0..10 {
        peer.read().await;
    }
    peer.send(Message::Ack { credits: 0, positions: [(stream, Some(99))].into_iter().collect() }).await;
    until("ProtocolError", || pump.wallaroo_reason().as_deref() == Some("ProtocolError")).await;
    stays("nothing is committed", Duration::from_millis(50), || source.committed("a").is_none()).await;
    pump.stop().await;
}

#[tokio::test]
async fn memory_in_flight_is_bounded_by_records_while_credits_abound() {
    let (listener, address) = listen().await;
    let source = Scripted::new(100).topic("a", 100_000, false);
    let mut config = config(&address);
    config.in_flight_records = 1_000;
    let pump = start(&source, config);
    let mut peer = Peer::accept(&listener).await;
    peer.read().await;
    peer.send(Message::Ok { credits: 1_000_000 }).await;
    let Some(Message::Notify { stream, .. }) = peer.read().await else { panic!() };
    peer.send(Message::NotifyAck { success: true, stream, position: None }).await;
    for id in 1..=1_000 {
        assert!(matches!(peer.read().await, Some(Message::Data { id: got, .. }) if got == id));
    }
    assert!(peer.is_silent(Duration::from_millis(100)).await);
    let bytes = (1..=1_000).map(|n| payload("a", n).len() as u64).sum();
    assert_eq!(pump.board.in_flight(), (1_000, bytes));
    peer.send(Message::Ack { credits: 0, positions: [(stream, Some(1_000))].into_iter().collect() }).await;
    assert!(matches!(peer.read().await, Some(Message::Data { id: 1_001, .. })));
    pump.stop().await;
}

/// A session with one stream, of which ten records arrived; then the system takes the stream back.
async fn revoked(source: &Scripted, listener: &TcpListener, deadline: Duration) -> (Peer, StreamId) {
    let mut peer = Peer::accept(listener).await;
    peer.read().await;
    peer.send(Message::Ok { credits: 500 }).await;
    let Some(Message::Notify { stream, .. }) = peer.read().await else { panic!() };
    peer.send(Message::NotifyAck { success: true, stream, position: None }).await;
    for _ in 0..10 {
        assert!(matches!(peer.read().await, Some(Message::Data { .. })));
    }
    source.revoke("a", Instant::now() + deadline);
    assert_eq!(peer.read().await, Some(Message::Eos { stream }));
    (peer, stream)
}

#[tokio::test]
async fn a_revoked_stream_is_released_after_its_final_acknowledgement_and_commit() {
    let (listener, address) = listen().await;
    let source = Scripted::new(10).topic("a", 10, false);
    let pump = start(&source, config(&address));
    let (mut peer, stream) = revoked(&source, &listener, Duration::from_secs(30)).await;
    peer.send(Message::Ack { credits: 11, positions: [(stream, Some(7))].into_iter().collect() }).await;
    until("part of it is committed", || source.committed("a") == Some(7)).await;
    stays("not released", Duration::from_millis(100), || source.system().released.is_empty()).await;
    peer.send(Message::Ack { credits: 0, positions: [(stream, Some(10))].into_iter().collect() }).await;
    until("released", || source.system().released == ["a"]).await;
    assert_eq!(source.committed("a"), Some(10));
    assert!(peer.is_silent(Duration::from_millis(50)).await, "the session stays for the other streams");
    pump.stop().await;
}

#[tokio::test]
async fn a_revoked_stream_is_released_at_its_deadline_without_more_commits() {
    let (listener, address) = listen().await;
    let source = Scripted::new(10).topic("a", 10, false);
    let pump = start(&source, config(&address));
    let (mut peer, stream) = revoked(&source, &listener, Duration::from_millis(100)).await;
    until("released", || source.system().released == ["a"]).await;
    peer.send(Message::Ack { credits: 0, positions: [(stream, Some(10))].into_iter().collect() }).await;
    stays("no late commit", Duration::from_millis(50), || source.committed("a").is_none()).await;
    pump.stop().await;
}
