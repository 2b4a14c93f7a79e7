//! Plain sources and sinks, legacy framings, and the applications from one end to the other.

use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use wallaroo_endpoint::config::{
    Application, Encoder, Framing, SinkConfig, SinkProtocol, SourceConfig, SourceProtocol,
};
use wallaroo_protocol::framing::{self, Decoder, PlainRecord};

use crate::peers::*;

fn frames(framing: framing::Framing, payloads: &[&[u8]]) -> BytesMut {
    let mut out = BytesMut::new();
    let records = payloads.iter().map(|payload| PlainRecord { time: 0, payload });
    framing.encode(records, usize::MAX, &mut out).unwrap();
    out
}

async fn receiver() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

async fn read_exactly(stream: &mut TcpStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    soon("bytes at the receiver", stream.read_exact(&mut bytes)).await.unwrap();
    bytes
}

#[tokio::test]
async fn every_framing_passes_from_source_to_sink() {
    let wide = Framing { width: 2, big_endian: false };
    for (source, from, sink, into) in [
        (
            SourceProtocol::framed(),
            framing::Framing::RAW_U32BE,
            SinkProtocol::FramedTcp,
            framing::Framing::RAW_U32BE,
        ),
        (
            SourceProtocol::FramedTcp { framing: wide, max_size: 100 },
            framing::Framing::Raw { width: framing::Width::Two, endian: framing::Endian::Little },
            SinkProtocol::Stream05,
            framing::Framing::Stream05,
        ),
        (
            SourceProtocol::stream05(),
            framing::Framing::Stream05,
            SinkProtocol::Stream06,
            framing::Framing::Stream06,
        ),
        (
            SourceProtocol::stream06(),
            framing::Framing::Stream06,
            SinkProtocol::Stream05,
            framing::Framing::Stream05,
        ),
    ] {
        let (listener, address) = receiver().await;
        let mut config = config(vec![SinkConfig {
            encoder: Encoder::LengthPrefixed,
            ..sink_config("out", &address, sink)
        }]);
        config.sources[0].protocol = source;
        let (_endpoint, control, source) = start(config).await;
        let (mut received, _) = soon("the worker's connection", listener.accept()).await.unwrap();
        let mut sender = TcpStream::connect(&source).await.unwrap();
        sender.write_all(&frames(from, &[b"first", b"\x00\xff", &[7; 90]])).await.unwrap();
        let mut decoder = Decoder::new(into, usize::MAX);
        let mut payloads = Vec::new();
        while payloads.len() < 3 {
            soon("a record", received.read_buf(decoder.input())).await.unwrap();
            while let Some(record) = decoder.next_record().unwrap() {
                payloads.push(record.payload.to_vec());
            }
        }
        assert_eq!(payloads, [b"first".to_vec(), vec![0, 0xff], vec![7; 90]]);
        let status = control.status();
        assert_eq!((status.records_in, status.bytes_in, status.results), (3, 97, 3));
    }
}

#[tokio::test]
async fn celsius_in_fahrenheit_out_and_bad_records_are_counted() {
    let honest = HonestSink::start().await;
    let mut config = config(vec![sink_config("out", &honest.address, SinkProtocol::connector())]);
    config.application = Application::Celsius;
    let (_endpoint, control, source) = start(config).await;
    let mut source = Source::open(&source).await;
    source.notify(1, None).await;
    source
        .peer
        .send(&[
            record(1, 1, b"date,temp"),
            record(1, 2, b"2010/01/01 00:00,39.4"),
            record(1, 3, &100f32.to_be_bytes()),
            record(1, 4, b"oops!"),
            record(1, 5, b"-40"),
        ])
        .await;
    source.acked(1, 5).await;
    let committed = honest.until_committed("three results", |committed| committed.lines().count() == 3).await;
    assert_eq!(committed, "2010/01/01 00:00,102.9\n212.0\n-40.0\n");
    let status = control.status();
    assert_eq!((status.records_in, status.results), (5, 3));
    let bad: Vec<_> = status.bad_input.iter().map(|(why, bad)| (why.as_str(), bad.count)).collect();
    assert_eq!(
        bad,
        [("not a temperature: expected a decimal number as text or a big-endian 32-bit float", 2)]
    );
}

#[tokio::test]
async fn word_count_gives_running_totals_that_a_rollback_takes_back() {
    let honest = HonestSink::start().await;
    let mut config = config(vec![sink_config("out", &honest.address, SinkProtocol::connector())]);
    config.application = Application::WordCount;
    config.workers = 2;
    let (_endpoint, control, address) = start(config).await;
    let mut source = Source::open(&address).await;
    source.notify(1, None).await;
    source.peer.send(&[record(1, 1, b"the cat, the end")]).await;
    source.acked(1, 1).await;
    control.rollback();
    source.read_to_end().await;
    until(&control, "the rollback ends", |status| status.rollbacks == 1).await;
    let mut source = Source::open(&address).await;
    assert_eq!(source.notify(1, None).await, (true, Some(1)));
    source.peer.send(&[record(1, 1, b"the cat, the end"), record(1, 2, b"The end")]).await;
    source.acked(1, 2).await;
    let committed = honest.until_committed("six totals", |committed| committed.lines().count() == 6).await;
    let mut lines: Vec<&str> = committed.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["cat:1", "end:1", "end:2", "the:1", "the:2", "the:3"]);
    // The totals of one word come from one worker, so they are in order there.
    for worker in ["initializer", "worker1"] {
        let text = String::from_utf8(honest.shelf(worker).bytes).unwrap();
        let totals: Vec<&str> = text.lines().filter(|line| line.starts_with("the:")).collect();
        assert!(totals.is_empty() || totals == ["the:1", "the:2", "the:3"], "{totals:?}");
    }
}

