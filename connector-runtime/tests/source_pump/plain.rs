//! The plain framings: what counts as handed over, and when it is committed.

use bytes::BytesMut;
use connector_crds::Protocol;
use connector_runtime::pump::source::{Outcome, SourcePumpConfig};
use connector_runtime::source::ResumeFrom::{After, Committed};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::{Duration, Instant, timeout};
use wallaroo_protocol::framing::{Decoder, Framing};

use crate::harness::{DEADLINE, config, start, stays, until};
use crate::raw::listen;
use crate::scripted::{Scripted, payload};

fn plain(protocol: Protocol, address: &str) -> SourcePumpConfig {
    SourcePumpConfig { protocol, ..config(address) }
}

async fn accept(listener: &TcpListener) -> TcpStream {
    timeout(DEADLINE, listener.accept()).await.expect("a connection").unwrap().0
}

/// Reads `count` records.
async fn read(link: &mut TcpStream, decoder: &mut Decoder, count: usize) -> Vec<Vec<u8>> {
    let mut records = Vec::new();
    while records.len() < count {
        while let Some(record) = decoder.next_record().unwrap() {
            records.push(record.payload.to_vec());
        }
        if records.len() < count {
            let read = timeout(DEADLINE, link.read_buf(decoder.input())).await.expect("bytes").unwrap();
            assert!(read > 0, "the connection ends after {} records", records.len());
        }
    }
    records
}

#[tokio::test]
async fn each_framing_delivers_every_record_and_ends_with_fin_after_the_delay() {
    for (protocol, framing) in [
        (Protocol::FramedTCP, Framing::RAW_U32BE),
        (Protocol::Stream05, Framing::Stream05),
        (Protocol::Stream06, Framing::Stream06),
    ] {
        let (listener, address) = listen().await;
        let source = Scripted::new(64).topic("a", 500, true);
        let begin = Instant::now();
        let pump = start(&source, plain(protocol, &address));
        let mut link = accept(&listener).await;
        let mut decoder = Decoder::new(framing, 16_384);
        let records = read(&mut link, &mut decoder, 500).await;
        assert_eq!(records, (1..=500).map(|n| payload("a", n)).collect::<Vec<_>>());
        assert_eq!(pump.outcome().await, Outcome::Completed);
        assert!(begin.elapsed() >= Duration::from_millis(100), "the commit delay");
        assert_eq!(source.committed("a"), Some(500));
        assert_eq!(link.read_buf(&mut BytesMut::with_capacity(16)).await.unwrap(), 0, "FIN");
    }
}

#[tokio::test]
async fn a_position_is_not_committed_before_its_delay() {
    let (listener, address) = listen().await;
    let source = Scripted::new(64).topic("a", 100, false);
    let mut config = plain(Protocol::FramedTCP, &address);
    config.commit_delay = Duration::from_millis(400);
    let pump = start(&source, config);
    let mut link = accept(&listener).await;
    read(&mut link, &mut Decoder::new(Framing::RAW_U32BE, 16_384), 100).await;
    stays("younger than the delay", Duration::from_millis(250), || source.committed("a").is_none()).await;
    until("old enough", || source.committed("a") == Some(100)).await;
    assert_eq!(source.resumes("a"), [Committed]);
    pump.stop().await;
}

#[tokio::test]
async fn a_peer_that_does_not_read_gets_nothing_committed_beyond_its_kernel_and_is_reported() {
    // A small receive buffer, so that little is acknowledged by the kernel of a peer that does not read.
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(16_384).unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(8).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let source = Scripted::new(32);
    source.add("a", (1..=20_000).map(|n| (n, vec![b'x'; 1_000])).collect(), false);
    let mut config = plain(Protocol::FramedTCP, &address);
    config.timings.not_reading = Duration::from_millis(500);
    config.in_flight_bytes = 4_194_304;
    let pump = start(&source, config);
    let mut link = accept(&listener).await;
    until("NotReading", || pump.wallaroo_reason().as_deref() == Some("NotReading")).await;
    let yielded = source.system().yielded;
    let committed = source.committed("a").unwrap_or(0);
    assert!(yielded < 20_000, "reading stops: {yielded}");
    let (_, in_flight) = pump.board.in_flight();
    assert!(in_flight < 4_194_304 + 64_000, "{in_flight}");
    stays("nothing more is committed or read", Duration::from_millis(300), || {
        source.committed("a").unwrap_or(0) == committed && source.system().yielded == yielded
    })
    .await;
    // Everything committed is in the kernel of the peer: it can be read even now.
    let mut decoder = Decoder::new(Framing::RAW_U32BE, 16_384);
    assert!(committed < 1_000, "committed {committed} records of 1,000 bytes into a buffer of 16 KiB");
    read(&mut link, &mut decoder, committed as usize).await;
    read(&mut link, &mut decoder, 20_000 - committed as usize).await;
    until("all is committed", || source.committed("a") == Some(20_000)).await;
    until("it reads again", || pump.wallaroo_reason().is_none()).await;
    pump.stop().await;
}

#[tokio::test]
async fn after_a_loss_each_stream_goes_on_at_its_committed_position() {
    let (listener, address) = listen().await;
    let source = Scripted::new(10).topic("a", 100, false).topic("b", 100, false);
    let pump = start(&source, plain(Protocol::FramedTCP, &address));
    let mut link = accept(&listener).await;
    read(&mut link, &mut Decoder::new(Framing::RAW_U32BE, 16_384), 200).await;
    until("all is committed", || source.committed("a") == Some(100) && source.committed("b") == Some(100))
        .await;
    let more = |name: &str| {
        let records = (101..=150).map(|n| (n, payload(name, n)));
        source.system().topics.get_mut(name).unwrap().records.extend(records);
    };
    drop(link); // noticed although nothing is being sent
    let mut link = accept(&listener).await;
    more("a");
    more("b");
    until("both are resumed", || source.resumes("a").len() == 2 && source.resumes("b").len() == 2).await;
    assert_eq!(source.resumes("a")[1], After(100));
    assert_eq!(source.resumes("b")[1], After(100));
    source.wake();
    let records = read(&mut link, &mut Decoder::new(Framing::RAW_U32BE, 16_384), 100).await;
    assert!(records.contains(&payload("a", 150)) && records.contains(&payload("b", 150)));
    pump.stop().await;
}

#[tokio::test]
async fn a_finite_source_repeats_what_died_with_the_connection_before_it_was_old_enough() {
    let (listener, address) = listen().await;
    let source = Scripted::new(10).topic("a", 100, true);
    let mut config = plain(Protocol::FramedTCP, &address);
    config.commit_delay = Duration::from_millis(300);
    let pump = start(&source, config);
    let mut link = accept(&listener).await;
    read(&mut link, &mut Decoder::new(Framing::RAW_U32BE, 16_384), 100).await;
    drop(link);
    let mut link = accept(&listener).await;
    let again = read(&mut link, &mut Decoder::new(Framing::RAW_U32BE, 16_384), 100).await;
    assert_eq!(again.len(), 100);
    assert_eq!(pump.outcome().await, Outcome::Completed);
    assert_eq!(source.committed("a"), Some(100));
}

#[tokio::test]
async fn an_idle_pump_sleeps() {
    let (listener, address) = listen().await;
    let source = Scripted::new(10).topic("a", 100, false);
    let pump = start(&source, plain(Protocol::FramedTCP, &address));
    let _link = accept(&listener).await;
    until("all is committed", || source.committed("a") == Some(100)).await;
    let before = source.system().polls;
    stays("few turns of the loop", Duration::from_millis(500), || source.system().polls <= before + 5).await;
    pump.stop().await;
}