#[tokio::test]
async fn a_plain_sink_that_was_away_misses_only_what_was_on_its_way() {
    let (listener, address) = receiver().await;
    let (_endpoint, control, source) =
        start(config(vec![sink_config("out", &address, SinkProtocol::FramedTcp)])).await;
    let (mut received, _) = soon("the worker's connection", listener.accept()).await.unwrap();
    let mut source = Source::open(&source).await;
    source.notify(1, None).await;
    source.send(1, [1], "r").await;
    assert_eq!(read_exactly(&mut received, 3).await, b"r1\n");
    source.acked(1, 1).await;
    drop((received, listener));
    until(&control, "the loss is seen", |status| {
        status.sinks[0].connections == 1 && {
            status.sinks[0].state == wallaroo_endpoint::status::SinkState::Disconnected
        }
    })
    .await;
    source.send(1, [2], "r").await;
    // While the sink is away, checkpoints wait: nothing is acknowledged.
    until(&control, "the record", |status| status.records_in == 2).await;
    let waiting = timeout(Duration::from_millis(80), source.acked(1, 2));
    assert!(waiting.await.is_err());
    let listener = TcpListener::bind(&address).await.unwrap();
    let (mut received, _) = soon("the worker is back", listener.accept()).await.unwrap();
    assert_eq!(read_exactly(&mut received, 3).await, b"r2\n", "what waited in the queue was held");
    source.acked(1, 2).await;
    assert_eq!(control.status().sinks[0].connections, 2);
}

#[tokio::test]
async fn a_plain_sink_that_dies_loses_what_its_socket_held() {
    let (listener, address) = receiver().await;
    let mut config = config(vec![sink_config("out", &address, SinkProtocol::FramedTcp)]);
    config.sources.push(SourceConfig::new("plain", "127.0.0.1:0", SourceProtocol::framed()));
    let (endpoint, control, _) = start(config).await;
    let (received, _) = soon("the worker's connection", listener.accept()).await.unwrap();
    // The receiver does not read, so that bytes stand in the endpoint's own buffer when it dies.
    let mut sender = TcpStream::connect(endpoint.address("plain").unwrap()).await.unwrap();
    let batch = frames(framing::Framing::RAW_U32BE, &vec![&[b'x'; 10_000][..]; 100]);
    while let Ok(result) = timeout(Duration::from_millis(300), sender.write_all(&batch)).await {
        result.unwrap();
    }
    drop(received);
    let status = until(&control, "the loss is counted", |status| status.sinks[0].dropped > 0).await;
    assert!(status.sinks[0].dropped <= 256 * 1024 + 128 * 1024, "{}", status.sinks[0].dropped);
    let (mut received, _) = soon("the worker is back", listener.accept()).await.unwrap();
    let again = read_exactly(&mut received, 10_001).await;
    assert!(
        again[..10_000].iter().all(|byte| *byte == b'x') && again[10_000] == b'\n',
        "begins with a whole record"
    );
}

#[tokio::test]
async fn frames_that_destroy_the_framing_are_violations() {
    let mut config = config(vec![]);
    config.sources[0].protocol = SourceProtocol::framed();
    let (_endpoint, control, source) = start(config).await;
    for (bytes, rule, count) in [(&[0, 0, 0, 0][..], "§7.16", 1), (&[0, 0, 0x40, 1][..], "§1.1", 2)] {
        let mut sender = TcpStream::connect(&source).await.unwrap();
        sender.write_all(bytes).await.unwrap();
        assert_eq!(soon("the close", sender.read(&mut [0; 1])).await.unwrap_or(0), 0);
        let status = until(&control, "the violation", |status| status.violation_count == count).await;
        assert_eq!(status.violations.last().unwrap().rule, rule);
    }
    // A sender that dies inside a frame breaks no rule.
    let mut sender = TcpStream::connect(&source).await.unwrap();
    sender.write_all(&[0, 0, 0, 9, 1]).await.unwrap();
    drop(sender);
    until(&control, "the connection is gone", |status| status.sources[0].connections == 0).await;
    assert_eq!(control.status().violation_count, 2);
}

#[tokio::test]
async fn a_plain_source_is_held_back_by_a_stall_and_loses_nothing() {
    let mut config = config(vec![]);
    config.sources[0].protocol = SourceProtocol::framed();
    let (_endpoint, control, source) = start(config).await;
    until(&control, "the first checkpoint", |status| status.checkpoint > 0).await;
    control.stall();
    let mut sender = TcpStream::connect(&source).await.unwrap();
    let batch = frames(framing::Framing::RAW_U32BE, &[&[b'x'; 10_000][..]; 100]);
    let mut written = 0;
    while let Ok(result) =
        timeout(Duration::from_millis(300), sender.write(&batch[written % batch.len()..])).await
    {
        written += result.unwrap();
        assert!(written < 200_000_000, "200 MB went somewhere");
    }
    assert_eq!(control.status().records_in, 0);
    control.resume();
    let rest = batch.len() - written % batch.len();
    sender.write_all(&batch[batch.len() - rest..]).await.unwrap();
    let records = ((written + rest) / (batch.len() / 100)) as u64;
    until(&control, "every record", |status| status.records_in == records).await;
}
